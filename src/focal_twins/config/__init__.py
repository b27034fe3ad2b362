"""Loads configurations from YAML files, with inheritance, overrides and validation."""
