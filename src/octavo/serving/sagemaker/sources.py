"""Where the data of models may come from: a caller's word alone must not make the server read what is not theirs."""

from __future__ import annotations

from pathlib import Path

from octavo.errors import Forbidden, Invalid, NotFound
from octavo.settings import Settings
from octavo.storage.keys import check_key, check_prefix


def check_source(url: str, settings: Settings) -> str:
    """`url`, if models may be published from it: an `s3://` URL as given, a path with links followed.

    Raises:
        Invalid: neither S3 nor a path, or not a bucket and a key.
        Forbidden: not below `serving.model_buckets` or `serving.model_sources`, or octavo's own bucket.
        NotFound: there is no such file.
    """
    if url.startswith("s3://"):
        return _check_s3(url, settings)
    path = url.removeprefix("file://")
    if "://" in path or not path:
        raise Invalid(f"no models come from {url[:200]!r}", "ModelDataUrl", "Give s3://bucket/key.tar.gz.")
    return str(_check_path(path, settings))


def below(source: str, target: str, settings: Settings) -> str:
    """The source of an archive below another source.

    Args:
        source: of `check_source`, a prefix or folder.
        target: the archive's path in it.
        settings: of the workspace.

    Raises:
        Invalid: no path of plain segments.
        OctavoError: as `check_source`.
    """
    key = check_key(target.removeprefix("/"))
    return check_source(f"{source.rstrip('/')}/{key}", settings)


def _check_s3(url: str, settings: Settings) -> str:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise Invalid("the URL names no bucket", "ModelDataUrl", "Give s3://bucket/key.tar.gz.")
    check_prefix(key)
    allowed = settings.serving.model_buckets
    if allowed and not any(_within(url, prefix) for prefix in allowed):
        raise Forbidden("no models come from here", url[:200], "The places are set in serving.model_buckets.")
    own = [place for place in (settings.repository_url, settings.objects_url) if place.startswith("s3://")]
    if any(_within(url, place) or _within(place, url) for place in own):
        raise Forbidden("octavo keeps its own objects here", url[:200], "Put the model under another prefix.")
    return url


def _within(url: str, prefix: str) -> bool:
    """Whether an S3 URL is that of a prefix, or below it by whole segments."""
    return f"{url.rstrip('/')}/".startswith(f"{prefix.rstrip('/')}/")


def _check_path(path: str, settings: Settings) -> Path:
    root = settings.serving.model_sources
    if not root:
        what = "no models are published from files here"
        raise Forbidden(what, path[:200], "Set serving.model_sources to the folder they may come from.")
    try:
        found = Path(path).resolve(strict=True)
        allowed = found.is_relative_to(Path(root).expanduser().resolve(strict=True))
    except (OSError, ValueError, RuntimeError):
        raise NotFound("there is no such file or folder", path[:200], "Put it below serving.model_sources.") from None
    if not allowed:
        raise Forbidden("no models come from here", path[:200], "Put it below serving.model_sources.")
    return found
