"""Deployments: a share, copies, all of it, and back; whatever stops them half-way, the next one ends them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import Conflict, Invalid, ModelFailed, NotFound, OctavoError
from octavo.serving.inference import InferRequest
from octavo.serving.packaging.artifact import stage
from octavo.serving.packaging.deploy import Deployer
from octavo.serving.packaging.deployment import MAX_HISTORY, Deployment
from octavo.serving.packaging.spec import Rollout
from octavo.serving.service import Serving
from octavo.settings import Settings, load_settings

from ..conftest import Open
from ..served_models import BATCHED, CHAIN, put, times

ALL = Rollout()
TENTH = Rollout(share=0.1)


ABSENT = BATCHED + 'input { name: "q" data_type: TYPE_FP32 dims: [ 4 ] }\n'


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(tmp_path / "workspace")


@pytest.fixture
async def deployer(open_serving: Open, settings: Settings) -> Deployer:
    return Deployer(await open_serving(settings.workspace), settings)


@pytest.fixture
def staged(tmp_path: Path, settings: Settings) -> Callable[..., str]:
    """The digest of a staged model that multiplies by a factor."""

    def make(factor: float, config: str = BATCHED) -> str:
        folder = tmp_path / f"times-{factor}"
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_bytes(times(factor))
        (folder / "config.pbtxt").write_text(config)
        return stage(folder, settings)

    return make


async def factor(service: Serving, name: str = "acme", **more: str) -> float:
    answer = await service.infer(InferRequest(name, {"x": np.ones((1, 4), np.float32)}, **more))
    return float(answer.outputs["y"][0, 0])


async def factors(service: Serving, sessions: int = 200) -> set[float]:
    return {await factor(service, session=str(at)) for at in range(sessions)}


def versions(deployment: Deployment) -> tuple[str, str, str]:
    parts = (deployment.stable, deployment.candidate, deployment.previous)
    stable, candidate, previous = (part.version if part else "" for part in parts)
    return stable, candidate, previous


async def test_the_life_of_two_versions(deployer: Deployer, staged: Callable[..., str]) -> None:
    service = deployer._service
    first = await deployer.deploy("acme", staged(2), TENTH)  # the first one has nobody to share with
    assert (versions(first), first.step) == (("1", "", ""), "done")
    assert await factors(service) == {2}
    second = await deployer.deploy("acme", staged(3), TENTH)
    assert (versions(second), second.share) == (("1", "2", ""), 0.1)
    assert await factors(service) == {2, 3}
    assert service.endpoints.find("acme").variants[1].weight == 0.1  # type: ignore[union-attr]
    assert await factor(service, version="1") == 2  # both versions are served side by side
    assert await factor(service, version="2") == 3
    assert (await deployer.roll_out("acme", 0.5)).share == 0.5
    assert versions(await deployer.promote("acme")) == ("2", "", "1")
    assert await factors(service) == {3}
    assert versions(await deployer.roll_back("acme")) == ("1", "", "")
    assert await factors(service) == {2}
    with pytest.raises(Conflict, match="no version to roll back to"):
        await deployer.roll_back("acme")
    with pytest.raises(Conflict, match="no version to promote"):
        await deployer.promote("acme")


async def test_a_candidate_is_taken_back(deployer: Deployer, staged: Callable[..., str]) -> None:
    await deployer.deploy("acme", staged(2), ALL)
    await deployer.deploy("acme", staged(3), TENTH)
    assert versions(await deployer.roll_back("acme")) == ("1", "", "")
    assert await factors(deployer._service) == {2}
    labels = deployer._service.repository.labels("acme")
    assert labels == {"default": "1", "stable.acme": "1"}


async def test_again_is_the_same(deployer: Deployer, staged: Callable[..., str]) -> None:
    for _ in range(2):
        await deployer.deploy("acme", staged(2), ALL)
    for _ in range(2):
        found = await deployer.deploy("acme", staged(3), TENTH)
    assert versions(found) == ("1", "2", "")
    assert deployer._service.repository.versions("acme") == ["1", "2"]


async def test_shadow_traffic(deployer: Deployer, staged: Callable[..., str]) -> None:
    service = deployer._service
    await deployer.deploy("acme", staged(2), ALL)
    await deployer.deploy("acme", staged(3), Rollout(shadow=1.0))
    assert await factors(service, 5) == {2}
    while not any(one.compared for one in service.traffic.statistics("acme")):
        await asyncio.sleep(0.01)
    assert versions(await deployer.promote("acme")) == ("2", "", "1")


async def test_what_was_done_is_remembered_and_by_whom(
    deployer: Deployer, staged: Callable[..., str], settings: Settings
) -> None:
    ann = Deployer(deployer._service, settings, "ann")
    await deployer.deploy("acme", staged(2), ALL)
    await ann.deploy("acme", staged(3), TENTH)
    await ann.roll_out("acme", 0.5)
    await deployer.roll_back("acme")
    assert [(one.action, one.by, one.stable, one.candidate, one.share) for one in (await ann.get("acme")).history] == [
        ("deploy", "", "acme@1", "", 0.0),
        ("deploy", "ann", "acme@1", "acme@2", 0.1),
        ("roll-out", "ann", "acme@1", "acme@2", 0.5),
        ("roll-back", "", "acme@1", "", 0.0),
    ]
    for share in (0.1, 0.2):
        for _ in range(MAX_HISTORY // 2):
            await ann.deploy("acme", staged(3), Rollout(share=share))
    history = (await ann.get("acme")).history
    assert len(history) == MAX_HISTORY
    assert {one.action for one in history} == {"deploy"}


async def test_a_version_that_does_not_load_gets_no_traffic(
    deployer: Deployer, staged: Callable[..., str], settings: Settings, tmp_path: Path
) -> None:
    await deployer.deploy("acme", staged(2), ALL)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelFailed, match="version 2 does not answer"):
        await deployer.deploy("acme", stage(broken, settings), ALL)
    found = await deployer.get("acme")
    assert (found.step, versions(found), found.lease) == ("failed", ("1", "", ""), None)
    assert [bool(event.error) for event in found.history] == [False, True]
    assert await factors(deployer._service) == {2}
    assert deployer._service.repository.labels("acme") == {"default": "1", "stable.acme": "1"}
    assert versions(await deployer.deploy("acme", staged(4), ALL)) == ("3", "", "1")


async def test_a_refused_version_changes_nothing_of_one_without_a_configuration(
    deployer: Deployer, staged: Callable[..., str], tmp_path: Path
) -> None:
    service = deployer._service
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "model.onnx").write_bytes(times(5))
    service.repository.publish("acme", bare)
    assert await factor(service) == 5
    with pytest.raises(ModelFailed, match="version 2 does not answer, and gets no traffic"):
        await deployer.deploy("acme", staged(3, ABSENT), ALL)
    await service.unload("acme")
    assert await factor(service) == 5
    assert versions(await deployer.deploy("acme", staged(3), TENTH)) == ("1", "3", "")
    await service.unload("acme", "1")
    assert await factors(service) == {5, 3}


async def test_a_first_version_that_does_not_answer_is_no_version_to_return_to(
    deployer: Deployer, staged: Callable[..., str]
) -> None:
    service = deployer._service
    with pytest.raises(ModelFailed, match="version 1 does not answer, and was taken away again"):
        await deployer.deploy("acme", staged(2, ABSENT), ALL)
    with pytest.raises(NotFound):
        await factor(service)
    assert service.repository.names() == []
    assert versions(await deployer.get("acme")) == ("", "", "")
    with pytest.raises(Conflict, match="no version to roll back to"):
        await deployer.roll_back("acme")
    assert versions(await deployer.deploy("acme", staged(3), ALL)) == ("1", "", "")
    assert await factors(service, 5) == {3}
    with pytest.raises(Conflict, match="no version to roll back to"):
        await deployer.roll_back("acme")


async def test_a_version_that_others_published_is_not_taken_away(
    open_serving: Open, settings: Settings, staged: Callable[..., str], tmp_path: Path
) -> None:
    deployer = Deployer(await open_serving(settings.workspace), settings)
    digest = staged(2, ABSENT)
    deployer._service.repository.publish("acme", tmp_path / "times-2")
    with pytest.raises(ModelFailed, match="version 1 does not answer, and gets no traffic"):
        await deployer.deploy("acme", digest, ALL)
    assert deployer._service.repository.versions("acme") == ["1"]
    assert versions(await deployer.deploy("acme", staged(3), ALL)) == ("2", "", "")


@pytest.mark.parametrize("point", ["label", "load", "write-2", "write-3"])
async def test_a_first_deployment_killed_before_its_check(
    deployer: Deployer, staged: Callable[..., str], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    first, second = staged(2), staged(3)
    _kill_at(deployer, monkeypatch, point)
    with pytest.raises(Killed):
        await deployer.deploy("acme", first, ALL)
    monkeypatch.undo()
    _forget_lease(deployer)
    found = await deployer.deploy("acme", second, ALL)
    assert (found.stable and found.stable.digest, found.previous) == (second, None)
    assert await factors(deployer._service, 5) == {3}


async def test_a_refused_change_stores_nothing(deployer: Deployer) -> None:
    for refused in (
        deployer.roll_out("nosuch", 0.5),
        deployer.promote("nosuch"),
        deployer.roll_back("nosuch"),
    ):
        with pytest.raises(NotFound, match="nothing was deployed under this name"):
            await refused
    with pytest.raises(OctavoError, match="no such object"):
        await deployer.deploy("nosuch", "0" * 64, ALL)
    assert await deployer.all() == []
    assert deployer._service.documents.list("deployment") == []
    with pytest.raises(NotFound, match="nothing was deployed"):
        await deployer.get("nosuch")


async def test_a_share_that_does_not_apply_is_said(deployer: Deployer, staged: Callable[..., str]) -> None:
    first = await deployer.deploy("acme", staged(2), TENTH)
    assert first.note == "the share of 10% does not apply: the first version of a name takes all of the traffic"
    again = await deployer.deploy("acme", staged(2), Rollout(shadow=0.5))
    assert again.note == "copies of 50% do not apply: version 1 has all of the traffic already"
    assert (await deployer.deploy("acme", staged(3), TENTH)).note == ""
    assert (await deployer.deploy("other", staged(3), ALL)).note == ""


async def test_what_was_served_before_is_the_stable_one(
    open_serving: Open, settings: Settings, staged: Callable[..., str]
) -> None:
    put(settings.workspace / "models", "acme", times(5), BATCHED)
    deployer = Deployer(await open_serving(settings.workspace), settings)
    assert versions(await deployer.deploy("acme", staged(3), TENTH)) == ("1", "2", "")
    assert await factors(deployer._service) == {5, 3}


async def test_an_ensemble_is_deployed_with_its_steps(deployer: Deployer, settings: Settings, tmp_path: Path) -> None:
    service = deployer._service

    def repository(double: float) -> str:
        folder = tmp_path / f"triton-{double}"
        put(folder, "double", times(double), BATCHED)
        put(folder, "triple", times(3), BATCHED)
        put(folder, "chain", None, CHAIN)
        return stage(folder, settings)

    async def answers() -> set[float]:
        found = set()
        for at in range(100):
            request = InferRequest("answers", {"a": np.ones((1, 4), np.float32)}, session=str(at))
            found.add(float((await service.infer(request)).outputs["z"][0, 0]))
        return found

    await deployer.deploy("answers", repository(2), ALL)
    assert await answers() == {6}
    found = await deployer.deploy("answers", repository(4), Rollout(share=0.5))
    assert found.candidate is not None
    assert found.candidate.versions == {"double": "2", "triple": "1", "chain": "2"}
    assert await answers() == {6, 12}
    await deployer.roll_back("answers")
    assert await answers() == {6}


async def test_two_at_once(deployer: Deployer, staged: Callable[..., str]) -> None:
    one, other = staged(2), staged(3)
    outcomes = await asyncio.gather(
        deployer.deploy("acme", one, ALL), deployer.deploy("acme", other, ALL), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(refused) == 1
    assert isinstance(refused[0], Conflict)
    found = await deployer.get("acme")
    assert (found.step, versions(found), found.lease) == ("done", ("1", "", ""), None)


async def test_a_turn_ends(deployer: Deployer, staged: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder on another machine that is never heard of again keeps others away for as long as its lease says."""
    digest = staged(2)
    record, revision = deployer._records.claim("acme", new=True)
    assert record.lease is not None
    away = record.model_copy(update={"lease": record.lease.model_copy(update={"host": "elsewhere"})})
    deployer._records._put(away, revision)
    with pytest.raises(Conflict, match="elsewhere"):
        await deployer.deploy("acme", digest, ALL)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 601)
    assert (await deployer.deploy("acme", digest, ALL)).step == "done"


class Killed(BaseException):
    """Stands for the process ending here."""


POINTS = ("publish", "write-2", "label", "load", "write-3", "write-4", "declare", "unlabel", "write-5")


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_any_step(
    deployer: Deployer, staged: Callable[..., str], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    await deployer.deploy("acme", staged(2), ALL)
    service, digest = deployer._service, staged(3)
    _kill_at(deployer, monkeypatch, point)
    with pytest.raises(Killed):
        await deployer.deploy("acme", digest, TENTH)
    monkeypatch.undo()
    _forget_lease(deployer)
    assert await factors(service) <= {2, 3}
    found = await deployer.deploy("acme", digest, TENTH)
    assert (found.step, versions(found), found.share) == ("done", ("1", "2", ""), 0.1)
    assert service.repository.versions("acme") == ["1", "2"]
    assert service.repository.labels("acme") == {"default": "1", "stable.acme": "1", "candidate.acme": "2"}
    assert await factors(service) == {2, 3}


@pytest.mark.parametrize("point", ["label", "declare", "unlabel", "write-2"])
async def test_a_promotion_killed_at_any_step(
    deployer: Deployer, staged: Callable[..., str], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    await deployer.deploy("acme", staged(2), ALL)
    await deployer.deploy("acme", staged(3), TENTH)
    _kill_at(deployer, monkeypatch, point)
    with pytest.raises(Killed):
        await deployer.promote("acme")
    monkeypatch.undo()
    _forget_lease(deployer)
    assert versions(await deployer.promote("acme")) == ("2", "", "1")
    assert await factors(deployer._service) == {3}
    assert deployer._service.repository.labels("acme") == {"default": "2", "stable.acme": "2", "previous.acme": "1"}


def _kill_at(deployer: Deployer, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """End the work at a point: before a step, or after the n-th record of it; what ends a turn does not run either."""
    kind, _, number = point.partition("-")
    targets = {
        "publish": (deployer._service.repository, "publish"),
        "label": (deployer, "_label"),
        "load": (deployer._service, "load"),
        "declare": (deployer._service, "declare_endpoint"),
        "unlabel": (deployer, "_unlabel"),
        "write": (deployer._records, "write"),
    }
    target, name = targets[kind]
    real = getattr(target, name)
    calls = 0

    def killed(*given: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if kind != "write":
            raise Killed
        outcome = real(*given, **more)
        if calls == int(number):
            raise Killed
        return outcome

    monkeypatch.setattr(target, name, killed)
    monkeypatch.setattr(deployer._records, "release", killed_release)


def killed_release(*given: object) -> None:
    raise OctavoError("the process is gone")


def _forget_lease(deployer: Deployer) -> None:
    """What the death of the holder's process does."""
    document = deployer._service.documents.get("deployment", "acme")
    deployer._service.documents.put("deployment", "acme", {**document.body, "lease": None})


async def test_an_unknown_package(deployer: Deployer) -> None:
    with pytest.raises(OctavoError, match="no such object"):
        await deployer.deploy("acme", "0" * 64, ALL)
    with pytest.raises(Invalid, match="100"):
        await deployer.deploy("a" * 120, "0" * 64, ALL)
