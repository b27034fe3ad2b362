"""The error that is the user's to mend."""


class UserError(Exception):
    """Bad input. Its message is one line naming the thing and the remedy; entry points print it without a traceback."""
