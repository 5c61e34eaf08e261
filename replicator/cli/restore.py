"""`dtctl restore`: the data of a copy is brought home."""

from typing import Annotated, Any

import typer

from replicator.cli import output
from replicator.cli.following import until_over
from replicator.cli.options import NEWER_WARNING, Json, absolute, agent
from replicator.errors import ReplicatorError, UsageError
from replicator.restores import Danger

_START_TIMEOUT_S = 3600.0  # both trees may have to be compared first
_ENDED = ("complete", "stopped", "failed")

app = typer.Typer(help="Restore data from a copy, to this host.")

Restore = Annotated[str, typer.Argument(metavar="ID", help="Number of the restore.")]


@app.command("copies", epilog="Example: dtctl restore copies backup:1500")
def copies(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="[HOST[:PORT]]", help="Agent that keeps copies; without: this one.")
    ] = "",
    json: Json = False,
) -> None:
    """List the copies that an agent keeps."""
    output.emit(agent(context).post("restores", "copies", body={"source": source}), json, "copies")


@app.command("start", epilog="Example: dtctl restore start 1 --dry-run")
def start(
    context: typer.Context,
    copy: Annotated[
        str,
        typer.Argument(
            metavar="COPY", help="Connection whose copy it is; with --from, also the copy's uuid or set."
        ),
    ],
    source: Annotated[
        str,
        typer.Option("--from", metavar="HOST[:PORT]", help="Agent that keeps the copy, for a new host."),
    ] = "",
    path: Annotated[
        list[str] | None,
        typer.Option("--path", help="Only this, with all below: absolute, on the source. Repeatable."),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="DIR", help="Into another directory.")] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="SRC=DIR", help="SRC and what is below goes to DIR. Repeatable."),
    ] = None,
    only_missing: Annotated[
        bool, typer.Option("--only-missing", help="Make what is missing; leave all else as it is.")
    ] = False,
    newer: Annotated[
        bool, typer.Option("--newer", help="Overwrite files only where the copy's is newer.")
    ] = False,
    checksum: Annotated[
        bool, typer.Option("--checksum", help="Of files that differ, send only blocks that differ.")
    ] = False,
    orphans: Annotated[
        str | None,
        typer.Option(
            "--orphans", metavar="keep|delete|move", help="What becomes of names that the copy does not have."
        ),
    ] = None,
    orphans_directory: Annotated[
        str | None, typer.Option("--orphans-directory", metavar="DIR", help="Where moved ones go.")
    ] = None,
    orphans_older_than: Annotated[
        float, typer.Option("--orphans-older-than", metavar="DAYS", help="Only what was not modified since.")
    ] = 0.0,
    orphans_over_limit: Annotated[
        bool, typer.Option("--orphans-over-limit", help="However many they are.")
    ] = False,
    even_if: Annotated[
        list[str] | None,
        typer.Option("--even-if", metavar="|".join(Danger), help="Accept this danger. Repeatable."),
    ] = None,
    definition: Annotated[
        bool, typer.Option("--definition", help="Keep the definition of the replication set here, too.")
    ] = False,
    protect: Annotated[
        bool, typer.Option("--protect", help="Capture it here, and go on replicating to the same copy.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would happen.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is done.")] = False,
    json: Json = False,
) -> None:
    """Bring the data of a copy home: the whole set to its place, or paths, or elsewhere.

    Over the connection's own directories, whole: they are unmounted meanwhile, and protection goes on
    afterwards, without a mirror.
    """
    if only_missing and newer:
        raise UsageError("--only-missing and --newer exclude each other; give one of them")
    if newer:
        output.warn(NEWER_WARNING)
    body: dict[str, object] = {
        "copy": copy,
        "source": source,
        "paths": [absolute(text) for text in path or []],
        "to": absolute(to) if to is not None else "",
        "maps": [_pair(text) for text in mapping or []],
        "existing": "missing" if only_missing else "newer" if newer else "overwrite",
        "checksum": checksum,
        "orphans": orphans,
        "orphans_directory": absolute(orphans_directory) if orphans_directory is not None else "",
        "orphans_older_than_days": orphans_older_than,
        "orphans_over_limit": orphans_over_limit,
        "even_if": even_if or [],
        "definition": definition,
        "protect": protect,
        "dry_run": dry_run,
    }
    client = agent(context)
    found = client.post("restores", body=body, timeout_s=_START_TIMEOUT_S)
    if dry_run:
        output.emit(found, json, "restore_plan")
        return
    if wait:
        found = _ended(client, str(found["uuid"]), quiet=json)
    output.emit(found, json, "restore")
    if found["phase"] in ("failed", "stopped"):
        raise ReplicatorError(f"restore {found['id']} {found['phase']}: {found['reason']}")


def _pair(text: str) -> dict[str, str]:
    source, separator, place = text.partition("=")
    if not (source and separator and place):
        raise UsageError(f"--map {text}: write it as SRC=DIR, for example /srv/www=/srv/restored")
    return {"source": absolute(source), "replica": absolute(place)}


def _ended(client: Any, restore: str, *, quiet: bool) -> Any:
    """Its view when it has ended; progress for those who watch."""
    shows = not quiet and output.is_terminal()
    last = said = ""

    def tell(found: Any) -> None:
        nonlocal last, said
        if found["reason"] != said and not quiet and not shows and found["phase"] not in _ENDED:
            said = found["reason"]
            if said:
                output.warn(said)
        percent = found["percent"]
        text = f"{percent:.0f} %, {found['done_files']} files" if percent is not None else found["phase"]
        text += f"; {found['reason']}" if found["reason"] else ""
        if shows and text != last and found["phase"] not in _ENDED:
            output.warn(text)
            last = text

    return until_over(lambda: client.get("restores", restore), lambda found: found["phase"] in _ENDED, tell)


@app.command("status", epilog="Example: dtctl restore status")
def status(
    context: typer.Context,
    restore: Annotated[str | None, typer.Argument(metavar="[ID]", help="One of them.")] = None,
    json: Json = False,
) -> None:
    """Show the restores to this host: those at work, and the last that have ended."""
    client = agent(context)
    found = client.get("restores") if restore is None else [client.get("restores", restore)]
    output.emit(found, json, "restores")


def _act(context: typer.Context, restore: str, action: str, json: bool) -> None:
    output.emit(agent(context).post("restores", restore, body={"action": action}), json, "restore")


@app.command("pause", epilog="Example: dtctl restore pause 1")
def pause(context: typer.Context, restore: Restore, json: Json = False) -> None:
    """Hold it at its place."""
    _act(context, restore, "pause", json)


@app.command("resume", epilog="Example: dtctl restore resume 1")
def resume(context: typer.Context, restore: Restore, json: Json = False) -> None:
    """Go on where it was paused."""
    _act(context, restore, "resume", json)


@app.command("stop", epilog="Example: dtctl restore stop 1")
def stop(context: typer.Context, restore: Restore, json: Json = False) -> None:
    """End it half-way. What is here stays, and is not replicated before `dtctl transmit start`."""
    _act(context, restore, "stop", json)
