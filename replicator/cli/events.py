"""`dtctl events`: what happened."""

from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.options import Json, agent


def register(app: typer.Typer) -> None:
    app.command("events", epilog="Example: dtctl events --limit 20")(events)


def events(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="The last N events.")] = 50,
    json: Json = False,
) -> None:
    """Show the agent's events, oldest first."""
    output.emit(agent(context).get("events", limit=limit), json, "events")
