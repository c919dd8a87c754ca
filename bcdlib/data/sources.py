"""A data set as it lies on disk: a folder, a .zip, a .tar or a .tar.gz, read without unpacking it."""

import abc
import contextlib
import functools
import hashlib
import os
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from bcdlib.errors import InputError, printable
from bcdlib.runs.files import CACHE_TAG, GONE, read_json, why_no_file, write_json
from bcdlib.runs.folder import RUN_SUBFOLDERS, is_run_folder

try:
    from zlib_ng import gzip_ng as gzip  # unpacks one and a half times as fast
except ImportError:
    import gzip  # type: ignore[no-redef]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_OTHER_ARCHIVES = (".rar", ".7z", ".gz", ".bz2", ".xz", ".zst", ".tbz2", ".txz")  # to be unpacked first
# how other files begin that are given an archive's suffix, in small letters
_NO_ARCHIVE = {
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive; unpack it",
    b"rar!\x1a\x07": "a RAR archive; unpack it",
    b"\xfd7zxz": "a file packed by xz; unpack it",
    b"(\xb5/\xfd": "a file packed by Zstandard; unpack it",
    b"bzh": "a file packed by bzip2; unpack it",
    **dict.fromkeys((b"<!doctype", b"<html"), "a web page; download it again"),
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself: git lfs pull",
}
LARGEST_IMAGE = 64 * 2**20  # bytes of one file; a BreakHis PNG has under 1 MiB
MOST_MEMBERS = 500_000  # of an archive; BreakHis has 7909 images, and each name costs memory
UNREADABLE = "cannot be read"  # how the reason begins where the file system, not the file, is at fault
_IMAGES_ALONE = "point --data at an archive or folder of the images alone"
_NOT_A_FILE = "a folder, link, device or sparse file, not an image"


class Source(abc.ABC):
    """Images in a folder or an archive. Use `open_source` to get one.

    Attributes
    ----------
    path : pathlib.Path
        The folder or archive file.
    left_out : list of (name, reason)
        What `names` found that is called like an image but cannot be used, whatever its bytes are.
    others : list of str
        Files that `names` found and whose names are not those of images.
    any_order : bool
        Whether several threads may `read`, each its own names.
    listings : pathlib.Path, optional
        Folder that keeps what `names` found in a tar archive, which has no table of contents.
    """

    kind = ""  # of archive
    any_order = False

    def __init__(self, path: Path, listings: Path | None = None):
        self.path, self.listings = path, listings
        self.left_out: list[tuple[str, str]] = []
        self.others: list[str] = []

    def names(self) -> list[str]:
        """List the image files: sorted paths inside the source, each once, with ``/`` between folders."""
        self.left_out, self.others = [], []
        found: set[str] = set()
        for name, reason in self._all_names():
            if self.kind and not reason and name.lower().endswith(ARCHIVE_SUFFIXES):
                reason = "an archive inside an archive; unpack it and name it in --data"
            elif not _is_image(name):
                if not reason:
                    self.others.append(name)
                continue
            elif name in found and not reason:
                reason = "comes twice in the archive; the first that is sound is used"
            reason = reason or _bad_name(name)
            if reason:
                self.left_out.append((printable(name), reason))
            else:
                found.add(name)
        return sorted(found)

    def hint(self) -> str:
        """Say, as the end of a message, that an archive lies here, perhaps the one that is meant."""
        for suffixes, advice in ((ARCHIVE_SUFFIXES, "perhaps it is meant"), (_OTHER_ARCHIVES, "unpack it")):
            packed = sorted(name for name in self.others if name.lower().endswith(suffixes))
            if packed:
                return f"; the archive {packed[0]} lies there: {advice}"
        return ""

    @abc.abstractmethod
    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None, str]]:
        """Read some members in the order in which they are stored (one sequential pass for an archive).

        Yields
        ------
        (name, content, reason) : content is None if the member cannot be read, and reason says why.
        """

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hash what tells data sets apart without reading all of them: names, sizes, an archive's checksums.

        It is the same wherever the data lie and whenever they were copied.
        """

    @abc.abstractmethod
    def modified(self) -> str:
        """Hash the times of last change; empty where the checksums in `fingerprint` vouch for the content.

        The same times and fingerprint: the same content. Other times say nothing: a second copy has others.
        """

    @abc.abstractmethod
    def _all_names(self) -> Iterator[tuple[str, str]]:
        """Yield each path inside the source, and why it is no file; "" if it is one."""


class FolderSource(Source):
    """Image files in a folder, at any depth."""

    any_order = True

    def _all_names(self):
        for folder, subfolders, files in os.walk(self.path, onerror=self._not_listed):
            if self._made_by_bcdlib(Path(folder), subfolders, files):
                continue
            subfolders.sort()
            for path in (Path(folder, name) for name in subfolders):
                yield self._inside(path), "a folder, not an image"
                if path.is_symlink():  # as os.walk does: a link may lead round in circles
                    self.left_out.append(
                        (printable(self._inside(path)), "a link to a folder; such links are not followed")
                    )
            yield from ((self._inside(Path(folder, file)), "") for file in files)

    def _made_by_bcdlib(self, folder: Path, subfolders: list[str], files: list[str]) -> bool:
        """Whether to leave out a folder: images in caches and run folders are drawn tissue and figures."""
        run = "settings.json" in files and is_run_folder(folder)
        if folder == self.path:  # named by the user; a run may lie in it, among the images
            subfolders[:] = [name for name in subfolders if not (run and name in RUN_SUBFOLDERS)]
        elif run or CACHE_TAG in files:
            subfolders.clear()
            return True
        return False

    def _inside(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def _not_listed(self, error: OSError) -> None:
        folder = Path(error.filename)
        if folder == self.path:
            raise _lost(folder, error)
        self.left_out.append((printable(self._inside(folder)), f"folder cannot be listed: {error.strerror}"))

    def read(self, names):
        """Read some files in the order of their names; see `Source.read`."""
        for name in names:
            try:
                file = os.path.join(self.path, name)
                status = os.stat(file)
                if not stat.S_ISREG(status.st_mode):  # a pipe would keep the reader waiting for ever
                    yield name, None, "not a plain file"
                elif status.st_size > LARGEST_IMAGE:
                    yield name, None, f"larger than {LARGEST_IMAGE >> 20} MiB"
                else:
                    with open(file, "rb", buffering=0) as opened:
                        yield name, opened.read(), ""
            except FileNotFoundError:
                yield name, None, f"{UNREADABLE}: {why_no_file(file)}"
            except OSError as error:
                yield name, None, f"{UNREADABLE}: {error.strerror or error}"

    def fingerprint(self):
        """Hash the names and sizes of all image files."""
        return _digest([f"{name}\0{status.st_size}" for name, status in self._statuses()])

    def modified(self):
        """Hash the times of all image files; see `Source.modified`."""
        return _digest([str(status.st_mtime_ns) for _, status in self._statuses()])

    def _statuses(self):
        for name in self.names():
            path = self.path / name
            try:
                try:
                    yield name, path.stat()
                except OSError:  # a link that leads nowhere is one unreadable image
                    yield name, path.lstat()
            except OSError as error:
                raise _lost(path, error) from None


class _ArchiveSource(Source):
    @abc.abstractmethod
    def _members(self) -> Iterator[tuple[str, str, int, Callable[[], tuple[bytes | None, str]]]]:
        """Yield name, why it is no file, size, and what unpacks it to (content, reason), in stored order."""

    def _all_names(self):
        return ((name, reason) for name, reason, _, _ in self._members())

    def read(self, names, *, copy: int = 0):
        """Read some members, each the first of its name (1: the second), in one pass; see `Source.read`."""
        wanted = dict.fromkeys(names, copy)
        for name, no_file, size, unpack in self._members():
            if not wanted:
                return
            if no_file or name not in wanted:
                continue
            if wanted[name]:
                wanted[name] -= 1
                continue
            del wanted[name]
            if size > LARGEST_IMAGE:
                yield name, None, f"larger than {LARGEST_IMAGE >> 20} MiB"
            else:
                yield name, *unpack()

    @contextlib.contextmanager
    def _explain_errors(self):
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # many kinds on damaged input: struct.error, zlib.error, ...
            if isinstance(error, OSError) and error.errno in GONE:  # the file itself is sound
                raise _lost(self.path, error) from None
            raise InputError(
                f"{self.path}: not a readable {self.kind} archive ({error or type(error).__name__}); "
                "remove it and download it again"
            ) from None


class ZipSource(_ArchiveSource):
    """Image files in a zip archive."""

    kind = "zip"

    def _members(self):
        with self._explain_errors():
            check_directory(self.path)
            with zipfile.ZipFile(self.path) as archive:
                for info in archive.infolist():
                    mode = info.external_attr >> 16 if info.create_system == 3 else 0  # 3: packed on Unix
                    name = _zip_name(info)
                    # not is_dir(), which in older Pythons fails on an empty name
                    file = not name.endswith("/") and stat.S_IFMT(mode) in (0, stat.S_IFREG)
                    yield (
                        name.rstrip("/"),
                        "" if file else _NOT_A_FILE,
                        info.file_size,
                        functools.partial(self._unpack, archive, info),
                    )

    def fingerprint(self):
        """Hash name, size and CRC-32 of each member, as the zip's table of contents has them."""
        check_directory(self.path)
        with self._explain_errors(), zipfile.ZipFile(self.path) as archive:
            return _digest(f"{info.filename}\0{info.file_size}\0{info.CRC}" for info in archive.infolist())

    def modified(self):
        """Return nothing: the checksums of the content are in `fingerprint`."""
        return ""

    def _unpack(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[bytes | None, str]:
        if info.flag_bits & 1:
            return None, "encrypted; unpack it with its password and pack it anew without"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return None, "packed by another method than deflate; pack it anew"  # zipfile sets those no limit
        try:
            with archive.open(info) as member:
                # never more than is declared: archive.read() would unpack all of a bomb first and cut it then
                content = member.read(info.file_size)
        except Exception as error:  # as in `_explain_errors`
            if isinstance(error, OSError) and error.errno in GONE:  # the file itself is sound
                raise _lost(self.path, error) from None
            return None, printable(error) or type(error).__name__
        return (content, "") if len(content) == info.file_size else (None, "shorter than it says")


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Read a member's name: macOS writes UTF-8 without saying so, Windows backslashes."""
    name = info.filename
    if not info.flag_bits & 0x800:  # of UTF-8; without it zipfile takes code page 437
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def check_directory(path: Path) -> None:
    """Refuse a zip of too many members before zipfile loads all of their names (APPNOTE 4.3.14 to 4.3.16).

    Raises
    ------
    InputError
    """
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16 - 98))
        tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0 or len(tail) < place + 22:
        return  # zipfile says what is wrong with it
    members, size = struct.unpack("<HL", tail[place + 10 : place + 16])
    large = tail.rfind(b"PK\6\6", 0, place)
    if large >= 0 and len(tail) >= large + 48:
        members, size = (
            max(pair) for pair in zip((members, size), struct.unpack("<QQ", tail[large + 32 : large + 48]))
        )
    if members > MOST_MEMBERS or size > 1000 * MOST_MEMBERS:
        raise InputError(
            f"{path}: says that it has {members} members, in a table of {size} bytes, more than "
            f"{MOST_MEMBERS}; {_IMAGES_ALONE}"
        )


class _Header(tarfile.TarInfo):
    """A tar header, refused where tarfile would read gigabytes of a long name into memory, or never end."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        header = super().frombuf(buf, encoding, errors)
        long_name_or_extension = header.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
        )
        if header.size < 0 or (long_name_or_extension and header.size > 2**18):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        # tarfile would read the map of a sparse file, perhaps gigabytes, to its end
        if header.type == tarfile.GNUTYPE_SPARSE and header._sparse_structs[1]:
            raise tarfile.ReadError("a sparse file of many pieces")
        return header

    def _proc_gnusparse_10(self, next, pax_headers, tarfile):
        """Leave a sparse file's map, which stands before its data, unread: such files are not used."""
        next.sparse = []


class TarSource(_ArchiveSource):
    """Image files in a tar archive, perhaps packed by gzip."""

    kind = "tar"

    def names(self) -> list[str]:
        """List the image files as `Source.names` does, from `listings` if they were listed before."""
        if self.listings is None:
            return super().names()
        file = self.listings / f"{self.fingerprint()}.json"
        try:
            known = read_json(file)
            self.left_out = [(name, reason) for name, reason in known["left_out"]]
            self.others = known["others"]
            return known["names"]
        except (OSError, ValueError, KeyError, TypeError):  # not there, or not whole
            found = super().names()
            self.listings.mkdir(parents=True, exist_ok=True)
            write_json(file, {"names": found, "left_out": self.left_out, "others": self.others})
            return found

    def _members(self):
        with self._explain_errors(), open(self.path, "rb") as file:
            # a GiB, which any archive may unpack to, and 50 times its size: images hardly shrink
            limit = 2**30 + 50 * os.fstat(file.fileno()).st_size
            # not tarfile's "r:*": of other packers than gzip a few bytes may unpack to gigabytes
            stream = gzip.open(file) if file.peek(2)[:2] == b"\x1f\x8b" else file
            with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header) as archive:
                for number, member in enumerate(archive):
                    if number >= MOST_MEMBERS:
                        raise InputError(
                            f"{self.path}: has more than {MOST_MEMBERS} members; {_IMAGES_ALONE}"
                        )
                    if member.size < 0 or archive.offset > limit:  # the offset of the next member
                        raise InputError(
                            f"{self.path}: would unpack to more than {limit >> 30} GiB; {_IMAGES_ALONE}"
                        )
                    if len(archive.pax_headers) > 100:  # global ones, gathered from all of the archive
                        raise tarfile.ReadError("too many global headers")
                    # a sparse file's pieces may lie anywhere: to seek back unpacks all from the start
                    yield (
                        member.name,
                        "" if member.isfile() and not member.issparse() else _NOT_A_FILE,
                        member.size,
                        functools.partial(self._unpack, archive, member),
                    )
                    archive.members = []  # or a million members would pile up in memory
                # tarfile takes a cut before or inside a header for the end; a whole archive ends with zeros
                if stream.tell() < archive.offset + tarfile.BLOCKSIZE:
                    raise EOFError("it is cut off")
                while stream is not file and stream.tell() <= limit and stream.read(2**20):
                    pass  # to gzip's checksum, which stands behind the filling of the last record

    def fingerprint(self):
        """Hash the archive's size, begin and end; gzip ends with the CRC-32 of what it packs."""
        with self._explain_errors(), open(self.path, "rb") as file:
            begin, size = file.read(2**16), os.fstat(file.fileno()).st_size
            file.seek(max(0, size - 2**16))
            return hashlib.sha256(begin + str(size).encode() + file.read()).hexdigest()

    def modified(self):
        """Hash the archive's time of last change; empty for gzip, see `Source.modified`."""
        with self._explain_errors(), open(self.path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            return "" if packed else _digest([str(os.fstat(file.fileno()).st_mtime_ns)])

    def _unpack(self, archive, member):
        with self._explain_errors():
            return archive.extractfile(member).read(), ""


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def is_container(path) -> bool:
    """Tell a folder or an archive of images, as a user names it, from an image."""
    return Path(path).is_dir() or Path(path).name.lower().endswith(ARCHIVE_SUFFIXES)


def open_source(path, listings=None) -> Source:
    """Open a folder or an archive of images.

    Parameters
    ----------
    path : str or path-like
        A folder (official layout, flattened, or nested deeper), or a file .zip, .tar, .tar.gz or .tgz.
    listings : path-like, optional
        Folder in which the names in a tar archive are kept, so that it is not read through for them again.

    Raises
    ------
    InputError
        If the path does not exist, is empty, or is neither a folder nor such an archive.
    """
    if not str(path):
        raise InputError("no name of a folder or archive; point --data at a copy of BreakHis")
    path = Path(path).expanduser()
    if path.is_dir():
        try:
            if next(os.scandir(path), None) is None:
                raise InputError(f"{path}: the folder is empty; point --data at a copy of BreakHis")
        except OSError as error:
            raise _lost(path, error) from None
        return FolderSource(path)
    if not path.exists():
        address = re.match("[a-z]{2,}:/", str(path), re.IGNORECASE)  # C:/ is a disk
        why = "an address; download it first" if address else why_no_file(path, "file or folder")
        raise InputError(f"{path}: {why}; point --data at a copy of BreakHis, or use 'synthetic'")
    name = path.name.lower()
    if not name.endswith(ARCHIVE_SUFFIXES) or not path.is_file():  # a pipe would keep the reader waiting
        unpack = "; unpack it" if name.endswith(_OTHER_ARCHIVES) else ""
        raise InputError(f"{path}: neither a folder nor one of {', '.join(ARCHIVE_SUFFIXES)}{unpack}")
    start = _beginning(path)
    kind = next((kind for sign, kind in _NO_ARCHIVE.items() if start.lower().startswith(sign)), "")
    if kind and start[257:262] != b"ustar":  # a tar begins with the name of its first file
        raise InputError(f"{path}: not a zip or tar archive but {kind}")
    if _is_zip(path, start):
        return ZipSource(path)
    return TarSource(path, None if listings is None else Path(listings))


def _beginning(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(tarfile.BLOCKSIZE)
    except OSError as error:
        raise _lost(path, error) from None


def _is_zip(path: Path, start: bytes) -> bool:
    """Whether to read an archive as a zip: by how it begins, for some are renamed; else by its suffix."""
    tar = start[:2] == b"\x1f\x8b" or start[257:262] == b"ustar"
    return start[:4] == b"PK\3\4" or (path.name.lower().endswith(".zip") and not tar)


def _lost(path, error: OSError) -> InputError:
    return InputError(
        f"{path}: {UNREADABLE} ({error.strerror or error}); if it lies on a Drive, see that it is mounted, "
        "then run the same again"
    )


def _bad_name(name: str) -> str:
    """Why an image of this path is not used; empty if it can be."""
    if name.encode(errors="ignore").decode() != name:
        return "its name is not UTF-8 text; rename it"
    # nothing is ever unpacked, but such a path is in no honest archive either
    return "its path leads out of the archive" if name.startswith("/") or ".." in name.split("/") else ""


def _is_image(name: str) -> bool:
    # macOS puts a shadow "._name.png" beside each file of an archive
    return name.lower().endswith(IMAGE_SUFFIXES) and not (
        name.rsplit("/", 1)[-1].startswith("._") or "__MACOSX" in name.split("/")[:-1]
    )
