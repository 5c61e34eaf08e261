"""`dtctl schedule`: when a connection transmits, or all connections to a target."""

from typing import Annotated, Any

import typer

from replicator.cli import output
from replicator.cli.options import Json, agent
from replicator.cli.transmission import Target, Whose, act, ask, whose
from replicator.errors import UsageError

app = typer.Typer(
    help="When a connection transmits: start and stop criteria, and a window.",
    epilog='Example: dtctl schedule start 1 --at "2026-12-01 22:00" --every "1 day"',
)


def _act(
    context: typer.Context,
    connection: str | None,
    target: str | None,
    body: dict[str, object],
    json: bool,
) -> None:
    found: Any = act(agent(context), "schedule", connection, target, body)
    settings = found["settings"]
    if settings["window"]["opens"] and not any(settings["start"].values()):
        output.warn("a window alone starts nothing: add a start criterion with `dtctl schedule start`")
    output.emit(found, json, "schedule")


@app.command("start", epilog="Example: dtctl schedule start 1 --queue-bytes '10 MB'")
def start(
    context: typer.Context,
    connection: Whose = None,
    at: Annotated[
        str, typer.Option("--at", metavar="TIME", help="Date and time, or 'now'. Nothing starts before it.")
    ] = "",
    every: Annotated[
        str,
        typer.Option("--every", metavar="INTERVAL", help="Again after '30 minutes', '12 hours', '1 day'."),
    ] = "",
    queue_percent: Annotated[
        float | None, typer.Option("--queue-percent", metavar="N", help="When the queue is so full.")
    ] = None,
    queue_bytes: Annotated[
        str, typer.Option("--queue-bytes", metavar="SIZE", help="When so much is queued: '10 MB'.")
    ] = "",
    target: Target = None,
    json: Json = False,
) -> None:
    """Say what starts a session. It replaces all start criteria there were."""
    if not (at or every or queue_bytes or queue_percent is not None):
        raise UsageError("say what starts a session: --at, --every, --queue-percent, --queue-bytes")
    body: dict[str, object] = {
        "action": "start",
        "at": at,
        "every": every,
        "queue_percent": queue_percent,
        "queue_bytes": queue_bytes,
    }
    _act(context, connection, target, body, json)


@app.command("stop", epilog="Example: dtctl schedule stop 1 --after '2 hours' --bytes '10 MB'")
def stop(
    context: typer.Context,
    connection: Whose = None,
    after: Annotated[
        str, typer.Option("--after", metavar="TIME", help="It has lasted so long: '2 hours'.")
    ] = "",
    sent: Annotated[str, typer.Option("--bytes", metavar="SIZE", help="It has sent so much: '10 MB'.")] = "",
    target: Target = None,
    json: Json = False,
) -> None:
    """Say what ends a session before the queue is empty. It replaces all stop criteria there were."""
    if not (after or sent):
        raise UsageError("say what ends a session: --after, --bytes")
    _act(context, connection, target, {"action": "stop", "after": after, "sent_bytes": sent}, json)


@app.command("window", epilog="Example: dtctl schedule window 1 21:00 04:00")
def window(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[CON] OPENS CLOSES",
            help="Local times of day, '21:00'; the second may be on the next day.",
        ),
    ],
    target: Target = None,
    json: Json = False,
) -> None:
    """Say between which times of day sessions may be. Alone it starts none."""
    connection, (opens, closes) = whose(words, target, "OPENS", "CLOSES")
    _act(context, connection, target, {"action": "window", "opens": opens, "closes": closes}, json)


@app.command("clear", epilog="Example: dtctl schedule clear 1 window")
def clear(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="[CON] start|stop|window|all", show_default=False)],
    target: Target = None,
    json: Json = False,
) -> None:
    """Forget one kind of criteria, or all: then data flows at once again, or as the target's says."""
    connection, (what,) = whose(words, target, "start|stop|window|all")
    _act(context, connection, target, {"action": "clear", "what": what}, json)


@app.command("enable", epilog="Example: dtctl schedule enable 1")
def enable(
    context: typer.Context, connection: Whose = None, target: Target = None, json: Json = False
) -> None:
    """Let the criteria hold (again)."""
    _act(context, connection, target, {"action": "enable"}, json)


@app.command("disable", epilog="Example: dtctl schedule disable 1")
def disable(
    context: typer.Context, connection: Whose = None, target: Target = None, json: Json = False
) -> None:
    """Let data flow at once, and keep the criteria for later."""
    _act(context, connection, target, {"action": "disable"}, json)


@app.command("show", epilog="Example: dtctl schedule show 1")
def show(context: typer.Context, connection: Whose = None, target: Target = None, json: Json = False) -> None:
    """Show the criteria, and what happens next, when and why."""
    output.emit(ask(agent(context), "schedule", connection, target), json, "schedule")
