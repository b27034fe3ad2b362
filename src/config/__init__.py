"""Configuration: YAML files, their inheritance, overrides and validation."""
