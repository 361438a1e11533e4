"""KServe v2 over gRPC, with Triton's own client on a running server."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from octavo.errors import Invalid
from octavo.serving.inference import InferAnswer
from octavo.serving.protocols import inference_pb2 as pb
from octavo.serving.protocols.kserve_messages import parse_message, to_message, wants_final

from .live import Up, clean_environment, octavo, octavo_up

TEXT = np.array([[b"where is my order?"], ["日本".encode()]], dtype=np.object_)


@pytest.fixture(scope="module")
def client(live_server: Up) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(live_server.grpc) as found:
        yield found


@pytest.fixture
def headers(live_server: Up) -> dict[str, str]:
    return {"authorization": f"Bearer {live_server.token}"}


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str) -> triton.InferInput:
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def numbers(value: float = 1) -> list[triton.InferInput]:
    return [tensor("x", np.full((1, 4), value, np.float32), "FP32")]


def test_health_needs_no_token(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()


def test_a_text_becomes_a_vector(client: triton.InferenceServerClient, headers: dict[str, str]) -> None:
    answer = client.infer("minilm", [tensor("text", TEXT, "BYTES")], headers=headers, request_id="7")
    vectors = answer.as_numpy("embedding")
    assert vectors.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert answer.get_response().id == "7"


def test_what_is_told_of_the_server_and_its_models(
    client: triton.InferenceServerClient, headers: dict[str, str]
) -> None:
    assert client.get_server_metadata(headers=headers).name == "octavo"
    assert client.is_model_ready("minilm", headers=headers)
    assert not client.is_model_ready("nothing", headers=headers)
    found = client.get_model_metadata("minilm", headers=headers)
    assert [one.name for one in found.outputs] == ["embedding"]
    assert client.get_model_config("double", headers=headers).config.max_batch_size == 8
    client.infer("double", numbers(), headers=headers)
    (counts,) = client.get_inference_statistics("double", headers=headers).model_stats
    assert counts.inference_stats.success.count >= 1
    index = client.get_model_repository_index(headers=headers).models
    assert {"minilm", "double"} <= {one.name for one in index}


def test_load_and_unload(client: triton.InferenceServerClient, headers: dict[str, str]) -> None:
    client.load_model("triple", headers=headers)
    client.unload_model("triple", headers=headers)
    with pytest.raises(InferenceServerException, match="served as published"):
        client.load_model("triple", headers=headers, config="{}")


@pytest.mark.parametrize(
    ("model", "inputs", "code", "says"),
    [
        ("nothing", numbers(), "NOT_FOUND", "nothing"),
        ("../etc", numbers(), "INVALID_ARGUMENT", "not a model name"),
        ("double", [tensor("y", np.ones((1, 4), np.float32), "FP32")], "INVALID_ARGUMENT", "unknown input 'y'"),
        ("double", [tensor("x", np.ones((1, 3), np.float32), "FP32")], "INVALID_ARGUMENT", "shape"),
        ("double", [tensor("x", np.ones((1, 4), np.int64), "INT64")], "INVALID_ARGUMENT", "x"),
    ],
)
def test_errors(
    client: triton.InferenceServerClient,
    headers: dict[str, str],
    model: str,
    inputs: list[triton.InferInput],
    code: str,
    says: str,
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, inputs, headers=headers)
    assert code in str(caught.value.status())
    assert says in caught.value.message()


def test_who_asks_is_checked(client: triton.InferenceServerClient) -> None:
    for headers in (None, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.infer("double", numbers(), headers=headers)
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.get_model_repository_index(headers=headers)
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.get_server_metadata(headers=headers)


def test_nobody_sends_a_large_message(client: triton.InferenceServerClient) -> None:
    for headers in (None, {"authorization": "Bearer wrong"}):
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.infer("double", [tensor("x", np.zeros((1, 2**20), np.float32), "FP32")], headers=headers)


def test_shared_memory_is_refused(client: triton.InferenceServerClient, headers: dict[str, str]) -> None:
    with pytest.raises(InferenceServerException, match="shared memory regions are not taken"):
        client.register_system_shared_memory("region", "/key", 64, headers=headers)
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.get_cuda_shared_memory_status(headers=headers)
    given = triton.InferInput("x", [1, 4], "FP32")
    given.set_shared_memory("region", 16)
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.infer("double", [given], headers=headers)
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
        client.get_log_settings(headers=headers)


def test_a_deadline_of_the_call_holds(client: triton.InferenceServerClient, headers: dict[str, str]) -> None:
    with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
        client.infer("minilm", [tensor("text", TEXT, "BYTES")], headers=headers, client_timeout=1e-4)


def test_a_stream_answers_in_order_and_outlives_errors(live_server: Up, headers: dict[str, str]) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(live_server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        for number in range(100):
            client.async_stream_infer("nothing" if number == 50 else "double", numbers(number), request_id=str(number))
        found = [answers.get(timeout=60) for _ in range(100)]
        client.stop_stream()
    assert "nothing" in str(found[50][1])
    for number, (result, error) in enumerate(found):
        if number != 50:
            assert error is None
            assert result.get_response().id == str(number)
            assert result.as_numpy("y")[0, 0] == 2 * number


def test_a_stream_tells_its_last_answers_to_who_asks(live_server: Up, headers: dict[str, str]) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(live_server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        client.async_stream_infer("double", numbers(), enable_empty_final_response=True)
        result, error = answers.get(timeout=60)
        client.stop_stream()
    assert error is None
    assert result.get_response().parameters["triton_final_response"].bool_param


def test_many_clients_at_once(live_server: Up, headers: dict[str, str]) -> None:
    wrong: list[object] = []

    def ask(start: int) -> None:
        with triton.InferenceServerClient(live_server.grpc) as own:
            for number in range(start, start + 20):
                answer = own.infer("double", numbers(number), headers=headers).as_numpy("y")
                if answer[0, 0] != 2 * number:
                    wrong.append((number, answer))

    threads = [threading.Thread(target=ask, args=(100 * at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_message_over_the_limit_is_refused(tmp_path: Path) -> None:
    with octavo_up(tmp_path, OCTAVO_WEB__MAX_BODY="4KiB") as server:
        with triton.InferenceServerClient(server.grpc) as client:
            given = [tensor("x", np.zeros((1, 4096), np.float32), "FP32")]
            with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
                client.infer("double", given, headers={"authorization": f"Bearer {server.token}"})
            bomb = [tensor("x", np.zeros((1, 2**22), np.float32), "FP32")]
            with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
                client.infer(
                    "double",
                    bomb,
                    headers={"authorization": f"Bearer {server.token}"},
                    compression_algorithm="gzip",
                )
            assert client.is_server_live()


def test_the_port_is_the_settings(tmp_path: Path) -> None:
    with octavo_up(tmp_path / "none", OCTAVO_SERVING__GRPC_PORT="0") as server:
        assert server.grpc == ""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ("up", "--port", "0", "--token", "t", "--workspace", str(tmp_path / "taken"))
        done = octavo(*words, **clean_environment(OCTAVO_SERVING__GRPC_PORT=port))
    assert done.returncode == 2
    assert f"port {port} is taken" in done.stderr
    assert "Traceback" not in done.stderr


def test_bytes_that_are_no_message_are_refused(live_server: Up, headers: dict[str, str]) -> None:
    with grpc.insecure_channel(live_server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff", metadata=tuple(headers.items()))
        assert caught.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)
        unknown = channel.unary_unary("/inference.GRPCInferenceService/Nothing")
        with pytest.raises(grpc.RpcError) as caught:
            unknown(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_probes_are_answered(live_server: Up) -> None:
    with grpc.insecure_channel(live_server.grpc) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"  # SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x05other")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def message(**more: Any) -> Any:
    given: dict[str, Any] = {
        "model_name": "m",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [1, 2]}}],
    }
    return pb.ModelInferRequest(**given | more)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP64", "fp64_contents", [0.5, -1e300]),
        ("BYTES", "bytes_contents", [b"", b"\xff"]),
    ],
)
def test_typed_contents(datatype: str, field: str, values: list[Any]) -> None:
    given = {"name": "x", "datatype": datatype, "shape": [2], "contents": {field: values}}
    array = parse_message(message(inputs=[given])).request.inputs["x"]
    assert array.tolist() == values


def _input(**more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [1, 2]}} | more


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"inputs": []}, "'inputs' is empty"),
        ({"inputs": [_input(), _input()]}, "given twice"),
        ({"inputs": [_input(name="")]}, "no name"),
        ({"inputs": [_input(shape=[3])]}, "needs 3"),
        ({"inputs": [_input(shape=[-1])]}, "negative axis"),
        ({"inputs": [_input(shape=[2**20, 2**20])]}, "elements"),
        ({"inputs": [_input(shape=[1] * 40)]}, "40 axes"),
        ({"inputs": [_input(datatype="FP16")]}, "no typed contents"),
        ({"inputs": [_input(datatype="FP99")]}, "unknown datatype"),
        ({"inputs": [_input(datatype="INT8", contents={"int_contents": [1, 128]})]}, "outside the range"),
        ({"raw_input_contents": [b"12345678", b""]}, "2 raw contents"),
        ({"raw_input_contents": [b"12345678"]}, "both raw and typed"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "twice"),
        ({"id": "x" * 2000}, "'id'"),
        ({"model_version": "../1"}, "'../1'"),
        ({"parameters": {"sequence_id": {"int64_param": 5}}}, "sequences"),
        ({"parameters": {"timeout": {"int64_param": -5}}}, "timeout"),
        ({"parameters": {"odd": {}}}, "no value"),
    ],
)
def test_a_wrong_message_is_told_what_is_wrong(more: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_message(message(**more))
    assert says in str(caught.value)


def test_parameters_count() -> None:
    asked = message(
        parameters={
            "priority": {"int64_param": 2},
            "timeout": {"uint64_param": 1000},
            "variant": {"string_param": "new"},
            "triton_enable_empty_final_response": {"bool_param": True},
        },
        outputs=[{"name": "y", "parameters": {"classification": {"int64_param": 1}}}],
    )
    inference = parse_message(asked, seconds=60.0, caller="ada")
    request = inference.request
    assert (request.priority, request.variant, request.caller) == (2, "new", "ada")
    assert request.deadline - request.arrived == pytest.approx(0.001, abs=0.01)
    assert wants_final(asked)
    answer = InferAnswer("m", "1", {"y": np.array([[0.1, 0.9]], np.float32)}, variant="new")
    written = to_message(answer, inference)
    assert b"0.900000:1" in written.raw_output_contents[0]
    assert written.parameters["variant"].string_param == "new"
    with pytest.raises(Invalid, match="no output 'y'"):
        to_message(InferAnswer("m", "1", {}), inference)
