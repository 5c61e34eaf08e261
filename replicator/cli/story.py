"""`dtctl story`: what happened to a connection."""

import time
from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.options import Connection, Json, agent
from replicator.errors import UsageError

_POLL_S = 1.0


def register(app: typer.Typer) -> None:
    app.command("story", epilog="Examples: dtctl story 1  |  dtctl story 1 --follow")(story)


def story(
    context: typer.Context,
    connection: Connection,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="The last N steps.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as it happens, until Ctrl-C.")
    ] = False,
    json: Json = False,
) -> None:
    """Tell what happened to a connection: each change of its states, why, and after how long."""
    if follow and json:
        raise UsageError("--json is one document, --follow has no end: leave one of them out")
    client = agent(context)
    entries = client.get("connections", connection, "story", limit=limit)
    output.emit(entries, json, "story")
    while follow:
        time.sleep(_POLL_S)
        since = entries[-1]["sequence"] if entries else 0
        if new := client.get("connections", connection, "story", since=since):
            entries = new
            output.emit(entries, False, "story")
