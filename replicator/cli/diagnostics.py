"""`dtctl diagnostics`: what replication of a set would need, measured without a target."""

from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.options import Connection, Json, agent

app = typer.Typer(
    help="What replication would need, measured by a connection to the target Diagnostics.",
    epilog="Example: dtctl protect /srv/data Diagnostics; dtctl diagnostics report 1",
)


@app.command("report", epilog='Examples: dtctl diagnostics report 1  |  … 1 --line "50 Mbit/s"')
def report(
    context: typer.Context,
    connection: Connection,
    line: Annotated[
        str | None,
        typer.Option("--line", metavar="RATE", help='Judge this line, too: "50 Mbit/s", "25 % of T3".'),
    ] = None,
    json: Json = False,
) -> None:
    """Show bandwidth, queue and time that replication would have needed until now."""
    found = agent(context).get("connections", connection, "diagnostics", line=line)
    output.emit(found, json, "diagnostics")


@app.command("reset", epilog="Example: dtctl diagnostics reset 1")
def reset(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Measure changes anew from now on."""
    found = agent(context).post("connections", connection, "diagnostics", body={"action": "reset"})
    output.emit(found, json, "diagnostics")
