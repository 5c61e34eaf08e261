"""`dtctl failback`: the way home after a failover, guided."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from replicator.cli import output
from replicator.cli.following import until_over
from replicator.cli.options import Json, agent
from replicator.errors import ReplicatorError, UsageError

_ENDED = ("completed", "taken back", "waits for a person")
_ORDERS = ("restore-first", "failback-first")
_THENS = ("monitor", "stop")


def register(app: typer.Typer) -> None:
    app.command("failback", epilog="Example: dtctl failback web --dry-run")(failback)


def failback(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the monitor of the group.")],
    order: Annotated[
        str,
        typer.Option(
            "--order",
            metavar="|".join(_ORDERS),
            help="Bring the data while this host serves, then switch; or switch addresses first.",
        ),
    ] = "restore-first",
    stay: Annotated[
        bool, typer.Option("--stay", help="Do not go home: this host stays the source, home protects it.")
    ] = False,
    then: Annotated[
        str, typer.Option("--then", metavar="|".join(_THENS), help="Go on watching the source, or not.")
    ] = "monitor",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show both sides and what would happen; change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Take back one that is under way, as long as that can be.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also if the witness is away, or an address is in use.")
    ] = False,
    json: Json = False,
) -> None:
    """Bring a group home to its source, or reverse the roles for good. On the host that has taken over."""
    _check("--order", order, _ORDERS)
    _check("--then", then, _THENS)
    client = agent(context)
    path = ("failover", "monitors", name, "failback")
    if abandon:
        output.emit(client.delete(*path), json, "failback_report")
        return
    chosen = "stay" if stay else order
    found = client.get(*path, order=chosen, then=then)
    preview = found["preview"]
    under_way = found["report"] is not None and found["report"]["outcome"] not in ("completed", "taken back")
    if dry_run:
        output.emit(found, json, "failback_preview")
        if preview["refused"]:
            raise typer.Exit(1)
        return
    if not under_way:
        if not json:
            output.emit(found, False, "failback_preview")
        if preview["refused"]:
            raise ReplicatorError("; ".join(preview["refused"]))
        if not yes:
            _ask(name)
    group = client.get("failover", "monitors", name)["uuid"]
    body = {"order": chosen, "then": then, "forced": force, "reason": "dtctl failback"}
    client.post(*path, body=body)
    report = _followed(client, group, quiet=json)
    if json:
        output.print_json(report)
    else:
        output.emit(report, False, "failback_report")
    if report["outcome"] != "completed":
        raise typer.Exit(1)


def _check(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{option}: must be one of {', '.join(allowed)}")


def _ask(name: str) -> None:
    if not output.is_terminal():
        raise UsageError(f"nobody is here to confirm it: dtctl failback {name} --yes")
    if not typer.confirm("Begin?"):
        raise typer.Exit(1)


def _followed(client: Any, group: str, *, quiet: bool) -> Mapping[str, Any]:
    """Its end; each step is told as it begins."""
    told: set[str] = set()

    def tell(report: Mapping[str, Any]) -> None:
        for step in report["steps"]:
            key = f"{step['name']}: {step['outcome']}"
            if not quiet and step["outcome"] not in ("pending", "done") and key not in told:
                told.add(key)
                output.say(f"  {key}{' (' + step['text'] + ')' if step['text'] else ''}")

    return until_over(
        lambda: client.get("failover", "failbacks", group), lambda report: report["outcome"] in _ENDED, tell
    )
