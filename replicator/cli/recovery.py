"""`dtctl recovery`: how fast recoveries and mirrors are, which go first, and whether they begin by
themselves.
"""

from typing import Annotated, Any

import typer

from replicator.cli import output
from replicator.cli.options import Connection, Json, RepsetName, agent
from replicator.errors import UsageError
from replicator.shares import Priority, Speed

app = typer.Typer(help="Recoveries and mirrors: how fast, which first, and whether by themselves.")

_SWITCH = {"on": "automatic", "off": "manual"}


@app.callback(invoke_without_command=True, epilog="Example: dtctl recovery")
def show(context: typer.Context, json: Json = False) -> None:
    """Show speed and priorities, and what recovers now."""
    if context.invoked_subcommand is not None:
        return
    client = agent(context)
    found = {**client.get("recovery"), "connections": client.get("connections")}
    if json:
        output.print_json(found)
        return
    from replicator.cli import render, render_recovery

    render.show(render_recovery.recovery(found))


@app.command("speed", epilog="Examples: dtctl recovery speed low  |  dtctl recovery speed")
def speed(
    context: typer.Context,
    speed: Annotated[
        str | None,
        typer.Argument(metavar=f"[{'|'.join(Speed)}]", help="Shown if it is left out.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Set how fast all recoveries and mirrors of this host are, at once; none suspends them."""
    client = agent(context)
    found = client.get("recovery") if speed is None else client.post("recovery", body={"speed": speed})
    _say(found, json, f"recovery speed is {found['speed']}")


@app.command("priority", epilog="Example: dtctl recovery priority web critical")
def priority(
    context: typer.Context,
    repset: RepsetName,
    priority: Annotated[str, typer.Argument(metavar="|".join(Priority))],
    json: Json = False,
) -> None:
    """Set how important a replication set is while others recover as well."""
    found = agent(context).post("repsets", repset, "priority", body={"priority": priority})
    _say(found, json, f"replication set {repset}: recovery priority {priority}")


@app.command("auto", epilog="Example: dtctl recovery auto 1 off")
def auto(
    context: typer.Context,
    connection: Connection,
    switch: Annotated[str, typer.Argument(metavar="on|off")],
    json: Json = False,
) -> None:
    """Let recoveries of a connection begin by themselves, or wait for 'dtctl recovery resume'."""
    if switch not in _SWITCH:
        raise UsageError(f"{switch!r}: must be on or off")
    status = agent(context).post("connections", connection, "recovery", body={"action": _SWITCH[switch]})
    how = "begin by themselves" if switch == "on" else "wait for 'dtctl recovery resume'"
    _say(status, json, f"connection {connection}: recoveries {how}")


@app.command("pause", epilog="Example: dtctl recovery pause 1")
def pause(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Hold the recovery or mirror at its place, for any time; changes still flow."""
    status = agent(context).post("connections", connection, "recovery", body={"action": "pause"})
    _say(status, json, f"connection {connection}: {status['recovery']['text']}")


@app.command("resume", epilog="Example: dtctl recovery resume 1")
def resume(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Go on where it was paused, or begin what waits for a person."""
    status = agent(context).post("connections", connection, "recovery", body={"action": "resume"})
    _say(status, json, f"connection {connection}: {status['recovery']['text'] or 'recovered'}")


@app.command("force", epilog="Example: dtctl recovery force 1 source --confirm web")
def force(
    context: typer.Context,
    connection: Connection,
    survivor: Annotated[str, typer.Argument(metavar="source|target")],
    confirm: Annotated[
        str, typer.Option("--confirm", metavar="SET", help="Name of the set: you know what is lost.")
    ] = "",
    json: Json = False,
) -> None:
    """Choose which side survives when both were changed. Says what is lost, and does it if confirmed."""
    body = {"survivor": survivor, "confirm": confirm}
    status = agent(context).post("connections", connection, "force", body=body)
    _say(status, json, f"connection {connection}: the {survivor} survives; everything is sent")


def _say(document: Any, as_json: bool, text: str) -> None:
    if as_json:
        output.print_json(document)
    else:
        output.say(text)
