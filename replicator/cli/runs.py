"""`dtctl runs`: how mirrors, recoveries, verifications, searches for orphans and restores ended."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from replicator.cli import output
from replicator.cli.options import Json, agent
from replicator.limits import RUNS_ASKED


def runs(
    context: typer.Context,
    connection: Annotated[
        str | None,
        typer.Argument(metavar="[CON]", help="Connection; without it, all and restores.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, max=RUNS_ASKED, help="So many of the newest.")] = 20,
    json: Json = False,
) -> None:
    """Show how mirrors, recoveries, verifications and restores ended, and what they could not do."""
    client = agent(context)
    keys = [connection] if connection is not None else [str(c["id"]) for c in client.get("connections")]
    found: list[Any] = []
    for key in keys:
        reports = client.get("connections", key, "runs", count=count)
        found += [{"connection": key, **report} for report in reports]
    if connection is None:
        found += [_of_restore(view) for view in client.get("restores") if view["finished"]]
    found.sort(key=lambda report: report["finished"])
    output.emit(found[-count:], json, "runs")


def _of_restore(view: Mapping[str, Any]) -> dict[str, Any]:
    """A restore in the words of the other reports. It belongs to no connection."""
    problems = [text.partition(": ") for text in view["problems"]]
    return {
        "connection": "",
        "run": view["uuid"],
        "kind": "restore",
        "started": view["started"],
        "finished": view["finished"],
        "elapsed_s": max(view["finished"] - view["started"], 0.0),
        "result": view["phase"],
        "options": str(view["id"]),
        "files": view["done_files"],
        "bytes": view["done_bytes"],
        "matched_bytes": view["skipped_bytes"],
        "sent_bytes": view["sent_bytes"],
        "skipped": view["problem_count"],
        "different": 0,
        "bytes_out_of_sync": 0,
        "problem_count": view["problem_count"],
        "problems": [{"path": path, "reason": reason} for path, _, reason in problems],
        "rate_bytes_per_s": view["rate_bytes_per_s"],
        "text": view["reason"] or view["orphans"] or view["resumed"],
    }


def register(root: typer.Typer) -> None:
    root.command("runs", epilog="Example: dtctl runs 1")(runs)
