"""Ensembles: models whose answer is made by other models, in the order their tensors ask for.

Every step is a request of its own to a model of the repository, so each is batched and resident by itself; steps that
do not need one another run at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from octavo.errors import Invalid, ModelFailed
from octavo.serving.inference import InferAnswer, InferRequest
from octavo.serving.model_config import CONFIG_NAME, EnsembleStep, ModelConfig
from octavo.serving.tensors import Tensors, TensorSpec

MAX_DEPTH = 8

Infer = Callable[[InferRequest], Awaitable[InferAnswer]]


def check_ensemble(config: ModelConfig) -> None:
    """Raise `Invalid` unless every tensor of the ensemble has exactly one maker and every output is made."""
    where = f"{config.name}/{CONFIG_NAME}"
    made = {spec.name for spec in config.inputs}
    for step in config.ensemble:
        for tensor in step.output_map.values():
            if tensor in made:
                raise Invalid(f"ensemble tensor {tensor!r} is made twice", where, "Give each output_map its own names.")
            made.add(tensor)
    wanted = [t for step in config.ensemble for t in step.input_map.values()] + [s.name for s in config.outputs]
    for tensor in wanted:
        if tensor not in made:
            raise Invalid(f"ensemble tensor {tensor!r} is made by no step", where, "Add a step that gives it.")


def ensemble_tensors(config: ModelConfig) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as clients send and get them: with the batch axis, where the ensemble has one."""
    lead = (-1,) if config.max_batch_size else ()

    def whole(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, shape=lead + spec.shape) for spec in specs)

    return whole(config.inputs), whole(config.outputs)


async def run_ensemble(config: ModelConfig, request: InferRequest, infer: Infer) -> Tensors:
    """Run all steps of an ensemble and return the wanted outputs.

    A step gets no tensor for an optional input that was not sent.

    Raises:
        Invalid: the request does not fit the ensemble, or its steps do not fit one another.
    """
    check_ensemble(config)
    _check_request(config, request)
    tensors: Tensors = dict(request.inputs)
    decided = {spec.name for spec in config.inputs}
    left = list(config.ensemble)
    while left:
        ready = [step for step in left if decided.issuperset(step.input_map.values())]
        if not ready:
            fix = "Break the circle in config.pbtxt."
            raise Invalid("the ensemble's steps wait for one another", f"{config.name}/{CONFIG_NAME}", fix)
        answers = await asyncio.gather(*(infer(_step_request(step, tensors, request)) for step in ready))
        for step, answer in zip(ready, answers, strict=True):
            tensors |= _step_tensors(step, answer, config.name)
            decided.update(step.output_map.values())
        left = [step for step in left if step not in ready]
    return {name: tensors[name] for name in request.outputs or (spec.name for spec in config.outputs)}


def _check_request(config: ModelConfig, request: InferRequest) -> None:
    inputs, outputs = ensemble_tensors(config)
    specs = {spec.name: spec for spec in inputs}
    for name, array in request.inputs.items():
        if name not in specs:
            raise Invalid(f"unknown input {name!r}", config.name, f"It takes {', '.join(specs)}.")
        specs[name].check(array, config.name)
    for spec in inputs:
        if spec.name not in request.inputs and not spec.optional:
            raise Invalid(f"missing input {spec.name!r}", config.name, f"It takes {', '.join(specs)}.")
    known = [spec.name for spec in outputs]
    for name in request.outputs:
        if name not in known:
            raise Invalid(f"unknown output {name!r}", config.name, f"It gives {', '.join(known)}.")


def _step_request(step: EnsembleStep, tensors: Tensors, request: InferRequest) -> InferRequest:
    return InferRequest(
        model=step.model,
        version=step.version,
        inputs={name: tensors[tensor] for name, tensor in step.input_map.items() if tensor in tensors},
        outputs=tuple(step.output_map),
        id=request.id,
        priority=request.priority,
        deadline=request.deadline,
        parameters=request.parameters,
        caller=request.caller,
    )


def _step_tensors(step: EnsembleStep, answer: InferAnswer, name: str) -> Tensors:
    for output in step.output_map:
        if output not in answer.outputs:
            raise ModelFailed(f"step {step.model!r} gave no output {output!r}", name, "Correct its output_map.")
    return {tensor: answer.outputs[output] for output, tensor in step.output_map.items()}
