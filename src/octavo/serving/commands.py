"""The command-line door of serving: `octavo models ...`.

What needs the models in memory (load, unload, pin) talks to the workspace's running server; what needs only the
repository works without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.errors import Invalid, NotFound, OctavoError, Unavailable
from octavo.printing import print_json, print_table, say, spinner
from octavo.running import find_running
from octavo.serving.bench_command import bench
from octavo.serving.packaging import commands as packaging
from octavo.settings import existing_workspace, load_settings

if TYPE_CHECKING:
    from octavo.serving.client import Client
    from octavo.serving.repository import Repository
    from octavo.settings import Settings

app = typer.Typer(help="Models: what there is, what is in memory, and answers from them.", no_args_is_help=True)

Workspace = Annotated[Path | None, typer.Option("--workspace", "-w", envvar="OCTAVO_WORKSPACE", help="Workspace.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="Name of a model in the repository.")]

Question = Callable[[Mapping[str, str]], dict[str, Any]]
"""Gives the tensors of a question to a model whose inputs have these datatypes."""


@app.command("ls")
def list_models(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List the repository's models; with a running server, what each holds in memory too."""
    settings = existing_workspace(workspace)
    client = find_server(settings)
    if client is not None:
        with client:
            rows = client.models()
    else:
        from octavo.serving.repository import Repository

        repository = Repository.open(settings.repository_url, settings)
        rows = [row for name in repository.names() for row in _versions(repository, name)]
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo(f"there are no models in {settings.repository_url}; add one: octavo models add minilm")
        return
    titles = ["Model", "Version", "Default", "State", "MiB", "Pinned"]
    print_table(titles, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    resident = row.get("resident")
    state = row.get("reason") or ("in memory" if resident else str(row.get("state", "")).lower())
    memory = f"{row['resident_bytes'] / 2**20:.1f}" if resident else ""
    default, pinned = ("yes" if row.get(mark) else "" for mark in ("default", "pinned"))
    return row["name"], row["version"], default, state, memory, pinned


@app.command()
def add(
    source: Annotated[str, typer.Argument(help="'minilm', a folder in sentence-transformers' format, or a hub id.")],
    name: Annotated[str, typer.Option(help="Name in the repository; default: from the source.")] = "",
    precision: Annotated[str, typer.Option(help="fp32, int8, or both (the int8 one is called NAME-int8).")] = "both",
    max_tokens: Annotated[int | None, typer.Option(help="Cut longer texts; default: what the source says.")] = None,
    query_prefix: Annotated[str | None, typer.Option(help="Put before queries, as 'query: ' for e5.")] = None,
    document_prefix: Annotated[str | None, typer.Option(help="Put before documents, as 'passage: ' for e5.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Build an embedding model and publish it in the repository."""
    from octavo.serving.minilm import Prefixes, add_embedding_model, checkpoint
    from octavo.serving.onnx_runtime import OnnxRuntimeBackend
    from octavo.serving.repository import Repository

    if precision not in ("fp32", "int8", "both"):
        raise Invalid(f"unknown precision {precision!r}", "--precision", "Use fp32, int8 or both.")
    settings = load_settings(workspace)
    repository = Repository.open(settings.repository_url, settings)
    base = name or Path(source).name.lower()
    wanted = {"fp32": [(base, "fp32")], "int8": [(base, "int8")]}.get(
        precision, [(base, "fp32"), (f"{base}-int8", "int8")]
    )
    prefixes = Prefixes(query_prefix, document_prefix)
    added: list[dict[str, str]] = []
    with spinner(f"fetching {source}", quiet=as_json) as tell, checkpoint(source) as folder:
        for model, kind in wanted:
            tell(f"building {model} ({kind})")
            try:
                version = add_embedding_model(repository, model, folder, kind, max_tokens, prefixes)
                OnnxRuntimeBackend(settings).prepare(repository.resolve(model, version))
            except Invalid as error:
                if not added:
                    raise
                typer.echo(f"no {kind} form: {error}", err=True)  # both were asked for by default, and one is there
                continue
            added.append({"name": model, "version": version, "precision": kind})
    if as_json:
        print_json(added)
        return
    for row in added:
        typer.echo(f"added {row['name']} version {row['version']} ({row['precision']}) to {repository.where}")
    typer.echo(f"try it: octavo models infer {base} --text 'hello'")


@app.command()
def load(name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Bring a model into the running server's memory."""
    with server(workspace) as client:
        client.load(name)
    say(as_json, {"name": name, "loaded": True}, f"{name} is in memory")


@app.command()
def unload(name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Send a model out of the running server's memory; the next request loads it again."""
    with server(workspace) as client:
        client.unload(name)
    say(as_json, {"name": name, "loaded": False}, f"{name} has left memory")


@app.command()
def pin(
    name: Name,
    off: Annotated[bool, typer.Option("--off", help="Let it be evicted again.")] = False,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Keep a model in the running server's memory."""
    with server(workspace) as client:
        client.pin(name, not off)
    say(as_json, {"name": name, "pinned": not off}, f"{name} is {'no longer ' if off else ''}pinned")


@app.command("use-version")
def use_version(
    name: Name,
    version: Annotated[str, typer.Argument(help="A version, or 'newest' to follow what is published again.")],
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Serve another version of a model by default (roll back or forward); nothing is deleted."""
    from octavo.serving.repository import Repository

    settings = existing_workspace(workspace)
    client = find_server(settings)
    if client is not None:
        with client:
            version = client.use_version(name, version)
    else:
        version = Repository.open(settings.repository_url, settings).use_version(name, version)
    say(as_json, {"name": name, "version": version}, f"{name} answers with version {version}")


@app.command()
def label(
    name: Name,
    word: Annotated[str, typer.Argument(metavar="LABEL", help="A word such as 'stable'; requests may name it.")],
    version: Annotated[str, typer.Argument(help="The version it means; leave it out to take the label away.")] = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Point a label at a version of a model, or take the label away."""
    from octavo.serving.repository import Repository

    settings = existing_workspace(workspace)
    client = find_server(settings)
    if client is not None:
        with client:
            client.set_label(name, word, version)
    else:
        Repository.open(settings.repository_url, settings).set_label(name, word, version)
    said = f"{name}: {word} is version {version}" if version else f"{name} has no label {word}"
    say(as_json, {"name": name, "label": word, "version": version}, said)


@app.command()
def publish(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="Holds the version's files, and config.pbtxt where it is needed.")],
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Add a version of a model from a folder, whole or not at all; it answers from the next look on."""
    from octavo.serving.repository import Repository

    if not folder.is_dir():
        fix = "Name the folder with the version's files, as model.onnx."
        raise NotFound("there is no folder to publish", str(folder), fix)
    settings = load_settings(workspace)
    version = Repository.open(settings.repository_url, settings).publish(name, folder)
    say(as_json, {"name": name, "version": version}, f"published {name} version {version}")


@app.command()
def pair(
    name: Name,
    query: Annotated[str, typer.Option(help="MODEL or MODEL@VERSION: the encoder of queries.")],
    document: Annotated[str, typer.Option(help="MODEL or MODEL@VERSION: the encoder of documents.")],
    default: Annotated[str, typer.Option(help="query or document: requests that do not say.")] = "document",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Put two encoders behind one name; requests choose with input_type. Both are asked a sentence first."""
    settings = existing_workspace(workspace)
    client = find_server(settings)
    if client is not None:
        with client:
            found = client.pair(name, query, document, default)
    else:
        found = asyncio.run(_pair_here(settings, name, query, document, default))
    what = "published" if found["new"] else "unchanged:"
    encoders = f"queries by {found['query']}, documents by {found['document']}, {found['dimensions']} numbers"
    say(as_json, found, f"{what} {name} version {found['version']}: {encoders}")


async def _pair_here(settings: Settings, *given: str) -> dict[str, Any]:
    from dataclasses import asdict

    from octavo.serving.pair import publish_pair
    from octavo.serving.service import Serving

    server = await Serving.open(settings, keep_pinned=False)
    try:
        return asdict(await publish_pair(server, *given))
    finally:
        await server.close()


@app.command()
def infer(
    name: Name,
    text: Annotated[list[str] | None, typer.Option(help="A text to embed; may be given again.")] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(help="JSON file: {input name: nested lists}; numbers are taken as the model's datatype."),
    ] = None,
    input_type: Annotated[str, typer.Option(help="query or document, where the model tells them apart.")] = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model: through the running server, or in this process when there is none."""
    settings = existing_workspace(workspace)
    question = _question(text, inputs)
    parameters = {"input_type": input_type} if input_type else {}
    client = find_server(settings)
    if client is not None:
        with client:
            declared = client.datatypes(name) if inputs else {}
            outputs = client.infer(name, question(declared), parameters=parameters)
    else:
        outputs = asyncio.run(_infer_here(settings, name, question, parameters))
    if as_json:
        print_json({key: _plain(array) for key, array in outputs.items()})
        return
    from octavo.serving.tensors import datatype_of

    for key, array in outputs.items():
        typer.echo(f"{key} {datatype_of(array)} {list(array.shape)}: {_preview(array)}")


app.command("bench")(bench)
packaging.register(app)


def _versions(repository: Repository, name: str) -> list[dict[str, Any]]:
    try:
        default = repository.choose(name)
    except OctavoError:  # none is served; the list says which there are all the same
        default = ""
    return [{"name": name, "version": v, "default": v == default} for v in repository.versions(name)]


def find_server(settings: Settings, timeout: float = 60.0) -> Client | None:
    """A client of the workspace's running server, whose calls may take `timeout` seconds; None when there is none."""
    running = find_running(settings)
    if running is None:
        return None
    from octavo.serving.client import Client

    client = Client(running.url, token=running.token, timeout=timeout)
    return client if client.ready() else None


def server(workspace: Path | None) -> Client:
    """A client of the running server; `Unavailable` when there is none."""
    settings = existing_workspace(workspace)
    client = find_server(settings)
    if client is None:
        raise Unavailable("no server is running", str(settings.workspace), "Start it: octavo up")
    return client


async def _infer_here(settings: Settings, name: str, question: Question, parameters: dict[str, Any]) -> dict[str, Any]:
    from octavo.serving.inference import InferRequest
    from octavo.serving.service import Serving

    server = await Serving.open(settings, keep_pinned=False)
    try:
        declared = {spec.name: spec.datatype for spec in await server.inputs(name)}
        return dict((await server.infer(InferRequest(name, question(declared), parameters=parameters))).outputs)
    finally:
        await server.close()


def _question(text: list[str] | None, file: Path | None) -> Question:
    """What is asked, once the model's datatypes are known; the file is read now."""
    from octavo.serving.question import read_tensors, text_tensors

    if text and file is None:
        tensors = text_tensors(text)
        return lambda _: tensors
    if text or file is None:
        raise Invalid(
            "give either texts or a file", "octavo models infer", "Use --text 'hello', or --inputs FILE.json."
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        fix = 'Name a JSON file of input names with nested lists, as {"x": [[1, 2.5]]}.'
        raise NotFound(f"the file cannot be read: {error.strerror}", str(file), fix) from None
    return lambda declared: read_tensors(content, str(file), declared)


def _plain(array: Any) -> Any:
    """Nested lists; BYTES as text."""
    if array.dtype != object:
        return array.tolist()
    return [_plain(row) if hasattr(row, "dtype") else row.decode("utf-8", "replace") for row in array]


def _preview(array: Any) -> str:
    values = _plain(array.ravel()[:6])
    shown = ", ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
    return shown + (", ..." if array.size > 6 else "")
