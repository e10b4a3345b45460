"""finesight adapts vision and vision-language models to your own images, and tells you how far to trust the result."""

__version__ = "0.1.0"
