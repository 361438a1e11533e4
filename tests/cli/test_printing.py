"""Tables of commands on lines that are too short for them."""

from __future__ import annotations

import pytest

from octavo.printing import print_table

COSTS = (
    ["Tenant", "Model", "Requests", "Cold starts", "Money", "Share"],
    [
        ("acme", "acme-intent-classifier", "1203", "3", "-0.1920", "12%"),
        ("(house)", "minilm", "1", "", "120.0012", "100%"),
    ],
)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")


def words(shown: str) -> list[list[str]]:
    return [line.split() for line in shown.splitlines()]


def test_names_and_numbers_are_whole_where_programs_read(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(*COSTS)
    assert words(capsys.readouterr().out)[-2:] == [[cell for cell in row if cell] for row in COSTS[1]]


def test_a_terminal_breaks_names_but_no_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_table(*COSTS)
    shown = words(capsys.readouterr().out)
    assert ["acme", "acme-intent-", "1203", "3", "-0.1920", "12%"] in shown
    assert ["classifier"] in shown


def test_sentences_wrap_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    said = "roll out: the model did not answer within its time"
    print_table(["Endpoint", "Stable", "Last"], [("search-for-products", "search@3", said)])
    shown = capsys.readouterr().out
    assert "search-for-products" in shown
    assert set(said.split()) <= set(shown.split())
    assert max(map(len, shown.splitlines())) <= 19 + 8 + 20 + 3


def test_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["A", "B"], [])
    assert words(capsys.readouterr().out) == [["A", "B"]]
