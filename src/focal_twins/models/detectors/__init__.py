"""Networks that find the objects in an image and box them, each on a backbone."""
