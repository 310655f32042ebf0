"""A benchmark suite for data-free knowledge distillation: one registry, one clock, one table."""

__version__ = "0.1.0"
