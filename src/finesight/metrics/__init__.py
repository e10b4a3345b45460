"""Scores with confidence intervals: per-sample statistics, and functions of their sum."""
