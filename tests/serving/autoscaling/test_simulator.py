"""The dry run: routing, memory, start-up, money, its reader of traces and its command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import Invalid, TooLarge
from octavo.serving.autoscaling import trace as traces
from octavo.serving.autoscaling.fleet import MIB, Fleet, InstanceType
from octavo.serving.autoscaling.policy import ScalingPolicy
from octavo.serving.autoscaling.simulator import Replay, replay, simulate
from octavo.serving.autoscaling.trace import Call, read_trace

from ..live import octavo

HEAD = "t_s,tenant,model_kind,n_tokens\n"


def steady(per_minute: int, minutes: int, models: int = 1, start: float = 0.0) -> list[Call]:
    count = per_minute * minutes
    return [Call(start + at * 60 / per_minute, f"t{at % models}", "encoder", 8) for at in range(count)]


def rules(**fields: Any) -> ScalingPolicy:
    return ScalingPolicy(**({"memory_utilisation": None} | fields))


def test_an_instance_keeps_what_was_used_last() -> None:
    fleet = Fleet(InstanceType(memory=2 * MIB, other_size=MIB))
    fleet.resize(1, 0.0, 0.0)
    for name in "abacb":
        fleet.answer((name, "k"), fleet.running(0.0), 0.0)
    assert (fleet.cold_starts, fleet.evictions) == (4, 2)  # a, b, c for b, b for a
    assert [name for name, _ in fleet.all[0].resident] == ["c", "b"]


def test_a_request_goes_where_its_model_is() -> None:
    fleet = Fleet(InstanceType(memory=4 * MIB, other_size=MIB, per_minute=3))
    fleet.resize(2, 0.0, 0.0)
    running = fleet.running(0.0)
    for name in ("a", "b", "a", "a", "b"):
        fleet.answer((name, "k"), running, 0.0)
    assert [one.invocations for one in running] == [3, 2]
    assert fleet.cold_starts == 2
    fleet.answer(("a", "k"), running, 0.0)  # the first has had its 3: a copy on the second
    assert [one.invocations for one in running] == [3, 3]
    assert (fleet.cold_starts, fleet.over_capacity) == (3, 0)
    fleet.answer(("a", "k"), running, 0.0)
    assert (fleet.cold_starts, fleet.over_capacity) == (3, 1)


def test_what_starts_leaves_first_and_idle_models_leave() -> None:
    fleet = Fleet(InstanceType(other_size=MIB, unload_idle_s=100))
    fleet.resize(1, 0.0, 0.0)
    fleet.answer(("a", "k"), fleet.running(0.0), 0.0)
    fleet.resize(3, 60.0, 120.0)
    assert [one.number for one in fleet.running(100.0)] == [0]
    fleet.resize(2, 120.0, 120.0)
    assert [one.number for one in fleet.alive] == [0, 1]
    assert fleet.running(180.0) == fleet.alive
    fleet.unload_idle(99.0)
    assert fleet.all[0].used == MIB
    fleet.unload_idle(100.0)
    assert fleet.all[0].used == 0


def test_load_grows_and_shrinks_the_fleet() -> None:
    calls = [*steady(900, 20), *steady(60, 40, start=1200)]
    found = replay(calls, rules(), InstanceType(price=2.0, start_s=120))
    wanted = [period.wanted for period in found.periods]
    assert wanted[:3] == [1, 1, 4]  # 3 minutes over 225, then 900 / 225
    assert max(wanted) == 4
    assert wanted[-1] == 1
    assert found.periods[3].running == 1
    assert found.periods[5].running == 4
    assert found.cost == pytest.approx(2.0 * found.instance_hours)


def test_totals_by_hand() -> None:
    found = simulate([Call(0, "a", "x", 1), Call(61, "b", "x", 1)], rules(), InstanceType(price=3.0), fixed_instances=2)
    assert found.tracked.seconds == 120
    assert found.tracked.cost == pytest.approx(3.0 * 120 / 3600)
    assert found.fixed.cost == pytest.approx(2 * found.tracked.cost)
    assert found.per_model_cost == pytest.approx(2 * found.tracked.cost)
    told = found.to_json()
    assert told["one_instance_per_model"]["saving"] == pytest.approx(0.5)
    assert [row["cold_starts"] for row in told["periods"]] == [1, 1]


CALLS = st.lists(
    st.tuples(st.floats(0, 2400), st.sampled_from("abcdef"), st.sampled_from(["small", "large"])),
    min_size=1,
    max_size=80,
).map(lambda rows: [Call(at, tenant, kind, 1) for at, tenant, kind in sorted(rows)])


@settings(deadline=None)
@given(
    calls=CALLS, least=st.integers(1, 3), more=st.integers(0, 5), target=st.floats(0.2, 5),
    wait=st.sampled_from([0.0, 60.0, 300.0]), start=st.sampled_from([0.0, 30.0, 200.0]),
)  # fmt: skip
def test_bounds_cooldowns_and_money(
    calls: list[Call], least: int, more: int, target: float, wait: float, start: float
) -> None:
    policy = ScalingPolicy(
        min_capacity=least, max_capacity=least + more, invocations_per_instance=target,
        scale_in_cooldown=wait, scale_out_cooldown=wait, scale_out_periods=1, scale_in_periods=2,
    )  # fmt: skip
    kind = InstanceType(
        memory=5 * MIB, price=1.5, start_s=start, per_minute=4, sizes={"large": 3 * MIB}, other_size=MIB
    )
    found = replay(calls, policy, kind)
    assert found == replay(calls, policy, kind)
    assert all(least <= period.instances <= least + more for period in found.periods)
    assert all(0 <= period.memory_utilisation <= 100 for period in found.periods)
    assert sum(period.cold_starts for period in found.periods) == found.cold_starts
    _money(found, 1.5)
    cut, grew = -math.inf, -math.inf
    for period in found.periods:
        if period.wanted < period.instances:
            assert period.t_s - cut >= wait or cut < grew
            cut = period.t_s
        elif period.wanted > period.instances:
            grew = period.t_s


def _money(found: Replay, price: float) -> None:
    """The cost is the integral of the instances paid for, added up by minute and by instance."""
    assert found.cost == pytest.approx(sum(period.cost for period in found.periods))
    assert found.cost == pytest.approx(sum(period.instances for period in found.periods) / 60 * price)
    assert found.cost == pytest.approx(sum(stop - start for start, stop in found.lives) / 3600 * price)


def test_a_model_larger_than_an_instance() -> None:
    with pytest.raises(Invalid, match="does not fit"):
        replay([Call(0, "a", "x", 1)], rules(), InstanceType(memory=MIB, other_size=2 * MIB))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column t_s"),
        ("t_s,tenant\n1,a\n", "no column model_kind, n_tokens .*line 1"),
        (HEAD, "without a request"),
        (HEAD + "0,a,x,1\nsoon,a,x,1\n", "t_s is not a number: 'soon' .*line 3"),
        (HEAD + "0,a,x,1\nnan,a,x,1\n", "t_s is not 0 or more: 'nan' .*line 3"),
        (HEAD + "-1,a,x,1\n", "t_s is not 0 or more.*line 2"),
        (HEAD + "5,a,x,1\n4,a,x,1\n", "t_s 4 is before 5.*line 3"),
        (HEAD + "1e12,a,x,1\n", "t_s 1e\\+12 is over"),
        (HEAD + "1,a,x\n", "too few or too many cells.*line 2"),
        (HEAD + "1,a,x,1,2\n", "too few or too many cells.*line 2"),
        (HEAD + "1,,x,1\n", "no tenant or model_kind.*line 2"),
        (HEAD + "1,a,x,1.5\n", "n_tokens is not a whole number"),
        (HEAD + "1,a," + "x" * 200_000 + ",1\n", "not CSV"),
    ],
)
def test_wrong_traces(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(Invalid, match=said):
        read_trace(file)


def test_unreadable_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        read_trace(tmp_path)
    file = tmp_path / "trace.csv"
    file.write_bytes(HEAD.encode() + b"1,\xff,x,1\n")
    with pytest.raises(Invalid, match="not UTF-8"):
        read_trace(file)
    file.write_text(HEAD + "1,a,x,1\n" * 3)
    monkeypatch.setattr(traces, "MAX_REQUESTS", 2)
    with pytest.raises(TooLarge, match="line 4"):
        read_trace(file)
    monkeypatch.setattr(traces, "MAX_BYTES", 20)
    with pytest.raises(TooLarge, match="more than 20 bytes"):
        read_trace(file)
    with pytest.raises(Invalid, match="cannot be read"):
        read_trace(Path("/dev/zero"))


def test_the_command(tmp_path: Path) -> None:
    file, policy = tmp_path / "trace.csv", tmp_path / "policy.yaml"
    file.write_text(HEAD + "".join(f"{call.at},{call.tenant},{call.kind},8\n" for call in steady(600, 12, models=5)))
    policy.write_text("max_capacity: 6\nmemory_utilisation: null\n")
    words = ("autoscaling", "simulate", str(file), "--policy", str(policy), "--price", "2", "--model", "encoder=64")
    done = octavo(*words, "--max-capacity", "2", "--json", "--plot", str(tmp_path / "out.png"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["policy"]["max_capacity"] == 2  # an option counts before the file
    assert told["policy"]["memory_utilisation"] is None
    assert told["totals"]["peak_instances"] == 2
    assert told["one_instance_per_model"] == {"instances": 5, "cost": 2.0, "saving": 1 - told["totals"]["cost"] / 2}
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    table = octavo(*words).stdout
    assert "invocations_per_instance" in table
    assert "one instance per model" in table


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none.csv",), "cannot be read"),
        (("none.csv", "--plot", "out.gif"), "not a kind of picture"),
        (("none.csv", "--model", "encoder"), "not a size: 'encoder'"),
        (("none.csv", "--memory-gib", "nan"), "'--memory-gib'"),
        (("none.csv", "--unload-idle", "nan"), "'--unload-idle'"),
        (("none.csv", "--min-capacity", "11"), "the least capacity is over the most"),
    ],
)
def test_refused(words: tuple[str, ...], said: str) -> None:
    done = octavo("autoscaling", "simulate", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
