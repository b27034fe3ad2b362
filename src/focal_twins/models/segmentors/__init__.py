"""Networks that give a class to every place of an image, each on a backbone."""
