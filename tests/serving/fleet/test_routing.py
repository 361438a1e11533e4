"""Where a request goes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from octavo.serving.fleet.routing import choose, home


@dataclass(eq=False)
class Place:
    id: str
    keys: set[str] = field(default_factory=set)
    in_flight: int = 0


def places(count: int) -> list[Place]:
    return [Place(f"r{number}") for number in range(1, count + 1)]


def test_a_model_that_is_nowhere_goes_to_one_place_whoever_asks() -> None:
    three = places(3)
    assert {choose("m", "1", three, 8).id for _ in range(5)} == {choose("m", "1", three[::-1], 8).id}


def test_models_spread_evenly_and_only_a_lost_places_models_move() -> None:
    four = places(4)
    before = {f"m{n}": home(f"m{n}", four).id for n in range(400)}
    assert min(Counter(before.values()).values()) > 60
    left = [place for place in four if place.id != "r2"]
    for name, was in before.items():
        assert was == "r2" or home(name, left).id == was


def test_a_request_goes_where_the_model_is() -> None:
    three = places(3)
    for place in three:
        place.keys = {"m/1"}
        assert choose("m", "1", three, 8) is place
        place.keys = set()


def test_of_two_copies_the_one_with_less_to_do() -> None:
    three = places(3)
    three[0].keys = three[2].keys = {"m/1"}
    three[0].in_flight = 3
    assert choose("m", "1", three, 8) is three[2]


def test_a_new_version_goes_where_the_old_one_answers_meanwhile() -> None:
    three = places(3)
    for place in three:
        place.keys = {"m/1", "mm/2"}
        assert choose("m", "2", three, 8) is place
        place.keys = set()


def test_a_busy_places_model_gets_a_copy_where_there_is_time() -> None:
    three = places(3)
    three[0].keys, three[0].in_flight = {"m/1"}, 8
    three[1].in_flight = three[2].in_flight = 5
    assert choose("m", "1", three, 8) is three[0], "no other has much less to do"
    three[2].in_flight = 4
    assert choose("m", "1", three, 8) is three[2]
    three[0].in_flight = 7
    assert choose("m", "1", three, 8) is three[0], "it is not busy"


def test_a_busy_home_is_passed_by() -> None:
    three = places(3)
    first = home("m", three)
    first.in_flight = 8
    second = choose("m", "1", three, 8)
    assert second is home("m", [place for place in three if place is not first])


def test_one_place_takes_everything() -> None:
    (one,) = places(1)
    one.in_flight = 1000
    assert choose("m", "1", [one], 8) is one
