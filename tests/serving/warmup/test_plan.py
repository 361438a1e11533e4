"""Plans: order, room, the share, and who may have to leave."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octavo.serving.warmup.plan import IN_MEMORY, NO_ROOM, SHARE_USED, Plan, Present, Wish, decide


def wish(key: str, probability: float = 1.0, size: int = 10, seconds: float = 1.0, scheduled: bool = False) -> Wish:
    return Wish(key, probability, seconds, size, scheduled)


def here(key: str, saving: float = 0.0, size: int = 10, idle: bool = True, ahead: bool = False) -> Present:
    return Present(key, size, saving, idle, ahead)


def told(plan: Plan) -> dict[str, str]:
    return {step.key: step.reason for step in plan.steps}


def test_what_saves_most_per_byte_goes_first_after_the_schedule() -> None:
    wishes = [wish("a", 0.5), wish("b", 0.9), wish("slow", 0.5, seconds=9), wish("s", size=90, scheduled=True)]
    plan = decide(wishes, [], free=110, allowance=110)
    assert [step.key for step in plan.steps] == ["s", "slow", "b", "a"]
    assert told(plan) == {"s": "", "slow": "", "b": "", "a": SHARE_USED}


def test_free_room_is_taken_before_anybody_leaves() -> None:
    plan = decide([wish("a")], [here("old")], free=10, allowance=100)
    assert plan.steps[0].leaving == ()


def test_those_worth_least_leave_and_none_that_is_worth_more_or_in_use() -> None:
    present = [here("cold", 0.0), here("cool", 0.1), here("warm", 0.9), here("busy", 0.0, idle=False)]
    plan = decide([wish("a", 0.5, size=20), wish("b", 0.5)], present, free=0, allowance=100)
    assert {step.key: step.leaving for step in plan.loads} == {"b": ("cold",)}
    assert told(plan)["a"] == NO_ROOM
    plan = decide([wish("a", 0.9, size=30)], present, free=0, allowance=100)
    assert told(plan) == {"a": NO_ROOM}, "per byte it is worth less than what would have to leave"
    plan = decide([wish("a", 0.9, size=20)], [here("cold", 0.0), here("cool", 0.1)], free=0, allowance=100)
    assert plan.steps[0].leaving == ("cold", "cool")


def test_one_that_is_wished_for_itself_does_not_leave() -> None:
    plan = decide([wish("a", 0.9), wish("b", 0.5)], [here("b", 0.0)], free=0, allowance=100)
    assert told(plan) == {"a": NO_ROOM, "b": IN_MEMORY}


def test_the_share_counts_what_was_loaded_ahead_and_is_not_asked_yet() -> None:
    present = [here("x", ahead=True, idle=False), here("asked", idle=False)]
    plan = decide([wish("a"), wish("b")], present, free=100, allowance=20)
    assert told(plan) == {"a": "", "b": SHARE_USED}


def test_scheduled_models_and_likely_ones_loaded_ahead_are_kept_within_the_share() -> None:
    present = [here("s"), here("t"), here("likely", ahead=True), here("past", ahead=True), here("asked")]
    wishes = [wish("s", scheduled=True), wish("t", scheduled=True), wish("likely", 0.9), wish("asked", 0.8)]
    assert decide(wishes, present, free=0, allowance=100).kept == {"s", "t", "likely"}
    assert decide(wishes, present, free=0, allowance=15).kept == {"s"}


_sizes = st.integers(1, 50)
_wishes = st.lists(
    st.builds(Wish, st.sampled_from("abcdef"), st.floats(0, 1), st.floats(0, 9), _sizes, st.booleans()),
    unique_by=lambda wish: wish.key,
)
_present = st.lists(
    st.builds(Present, st.sampled_from("defghi"), _sizes, st.floats(0, 9), st.booleans(), st.booleans()),
    unique_by=lambda one: one.key,
)


@given(wishes=_wishes, present=_present, free=st.integers(0, 100), allowance=st.integers(0, 100))
def test_a_plan_never_takes_more_than_there_is(
    wishes: list[Wish], present: list[Present], free: int, allowance: int
) -> None:
    plan = decide(wishes, present, free, allowance)
    before = {one.key: one for one in present}
    gone = [key for step in plan.loads for key in step.leaving]
    assert len(gone) == len(set(gone))
    assert all(before[key].idle for key in gone)
    assert sum(step.size for step in plan.loads) <= free + sum(before[key].size for key in gone)
    assert sum(step.size for step in plan.loads) + sum(before[key].size for key in plan.kept) <= allowance
    assert {step.key for step in plan.steps} == {wish.key for wish in wishes}
    assert not plan.kept.intersection(gone)
    for step in plan.loads:
        for key in step.leaving:
            assert before[key].saving / before[key].size < step.saving / step.size


def test_one_loaded_ahead_gives_its_place_in_the_share_to_one_worth_twice_as_much() -> None:
    present = [here("x", 0.2, ahead=True), here("asked", 0.0)]
    wishes = [wish("x", 0.2), wish("a", 0.9)]
    plan = decide(wishes, present, free=0, allowance=10)
    assert {step.key: step.leaving for step in plan.loads} == {"a": ("x",)}
    assert plan.kept == frozenset()
    assert told(decide([wish("x", 0.2), wish("a", 0.3)], present, free=0, allowance=10))["a"] == SHARE_USED
    assert told(decide([wish("x", scheduled=True), wish("a", 0.9)], present, free=0, allowance=10))["a"] == SHARE_USED
