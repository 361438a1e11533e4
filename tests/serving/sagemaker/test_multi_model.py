"""MultiModel endpoints: archives that are published when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from octavo.serving.repository import Repository
from octavo.settings import load_settings

from ..live import Up
from ..served_models import BATCHED, CHAIN, put, times
from .conftest import ROW, TRITON, Declared, archive, model_tar, user

Upload = Callable[[str, bytes], str]


def make(declared: Declared, upload: Upload, name: str, models: dict[str, float], prefix: str = "") -> str:
    """A MultiModel endpoint of archives; returns where they lie."""
    prefix = prefix or name
    for target, factor in models.items():
        url = upload(f"{prefix}/{target}", model_tar(factor))
    where = url[: url.index(f"/{prefix}/")] + f"/{prefix}/"
    declared.model(f"{name}-{prefix}", where, Mode="MultiModel")
    declared.config(f"{name}-{prefix}", f"{name}-{prefix}")
    return where


def published(server: Up, prefix: str) -> dict[str, list[str]]:
    repository = Repository.open(str(server.workspace / "models"), load_settings(server.workspace))
    return {name: repository.versions(name) for name in repository.names() if name.startswith(prefix)}


def test_archives_are_published_on_demand(declared: Declared, upload: Upload, server: Up, runtime: Any) -> None:
    make(declared, upload, "front", {"cust-1/enc_v1.tar.gz": 2, "cust-2/enc.tar.gz": 3})
    found = declared.endpoint("front", "front-front")
    assert found["EndpointStatus"] == "InService", found
    assert published(server, "front.") == {}
    assert declared.ask("front", TargetModel="cust-1/enc_v1.tar.gz") == 2
    assert declared.ask("front", TargetModel="/cust-2/enc.tar.gz", TargetVariant="front-front") == 3
    assert published(server, "front.") == {"front.cust-1.enc_v1": ["1"], "front.cust-2.enc": ["1"]}
    upload("front/cust-3.tar.gz", model_tar(4))  # one that came later
    assert declared.ask("front", TargetModel="cust-3.tar.gz") == 4
    for wrong, message in (
        ("cust-9.tar.gz", "no such object"),
        ("../front/cust-3.tar.gz", "cannot be a model"),
        ("cust-1/../cust-3.tar.gz", "cannot be a model"),
        ("cust-1//enc_v1.tar.gz", "cannot be a model"),
        ("double", "nothing under this prefix"),  # a model of the repository is none of this endpoint's
        ("x" * 125 + ".tar.gz", "too long"),
    ):
        with pytest.raises(runtime.exceptions.ValidationError, match=message):
            declared.ask("front", TargetModel=wrong)
    with pytest.raises(runtime.exceptions.ValidationError, match="names no archive"):
        declared.ask("front")
    with pytest.raises(runtime.exceptions.ValidationError, match="It has front-front"):
        declared.ask("front", TargetModel="cust-3.tar.gz", TargetVariant="other")


def test_many_at_once_publish_once(declared: Declared, upload: Upload, server: Up) -> None:
    make(declared, upload, "crowd", {"one.tar.gz": 5})
    declared.endpoint("crowd", "crowd-crowd")
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: declared.ask("crowd", TargetModel="one.tar.gz"), range(24)))
    assert set(answers) == {5}
    assert published(server, "crowd.") == {"crowd.one": ["1"]}


def test_two_archives_of_one_name(declared: Declared, upload: Upload, runtime: Any) -> None:
    make(declared, upload, "alike", {"a/b.tar.gz": 2, "a.b.tar.gz": 3})
    declared.endpoint("alike", "alike-alike")
    assert declared.ask("alike", TargetModel="a/b.tar.gz") == 2
    with pytest.raises(runtime.exceptions.ValidationError, match=r"would have the name of 'a/b\.tar\.gz'"):
        declared.ask("alike", TargetModel="a.b.tar.gz")


def test_a_broken_archive_is_tried_again(declared: Declared, upload: Upload, runtime: Any, server: Up) -> None:
    make(declared, upload, "broken", {"good.tar.gz": 2})
    upload("broken/bad.tar.gz", archive({"/etc/model.onnx": b"x"}))
    declared.endpoint("broken", "broken-broken")
    with pytest.raises(runtime.exceptions.ValidationError, match="is refused"):
        declared.ask("broken", TargetModel="bad.tar.gz")
    assert published(server, "broken.") == {}
    upload("broken/bad.tar.gz", model_tar(9))
    while True:  # a failure is remembered for a moment
        try:
            answer = declared.ask("broken", TargetModel="bad.tar.gz")
        except runtime.exceptions.ValidationError:
            continue
        break
    assert answer == 9


def test_archives_go_with_their_endpoint(declared: Declared, upload: Upload, sagemaker: Any, server: Up) -> None:
    make(declared, upload, "brief", {"a.tar.gz": 2})
    declared.endpoint("brief", "brief-brief")
    assert declared.ask("brief", TargetModel="a.tar.gz") == 2
    sagemaker.delete_endpoint(EndpointName="brief")
    assert published(server, "brief.") == {}
    upload("brief/a.tar.gz", model_tar(6))
    declared.endpoint("brief", "brief-brief")
    assert declared.ask("brief", TargetModel="a.tar.gz") == 6


def test_an_update_to_other_archives(declared: Declared, upload: Upload, sagemaker: Any, server: Up) -> None:
    make(declared, upload, "moved", {"a.tar.gz": 2})
    make(declared, upload, "moved", {"a.tar.gz": 3}, prefix="moved-2")
    declared.endpoint("moved", "moved-moved")
    assert declared.ask("moved", TargetModel="a.tar.gz") == 2
    sagemaker.update_endpoint(EndpointName="moved", EndpointConfigName="moved-moved-2")
    declared.settled("moved")
    assert declared.ask("moved", TargetModel="a.tar.gz") == 3
    assert published(server, "moved.") == {"moved.a": ["2"]}
    declared.model("moved-single", upload("moved-single.tar.gz", model_tar(4)))
    declared.config("moved-single", "moved-single")
    sagemaker.update_endpoint(EndpointName="moved", EndpointConfigName="moved-single")
    declared.settled("moved")
    assert declared.ask("moved") == 4
    assert published(server, "moved.") == {}


def test_archives_share_an_endpoint_with_nothing(declared: Declared, upload: Upload, sagemaker: Any) -> None:
    make(declared, upload, "lonely", {"a.tar.gz": 2})
    declared.model("company", upload("company.tar.gz", model_tar(2)))
    declared.config("lonely-not", "lonely-lonely", "company")
    with pytest.raises(ClientError, match="an endpoint of its own"):
        sagemaker.create_endpoint(EndpointName="lonely", EndpointConfigName="lonely-not")
    with pytest.raises(ClientError, match="MultiModel model has no data"):
        sagemaker.create_model(ModelName="dataless", PrimaryContainer={"Image": TRITON, "Mode": "MultiModel"})


def test_who_may_not_ask_makes_nobody_publish(declared: Declared, upload: Upload, server: Up) -> None:
    make(declared, upload, "closed", {"a.tar.gz": 2})
    declared.endpoint("closed", "closed-closed")
    stranger = Declared(None, user(server, "sam", on="models/other").client("sagemaker-runtime"))
    with pytest.raises(ClientError) as caught:
        stranger.ask("closed", TargetModel="a.tar.gz")
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
    assert published(server, "closed.") == {}


def test_an_archive_moves_nobody_elses_traffic(declared: Declared, upload: Upload, server: Up, tmp_path: Path) -> None:
    for name, factor in (("double", 20), ("triple", 3)):
        put(tmp_path, name, times(factor), BATCHED)
    put(tmp_path, "chain", None, CHAIN)
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    make(declared, upload, "mixed", {"one.tar.gz": 2})
    upload("mixed/many.tar.gz", archive(files))
    put(server.workspace / "models", "mixed.many.double", times(50), BATCHED)
    put(server.workspace / "models", "mixed.by-hand", times(60), BATCHED)
    declared.endpoint("mixed", "mixed-mixed")
    answer = declared.runtime.invoke_endpoint(
        EndpointName="mixed", TargetModel="many.tar.gz", Body=ROW, ContentType="application/json"
    )
    assert b"60.0" in answer["Body"].read()
    assert declared.ask("mixed.many.double") == 50
    assert declared.ask("mixed", TargetModel="by-hand.tar.gz") == 60, "what is there already is asked"
    declared.sagemaker.delete_endpoint(EndpointName="mixed")
    assert published(server, "mixed.") == {"mixed.by-hand": ["1"], "mixed.many.double": ["1"]}
