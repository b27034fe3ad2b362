"""Checks that a device computes what a CPU does, by small networks of every kind."""
