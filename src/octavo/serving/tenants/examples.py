"""A customer's examples: texts with their categories, read from a CSV nobody has looked at before."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, cast

from octavo.errors import Invalid, NotFound

OUT_OF_SCOPE: Final = "oos"
LONGEST_TEXT: Final = 10_000
LONGEST_CATEGORY: Final = 200

_CATEGORY_NAMES: Final = ("category", "label", "intent")
_LONGEST_LINE: Final = 2**20
_GZIP: Final = b"\x1f\x8b"
_FORM: Final = "Write a CSV in UTF-8 whose header has the columns text and category (or label, or intent)."


@dataclass(frozen=True)
class Examples:
    """Texts and the category of each; the category `oos` marks texts that belong to none. `source` is for messages."""

    texts: tuple[str, ...]
    categories: tuple[str, ...]
    source: str = field(default="examples", compare=False)


def read_examples(file: Path, limit_rows: int = 100_000, limit_bytes: int = 64 * 2**20) -> Examples:
    """Read a CSV (or .csv.gz) with a header and the columns `text` and `category` (or `label`, or `intent`).

    Other columns are left aside. The file is read no further than a limit allows.

    Args:
        file: UTF-8, with or without a byte-order mark.
        limit_rows: most examples.
        limit_bytes: most bytes, after decompression.

    Raises:
        NotFound: no such file.
        Invalid: anything else that is wrong with it; says the row (the header is row 1) or the line and byte.
    """
    if not file.exists():
        raise NotFound("there is no such file of examples", str(file), _FORM)
    if not file.is_file():
        raise Invalid("this is not a file", str(file), _FORM)
    try:
        with file.open("rb") as stream:
            return _examples(stream, file.suffix == ".gz", str(file), limit_rows, limit_bytes)
    except OSError as error:
        raise Invalid(f"the file cannot be read: {error.strerror or error}", str(file)) from None


def parse_examples(raw: bytes, name: str, limit_rows: int = 100_000, limit_bytes: int = 64 * 2**20) -> Examples:
    """Read a CSV that somebody sent, compressed by gzip or not; as `read_examples`.

    Args:
        raw: the file's content.
        name: what the sender calls it, for what is said of it.
        limit_rows: most examples.
        limit_bytes: most bytes, after decompression.

    Raises:
        Invalid: whatever is wrong with it; says where.
    """
    return _examples(io.BytesIO(raw), raw.startswith(_GZIP), name, limit_rows, limit_bytes)


def _examples(stream: BinaryIO, packed: bool, name: str, limit_rows: int, limit_bytes: int) -> Examples:
    opened = cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if packed else stream
    try:
        return _read(csv.reader(_lines(opened, name, limit_bytes), strict=True), name, limit_rows)
    except csv.Error as error:
        raise Invalid(f"this is not a well-formed CSV: {error}", name, _FORM) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Invalid(f"the compressed file is damaged: {error}", name, "Compress it again with gzip.") from None


def _lines(stream: BinaryIO, file: str, limit_bytes: int) -> Iterator[str]:
    """Lines decoded one by one, so that what is wrong is found where it stands and nothing after it is read."""
    reader = io.BufferedReader(cast(io.RawIOBase, stream))
    offset = number = 0
    while raw := reader.readline(_LONGEST_LINE + 1):
        number += 1
        where = f"{file}, line {number}"
        if len(raw) > _LONGEST_LINE:
            raise Invalid(f"the line is longer than {_LONGEST_LINE:,} bytes", where, _FORM)
        if offset + len(raw) > limit_bytes:
            raise Invalid(f"the examples are larger than {limit_bytes:,} bytes", where, "Train on fewer examples.")
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            at = offset + error.start + (3 if number == 1 and raw.startswith(b"\xef\xbb\xbf") else 0)
            raise Invalid(
                f"byte {raw[at - offset]:#04x} at offset {at} is not UTF-8", where, "Save the file as UTF-8."
            ) from None
        if "\0" in line:
            raise Invalid(f"there is a NUL byte at offset {offset + raw.index(0)}", where, _FORM)
        offset += len(raw)
        yield line


def _read(rows: Iterator[list[str]], file: str, limit_rows: int) -> Examples:
    text_at, category_at = _columns(next(rows, []), file)
    texts: list[str] = []
    categories: list[str] = []
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(texts) == limit_rows:
            raise Invalid(f"there are more than {limit_rows:,} examples", file, "Train on fewer examples.")
        where = f"{file}, row {number}"
        if len(row) <= max(text_at, category_at):
            raise Invalid(f"the row has {len(row)} fields, fewer than the header", where, _FORM)
        texts.append(_checked(row[text_at], "text", LONGEST_TEXT, where))
        categories.append(_checked(row[category_at], "category", LONGEST_CATEGORY, where))
    if not texts:
        raise Invalid("there is no example below the header", file, _FORM)
    return Examples(tuple(texts), tuple(categories), file)


def _columns(header: Sequence[str], file: str) -> tuple[int, int]:
    names = [name.strip().lower() for name in header]
    category = next((name for name in _CATEGORY_NAMES if name in names), None)
    missing = [name for name, found in (("text", "text" in names), ("category", category is not None)) if not found]
    if missing or category is None:
        shown = ", ".join(name[:40] for name in names[:10]) or "nothing"
        raise Invalid(f"the header lacks {' and '.join(missing)}; it has {shown}", f"{file}, row 1", _FORM)
    for name in ("text", category):
        if names.count(name) > 1:
            raise Invalid(f"the header names {name} twice", f"{file}, row 1", _FORM)
    return names.index("text"), names.index(category)


def _checked(value: str, name: str, longest: int, where: str) -> str:
    value = value.strip()
    if not value:
        raise Invalid(f"the {name} is empty", where, "Fill it in or take the row out.")
    if len(value) > longest:
        raise Invalid(f"the {name} has {len(value):,} characters; {longest:,} is the most", where)
    return value
