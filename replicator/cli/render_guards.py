"""Groups in which this host is the source, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from replicator.cli import units


def fence(value: Mapping[str, Any] | None) -> str:
    """Of a mount, in a cell; "": it has none."""
    if not value:
        return ""
    if not value["is_open"]:
        return str(value["mode"])
    left_s = value.get("left_s")
    return "open" if left_s is None else f"{value['mode']} in {units.seconds_text(max(left_s, 0))}"


def guards(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not found:
        return Text("no other host watches this one, to take its place when it fails")
    table = Table(box=None, pad_edge=False)
    for name in ("name", "watched by", "witness", "epoch", "mounts", "without a lease", "why"):
        table.add_column(name)
    for guard in found:
        table.add_row(
            Text(str(guard["name"])),
            Text(str(guard["target"])),
            Text(str(guard["witness"] or "–")),
            str(guard["epoch"]),
            Text("may be written" if guard["is_open"] else "fenced", style="" if guard["is_open"] else "red"),
            Text(str(guard["lapse"])),
            Text(str(guard["reason"])),
        )
    return table


def guard_opened(guard: Mapping[str, Any]) -> RenderableType:
    return Text(f"{guard['name']}: mounts of this host may be written again")


def guard_released(found: Mapping[str, Any]) -> RenderableType:
    lines = [f"{found['name']}: {found['target']} does not count for this host any more"]
    for number in found["connections"]:
        lines.append(
            f"connection {number} still leads there: dtctl disconnect {number}, then dtctl protect to another"
            " host"
        )
    return Text("\n".join([*lines, *found["problems"]]))


def guard_follows(guard: Mapping[str, Any]) -> RenderableType:
    owner = guard["superseded"]["owner_name"]
    return Text(
        f"{guard['name']}: this host follows {owner}; what it wrote itself is kept: dtctl divergence list"
    )


def adopted(found: Mapping[str, Any]) -> RenderableType:
    numbers = ", ".join(str(number) for number in found["connections"])
    return Text(f"connection {numbers}: a difference mirror brings that copy up to date")


def source_addresses(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("address", "interface there"):
        table.add_column(heading)
    for each in found:
        table.add_row(Text(each["address"]), Text(each["interface"]))
    return table
