"""`dtctl wait`, `mirror`, `replicate`, `transmit`, `target`: what to do with a connection."""

from collections.abc import Mapping
from typing import Annotated

import typer

from replicator.cli import orphans, output
from replicator.cli.options import (
    NEWER_WARNING,
    Checksum,
    Connection,
    Json,
    Newer,
    Timeout,
    agent,
)

_DONE = {"start": "started", "stop": "stopped", "pause": "paused", "resume": "resumed"}


def register(app: typer.Typer) -> None:
    app.command("wait", epilog="Example: dtctl wait 1 --timeout 60")(wait)
    for name, group in (
        ("mirror", _mirror),
        ("replicate", _replicate),
        ("transmit", _transmit),
        ("target", _target),
    ):
        app.add_typer(group, name=name)


def wait(context: typer.Context, connection: Connection, timeout: Timeout = None, json: Json = False) -> None:
    """Wait until the target equals the source.

    Returns once everything captured before is applied on the target and no mirror runs.
    """
    from replicator.cli.progress import wait_for

    status = wait_for(agent(context), connection, timeout, quiet=json)
    if json:
        output.print_json(status)


def _act(
    context: typer.Context,
    connection: str,
    what: str,
    action: str,
    *,
    as_json: bool,
    options: Mapping[str, object] | None = None,
) -> None:
    body = {"action": action, **(options or {})}
    status = agent(context).post("connections", connection, what, body=body)
    if as_json:
        output.print_json(status)
    else:
        waits = f"; {status['state_reason']}" if status.get("state") == "Scheduled" else ""
        output.say(f"connection {connection}: {what} {_DONE[action]}{waits}")


_HELP = {
    ("mirror", "stop"): "End the running mirror; the next one begins anew.",
    ("mirror", "pause"): "Hold the mirror at its place; changes still flow.",
    ("mirror", "resume"): "Go on where the mirror was paused.",
    ("replicate", "start"): "Send changes again, and bring what was noted meanwhile.",
    ("replicate", "stop"): "Send changes no more; what changes is noted.",
    ("transmit", "start"): "Connect to the target and send; where there is a schedule, begin a session.",
    ("transmit", "stop"): "Close the connection to the target; changes are queued.",
    ("transmit", "pause"): "Hold everything in the queue; the connection stays.",
    ("transmit", "resume"): "Send again; where there is a schedule, when that says so.",
    ("target", "pause"): "Keep what arrives in the target's queue, so that the copy stands still.",
    ("target", "resume"): "Apply what arrived meanwhile, and go on.",
}


def _add(group: typer.Typer, what: str, action: str) -> None:
    def command(context: typer.Context, connection: Connection, json: Json = False) -> None:
        _act(context, connection, what, action, as_json=json)

    group.command(action, help=_HELP[what, action], epilog=f"Example: dtctl {what} {action} 1")(command)


def _group(what: str, help_text: str, *actions: str) -> typer.Typer:
    group = typer.Typer(help=help_text)
    for action in actions:
        _add(group, what, action)
    return group


_mirror = _group("mirror", "The mirror: copies what is there already.")


@_mirror.command("start", epilog="Example: dtctl mirror start 1 --mirror difference")
def _mirror_start(
    context: typer.Context,
    connection: Connection,
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[full|difference|log]", help="The same as --mirror.", show_default=False),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option("--mirror", metavar="full|difference|log", help="What it sends: see above."),
    ] = None,
    kind_option: Annotated[str | None, typer.Option("--kind", hidden=True)] = None,
    newer: Newer = False,
    checksum: Checksum = False,
    json: Json = False,
) -> None:
    """Copy the whole set, or what differs, to the target while changes flow.

    "full": every file. "difference" (the default): files that differ in size or time are sent whole; with
    --checksum, only their blocks that differ. "log": only what was noted as changed while both sides were
    apart.
    """
    wanted = mirror or kind_option or kind
    if newer:
        output.warn(NEWER_WARNING)
    options: dict[str, object] = {"newer": newer, "checksum": checksum}
    if wanted is not None:  # otherwise the agent's default
        options["kind"] = wanted
    _act(context, connection, "mirror", "start", options=options, as_json=json)


for _action in ("stop", "pause", "resume"):
    _add(_mirror, "mirror", _action)


_replicate = _group("replicate", "Replication: the sending of changes.", "start", "stop")
_transmit = _group(
    "transmit", "Transmission: whether anything goes to the target.", "start", "stop", "pause", "resume"
)
_target = _group("target", "The target: whether it applies what arrives.", "pause", "resume")


_target.command("orphans", epilog="Example: dtctl target orphans --action move --directory /srv/orphans")(
    orphans.settings
)


@_target.command("list", epilog="Example: dtctl target list")
def _target_list(context: typer.Context, json: Json = False) -> None:
    """Show the copies that are kept on this host."""
    output.emit(agent(context).get("targets"), json, "targets")


@_target.command("use", epilog="Example: dtctl target use 6f0e3c52-9d1b-4c55-a8f1-3f6b9c1d2e77")
def _target_use(
    context: typer.Context,
    uuid: Annotated[
        str, typer.Argument(metavar="UUID", help="Connection whose copy is changed from now on.")
    ],
    json: Json = False,
) -> None:
    """Take a paused copy into use on this host. Its source sends nothing until somebody chooses a side."""
    used = agent(context).post("targets", body={"action": "use", "uuid": uuid})
    if json:
        output.print_json(used)
    else:
        output.say(f"the copy of connection {uuid} is in use; on its source: dtctl recovery force")


@_target.command("forget", epilog="Example: dtctl target forget 6f0e3c52-9d1b-4c55-a8f1-3f6b9c1d2e77")
def _target_forget(
    context: typer.Context,
    uuid: Annotated[str, typer.Argument(metavar="UUID", help="Connection whose source is gone for good.")],
    json: Json = False,
) -> None:
    """Forget a connection that ends here; its copy stays."""
    forgotten = agent(context).post("targets", body={"action": "forget", "uuid": uuid})
    if json:
        output.print_json(forgotten)
    else:
        output.say(f"connection {uuid} is forgotten; its copy stays")
