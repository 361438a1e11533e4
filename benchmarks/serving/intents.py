"""A tenant's intent classifier on real questions: accuracy, what it turns away, and how long one command takes.

Every figure comes from `octavo tenants train` and `octavo tenants eval`; texts that are asked were not trained on.

python benchmarks/serving/intents.py
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import resource
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from contenders import octavo_workspace
from harness import CACHE, DATA, CannotRun, Report, octavo_command, own_versions, run

Rows = Sequence[tuple[str, str]]

FOLDS = 5
DRAWS = 3
FEW = 10  # examples per category
ASKED = 3000
# Threads of the matrix library wait for one another by spinning, which on a busy machine measures the other work.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


def read(name: str) -> list[dict[str, str]]:
    """The rows of a file of examples; `CannotRun` where it is not there."""
    file = DATA / "intents" / name
    if not file.is_file():
        raise CannotRun(f"{file} is not there")
    with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def full(rows: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Four fifths to train on, a fifth to ask; some of the fifths, one after the other."""
    shuffled = random.Random(0).sample(list(rows), len(rows))
    held = len(shuffled) // FOLDS
    for start in range(0, DRAWS * held, held):
        yield shuffled[:start] + shuffled[start + held :], shuffled[start : start + held]


def few(rows: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Ten examples of each category, some of the others to ask."""
    for seed in range(DRAWS):
        shuffled = random.Random(seed).sample(list(rows), len(rows))
        seen: Counter[str] = Counter()
        chosen, rest = [], []
        for text, category in shuffled:
            seen[category] += 1
            (chosen if seen[category] <= FEW else rest).append((text, category))
        yield chosen, rest[:ASKED]


def clinc(rows: list[dict[str, str]]) -> tuple[Rows, Rows]:
    """The data set's own parts: train and oos_train, val and oos_val."""

    def part(*names: str) -> Rows:
        return [(row["text"], row["category"]) for row in rows if row["split"] in names]

    return part("train", "oos_train"), part("val", "oos_val")


def command(workspace: Path, verb: str, tenant: str, rows: Rows) -> Any:
    """What `octavo tenants VERB` prints for a file of these rows."""
    file = workspace.with_name(f"{tenant}-{verb}.csv")
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "category"), *rows])
    words = ["tenants", verb, tenant, "--examples", str(file), "--json", "--workspace", str(workspace)]
    done = subprocess.run([*octavo_command(), *words], capture_output=True, text=True, env=os.environ | ONE_THREAD)
    if done.returncode:
        raise CannotRun(done.stderr.strip()[-500:])
    return json.loads(done.stdout)


def measure(workspace: Path, case: str, tenant: str, train: Rows, ask: Rows) -> dict[str, Any]:
    """One tenant, trained by one command and asked by another."""
    start, before = time.perf_counter(), children_cpu()
    trained = command(workspace, "train", tenant, train)[0]
    seconds, cpu = time.perf_counter() - start, children_cpu() - before
    folder = workspace / "models" / trained["model"] / trained["version"]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    found = command(workspace, "eval", tenant, ask)
    counts = {"categories": trained["categories"], "trained on": len(train), "asked": len(ask)}
    scores = {"accuracy": found["accuracy"], "oos recall": found["oos_recall"]}
    return {"case": case, **counts, **scores, "train s": seconds, "train CPU s": cpu, "MB": size / 1e6}


def children_cpu() -> float:
    """CPU-seconds of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run everything."""
    CACHE.mkdir(exist_ok=True)
    report = Report("intents", "python benchmarks/serving/intents.py", versions=own_versions("octavo", "onnxruntime"))
    bank = [(row["text"], row["category"]) for row in read("banking77_train.csv.gz")]
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        workspace = octavo_workspace(Path(folder) / "workspace")
        shots = [measure(workspace, "Banking77, 10-shot", f"few{at}", *pair) for at, pair in enumerate(few(bank))]
        whole = [measure(workspace, "Banking77, full", f"full{at}", *pair) for at, pair in enumerate(full(bank))]
        known, asked = clinc(read("clinc150_train.csv.gz"))
        wide = measure(workspace, "CLINC150", "clinc", known, asked)
        inside = [row for row in known if row[1] != "oos"]
        blind = measure(workspace, "CLINC150 without out-of-scope examples", "blind", inside, asked)
    report.rows = [*shots, *whole, wide, blind]
    shot, full_ = (mean([row["accuracy"] for row in rows]) for rows in (shots, whole))
    report.bar("Banking77, 10 examples per intent, accuracy", ">= .84", f"{shot:.3f}", shot >= 0.84)
    report.bar("Banking77, four fifths, accuracy on the fifth", ">= .925", f"{full_:.3f}", full_ >= 0.925)
    report.bar("CLINC150, accuracy in scope", ">= .945", f"{wide['accuracy']:.3f}", wide["accuracy"] >= 0.945)
    report.bar("CLINC150, out-of-scope recall", ">= .60", f"{wide['oos recall']:.2f}", wide["oos recall"] >= 0.60)
    told = f"{blind['accuracy']:.3f} in scope, {blind['oos recall']:.2f} turned away"
    report.tell("CLINC150, trained without out-of-scope examples", told)
    slowest = max(row["train s"] for row in whole)
    report.bar("training 77 intents, one command with encoding the texts", "<= 60 s", f"{slowest:.0f} s", slowest <= 60)
    report.notes.append(
        f"10-shot: mean of {DRAWS} draws, {ASKED:,} other texts asked; four fifths: mean of {DRAWS} fifths asked. MB: "
        "the tenant's whole version. One thread for training, as many as there are cores for encoding."
    )
    report.finish()


if __name__ == "__main__":
    run(main)
