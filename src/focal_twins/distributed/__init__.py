"""Handles training in several processes: how they were launched, and how they work together."""
