"""llgae: an experiment runner for locally linear generative autoencoders."""

__version__ = "0.1.0"
