"""`dtctl divergence`: what a branch had that lost, kept until a person drops it."""

from typing import Annotated, Any

import typer

from replicator.cli import output
from replicator.cli.options import Json, absolute, agent
from replicator.errors import UsageError

app = typer.Typer(
    help="What this host wrote that another owner superseded: look at it, get it back, drop it."
)

Bundle = Annotated[str, typer.Argument(metavar="ID", help="Id of the bundle, or how it begins.")]


@app.command("list", epilog="Example: dtctl divergence list")
def list_(context: typer.Context, json: Json = False) -> None:
    """List the bundles of this host, oldest first."""
    output.emit(agent(context).get("divergence"), json, "bundles")


@app.command("show", epilog="Example: dtctl divergence show 4f0c")
def show(context: typer.Context, bundle: Bundle, json: Json = False) -> None:
    """Show whose a bundle is, where the branches parted, and how much it has."""
    output.emit(agent(context).get("divergence", bundle), json, "bundle")


@app.command("diff", epilog="Example: dtctl divergence diff 4f0c /srv/data/orders.db")
def diff(
    context: typer.Context,
    bundle: Bundle,
    path: Annotated[
        str, typer.Argument(metavar="[PATH]", help="Only this, with all below: absolute, on this host.")
    ] = "",
    json: Json = False,
) -> None:
    """Compare a bundle with what is here now. Exit code 1: there are differences."""
    found = agent(context).get("divergence", bundle, "differences", path=absolute(path) if path else None)
    output.emit(found, json, "bundle_differences")
    if found["count"]:
        raise typer.Exit(1)


@app.command("export", epilog="Example: dtctl divergence export 4f0c /srv/lost")
def export(
    context: typer.Context,
    bundle: Bundle,
    directory: Annotated[
        str, typer.Argument(metavar="DIRECTORY", help="A new directory, or an empty one, on this host.")
    ],
    json: Json = False,
) -> None:
    """Make ordinary files of a bundle."""
    body = {"action": "export", "directory": absolute(directory)}
    output.emit(agent(context).post("divergence", bundle, body=body, timeout_s=None), json, "exported")


@app.command("drop", epilog="Example: dtctl divergence drop 4f0c19d2a7")
def drop(
    context: typer.Context,
    bundle: Bundle,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. ID must be the whole id then.")] = False,
    json: Json = False,
) -> None:
    """Remove a bundle for good."""
    confirm = bundle
    if not yes:
        confirm = _confirmed(agent(context).get("divergence", bundle))
    output.emit(
        agent(context).post("divergence", bundle, body={"action": "drop", "confirm": confirm}),
        json,
        "dropped",
    )


def _confirmed(found: Any) -> str:
    manifest = found["manifest"]
    if not output.is_terminal():
        raise UsageError(f"nobody is here to confirm it: dtctl divergence drop {manifest['id']} --yes")
    paths = ", ".join(root["path"] for root in manifest["roots"])
    output.warn(f"{found['objects']} objects of {paths} are removed for good. Nothing else has them.")
    return str(typer.prompt("Type the id of the bundle to confirm")).strip()
