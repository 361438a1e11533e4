"""A minute of mixed traffic of all clients while models load, leave, change and their workers are killed."""

from __future__ import annotations

import pytest
from harness import CACHE, Report
from mixed_traffic import measure


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_answer_is_wrong_and_no_request_fails() -> None:
    CACHE.mkdir(exist_ok=True)
    report = Report("mixed_traffic", "")
    measure(60, report)
    assert [bar.measured for bar in report.bars if not bar.holds] == [], report.notes
