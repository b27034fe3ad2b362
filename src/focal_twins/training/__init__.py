"""Trains networks: the training step, its parts, and the loop around it."""
