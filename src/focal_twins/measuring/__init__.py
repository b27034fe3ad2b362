"""Measures the speed, memory and cost of models."""
