"""`spec.yaml`: every slip is named with its place and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.errors import Invalid
from octavo.serving.packaging.spec import BACKENDS, endpoint_name, parse_spec, read_spec
from octavo.serving.service import Serving
from octavo.settings import load_settings

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
        (
            GOOD.replace("onnxruntime", "onnxrt"),
            r"'onnxrt'; there are onnxruntime, python, pytorch, tenant \(spec.yaml:3\)",
        ),
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


async def test_the_backends_are_the_servers(tmp_path: Path) -> None:
    service = await Serving.open(load_settings(tmp_path / "workspace"), keep_pinned=False)
    try:
        assert sorted(service._residency._loader._backends) == sorted(BACKENDS)
    finally:
        await service.close()


@pytest.mark.parametrize("source", ["../secret", "ABSOLUTE", "link", "linked/secret", "sub/../../secret", "linked"])
@pytest.mark.parametrize("form", ["{{own.onnx: a,\n {}: model.onnx}}", "[own.onnx,\n {}]"])
def test_files_are_in_the_folder_of_the_spec(tmp_path: Path, source: str, form: str) -> None:
    folder = tmp_path / "project"
    (folder / "sub").mkdir(parents=True)
    (folder / "own.onnx").write_text("own")
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    said = source.replace("ABSOLUTE", str(tmp_path / "secret"))
    (folder / "spec.yaml").write_text(f"name: a\nfiles: {form.format(said)}\n")
    with pytest.raises(Invalid, match=r"is not in the spec's folder \(.*spec.yaml:3\)"):
        read_spec(folder / "spec.yaml")


def test_links_within_the_folder_of_the_spec_are_followed(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "other").symlink_to(tmp_path / "project")
    (tmp_path / "project" / "real.onnx").write_text("own")
    (tmp_path / "project" / "link.onnx").symlink_to("real.onnx")
    (tmp_path / "project" / "spec.yaml").write_text(f"name: a\nfiles: [link.onnx, {tmp_path}/project/real.onnx]\n")
    assert len(read_spec(tmp_path / "other" / "spec.yaml").files) == 2
