"""A data set as it lies on disk: a folder, a .zip, a .tar or a .tar.gz, read without unpacking it."""

import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

from bcdlib.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
LARGEST_IMAGE = 64 * 2**20  # bytes of one file; a BreakHis PNG has under 1 MiB


class Source:
    """Images in a folder or an archive. Use `open_source` to get one.

    Attributes
    ----------
    path : pathlib.Path
        The folder or archive file.
    """

    def __init__(self, path: Path):
        self.path = path

    def names(self) -> list[str]:
        """Paths inside the source of all image files, sorted, with ``/`` between folders."""
        return sorted(name for name in self._all_names() if _is_image(name))

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None, str]]:
        """Read some members in the order in which they are stored (one sequential pass for an archive).

        Yields
        ------
        (name, content, reason) : content is None if the member cannot be read, and reason says why.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash that changes when the source changes: names, sizes and times, not where it lies."""
        raise NotImplementedError

    def _all_names(self) -> Iterator[str]:
        raise NotImplementedError


class FolderSource(Source):
    def _all_names(self):
        for folder, subfolders, files in os.walk(self.path):
            subfolders.sort()
            for file in files:
                yield (Path(folder) / file).relative_to(self.path).as_posix()

    def read(self, names):
        for name in names:
            try:
                file = self.path / name
                if file.stat().st_size > LARGEST_IMAGE:
                    yield name, None, f"larger than {LARGEST_IMAGE >> 20} MiB"
                else:
                    yield name, file.read_bytes(), ""
            except OSError as error:
                yield name, None, error.strerror or str(error)

    def fingerprint(self):
        digest = hashlib.sha256()
        for name in self.names():
            status = (self.path / name).lstat()  # not stat: a link that leads nowhere is one unreadable image
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


class _ArchiveSource(Source):
    def fingerprint(self):
        status = self.path.stat()
        return hashlib.sha256(f"{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()


class ZipSource(_ArchiveSource):
    def _all_names(self):
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield from (info.filename for info in archive.infolist() if not info.is_dir())
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{self.path}: not a readable zip archive ({error}); download it again") from None

    def read(self, names):
        wanted = set(names)
        with zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                if info.filename not in wanted:
                    continue
                if info.file_size > LARGEST_IMAGE:
                    yield info.filename, None, f"larger than {LARGEST_IMAGE >> 20} MiB"
                    continue
                try:
                    yield info.filename, archive.read(info), ""
                except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError) as error:
                    yield info.filename, None, str(error)


class TarSource(_ArchiveSource):
    def _members(self):
        try:
            with tarfile.open(self.path, mode="r|*") as archive:  # "|": strictly forward, as a mounted Drive likes it
                for member in archive:
                    if member.isfile():
                        yield archive, member
                    archive.members = []  # or a million members would pile up in memory
                # tarfile takes a cut before or inside a header for the end; a whole archive ends with a block of zeros
                if archive.fileobj.pos < archive.offset + tarfile.BLOCKSIZE:
                    raise EOFError("it is cut off")
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise InputError(f"{self.path}: not a readable tar archive ({error}); download it again") from None

    def _all_names(self):
        return (member.name for _, member in self._members())

    def read(self, names):
        wanted = set(names)
        for archive, member in self._members():
            if member.name not in wanted:
                continue
            wanted.remove(member.name)
            if member.size > LARGEST_IMAGE:
                yield member.name, None, f"larger than {LARGEST_IMAGE >> 20} MiB"
            else:
                yield member.name, archive.extractfile(member).read(), ""
            if not wanted:
                return


def open_source(path) -> Source:
    """Open a folder or an archive of images.

    Parameters
    ----------
    path : str or path-like
        A folder (official layout, flattened, or nested deeper), or a file .zip, .tar, .tar.gz or .tgz.

    Raises
    ------
    InputError
        If the path does not exist, is empty, or is neither a folder nor such an archive.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        if next(os.scandir(path), None) is None:
            raise InputError(f"{path}: the folder is empty; point --data at a copy of BreakHis")
        return FolderSource(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; point --data at a copy of BreakHis, or use 'synthetic'")
    if path.name.lower().endswith(".zip"):
        return ZipSource(path)
    if path.name.lower().endswith(ARCHIVE_SUFFIXES):
        return TarSource(path)
    raise InputError(f"{path}: neither a folder nor one of {', '.join(ARCHIVE_SUFFIXES)}")


def _is_image(name: str) -> bool:
    # macOS puts a shadow "._name.png" beside each file of an archive
    hidden = name.rsplit("/", 1)[-1].startswith("._") or name.startswith("__MACOSX/")
    return name.lower().endswith(IMAGE_SUFFIXES) and not hidden
