"""Names of categories as examples of them, where they tell anything."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.serving.tenants.naming import name_texts, names_tell


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lost_or_stolen_card", "lost or stolen card"),
        ("LostCard", "lost card"),
        ("Refund not showing up", "refund not showing up"),
        ("top-up/failed.twice", "top up failed twice"),
        ("カード紛失", "カード紛失"),
        ("__", "__"),
    ],
)
def test_a_name_is_read_as_words(name: str, text: str) -> None:
    assert name_texts([name]) == [text]


def test_names_tell_when_most_lie_by_their_own_examples() -> None:
    means = np.eye(6, dtype=np.float32)
    classes = np.repeat(np.arange(6), 3)
    assert names_tell(means, means[classes], classes)
    assert names_tell(means[[0, 1, 2, 3, 5, 4]], means[classes], classes)  # four of six
    assert not names_tell(means[[0, 1, 2, 4, 5, 3]], means[classes], classes)  # half is not most
    assert not names_tell(np.ones((6, 6), np.float32), means[classes], classes)  # all alike: topic 1, topic 2, ...
