"""The command-line door of packages and deployments: `octavo models package`, `deploy`, `promote`, ..."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.errors import Invalid
from octavo.printing import print_json, print_table, say, spinner
from octavo.settings import existing_workspace, load_settings

if TYPE_CHECKING:
    from octavo.serving.client import Client
    from octavo.serving.packaging.deploy import Deployer
    from octavo.serving.packaging.deployment import Deployment
    from octavo.settings import Settings

Workspace = Annotated[Path | None, typer.Option("--workspace", "-w", envvar="OCTAVO_WORKSPACE", help="Workspace.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Endpoint = Annotated[str, typer.Argument(metavar="NAME", help="Name of the endpoint that was deployed to.")]
SECONDS = 900.0
"""A deployment loads models, and may first unpack and copy some gigabytes."""


def package(
    spec: Annotated[Path, typer.Argument(help="spec.yaml: files, code at a commit, backend, shapes.")],
    to: Annotated[str, typer.Option(help="Folder or s3://bucket/prefix; default: packages/ in the workspace.")] = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Pack a model as one archive named by its content; the same content is stored once."""
    from octavo.serving.packaging.package import build_package

    settings = load_settings(workspace)
    with spinner(f"packing {spec}", quiet=as_json):
        stored = build_package(spec, to or str(settings.workspace / "packages"), settings)
    did = "stored" if stored.new else "is there already:"
    say(as_json, asdict(stored), f"{did} {stored.where.rstrip('/')}/{stored.key}\nsha256 {stored.digest}")


def deploy(
    source: Annotated[str, typer.Argument(help="A package, model.tar.gz, Triton repository, folder, or s3://...")],
    name: Annotated[str, typer.Option(help="Endpoint; default: {tenant}-{kind} of the metadata, else the name.")] = "",
    share: Annotated[str, typer.Option(help="Of the traffic for a later version, as 0.1 or 10%; default: all.")] = "",
    shadow: Annotated[str, typer.Option(help="Of the requests copied to it instead; answers go to nobody.")] = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Publish a model, check that it answers, and give it traffic; again with the same source changes nothing."""
    from octavo.serving.packaging.artifact import open_artifact, stage
    from octavo.serving.protocols.deployment_api import rollout

    settings = load_settings(workspace)
    wanted = rollout(_share(share, "--share"), _share(shadow, "--shadow"), "octavo models deploy")
    with spinner(f"deploying {source}", quiet=as_json) as tell:
        with open_artifact(source, settings, name) as (artifact, folder):
            endpoint = name or artifact.name or artifact.main
            digest = stage(folder, settings)
        tell(f"deploying to {endpoint}")
        body = {"package": digest} | wanted.model_dump(exclude_none=True)
        _change(
            settings,
            as_json,
            lambda client: client.deploy(endpoint, body),
            lambda to: to.deploy(endpoint, digest, wanted),
        )


def rollout_command(
    name: Endpoint,
    share: Annotated[str, typer.Argument(help="Of the traffic for the candidate, as 0.5 or 50%.")],
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Give the version that is rolled out another share of the traffic."""
    wanted = _share(share or "none", "SHARE") or 0.0
    _change(
        existing_workspace(workspace),
        as_json,
        lambda client: client.roll_out(name, wanted),
        lambda to: to.roll_out(name, wanted),
    )


def promote(name: Endpoint, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Give the version that is rolled out all of the traffic."""
    settings = existing_workspace(workspace)
    _change(settings, as_json, lambda client: client.promote(name), lambda to: to.promote(name))


def roll_back(name: Endpoint, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Take the version that is rolled out back; without one, return to the version before."""
    settings = existing_workspace(workspace)
    _change(settings, as_json, lambda client: client.roll_back(name), lambda to: to.roll_back(name))


def deployments(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List the deployments: what is stable, what is rolled out, and how far the last change came."""
    rows = _anywhere(existing_workspace(workspace), lambda client: client.deployments(), _all)
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo("nothing is deployed; deploy something: octavo models deploy SOURCE")
    else:
        titles = ["Endpoint", "Stable", "Candidate", "Share", "Before", "Last"]
        print_table(titles, [_cells(row) for row in rows])


def register(app: typer.Typer) -> None:
    """Add the commands to `octavo models`."""
    app.command()(package)
    app.command()(deploy)
    app.command("rollout")(rollout_command)
    app.command()(promote)
    app.command("rollback")(roll_back)
    app.command()(deployments)


def _change(
    settings: Settings,
    as_json: bool,
    ask: Callable[[Client], dict[str, Any]],
    here: Callable[[Deployer], Awaitable[Deployment]],
) -> None:
    """Change a deployment through the running server, or in this process when there is none; say what it is now."""

    async def change(deployer: Deployer) -> dict[str, Any]:
        from octavo.serving.protocols.deployment_api import shown

        return shown(await here(deployer))

    row = _anywhere(settings, ask, change)
    say(as_json, row, _sentence(row))


def _anywhere(settings: Settings, ask: Callable[[Client], Any], here: Callable[[Deployer], Awaitable[Any]]) -> Any:
    from octavo.serving.commands import find_server

    client = find_server(settings, SECONDS)
    if client is not None:
        with client:
            return ask(client)
    return asyncio.run(_here(settings, here))


async def _here(settings: Settings, work: Callable[[Deployer], Awaitable[Any]]) -> Any:
    from octavo.serving.packaging.deploy import Deployer
    from octavo.serving.service import Serving

    service = await Serving.open(settings, keep_pinned=False)
    try:
        return await work(Deployer(service, settings))
    finally:
        await service.close()


async def _all(deployer: Deployer) -> list[dict[str, Any]]:
    from octavo.serving.protocols.deployment_api import shown

    return [shown(deployment) for deployment in await deployer.all()]


def _share(text: str, option: str) -> float | None:
    """A share from `0.1` or `10%`; None for an empty text."""
    if not text:
        return None
    number = text.removesuffix("%")
    try:
        value = float(number) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise Invalid(f"not a share: {text[:40]!r}", option, "Write 0.1 or 10%, at most 1.")
    return value


def _release(release: dict[str, Any] | None) -> str:
    return f"{release['main']}@{release['versions'][release['main']]}" if release else ""


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    share = f"{row['shadow']:.0%} copied" if row["shadow"] else f"{row['share']:.0%}" if row["candidate"] else ""
    last = f"{row['action']}: {row['error'] or row['step']}"
    return row["name"], _release(row["stable"]), _release(row["candidate"]), share, _release(row["previous"]), last


def _sentence(row: dict[str, Any]) -> str:
    """What a deployment is now, in words, and what of the wish does not apply."""
    return _traffic(row) + (f"\n{row['note']}" if row["note"] else "")


def _traffic(row: dict[str, Any]) -> str:
    said = f"{row['name']}: {_release(row['stable'])} answers"
    if row["candidate"] and row["shadow"]:
        return f"{said}; {_release(row['candidate'])} gets copies of {row['shadow']:.0%}"
    if row["candidate"]:
        return f"{said} {1 - row['share']:.0%}, {_release(row['candidate'])} {row['share']:.0%}"
    return f"{said} everything" + (f"; before it was {_release(row['previous'])}" if row["previous"] else "")
