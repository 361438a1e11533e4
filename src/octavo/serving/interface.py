"""A model's tensors as its clients send and get them: what the file says, narrowed and reshaped by config.pbtxt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from octavo.errors import Invalid
from octavo.serving.backend import RequestRunner, Runner
from octavo.serving.model_config import CONFIG_NAME, DynamicBatching, ModelConfig
from octavo.serving.tensors import Tensors, TensorSpec, reshaped

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Interface:
    """The tensors of a loaded model, the batch axis included.

    Attributes:
        inputs: as clients send them.
        outputs: as clients get them.
        batched: whether the first axis of all of them is the batch.
        input_reshape: input name -> the shape the model itself takes, without the batch axis.
        output_reshape: output name -> the shape the model itself gives, without the batch axis.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    input_reshape: Mapping[str, Shape] = field(default_factory=dict)
    output_reshape: Mapping[str, Shape] = field(default_factory=dict)

    def to_model(self, inputs: Tensors, model: str) -> Tensors:
        """Inputs, checked already, in the shapes the model itself takes.

        Raises:
            Invalid: their number of elements does not fit those.
        """
        if not self.input_reshape:
            return inputs
        declared = {spec.name: spec.shape[self.batched :] for spec in self.inputs}
        try:
            return inputs | {
                name: reshaped(inputs[name], int(self.batched), declared[name], target)
                for name, target in self.input_reshape.items()
                if name in inputs
            }
        except ValueError as error:
            raise Invalid(f"an input cannot be reshaped: {error}", model, "See `reshape` in config.pbtxt.") from None

    def to_client(self, outputs: Tensors, model: str) -> Tensors:
        """The declared ones of a model's outputs, in the shapes clients get.

        Raises:
            Invalid: an output does not have the shape that is to be reshaped.
        """
        given = {spec.name: outputs[spec.name] for spec in self.outputs}
        declared = {spec.name: spec.shape[self.batched :] for spec in self.outputs}
        try:
            return given | {
                name: reshaped(given[name], int(self.batched), source, declared[name])
                for name, source in self.output_reshape.items()
            }
        except ValueError as error:
            raise Invalid(f"an output cannot be reshaped: {error}", model, "See `reshape` in config.pbtxt.") from None


def completed(config: ModelConfig, runner: Runner) -> ModelConfig:
    """`config` with what a model that configures itself (`auto_complete_config`) says of its batches."""
    if not isinstance(runner, RequestRunner):
        return config
    batching = config.dynamic_batching or (DynamicBatching() if runner.dynamic_batching else None)
    return replace(config, max_batch_size=runner.max_batch_size, dynamic_batching=batching)


def interface(config: ModelConfig, runner: Runner) -> Interface:
    """What clients see of a model.

    Args:
        config: of the model, completed.
        runner: its runner; one that takes whole requests has checked and reshapes by itself.

    Raises:
        Invalid: config.pbtxt declares what the model does not have.
    """
    batched = config.max_batch_size > 0
    if isinstance(runner, RequestRunner):
        return Interface(runner.inputs, runner.outputs, batched)
    if batched:
        _check_batch_axis(config, (*runner.inputs, *runner.outputs))
    inputs = _declared(config, "input", config.inputs, runner.inputs, config.input_reshape)
    outputs = _declared(config, "output", config.outputs, runner.outputs, config.output_reshape)
    left = {spec.name for spec in runner.inputs if not spec.optional} - {spec.name for spec in inputs}
    if left:
        raise Invalid(f"the model's input {min(left)!r} is not declared", _where(config), "Declare it, or no input.")
    return Interface(inputs, outputs, batched, config.input_reshape, config.output_reshape)


def _check_batch_axis(config: ModelConfig, specs: Iterable[TensorSpec]) -> None:
    for spec in specs:
        if spec.shape and spec.shape[0] != -1:
            raise Invalid(
                f"max_batch_size is {config.max_batch_size}, but the first axis of {spec.name!r} is always "
                f"{spec.shape[0]} (shape {list(spec.shape)})",
                _where(config),
                "Set max_batch_size: 0, or export the model with a free batch axis.",
            )


def _declared(
    config: ModelConfig,
    side: str,
    declared: tuple[TensorSpec, ...],
    found: tuple[TensorSpec, ...],
    reshape: Mapping[str, Shape],
) -> tuple[TensorSpec, ...]:
    """The declared tensors with the batch axis; all of the model's own when none is declared."""
    own = {spec.name: spec for spec in found}
    specs = []
    for spec in declared:
        if spec.name not in own:
            fix = f"It has {', '.join(own) or 'none'}."
            raise Invalid(f"the model has no {side} {spec.name!r}", _where(config), fix)
        specs.append(_merge(config, f"{side} {spec.name!r}", spec, own[spec.name], reshape.get(spec.name)))
    return tuple(specs) or found


def _merge(config: ModelConfig, what: str, declared: TensorSpec, own: TensorSpec, reshape: Shape | None) -> TensorSpec:
    """One declared tensor with the batch axis, its free axes as narrow as the model's own."""
    if declared.datatype != own.datatype:
        fix = "Correct data_type."
        raise Invalid(f"{what} is declared {declared.datatype}, the model's is {own.datatype}", _where(config), fix)
    lead: Shape = (-1,) if config.max_batch_size > 0 else ()
    shape = lead + (declared.shape if reshape is None else reshape)
    if own.shape:  # a model may leave the shape open altogether
        fits = len(shape) == len(own.shape) and all(
            -1 in (a, b) or a == b for a, b in zip(shape, own.shape, strict=True)
        )
        if not fits:
            said = f"{'dims' if reshape is None else 'reshape'} {list(shape)}" + (
                " with the batch axis" if lead else ""
            )
            fix = "Correct dims, or give the model's own shape as `reshape`."
            raise Invalid(f"{what} has {said}, the model's is {list(own.shape)}", _where(config), fix)
    if reshape is not None or not own.shape:
        return replace(declared, shape=lead + declared.shape)
    narrow = tuple(b if a == -1 else a for a, b in zip(shape, own.shape, strict=True))
    return replace(declared, shape=narrow)


def _where(config: ModelConfig) -> str:
    return f"{config.name}/{CONFIG_NAME}"
