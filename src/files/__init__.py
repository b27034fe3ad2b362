"""Files that are always whole, and the formats of weights."""
