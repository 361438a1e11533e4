"""A chapter of the tour's report: what one system did, with figures and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure: what it is, its value as shown, and what to compare it with (may be empty)."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as SVG text, and the sentence under it."""

    svg: str
    caption: str


@dataclass(slots=True)
class Chapter:
    """What one system did on the tour; `failures` are sentences about what should have been otherwise."""

    title: str
    story: str
    figures: list[Figure] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, label: str, value: str, note: str = "") -> None:
        """Append a figure."""
        self.figures.append(Figure(label, value, note))

    def check(self, holds: bool, failure: str) -> None:
        """Note a failure unless `holds`."""
        if not holds:
            self.failures.append(failure)
