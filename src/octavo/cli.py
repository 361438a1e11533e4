"""The command line: `octavo COMMAND`. Commands of the wings are imported when they are asked for, not before."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from octavo.errors import Conflict, Invalid, MissingExtra, OctavoError

if TYPE_CHECKING:
    from octavo.running import Running
    from octavo.settings import Settings


class Door(NamedTuple):
    """A command of a wing: `module:attribute` of a Typer app or a function, what it needs, its line in the help."""

    where: str
    help: str
    extra: str = ""
    needs: str = ""


DOORS: dict[str, Door] = {
    "users": Door("octavo.access.commands:app", "Users, groups, roles and API keys of a workspace."),
    "jobs": Door("octavo.jobs.commands:app", "Long work: list, follow, cancel, retry."),
    "models": Door("octavo.serving.commands:app", "Models: list, add, load, pin, infer.", "serving", "onnxruntime"),
    "endpoints": Door(
        "octavo.serving.endpoint_commands:app", "Endpoints: share traffic between models.", "serving", "onnxruntime"
    ),
    "tenants": Door(
        "octavo.serving.tenants.commands:app", "Customers' own models on a shared base.", "serving", "onnxruntime"
    ),
    "costs": Door(
        "octavo.serving.costs.commands:costs", "What models and tenants cost, and save.", "serving", "onnxruntime"
    ),
    "autoscaling": Door(
        "octavo.serving.autoscaling.commands:app",
        "The fleet's replicas; dry runs of a scaling policy.",
        "serving",
        "onnxruntime",
    ),
    "bench": Door(
        "octavo.serving.bench_command:bench", "Measure a model's latency and throughput.", "serving", "onnxruntime"
    ),
    "tour": Door("octavo.tour:tour", "Try every installed system; writes tour.html.", "serving", "onnxruntime"),
}
"""The wings' commands by name."""

NOT_RUNNING = 3

Workspace = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", envvar="OCTAVO_WORKSPACE", help="The folder worked in.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _Commands(TyperGroup):
    """The commands of this file and the doors of the wings, which the help lists without importing them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.commands, *(name for name, door in DOORS.items() if _is_here(door))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        door = DOORS.get(cmd_name)
        if door is None or not _is_here(door):
            return super().get_command(ctx, cmd_name)
        return _open(cmd_name, door)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, command.get_short_help_str(100)) for name, command in self.commands.items()]
        rows += [(name, DOORS[name].help) for name in self.list_commands(ctx) if name in DOORS]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    name="octavo",
    cls=_Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    help="A self-hosted applied-AI platform: `octavo init DIR`, `octavo up`, then open the address it prints.",
)


def _print_version(asked: bool) -> None:
    if asked:
        from octavo import __version__

        typer.echo(f"octavo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Nothing else belongs to all commands."""


@app.command()
def init(
    folder: Annotated[
        Path | None, typer.Argument(help="The folder to work in; made when missing.", show_default=False)
    ] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Make a workspace: octavo.toml with every default commented, folders."""
    from octavo.settings import CONFIG_FILE
    from octavo.web.workspace import make_workspace

    folder = folder or workspace
    if folder is None:
        raise Invalid("no folder is named", "octavo init", "Write: octavo init DIR")
    folder = folder.expanduser().absolute()
    make_workspace(folder)
    if as_json:
        _print_json({"workspace": str(folder), "settings": str(folder / CONFIG_FILE)})
        return
    typer.echo(f"Made the workspace {folder}.\nNext: octavo up --workspace {_shell_word(folder)}")


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", show_default="8600")] = None,
    token: Annotated[
        str | None, typer.Option(help="Admin token, instead of one made.", envvar="OCTAVO_TOKEN", show_default=False)
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Answer from replicas on a Ray cluster: local, auto or HOST:PORT.", show_default=False),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the console in a browser.")] = False,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Run the server in the foreground; stop it with Ctrl-C."""
    from octavo.settings import load_settings

    flags: dict[str, Any] = {"web": {"host": host, "port": port}, "token": token or None, "fleet": {"ray": ray}}
    if ray:  # heavy steps of jobs compute there too
        flags["jobs"] = {"engine": "ray", "ray_address": "" if ray == "local" else ray}
    settings = load_settings(workspace, **flags)
    if settings.fleet.ray:
        from octavo.serving.fleet.address import check_address

        check_address(settings.fleet.ray)

    def started(running: Running, first_token: str | None) -> None:
        _tell_started(running, first_token, settings, as_json)
        if open_browser:
            typer.launch(f"{running.url}/login?token={running.token}")

    from octavo.web.server import serve

    serve(settings, started)


@app.command()
def status(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Tell whether the server runs, where, and how it does. Exit code 3 when it does not."""
    from octavo.running import find_running
    from octavo.settings import existing_workspace

    settings = existing_workspace(workspace)
    running = find_running(settings)
    if running is None:
        text = f"No server runs on {settings.workspace}. Start one: octavo up"
        _print_json({"running": False, "workspace": str(settings.workspace)}) if as_json else typer.echo(text)
        raise typer.Exit(NOT_RUNNING)
    facts = _ask_status(running)
    if as_json:
        _print_json({"running": True, "url": running.url, "grpc": running.grpc, **facts})
        return
    typer.echo(f"octavo {facts['version']} at {running.url}, process {running.pid}")
    typer.echo(f"workspace  {facts['workspace']}")
    typer.echo(f"running    {facts['uptime'] / 60:.0f} min")
    typer.echo(f"memory     {facts['memory'] / 2**20:.0f} MiB")
    for wing in facts["wings"]:
        said = f"{wing['figure']} {wing['caption']}" if "figure" in wing else f"not installed: {wing['command']}"
        typer.echo(f"{wing['title'].lower():<10} {said}")


def main() -> None:
    """Run the command line and exit.

    Exit codes: 0 done, 1 an unexpected error, 2 an error of the input, 3 `status` without a server, 130 Ctrl-C.
    """
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code. Errors go to standard error, as one line or, with `--json`, as JSON."""
    try:
        result = app(list(arguments), standalone_mode=False, obj=_work_modules)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except typer.Exit as done:
        return done.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; so must the last flush
        return 1
    except OctavoError as error:
        _complain(error, "--json" in arguments)
        return 2
    except Exception as error:
        return _complain_of_other(error, "--json" in arguments)


def _work_modules() -> list[str]:
    """Where the wings declare their kinds of jobs; commands that need them find this function in their context."""
    from octavo.web.wings import work_modules

    return work_modules()


def _complain_of_other(error: Exception, as_json: bool) -> int:
    """Tell of a wrong command line (Typer's own errors), or of what nobody expected."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        if as_json:
            _complain(Invalid(error.format_message(), "command line", "See octavo --help."), True)
        else:
            error.show()  # type: ignore[attr-defined]
        return int(error.exit_code)
    if os.environ.get("OCTAVO_DEBUG"):
        raise error
    kind = type(error).__name__
    unexpected = OctavoError(f"{kind}: {error}", "", "Run with OCTAVO_DEBUG=1 for the traceback.")
    unexpected.status, unexpected.title = 500, "Unexpected error"
    _complain(unexpected, as_json)
    return 1


def _complain(error: OctavoError, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(error.problem(), ensure_ascii=False), err=True)
        return
    line = " ".join(str(error).split())
    red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    typer.echo(f"{red}error: {line}{plain}", err=True)


def _is_here(door: Door) -> bool:
    """Whether this octavo has the door's module; a look at the files, without importing."""
    path = Path(__file__).parent.joinpath(*door.where.partition(":")[0].split(".")[1:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _open(name: str, door: Door) -> Any:
    """Import a door and make it a command.

    Raises:
        MissingExtra: what it needs is not installed.
    """
    if door.needs and find_spec(door.needs) is None:
        raise MissingExtra(
            f"`octavo {name}` needs more than is installed", "", f"Run: pip install 'octavo[{door.extra}]'"
        )
    module, _, attribute = door.where.partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(rich_markup_mode=None, add_completion=False)
        alone.command(name=name)(found)
        found = alone
    found.rich_markup_mode = None
    found.pretty_exceptions_enable = False
    found._add_completion = False
    return typer.main.get_command(found)


def _tell_started(running: Running, first_token: str | None, settings: Settings, as_json: bool) -> None:
    if as_json:
        _print_json({"url": running.url, "grpc": running.grpc, "pid": running.pid, "token": first_token})
        sys.stdout.flush()
        return
    typer.echo(f"octavo is running at {running.url}  (workspace {settings.workspace}; stop with Ctrl-C)")
    if running.grpc:
        typer.echo(f"gRPC (KServe v2) at {running.grpc}")
    if first_token:
        typer.echo(f"First start. Sign in here:\n\n    {running.url}/login?token={first_token}\n")
        typer.echo("Keep the token: it is the admin's and is not shown again. `octavo users` makes others.")
    sys.stdout.flush()


def _ask_status(running: Running) -> dict[str, Any]:
    """What the server says of itself.

    Raises:
        Conflict: its process is there and does not answer.
    """
    from urllib.error import URLError
    from urllib.request import ProxyHandler, Request, build_opener

    request = Request(f"{running.url}/api/status", headers={"Authorization": f"Bearer {running.token}"})
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=10) as answer:
            facts: dict[str, Any] = json.load(answer)
    except (URLError, TimeoutError, ValueError):
        fix = f"Look at its log, or stop it: kill {running.pid}"
        raise Conflict(f"process {running.pid} runs and does not answer", running.url, fix) from None
    return facts


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=None))


def _shell_word(path: Path) -> str:
    from shlex import quote

    return quote(str(path))


if __name__ == "__main__":
    main()
