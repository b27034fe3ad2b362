"""What the product learns to do: each task in a folder of its own."""
