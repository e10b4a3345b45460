"""Losses that no library has, as functions of tensors."""
