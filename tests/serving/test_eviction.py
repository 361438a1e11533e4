"""The eviction policy: who leaves first."""

import csv

from hypothesis import given
from hypothesis import strategies as st

from octavo.serving import eviction
from octavo.serving.eviction import REMEMBERED, Candidate, EvictionPolicy, LeavingLine


def first_out(policy, *candidates):
    return policy.order(candidates)[0].key


def test_the_seldom_used_leaves_before_the_often_used():
    policy = EvictionPolicy()
    for key in ["often", "seldom", "often", "often"]:
        policy.touch(key)
    assert first_out(policy, Candidate("often", 10, 1), Candidate("seldom", 10, 1)) == "seldom"


def test_the_large_and_the_cheap_to_load_leave_first():
    policy = EvictionPolicy()
    for key in ["small", "large", "dear", "cheap"]:
        policy.touch(key)
    assert first_out(policy, Candidate("small", 10, 1), Candidate("large", 1000, 1)) == "large"
    assert first_out(policy, Candidate("dear", 10, 5), Candidate("cheap", 10, 1)) == "cheap"


def test_what_was_hot_long_ago_makes_place_for_what_is_warm_now():
    policy = EvictionPolicy(half_life_per_resident=1)
    for _ in range(50):
        policy.touch("was hot")
    for i in range(5000):
        policy.touch(f"passer-by {i}")
        if i % 500 == 0:
            policy.touch("warm")
    assert first_out(policy, Candidate("was hot", 10, 1), Candidate("warm", 10, 1)) == "was hot"


def test_a_model_that_comes_back_is_not_a_stranger():
    policy = EvictionPolicy()
    for _ in range(10):
        policy.touch("regular")
    policy.touch("stranger")
    policy.touch("regular")  # evicted in between; the policy does not know nor care
    assert policy.frequency("regular") > 5 > policy.frequency("stranger")


def test_memory_of_models_is_bounded():
    policy = EvictionPolicy()
    for _ in range(3):
        policy.touch("kept")
    for i in range(REMEMBERED + 10):
        policy.touch(str(i))
    assert policy.frequency("kept") > 0 or len(policy._uses) <= REMEMBERED
    assert len(policy._uses) <= REMEMBERED


@given(st.lists(st.tuples(st.text(min_size=1), st.integers(0, 2**40), st.floats(0, 1e3)), max_size=30))
def test_order_keeps_every_candidate(rows):
    policy = EvictionPolicy()
    candidates = [Candidate(key, size, cost) for key, size, cost in rows]
    assert sorted(policy.order(candidates), key=repr) == sorted(candidates, key=repr)


def test_the_tenant_trace_is_served_better_than_by_recency(shared_data):
    with (shared_data / "serve" / "tenant_trace.csv").open() as file:
        keys = [f"{row['tenant']}-{row['model_kind']}" for row in csv.DictReader(file)]
    capacity = len(set(keys)) // 4
    policy, resident, hits = EvictionPolicy(), set(), 0
    recent, recent_hits = {}, 0
    for key in keys:
        policy.touch(key)
        hits += key in resident
        if key not in resident:
            if len(resident) == capacity:
                resident.remove(policy.order(Candidate(k, 1, 1) for k in resident)[0].key)
            resident.add(key)
        recent_hits += key in recent
        if key not in recent and len(recent) == capacity:
            del recent[next(iter(recent))]
        recent.pop(key, None)
        recent[key] = True
    assert hits > recent_hits


class Crowd:
    """Models of which `used` were asked again since any order of them was made."""

    def __init__(self, count):
        self.policy = EvictionPolicy()
        self.keys = [f"m{number:03d}" for number in range(count)]
        for key in self.keys:
            self.policy.touch(key)
        self.used = set()
        self.orders = 0

    def order(self):
        self.orders += 1
        return self.policy.order(Candidate(key, 1, 1.0) for key in self.keys)

    def unused(self, key, moment):
        return key in self.keys and key not in self.used

    def leave(self, line):
        key = line.first(self.order, self.unused)
        if key:
            self.keys.remove(key)
        return key


def test_one_order_of_many_serves_several_evictions_and_spares_those_used_since(monkeypatch):
    monkeypatch.setattr(eviction, "ORDER_SECONDS", 1e9)
    crowd, line = Crowd(160), LeavingLine()
    assert [crowd.leave(line) for _ in range(3)] == ["m000", "m001", "m002"]
    crowd.used.add("m003")
    assert [crowd.leave(line) for _ in range(7)] == [f"m{number:03d}" for number in range(4, 11)]
    assert crowd.orders == 1
    crowd.used.clear()
    assert crowd.leave(line) == "m003"  # by a new order
    assert crowd.orders == 2


def test_an_order_does_not_hold_for_long_and_of_a_few_each_is_chosen_anew(monkeypatch):
    crowd, line = Crowd(3), LeavingLine()
    assert [crowd.leave(line) for _ in range(4)] == ["m000", "m001", "m002", ""]
    assert crowd.orders == 4
    monkeypatch.setattr(eviction, "ORDER_SECONDS", -1.0)
    crowd, line = Crowd(160), LeavingLine()
    crowd.leave(line)
    crowd.leave(line)
    assert crowd.orders == 2
