"""Focal Transformer v1 and v2, and Twins, in MindSpore."""

__version__ = "1.0.0.dev0"
