"""`dtctl failover scripts`: what is run before and after a failover or failback."""

from typing import Annotated, Any

import typer

from replicator.cli import output
from replicator.cli.options import Json, agent
from replicator.errors import ExitCode
from replicator.failovers import OnFailure, ScriptKind

app = typer.Typer(
    help="Scripts that run before and after a failover or failback.",
    epilog="Example: dtctl failover scripts test web post-failover",
)

Monitor = Annotated[str, typer.Argument(metavar="NAME", help="Name of a monitor.")]
Kind = Annotated[
    ScriptKind,
    typer.Argument(metavar="KIND", help=", ".join(ScriptKind) + ".", show_default=False),
]


@app.command("list", epilog="Example: dtctl failover scripts list web")
def list_(
    context: typer.Context,
    monitor: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Of this monitor only.", show_default=False)
    ] = "",
    json: Json = False,
) -> None:
    """List the scripts of monitors, those that new ones have, and what would keep one from being run."""
    query = {"monitor": monitor} if monitor else {}
    output.emit(agent(context).get("failover", "scripts", **query), json, "failover_scripts")


@app.command(
    "set",
    epilog="Example: dtctl failover scripts set web post-failover '/etc/replicator/scripts/nginx start'",
)
def set_(
    context: typer.Context,
    monitor: Monitor,
    kind: Kind,
    command: Annotated[
        str | None,
        typer.Argument(
            metavar="COMMAND",
            help="Absolute path and arguments, in one word; without: the options of the script there is.",
        ),
    ] = None,
    wait: Annotated[
        bool | None, typer.Option("--wait/--no-wait", help="Whether its end is waited for (default).")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="Then it is ended. Default: 60.")
    ] = None,
    stop: Annotated[
        bool | None,
        typer.Option(
            "--stop/--go-on",
            help="What its failure means for the failover. Default: it goes on.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Choose the script of a kind, or change how it is run."""
    body: dict[str, object] = {"command": command, "wait": wait, "timeout_s": timeout}
    if stop is not None:
        body["on_failure"] = OnFailure.STOP if stop else OnFailure.GO_ON
    path = ("failover", "monitors", monitor, "scripts", kind)
    output.emit(agent(context).post(*path, body=body), json, "failover_scripts")


@app.command("remove", epilog="Example: dtctl failover scripts remove web pre-failback")
def remove(context: typer.Context, monitor: Monitor, kind: Kind, json: Json = False) -> None:
    """Run no script of that kind any more."""
    path = ("failover", "monitors", monitor, "scripts", kind)
    output.emit(agent(context).post(*path, body={"command": ""}), json, "failover_scripts")


@app.command("test", epilog="Example: dtctl failover scripts test web post-failover")
def test(context: typer.Context, monitor: Monitor, kind: Kind, json: Json = False) -> None:
    """Run a script now, with REPLICATOR_TEST=1, and show what it does. Exit code 1 if it fails."""
    path = ("failover", "monitors", monitor, "scripts", kind, "test")
    found: dict[str, Any] = agent(context).post(*path, timeout_s=None)
    output.emit(found, json, "script_result")
    if found["outcome"] != "done":
        raise typer.Exit(ExitCode.FAILED)
