"""Make a customer's autocomplete model from a CSV file with a column `text`.

python examples/autocomplete/build.py acme.csv exported/
octavo models publish acme-autocomplete exported/
octavo models infer acme-autocomplete --text "where is m"
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path

from next_words import NextWords

LONGEST_FIELD = 10_000


def read_texts(file: Path) -> list[str]:
    """The column `text`; ends the program with a sentence where there is none."""
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            if "text" not in (rows.fieldnames or ()):
                sys.exit(f"{file} has no column 'text': it is a CSV file with a header line")
            texts = [row["text"] or "" for row in rows]
    except OSError as error:
        sys.exit(f"{file} cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        sys.exit(f"{file} is not UTF-8: {error}")
    except csv.Error as error:
        sys.exit(f"{file} is not CSV: {error}")
    if not any(text.strip() for text in texts):
        sys.exit(f"{file} holds no texts")
    return texts


def main() -> None:
    """Count, and put the counts beside the model's code."""
    parser = argparse.ArgumentParser(description="Make an autocomplete model from a CSV file with a column 'text'.")
    parser.add_argument("csv", type=Path)
    parser.add_argument("folder", type=Path, help="gets the version's files; publish it with octavo models publish")
    given = parser.parse_args()
    texts = read_texts(given.csv)
    try:
        given.folder.mkdir(parents=True, exist_ok=True)
        NextWords.count(texts).save(given.folder)
        for name in ("model.py", "next_words.py"):
            shutil.copyfile(Path(__file__).with_name(name), given.folder / name)
    except OSError as error:
        sys.exit(f"{given.folder} cannot be written: {error.strerror}")
    print(f"{len(texts):,} texts; now: octavo models publish NAME {given.folder}")


if __name__ == "__main__":
    main()
