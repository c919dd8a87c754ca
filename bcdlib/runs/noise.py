"""Keep the start-up messages of libraries from the terminal, where they would bury the line that counts."""

import os
import re
import subprocess
import sys

# what TensorFlow, CUDA and Jupyter's kernels say when they start, and XLA when it compiles; errors go through
NOISE = (
    r"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} \d\d:|To enable the following"
    r" instructions|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] |.*Kernel is running over TCP without"
    r"|(E\d{4} |[-\d]+ [:.\d]+: E ).*(cuInit|Unable to register|oneDNN supports)"
)
# a progress bar's text has no end until it is drawn anew, and goes on at once; noise comes in whole lines
_FILTER = f"""
import os, re
noise, tail, begun = re.compile({NOISE.encode()!r}), b"", False
while data := os.read(0, 2**16):
    *lines, tail = re.split(rb"(?<=[\\r\\n])", tail + data)
    for line in [*lines, tail]:
        whole = line.endswith((b"\\r", b"\\n"))
        if begun or not noise.match(line):
            os.write(2, line)
            begun = bool(line) and not whole
            if not whole:
                tail = b""
"""


def drop_noise() -> None:
    """Filter what libraries in C, and processes that are started here, write to stderr from now on.

    A process of its own does it: a thread could wait for Python's lock, and the last message of a crash must
    come through. What this Python writes goes to stderr unfiltered.
    """
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        return
    read, write = os.pipe()
    subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _FILTER],
        stdin=read,
        stdout=subprocess.DEVNULL,
        stderr=kept,
        start_new_session=True,  # Ctrl-C is not for it: it ends with those that write
    )
    os.dup2(write, 2)
    os.close(read)
    os.close(write)
    sys.stderr = os.fdopen(kept, "w", 1, encoding=sys.stderr.encoding, errors="backslashreplace")


def without_noise(text: str) -> str:
    r"""Leave out the lines that are noise.

    Examples
    --------
    >>> without_noise("I0000 00:00:1 7 cudart_stub.cc:31] Could not find cuda drivers\nDone.\n")
    'Done.\n'
    """
    return "".join(line for line in re.split(r"(?<=[\r\n])", text) if not re.match(NOISE, line))


class WithoutNoise:
    """Pass text on to a file, without the noise in it; to be given whole lines."""

    def __init__(self, file):
        self.file = file

    def write(self, text: str) -> None:
        """Write the lines of a text that are not noise."""
        self.file.write(without_noise(text))

    def flush(self) -> None:
        """Flush the file behind it."""
        self.file.flush()
