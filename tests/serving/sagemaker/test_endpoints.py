"""Endpoints through boto3: variants, changes, failures, and who may do what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError, WaiterError

from ..live import Up, octavo
from ..served_models import BATCHED, CHAIN, put, times
from .conftest import QUICK, ROW, TRITON, Aws, Declared, archive, model_tar, user

Upload = Callable[[str, bytes], str]


def code(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    told = error.value.response
    return told["Error"]["Code"], told["ResponseMetadata"]["HTTPStatusCode"]


def test_variants_share_the_traffic(declared: Declared, sagemaker: Any, upload: Upload) -> None:
    declared.model("twice", upload("twice.tar.gz", model_tar(2)))
    declared.model("thrice", upload("thrice.tar.gz", model_tar(3)))
    declared.config("shared", "twice", "thrice", InitialVariantWeight=1)
    found = declared.endpoint("shared", "shared")
    assert found["EndpointStatus"] == "InService", found
    assert {declared.ask("shared") for _ in range(60)} == {2, 3}
    assert declared.ask("shared", TargetVariant="thrice") == 3
    changes = [
        {"VariantName": "twice", "DesiredWeight": 0},
        {"VariantName": "thrice", "DesiredWeight": 1, "DesiredInstanceCount": 3},
    ]
    sagemaker.update_endpoint_weights_and_capacities(EndpointName="shared", DesiredWeightsAndCapacities=changes)
    variants = declared.settled("shared")["ProductionVariants"]
    assert [(each["CurrentWeight"], each["CurrentInstanceCount"]) for each in variants] == [(0, 1), (1, 3)]
    assert {declared.ask("shared") for _ in range(20)} == {3}
    declared.config("shared-again", "twice", "thrice")
    for excluded, weights in (([{"VariantPropertyType": "DesiredInstanceCount"}], [0, 1]), ([], [0, 1])):
        sagemaker.update_endpoint(
            EndpointName="shared",
            EndpointConfigName="shared-again",
            RetainAllVariantProperties=True,
            ExcludeRetainedVariantProperties=excluded,
        )
        variants = declared.settled("shared")["ProductionVariants"]
        assert [each["DesiredWeight"] for each in variants] == weights
        assert [each["DesiredInstanceCount"] for each in variants] == [1, 1]
    with pytest.raises(ClientError, match="no variant 'none'"):
        sagemaker.update_endpoint_weights_and_capacities(
            EndpointName="shared", DesiredWeightsAndCapacities=[{"VariantName": "none", "DesiredWeight": 1}]
        )


def test_a_shadow_answers_nobody(declared: Declared, upload: Upload, server: Up) -> None:
    declared.model("lit", upload("lit.tar.gz", model_tar(4)))
    declared.model("dim", upload("dim.tar.gz", model_tar(5)))
    declared.config("shadowed", "lit", shadows=("dim",), InitialVariantWeight=1)
    found = declared.endpoint("shadowed", "shadowed")
    assert [each["VariantName"] for each in found["ShadowProductionVariants"]] == ["dim"]
    assert {declared.ask("shadowed") for _ in range(20)} == {4}
    with httpx.Client(headers={"authorization": f"Bearer {server.token}"}, trust_env=False) as client:
        variants = client.get(f"{server.url}/api/serving/endpoints/shadowed").json()["variants"]
    assert [(each["name"], each["shadow"], each["weight"]) for each in variants] == [
        ("lit", False, 1),
        ("dim", True, 1),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such object"),
        (b"not an archive", "not a whole .tar.gz or .tar: truncated header (s3://"),
        (archive({"../model.onnx": b"x"}), "is refused"),
        (archive({"readme.txt": b"x"}), "no model in it"),
        (archive({"model.onnx": b"no model"}), "no-"),
    ],
    ids=["missing", "no archive", "traversal", "empty", "does not load"],
)
def test_what_cannot_be_served_fails_and_says_why(
    declared: Declared, sagemaker: Any, upload: Upload, content: bytes | None, reason: str, request: Any
) -> None:
    name = f"no-{request.node.callspec.id.replace(' ', '-')}"
    url = upload(f"{name}.tar.gz", content or b"")
    declared.model(name, url if content else f"{url}.tar.gz")
    declared.config(name, name)
    found = declared.endpoint(name, name)
    assert found["EndpointStatus"] == "Failed"
    assert reason in found["FailureReason"]
    with pytest.raises(WaiterError):
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=QUICK)
    declared.model(f"{name}-mended", upload(f"{name}-mended.tar.gz", model_tar(6)))
    declared.config(f"{name}-mended", f"{name}-mended")
    sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=f"{name}-mended")
    assert declared.settled(name)["EndpointStatus"] == "InService"
    assert declared.ask(name) == 6


def test_an_update_that_fails_leaves_what_was_served(
    declared: Declared, sagemaker: Any, upload: Upload, server: Up
) -> None:
    declared.model("steady", upload("steady.tar.gz", model_tar(2)))
    declared.model("shaky", upload("shaky.tar.gz", archive({"model.onnx": b"no model"})))
    declared.config("steady", "steady")
    declared.config("shaky", "shaky")
    assert declared.endpoint("steady", "steady")["EndpointStatus"] == "InService"
    sagemaker.update_endpoint(EndpointName="steady", EndpointConfigName="shaky")
    found = declared.settled("steady")
    assert (found["EndpointStatus"], found["EndpointConfigName"]) == ("InService", "steady")
    assert "shaky" in found["FailureReason"]
    assert declared.ask("steady") == 2
    assert labels(server, "shaky") == {}
    assert labels(server, "steady") == {"sagemaker.steady.1": "1"}


def labels(server: Up, model: str) -> dict[str, str]:
    from octavo.serving.repository import Repository
    from octavo.settings import load_settings

    return Repository.open(str(server.workspace / "models"), load_settings(server.workspace)).labels(model)


def test_a_model_made_again_is_another_version(declared: Declared, sagemaker: Any, upload: Upload, server: Up) -> None:
    declared.model("again", upload("again.tar.gz", model_tar(2)))
    declared.config("again", "again")
    declared.endpoint("again", "again")
    upload("again.tar.gz", model_tar(7))
    declared.config("again-2", "again")
    sagemaker.update_endpoint(EndpointName="again", EndpointConfigName="again-2")
    declared.settled("again")
    assert declared.ask("again") == 7
    assert labels(server, "again") == {"default": "1", "sagemaker.again.2": "2"}
    sagemaker.delete_endpoint(EndpointName="again")
    assert labels(server, "again") == {"default": "1"}


def test_an_ensemble_in_an_archive(declared: Declared, upload: Upload, tmp_path: Path, runtime: Any) -> None:
    put(tmp_path, "double", times(20), BATCHED)
    put(tmp_path, "triple", times(3), BATCHED)
    put(tmp_path, "chain", None, CHAIN)
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    more = {"Environment": {"SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "chain"}}
    declared.model("answers", upload("chain.tar.gz", archive(files)), **more)
    declared.config("answers", "answers")
    assert declared.endpoint("answers", "answers")["EndpointStatus"] == "InService"
    answer = runtime.invoke_endpoint(EndpointName="answers", Body=ROW, ContentType="application/json")
    assert b"60.0" in answer["Body"].read()
    assert declared.ask("double") == 2, "the archive's own `double` is another model"


def test_a_model_that_is_in_the_repository(declared: Declared, sagemaker: Any) -> None:
    container = {"Image": "763104351884.dkr.ecr.us-west-2.amazonaws.com/djl-inference:0.29.0-lmi11"}
    container["Environment"] = {"HF_MODEL_ID": "somebody/triple"}  # type: ignore[assignment]
    sagemaker.create_model(ModelName="by-id", PrimaryContainer=container)
    declared.config("by-id", "by-id")
    assert declared.endpoint("by-id", "by-id")["EndpointStatus"] == "InService"
    assert declared.ask("by-id") == 3
    with pytest.raises(ClientError, match="names no model of the repository"):
        sagemaker.create_model(ModelName="no-id", PrimaryContainer=container | {"Environment": {"HF_MODEL_ID": "a/b"}})


def test_a_file_below_the_sources(declared: Declared, sources: Path, tmp_path: Path) -> None:
    (sources / "eight.tar.gz").write_bytes(model_tar(8))
    (tmp_path / "outside.tar.gz").write_bytes(model_tar(8))
    declared.model("eight", f"file://{sources / 'eight.tar.gz'}")
    declared.config("eight", "eight")
    declared.endpoint("eight", "eight")
    assert declared.ask("eight") == 8
    for wrong in (tmp_path / "outside.tar.gz", sources / ".." / "x"):
        with pytest.raises(ClientError):
            declared.model("outside", str(wrong))


def test_what_is_declared_wrongly(declared: Declared, sagemaker: Any, upload: Upload) -> None:
    url = upload("fine.tar.gz", model_tar(2))
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("not understood.*Triton.*LMI/DJL", {"Image": "1.dkr.ecr.us-east-1.amazonaws.com/xgboost:1"}),
        ("no models come from", {"ModelDataUrl": "https://example.org/model.tar.gz"}),
        ("names no bucket", {"ModelDataUrl": "s3:///model.tar.gz"}),
        ("model packages", {"ModelPackageName": "arn:aws:sagemaker:us-east-1:1:model-package/x"}),
    ]
    for message, container in wrong:
        with pytest.raises(ClientError, match=message) as caught:
            declared.model("wrong", url, **container)
        assert code(caught) in (("ValidationException", 400), ("AccessDeniedException", 403))
    with pytest.raises(ClientError, match="2 containers"):
        sagemaker.create_model(ModelName="wrong", Containers=[{"Image": TRITON, "ModelDataUrl": url}] * 2)
    declared.model("fine", url)
    with pytest.raises(ClientError, match='Cannot create already existing model "fine"') as twice:
        declared.model("fine", url)
    assert code(twice) == ("ValidationException", 400)
    for name in ("a_b", "x" * 64, "-a", "a-"):
        with pytest.raises(ClientError, match="is not a name"):
            declared.model(name, url)
    capture = {"EnableCapture": True, "InitialSamplingPercentage": 1, "DestinationS3Uri": "s3://x/y"}
    not_done: list[tuple[str, dict[str, Any]]] = [
        ("no data is captured", {"DataCaptureConfig": capture | {"CaptureOptions": [{"CaptureMode": "Input"}]}}),
        ("asynchronous", {"AsyncInferenceConfig": {"OutputConfig": {}}}),
    ]
    variants = [{"VariantName": "a", "ModelName": "fine", "InitialInstanceCount": 1}]
    for message, more in not_done:
        with pytest.raises(ClientError, match=message):
            sagemaker.create_endpoint_config(EndpointConfigName="wrong", ProductionVariants=variants, **more)
    with pytest.raises(ClientError, match='Could not find model "nothing"'):
        declared.config("wrong", "nothing")
    with pytest.raises(ClientError, match="two variants have one name"):
        declared.config("wrong", "fine", "fine")
    with pytest.raises(ClientError, match="InitialInstanceCount"):
        declared.config("wrong", "fine", InitialInstanceCount=10**6)
    with pytest.raises(ClientError, match='Could not find endpoint configuration "nothing"'):
        sagemaker.create_endpoint(EndpointName="wrong", EndpointConfigName="nothing")


def test_what_is_not_there(sagemaker: Any) -> None:
    for ask in (
        lambda: sagemaker.describe_model(ModelName="nothing"),
        lambda: sagemaker.delete_model(ModelName="nothing"),
        lambda: sagemaker.describe_endpoint_config(EndpointConfigName="nothing"),
        lambda: sagemaker.delete_endpoint_config(EndpointConfigName="nothing"),
        lambda: sagemaker.describe_endpoint(EndpointName="nothing"),
        lambda: sagemaker.delete_endpoint(EndpointName="nothing"),
    ):
        with pytest.raises(ClientError, match="Could not find") as caught:
            ask()
        assert code(caught) == ("ValidationException", 400)
    with pytest.raises(ClientError, match=r"'SageMaker\.ListTrainingJobs' is not known") as unknown:
        sagemaker.list_training_jobs()
    assert code(unknown) == ("UnknownOperationException", 400)


def test_descriptions_lists_and_tags(declared: Declared, sagemaker: Any, upload: Upload) -> None:
    url = upload("listed.tar.gz", model_tar(2))
    names = [f"listed-{number}" for number in range(5)]
    for name in names:
        declared.model(name, url, Environment={"KEY": name})
        declared.config(name, name, InstanceType="ml.c5.large")
    found = sagemaker.describe_model(ModelName="listed-1")
    assert found["PrimaryContainer"] == {"Image": TRITON, "ModelDataUrl": url, "Environment": {"KEY": "listed-1"}}
    assert found["ExecutionRoleArn"] == "arn:aws:iam::1:role/x"
    assert found["CreationTime"].year > 2000
    config = sagemaker.describe_endpoint_config(EndpointConfigName="listed-1")
    assert config["ProductionVariants"][0]["InstanceType"] == "ml.c5.large"
    assert config["ProductionVariants"][0]["InitialVariantWeight"] == 1.0
    for lister, key, name in (
        ("list_models", "Models", "ModelName"),
        ("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"),
    ):
        pages = list(sagemaker.get_paginator(lister).paginate(NameContains="listed", PaginationConfig={"PageSize": 2}))
        assert [len(page[key]) for page in pages] == [2, 2, 1]
        assert [each[name] for page in pages for each in page[key]] == names[::-1]
        ascending = getattr(sagemaker, lister)(SortBy="Name", SortOrder="Ascending", NameContains="listed")[key]
        assert [each[name] for each in ascending] == names
    created = found["CreationTime"]
    assert not sagemaker.list_models(CreationTimeBefore=created, NameContains="listed-1")["Models"]
    with pytest.raises(ClientError, match="NextToken"):
        sagemaker.list_models(NextToken="nonsense")
    declared.endpoint("listed", "listed-1")
    for status, there in (("InService", True), ("Failed", False)):
        listed = sagemaker.list_endpoints(StatusEquals=status, NameContains="listed")["Endpoints"]
        assert bool(listed) == there
    arn = sagemaker.describe_endpoint(EndpointName="listed")["EndpointArn"]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["a"])
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "b", "Value": "2"}]
    with pytest.raises(ClientError, match="not the ARN"):
        sagemaker.list_tags(ResourceArn="arn:aws:s3:::bucket")
    with pytest.raises(ClientError, match="Could not find"):
        sagemaker.list_tags(ResourceArn=arn + "-not")


def test_an_endpoint_that_was_declared_another_way(
    declared: Declared, sagemaker: Any, upload: Upload, server: Up
) -> None:
    with httpx.Client(headers={"authorization": f"Bearer {server.token}"}, trust_env=False) as client:
        body = {"variants": [{"name": "a", "model": "double"}]}
        client.put(f"{server.url}/api/serving/endpoints/ours", json=body).raise_for_status()
    declared.model("theirs", upload("theirs.tar.gz", model_tar(2)))
    declared.config("theirs", "theirs")
    with pytest.raises(ClientError, match="already existing endpoint"):
        sagemaker.create_endpoint(EndpointName="ours", EndpointConfigName="theirs")
    sagemaker.create_endpoint(EndpointName="theirs", EndpointConfigName="theirs")
    declared.settled("theirs")
    with pytest.raises(ClientError, match="already existing endpoint"):
        sagemaker.create_endpoint(EndpointName="theirs", EndpointConfigName="theirs")


def test_who_may_do_what(server: Up, declared: Declared, upload: Upload) -> None:
    declared.model("open", upload("open.tar.gz", model_tar(2)))
    declared.config("open", "open")
    viewer = user(server, "vera", "viewer").client("sagemaker")
    assert viewer.describe_model(ModelName="open")["ModelName"] == "open"
    refused: list[Callable[[], Any]] = [
        lambda: viewer.delete_model(ModelName="open"),
        lambda: viewer.create_endpoint(EndpointName="open", EndpointConfigName="open"),
        lambda: viewer.delete_endpoint_config(EndpointConfigName="open"),
    ]
    only = user(server, "tom", on="models/tom-*")
    tom = only.client("sagemaker")
    assert tom.list_models()["Models"] == []
    container = {"Image": TRITON, "ModelDataUrl": upload("tom.tar.gz", model_tar(2))}
    tom.create_model(ModelName="tom-a", PrimaryContainer=container)
    variants = [{"VariantName": "a", "ModelName": "open", "InitialInstanceCount": 1}]
    refused += [
        lambda: tom.describe_model(ModelName="open"),
        lambda: tom.create_model(ModelName="ann-a", PrimaryContainer=container),
        lambda: tom.create_endpoint_config(EndpointConfigName="tom-c", ProductionVariants=variants),
        lambda: tom.create_endpoint(EndpointName="tom-e", EndpointConfigName="open"),
    ]
    for ask in refused:
        with pytest.raises(ClientError) as caught:
            ask()
        assert code(caught) == ("AccessDeniedException", 403)
    with pytest.raises(ClientError) as wrong:
        Aws(only.url, only.access_key, "wrong").client("sagemaker").list_models()
    assert code(wrong) == ("SignatureDoesNotMatch", 403)


def test_requests_of_no_client(server: Up) -> None:
    with httpx.Client(headers={"authorization": f"Bearer {server.token}"}, trust_env=False) as client:

        def send(body: bytes, target: str = "SageMaker.ListModels") -> tuple[int, str]:
            answer = client.post(server.url, content=body, headers={"x-amz-target": target} if target else {})
            return answer.status_code, answer.json()["__type"]

        assert client.post(server.url, content=b"", headers={"x-amz-target": "SageMaker.ListModels"}).is_success
        assert send(b"{}", "") == (400, "UnknownOperationException")
        assert send(b"{}", "DynamoDB_20120810.ListTables") == (400, "UnknownOperationException")
        assert send(b"{") == (400, "ValidationException")
        assert send(b'{"MaxResults": "2"}') == (400, "ValidationException")
        assert send(b'{"MaxResults": 0}') == (400, "ValidationException")
        assert send(b'{"a":' * 200 + b"1" + b"}" * 200) == (400, "ValidationException")
        assert send(b" " * 2**19)[0] == 413
        page = client.get(server.url, headers={"accept": "text/html"}, follow_redirects=True)
        assert page.headers["content-type"].startswith("text/html")
    nobody = httpx.post(server.url, headers={"x-amz-target": "SageMaker.ListModels"}, trust_env=False)
    assert (nobody.status_code, nobody.json()["__type"]) == (403, "MissingAuthenticationTokenException")


def test_octavos_own_commands_see_it(server: Up, declared: Declared, upload: Upload) -> None:
    declared.model("seen", upload("seen.tar.gz", model_tar(2)))
    declared.config("seen", "seen")
    declared.endpoint("seen", "seen")
    shown = octavo("endpoints", "show", "seen", "--workspace", str(server.workspace), "--json")
    assert '"model": "seen"' in shown.stdout
