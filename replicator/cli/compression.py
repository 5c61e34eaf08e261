"""`dtctl compression`: how well what is sent is compressed."""

from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.options import Json, agent
from replicator.cli.transmission import Target, split, tell
from replicator.transmission import MAXIMUM

app = typer.Typer(help="Compression of what is sent: off, a level, or automatic.")


@app.callback(invoke_without_command=True, epilog="Example: dtctl compression")
def show(context: typer.Context, json: Json = False) -> None:
    """Show what was asked for, and the level and ratio of each connection now."""
    if context.invoked_subcommand is None:
        output.emit(agent(context).get("transmission"), json, "transmission")


@app.command(
    "set", epilog="Examples: dtctl compression set 1 auto  |  dtctl compression set --target backup 3"
)
def set_(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(metavar=f"[CON] off|auto|1…{MAXIMUM}", help="Not needed with --target: CON."),
    ],
    target: Target = None,
    json: Json = False,
) -> None:
    """Set the compression of a connection, or of all connections to a target.

    auto: a level that the line, the processors and the data make worth it, or none. "default", of a
    connection: what its target has.
    """
    connection, level = split(words, target, "off, auto or a level")
    body: dict[str, object] = {"compression": "" if level == "default" else level}
    what, found = tell(agent(context), connection, target, body)
    if json:
        output.print_json(found)
    else:
        output.say(f"{what}: compression {level}")
