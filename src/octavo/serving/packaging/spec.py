"""`spec.yaml`: what a package of a model is made of.

name: acme-intents
metadata: {tenant: acme, kind: intents}     # names the endpoint: acme-intents
backend: onnxruntime
files: {exported/model.onnx: model.onnx}    # in the spec's folder, links followed: place in the version's
code: {repository: https://example.org/code.git, commit: <40 hex digits>, path: acme}
shapes:
  inputs: {x: {datatype: FP32, dims: [4]}}
  outputs: {y: {datatype: FP32, dims: [4]}}
max_batch_size: 8
batching: {max_queue_delay_us: 1000}
parameters: {token_budget: "512"}
check: {x: [[1, 2, 3, 4]]}                  # asked before the model gets traffic
endpoint: {share: 0.1}
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from octavo.errors import Invalid, NotFound
from octavo.serving.model_config import DynamicBatching, ModelConfig, check_name
from octavo.serving.tensors import NUMPY_OF, TensorSpec
from octavo.storage.keys import check_key

MAX_TEXT = 2**20
BACKENDS = ("onnxruntime", "python", "pytorch", "tenant")
"""What a package's model can run on: the server's, but for ensembles, which have no files."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Code(_Part):
    """Inference code at one commit of a git repository.

    Attributes:
        repository: a folder, or an https, ssh or file URL.
        commit: the full id; a branch or tag would be another tomorrow.
        path: the folder in the repository that is taken; empty for all.
        to: the folder in the version that it is put in; empty for the version's own.
    """

    repository: str = Field(min_length=1)
    commit: str = Field(pattern=r"^[0-9a-f]{40}$", description="a full commit id: 40 hex digits")
    path: str = ""
    to: str = ""

    @field_validator("path", "to")
    @classmethod
    def _path(cls, value: str) -> str:
        return check_key(value) if value else value


class Shape(_Part):
    """One tensor, without the batch axis where there is one; -1 is any length."""

    datatype: str
    dims: tuple[int, ...] = Field(min_length=1)

    @field_validator("datatype")
    @classmethod
    def _datatype(cls, value: str) -> str:
        if value not in NUMPY_OF:
            raise ValueError(f"{value!r} is none of {', '.join(NUMPY_OF)}")
        return value

    @field_validator("dims")
    @classmethod
    def _dims(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(axis < 1 and axis != -1 for axis in value):
            raise ValueError("each axis has a length, or -1 for any")
        return value


class Shapes(_Part):
    """The tensors by name; empty means those of the model's own file."""

    inputs: dict[str, Shape] = {}
    outputs: dict[str, Shape] = {}


class Batching(_Part):
    """How requests share a run."""

    max_queue_delay_us: int = Field(0, ge=0)
    preferred_batch_size: tuple[int, ...] = ()

    def config(self) -> DynamicBatching:
        """As the model's configuration says it."""
        return DynamicBatching(
            preferred_batch_size=self.preferred_batch_size, max_queue_delay_us=self.max_queue_delay_us
        )


class Rollout(_Part):
    """What a new version gets of the endpoint's traffic when nothing else is said: a share, or copies."""

    share: float | None = Field(None, gt=0, le=1)
    shadow: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _one(self) -> Rollout:
        if self.share is not None and self.shadow is not None:
            raise ValueError("a version gets a share or copies, not both")
        return self


class Spec(_Part):
    """A package as its author describes it; see this module's text for an example."""

    name: str
    metadata: dict[str, str] = {}
    backend: str = ""
    files: dict[str, str] = {}
    code: Code | None = None
    shapes: Shapes = Shapes()
    max_batch_size: int = Field(0, ge=0)
    batching: Batching | None = None
    parameters: dict[str, str] = {}
    check: dict[str, Any] = {}
    endpoint: Rollout = Rollout()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)

    @field_validator("backend")
    @classmethod
    def _backend(cls, value: str) -> str:
        if value and value not in BACKENDS:
            raise ValueError(f"no backend is called {value[:60]!r}; there are {', '.join(BACKENDS)}")
        return value

    @field_validator("files", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """A list is each file under its own name."""
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return {item: Path(item).name for item in value}
        return value

    @field_validator("files")
    @classmethod
    def _places(cls, value: dict[str, str]) -> dict[str, str]:
        places = [check_key(place) for place in value.values()]
        if len(set(places)) < len(places):
            raise ValueError("two files have one place")
        return value

    @model_validator(mode="after")
    def _something(self) -> Spec:
        if not self.files and self.code is None:
            raise ValueError("it names neither files nor code")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what it says, however it is written; where the code lies does not count."""
        said = self.model_dump(mode="json", exclude={"code": {"repository"}})
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def config(self) -> ModelConfig:
        """The model's configuration."""
        batching = self.batching.config() if self.batching else None
        return ModelConfig(
            backend=self.backend,
            max_batch_size=self.max_batch_size,
            inputs=_specs(self.shapes.inputs),
            outputs=_specs(self.shapes.outputs),
            dynamic_batching=batching,
            parameters=self.parameters,
        )


def _specs(shapes: dict[str, Shape]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, shape.datatype, shape.dims) for name, shape in shapes.items())


def endpoint_name(name: str, metadata: dict[str, str]) -> str:
    """The endpoint a package is deployed to: `{tenant}-{kind}` where its metadata has both, else its name.

    Raises:
        Invalid: that is no name.
    """
    tenant, kind = metadata.get("tenant", ""), metadata.get("kind", "")
    return check_name(f"{tenant}-{kind}" if tenant and kind else name)


def read_spec(file: Path) -> Spec:
    """The spec in a file.

    Raises:
        NotFound: no such file.
        Invalid: not YAML, an unknown key or a wrong value, or a file that is not in the spec's folder; names key and
            line.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise NotFound(f"the spec cannot be read: {error.strerror}", str(file)) from None
    if len(raw) > MAX_TEXT:
        raise Invalid(f"the spec has {len(raw)} bytes", str(file), f"At most {MAX_TEXT} are read.")
    spec, root = _parse(raw, str(file))
    beside = file.absolute().parent
    for at, source in enumerate(spec.files):
        if not source_path(beside, source).resolve().is_relative_to(beside.resolve()):
            line = max(_line(root, ("files", key)) for key in (source, at))
            raise Invalid(
                f"files: {source[:200]!r} is not in the spec's folder", f"{file}:{line}", "Copy it beside the spec."
            )
    return spec


def source_path(beside: Path, source: str) -> Path:
    """Where a file of a spec in the folder `beside` lies, as it is written there."""
    return beside / Path(source).expanduser()


def parse_spec(raw: bytes, where: str = "spec.yaml") -> Spec:
    """A spec from its text; raises as `read_spec`, but does not look where its files lie."""
    return _parse(raw, where)[0]


def _parse(raw: bytes, where: str) -> tuple[Spec, Any]:
    """A spec, and its text as YAML's nodes, which know their lines."""
    import yaml

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(raw, yaml.SafeLoader)):
            raise Invalid("aliases (*name) are not read", where, "Write the value out.")
        root = yaml.compose(raw, yaml.SafeLoader)
        given = yaml.safe_load(raw)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise Invalid(f"not YAML: {error.problem}", f"{where}{line}", "Correct it there.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise Invalid(f"not YAML: {str(error)[:200] or type(error).__name__}", where, "Correct it.") from None
    if not isinstance(given, dict):
        raise Invalid("the spec is no table of keys and values", where, "Begin with `name: ...`.")
    _refuse_repeated(root, where)
    try:
        return Spec.model_validate(given), root
    except ValidationError as error:
        raise _readable(error, root, where) from None
    except Invalid as error:
        raise Invalid(error.what, f"{where}, {error.where}", error.fix) from None


def _refuse_repeated(node: Any, where: str) -> None:
    """Raise where a key comes twice: YAML's reader would silently take the last."""
    nodes = [node]
    while nodes:
        at = nodes.pop()
        if at.id == "sequence":
            nodes += at.value
        elif at.id == "mapping":
            seen: set[str] = set()
            for key, value in at.value:
                if key.value in seen:
                    raise Invalid(f"the key {key.value!r} comes twice", f"{where}:{key.start_mark.line + 1}")
                seen.add(str(key.value))
                nodes.append(value)


def _readable(error: ValidationError, root: Any, where: str) -> Invalid:
    first = error.errors(include_url=False)[0]
    loc = first["loc"]
    key = ".".join(str(part) for part in loc) or "the spec"
    place = f"{where}:{_line(root, loc)}"
    if first["type"] == "extra_forbidden":
        known = _known(loc[:-1])
        close = difflib.get_close_matches(str(loc[-1]), known, n=1)
        fix = f"Is {close[0]!r} meant?" if close else f"Known there: {', '.join(known)}."
        return Invalid(f"unknown key {key}", place, fix)
    if key == "code.commit":
        return Invalid("code.commit is not a full commit id", place, "Give 40 hex digits: git rev-parse HEAD")
    return Invalid(f"{key}: {first['msg'].removeprefix('Value error, ')}", place, "Correct it there.")


def _known(loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the table at a place."""
    parts: dict[str, type[BaseModel]] = {
        "code": Code, "shapes": Shapes, "batching": Batching, "endpoint": Rollout
    }  # fmt: skip
    if not loc:
        return list(Spec.model_fields)
    kind = Shape if loc[0] == "shapes" and len(loc) > 1 else parts.get(str(loc[0]), Spec)
    return list(kind.model_fields)


def _line(node: Any, loc: tuple[int | str, ...]) -> int:
    """The line (from 1) of the value at a place, or of the innermost table that holds it."""
    line: int = node.start_mark.line
    for part in loc:
        if node.id == "mapping":
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                break
            key, node = found[-1]
            line = key.start_mark.line
        elif node.id == "sequence" and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
    return line + 1
