"""`dtctl orphans`, `dtctl target orphans`: what a copy has and its source does not."""

from datetime import datetime
from typing import Annotated, Any

import typer

from replicator.cli import output
from replicator.cli.following import until_over
from replicator.cli.options import Connection, Json, agent
from replicator.errors import ReplicatorError
from replicator.orphans import OrphanAction, OrphanReport, OrphanSettings, described, settings_text

app = typer.Typer(help="Orphans: names in a copy that the source does not have.")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would happen.")]
OverLimit = Annotated[
    bool, typer.Option("--over-limit", help="However many they are: somebody has looked at them.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Return when it is done.")]


@app.command("start", epilog="Example: dtctl orphans start 1 --dry-run")
def start(
    context: typer.Context,
    connection: Connection,
    dry_run: DryRun = False,
    over_limit: OverLimit = False,
    wait: Wait = False,
    json: Json = False,
) -> None:
    """Compare all names, and do with the orphans what the target's settings say."""
    client = agent(context)
    body = {"action": "start", "dry_run": dry_run, "over_limit": over_limit}
    found = client.post("connections", connection, "orphans", body=body)
    report = found["report"]
    if dry_run or wait:
        report = _ended(client, connection, found["run"])
    if json:
        output.print_json(report)
    elif dry_run or wait:
        _print(report)
    else:
        output.say(f"connection {connection}: looks for orphans")
    if report["phase"] in ("halted", "stopped") and (dry_run or wait):
        advice = ""
        if report["phase"] == "halted" and report["action"] != OrphanAction.KEEP:
            advice = f": dtctl orphans start {connection} --over-limit"
        raise ReplicatorError(f"orphans {report['phase']}: {report['reason']}{advice}")
    if report["problems"] and wait:
        raise ReplicatorError(f"{report['problems']} orphans are still there: {report['reason']}")


def _act(context: typer.Context, connection: str, action: str, done: str, json: bool) -> None:
    found = agent(context).post("connections", connection, "orphans", body={"action": action})
    if json:
        output.print_json(found["report"])
    else:
        output.say(f"connection {connection}: orphans {done}")


@app.command("stop", epilog="Example: dtctl orphans stop 1")
def stop(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Leave what is left as it is."""
    _act(context, connection, "stop", "stopped", json)


@app.command("pause", epilog="Example: dtctl orphans pause 1")
def pause(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Hold it at its place."""
    _act(context, connection, "pause", "paused", json)


@app.command("resume", epilog="Example: dtctl orphans resume 1")
def resume(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Go on where it was paused."""
    _act(context, connection, "resume", "resumed", json)


@app.command("status", epilog="Example: dtctl orphans status 1")
def status(context: typer.Context, connection: Connection, json: Json = False) -> None:
    """Show what became of the orphans, or what would; names of a preview or of what waits for a person."""
    report = agent(context).get("connections", connection, "orphans")
    if json:
        output.print_json(report)
    else:
        _print(report)


def settings(
    context: typer.Context,
    action: Annotated[
        str | None, typer.Option("--action", metavar="keep|delete|move", help="What becomes of them.")
    ] = None,
    directory: Annotated[
        str | None, typer.Option("--directory", help="Where moved ones go: outside of every copy.")
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", metavar="DAYS", help="Only what was not modified for so long; 0: all."),
    ] = None,
    mirrors: Annotated[
        bool | None, typer.Option("--mirrors/--by-hand", help="With each mirror, or only when it is started.")
    ] = None,
    names: Annotated[
        bool | None, typer.Option("--names/--no-names", help="Whether the target's log has each name.")
    ] = None,
    limit_count: Annotated[
        int | None, typer.Option("--limit", metavar="NAMES", help="More halt for a person; 0: no limit.")
    ] = None,
    limit_percent: Annotated[
        float | None,
        typer.Option("--limit-percent", metavar="PERCENT", help="The same, of all names; 0: none."),
    ] = None,
    json: Json = False,
) -> None:
    """Show, or set, what becomes of orphans in all copies on this host."""
    given = {
        "action": action,
        "directory": directory,
        "older_than_days": older_than,
        "with_mirrors": mirrors,
        "log_names": names,
        "limit_count": limit_count,
        "limit_percent": limit_percent,
    }
    body = {name: value for name, value in given.items() if value is not None}
    client = agent(context)
    found = client.post("targets", "orphans", body=body) if body else client.get("targets", "orphans")
    if json:
        output.print_json(found)
    else:
        import msgspec

        output.say(f"orphans are {settings_text(msgspec.convert(found, OrphanSettings))}")


def _ended(client: Any, connection: str, run: str) -> Any:
    """The report of that run, when it has ended."""
    return until_over(
        lambda: client.get("connections", connection, "orphans"),
        lambda report: report["run"] == run and report["phase"] in ("halted", "stopped", "complete"),
    )


def _print(found: Any) -> None:
    import msgspec

    report = msgspec.convert(found, OrphanReport)
    if not report.phase:
        output.say("nothing is known of orphans: dtctl orphans start CON --dry-run looks for them")
        return
    for name in report.names:
        output.say(name)
    if report.names_left_out:
        output.say(f"… and {report.names_left_out} more")
    when = report.finished or report.started
    text = described(report)
    if report.directory and report.done_files:
        text += f"; they are in {report.directory}"
    output.say(f"{datetime.fromtimestamp(when).isoformat(sep=' ', timespec='seconds')} {text}")
