"""Defines the error for bad input, which the user can mend."""


class UserError(Exception):
    """Reports bad input in one line that names the thing and the remedy; entry points print it without a traceback."""
