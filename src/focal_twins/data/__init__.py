"""Reads images from disk and makes training and evaluation batches of them."""
