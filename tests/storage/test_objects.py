from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octavo.errors import Conflict, Forbidden, Invalid, NotFound, OctavoError, Unavailable
from octavo.settings import StorageSettings
from octavo.storage import Objects
from octavo.storage.keys import check_key, check_prefix


@pytest.fixture(params=["folder", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """Every test using it runs on a folder and on an S3 server."""
    if request.param == "folder":
        return Objects.open(str(tmp_path / "objects"), StorageSettings())
    server = request.getfixturevalue("s3_server")
    return Objects.open(f"s3://{server.bucket()}/some/prefix", server.settings)


def test_what_is_put_comes_back(objects: Objects) -> None:
    objects.put("a/b.bin", b"hello")
    objects.put("a/b.bin", b"hello again")
    assert objects.get("a/b.bin") == b"hello again"
    assert objects.get_range("a/b.bin", 6, 100) == b"again"
    info = objects.head("a/b.bin")
    assert (info.key, info.size) == ("a/b.bin", 11)
    assert info.etag
    assert info.modified.tzinfo is not None


def test_files_and_pieces_are_put(objects: Objects, tmp_path: Path) -> None:
    big = bytes(range(256)) * 50_000
    (tmp_path / "big").write_bytes(big)
    objects.put("big", tmp_path / "big")
    assert objects.get("big") == big
    pieces = list(objects.stream("big", chunk=2**20))
    assert b"".join(pieces) == big
    assert len(pieces) > 5
    objects.put("pieces", (big[at : at + 10**6] for at in range(0, len(big), 10**6)))
    assert objects.get("pieces") == big
    objects.create("created", tmp_path / "big")
    assert objects.head("created").size == len(big)


def test_nothing_at_all_is_content_too(objects: Objects) -> None:
    objects.put("empty", b"")
    assert objects.get("empty") == b""
    assert b"".join(objects.stream("empty")) == b""
    assert objects.head("empty").size == 0


def test_create_refuses_what_exists(objects: Objects) -> None:
    objects.create("once", b"first")
    with pytest.raises(Conflict, match="exists"):
        objects.create("once", b"second")
    assert objects.get("once") == b"first"


def test_of_many_creators_one_wins(objects: Objects) -> None:
    won: list[int] = []

    def create(number: int) -> None:
        try:
            objects.create("once", b"%d" % number)
        except Conflict:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert objects.get("once") == b"%d" % won[0]


def test_what_is_missing_is_not_found(objects: Objects, tmp_path: Path) -> None:
    for ask in (
        objects.get,
        objects.head,
        lambda key: list(objects.stream(key)),
        lambda key: objects.get_range(key, 0, 1),
    ):
        with pytest.raises(NotFound):
            ask("none/such")
    assert not objects.exists("none/such")
    objects.delete("none/such")
    with pytest.raises(NotFound):
        objects.put("a", tmp_path / "no-file")


def test_listing_goes_by_whole_segments(objects: Objects) -> None:
    for key in ("m/b/1", "m/a/2", "m/a/1", "mm/x", "m/top"):
        objects.put(key, b"x")
    assert [info.key for info in objects.list("m")] == ["m/a/1", "m/a/2", "m/b/1", "m/top"]
    assert [info.key for info in objects.list("m/")] == ["m/a/1", "m/a/2", "m/b/1", "m/top"]
    assert len(objects.list()) == 5
    assert objects.list("nothing") == []
    assert objects.folders() == ["m", "mm"]
    assert objects.folders("m") == ["a", "b"]
    objects.delete("m/a/1")
    assert [info.key for info in objects.list("m/a")] == ["m/a/2"]


@pytest.mark.parametrize("span", [(-1, 2), (2, 2), (5, 1), (99, 100)])
def test_wrong_ranges_are_refused(objects: Objects, span: tuple[int, int]) -> None:
    objects.put("a", b"hello")
    with pytest.raises(Invalid):
        objects.get_range("a", *span)


@pytest.mark.parametrize(
    "key", ["a b", "a%20b", "ü/ß", "a+b&c=d", "x#y", "q#1/z", "a~b", "(1)", "😀", "a:b", "*?", "'\""]
)
def test_odd_but_right_keys_mean_themselves(objects: Objects, key: str) -> None:
    if key == "q#1/z":
        with pytest.raises(Invalid):
            objects.put(key, b"x")
        return
    objects.put(key, key.encode())
    assert objects.get(key) == key.encode()
    assert [info.key for info in objects.list()] == [key]
    objects.delete(key)
    assert objects.list() == []


BAD = [
    "",
    "/",
    "/etc/passwd",
    "a/../b",
    "..",
    ".",
    "a/./b",
    "a//b",
    "a/",
    "a\\b",
    "a\0b",
    "a\nb",
    "a#12",
    "\ud800",
    "A|",
    "a/b:",
    "x" * 221,
    "x/" * 512 + "x",
]


@pytest.mark.parametrize("key", BAD)
def test_wrong_keys_are_refused_by_every_method(objects: Objects, key: str) -> None:
    for use in (
        lambda: objects.put(key, b"x"),
        lambda: objects.create(key, b"x"),
        lambda: objects.get(key),
        lambda: objects.get_range(key, 0, 1),
        lambda: list(objects.stream(key)),
        lambda: objects.head(key),
        lambda: objects.delete(key),
    ):
        with pytest.raises(Invalid):
            use()


@given(st.text(max_size=60) | st.text(alphabet="./\\a#1", max_size=12))
def test_an_accepted_key_stays_inside_its_folder(key: str) -> None:
    try:
        check_key(key)
    except Invalid:
        return
    path = Path("/srv/objects") / key
    assert Path("/srv/objects") in path.parents
    assert path.as_posix() == f"/srv/objects/{key}"
    assert ".." not in path.parts
    assert not set(key) & set("\0\\\n")
    assert check_prefix(key + "/") == key


@given(st.lists(st.text(alphabet="ab./_-é", min_size=1, max_size=5), min_size=1, max_size=4))
def test_keys_of_plain_segments_are_accepted(segments: list[str]) -> None:
    plain = [segment.replace("/", "_").replace(".", "_") for segment in segments]
    assert check_key("/".join(plain)) == "/".join(plain)


@example(["A|"])
@example(["ab:", "x"])
@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=3))
def test_every_accepted_key_works_in_a_folder(tmp_path_factory: pytest.TempPathFactory, segments: list[str]) -> None:
    key = "/".join(segments)
    try:
        check_key(key)
    except Invalid:
        return
    objects = Objects.open(str(tmp_path_factory.mktemp("objects")), StorageSettings())
    objects.put(key, b"x")
    assert objects.get(key) == b"x"
    assert [info.key for info in objects.list()] == [key]


def test_a_write_in_progress_is_not_listed(tmp_path: Path) -> None:
    objects = Objects.open(str(tmp_path), StorageSettings())

    def pieces() -> Iterator[bytes]:
        yield b"half"
        assert len(list(tmp_path.iterdir())) == 1
        assert objects.list() == []
        yield b"whole"

    objects.put("a", pieces())
    assert objects.get("a") == b"halfwhole"


@pytest.mark.parametrize("url", ["gs://bucket", "http://host/x", "s3://", "s3:///x", "s3://bucket/a/../b"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(Invalid):
        Objects.open(url, StorageSettings())


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    objects = Objects.open(f"file://{tmp_path}/a%20b", StorageSettings())
    objects.put("x", b"1")
    assert (tmp_path / "a b" / "x").read_bytes() == b"1"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OctavoError, match="refuses"):
        Objects.open(str(tmp_path / "file" / "objects"), StorageSettings())


def settings_for(endpoint: str) -> StorageSettings:
    return StorageSettings(s3_endpoint=endpoint, s3_access_key="key", s3_secret_key="hush-hush")


def test_s3_that_is_down_is_named() -> None:
    objects = Objects.open("s3://bucket", settings_for("http://127.0.0.1:9"))
    for use in (
        lambda: objects.get("a"),
        lambda: objects.put("a", b"x"),
        lambda: objects.list(),
        lambda: objects.exists("a"),
    ):
        with pytest.raises(Unavailable) as caught:
            use()
        assert "http://127.0.0.1:9" in caught.value.where
        assert "hush" not in str(caught.value)


def test_s3_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.storage.objects.SILENT_SECONDS", 0.2)
    monkeypatch.setattr("octavo.storage.objects.RETRY_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        objects = Objects.open("s3://bucket", settings_for(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        with pytest.raises(Unavailable):
            objects.get("a")


def test_a_missing_bucket_is_told(s3_server: object) -> None:
    objects = Objects.open("s3://no-such-bucket", s3_server.settings)  # type: ignore[attr-defined]
    with pytest.raises(NotFound, match="bucket"):
        objects.get("a")
    with pytest.raises(NotFound, match="bucket"):
        objects.put("a", b"x")


def test_refused_credentials_are_told() -> None:
    answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        objects = Objects.open("s3://bucket", settings_for(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        with pytest.raises(Forbidden) as caught:
            objects.get("a")
    assert "s3_access_key" in caught.value.fix
