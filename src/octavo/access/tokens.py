"""Tokens: made at random, shown once, kept as SHA-256. A key reads `octavo_<prefix>_<secret>`."""

from __future__ import annotations

import hashlib
import re
import secrets

_KEY = re.compile(r"octavo_([0-9a-f]{10})_[A-Za-z0-9_-]{43}")
MAX_TOKEN = 512


def make_key() -> tuple[str, str]:
    """A new key (256 bits at random) and its prefix, which names it in lists."""
    prefix = secrets.token_hex(5)
    return f"octavo_{prefix}_{secrets.token_urlsafe(32)}", prefix


def make_session_token() -> str:
    """A new token of a console session."""
    return secrets.token_urlsafe(32)


def prefix_of(token: str) -> str:
    """The prefix of a key; empty when `token` does not have the form of one."""
    match = _KEY.fullmatch(token)
    return match[1] if match else ""


def named_prefix(text: str) -> str:
    """The prefix that a person names a key by: as it is, after `octavo_`, or with the whole key."""
    return prefix_of(text) or text.removeprefix("octavo_")


def digest(token: str) -> str:
    """What is kept of a token. It has 256 random bits, so a plain fast hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
