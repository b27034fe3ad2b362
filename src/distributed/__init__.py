"""Several processes: how they were launched, and what they do together."""
