"""Bytes by key, in a folder or on S3, through obstore; whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from obstore import exceptions as store_errors
from obstore.store import LocalStore, S3Store

from octavo.errors import Conflict, Forbidden, Invalid, NotFound, OctavoError, Unavailable
from octavo.settings import StorageSettings
from octavo.storage.atomic import readable, write_atomic
from octavo.storage.keys import check_key, check_prefix

Data = bytes | Path | Iterable[bytes]

CONNECT_SECONDS = 4.0
SILENT_SECONDS = 12.0
RETRY_SECONDS = 10.0
SLOWEST_UPLOAD = 2**20
"""Bytes per second; a single-request upload that goes slower is given up."""
CHUNK = 4 * 2**20


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of an object without reading it; `size` in bytes, `etag` changes with the content."""

    key: str
    size: int
    etag: str
    modified: datetime


class Objects:
    """A folder or bucket of objects. Open it with `Objects.open`; safe to share between threads.

    Every method may raise `Unavailable` naming the endpoint when S3 does not answer (within about half a minute),
    `Invalid` for a malformed key and `Forbidden` when the store refuses the credentials.
    """

    def __init__(self, store: LocalStore | S3Store, where: str, patient: Callable[[float], S3Store] | None) -> None:
        self.where = where
        self._store = store
        self._patient = patient

    @classmethod
    def open(cls, url: str, settings: StorageSettings) -> Objects:
        """The objects at `url`: a folder (made when missing), `file://...` or `s3://bucket/prefix`.

        Opening S3 sends nothing; the first use does.

        Raises:
            Invalid: another scheme, or no bucket.
            OctavoError: the folder cannot be made.
        """
        parts = urlsplit(url)
        if parts.scheme == "s3":
            return _open_s3(parts.netloc, parts.path.strip("/"), url, settings)
        if "://" in url and parts.scheme != "file":
            raise Invalid(f"no object store for {parts.scheme}://", url, "Give a folder or s3://bucket/prefix.")
        folder = Path(unquote(parts.path) if parts.scheme == "file" else url).expanduser().absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise readable(error, folder) from error
        return cls(LocalStore(folder), str(folder), None)

    @property
    def folder(self) -> Path | None:
        """The folder, or None on S3."""
        return Path(self.where) if self._patient is None else None

    def put(self, key: str, data: Data) -> None:
        """Write or replace an object; `data` is the content, a file, or pieces in order.

        Raises:
            NotFound: `data` names a file that is not there.
            StorageFull: no space; the old object stays.
        """
        self._write(check_key(key), data, create_only=False)

    def create(self, key: str, data: Data) -> None:
        """Write an object that must not exist yet; of several at once exactly one succeeds.

        On S3 the content goes up in one request from memory (at most 5 GiB).

        Raises:
            Conflict: it exists.
        """
        self._write(check_key(key), data, create_only=True)

    def get(self, key: str) -> bytes:
        """The whole content.

        Raises:
            NotFound: no such object.
        """
        with self._readable(key):
            return bytes(self._store.get(check_key(key)).bytes())

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """The bytes from `start` up to but without `end`; fewer where the object ends before.

        Raises:
            Invalid: an empty or negative range, or one that starts past the end.
        """
        if not 0 <= start < end:
            raise Invalid(f"not a range: {start} to {end}", key, "Give 0 <= start < end.")
        with self._readable(key):
            try:
                return bytes(self._store.get(check_key(key), options={"range": (start, end)}).bytes())
            except store_errors.BaseError as error:
                if "range" in str(error).lower() and start >= self.head(key).size:
                    raise Invalid(f"the object ends before byte {start}", key) from None
                raise

    def stream(self, key: str, chunk: int = CHUNK) -> Iterator[bytes]:
        """The content in pieces of about `chunk` bytes; a missing object is reported by the first piece."""
        with self._readable(key):
            for piece in self._store.get(check_key(key)).stream(min_chunk_size=chunk):
                yield bytes(piece)

    def head(self, key: str) -> ObjectInfo:
        """Size, etag and time of an object.

        Raises:
            NotFound: no such object.
        """
        with self._readable(key):
            return _info(self._store.head(check_key(key)))

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        try:
            self.head(key)
        except NotFound:
            return False
        return True

    def folders(self, prefix: str = "") -> list[str]:
        """The names (not whole keys) one level below `prefix` that hold objects, in order."""
        with self._readable(prefix):
            found = self._store.list_with_delimiter(check_prefix(prefix) or None)["common_prefixes"]
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """All objects under a prefix of whole segments (`a` holds `a/b`, not `ab`), by key."""
        with self._readable(prefix):
            found = [
                _info(item) for page in self._store.list(check_prefix(prefix) or None, chunk_size=1000) for item in page
            ]
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is fine."""
        with self._readable(key):
            try:
                self._store.delete(check_key(key))
            except FileNotFoundError:
                return

    def _write(self, key: str, data: Data, create_only: bool) -> None:
        if isinstance(data, Path) and not data.is_file():
            raise NotFound("there is no such file to store", str(data))
        if self.folder:
            self._write_file(self.folder / key, key, data, create_only)
        else:
            self._write_s3(key, data, create_only)

    def _write_file(self, path: Path, key: str, data: Data, create_only: bool) -> None:
        # obstore renames without fsync: after a power cut the name could hold nothing.
        try:
            write_atomic(path, _pieces(data) if isinstance(data, Path) else data, create_only=create_only)
        except Conflict:
            raise Conflict("the object exists already", key) from None

    def _write_s3(self, key: str, data: Data, create_only: bool) -> None:
        store = self._store
        with self._readable(key):
            if not create_only:
                store.put(key, data)
                return
            content = data.read_bytes() if isinstance(data, Path) else data
            whole = content if isinstance(content, bytes) else b"".join(content)
            if len(whole) > CHUNK and self._patient:
                store = self._patient(SILENT_SECONDS + len(whole) / SLOWEST_UPLOAD)
            store.put(key, whole, mode="create", use_multipart=False)

    @contextmanager
    def _readable(self, key: str) -> Iterator[None]:
        """Turns what the store says into the errors people see."""
        try:
            yield
        except OctavoError:
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise NotFound("the bucket does not exist", self.where, "Make it, or correct the URL.") from None
            raise NotFound("there is no such object", key) from None
        except store_errors.AlreadyExistsError:
            raise Conflict("the object exists already", key) from None
        except (store_errors.PermissionDeniedError, store_errors.UnauthenticatedError):
            raise Forbidden(
                "the object store refuses the credentials", self.where, "Check storage.s3_access_key and s3_secret_key."
            ) from None
        except OSError as error:
            raise readable(error, Path(self.where, key)) from error
        except (store_errors.BaseError, TimeoutError) as error:
            first = str(error).split("\n", 1)[0]
            if self.folder:
                raise OctavoError(f"the folder of objects cannot be used: {first}", self.where) from None
            raise Unavailable(
                f"the object store does not answer: {first}", self.where, "Check storage.s3_endpoint and the network."
            ) from None


def _open_s3(bucket: str, prefix: str, url: str, settings: StorageSettings) -> Objects:
    if not bucket:
        raise Invalid("the URL names no bucket", url, "Write s3://bucket/prefix.")
    check_prefix(prefix)

    def connect(silent_seconds: float) -> S3Store:
        options: dict[str, Any] = {"region": settings.s3_region}
        if settings.s3_endpoint:
            options["endpoint"] = settings.s3_endpoint.rstrip("/")
        if settings.s3_access_key:
            options["access_key_id"] = settings.s3_access_key
            options["secret_access_key"] = settings.s3_secret_key.get_secret_value()
        return S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                "allow_http": settings.s3_endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                "read_timeout": timedelta(seconds=silent_seconds),
                "timeout": timedelta(hours=6),  # the pause between bytes is what tells a dead store, not the whole
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
            **options,
        )

    where = f"{url} at {settings.s3_endpoint}" if settings.s3_endpoint else url
    return Objects(connect(SILENT_SECONDS), where, connect)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece


def _info(item: Any) -> ObjectInfo:
    return ObjectInfo(item["path"], item["size"], item["e_tag"] or "", cast(datetime, item["last_modified"]))
