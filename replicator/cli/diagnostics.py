"""`dtctl diagnostics`: what replication of a set would need, measured without a target."""

import typer

from replicator.cli import output
from replicator.cli.options import Connection, Json, agent

app = typer.Typer(
    help="What replication would need, measured by a connection to the target Diagnostics.",
    epilog="Example: dtctl protect /srv/data Diagnostics; dtctl diagnostics report 1",
)


@app.command("report", epilog="Example: dtctl diagnostics report 1")
def report(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Show bandwidth, queue and time that replication would have needed until now."""
    output.emit(agent(context).get("connections", connection, "diagnostics"), json, "diagnostics")


@app.command("reset", epilog="Example: dtctl diagnostics reset 1")
def reset(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Measure changes anew from now on."""
    found = agent(context).post("connections", connection, "diagnostics", body={"action": "reset"})
    output.emit(found, json, "diagnostics")
