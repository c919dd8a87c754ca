"""The one exception for a user's mistake: the command line prints it as one line and exits with status 2."""

LONGEST = 2000  # characters; a damaged table may hold a "name" of megabytes


def printable(text) -> str:
    """Text of others (names of files, cells of tables) as one line: line breaks, escape codes and the like as ``\\x1b``."""
    text = "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in str(text)[: LONGEST + 1]
    )
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


class InputError(ValueError):
    """Bad input. The message is one line that names the file or value and says what to do."""

    def __init__(self, message):
        super().__init__(printable(message))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
