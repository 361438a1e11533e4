"""What a Python model imports as `triton_python_backend_utils`: tensors, requests, responses, configuration.

The names and their behaviour follow Triton's Python backend, so that a `model.py` written for it runs unchanged. What
this server does not offer (decoupled responses, calls to other models) raises `TritonModelException` where asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from octavo.serving.pb_config import ModelConfig
from octavo.serving.tensors import Array, decode_bytes, encode_bytes

__all__ = [
    "InferenceRequest",
    "InferenceResponse",
    "Logger",
    "ModelConfig",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "using_decoupled_model_transaction_policy",
]

TRITON_STRING_TO_NUMPY: dict[str, type[np.generic] | type[bool]] = {
    "TYPE_BOOL": bool,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}
# Triton's enumeration counts the datatypes from 1 in this very order.
TRITON_TO_NUMPY_TYPE: dict[int, type[np.generic] | type[bool]] = {
    number: np.bool_ if kind is bool else kind for number, kind in enumerate(TRITON_STRING_TO_NUMPY.values(), 1)
}
NUMPY_TO_TRITON_TYPE = {kind: number for number, kind in TRITON_TO_NUMPY_TYPE.items()}


class TritonModelException(Exception):
    """What a model raises to refuse a request, and what unsupported calls raise."""


class TritonError:
    """The error of one response: a message and one of the class's codes."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: object, code: int = INTERNAL) -> None:
        self._message = str(message)
        self._code = int(code)

    def message(self) -> str:
        """What went wrong."""
        return self._message

    def code(self) -> int:
        """One of the class's codes."""
        return self._code

    def __str__(self) -> str:
        return self._message


class _Capsule:
    """A bare DLPack capsule in the clothes numpy asks for."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU


class Tensor:
    """A named array. BYTES tensors are object arrays of `bytes`."""

    def __init__(self, name: str, array: Array) -> None:
        if not isinstance(array, np.ndarray):
            raise TritonModelException(f"tensor {name!r} needs a numpy array, not {type(array).__name__}")
        self._name = str(name)
        self._array = array

    def name(self) -> str:
        """The tensor's name."""
        return self._name

    def as_numpy(self) -> Array:
        """The array; an input lies on shared memory and is not copied."""
        return self._array

    def is_cpu(self) -> bool:
        """Always true: this backend hands tensors over in host memory."""
        return True

    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self._array.shape

    def triton_dtype(self) -> int:
        """Triton's number of the datatype."""
        return numpy_to_triton_type(self._array.dtype.type)

    def to_dlpack(self) -> object:
        """A DLPack capsule on the same memory."""
        return self.__dlpack__()

    @staticmethod
    def from_dlpack(name: str, source: object) -> Tensor:
        """A tensor on the memory of a DLPack capsule or of an object with `__dlpack__`, in host memory."""
        exporter: Any = source if hasattr(source, "__dlpack__") else _Capsule(source)
        return Tensor(name, np.from_dlpack(exporter))

    def __dlpack__(self, **options: Any) -> object:
        array: Any = self._array
        exported: object = array.__dlpack__(**options)
        return exported

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class InferenceRequest:
    """One request handed to `execute`."""

    def __init__(
        self,
        inputs: Sequence[Tensor] = (),
        request_id: str = "",
        correlation_id: int | str = 0,
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        parameters: Mapping[str, Any] | None = None,
        **_: object,
    ) -> None:
        self._inputs = list(inputs)
        self._id = request_id
        self._correlation = correlation_id
        self._outputs = list(requested_output_names)
        self._model, self._version = model_name, model_version
        self._flags, self._timeout = flags, timeout
        self._parameters = dict(parameters or {})

    def inputs(self) -> list[Tensor]:
        """The input tensors."""
        return self._inputs

    def requested_output_names(self) -> list[str]:
        """The outputs somebody waits for."""
        return self._outputs

    def request_id(self) -> str:
        """The caller's id of the request; may be empty."""
        return self._id

    def correlation_id(self) -> int | str:
        """The sequence the request belongs to; 0 for none."""
        return self._correlation

    def parameters(self) -> str:
        """The request's parameters, as JSON text (as Triton gives them)."""
        return json.dumps(self._parameters)

    def model_name(self) -> str:
        """The model asked."""
        return self._model

    def model_version(self) -> int:
        """The version asked; -1 where it is not a number."""
        return self._version

    def flags(self) -> int:
        """Triton's request flags; 0 here, as sequences are not tracked by the server."""
        return self._flags

    def timeout(self) -> int:
        """The caller's timeout, microseconds; 0 for none."""
        return self._timeout

    def is_cancelled(self) -> bool:
        """False: a cancelled request is dropped before it reaches a worker, or its worker ends."""
        return False

    def get_response_sender(self) -> object:
        """Not offered: raises `TritonModelException`."""
        raise TritonModelException("decoupled responses are not supported here; return one response per request")

    def exec(self, decoupled: bool = False) -> object:
        """Not offered: raises `TritonModelException`."""
        raise TritonModelException("calls to other models are not supported here; use an ensemble")

    async_exec = exec


class InferenceResponse:
    """The answer to one request: tensors, or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors = list(output_tensors or ())
        self._error = error if error is None or isinstance(error, TritonError) else TritonError(error)

    def output_tensors(self) -> list[Tensor]:
        """The output tensors."""
        return self._tensors

    def has_error(self) -> bool:
        """Whether this is an error."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """The error, if it is one."""
        return self._error


class _Logger:
    """Lines for the server's log; the model's name is added there."""

    def log(self, message: object, level: str = "INFO") -> None:
        """One message at `INFO`, `WARNING`, `ERROR` or `VERBOSE`."""
        self._write({"INFO": "I", "WARNING": "W", "ERROR": "E"}.get(str(level).upper(), "V"), message)

    def log_info(self, message: object) -> None:
        """One message for information."""
        self._write("I", message)

    def log_warn(self, message: object) -> None:
        """One warning."""
        self._write("W", message)

    def log_error(self, message: object) -> None:
        """One error."""
        self._write("E", message)

    def log_verbose(self, message: object) -> None:
        """One message for debugging."""
        self._write("V", message)

    def _write(self, mark: str, message: object) -> None:
        # A record separator and a letter tell the server the level; one write per message keeps lines whole.
        lines = str(message).splitlines() or [""]
        os.write(2, "".join(f"\x1e{mark}{line}\n" for line in lines).encode("utf-8", "replace"))


Logger = _Logger()


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    """The request's input of that name, or None."""
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    """The response's output of that name, or None."""
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The configuration of an input (`name`, `data_type`, `dims`), or None."""
    return next((entry for entry in model_config.get("input", ()) if entry.get("name") == name), None)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The configuration of an output (`name`, `data_type`, `dims`), or None."""
    return next((entry for entry in model_config.get("output", ()) if entry.get("name") == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether the configuration asks for decoupled responses."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """The numpy type of `TYPE_FP32` and the like."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> Any:
    """The numpy type of Triton's number of a datatype."""
    return TRITON_TO_NUMPY_TYPE[data_type]


def numpy_to_triton_type(data_type: Any) -> int:
    """Triton's number of a numpy type."""
    kind = np.dtype(data_type).type
    return NUMPY_TO_TRITON_TYPE[np.object_ if kind in (np.bytes_, np.str_) else kind]


def serialize_byte_tensor(input_tensor: Array) -> Array:
    """A BYTES tensor in wire form, as one array of one `bytes` element."""
    return np.array([encode_bytes(input_tensor)], dtype=np.object_)


def deserialize_bytes_tensor(encoded_tensor: bytes) -> Array:
    """The flat object array of `bytes` that wire-form bytes hold."""
    count, at = 0, 0
    while at < len(encoded_tensor):
        at += 4 + int.from_bytes(encoded_tensor[at : at + 4], "little")
        count += 1
    return decode_bytes(encoded_tensor, (count,), "encoded")
