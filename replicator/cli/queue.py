"""`dtctl queue`: how full the queues of this host are, and what they can still take."""

import typer

from replicator.cli import output
from replicator.cli.options import Json, agent


def register(app: typer.Typer) -> None:
    app.command("queue", epilog="Example: dtctl queue")(queue)


def queue(context: typer.Context, json: Json = False) -> None:
    """Show the queues of captured directories and of the copies that are kept here."""
    output.emit(agent(context).get("queues"), json, "queues")
