"""Keys of objects: what a name may be, so that it means the same in a folder and on S3."""

from __future__ import annotations

import re

from octavo.errors import Invalid

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TEMPORARY = re.compile(r"#\d+$")
_DRIVE = re.compile(r"[A-Za-z][:|]$")
MAX_KEY_BYTES = 1024
MAX_SEGMENT_BYTES = 220


def check_key(key: str) -> str:
    """`key` itself when it is one: segments joined by single slashes, in UTF-8 at most 1024 bytes (220 a segment).

    Raises:
        Invalid: empty, absolute, `.` or `..` or an empty segment, backslash, control character, a segment ending in
            `#` and digits (the form of temporary names) or in a letter and `:` or `|` (the form of a drive, which file
            URLs treat apart), too long, or not expressible in UTF-8.
    """
    problem = _problem(key)
    if problem:
        raise Invalid(f"not a key of an object: {problem}", repr(key)[:200], "Write it as folder/name, plain text.")
    return key


def check_prefix(prefix: str) -> str:
    """A key, or empty for everything; one trailing slash is taken off."""
    prefix = prefix.removesuffix("/")
    return check_key(prefix) if prefix else ""


def _problem(key: str) -> str:
    if not key:
        return "it is empty"
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "it holds a lone surrogate"
    if size > MAX_KEY_BYTES:
        return f"it has {size} bytes, at most {MAX_KEY_BYTES} are allowed"
    if "\\" in key:
        return "it holds a backslash"
    if _CONTROL.search(key):
        return "it holds a control character"
    segments = key.split("/")
    return next(filter(None, map(_segment_problem, segments)), "")


def _segment_problem(segment: str) -> str:
    if not segment:
        return "it starts or ends with a slash, or holds two in a row"
    if segment in (".", ".."):
        return f"{segment!r} is not allowed in it"
    if len(segment.encode()) > MAX_SEGMENT_BYTES:
        return f"a part between slashes is longer than {MAX_SEGMENT_BYTES} bytes"
    if _TEMPORARY.search(segment):
        return "a part ends in # and digits, the form of temporary names"
    if _DRIVE.search(segment):
        return "a part ends in a letter and a colon or a bar, the form of a drive"
    return ""
