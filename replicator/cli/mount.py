"""`dtctl mount`: directories whose changes are captured."""

from typing import Annotated

import typer

from replicator.cli import complete, output
from replicator.cli.options import Json, absolute, agent
from replicator.errors import ReplicatorError, UsageError

RELOAD_TIMEOUT_S = 180.0  # syncs and reads that wait for a disk end first, and other changes

app = typer.Typer(help="Directories whose changes are captured.", no_args_is_help=False)

Path = Annotated[str, typer.Argument(metavar="PATH", help="Directory to capture.")]
MountedPath = Annotated[
    str,
    typer.Argument(metavar="PATH", help="Captured directory.", autocompletion=complete.mountpoints),
]


@app.command("add", epilog="Example: dtctl mount add /srv/data")
def add(
    context: typer.Context,
    path: Path,
    at: Annotated[
        str | None, typer.Option("--at", metavar="MOUNTPOINT", help="Mount it there, not over PATH itself.")
    ] = None,
    binding: Annotated[
        str, typer.Option("--binding", metavar="auto|kernel|pyfuse3", help="How to talk to the kernel.")
    ] = "auto",
    json: Json = False,
) -> None:
    """Capture every change below PATH from now on, also after a restart."""
    mount = agent(context).post(
        "mounts",
        body={
            "path": absolute(path),
            "mountpoint": absolute(at) if at is not None else None,
            "binding": binding,
        },
    )
    output.emit(mount, json, "mount_added")


@app.command("list", epilog="Example: dtctl mount list --json")
def list_(context: typer.Context, json: Json = False) -> None:
    """Show all captured directories."""
    output.emit(agent(context).get("mounts"), json, "mounts")


@app.command("reload", epilog="Examples: dtctl mount reload /srv/data, dtctl mount reload --all")
def reload(
    context: typer.Context,
    path: Annotated[
        str | None,
        typer.Argument(metavar="PATH", help="Captured directory.", autocompletion=complete.mountpoints),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All captured directories.")] = False,
    json: Json = False,
) -> None:
    """Serve PATH by the software as it is installed now. Programs that use it wait a moment."""
    if every == (path is not None):
        raise UsageError("name one captured directory, or --all")
    client = agent(context)
    paths = [absolute(path)] if path is not None else [mount["path"] for mount in client.get("mounts")]
    reloaded, refusals = [], []
    for one in paths:
        try:
            mount = client.post("mounts", "reload", body={"path": one}, timeout_s=RELOAD_TIMEOUT_S)
        except ReplicatorError as error:
            if not every:
                raise
            refusals.append(str(error))
            continue
        reloaded.append(mount)
        if not json:
            output.say(f"{mount['mountpoint']} is served by process {mount['pid']}")
    if json:
        output.print_json(reloaded if every else reloaded[0])
    if refusals:
        raise ReplicatorError("; ".join(refusals))


@app.command("remove", epilog="Example: dtctl mount remove /srv/data")
def remove(
    context: typer.Context,
    path: MountedPath,
    force: Annotated[bool, typer.Option("--force", help="Also if programs use it: they see errors.")] = False,
    json: Json = False,
) -> None:
    """Unmount PATH and forget it. Its files stay."""
    removed = agent(context).delete("mounts", body={"path": absolute(path), "force": force})
    if json:
        output.print_json(removed)
    else:
        output.say(f"{absolute(path)} is no longer captured")
