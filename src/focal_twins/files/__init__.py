"""Writes files that are always whole, and reads and writes the formats of weights."""
