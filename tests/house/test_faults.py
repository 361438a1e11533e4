"""Broken models, misbehaving models and a repository that goes away: the server tells, and goes on."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from .live_server import BEARER, LiveServer, check_refused, publish, values, wait_for, x_of
from .small_models import adder, write_adder

BROKEN = {
    "cut_short": "onnxruntime cannot load it",
    "noise": "onnxruntime cannot load it",
    "empty_file": "model.onnx is empty",
    "no_tokenizer": "no tokenizer.json",
    "bad_tokenizer": "not a tokenizer",
    "broken_code": "no_such_module_anywhere",
    "bad_config": "config.pbtxt",
    "half_written": "half-written",
}


@pytest.mark.parametrize("model", BROKEN)
def test_a_broken_model_is_told_about_and_harms_nobody(server: LiveServer, model: str) -> None:
    answer = server.infer(model, [[1, 2, 3, 4]])
    sentence = check_refused(answer, 400, 500, 503)
    assert BROKEN[model] in sentence
    assert model in sentence
    again = check_refused(server.embed("hello", model), 400, 500, 503)
    assert BROKEN[model] in again
    rows = [row for (name, _), row in server.states().items() if name == model]
    assert [row["state"] for row in rows] == ["UNAVAILABLE"]
    assert BROKEN[model] in rows[0]["reason"]
    assert server.client.get(f"/v2/models/{model}/ready").status_code == 400
    assert server.client.get("/v1/models").status_code == 200
    assert model not in server.resident()


def test_a_model_that_is_mended_answers_again(server: LiveServer) -> None:
    folder = write_adder(server.models / "mended", 5)
    good = (folder / "1/model.onnx").read_bytes()
    (folder / "1/model.onnx").write_bytes(good[:40])
    wait_for("a refusal", lambda: server.infer("mended", [[0, 0, 0, 0]]).status_code in (400, 503))
    (folder / "1/model.onnx.new").write_bytes(good)
    (folder / "1/model.onnx.new").rename(folder / "1/model.onnx")
    answer = wait_for("an answer", lambda: _ok(server.infer("mended", [[0, 0, 0, 0]])))
    assert values(answer) == [5, 5, 5, 5]
    shutil.rmtree(folder)
    wait_for("its end", lambda: server.infer("mended", [[0, 0, 0, 0]]).status_code == 404)


def test_a_link_out_of_the_repository_is_not_followed(server: LiveServer, tmp_path: Path) -> None:
    outside = write_adder(tmp_path / "outside")
    (server.models / "linked").symlink_to(outside)
    shutil.copytree(outside, server.models / "linked_file")
    file = server.models / "linked_file/1/model.onnx"
    file.unlink()
    file.symlink_to(outside / "1/model.onnx")
    for model in ("linked", "linked_file"):
        sentence = check_refused(server.infer(model, [[1, 2, 3, 4]]), 400, 403, 404, 503)
        assert str(tmp_path) not in sentence
        check_refused(server.client.get(f"/v2/models/{model}/config"), 400, 403, 404, 503)
    (server.models / "linked").unlink()
    shutil.rmtree(server.models / "linked_file")


def test_a_deadline_ends_the_wait_alone(server: LiveServer) -> None:
    assert server.infer("sleeper", [[200]]).status_code == 200
    body = x_of([[1.0]]) | {"parameters": {"timeout": 200_000}}
    sentence = check_refused(server.client.post("/v2/models/sleeper/infer", json=body), 504)
    assert "deadline" in sentence
    assert server.infer("sleeper", [[200]]).status_code == 200


def test_a_failed_load_is_not_tried_at_every_request(server: LiveServer) -> None:
    """After the first failure the name is left alone for a while: 503 with the time to wait, without a load."""
    before = server.get("/api/serving/residency")["counters"]["failed_loads"]
    answers = [server.infer("noise", [[1, 2, 3, 4]]) for _ in range(20)]
    assert {answer.status_code for answer in answers} <= {400, 503}
    assert any(answer.status_code == 503 and "retry-after" in answer.headers for answer in answers)
    assert server.get("/api/serving/residency")["counters"]["failed_loads"] - before <= 3


def test_an_upload_by_hand_is_not_served_before_it_is_whole(server: LiveServer) -> None:
    folder = server.models / "by_hand"
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(server.models / "adder/config.pbtxt", folder / "config.pbtxt")
    answer = wait_for("its sight", lambda: _not(server.infer("by_hand", [[1, 1, 1, 1]]), 404))
    assert "half-written" in check_refused(answer, 503)
    (folder / "1/model.onnx.part").write_bytes(adder(1.0).SerializeToString())
    check_refused(server.infer("by_hand", [[1, 1, 1, 1]]), 503)
    (folder / "1/model.onnx.part").rename(folder / "1/model.onnx")
    wait_for("an answer", lambda: _ok(server.infer("by_hand", [[1, 1, 1, 1]])))


def test_a_damaged_published_version_is_refused_by_its_hash(server: LiveServer, tmp_path: Path) -> None:
    publish(server, "hashed", 7, tmp_path)
    wait_for("an answer", lambda: _ok(server.infer("hashed", [[1, 1, 1, 1]])))
    server.client.post("/v2/repository/models/hashed/unload").raise_for_status()
    file = server.models / "hashed/1/model.onnx"
    file.write_bytes(file.read_bytes() + b"\x00")
    ask = partial(server.infer, "hashed", [[1, 1, 1, 1]])
    wait_for("the watcher's look", lambda: "tampered or damaged" in check_refused(ask(), 400, 503))
    assert "model.onnx" in check_refused(ask(), 503)


def test_code_of_the_repository_is_off_by_default(plain_server: LiveServer) -> None:
    assert "allow_code" in check_refused(plain_server.infer("sleeper", [[200]]), 403)
    plain_server.check_alive()


def test_a_request_whose_worker_is_killed_with_9_is_answered_by_the_next(server: LiveServer) -> None:
    first = server.infer("mortal", [[200]])
    assert first.status_code == 200, first.text
    pid = int(values(first)[0])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.infer, "mortal", [[50]])
        wait_for("the request in flight", lambda: server.resident()["mortal"]["in_flight"])
        os.kill(pid, signal.SIGKILL)
        answer = waiting.result()
    assert answer.status_code == 200, answer.text
    assert int(values(answer)[0]) != pid


def test_a_worker_that_kills_itself_or_raises_gets_a_clear_500(server: LiveServer) -> None:
    check_refused(server.infer("mortal", [[-1]]), 500)
    sentence = check_refused(wait_for("a try", lambda: _not(server.infer("mortal", [[0]]), 503)), 500)
    assert "zero is no answer" in sentence
    wait_for("an answer", lambda: _ok(server.infer("mortal", [[200]])))


def test_a_repository_removed_while_serving(server: LiveServer) -> None:
    """Loaded models go on answering, others get 503, and it comes back by itself."""
    assert server.infer("adder", [[1, 2, 3, 4]]).status_code == 200
    server.client.post("/v2/repository/models/herd/unload")
    away = server.models.with_name("models-away")
    server.models.rename(away)
    try:
        wait_for("the warning", lambda: "the repository cannot be read" in server.log())
        assert values(server.infer("adder", [[1, 2, 3, 4]])) == [2, 3, 4, 5]
        assert server.client.get("/v2/health/ready").status_code == 200
        assert "cannot be read" in check_refused(server.infer("never_seen", [[1, 2, 3, 4]]), 503)
        check_refused(server.client.post("/v2/repository/index"), 503)
        check_refused(server.client.get("/v1/models"), 503)
        check_refused(server.client.post("/v2/repository/models/bad_config/load"), 503)
        assert server.client.get("/api/serving/residency").status_code == 200
    finally:
        away.rename(server.models)
    wait_for("its return", lambda: server.client.post("/v2/repository/index").status_code == 200)
    wait_for("an answer", lambda: _ok(server.infer("herd", [[1, 2, 3, 4]])))


def test_a_client_that_leaves_mid_batch_is_forgotten(server: LiveServer) -> None:
    """What it asked is not computed once it left, and those beside it get their answers."""
    assert server.infer("sleeper", [[200]]).status_code == 200
    before = server.statistics("sleeper")["inference_count"]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.infer, "sleeper", [[1.5]])
        wait_for("the first in flight", lambda: server.resident()["sleeper"]["in_flight"] == 1)
        leaver = httpx.Client(base_url=server.url, headers=dict(BEARER), timeout=0.5, trust_env=False)
        with pytest.raises(httpx.ReadTimeout):
            leaver.post("/v2/models/sleeper/infer", json=x_of([[3.0]]))
        leaver.close()
        last = pool.submit(server.infer, "sleeper", [[200]])
        assert first.result().status_code == 200
        assert last.result().status_code == 200
    wait_for("an empty queue", lambda: server.get("/api/serving/residency")["pending"] == 0)
    assert server.resident()["sleeper"]["in_flight"] == 0
    assert server.statistics("sleeper")["inference_count"] - before == 2


def test_a_full_queue_refuses_with_the_time_to_wait(server: LiveServer) -> None:
    assert server.infer("narrow", [[200]]).status_code == 200
    start = threading.Barrier(12)

    def ask() -> httpx.Response:
        start.wait()
        return server.infer("narrow", [[0.5]])

    with ThreadPoolExecutor(12) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(12)]]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    assert len(refused) < 12
    for answer in refused:
        assert "wait already" in check_refused(answer, 429)


def _ok(answer: httpx.Response) -> httpx.Response | None:
    return answer if answer.status_code == 200 else None


def _not(answer: httpx.Response, status: int) -> httpx.Response | None:
    return answer if answer.status_code != status else None
