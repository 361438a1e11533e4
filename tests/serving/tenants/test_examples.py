from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from octavo.errors import Invalid, NotFound
from octavo.serving.tenants.examples import Examples, read_examples


def write(folder: Path, content: bytes, name: str = "acme.csv") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def test_reads_texts_with_their_categories_and_leaves_other_columns_aside(tmp_path: Path) -> None:
    file = write(tmp_path, b'\xef\xbb\xbftext,split,label\n"a, b",train,one\n\nzwei,val,oos\n')
    assert read_examples(file) == Examples(("a, b", "zwei"), ("one", "oos"))


def test_reads_compressed_files_up_to_the_limit_of_what_they_hold(tmp_path: Path) -> None:
    raw = b"text,category\n" + b"hello there,greeting\n" * 1000
    file = write(tmp_path, gzip.compress(raw), "acme.csv.gz")
    assert len(read_examples(file).texts) == 1000
    with pytest.raises(Invalid, match="larger than 1,000 bytes"):
        read_examples(file, limit_bytes=1000)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "lacks text and category"),
        (b"text,category\n", "no example below the header"),
        (b"question,category\nhi,x\n", "lacks text; it has question, category"),
        (b"text,category\n ,x\n", "the text is empty"),
        (b"text,category\nhi,\n", "the category is empty"),
        (b"text,category\nhi\n", "fewer than the header"),
        (b"text,text,category\nhi,ho,x\n", "names text twice"),
        ("text,category\nhé,x\n".encode("latin-1"), "at offset 15 is not UTF-8"),
        ("text,category\nhi,x\n".encode("utf-16"), "not UTF-8"),
        (b"text,category\nh\0i,x\n", "NUL byte at offset 15"),
        (b"text,category\n" + b"x" * 10_001 + b",x\n", "10,001 characters"),
        (b'text,category\n"open,x\n', "not a well-formed CSV"),
    ],
)
def test_says_what_is_wrong_and_where(tmp_path: Path, content: bytes, what: str) -> None:
    with pytest.raises(Invalid, match=what) as caught:
        read_examples(write(tmp_path, content))
    assert "acme.csv" in caught.value.where


def test_stops_reading_at_the_limit_of_rows(tmp_path: Path) -> None:
    file = write(tmp_path, b"text,category\n" + b"hi,x\n" * 1_000_000)
    with pytest.raises(Invalid, match="more than 100,000 examples"):
        read_examples(file)


def test_refuses_what_is_not_there_no_file_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        read_examples(tmp_path / "none.csv")
    with pytest.raises(Invalid, match="not a file"):
        read_examples(tmp_path)
    with pytest.raises(Invalid, match="damaged"):
        read_examples(write(tmp_path, b"text,category\nhi,x\n", "acme.csv.gz"))
    with pytest.raises(Invalid, match="damaged"):
        read_examples(write(tmp_path, gzip.compress(b"text,category\nhi,x\n" * 99)[:-9], "cut.csv.gz"))
