"""`dtctl verify`: whether a copy is what its source is."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from replicator.cli import output
from replicator.cli.following import until_over
from replicator.cli.options import NEWER_WARNING, Connection, Json, agent
from replicator.errors import ExitCode, ReplicatorError
from replicator.limits import RUNS_ASKED

_OVER = ("stopped", "complete")


class _RunsByDefault(TyperGroup):
    """`dtctl verify CON` is `dtctl verify run CON`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunsByDefault,
    help="Verification: compares a copy with its source, while changes flow.",
    epilog="Example: dtctl verify 1 --checksum",
)

Checksum = Annotated[
    bool, typer.Option("--checksum", help="Compare the content of all files, whatever sizes and times are.")
]
Remirror = Annotated[bool, typer.Option("--remirror", help="Bring what differs; extra names are orphans.")]
Newer = Annotated[
    bool, typer.Option("--newer", help="Bring only files that are newer on the source. Wrong for databases.")
]


def _options(checksum: bool, remirror: bool, newer: bool) -> dict[str, object]:
    if newer:
        output.warn(NEWER_WARNING)
    return {"checksum": checksum, "remirror": remirror, "newer": newer}


@app.command("run", epilog="Example: dtctl verify 1 --checksum --json")
def run(
    context: typer.Context,
    connection: Connection,
    checksum: Checksum = False,
    remirror: Remirror = False,
    newer: Newer = False,
    json: Json = False,
) -> None:
    """Verify, and wait for the result: exit code 0 if both sides are equal, 1 if not."""
    client = agent(context)
    body = {"action": "start", **_options(checksum, remirror, newer)}
    started = client.post("connections", connection, "verify", body=body)["run"]
    report = _ended(client, connection, started)
    output.emit(report, json, "verification")
    if report["phase"] == "stopped":
        raise ReplicatorError("the verification was stopped before everything was compared")
    if _differs(report):
        raise typer.Exit(int(ExitCode.FAILED))


def _ended(client: Any, connection: str, started: str) -> Any:
    def look() -> Any:
        report = client.get("connections", connection, "verify")
        if report["run"] != started:
            raise ReplicatorError(
                f"another verification has begun meanwhile: dtctl verify history {connection}"
            )
        return report

    return until_over(look, lambda report: report["phase"] in _OVER)


def _differs(report: Any) -> bool:
    counts = ("missing_files", "missing_directories", "different_files", "different_directories", "extra")
    return any(report[name] for name in counts) or bool(report["problem_count"])


@app.command("start", epilog="Example: dtctl verify start 1 --remirror")
def start(
    context: typer.Context,
    connection: Connection,
    checksum: Checksum = False,
    remirror: Remirror = False,
    newer: Newer = False,
    json: Json = False,
) -> None:
    """Begin a verification, and return at once."""
    body = {"action": "start", **_options(checksum, remirror, newer)}
    _say(context, connection, body, "verification started", json)


def _say(context: typer.Context, connection: str, body: dict[str, object], text: str, json: bool) -> None:
    found = agent(context).post("connections", connection, "verify", body=body)
    if json:
        output.print_json(found["report"])
    else:
        output.say(f"connection {connection}: {text}")


@app.command("stop", epilog="Example: dtctl verify stop 1")
def stop(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """End the running verification."""
    _say(context, connection, {"action": "stop"}, "verification stopped", json)


@app.command("pause", epilog="Example: dtctl verify pause 1")
def pause(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Hold it at its place."""
    _say(context, connection, {"action": "pause"}, "verification paused", json)


@app.command("resume", epilog="Example: dtctl verify resume 1")
def resume(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Go on where it was paused."""
    _say(context, connection, {"action": "resume"}, "verification resumed", json)


@app.command("status", epilog="Example: dtctl verify status 1")
def status(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Show the running, or the last, verification, what differs, and when the next one is due."""
    output.emit(agent(context).get("connections", connection, "verify"), json, "verification")


@app.command("history", epilog="Example: dtctl verify history 1")
def history(
    context: typer.Context,
    connection: Connection,
    count: Annotated[int, typer.Option("--count", min=1, max=RUNS_ASKED, help="So many of the newest.")] = 20,
    json: Json = False,
) -> None:
    """Show past verifications, and whether they find more or less than before."""
    found = agent(context).get("connections", connection, "runs", kind="verify", count=count)
    output.emit(found, json, "verifications")


@app.command("schedule", epilog='Example: dtctl verify schedule 1 --at "2026-12-01 02:00" --every "1 day"')
def schedule(
    context: typer.Context,
    connection: Connection,
    at: Annotated[str, typer.Option("--at", metavar="TIME", help="Date and time, or 'now'.")] = "now",
    every: Annotated[
        str,
        typer.Option("--every", metavar="INTERVAL", help="Again after '30 minutes', '12 hours', '1 day'."),
    ] = "",
    off: Annotated[bool, typer.Option("--off", help="Verify by schedule no more.")] = False,
    checksum: Checksum = False,
    remirror: Remirror = False,
    newer: Newer = False,
    json: Json = False,
) -> None:
    """Verify at a time, and again and again. What was missed meanwhile is made up for by one verification."""
    if off:
        _say(context, connection, {"action": "unschedule"}, "no verification is scheduled", json)
        return
    body = {"action": "schedule", "at": at, "every": every, **_options(checksum, remirror, newer)}
    report = agent(context).post("connections", connection, "verify", body=body)["report"]
    if json:
        output.print_json(report)
        return
    from replicator.cli.render_verify import next_run

    text = next_run(report)
    output.say(f"connection {connection}: next verification {text or 'now, and no other'}")


@app.command("background", epilog="Example: dtctl verify background 1 4194304")
def background(
    context: typer.Context,
    connection: Connection,
    budget: Annotated[
        str, typer.Argument(metavar="BYTES_PER_SECOND|off", help="How much of each side is read.")
    ],
    remirror: Remirror = False,
    json: Json = False,
) -> None:
    """Compare all content, all the time, slowly."""
    from replicator.config import parse_size
    from replicator.errors import UsageError

    bytes_per_s = 0 if budget == "off" else parse_size(budget)
    if bytes_per_s is None:
        raise UsageError(f"{budget!r} is no budget: write as '4 MiB', or 'off'")
    body: dict[str, object] = {"action": "background", "bytes_per_s": bytes_per_s, "remirror": remirror}
    text = f"compared at {bytes_per_s} bytes per second" if bytes_per_s else "not compared in the background"
    _say(context, connection, body, text, json)
