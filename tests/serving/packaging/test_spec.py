"""`spec.yaml`: every slip is named with its place and what would be right."""

from __future__ import annotations

import pytest

from octavo.errors import Invalid
from octavo.serving.packaging.spec import endpoint_name, parse_spec

GOOD = """\
name: acme
metadata: {tenant: acme, kind: intents}
backend: onnxruntime
files:
  exported/model.onnx: model.onnx
shapes:
  inputs:
    x: {datatype: FP32, dims: [4]}
max_batch_size: 8
endpoint: {share: 0.1}
"""


def test_a_good_one() -> None:
    spec = parse_spec(GOOD.encode())
    config = spec.config()
    assert spec.files == {"exported/model.onnx": "model.onnx"}
    assert (config.max_batch_size, config.inputs[0].name, config.inputs[0].shape) == (8, "x", (4,))
    assert endpoint_name(spec.name, spec.metadata) == "acme-intents"
    assert endpoint_name("other", {"tenant": "acme"}) == "other"
    assert parse_spec(b"name: a\nfiles: [b/model.onnx]").files == {"b/model.onnx": "model.onnx"}


def test_the_digest_is_of_what_it_says() -> None:
    assert (
        parse_spec(GOOD.encode()).digest
        == parse_spec(GOOD.replace("[4]", "[ 4 ]").replace("8\n", "8  # rows\n").encode()).digest
    )
    assert parse_spec(GOOD.encode()).digest != parse_spec(GOOD.replace("[4]", "[5]").encode()).digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "max_batchsize: 3\n", r"unknown key max_batchsize \(spec.yaml:11\). Is 'max_batch_size' meant"),
        (GOOD.replace("dims", "dim"), r"unknown key shapes.inputs.x.dim \(spec.yaml:8\). Is 'dims' meant|dims: Field"),
        (GOOD.replace("FP32", "FLOAT"), "spec.yaml:8"),
        (GOOD.replace("[4]", "[0]"), "each axis"),
        (GOOD.replace("share: 0.1", "share: 7"), "endpoint.share"),
        (GOOD.replace("share: 0.1", "share: 0.1, shadow: 1"), "not both"),
        (GOOD.replace("name: acme", "name: ../acme"), "model name"),
        (GOOD.replace(": model.onnx", ": ../model.onnx"), "key"),
        (GOOD + "name: twice\n", r"'name' comes twice \(spec.yaml:11\)"),
        (GOOD + "code: {repository: x, commit: main}\n", "full commit id"),
        ("name: a", "neither files nor code"),
        ("- a\n- b\n", "no table"),
        ("", "no table"),
        ("a: [", r"not YAML.*spec.yaml:"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("name: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("a: \x00", "not YAML"),
    ],
)
def test_slips(text: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        parse_spec(text.encode())
