"""Inference code at one commit of a git repository, without that repository's settings, hooks and filters."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from octavo.errors import Invalid, NotFound, Unavailable
from octavo.serving.packaging.archive import Limits, unpack
from octavo.serving.packaging.spec import Code

SECONDS = 300.0
_SCHEMES = ("https", "ssh", "file")
_SAFE = ("-c", "core.hooksPath=/dev/null", "-c", "protocol.ext.allow=never", "-c", "core.symlinks=false")


def fetch_code(code: Code, into: Path, beside: Path, limits: Limits) -> None:
    """Put the files of a commit into the new folder `into`.

    The commit is fetched into an empty repository of our own, so nothing that the other repository configures runs.

    Args:
        code: where and which.
        into: made.
        beside: a folder that a relative path of a repository starts at.
        limits: of the commit's files.

    Raises:
        NotFound: no such repository, commit or folder.
        Invalid: a URL of another kind, or links among the files.
        Unavailable: git is not installed, or does not end.
    """
    source = _source(code.repository, beside)
    with tempfile.TemporaryDirectory(prefix="octavo-code-") as scratch:
        own = Path(scratch, "own.git")
        _git("init", "--quiet", "--bare", str(own))
        told = _git("--git-dir", str(own), "fetch", "--quiet", "--depth=1", "--no-tags", "--", source, code.commit)
        where = f"{code.repository} at {code.commit[:12]}"
        if told:
            raise NotFound(f"the commit cannot be fetched: {told}", where, "Is it pushed there?")
        tree = f"{code.commit}:{code.path}" if code.path else code.commit
        packed = Path(scratch, "code.tar")
        told = _git("--git-dir", str(own), "archive", "--format=tar", f"--output={packed}", tree)
        if told:
            raise NotFound(f"the commit has no such folder: {told}", f"{where}, {code.path}", "Correct code.path.")
        unpack(packed, into, limits)


def _source(repository: str, beside: Path) -> str:
    parts = urlsplit(repository)
    if "://" in repository:
        if parts.scheme not in _SCHEMES:
            raise Invalid(f"{parts.scheme}:// is not fetched from", "code.repository", "Use https, ssh or a folder.")
        return repository
    folder = (beside / Path(repository).expanduser()).absolute()
    if not folder.is_dir():
        raise NotFound("there is no such folder", str(folder), "Give code.repository as a folder or a URL.")
    return str(folder)


def _git(*words: str) -> str:
    """Run git without questions to a terminal; returns its complaint, empty when all went well."""
    program = shutil.which("git")
    if program is None:
        raise Unavailable("git is not installed", "code", "Install git, or list the code under `files`.")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            [program, *_SAFE, *words], capture_output=True, timeout=SECONDS, env=environment, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"git did not end within {SECONDS:g} s", "code.repository") from None
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else f"git ended with {done.returncode}"
