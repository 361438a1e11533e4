"""Images, names, sources and pages: what comes from outside is understood or refused."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from octavo.errors import Forbidden, Invalid, OctavoError
from octavo.serving.protocols.aws_json import WrongToken
from octavo.serving.protocols.aws_lists import ListForm, PageForm, Row, listed, paged
from octavo.serving.repository import Repository
from octavo.serving.sagemaker.images import FAMILIES, family_of
from octavo.serving.sagemaker.names import arn_of, check_name, parse_arn
from octavo.serving.sagemaker.publishing import publish
from octavo.serving.sagemaker.records import Container, Plan, ServedVariant
from octavo.serving.sagemaker.sources import below, check_source
from octavo.settings import load_settings

from .conftest import archive

ECR = "785573368785.dkr.ecr.us-east-1.amazonaws.com"


@pytest.mark.parametrize(
    ("image", "title"),
    [
        (f"{ECR}/sagemaker-tritonserver:23.08-py3", "Triton"),
        (f"{ECR}/sagemaker-tritonserver@sha256:{'0' * 64}", "Triton"),
        ("nvcr.io/nvidia/tritonserver:24.01-py3", "Triton"),
        (f"{ECR}/djl-inference:0.29.0-lmi11.0.0-cu124", "LMI/DJL"),
        (f"{ECR}/pytorch-inference:2.3-cpu-py311", "PyTorch"),
        ("registry:5000/onnxruntime", "ONNX Runtime"),
        (f"{ECR}/huggingface-pytorch-inference:2.1-transformers4.37", "Hugging Face"),
        ("octavo", "octavo"),
    ],
)
def test_images(image: str, title: str) -> None:
    assert family_of(image).title == title


@given(st.text(max_size=60))
@example("")
@example("tritonserver/evil")
@example("a:tritonserver")
def test_any_image_is_understood_or_refused(image: str) -> None:
    with suppress(Invalid):
        assert family_of(image) in FAMILIES


@given(
    st.from_regex(r"\A[A-Za-z0-9](-?[A-Za-z0-9]){0,20}\Z"), st.sampled_from(["model", "endpoint-config", "endpoint"])
)
def test_arns(name: str, kind: Any) -> None:
    assert parse_arn(arn_of(kind, name, "eu-west-1")) == (kind, name)


@given(st.text(max_size=70))
@example("a" * 64)
@example("a\n")
@example("ß")
def test_a_name_is_plain(name: str) -> None:
    try:
        assert check_name(name, "x").replace("-", "").isalnum()
        assert name.isascii()
    except Invalid:
        return


@given(st.text(max_size=60))
@example("../outside")
@example("/etc/passwd")
@example("inside/../../outside")
@example("a\0b")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_comes_from_outside_the_sources(tmp_path: Path, target: str) -> None:
    root = tmp_path / "in"
    for folder in (root / "inside", tmp_path / "outside"):
        folder.mkdir(parents=True, exist_ok=True)
    known = load_settings(tmp_path, serving={"model_sources": str(root)})
    for look in (lambda: below(str(root), target, known), lambda: check_source(f"{root}/{target}", known)):
        try:
            found = Path(look())
        except OctavoError:
            continue
        assert found.is_relative_to(root)


def test_where_models_may_come_from(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path)
    plain = load_settings(tmp_path, serving={"repository": "s3://house/models"}, storage={"objects": "s3://house/o"})
    assert check_source("s3://data/x.tar.gz", plain) == "s3://data/x.tar.gz"
    assert check_source("s3://house/models-of-others/x.tar.gz", plain)
    for own in ("s3://house/models/acme/1", "s3://house/models", "s3://house", "s3://house/", "s3://house/o/x"):
        with pytest.raises(Forbidden, match="its own objects"):
            check_source(own, plain)
    for wrong in ("s3://data/../x", "s3://data//x", "s3://", "https://x/y", "", "file://", "s3://data/a\n"):
        with pytest.raises(Invalid):
            check_source(wrong, plain)
    with pytest.raises(Forbidden, match="model_sources"):
        check_source("/etc", plain)
    few = load_settings(tmp_path, serving={"model_buckets": ["s3://data/ml"], "model_sources": str(tmp_path / "in")})
    assert check_source("s3://data/ml/x.tar.gz", few)
    for other in ("s3://data/x", "s3://data/mlx", "s3://other/ml/x"):
        with pytest.raises(Forbidden, match="model_buckets"):
            check_source(other, few)
    with pytest.raises(Forbidden, match="Put it below"):
        check_source(str(tmp_path / "in/link"), few)


ROWS = st.lists(
    st.builds(
        Row, st.text(max_size=5), st.sampled_from([1.0, 2.0, 2.5]), st.floats(0, 9), st.just({}), st.sampled_from("ab")
    ),
    unique_by=lambda row: row.name,
    max_size=25,
)


@given(ROWS, st.integers(1, 10), st.sampled_from(["Name", "CreationTime", "Status"]), st.booleans())
def test_pages_hold_every_row_once_and_in_order(rows: list[Row], most: int, by: Any, ascending: bool) -> None:
    shown = [Row(row.name, row.created, row.modified, {"row": row}, row.status) for row in rows]
    order: Any = "Ascending" if ascending else "Descending"
    found: list[Row] = []
    token = ""
    while True:
        page = listed(shown, ListForm(MaxResults=most, SortBy=by, SortOrder=order, NextToken=token), "Rows")
        assert len(page["Rows"]) <= most
        found += [each["row"] for each in page["Rows"]]
        token = page.get("NextToken", "")
        if not token:
            break
    field = {"Name": "name", "CreationTime": "created", "Status": "status"}[by]
    assert found == sorted(rows, key=lambda row: (getattr(row, field), row.name), reverse=not ascending)


@given(st.text(max_size=60))
@example("W10=")
@example("WzEsMl0=")
@example("WyJhIiwgImIiXQ==")
@example("WzEsICJiIl0=")
def test_any_token_is_a_page_or_refused(token: str) -> None:
    with suppress(WrongToken):
        paged([Row("a", 1, 1, {})], PageForm(NextToken=token), "Rows", lambda row: row.created)


@given(st.floats(0, 100), st.floats(0, 100))
def test_a_shadows_share_is_one(live: float, shadow: float) -> None:
    from octavo.serving.packaging.deployment import Release

    release, container = Release(main="m", versions={"m": "1"}), Container(image="octavo", source="s3://b/k")
    variants = tuple(
        ServedVariant(name=name, model="m", weight=weight, shadow=name == "s", container=container, release=release)
        for name, weight in (("a", live), ("s", shadow))
    )
    found = Plan(config="c", variants=variants).endpoint("e")
    assert 0 <= found.shadows[0].weight <= 1


@pytest.mark.parametrize(
    ("image", "files", "backend"),
    [
        ("tritonserver", {"model.onnx": b"x"}, "onnxruntime"),
        ("pytorch-inference", {"model.pth": b"x", "code/inference.py": b""}, "pytorch"),
        ("pytorch-inference", {"model.pt": b"x"}, "pytorch"),
        ("onnxruntime", {"model.pt": b"x"}, "name Triton's image for any"),
        ("pytorch-inference", {"config.pbtxt": b'backend: "tensorrt"', "model.plan": b"x"}, "name Triton's image"),
        ("tei", {"model.bin": b"x"}, "no backend is named"),
        ("pytorch-inference", {"model.a": b"x", "model.b": b"x"}, "Call it model.onnx"),
    ],
)
def test_what_the_image_decides(tmp_path: Path, image: str, files: dict[str, bytes], backend: str) -> None:
    (tmp_path / "m.tar.gz").write_bytes(archive(files))
    known = load_settings(tmp_path, serving={"model_sources": str(tmp_path)})
    repository = Repository.open(str(tmp_path / "models"), known)
    container = Container(image=image, source=str(tmp_path / "m.tar.gz"))
    if " " not in backend:
        assert publish(repository, container, "m", known).versions == {"m": "1"}
        assert repository.config("m").backend == backend
        return
    with pytest.raises(Invalid, match=backend):
        publish(repository, container, "m", known)
    assert repository.names() == []
