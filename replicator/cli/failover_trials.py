"""`dtctl failover drill` and `dtctl failover test`: would it work?"""

from typing import Annotated, Any

import typer

from replicator.cli import output
from replicator.cli.client import Client
from replicator.cli.failover_scripts import Monitor
from replicator.cli.following import until_over
from replicator.cli.options import Json, agent
from replicator.errors import ExitCode, ReplicatorError, UsageError

_KEPT = "kept"


def register(app: typer.Typer) -> None:
    app.command("test", epilog="Example: dtctl failover test web")(test)
    app.command("drill", epilog="Example: dtctl failover drill web --check 'curl -f http://10.0.0.5/health'")(
        drill
    )


def test(context: typer.Context, monitor: Monitor, json: Json = False) -> None:
    """Look at everything that a failover would, and say what it would do. Exit code 1 if it would fail.

    Nothing is changed. Whether services start on the copies only a drill shows.
    """
    found: dict[str, Any] = agent(context).post("failover", "monitors", monitor, "test", timeout_s=None)
    output.emit(found, json, "failover_test")
    if not found["ready"]:
        raise typer.Exit(ExitCode.FAILED)


def advise(client: Client, monitor: str) -> None:
    """What would keep a monitor that was just made from taking over, a line each. Not that its source has not
    heard of it yet.
    """
    try:
        found = client.post("failover", "monitors", monitor, "test")
    except ReplicatorError:
        return
    for check in found["checks"]:
        if check["name"] == "permission":
            continue
        if check["result"] == "failed" or (check["result"] == "warning" and check["name"].endswith("script")):
            output.say(f"careful: {check['name']}: {check['text']}")


def drill(
    context: typer.Context,
    monitor: Monitor,
    check: Annotated[
        str, typer.Option("--check", metavar="COMMAND", help="A shell's line, run there: 0 means well.")
    ] = "",
    scripts: Annotated[
        bool, typer.Option("--scripts/--no-scripts", help="Run the post-failover script there first.")
    ] = True,
    copy: Annotated[
        bool,
        typer.Option("--copy", help="Copy the copies first, so that they stand still only for that time."),
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the view there, to look around.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="For the check. Default: 300.")
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="End the drill that runs.")] = False,
    history: Annotated[bool, typer.Option("--list", help="Show the drills there were.")] = False,
    json: Json = False,
) -> None:
    """Try it on a view of the copies, while protection goes on: do the services start? Exit code 1 if not.

    The view has the copies at the original paths, a network of its own with the addresses of the source, and
    takes all changes; neither the copies nor this host are changed.
    """
    if end and history:
        raise UsageError("--end and --list exclude each other")
    client = agent(context)
    path = ("failover", "monitors", monitor, "drills")
    if history:
        output.emit(client.get(*path), json, "drills")
        return
    if end:
        output.emit(client.post(*path, "end", timeout_s=None), json, "drill")
        return
    body: dict[str, object] = {"check": check, "scripts": scripts, "duplicate": copy, "keep": keep}
    if timeout is not None:
        body["timeout_s"] = timeout
    found: dict[str, Any] = client.post(*path, body=body)
    uuid = found["uuid"]
    found = until_over(
        lambda: next(d for d in client.get(*path) if d["uuid"] == uuid),
        lambda drill: drill["state"] == _KEPT or bool(drill["ended"]),
    )
    output.emit(found, json, "drill")
    if found["state"] not in ("passed", _KEPT):
        raise typer.Exit(ExitCode.FAILED)
