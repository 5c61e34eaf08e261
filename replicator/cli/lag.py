"""`dtctl lag`: how far a target is behind, and where."""

from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.options import Connection, Json, agent
from replicator.errors import UsageError


def register(app: typer.Typer) -> None:
    app.command("lag", epilog="Examples: dtctl lag 1  |  dtctl lag 1 --watch")(lag)


def lag(
    context: typer.Context,
    connection: Connection,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again each second.")] = False,
    json: Json = False,
) -> None:
    """Show where operations spend their time on the way to the target, and what would be lost now."""
    client = agent(context)
    if not watch:
        output.emit(client.get("connections", connection, "lag"), json, "lag")
        return
    if json or not output.is_terminal():
        raise UsageError("--watch needs a terminal; leave it out in pipes and scripts")
    import time

    from rich.live import Live

    from replicator.cli import render

    with Live(auto_refresh=False) as live:
        while True:
            live.update(render.lag(client.get("connections", connection, "lag")), refresh=True)
            time.sleep(1.0)
