"""Load from Triton's own Python clients, unmodified, in a process of their own: HTTP and gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from load import Answer, Load, in_own_process


def triton_client(
    protocol: str, port: int, model: str, tensors: Sequence[np.ndarray], at_once: int, headers: dict[str, str]
) -> Load:
    """Ask `model` once per tensor (FP32, or objects for BYTES), `at_once` at a time; answers hold the raw output.

    Args:
        protocol: "http" or "grpc".
        port: of that protocol.
        model: has one input, "x" or "text", and one output, "y" or "embedding".
        tensors: the inputs.
        at_once: 1 takes the synchronous client, more the one for asyncio.
        headers: sent with every request.
    """
    return in_own_process(_run, protocol, port, model, tensors, at_once, headers)


def _run(
    protocol: str, port: int, model: str, tensors: Sequence[np.ndarray], at_once: int, headers: dict[str, str]
) -> Load:
    if protocol == "http":
        import tritonclient.http as plain
        import tritonclient.http.aio as many
    else:
        import tritonclient.grpc as plain
        import tritonclient.grpc.aio as many

    def arguments(tensor: np.ndarray) -> dict[str, Any]:
        text = tensor.dtype == np.object_
        given = plain.InferInput("text" if text else "x", list(tensor.shape), "BYTES" if text else "FP32")
        given.set_data_from_numpy(tensor)
        wanted = plain.InferRequestedOutput("embedding" if text else "y")
        return {"model_name": model, "inputs": [given], "outputs": [wanted], "headers": headers}

    calls = [arguments(tensor) for tensor in tensors]
    address = f"127.0.0.1:{port}"
    if at_once == 1:
        with plain.InferenceServerClient(address) as client:
            return _in_turn(client.infer, calls)
    options = {"conn_limit": at_once} if protocol == "http" else {}
    return asyncio.run(_together(lambda: many.InferenceServerClient(address, **options), calls, at_once))


def _in_turn(infer: Callable[..., Any], calls: Sequence[dict[str, Any]]) -> Load:
    answers = []
    infer(**calls[0])  # connects
    wall, cpu = time.perf_counter(), time.process_time()
    for index, call in enumerate(calls):
        since = time.perf_counter()
        output = infer(**call).as_numpy(call["outputs"][0].name())
        answers.append(Answer(index, time.perf_counter() - since, 200, output.tobytes()))
    return Load(time.perf_counter() - wall, time.process_time() - cpu, answers)


async def _together(opened: Callable[[], Any], calls: Sequence[dict[str, Any]], at_once: int) -> Load:
    answers: list[Answer] = []
    waiting = iter(enumerate(calls))

    async def ask(infer: Callable[..., Awaitable[Any]]) -> None:
        for index, call in waiting:
            since = time.perf_counter()
            output = (await infer(**call)).as_numpy(call["outputs"][0].name())
            answers.append(Answer(index, time.perf_counter() - since, 200, output.tobytes()))

    async with opened() as client:
        await asyncio.gather(*(client.infer(**calls[0]) for _ in range(at_once)))  # connects
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(ask(client.infer) for _ in range(at_once)))
        return Load(time.perf_counter() - wall, time.process_time() - cpu, answers)
