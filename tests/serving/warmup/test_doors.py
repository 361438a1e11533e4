"""Command line, HTTP API and who may do what, against a running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.errors import Forbidden, Invalid, NotFound, Unauthenticated
from octavo.serving.client import Client
from octavo.serving.inference import InferRequest
from octavo.settings import load_settings

from ..conftest import Open
from ..live import octavo, octavo_up
from ..served_models import BATCHED, publish_tiny_models, put, times
from ..test_tensor_task import rows


def test_the_commands(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    publish_tiny_models(workspace / "models")

    def run(*words: str) -> Any:
        done = octavo("warmup", *words, "--workspace", str(workspace))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "--json" in words else done.stdout

    with octavo_up(workspace) as server, Client(server.url, token=server.token) as client:
        assert "no rules" in run("ls")
        made = run("add", "mornings", "--model", "double", "--model", "t*", "--cron", "* * * * *", "--json")
        assert (made["models"], made["revision"]) == (["double", "t*"], 1)
        while not {"double", "triple"} <= {model["name"] for model in client.residency()["models"]}:
            pass
        client.infer("double", {"x": rows(1)})
        assert "mornings" in run("ls")
        run("add", "likely", "--predict", "--probability", "0.4")
        assert [rule["name"] for rule in run("ls", "--json")] == ["likely", "mornings"]
        steps = {step["key"]: step for step in run("plan", "--json")["steps"]}
        assert steps["double/1"]["reason"] == "in memory"
        assert "scheduled" in run("plan")
        told = run("report", "--json")
        assert {line["model"]: line["avoided"] for line in told["lines"]} == {"double": 1, "triple": 0}
        assert told["seconds_saved"] > 0
        run("rm", "mornings")
        headers = {"authorization": f"Bearer {server.token}"}
        with httpx.Client(base_url=f"{server.url}/api/serving/warmup", headers=headers, timeout=30) as http:
            assert http.get("/rules/likely").json()["revision"] == 1
            assert http.put("/rules/likely", json={"predict": True, "revision": 7}).status_code == 409
            assert http.put("/rules/likely", json={"name": "other"}).status_code == 400
            assert http.put("/rules/likely", json={"revision": "1"}).status_code == 400
            assert http.put("/rules/odd", json={"cron": "never"}).status_code == 400
            assert http.delete("/rules/mornings").status_code == 404
            assert http.get("/report?since=never").status_code == 400
            assert http.get("/report?colour=red").status_code == 400
        for path in ("rules", "plan", "report"):
            assert httpx.get(f"{server.url}/api/serving/warmup/{path}").status_code == 401
        for wrong, says in (
            (["rm", "mornings"], "no warm-up rule 'mornings'"),
            (["add", "x"], "needs --model"),
            (["add", "x", "--cron", "99 8 * * *"], "cron"),
            (["add", "x", "--model", "m", "--probability", "0.5"], "has no --probability"),
        ):
            slip = octavo("warmup", *wrong, "--workspace", str(workspace))
            assert (slip.returncode, "Traceback" in slip.stderr) == (2, False), slip.stderr
            assert says in slip.stderr
            assert "needs --model and" not in slip.stderr
        words = ["add", "later", "--model", "nosuch", "--model", "dou*", "--workspace", str(workspace)]
        noted = octavo("warmup", *words)
        assert noted.returncode == 0
        assert "no model or endpoint is called nosuch now" in noted.stderr
        missing = octavo("endpoints", "show", "nosuch", "--workspace", str(workspace))
        assert "there is no endpoint 'nosuch'. See" in missing.stderr
    assert run("report", "--by", "model", "--json")["avoided"] == 1, "without a server too"
    assert "1 cold starts avoided" in run("report")


def test_simulate(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    lines = [f"{minute * 60 + 1},t{minute % 3},encoder,12" for minute in range(120)]
    trace.write_text("\n".join(["t_s,tenant,model_kind,n_tokens", *lines]))
    words = ("warmup", "simulate", str(trace), "--period", "60", "--memory-gib", "0.25", "--model", "encoder=100")
    told = json.loads(octavo(*words, "--json").stdout)
    assert [one["guess"] for one in told["outcomes"]] == ["none", "most asked", "forecast"]
    assert told["outcomes"][0]["requests"] == 60
    assert "Cold starts" in octavo(*words).stdout
    for wrong in (["--model", "encoder"], ["--period", "86400"], ["--memory-gib", "0.01"]):
        slip = octavo(*words, *wrong)
        assert (slip.returncode, "Traceback" in slip.stderr) == (2, False), slip.stderr


async def test_a_rule_needs_the_right_on_all_it_names(open_serving: Open, tmp_path: Path) -> None:
    from octavo.access import ANONYMOUS, Grant, Principal
    from octavo.serving.protocols import warmup_api
    from octavo.serving.protocols.exchange import Call, Door, Handler

    put(tmp_path / "models", "acme-a", times(1), BATCHED)
    put(tmp_path / "models", "other", times(1), BATCHED)
    serving = await open_serving(tmp_path, warmup_seconds=10_000)
    door = Door(serving, load_settings(tmp_path))

    async def do(handle: Handler, who: Principal, name: str = "", body: object = None) -> Any:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": json.dumps(body or {}).encode(), "more_body": False}

        scope = {"type": "http", "headers": [], "query_string": b"", "state": {"principal": who}}
        call = Call(scope | {"path_params": {"model": name}}, receive)  # type: ignore[arg-type]
        return json.loads((await handle(door, call)).body)

    acme = Principal("ada", "user", (Grant("editor", "models/acme-*"),))
    viewer = Principal("vic", "user", (Grant("viewer", "models/acme-*"),))
    root = Principal("root", "user", (Grant("admin", "*"),))
    await do(warmup_api.declare, acme, "mine", {"models": ["acme-*"]})
    await do(warmup_api.declare, root, "all", {"models": ["other", "acme-a"]})
    for models in (["*"], ["other"], ["acme-a", "other"], ["a*"]):
        with pytest.raises(Forbidden):
            await do(warmup_api.declare, acme, "theirs", {"models": models})
    for handle in (warmup_api.declare, warmup_api.remove):
        with pytest.raises(Forbidden):
            await do(handle, acme, "all", {"models": ["acme-a"]})
        with pytest.raises(Forbidden):
            await do(handle, viewer, "mine", {"models": ["acme-a"]})
    with pytest.raises(Forbidden):
        await do(warmup_api.rule, acme, "all")
    with pytest.raises(NotFound):
        await do(warmup_api.rule, root, "none")
    with pytest.raises(Invalid):
        await do(warmup_api.rule, root, "../x")
    assert [one["name"] for one in await do(warmup_api.rules, viewer)] == ["mine"]
    assert [one["name"] for one in await do(warmup_api.rules, root)] == ["all", "mine"]
    for handle in (warmup_api.rules, warmup_api.plan, warmup_api.report):
        with pytest.raises(Unauthenticated):
            await do(handle, ANONYMOUS)
    await serving.warmup.turn()
    assert {step["key"] for step in (await do(warmup_api.plan, viewer))["steps"]} == {"acme-a/1"}
    await serving.infer(InferRequest("other", {"x": rows(1)}))
    assert {line["model"] for line in (await do(warmup_api.report, viewer))["lines"]} == {"acme-a"}
    assert {line["model"] for line in (await do(warmup_api.report, root))["lines"]} == {"acme-a", "other"}
