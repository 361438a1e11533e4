"""PyTorch's two kinds of programs as one: what they take by which name, and how they are called.

Triton's names are understood: `INPUT__0` is the first argument and `OUTPUT__1` the second thing returned, whatever
stands before the two underlines; else a name is that of an argument of `forward`, or a key of the dictionary returned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import Invalid, ModelFailed
from octavo.serving.model_config import CONFIG_NAME, ModelConfig
from octavo.serving.tensors import TensorSpec

if TYPE_CHECKING:
    import torch

_PLACE = re.compile(r".+__(\d{1,4})")
_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "FP32",
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a program.

    Attributes:
        spec: None where the program does not say its type (TorchScript).
        optional: it may be left out.
        default: what it then is, is the program's own business; else it must be given as None.
        keyword: it is given by name.
    """

    name: str
    spec: TensorSpec | None = None
    optional: bool = False
    default: bool = False
    keyword: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A program on one device.

    Attributes:
        function: the program itself.
        device: where its weights lie and its inputs must.
        arguments: in order; those by keyword last.
        outputs: their types in order; None where the program does not say.
        takes_table: the one argument is a dictionary of tensors.
    """

    function: Callable[..., Any]
    device: torch.device
    arguments: tuple[Argument, ...]
    outputs: tuple[TensorSpec, ...] | None
    takes_table: bool = False

    def call(self, binding: Binding, tensors: Mapping[str, torch.Tensor]) -> Any:
        """Run it on tensors by input name."""
        if self.takes_table:
            return self.function(dict(tensors))
        given = {binding.argument_of[name]: tensor for name, tensor in tensors.items()}
        ordered = [given[each.name] for each in self.arguments if not each.keyword]
        named = [each for each in self.arguments if each.keyword and (each.name in given or not each.default)]
        return self.function(*ordered, **{each.name: given.get(each.name) for each in named})


@dataclass(frozen=True, slots=True)
class Binding:
    """A program's tensors as its clients know them, the batch axis included.

    Attributes:
        argument_of: input name -> argument.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    argument_of: Mapping[str, str]

    def named(self, given: Any, where: str) -> dict[str, torch.Tensor]:
        """What a program returned, by output name.

        Raises:
            ModelFailed: it returned neither tensors nor what is declared.
        """
        fix = "Correct the outputs in config.pbtxt."
        values = given if isinstance(given, Mapping | list | tuple) else [given]
        found = {}
        for at, spec in enumerate(self.outputs):
            key: Any = spec.name if isinstance(values, Mapping) else _place(spec.name, at)
            try:
                value = values[key]
            except (KeyError, IndexError):
                raise ModelFailed(f"the program returned no output {spec.name!r}", where, fix) from None
            if not hasattr(value, "detach"):
                raise ModelFailed(f"output {spec.name!r} is a {type(value).__name__}, no tensor", where, fix)
            found[spec.name] = value
        return found


def script_program(file: Path, device: torch.device) -> Program:
    """Read a TorchScript archive; PyTorch's errors are the caller's to explain."""
    import torch

    module = torch.jit.load(str(file), map_location=device)
    module.eval()
    schema = module.forward.schema if hasattr(module.forward, "schema") else module._c._get_method("forward").schema
    arguments, table = [], False
    for each in schema.arguments[1:]:
        kind = str(each.type)
        table = table or kind == "Dict[str, Tensor]"
        if kind not in ("Tensor", "Optional[Tensor]", "Dict[str, Tensor]") and not each.has_default_value():
            what = f"forward takes {each.name!r} as {kind}, which cannot be sent"
            raise Invalid(what, file.name, "Take tensors, or one Dict[str, Tensor].")
        if kind in ("Tensor", "Optional[Tensor]"):
            default = each.has_default_value()
            arguments.append(Argument(each.name, None, default or kind != "Tensor", default, keyword=True))
    if table and len(schema.arguments) != 2:
        raise Invalid("forward takes a dictionary beside other arguments", file.name, "Take one Dict[str, Tensor].")
    return Program(module, device, tuple(arguments), None, table)


def exported_program(file: Path, device: torch.device) -> Program:
    """Read what `torch.export.save` wrote; PyTorch's errors are the caller's to explain."""
    import torch

    program = torch.export.load(str(file))
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    nodes = {node.name: node for node in program.graph.nodes}
    names = list(program.graph_signature.user_inputs)
    values = [nodes[name].meta.get("val") if name in nodes else None for name in names]
    returned = [nodes[name].meta.get("val") for name in program.graph_signature.user_outputs if name in nodes]
    positional, keywords = _flat(program.call_spec.in_spec, len(names), file.name)
    if len(returned) != len(program.graph_signature.user_outputs):
        raise Invalid("the program returns something other than tensors", file.name, "Return tensors only.")
    arguments = tuple(
        Argument(key, _spec(key, value, file.name), keyword=at >= positional)
        for at, (key, value) in enumerate(zip([*names[:positional], *keywords], values, strict=True))
    )
    told = program.call_spec.out_spec
    keys = list(told.context) if told.type is dict else [f"OUTPUT__{at}" for at in range(len(returned))]
    outputs = tuple(_spec(key, value, file.name) for key, value in zip(keys, returned, strict=True))
    return Program(program.module(), device, arguments, outputs)


def _flat(spec: Any, count: int, where: str) -> tuple[int, list[str]]:
    """How many of the arguments are positional, and the names of those by keyword."""
    positional, keywords = spec.children()
    if len(positional.children()) + len(keywords.children()) != count:
        raise Invalid("the program takes tensors within lists or dictionaries", where, "Export it with plain tensors.")
    return len(positional.children()), list(keywords.context)


def _spec(name: str, value: Any, where: str) -> TensorSpec:
    """The spec of a traced tensor; an axis without a fixed length is -1."""
    datatype = _DATATYPES.get(str(getattr(value, "dtype", "")).removeprefix("torch."))
    if datatype is None:
        raise Invalid(f"{name!r} is no tensor that can be sent", where, "Export it with plain tensors.")
    return TensorSpec(name, datatype, tuple(axis if isinstance(axis, int) else -1 for axis in value.shape))


def bind(config: ModelConfig, program: Program) -> Binding:
    """Fit a configuration's names to a program's arguments and outputs.

    Raises:
        Invalid: a name is no argument, an argument has none, or nothing says the types.
    """
    where = f"{config.name}/{CONFIG_NAME}"
    argument_of = {} if program.takes_table else _arguments_of(config, program.arguments, where)
    if not config.inputs and not (program.arguments and all(each.spec for each in program.arguments)):
        raise Invalid("TorchScript does not say its types", where, "Declare the inputs and outputs.")
    if not config.outputs and program.outputs is None:
        raise Invalid("TorchScript does not say its types", where, "Declare the inputs and outputs.")
    known = {each.name: each for each in program.arguments}
    inputs = tuple(_input(known.get(argument_of.get(spec.name, "")), spec, config) for spec in config.inputs) or tuple(
        each.spec for each in program.arguments if each.spec
    )
    outputs = tuple(
        _named(_output(program.outputs, spec.name, at, where), spec, config, config.output_reshape)
        for at, spec in enumerate(config.outputs)
    ) or (program.outputs or ())
    return Binding(inputs, outputs, argument_of or {each.name: each.name for each in program.arguments})


def _arguments_of(config: ModelConfig, arguments: Sequence[Argument], where: str) -> dict[str, str]:
    """Input name -> argument, by the names of `forward`, else by place."""
    names = [each.name for each in arguments]
    declared = [spec.name for spec in config.inputs]
    found = {}
    for name in declared:
        place = _place(name, -1)
        if name in names:
            found[name] = name
        elif 0 <= place < len(names):
            found[name] = names[place]
        else:
            fix = f"forward takes {', '.join(names) or 'nothing'}: use these names, or INPUT__0 and so on."
            raise Invalid(f"no argument is meant by input {name!r}", where, fix)
    taken = set(found.values())
    if len(taken) != len(declared):
        raise Invalid("two inputs mean the same argument", where, "Give each its own.")
    left = [each.name for each in arguments if not each.optional and each.name not in taken]
    if declared and left:
        raise Invalid(f"the program's argument {left[0]!r} is not declared", where, "Declare it as an input.")
    return found


def _output(outputs: tuple[TensorSpec, ...] | None, name: str, at: int, where: str) -> TensorSpec | None:
    """What the program says of a declared output; None where it says nothing."""
    if outputs is None:
        return None
    by_name = {spec.name: spec for spec in outputs}
    place = _place(name, at)
    if name not in by_name and place >= len(outputs):
        raise Invalid(f"the program returns no output {name!r}", where, f"It returns {', '.join(by_name)}.")
    return by_name.get(name) or outputs[place]


def _input(argument: Argument | None, declared: TensorSpec, config: ModelConfig) -> TensorSpec:
    """An input as declared; of one table of tensors, any key may be declared."""
    spec = _named(argument.spec if argument else None, declared, config, config.input_reshape)
    return replace(spec, optional=declared.optional and (argument is None or argument.optional))


def _named(
    own: TensorSpec | None, declared: TensorSpec, config: ModelConfig, reshapes: Mapping[str, tuple[int, ...]]
) -> TensorSpec:
    """What the program says under the declared name, or else what is declared, in the program's own shape."""
    if own is not None:
        return replace(own, name=declared.name)
    lead = (-1,) if config.max_batch_size else ()
    return replace(declared, shape=lead + reshapes.get(declared.name, declared.shape))


def _place(name: str, default: int) -> int:
    """The number behind the two underlines of Triton's names."""
    match = _PLACE.fullmatch(name)
    return int(match[1]) if match else default
