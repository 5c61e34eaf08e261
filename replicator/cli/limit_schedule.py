"""`dtctl limit schedule`: limits that hold on some days and times."""

from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.options import Connection, Json, agent

app = typer.Typer(
    help="A calendar of limits of a connection.",
    epilog='Example: dtctl limit schedule add 1 office "1 MB/s" --days mo,tu --start 08:00 --end 18:00',
)
Label = Annotated[str, typer.Argument(metavar="LABEL", help="Name of the entry.")]


def _act(context: typer.Context, connection: str, body: dict[str, object], json: bool) -> None:
    found = agent(context).post("connections", connection, "calendar", body=body)
    output.emit(found, json, "calendar")


@app.command("add", epilog="Example: dtctl limit schedule add 1 night unlimited --start 18:00")
def add(
    context: typer.Context,
    connection: Connection,
    label: Label,
    limit: Annotated[str, typer.Argument(metavar="LIMIT", help="As of `dtctl limit bandwidth`.")],
    start: Annotated[str, typer.Option("--start", metavar="HH:MM", help="Local time of day.")],
    end: Annotated[
        str, typer.Option("--end", metavar="HH:MM", help="Without it: until another entry begins.")
    ] = "",
    days: Annotated[
        str, typer.Option("--days", metavar="DAYS", help="'mo,tu', 'Saturday'; without it: every day.")
    ] = "",
    json: Json = False,
) -> None:
    """Add an entry, or replace the one of that name."""
    body: dict[str, object] = {"action": "add", "label": label, "limit": limit}
    _act(context, connection, {**body, "start": start, "end": end, "days": days}, json)


@app.command("remove", epilog="Example: dtctl limit schedule remove 1 office")
def remove(context: typer.Context, connection: Connection, label: Label, json: Json = False) -> None:
    """Remove an entry."""
    _act(context, connection, {"action": "remove", "label": label}, json)


@app.command("clear", epilog="Example: dtctl limit schedule clear 1")
def clear(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Remove all entries."""
    _act(context, connection, {"action": "clear"}, json)


@app.command("list", epilog="Example: dtctl limit schedule list 1")
def list_(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Show the entries, which of them holds now, and until when."""
    output.emit(agent(context).get("connections", connection, "calendar"), json, "calendar")
