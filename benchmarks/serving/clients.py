"""The clients people have, unmodified and behind one face: boto3, tritonclient over HTTP and gRPC, openai."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import boto3
import numpy as np
import openai
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from botocore.config import Config
from botocore.exceptions import ClientError
from tritonclient.utils import InferenceServerException

Array = np.ndarray[Any, Any]
UNKNOWN, BAD, STRANGER, BUSY = "unknown model", "bad request", "stranger", "busy"
"""Why a request is refused: no such model, nonsense, wrong credentials, a limit that passes."""


@dataclass(frozen=True)
class Doors:
    """Where a server listens and what it takes as credentials."""

    url: str
    grpc: str
    token: str
    access_key: str
    secret_key: str

    def wrong(self) -> Doors:
        """The same with credentials that nobody was given."""
        return Doors(self.url, self.grpc, "no" + self.token, self.access_key, "no" + self.secret_key)


class Client(Protocol):
    """One client; each thread has its own."""

    name: str

    def embed(self, model: str, texts: Sequence[str]) -> Array:
        """Embeddings [n, width] of texts."""

    def refusal(self, error: Exception) -> str:
        """What the client's own exception says: one of the reasons above, or empty for anything else."""

    def words(self, error: Exception) -> str:
        """The exception as its user sees it: type and code."""

    def close(self) -> None:
        """Let the connections go."""


class TensorClient(Client, Protocol):
    """A client that sends tensors too."""

    def compute(self, model: str, x: Array) -> Array:
        """`y` of a model that takes `x`, FP32 [n, width]."""


class StreamClient(TensorClient, Protocol):
    """A client that streams."""

    def stream(self, model: str, batches: Sequence[Array]) -> Iterator[Array]:
        """The `y` of each batch, in order, over one stream or one streamed answer per batch."""


class Boto3:
    """`sagemaker-runtime` of boto3, with SigV4."""

    name = "boto3"

    def __init__(self, doors: Doors) -> None:
        self._client = boto3.client(
            "sagemaker-runtime",
            endpoint_url=doors.url,
            region_name="eu-west-3",
            aws_access_key_id=doors.access_key,
            aws_secret_access_key=doors.secret_key,
            config=Config(retries={"total_max_attempts": 1}, proxies={}, read_timeout=60),
        )

    def embed(self, model: str, texts: Sequence[str]) -> Array:
        """JSON of instances."""
        return np.asarray(self._predictions(model, list(texts)), np.float32)

    def compute(self, model: str, x: Array) -> Array:
        """JSON of instances."""
        return np.asarray(self._predictions(model, x.tolist()), np.float32)

    def stream(self, model: str, batches: Sequence[Array]) -> Iterator[Array]:
        """One streamed answer per batch, put together from its event frames."""
        for batch in batches:
            answer = self._client.invoke_endpoint_with_response_stream(
                EndpointName=model, ContentType="application/json", Body=json.dumps({"instances": batch.tolist()})
            )
            body = b"".join(event["PayloadPart"]["Bytes"] for event in answer["Body"])
            yield np.asarray(json.loads(body)["predictions"], np.float32)

    def refusal(self, error: Exception) -> str:
        """By code and status; SageMaker has one code for an unknown name and for nonsense, so the message tells."""
        if not isinstance(error, ClientError):
            return ""
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
        if status == 403:
            return STRANGER
        if code == "ValidationError":
            return UNKNOWN if "there is no" in message or "no endpoint" in message else BAD
        original = error.response.get("OriginalStatusCode")  # of a ModelError: what the model itself said
        if original in (400, 413):
            return BAD
        return BUSY if status in (429, 503) or original in (429, 503, 507) else ""

    def words(self, error: Exception) -> str:
        """The exception's class (boto3 makes one per error of the service) and the HTTP status."""
        if not isinstance(error, ClientError):
            return type(error).__name__
        return f"{type(error).__name__} {error.response['Error']['Code']}"

    def close(self) -> None:
        """Close the pool."""
        self._client.close()

    def _predictions(self, model: str, instances: list[Any]) -> Any:
        answer = self._client.invoke_endpoint(
            EndpointName=model, ContentType="application/json", Body=json.dumps({"instances": instances})
        )
        return json.loads(answer["Body"].read())["predictions"]


class _Triton:
    """What both of Triton's clients have in common; `module` is the one or the other."""

    name = ""
    module: Any = None

    def __init__(self, doors: Doors) -> None:
        self._client: Any = self._open(doors)
        self._headers = {"authorization": f"Bearer {doors.token}"}

    def _open(self, doors: Doors) -> Any:
        raise NotImplementedError

    def embed(self, model: str, texts: Sequence[str]) -> Array:
        """Texts as BYTES [n, 1]."""
        given = np.array([[text.encode()] for text in texts], dtype=np.object_)
        return self._infer(model, self._input("text", given, "BYTES"), "embedding")

    def compute(self, model: str, x: Array) -> Array:
        """Binary tensors."""
        return self._infer(model, self._input("x", x, "FP32"), "y")

    def _infer(self, model: str, given: Any, output: str) -> Array:
        answer = self._client.infer(model, [given], headers=self._headers)
        return np.asarray(answer.as_numpy(output))

    def _input(self, name: str, array: Array, datatype: str) -> Any:
        given = self.module.InferInput(name, list(array.shape), datatype)
        given.set_data_from_numpy(array)
        return given

    def refusal(self, error: Exception) -> str:
        """By status: HTTP's number or gRPC's name."""
        if not isinstance(error, InferenceServerException):
            return ""
        return _REASON_OF_STATUS.get(str(error.status()).removeprefix("StatusCode."), "")

    def words(self, error: Exception) -> str:
        """The one exception class these clients have, with its status."""
        status = error.status() if isinstance(error, InferenceServerException) else ""
        return f"{type(error).__name__} {status}".strip()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


_REASON_OF_STATUS = {
    "400": BAD,
    "401": STRANGER,
    "404": UNKNOWN,
    "413": BAD,
    "429": BUSY,
    "503": BUSY,
    "507": BUSY,
    "INVALID_ARGUMENT": BAD,
    "NOT_FOUND": UNKNOWN,
    "UNAUTHENTICATED": STRANGER,
    "RESOURCE_EXHAUSTED": BUSY,
    "UNAVAILABLE": BUSY,
}


class TritonHttp(_Triton):
    """`tritonclient.http`."""

    name = "tritonclient HTTP"
    module = triton_http

    def _open(self, doors: Doors) -> Any:
        return triton_http.InferenceServerClient(doors.url.removeprefix("http://"), network_timeout=60)


class TritonGrpc(_Triton):
    """`tritonclient.grpc`."""

    name = "tritonclient gRPC"
    module = triton_grpc

    def _open(self, doors: Doors) -> Any:
        return triton_grpc.InferenceServerClient(doors.grpc)

    def stream(self, model: str, batches: Sequence[Array]) -> Iterator[Array]:
        """All batches over one bidirectional stream."""
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client.start_stream(lambda result, error: answers.put((result, error)), headers=self._headers)
        try:
            for number, batch in enumerate(batches):
                self._client.async_stream_infer(model, [self._input("x", batch, "FP32")], request_id=str(number))
            found = {}
            for _ in batches:
                result, error = answers.get(timeout=60)
                if error is not None:
                    raise error
                found[int(result.get_response().id)] = np.asarray(result.as_numpy("y"))
        finally:
            self._client.stop_stream()
        for number in range(len(batches)):
            yield found[number]


class OpenAI:
    """`openai`: embeddings, and the list of models."""

    name = "openai"

    def __init__(self, doors: Doors) -> None:
        self._client = openai.OpenAI(base_url=f"{doors.url}/v1", api_key=doors.token, max_retries=0, timeout=60)

    def embed(self, model: str, texts: Sequence[str]) -> Array:
        """As base64, which the client asks for by itself."""
        made = self._client.embeddings.create(model=model, input=list(texts))
        return np.array([row.embedding for row in made.data], np.float32)

    def refusal(self, error: Exception) -> str:
        """By class."""
        if isinstance(error, openai.NotFoundError):
            return UNKNOWN
        if isinstance(error, openai.BadRequestError):
            return BAD
        if isinstance(error, openai.AuthenticationError):
            return STRANGER
        busy = isinstance(error, openai.APIStatusError) and error.status_code in (429, 503, 507)
        return BUSY if busy else ""

    def words(self, error: Exception) -> str:
        """The class and the code in the body."""
        code = error.code if isinstance(error, openai.APIStatusError) else ""
        return f"{type(error).__name__} {code or ''}".strip()

    def close(self) -> None:
        """Close the pool."""
        self._client.close()


CLIENTS: tuple[type[Any], ...] = (Boto3, TritonHttp, TritonGrpc, OpenAI)
