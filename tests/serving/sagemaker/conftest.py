"""A server whose models come from moto's S3 and a folder, clients of boto3's for it, and archives to declare."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from ...conftest import S3Server
from ..live import Up, octavo, octavo_up
from ..served_models import publish_tiny_models, times

TRITON = "785573368785.dkr.ecr.us-east-1.amazonaws.com/sagemaker-tritonserver:23.08-py3"
REGION = "eu-west-3"
ROW = json.dumps({"instances": [[1, 2, 3, 4]]})
QUICK = {"Delay": 1, "MaxAttempts": 60}


def archive(files: dict[str, bytes]) -> bytes:
    """A `model.tar.gz`."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return packed.getvalue()


def model_tar(factor: float) -> bytes:
    """A `model.tar.gz` of a model that multiplies."""
    return archive({"model.onnx": times(factor)})


@dataclass(frozen=True)
class Aws:
    """A server, and what one of its users signs with."""

    url: str
    access_key: str
    secret: str

    def client(self, service: str, **other: Any) -> Any:
        """A client of boto3's."""
        given = {"aws_access_key_id": self.access_key, "aws_secret_access_key": self.secret} | other
        quick = Config(retries={"total_max_attempts": 1}, proxies={})
        return boto3.client(service, endpoint_url=self.url, region_name=REGION, config=quick, **given)


def environment(s3: S3Server, sources: Path) -> dict[str, str]:
    """Settings of a server that reaches S3 and publishes from a folder."""
    return {
        "OCTAVO_STORAGE__S3_ENDPOINT": s3.endpoint,
        "OCTAVO_STORAGE__S3_ACCESS_KEY": "test",
        "OCTAVO_STORAGE__S3_SECRET_KEY": "test-secret",
        "OCTAVO_SERVING__MODEL_SOURCES": str(sources),
        "OCTAVO_SERVING__WATCH_SECONDS": "0.2",
    }


def user(up: Up, name: str, role: str = "", on: str = "") -> Aws:
    """A new user of a server, with a role on everything or an editor of what `on` names, and what they sign with."""
    workspace = ("--workspace", str(up.workspace), "--json")
    octavo("users", "add", name, *(("--role", role) if role else ()), *workspace)
    if on:
        octavo("users", "grant", name, "editor", "--on", on, *workspace)
    key = json.loads(octavo("users", "key-add", name, *workspace).stdout)["aws"]
    return Aws(up.url, key["access_key_id"], key["secret_access_key"])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that models may be published from."""
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server, sources: Path) -> Iterator[Up]:
    """`octavo up` with the tiny models."""
    workspace = tmp_path_factory.mktemp("sagemaker") / "workspace"
    publish_tiny_models(workspace / "models")
    with octavo_up(workspace, **environment(s3_server, sources)) as up:
        yield up


@pytest.fixture(scope="module")
def ann(server: Up) -> Aws:
    """An editor of everything."""
    return user(server, "ann", "editor")


@pytest.fixture(scope="module")
def sagemaker(ann: Aws) -> Any:
    return ann.client("sagemaker")


@pytest.fixture(scope="module")
def runtime(ann: Aws) -> Any:
    return ann.client("sagemaker-runtime")


@pytest.fixture(scope="module")
def autoscaling(ann: Aws) -> Any:
    return ann.client("application-autoscaling")


@pytest.fixture(scope="module")
def upload(s3_server: S3Server) -> Callable[[str, bytes], str]:
    """Put something into a bucket; returns its URL."""
    bucket, client = s3_server.bucket(), s3_server.client()

    def put(key: str, content: bytes) -> str:
        client.put_object(Bucket=bucket, Key=key, Body=content)
        return f"s3://{bucket}/{key}"

    return put


@dataclass(frozen=True)
class Declared:
    """Makes models and endpoints in one call, and asks them."""

    sagemaker: Any
    runtime: Any

    def model(self, name: str, url: str, **more: Any) -> None:
        """A model of Triton's image."""
        container = {"Image": TRITON, "ModelDataUrl": url} | more
        self.sagemaker.create_model(
            ModelName=name, PrimaryContainer=container, ExecutionRoleArn="arn:aws:iam::1:role/x"
        )

    def config(self, name: str, *models: str, shadows: tuple[str, ...] = (), **variant: Any) -> None:
        """A configuration with a variant of each model, named by it."""

        def variants(names: tuple[str, ...]) -> list[dict[str, Any]]:
            return [{"VariantName": each, "ModelName": each, "InitialInstanceCount": 1} | variant for each in names]

        more = {"ShadowProductionVariants": variants(shadows)} if shadows else {}
        self.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants(models), **more)

    def endpoint(self, name: str, config: str) -> dict[str, Any]:
        """An endpoint in service, or failed; as it is described."""
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config)
        return self.settled(name)

    def settled(self, name: str) -> dict[str, Any]:
        """An endpoint once nothing is done about it."""
        while True:
            found: dict[str, Any] = self.sagemaker.describe_endpoint(EndpointName=name)
            if found["EndpointStatus"] not in ("Creating", "Updating"):
                return found

    def ask(self, endpoint: str, **more: Any) -> float:
        """What the model of an endpoint multiplies by."""
        answer = self.runtime.invoke_endpoint(EndpointName=endpoint, Body=ROW, ContentType="application/json", **more)
        return float(json.loads(answer["Body"].read())["predictions"][0][0])


@pytest.fixture(scope="module")
def declared(sagemaker: Any, runtime: Any) -> Declared:
    return Declared(sagemaker, runtime)
