"""Shows what a network looks at."""
