"""Puts numbers into the sentences of messages."""


def counted(number: float, noun: str, form: str = "") -> str:
    """Return a number with its noun: 1 image, 2 images, 2 classes, 2 entries.

    Args:
        noun: the singular; its last word gets the ending.
        form: how the number is formatted: "," for 1,797 images.
    """
    return f"{number:{form}} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Return the plural of a regular noun."""
    if noun.endswith(("s", "x", "tch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"
