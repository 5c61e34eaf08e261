"""`dtctl limit`: how much of a line the transmission may take."""

from typing import Annotated

import typer

from replicator.cli import limit_schedule, output
from replicator.cli.options import Json, agent
from replicator.cli.transmission import Target, split, tell
from replicator.cli.units import count_text
from replicator.errors import UsageError
from replicator.transmission import parse_limit

app = typer.Typer(help="Limits of the bandwidth that is used.")
app.add_typer(limit_schedule.app, name="schedule")


@app.callback(invoke_without_command=True, epilog="Example: dtctl limit")
def show(context: typer.Context, json: Json = False) -> None:
    """Show all limits, and what acts now."""
    if context.invoked_subcommand is None:
        output.emit(agent(context).get("transmission"), json, "transmission")


@app.command(
    "bandwidth", epilog='Examples: dtctl limit bandwidth 1 "10 MB/s"  |  … --target backup "10 % of T1"'
)
def bandwidth(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(metavar="[CON] LIMIT", help='"1 MB/s", "10 % of T1", "19300, 5", or unlimited.'),
    ],
    target: Target = None,
    json: Json = False,
) -> None:
    """Limit a connection, or all connections to a target together.

    Bytes per second, a percentage of a line ("25 % of 50 Mbit/s", "dtctl limit links"), or BYTES, SECONDS: so
    many bytes at once, then nothing until the seconds are over.
    """
    connection, limit = split(words, target, "a limit")
    what, found = tell(agent(context), connection, target, {"bandwidth": limit})
    if json:
        output.print_json(found)
    else:
        output.say(f"{what}: bandwidth {limit}{_in_bytes(limit)}")


def _in_bytes(text: str) -> str:
    """What acts of a limit that was written in another way."""
    limit = parse_limit(text)
    if limit is None or text.strip().isdigit():
        return ""
    average = " on average" if limit.seconds else ""
    return f" ({count_text(limit.bytes_per_s)} bytes per second{average})"


def _switch(name: str, limiting: bool, help_text: str) -> None:
    @app.command(name, help=help_text, epilog=f"Examples: dtctl limit {name} 1  |  … --target backup")
    def switch(
        context: typer.Context,
        connection: Annotated[str | None, typer.Argument(metavar="[CON]", show_default=False)] = None,
        target: Target = None,
        json: Json = False,
    ) -> None:
        if (connection is None) == (target is None):
            raise UsageError("name a connection, or --target HOST")
        what, found = tell(agent(context), connection, target, {"limiting": limiting})
        if json:
            output.print_json(found)
        else:
            output.say(f"{what}: limiting {name}")


_switch("on", True, "Let the limits act again that were switched off.")
_switch("off", False, "Send without limits; their values are kept.")


@app.command("links", epilog="Example: dtctl limit links")
def links(context: typer.Context, json: Json = False) -> None:
    """Show the links whose percentages can be asked for, and their speeds."""
    found = agent(context).get("transmission")["links_bit_per_s"]
    if json:
        output.print_json(found)
        return
    for name, bit_per_s in found.items():
        output.say(f"{name:20} {count_text(bit_per_s / 8):>15} bytes per second")
