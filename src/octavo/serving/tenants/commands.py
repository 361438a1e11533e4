"""The command-line door of tenants: `octavo tenants ...`; works with and without a running server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from octavo.printing import print_json, print_table, say, spinner
from octavo.serving.commands import AsJson, Workspace
from octavo.settings import existing_workspace

if TYPE_CHECKING:
    from octavo.serving.service import Serving
    from octavo.settings import Settings

T = TypeVar("T")

app = typer.Typer(help="Tenants: a model of one's own for each customer, on a base they share.", no_args_is_help=True)

Tenant = Annotated[str, typer.Argument(help="The customer's name.")]
Examples = Annotated[
    Path, typer.Option(help="CSV with the columns text and category (or label, or intent); 'oos' means out of scope.")
]


@app.command()
def train(
    tenant: Tenant,
    examples: Examples,
    base: Annotated[str, typer.Option(help="The shared text-embedding model.")] = "minilm",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Train a tenant's intent classifier and embedding adapter on its examples; publish each as a version."""
    from octavo.serving.tenants.examples import read_examples
    from octavo.serving.tenants.training import train_tenant

    settings = existing_workspace(workspace)
    given = read_examples(examples, settings.serving.max_examples)
    with spinner(f"training {tenant}", quiet=as_json) as tell:
        done = _with_serving(settings, lambda serving: train_tenant(serving, tenant, base, given, _told(tell)))
    if as_json:
        print_json([asdict(each) for each in done])
        return
    for each in done:
        what = "trained" if each.new else "unchanged:"
        counts = f"{each.categories} categories, {each.examples:,} examples"
        typer.echo(f"{what} {each.model} version {each.version}: {counts}")


@app.command("eval")
def evaluate(
    tenant: Tenant,
    examples: Examples,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Remember it as the tenant's last evaluation, for all to see.")
    ] = True,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Ask a tenant's classifier about labelled texts and tell how many it gets right.

    The console and /api/serving/tenants show the last evaluation; try a file without changing that by --no-record.
    """
    from octavo.serving.tenants.examples import read_examples
    from octavo.serving.tenants.training import evaluate_tenant

    settings = existing_workspace(workspace)
    given = read_examples(examples, settings.serving.max_examples)
    with spinner(f"asking {tenant}", quiet=as_json) as tell:
        found = _with_serving(
            settings, lambda serving: evaluate_tenant(serving, tenant, given, _told(tell), record=record)
        )
    parts = []
    if found.accuracy is not None:
        parts.append(f"accuracy {found.accuracy:.4f} of {found.in_scope:,} texts")
    if found.oos_recall is not None:
        parts.append(f"{found.oos_recall:.4f} of {found.out_of_scope:,} out-of-scope texts turned away")
    if found.unknown:
        few = ", ".join(found.unknown[:5]) + (", ..." if len(found.unknown) > 5 else "")
        parts.append(f"{len(found.unknown)} categories it was not trained on: {few}")
    say(as_json, asdict(found), "; ".join(parts))


@app.command("ls")
def list_tenants(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List the tenants with their models and bases."""
    from octavo.serving.repository import Repository
    from octavo.serving.tenants.listing import tenants

    settings = existing_workspace(workspace)
    rows = [asdict(each) for each in tenants(Repository.open(settings.repository_url, settings))]
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo("there are no tenants; train one: octavo tenants train NAME --examples FILE.csv")
    else:
        titles = ["Tenant", "Model", "Version", "Base", "Examples", "Categories", "KiB"]
        print_table(titles, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    names = [str(row[name]) for name in ("tenant", "model", "version", "base")]
    return (*names, str(row["examples"] or ""), str(row["categories"] or ""), f"{row['bytes'] / 1024:,.0f}")


def _told(tell: Callable[[str], None]) -> Callable[[float, str], None]:
    return lambda done, text: tell(f"{text} ({done:.0%})")


def _with_serving(settings: Settings, work: Callable[[Serving], Awaitable[T]]) -> T:
    """The result of work on the workspace's models, in this process: what is published here, a server picks up."""

    async def run() -> Any:
        from octavo.serving.service import Serving

        serving = await Serving.open(settings, keep_pinned=False)
        try:
            return await work(serving)
        finally:
            await serving.close()

    return asyncio.run(run())  # type: ignore[no-any-return]
