"""Archives of files: read ones from outside safely, and write ones whose bytes follow from their content."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Self, cast

from octavo.errors import Invalid, NotFound, OctavoError, TooLarge
from octavo.serving.packaging.pickles import refuse_pickle
from octavo.settings import ServingSettings
from octavo.storage.atomic import readable, replace_folder, temporary_name
from octavo.storage.keys import check_key

CHUNK = 2**20
SLACK = 64 * 2**20
"""Bytes any archive may unpack to, however well it was packed."""
MAX_HEADER = 2**20
_PADDING = 1024  # bytes of header and filling a file takes in an archive, twice what tar needs
_LONG = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_LEVEL = 1  # weights hardly pack; more would only take longer


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may hold at most.

    Attributes:
        total: bytes of all files.
        single: bytes of one.
        files: how many, folders included.
        ratio: of unpacked to packed bytes, once more than `SLACK` is unpacked.
    """

    total: int
    single: int
    files: int
    ratio: float

    @classmethod
    def of(cls, settings: ServingSettings) -> Self:
        """Those of the settings."""
        return cls(settings.package_bytes, settings.package_file_bytes, settings.package_files, settings.package_ratio)


def unpack(archive: Path, into: Path, limits: Limits, called: str = "") -> list[str]:
    """Unpack a `.tar.gz` or `.tar` from anybody into the new folder `into`, whole or not at all.

    Only plain files and folders below `into` are made, without their owners, modes and times. `called` is where it came
    from, for messages; empty means its path.

    Returns:
        The files' paths in `into`, in order.

    Raises:
        Invalid: not such an archive, damaged, a name that leads elsewhere or comes twice, a link, a device, a pickle.
        TooLarge: over a limit; a declared size counts before anything of it is written.
        Conflict: `into` exists.
    """
    temporary, where = temporary_name(into), called or str(archive)
    try:
        temporary.mkdir(parents=True)
        with _reading(where), _stream(archive, limits, where) as stream:
            with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=_Header) as tar:
                files = _extract(tar, temporary, limits, where)
            stream.drain()
        replace_folder(temporary, into)
    except OSError as error:
        raise readable(error, into) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(files)


def pack(folder: Path, archive: Path, names: Iterable[str] | None = None) -> str:
    """Write the files of a folder as a `.tar.gz`; the same files give the same bytes.

    Args:
        folder: its files keep their paths in it.
        archive: written.
        names: the files to take; default: all.

    Returns:
        SHA-256 (hex) of the archive.

    Raises:
        Invalid: a link, a device, or a name that no archive should hold.
    """
    if names is None:
        found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
        names = [path.relative_to(folder).as_posix() for path in found]
    total = hashlib.sha256()
    try:
        with archive.open("wb") as raw, gzip.GzipFile("", "wb", _LEVEL, _Hashing(raw, total), mtime=0) as packed:
            with tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for name in sorted(names):
                    _add(tar, folder / name, check_key(name))
    except OSError as error:
        raise readable(error, archive) from error
    return total.hexdigest()


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    if path.is_symlink() or not path.is_file():
        raise Invalid("only plain files are packed", name, "Put a copy there instead of the link.")
    header = tarfile.TarInfo(name)
    header.size, header.mode = path.stat().st_size, 0o644
    with path.open("rb") as file:
        tar.addfile(header, file)


class _Hashing:
    """A file to be written that hashes what goes through."""

    def __init__(self, file: BinaryIO, total: hashlib._Hash) -> None:
        self._file = file
        self._total = total

    def write(self, data: bytes) -> int:
        self._total.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


class _Header(tarfile.TarInfo):
    """A header whose long names and attributes, which tarfile reads into memory, have a limit."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> Self:
        header = super().frombuf(buf, encoding or "utf-8", errors)
        if header.size < 0 or (header.type in _LONG and header.size > MAX_HEADER):
            raise TooLarge(f"a header of the archive has {header.size} bytes", "archive", "Pack it again.")
        return header


class _Bounded:
    """The unpacked bytes of an archive, of which no more are given than its limits allow."""

    def __init__(self, file: IO[bytes], most: int, where: str) -> None:
        self._file = file
        self._left = most
        self._where = where

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, CHUNK))
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge("the archive unpacks to more than the limits allow", self._where, _SETTINGS)
        return data

    def drain(self) -> None:
        """Read what comes after the last file: only then is the checksum of the whole compared."""
        while self.read(CHUNK):
            continue


_SETTINGS = "The limits are serving.package_bytes, package_file_bytes, package_files and package_ratio."


@contextlib.contextmanager
def _stream(archive: Path, limits: Limits, where: str) -> Iterator[_Bounded]:
    if not archive.is_file():
        raise NotFound("there is no such archive", where)
    with archive.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        most = limits.total + _PADDING * (limits.files + 20)
        if packed:
            most = min(most, SLACK + int(limits.ratio * archive.stat().st_size))
            with gzip.GzipFile(fileobj=raw, mode="rb") as file:
                yield _Bounded(cast("IO[bytes]", file), most, where)
        else:
            yield _Bounded(raw, most, where)


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turns what the readers raise for nonsense into one sentence."""
    try:
        yield
    except OctavoError:
        raise
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError, OverflowError, UnicodeError) as error:
        first = str(error) or type(error).__name__
        raise Invalid(f"not a whole .tar.gz or .tar: {first[:200]}", where, "Pack or fetch it again.") from None


def _extract(tar: tarfile.TarFile, folder: Path, limits: Limits, where: str) -> list[str]:
    files: set[str] = set()
    folders: set[str] = set()
    written = 0
    for count, member in enumerate(tar, 1):
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
        if count > limits.files:
            raise TooLarge(f"the archive holds more than {limits.files} files", where, _SETTINGS)
        name = _name(member, where)
        if not name:
            continue
        written += _check_size(member, name, written, limits, where)
        if name in files or (member.isfile() and name in folders):
            raise Invalid(f"{name!r} comes twice", where, "Pack each file once.")
        parents = {name[:at] for at, sign in enumerate(name) if sign == "/"}
        if parents & files:
            raise Invalid(f"{name!r} lies in a file", where, "Pack the folder again.")
        folders |= parents
        if member.isdir():
            folders.add(name)
            continue
        files.add(name)
        _write(tar, member, folder / name)
        refuse_pickle(folder / name, name)
    return list(files)


def _name(member: tarfile.TarInfo, where: str) -> str:
    """A member's path, empty for the archive's own folder; raises unless it is a plain file or folder."""
    given = member.name.removeprefix("./")
    if member.isdir() and given in ("", "."):
        return ""
    try:
        name = check_key(given)
    except Invalid as error:
        raise Invalid(f"the name {member.name[:100]!r} is refused: {error.what}", where, "Pack it again.") from None
    if member.issym() or member.islnk():
        raise Invalid(f"{name!r} is a link", where, "Pack the file itself (tar -h).")
    if member.issparse() or not (member.isfile() or member.isdir()):
        raise Invalid(f"{name!r} is neither a plain file nor a folder", where, "Pack plain files only.")
    return name


def _check_size(member: tarfile.TarInfo, name: str, written: int, limits: Limits, where: str) -> int:
    if member.size < 0 or member.size > limits.single:
        raise TooLarge(f"{name!r} has {member.size} bytes; {limits.single} are allowed", where, _SETTINGS)
    if written + member.size > limits.total:
        raise TooLarge(f"the files have more than {limits.total} bytes together", where, _SETTINGS)
    return member.size


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    if content is None:
        raise Invalid(f"{member.name!r} has no content", "archive")
    with path.open("xb") as file:
        shutil.copyfileobj(content, file, CHUNK)
        if file.tell() != member.size:
            raise Invalid(f"{member.name!r} is cut off", "archive", "Fetch or pack it again.")
