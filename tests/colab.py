"""A stand-in for ``google.colab`` that behaves as the real one does, and notebooks with a user and without.

The real ``drive.mount`` asks the browser for permission, also where Drive is mounted; without a front end it
waits for its whole timeout and fails; it raises NotImplementedError where ``/var/colab/hostname`` is missing,
and ValueError if the folder is not empty or has a space in its name.
"""

import os
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parent.parent
_DRIVE = """
import os, pathlib, time

HOME = pathlib.Path(os.environ["FAKE_COLAB"])

def _front_end():
    shell = __import__("IPython").get_ipython()
    return getattr(getattr(shell, "kernel", None), "_allow_stdin", False)

def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    with open(HOME / "asked", "a") as log:
        log.write(mountpoint + chr(10))
    if not (HOME / "hostname").exists():  # /var/colab/hostname
        raise NotImplementedError("Mounting drive is unsupported in this environment.")
    if not _front_end():
        time.sleep(timeout_ms / 1000)
        raise TimeoutError("timed out\\nwaiting for the browser")
    if (HOME / "denied").exists():
        raise ValueError("mount failed:\\ncredential propagation was unsuccessful")
    place = pathlib.Path(mountpoint)
    if (place / "MyDrive").is_dir() and not force_remount:
        print("Drive already mounted")
        return
    if " " in mountpoint:
        raise ValueError("Mountpoint must not contain a space.")
    if place.is_dir() and any(place.iterdir()):
        raise ValueError("Mountpoint must not already contain files")
    (place / "MyDrive").mkdir(parents=True)
    print("Mounted at", mountpoint)
"""
# says in 0.2 s, not in two starts of 1.5 s, that all is installed already
_PIP = """
import sys
from importlib.metadata import version
from packaging.requirements import Requirement

assert sys.argv[1:3] == ["install", "-q"]
for wanted in map(Requirement, sys.argv[3:]):
    assert wanted.specifier.contains(version(wanted.name), prereleases=True), wanted
"""


class Colab:
    """A machine of Colab below a folder: its disk ``content``, a Drive, the environment of its kernels.

    With ``pip=True`` the real pip looks for what is missing.
    """

    def __init__(self, folder: Path, *, pip: bool = False, **variables):
        self.folder, self.content = folder, folder / "content"
        self.mine = self.content / "drive" / "MyDrive"
        package = folder / "packages" / "google" / "colab"
        package.mkdir(parents=True)
        self.content.mkdir()
        (folder / "hostname").write_text("machine")
        (package / "__init__.py").write_text("")
        (package / "drive.py").write_text(_DRIVE)
        if not pip:
            (folder / "packages" / "pip").mkdir()
            (folder / "packages" / "pip" / "__init__.py").write_text("")
            (folder / "packages" / "pip" / "__main__.py").write_text(_PIP)
        own = {key: text for key, text in os.environ.items() if not key.startswith(("BCD_CACHE", "BCD_HOME"))}
        self.environment = own | {
            "COLAB_RELEASE_TAG": "release-colab_20260801",
            "BCD_CONTENT": str(self.content),
            "FAKE_COLAB": str(folder),
            "PYTHONPATH": str(folder / "packages"),
            "PIP_NO_INDEX": "1",  # what is missing cannot be had
            **variables,
        }

    @property
    def asked(self) -> int:
        """How often the browser was asked."""
        log = self.folder / "asked"
        return len(log.read_text().splitlines()) if log.is_file() else 0

    def run(self, stage: str, *, answers: bool, more: str = "", cells: int | None = None, **parameters):
        """Run a notebook, or its first cells, as a user or (``answers=False``) papermill does; return it.

        A cell of `more` is run at the end. What fails raises nbclient's CellExecutionError.
        """
        notebook = nbformat.read(ROOT / "notebooks" / f"{stage}.ipynb", as_version=4)
        place = next(i for i, cell in enumerate(notebook.cells) if cell.id == "parameters")
        notebook.cells = notebook.cells[:cells]
        injected = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(injected))
        notebook.cells.append(nbformat.v4.new_code_cell(more))
        client = (_WithUser if answers else nbclient.NotebookClient)(
            notebook, kernel_name="python3", timeout=900, resources={"metadata": {"path": ROOT / "notebooks"}}
        )
        try:
            client.execute(env=self.environment)
        finally:
            self.notebook = notebook
        return notebook


class _WithUser(nbclient.NotebookClient):
    """Says with each request that there is a user to ask, as front ends do."""

    async def async_start_new_kernel_client(self):
        client = await super().async_start_new_kernel_client()
        client.allow_stdin = True
        return client

    start_new_kernel_client = nbclient.client.run_sync(async_start_new_kernel_client)


def printed(notebook, number: int = -1) -> str:
    """What a cell printed."""
    return "".join(output.get("text", "") for output in notebook.cells[number].outputs)
