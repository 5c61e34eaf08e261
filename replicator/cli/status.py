"""`dtctl status`: states and statistics of connections. `dtctl info`: the agent itself."""

from datetime import datetime
from typing import Annotated

import typer

from replicator.cli import complete, output
from replicator.cli.client import Client
from replicator.cli.options import Json, agent
from replicator.errors import ReplicatorError


def register(app: typer.Typer) -> None:
    app.command("status", epilog="Examples: dtctl status  |  dtctl status 1 --json")(status)
    app.command("info", epilog="Example: dtctl info")(info)


def status(
    context: typer.Context,
    connection: Annotated[
        str | None,
        typer.Argument(
            metavar="[CON]",
            help="One connection: its id, its uuid or the name of its replication set.",
            autocompletion=complete.connections,
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show all connections, or everything about one."""
    client = agent(context)
    if connection is None:
        output.emit(client.get("connections"), json, "connections")
        if not json:
            _show_questions(client)
        return
    found = client.get("connections", connection)
    if json:
        output.print_json([found])  # a list in every case: one program reads both forms
    else:
        output.emit(found, False, "connection")


def info(context: typer.Context, json: Json = False) -> None:
    """Show which agent this is, what it has, and how many have logged in."""
    found = agent(context).get("agent")
    if json:
        output.print_json(found)
        return
    since = f"{datetime.fromtimestamp(found['started']):%Y-%m-%d %H:%M:%S}"
    plain = "; plain text is allowed: dtctl identity" if found["insecure"] else ""
    output.say(f"agent      {found['name']} ({found['uuid']}), version {found['version']}")
    output.say(f"running    since {since}, pid {found['pid']}")
    output.say(f"home       {found['home']}")
    output.say(f"listens on {found['listen']}{plain}")
    output.say(
        f"has        {found['mounts']} captured directories, {found['repsets']} replication sets,"
        f" {found['connections']} connections, {found['receivers']} copies of others"
    )
    output.say(f"logins     {found['logins']} since it started, {found['failed_logins']} failed")


def _show_questions(client: Client) -> None:
    """FO-09: what monitors ask, whoever looks."""
    try:
        monitors = client.get("failover", "monitors")
    except ReplicatorError:  # an agent of an older release: it is asked nothing
        return
    if any(m["question"] or m["halted"] or m["phase"] == "failing back" for m in monitors):
        from replicator.cli import render, render_failover

        for monitor in monitors:
            for line in render_failover.question(monitor):
                render.show(line)
