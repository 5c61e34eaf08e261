"""`dtctl limit schedule`: limits that hold on some days and times."""

from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.options import Json, agent
from replicator.cli.transmission import Target, Whose, act, ask, whose

app = typer.Typer(
    help="A calendar of limits of a connection, or of a target.",
    epilog='Example: dtctl limit schedule add 1 office "1 MB/s" --days mo,tu --start 08:00 --end 18:00',
)


def _act(
    context: typer.Context,
    connection: str | None,
    target: str | None,
    body: dict[str, object],
    json: bool,
) -> None:
    output.emit(act(agent(context), "calendar", connection, target, body), json, "calendar")


@app.command("add", epilog="Example: dtctl limit schedule add 1 night unlimited --start 18:00")
def add(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[CON] LABEL LIMIT", help="Name of the entry, and a limit as of `dtctl limit bandwidth`."
        ),
    ],
    start: Annotated[str, typer.Option("--start", metavar="HH:MM", help="Local time of day.")],
    end: Annotated[
        str, typer.Option("--end", metavar="HH:MM", help="Without it: until another entry begins.")
    ] = "",
    days: Annotated[
        str, typer.Option("--days", metavar="DAYS", help="'mo,tu', 'Saturday'; without it: every day.")
    ] = "",
    target: Target = None,
    json: Json = False,
) -> None:
    """Add an entry, or replace the one of that name."""
    connection, (label, limit) = whose(words, target, "LABEL", "LIMIT")
    body: dict[str, object] = {"action": "add", "label": label, "limit": limit}
    _act(context, connection, target, {**body, "start": start, "end": end, "days": days}, json)


@app.command("remove", epilog="Example: dtctl limit schedule remove 1 office")
def remove(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="[CON] LABEL", help="Name of the entry.")],
    target: Target = None,
    json: Json = False,
) -> None:
    """Remove an entry."""
    connection, (label,) = whose(words, target, "LABEL")
    _act(context, connection, target, {"action": "remove", "label": label}, json)


@app.command("clear", epilog="Example: dtctl limit schedule clear 1")
def clear(
    context: typer.Context, connection: Whose = None, target: Target = None, json: Json = False
) -> None:
    """Remove all entries."""
    _act(context, connection, target, {"action": "clear"}, json)


@app.command("list", epilog="Example: dtctl limit schedule list 1")
def list_(
    context: typer.Context, connection: Whose = None, target: Target = None, json: Json = False
) -> None:
    """Show the entries, which of them holds now, and until when."""
    output.emit(ask(agent(context), "calendar", connection, target), json, "calendar")
