"""A small synchronous client: arrays in, arrays out, over KServe v2's binary form on kept-open connections."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from octavo.errors import (
    Busy,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    Invalid,
    MissingExtra,
    ModelFailed,
    NotFound,
    OctavoError,
    OutOfMemory,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from octavo.serving.inference import Parameters
from octavo.serving.tensors import Array, Tensors, datatype_of, decode_raw, encode_raw

_TRIES = 4
_LONGEST_WAIT = 10.0
_KINDS: tuple[type[OctavoError], ...] = (
    Invalid,
    Unauthenticated,
    Forbidden,
    NotFound,
    Conflict,
    TooLarge,
    Cancelled,
    ModelFailed,
    MissingExtra,
    Unavailable,
    Busy,
    DeadlineExceeded,
    OutOfMemory,
)
_KIND_OF_STATUS = {kind.status: kind for kind in _KINDS}
_HEADER_LENGTH = "Inference-Header-Content-Length"


class Client:
    """A server's client; may be shared by threads, and closes its connections at the end of a `with` block.

    Args:
        url: the server's address, as `http://127.0.0.1:8600`.
        token: an API key; empty for none.
        timeout: seconds one call may take, waiting for a busy server included.

    Every method raises the `OctavoError` that the server told, `Unavailable` when it cannot be reached and
    `DeadlineExceeded` when it does not answer in time.
    """

    def __init__(self, url: str, token: str = "", timeout: float = 60.0) -> None:
        headers = {"accept-encoding": "identity"} | ({"authorization": f"Bearer {token}"} if token else {})
        self._timeout = timeout
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)

    def embed(self, texts: Sequence[str], model: str, input_type: str = "") -> NDArray[np.float32]:
        """One vector per text: float32 [texts, dimensions].

        `input_type` is `query` or `document`, where the model tells the two apart; empty for the model's default.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise Invalid("`texts` is not a list of strings", "embed", "Pass one string per text.")
        array = np.empty((len(texts), 1), dtype=np.object_)
        array[:, 0] = [text.encode() for text in texts]
        parameters = {"input_type": input_type} if input_type else {}
        found = self.infer(model, {"text": array}, outputs=["embedding"], parameters=parameters)["embedding"]
        return found.astype(np.float32, copy=False)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        version: str = "",
        priority: int = 0,
        parameters: Parameters | None = None,
    ) -> Tensors:
        """Ask a model.

        Args:
            model: its name.
            inputs: by tensor name; object arrays of `bytes` or `str` are BYTES tensors.
            outputs: names wanted; None for all.
            version: number or label; empty for the default.
            priority: 1 is the most urgent; 0 is the model's default level, or comes after all numbers.
            parameters: further parameters of the request, as `input_type` or an endpoint's `variant` and `session`.

        Returns:
            The outputs by name; BYTES as object arrays of `bytes`.
        """
        own = {"timeout": int(self._timeout * 1e6)} | ({"priority": priority} if priority else {})
        header, body = _encode(inputs, outputs, dict(parameters or {}) | own)
        path = f"{_model_path(model, version)}/infer"
        headers = {_HEADER_LENGTH: str(len(header)), "content-type": "application/octet-stream"}
        return _decode(self._send("POST", path, b"".join((header, *body)), headers))

    def datatypes(self, model: str) -> dict[str, str]:
        """The datatype of each input of a model, or of the model behind an endpoint; loads it."""
        return {spec["name"]: spec["datatype"] for spec in self._json("GET", _model_path(model))["inputs"]}

    def models(self) -> list[dict[str, Any]]:
        """Every served version of every model: name, version, state, bytes in memory, pinned, latencies."""
        rows: list[dict[str, Any]] = self._json("GET", "/api/serving/models")
        return rows

    def load(self, name: str) -> None:
        """Bring a model into memory; returns when it is there."""
        self._send("POST", f"/v2/repository/models/{quote(name, safe='')}/load")

    def unload(self, name: str) -> None:
        """Send a model out of memory; the next request loads it again."""
        self._send("POST", f"/v2/repository/models/{quote(name, safe='')}/unload")

    def pin(self, name: str, pinned: bool = True) -> None:
        """Keep a model in memory, loading it if need be, or let it be evicted again."""
        self._send("POST", f"/api/serving/models/{quote(name, safe='')}/{'pin' if pinned else 'unpin'}")

    def use_version(self, name: str, version: str) -> str:
        """Serve another version of a model by default ("newest": follow what is published); returns its number."""
        path = f"/api/serving/models/{quote(name, safe='')}/default-version"
        answer = orjson.loads(self._send("POST", path, orjson.dumps({"version": version})).content)
        return str(answer["version"])

    def set_label(self, name: str, label: str, version: str) -> None:
        """Point a label at a version of a model, or with an empty `version` take it away."""
        path = f"/api/serving/models/{quote(name, safe='')}/labels"
        self._send("POST", path, orjson.dumps({"label": label, "version": version}))

    def pair(self, name: str, query: str, document: str, default_input_type: str = "") -> dict[str, Any]:
        """Publish two encoders (`MODEL` or `MODEL@VERSION`) behind one name; the pair."""
        wanted = {"query": query, "document": document}
        wanted |= {"default_input_type": default_input_type} if default_input_type else {}
        path = f"/api/serving/models/{quote(name, safe='')}/pair"
        found: dict[str, Any] = orjson.loads(self._send("POST", path, orjson.dumps(wanted)).content)
        return found

    def endpoints(self) -> list[dict[str, Any]]:
        """Every endpoint with its variants."""
        rows: list[dict[str, Any]] = self._json("GET", "/api/serving/endpoints")
        return rows

    def endpoint(self, name: str) -> dict[str, Any]:
        """One endpoint: variants, revision, and `statistics` per variant."""
        found: dict[str, Any] = self._json("GET", f"/api/serving/endpoints/{quote(name, safe='')}")
        return found

    def set_endpoint(self, name: str, endpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Make an endpoint or change it, whole; with `revision` in it only over that revision."""
        body = orjson.dumps(dict(endpoint))
        found: dict[str, Any] = orjson.loads(
            self._send("PUT", f"/api/serving/endpoints/{quote(name, safe='')}", body).content
        )
        return found

    def remove_endpoint(self, name: str) -> None:
        """Take an endpoint away; its models stay."""
        self._send("DELETE", f"/api/serving/endpoints/{quote(name, safe='')}")

    def deployments(self) -> list[dict[str, Any]]:
        """Every deployment: what is stable, what is rolled out, and how far the last change came."""
        rows: list[dict[str, Any]] = self._json("GET", "/api/serving/deployments")
        return rows

    def deploy(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Deploy a staged package to an endpoint: `package` (SHA-256), and `share` or `shadow`; the deployment."""
        return self._deployment(name, "", wanted)

    def roll_out(self, name: str, share: float) -> dict[str, Any]:
        """Give the version that is rolled out another share (0 to 1) of the traffic; the deployment."""
        return self._deployment(name, "/roll-out", {"share": share})

    def promote(self, name: str) -> dict[str, Any]:
        """Give the version that is rolled out all of the traffic; the deployment."""
        return self._deployment(name, "/promote", {})

    def roll_back(self, name: str) -> dict[str, Any]:
        """Take the version that is rolled out back, or return to the one before; the deployment."""
        return self._deployment(name, "/roll-back", {})

    def tenants(self) -> list[dict[str, Any]]:
        """Every tenant: base, examples, categories, size, what its last evaluation found, and its models."""
        rows: list[dict[str, Any]] = self._json("GET", "/api/serving/tenants")
        return rows

    def train_tenant(self, tenant: str, examples: bytes, base: str = "minilm") -> dict[str, Any]:
        """Queue a training on a CSV (columns text and category); `job` in what it gives is the job's id."""
        path = f"/api/serving/tenants/{quote(tenant, safe='')}?{urlencode({'base': base})}"
        found: dict[str, Any] = orjson.loads(self._send("POST", path, examples, {"content-type": "text/csv"}).content)
        return found

    def training(self, tenant: str, job: str) -> dict[str, Any]:
        """How far a training is: `state`, `progress` (0 to 1), `message`, `error`, `result`."""
        path = f"/api/serving/tenants/{quote(tenant, safe='')}/trainings/{quote(job, safe='')}"
        found: dict[str, Any] = self._json("GET", path)
        return found

    def costs(self, **asked: str) -> dict[str, Any]:
        """What was used and cost: `since`, `by`, `price`, `instance_price` as `octavo costs` takes them."""
        found: dict[str, Any] = self._json("GET", f"/api/serving/costs?{urlencode(asked)}")
        return found

    def warmup_rules(self) -> list[dict[str, Any]]:
        """Every warm-up rule."""
        rows: list[dict[str, Any]] = self._json("GET", "/api/serving/warmup/rules")
        return rows

    def set_warmup_rule(self, name: str, rule: Mapping[str, Any]) -> dict[str, Any]:
        """Make a warm-up rule or change it, whole; with `revision` in it only over that."""
        path = f"/api/serving/warmup/rules/{quote(name, safe='')}"
        found: dict[str, Any] = orjson.loads(self._send("PUT", path, orjson.dumps(dict(rule))).content)
        return found

    def remove_warmup_rule(self, name: str) -> None:
        """Take a warm-up rule away; what it loaded stays until somebody needs the room."""
        self._send("DELETE", f"/api/serving/warmup/rules/{quote(name, safe='')}")

    def warmup_plan(self) -> dict[str, Any]:
        """What the rules would have loaded now, and why not the rest."""
        found: dict[str, Any] = self._json("GET", "/api/serving/warmup/plan")
        return found

    def warmup_report(self, **asked: str) -> dict[str, Any]:
        """Cold starts avoided: `since` and `by` as `octavo warmup report` takes them."""
        found: dict[str, Any] = self._json("GET", f"/api/serving/warmup/report?{urlencode(asked)}")
        return found

    def fleet(self) -> dict[str, Any]:
        """The fleet behind the server: replicas, routing, scaling; `NotFound` when it runs alone."""
        found: dict[str, Any] = self._json("GET", "/api/serving/fleet")
        return found

    def ready(self) -> bool:
        """Whether the server answers; never raises."""
        try:
            return self._http.get("/v2/health/ready", timeout=min(5.0, self._timeout)).status_code == 200
        except httpx.HTTPError:
            return False

    def statistics(self, name: str = "") -> list[dict[str, Any]]:
        """Counts and nanoseconds per model version, as KServe's statistics extension has them."""
        path = f"{_model_path(name)}/stats" if name else "/v2/models/stats"
        rows: list[dict[str, Any]] = self._json("GET", path)["model_stats"]
        return rows

    def residency(self) -> dict[str, Any]:
        """The memory budget and who holds what of it, bytes."""
        found: dict[str, Any] = self._json("GET", "/api/serving/residency")
        return found

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the connections."""
        self.close()

    def _deployment(self, name: str, change: str, body: Mapping[str, Any]) -> dict[str, Any]:
        path = f"/api/serving/deployments/{quote(name, safe='')}{change}"
        found: dict[str, Any] = orjson.loads(self._send("POST", path, orjson.dumps(dict(body))).content)
        return found

    def _json(self, method: str, path: str) -> Any:
        return orjson.loads(self._send(method, path).content)

    def _send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The answer to a request; a busy server is asked again as it says, while the time allows."""
        give_up = time.monotonic() + self._timeout
        for attempt in range(1, _TRIES + 1):
            left = max(0.001, give_up - time.monotonic())
            try:
                response = self._http.request(method, path, content=body, headers=headers, timeout=left)
            except httpx.TimeoutException:
                raise DeadlineExceeded(f"no answer within {self._timeout:g} s", path, "Allow more time.") from None
            except httpx.HTTPError as error:
                where = str(self._http.base_url)
                raise Unavailable(f"the server cannot be reached: {error}", where, "Is `octavo up` running?") from None
            if response.is_success:
                return response
            refusal = _error(response)
            if not isinstance(refusal, Unavailable):
                raise refusal
            wait = min(refusal.retry_after, _LONGEST_WAIT)
            if attempt == _TRIES or time.monotonic() + wait >= give_up:
                raise refusal
            time.sleep(wait)
        raise AssertionError("unreachable: the last try returns or raises")


def _model_path(model: str, version: str = "") -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _encode(
    inputs: Mapping[str, Array], outputs: Sequence[str] | None, parameters: Parameters
) -> tuple[bytes, list[bytes]]:
    """The JSON part of an inference request, and the binary part in pieces."""
    described = []
    pieces = []
    for name, given in inputs.items():
        array = np.asarray(given)
        if array.dtype == object and not all(isinstance(item, bytes | str) for item in array.ravel()):
            raise Invalid(f"input {name!r} holds neither numbers nor texts", "infer", "Pass an array of one kind.")
        raw = encode_raw(array)
        pieces.append(raw)
        tensor = {"name": name, "datatype": datatype_of(array), "shape": array.shape}
        described.append(tensor | {"parameters": {"binary_data_size": len(raw)}})
    header: dict[str, Any] = {"inputs": described, "parameters": dict(parameters) | {"binary_data_output": True}}
    if outputs is not None:
        header["outputs"] = [{"name": name} for name in outputs]
    return orjson.dumps(header), pieces


def _decode(response: httpx.Response) -> Tensors:
    body = memoryview(response.content)
    at = int(response.headers.get(_HEADER_LENGTH, len(body)))
    tensors: Tensors = {}
    for output in orjson.loads(body[:at])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        tensors[output["name"]] = decode_raw(
            body[at : at + size], output["datatype"], tuple(output["shape"]), output["name"]
        )
        at += size
    return tensors


def _error(response: httpx.Response) -> OctavoError:
    """The server's error, whichever protocol's shape it has."""
    try:
        told = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        told = None
    what, where, fix = response.text[:500] or response.reason_phrase, "", ""
    if isinstance(told, dict):
        inner = told.get("error")
        what = str(inner.get("message", "") if isinstance(inner, dict) else inner or told.get("detail", ""))
        where, fix = str(told.get("where", "")), str(told.get("fix", ""))
    kind = _KIND_OF_STATUS.get(response.status_code, Invalid if response.status_code < 500 else OctavoError)
    if issubclass(kind, Unavailable):
        return kind(what, where, fix, _seconds(response.headers.get("retry-after")))
    return kind(what, where, fix)


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after is not None and retry_after.isdigit() else 1.0
