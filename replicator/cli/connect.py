"""`dtctl protect`, `connect`, `disconnect`: connections come and go."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from replicator.cli import output
from replicator.cli.client import Client
from replicator.cli.options import (
    NEWER_WARNING,
    Checksum,
    Compression,
    Connection,
    Json,
    Limit,
    Lock,
    MirrorKind,
    Newer,
    RepsetName,
    Route,
    Timeout,
    absolute,
    agent,
)
from replicator.cli.units import target_text
from replicator.diagnostics import is_nowhere
from replicator.errors import ReplicatorError, UsageError


def register(app: typer.Typer) -> None:
    app.command("protect", epilog="Example: dtctl protect /srv/data backup:/srv/data --wait")(protect)
    app.command("connect", epilog="Example: dtctl connect web backup:1500 --map /srv/www=/replica/www")(
        connect
    )
    app.command("disconnect", epilog="Example: dtctl disconnect 1")(disconnect)


def protect(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SRC", help="Directory to protect.")],
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="HOST[:PORT]:/path, or /path on this host.")
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Return when the target equals the source.")] = False,
    checksum: Checksum = False,
    lock: Lock = None,
    route: Route = None,
    compression: Compression = None,
    limit: Limit = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Protect a directory: the whole job in one line.

    Captures SRC, mirrors it to DEST, and replicates every change from now on.
    """
    client = agent(context)
    body: dict[str, object] = {"source": absolute(source), "destination": _destination(destination)}
    if checksum:
        body["checksum"] = True
    if lock is not None:
        body["lock"] = lock
    if route is not None:
        body["route"] = route
    body |= _transmission(compression, limit)
    status = client.post("protect", body=body)
    if wait:
        from replicator.cli.progress import wait_for

        status = wait_for(client, str(status["uuid"]), timeout, quiet=json)
    _tell(status, json)


def connect(
    context: typer.Context,
    repset: RepsetName,
    target: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Agent that gets the copy.")],
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="SRC=DST", help="SRC and what is below goes to DST. Repeatable."),
    ] = None,
    one_to_one: Annotated[
        bool, typer.Option("--one-to-one", help="Everything goes to the same path on the target.")
    ] = False,
    no_mirror: Annotated[
        bool, typer.Option("--no-mirror", help="Do not copy what is there already.")
    ] = False,
    no_replicate: Annotated[bool, typer.Option("--no-replicate", help="Do not send changes.")] = False,
    mirror: MirrorKind = None,
    newer: Newer = False,
    checksum: Checksum = False,
    lock: Lock = None,
    route: Route = None,
    compression: Compression = None,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Connect a replication set to a target.

    Mirrors the set and replicates every change from now on.
    """
    if mapping and one_to_one:
        raise UsageError("--map and --one-to-one exclude each other; give one of them")
    if no_mirror and (mirror or newer or checksum):
        raise UsageError(
            "--no-mirror leaves nothing for --mirror, --newer or --checksum to do; drop one side"
        )
    body: dict[str, object] = {
        "repset": repset,
        "target": target,
        "maps": [_pair(text) for text in mapping or []],
        "one_to_one": one_to_one,
        "replicate": not no_replicate,
        "newer": newer,
        "checksum": checksum,
    }
    if newer:
        output.warn(NEWER_WARNING)
    if no_mirror or mirror is not None:  # otherwise the agent's default
        body["mirror"] = mirror
    if lock is not None:
        body["lock"] = lock
    if route is not None:
        body["route"] = route
    body |= _transmission(compression, limit)
    status = agent(context).post("connections", body=body)
    _tell(status, json)


def _tell(status: Mapping[str, Any], as_json: bool) -> None:
    """What was made. In plain text, for which nothing needs to be loaded."""
    if as_json:
        output.print_json(status)
    else:
        output.say(f"connection {status['id']}: {status['repset']} → {target_text(status)}")


def disconnect(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """End a connection. The copy on the target stays as it is."""
    ended = agent(context).post("connections", connection, "disconnect")
    if json:
        output.print_json(ended)
    else:
        left = (
            "what it measured is forgotten" if is_nowhere(ended["target"]) else "the copy on the target stays"
        )
        output.say(f"connection {connection} has ended; {left}")
        for guard in _guards(agent(context)):
            if ended["uuid"] in guard["copies"]:  # FO-18: a monitor lives on
                name = guard["name"]
                output.say(f"{guard['target']} watches this host still: dtctl failover remove {name} there")


def _guards(client: Client) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = client.get("failover", "guards")
    except ReplicatorError:  # an agent that takes no part in failover
        return []
    return found


def _transmission(compression: str | None, limit: str | None) -> dict[str, str]:
    for option, text in (("--compression", compression), ("--limit", limit)):
        if text is not None and not text.strip():
            raise UsageError(f"{option}: an empty text says nothing; leave the option out")
    given = {"compression": compression, "bandwidth": limit}
    return {name: text for name, text in given.items() if text is not None}


def _pair(text: str) -> dict[str, str]:
    source, separator, target = text.partition("=")
    if not (source and separator and target):
        raise UsageError(f"--map {text}: write it as SRC=DST, for example /srv/www=/replica/www")
    return {"source": absolute(source), "target": target}


def _destination(text: str) -> str:
    """A path if it begins with a slash or a dot.

    A bare name is left for the agent to refuse: it may be a host whose path was forgotten.
    """
    return absolute(text) if text.startswith(("/", ".")) else text
