"""Evaluates, exports and runs trained networks."""
