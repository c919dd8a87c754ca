"""The one exception for a user's mistake: the command line prints it as one line and exits with status 2."""


class InputError(ValueError):
    """Bad input. The message is one line that names the file or value and says what to do."""
