from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import Invalid, NotFound
from octavo.serving.model_config import (
    DynamicBatching,
    EnsembleStep,
    ModelConfig,
    QueuePolicy,
    VersionPolicy,
    check_label,
    check_name,
    complete,
    is_version,
)
from octavo.serving.pbtxt import from_message, parse, render, to_json, to_message
from octavo.serving.protocols import model_config_pb2
from octavo.serving.tensors import NUMPY_OF, TensorSpec

FULL = """
name: "resnet"  # a comment
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  { name: "image" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 224, 224 ] },
  { name: "note" data_type: TYPE_STRING dims: [ 1 ] reshape { shape: [ ] } optional: true }
]
output { name: "prob" data_type: TYPE_FP32 dims: 1000 label_filename: "labels.txt" }
version_policy: { latest { num_versions: 2 } }
instance_group [ { count: 2 kind: KIND_CPU }, { count: 1 kind: KIND_GPU gpus: [ 0 ] } ]
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 100
  priority_levels: 2
  default_priority_level: 1
  default_queue_policy { max_queue_size: 16 timeout_action: DELAY default_timeout_microseconds: 5000 }
  priority_queue_policy { key: 2 value { max_queue_size: 4 } }
}
parameters { key: "task" value { string_value: "vision" } }
optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }
model_warmup {
  name: "zeros" batch_size: 1
  inputs { key: "image" value { data_type: TYPE_FP32 dims: 3 zero_data: true } }
}
"""


def test_a_full_text_of_triton_is_read() -> None:
    config = parse(FULL)
    assert config.name == "resnet"
    assert config.max_batch_size == 8
    assert config.inputs == (TensorSpec("image", "FP32", (3, 224, 224)), TensorSpec("note", "BYTES", (1,), True))
    assert config.outputs == (TensorSpec("prob", "FP32", (1000,)),)
    assert config.input_reshape == {"note": ()}
    assert config.version_policy == VersionPolicy("latest", 2)
    assert config.instance_count == 3
    assert config.parameters == {"task": "vision"}
    batching = config.dynamic_batching
    assert batching is not None
    assert batching.preferred_batch_size == (4, 8)
    assert batching.max_queue_delay_us == 100
    assert batching.default_queue_policy == QueuePolicy("DELAY", 5000, False, 16)
    assert batching.priority_queue_policy == {2: QueuePolicy(max_queue_size=4)}
    assert config.ignored == (
        "dynamic_batching.priority_queue_policy.max_queue_size",
        "input.format",
        "instance_group.gpus",
        "instance_group.kind",
        "model_warmup",
        "optimization",
        "output.label_filename",
    )


def test_an_ensemble_is_read() -> None:
    config = parse(
        """
        platform: "ensemble"
        ensemble_scheduling { step [
          { model_name: "tokenize" model_version: -1
            input_map { key: "T" value: "text" } output_map { key: "I" value: "ids" } },
          { model_name: "encode" model_version: 3
            input_map { key: "ids" value: "ids" } output_map { key: "v" value: "vector" } }
        ] }
        """
    )
    assert config.ensemble == (
        EnsembleStep("tokenize", "", {"T": "text"}, {"I": "ids"}),
        EnsembleStep("encode", "3", {"ids": "ids"}, {"v": "vector"}),
    )
    assert complete(config, "pipe", []).backend == "ensemble"


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ('name: "x"\nfoo: 3', "'foo'", 2),
        ('input [\n  { name: "a" datatype: TYPE_FP32 } ]', "'datatype'", 2),
        ("instance_group {\n\n  secondary_devices { kin: KIND_NVDLA } }", "'kin'", 3),
        ("\n\nmax_batch_size: 'x'", "integer", 3),
        ("input [ {", 'Expected "}"', 1),
        ("max_batch_size: 99999999999", "out of range", 1),
        ('name: "a"\nname: "b"', "multiple", 2),
        ("[type.googleapis.com/evil] { }", "not", 1),
        ("input { name: 'a' data_type: TYPE_FP99 }", "TYPE_FP99", 1),
    ],
)
def test_a_wrong_text_names_field_and_line(text: str, what: str, line: int) -> None:
    with pytest.raises(Invalid) as caught:
        parse(text, "m/config.pbtxt")
    assert what.lower() in caught.value.what.lower()
    assert caught.value.where == f"m/config.pbtxt:{line}"


def test_a_misspelt_field_gets_a_suggestion() -> None:
    with pytest.raises(Invalid) as caught:
        parse("max_batchsize: 3")
    assert "max_batch_size" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("sequence_batching { direct { } }", "sequence_batching"),
        ("batch_input { kind: BATCH_ELEMENT_COUNT target_name: 'x' data_type: TYPE_FP32 }", "batch_input"),
        ("model_transaction_policy { decoupled: true }", "decoupled"),
        ("max_batch_size: -1", "max_batch_size"),
        ("default_model_filename: '../../etc/passwd'", "default_model_filename"),
        ("default_model_filename: '.hidden'", "default_model_filename"),
        ("input { name: 'a' dims: 1 }", "data_type is missing"),
        ("input { name: 'a' data_type: TYPE_BF16 dims: 1 }", "TYPE_BF16"),
        ("input { name: 'a' data_type: TYPE_FP32 }", "dims"),
        ("input { name: 'a' data_type: TYPE_FP32 dims: 0 }", "dims"),
        ("input { name: 'a' data_type: TYPE_FP32 dims: -2 }", "dims"),
        ("input { data_type: TYPE_FP32 dims: 1 }", "name"),
        ("output [ { name: 'a' data_type: TYPE_FP32 dims: 1 }, { name: 'a' data_type: TYPE_FP32 dims: 1 } ]", "name"),
        ("input { name: 'a' data_type: TYPE_FP32 dims: 4 reshape { shape: [ 3 ] } }", "reshape"),
        ("version_policy { latest { } }", "num_versions"),
        ("version_policy { specific { } }", "specific"),
        ("dynamic_batching { priority_levels: 2 }", "default_priority_level"),
        ("dynamic_batching { preferred_batch_size: 0 }", "preferred_batch_size"),
        ("dynamic_batching { priority_queue_policy { key: 3 value { } } }", "level 3"),
        ("ensemble_scheduling { step { model_version: 1 } }", "names no model"),
        ("x" * (2**20 + 1), "characters"),
    ],
)
def test_what_cannot_be_right_is_refused(text: str, what: str) -> None:
    with pytest.raises(Invalid, match=what):
        parse(text)


NAMES = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
DIMS = st.lists(st.one_of(st.just(-1), st.integers(1, 2**40)), min_size=1, max_size=4).map(tuple)
QUEUES = st.builds(
    QueuePolicy, st.sampled_from(["REJECT", "DELAY"]), st.integers(0, 2**63), st.booleans(), st.integers(0, 2**32 - 1)
)


def specs(optional: bool) -> st.SearchStrategy[tuple[TensorSpec, ...]]:
    flag = st.booleans() if optional else st.just(False)
    one = st.builds(TensorSpec, TEXTS.filter(bool), st.sampled_from(sorted(NUMPY_OF)), DIMS, flag)
    return st.lists(one, max_size=4, unique_by=lambda spec: spec.name).map(tuple)


@st.composite
def batchings(draw: st.DrawFn) -> DynamicBatching:
    levels = draw(st.integers(0, 5))
    return DynamicBatching(
        preferred_batch_size=tuple(draw(st.lists(st.integers(1, 512), max_size=3))),
        max_queue_delay_us=draw(st.integers(0, 10**9)),
        preserve_ordering=draw(st.booleans()),
        priority_levels=levels,
        default_priority_level=draw(st.integers(1, levels)) if levels else 0,
        default_queue_policy=draw(QUEUES),
        priority_queue_policy=draw(st.dictionaries(st.integers(1, levels), QUEUES)) if levels else {},
    )


STEPS = st.builds(
    EnsembleStep,
    NAMES,
    st.one_of(st.just(""), st.integers(1, 2**40).map(str)),
    st.dictionaries(TEXTS, TEXTS, max_size=3),
    st.dictionaries(TEXTS, TEXTS, max_size=3),
)
POLICIES = st.one_of(
    st.builds(VersionPolicy, st.just("latest"), st.integers(1, 100)),
    st.just(VersionPolicy("all")),
    st.builds(
        lambda v: VersionPolicy("specific", versions=tuple(v)), st.lists(st.integers(1, 2**40), min_size=1, max_size=4)
    ),
)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    ensemble = tuple(draw(st.lists(STEPS, max_size=3)))
    return ModelConfig(
        name=draw(NAMES),
        backend=draw(st.sampled_from(["", "onnxruntime", "python"])),
        platform="ensemble" if ensemble else draw(st.sampled_from(["", "onnxruntime_onnx"])),
        max_batch_size=draw(st.integers(0, 2**31 - 1)),
        inputs=draw(specs(True)),
        outputs=draw(specs(False)),
        dynamic_batching=None if ensemble else draw(st.none() | batchings()),
        version_policy=draw(POLICIES),
        ensemble=ensemble,
        instance_count=1 if ensemble else draw(st.integers(1, 64)),
        parameters=draw(st.dictionaries(TEXTS, TEXTS, max_size=3)),
        default_model_filename=draw(st.sampled_from(["", "weights.onnx"])),
    )


@given(configs())
def test_render_and_parse_are_inverse(config: ModelConfig) -> None:
    assert replace(parse(render(config)), ignored=()) == config


@given(configs())
def test_the_bytes_of_grpc_hold_the_same(config: ModelConfig) -> None:
    message = model_config_pb2.ModelConfig.FromString(to_message(config).SerializeToString())
    assert replace(from_message(message, "wire"), ignored=()) == config


@given(st.text(max_size=200))
def test_any_text_parses_or_is_invalid(text: str) -> None:
    try:
        fields = parse(text)
    except Invalid:
        return
    assert fields is not None


def test_json_is_tritons() -> None:
    config = complete(parse(FULL), "resnet", ["model.onnx"])
    found = to_json(config)
    assert found["backend"] == "onnxruntime"
    assert found["version_policy"] == {"latest": {"num_versions": 2}}
    assert found["input"][0] == {
        "name": "image",
        "data_type": "TYPE_FP32",
        "format": "FORMAT_NONE",
        "dims": [3, 224, 224],
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": False,
        "is_non_linear_format_io": False,
    }
    assert found["input"][1]["data_type"] == "TYPE_STRING"
    assert found["input"][1]["reshape"] == {"shape": []}
    assert found["dynamic_batching"]["max_queue_delay_microseconds"] == 100
    assert found["dynamic_batching"]["priority_queue_policy"]["2"]["max_queue_size"] == 4
    assert found["parameters"] == {"task": {"string_value": "vision"}}
    assert found["instance_group"][0]["kind"] == "KIND_CPU"


def test_field_numbers_are_tritons() -> None:
    """Against the descriptor that Triton's own client brings, loaded without the rest of its package."""
    client = importlib.util.find_spec("tritonclient")
    if client is None or not client.submodule_search_locations:
        pytest.skip("tritonclient is not installed")
    file = Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("tritons_model_config", file)
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    assert _fields(model_config_pb2.ModelConfig.DESCRIPTOR) == _fields(theirs.ModelConfig.DESCRIPTOR)
    assert dict(model_config_pb2.DataType.items()) == dict(theirs.DataType.items())


def _fields(descriptor: object, path: str = "", depth: int = 0) -> set[tuple[str, int, int, int]]:
    found = set()
    for field in descriptor.fields:  # type: ignore[attr-defined]
        found.add((f"{path}.{field.name}", field.number, field.type, bool(field.is_repeated)))
        if field.message_type is not None and depth < 8:
            found |= _fields(field.message_type, f"{path}.{field.name}", depth + 1)
    return found


@pytest.mark.parametrize(
    ("config", "files", "backend", "platform"),
    [
        (ModelConfig(), ["model.onnx"], "onnxruntime", "onnxruntime_onnx"),
        (ModelConfig(), ["model.py"], "python", ""),
        (ModelConfig(platform="onnxruntime_onnx"), [], "onnxruntime", "onnxruntime_onnx"),
        (ModelConfig(backend="python"), ["model.onnx"], "python", ""),
        (ModelConfig(platform="tensorrt_plan"), [], "tensorrt", "tensorrt_plan"),
    ],
)
def test_the_backend_is_derived(config: ModelConfig, files: list[str], backend: str, platform: str) -> None:
    found = complete(config, "m", files)
    assert (found.name, found.backend, found.platform) == ("m", backend, platform)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (ModelConfig(name="other"), "'other'"),
        (ModelConfig(), "no backend"),
        (ModelConfig(platform="caffe2"), "caffe2"),
    ],
)
def test_what_cannot_be_completed_is_invalid(config: ModelConfig, what: str) -> None:
    with pytest.raises(Invalid, match=what):
        complete(config, "m", ["readme.txt"])


@pytest.mark.parametrize("name", ["m", "A-b_c.9", "-x", "_", "x" * 128])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "../x", "a\\b", "a b", "é", "x" * 129, "a\n", "a\0", "a#1", "%2e%2e", "/etc"],
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(Invalid, match="not a model name"):
        check_name(name)


@given(st.text(max_size=150))
def test_a_name_is_one_plain_path_segment(text: str) -> None:
    try:
        name = check_name(text)
    except Invalid:
        return
    assert (Path("/repository") / name).resolve().parent == Path("/repository")
    assert name.isascii()


def test_versions_as_triton_counts() -> None:
    assert [is_version(text) for text in ("1", "42", "0", "01", "", "1a", "-1", "٣", "1.0", "9" * 30)] == [True] * 2 + [
        False
    ] * 8


def test_labels_are_no_numbers() -> None:
    assert check_label("stable") == "stable"
    for wrong in ("3", "a/b", ""):
        with pytest.raises(Invalid):
            check_label(wrong)


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        (VersionPolicy(), [7]),
        (VersionPolicy("latest", 2), [3, 7]),
        (VersionPolicy("latest", 9), [1, 3, 7]),
        (VersionPolicy("all"), [1, 3, 7]),
        (VersionPolicy("specific", versions=(1, 5)), [1]),
    ],
)
def test_version_policy(policy: VersionPolicy, served: list[int]) -> None:
    config = ModelConfig(name="m", version_policy=policy)
    assert config.served([7, 1, 3]) == served
    assert config.choose("", [7, 1, 3]) == served[-1]
    for number in (1, 3, 7):
        if number in served:
            assert config.choose(str(number), [7, 1, 3]) == number
        else:
            with pytest.raises(NotFound):
                config.choose(str(number), [7, 1, 3])


def test_labels_choose_and_serve() -> None:
    config = ModelConfig(name="m", labels={"old": "1", "default": "2", "gone": "9"})
    assert config.served([1, 2, 3]) == [1, 2, 3]
    assert config.choose("", [1, 2, 3]) == 2
    assert config.choose("old", [1, 2, 3]) == 1
    assert config.choose("3", [1, 2, 3]) == 3
    for wanted in ("gone", "unknown", "9", "01"):
        with pytest.raises(NotFound):
            config.choose(wanted, [1, 2, 3])


def test_no_version_at_all() -> None:
    with pytest.raises(NotFound, match="no version"):
        ModelConfig(name="m").choose("", [])
