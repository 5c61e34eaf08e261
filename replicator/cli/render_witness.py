"""Groups of a witness, as tables. Pure: a document in, something to show out."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replicator.cli.units import seconds_text


def witness_groups(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A line per group."""
    if not found:
        return Text("this agent is no witness: on a target, dtctl failover edit NAME --witness THIS_HOST")
    table = _table("group", "owner", "epoch", "lease", "last asked", "")
    for group in found:
        table.add_row(
            group["group"],
            group["owner"],
            str(group["epoch"]),
            f"{group['lease_left_s']:.1f} s" if group["lease_left_s"] else "–",
            _asked(group),
            _pending(group),
        )
    return table


def witness_group(found: Mapping[str, Any]) -> RenderableType:
    """One group, and its promotions, oldest first."""
    head = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("group", Text(found["group"])),
        ("agents", Text(", ".join(found["agents"]))),
        ("owner", Text(f"{found['owner']}, epoch {found['epoch']}")),
        ("lease", Text(f"may be valid for {found['lease_left_s']:.1f} s")),
        ("last asked", Text(_asked(found))),
        ("vote", _pending(found) or Text("none is pending")),
    ):
        head.add_row(Text(name, style="bold"), value)
    if not found["log"]:
        return head
    log = _table("epoch", "owner", "since", "by the vote of", "reason")
    for record in found["log"]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["time"])) if record["time"] else "?"
        log.add_row(
            str(record["epoch"]), record["owner_name"], when, record["vote"] or "nobody", record["reason"]
        )
    return Group(head, Text(), log)


def _asked(group: Mapping[str, Any]) -> str:
    if group["seen_s"] is None:
        return "not since this agent's start"
    return f"{seconds_text(group['seen_s'])} ago"


def _pending(group: Mapping[str, Any]) -> Text:
    if not group["candidate"]:
        return Text("")
    what = "a person wants {} to take over" if group["insisted"] else "voted for {}, which has not said more"
    return Text(what.format(group["candidate"]), style="yellow")


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
