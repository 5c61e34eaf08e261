"""`dtctl mount`: directories whose changes are captured."""

from typing import Annotated

import typer

from replicator import mount_options
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


@app.command("add", epilog="Example: dtctl mount add /srv/data -o writes=direct")
def add(
    context: typer.Context,
    path: Path,
    at: Annotated[
        str | None, typer.Option("--at", metavar="MOUNTPOINT", help="Mount it there, not over PATH itself.")
    ] = None,
    binding: Annotated[
        str, typer.Option("--binding", metavar="auto|kernel|pyfuse3", help="How to talk to the kernel.")
    ] = "auto",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="How it is served: see dtctl mount options. Several: again, or with commas between.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Capture every change below PATH from now on, also after a restart."""
    body: dict[str, object] = {
        "path": absolute(path),
        "mountpoint": absolute(at) if at is not None else None,
        "binding": binding,
    }
    if option:
        body["options"] = mount_options.split(option)
    mount = agent(context).post("mounts", body=body)
    output.emit(mount, json, "mount_added")


@app.command("set", epilog="Example: dtctl mount set /srv/data writes=direct reads=default")
def set_(
    context: typer.Context,
    path: MountedPath,
    options: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="See dtctl mount options.")],
    json: Json = False,
) -> None:
    """Change options of PATH. It is reloaded with them: programs that use it wait a moment."""
    mount = agent(context).post(
        "mounts",
        "options",
        body={"path": absolute(path), "options": mount_options.split(options)},
        timeout_s=RELOAD_TIMEOUT_S,
    )
    output.emit(mount, json, "mount_options_set")


@app.command("options", epilog="Example: dtctl mount options")
def options_(json: Json = False) -> None:
    """Show which options a captured directory can have."""
    output.emit(mount_options.table(), json, "mount_options")


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
