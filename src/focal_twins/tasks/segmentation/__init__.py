"""Segments images: every pixel gets a class."""
