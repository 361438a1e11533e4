"""Puts the table of measured claims between the `<!-- claims -->` markers of README.md and docs pages.

python benchmarks/report.py [FILE ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- claims -->", "<!-- /claims -->"


def table() -> str:
    """All bars of all result files as a Markdown table, with the machine they were measured on."""
    lines = ["| claim | bar | measured | | command |", "|---|---|---|---|---|"]
    machines: dict[str, None] = {}
    for file in sorted(RESULTS.glob("*.json")):
        result: dict[str, Any] = json.loads(file.read_text())
        machine = result["machine"]
        machines[f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}"] = None
        for bar in result["bars"]:
            mark = {True: "holds", False: "**fails**", None: ""}[bar["holds"]]
            cells = (bar["claim"], bar["bar"], bar["measured"], mark, f"`{result['command']}`")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    notes = [f"Measured on {'; '.join(machines)}. Beside the figures, each script prints how it was measured."]
    return "\n".join([*lines, "", *notes])


def insert(file: Path, text: str) -> bool:
    """Replace what is between the markers of `file`; False when it has none."""
    content = file.read_text(encoding="utf-8")
    if BEGIN not in content or END not in content:
        return False
    before, _, rest = content.partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return True


def main() -> None:
    """Write the table into the files named (default: README.md), or print it when none has the markers."""
    files = [Path(name) for name in sys.argv[1:]] or [ROOT / "README.md"]
    text = table()
    written = [file for file in files if insert(file, text)]
    for file in written:
        print(f"table written into {file}")
    if not written:
        print(text)


if __name__ == "__main__":
    main()
