"""The secrets that sign requests: derived from one key of the workspace, so that none has to be kept.

API keys are kept hashed, and a hash cannot verify a signature. So the secret access key of an API key is the HMAC of
its prefix under the workspace's signing key, a file that is made once. Whoever has that file can sign as anybody;
servers that share a database need the same file.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import Conflict, Invalid
from octavo.storage.atomic import readable, write_atomic

KEY_FILE = "signing.key"
_BYTES = 32


@dataclass(frozen=True, slots=True)
class AwsCredentials:
    """What AWS's clients are given in place of a token."""

    access_key_id: str
    secret_access_key: str


class SigningKey:
    """The signing key of a workspace; the file is made at the first need, for this user's eyes only."""

    def __init__(self, workspace: Path) -> None:
        self._file = workspace / KEY_FILE
        self._key = b""

    def secret_of(self, prefix: str) -> str:
        """The secret access key of an API key: 43 characters.

        Raises:
            Invalid: the file does not hold a key.
            OctavoError: it cannot be read or made.
        """
        if not self._key:
            self._key = self._read()
        return base64.urlsafe_b64encode(hmac.digest(self._key, prefix.encode(), "sha256")).decode().rstrip("=")

    def _read(self) -> bytes:
        if not self._file.exists():
            with suppress(Conflict):  # another process made it a moment ago
                write_atomic(self._file, secrets.token_bytes(_BYTES).hex().encode(), create_only=True, mode=0o600)
        try:
            key = bytes.fromhex(self._file.read_text(encoding="ascii"))
        except OSError as error:
            raise readable(error, self._file) from None
        except ValueError:
            key = b""
        if len(key) != _BYTES:
            fix = "Restore it, or remove it: then every secret access key changes."
            raise Invalid("this file does not hold a signing key", str(self._file), fix)
        return key
