"""Holds the networks that turn images into feature maps."""
