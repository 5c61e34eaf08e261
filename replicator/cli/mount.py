"""`dtctl mount`: directories whose changes are captured."""

from typing import Annotated

import typer

from replicator.cli import complete, output
from replicator.cli.options import Json, absolute, agent

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
