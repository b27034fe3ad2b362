"""The task of finding objects: their boxes, classes and, with some networks, masks."""
