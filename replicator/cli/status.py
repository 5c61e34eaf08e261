"""`dtctl status`: states and statistics of connections."""

from typing import Annotated

import typer

from replicator.cli import complete, output
from replicator.cli.options import Json, agent


def register(app: typer.Typer) -> None:
    app.command("status", epilog="Examples: dtctl status  |  dtctl status 1 --json")(status)


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
        return
    found = client.get("connections", connection)
    if json:
        output.print_json([found])  # a list in every case: one program reads both forms
    else:
        output.emit(found, False, "connection")
