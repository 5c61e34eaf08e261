"""Divergence bundles, as people read them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replicator.cli.render import _table
from replicator.cli.units import bytes_text

_STYLES = {"only in the bundle": "yellow", "content": "yellow", "removed in the bundle": "cyan"}
_REGIONS_SHOWN = 8


def bundles(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not found:
        return Text("no divergence bundles: no branch of this host has lost anything")
    table = _table("id", "group", "saved", "superseded by", "objects", "size", right=("objects", "size"))
    for bundle in found:
        manifest = bundle["manifest"]
        table.add_row(
            manifest["id"],
            manifest["group_name"] or manifest["group"] or manifest["reason"],
            _time(manifest["time"]),
            manifest["winner"],
            str(bundle["objects"] + bundle["absent"]),
            bytes_text(bundle["bytes"]),
        )
    return table


def bundle(found: Mapping[str, Any]) -> RenderableType:
    manifest = found["manifest"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    grid.add_row("bundle", manifest["id"])
    grid.add_row("group", f"{manifest['group_name']} ({manifest['group']})")
    grid.add_row("branch of", f"{manifest['agent_name']} on {manifest['host']}, epoch {manifest['epoch']}")
    grid.add_row("superseded by", f"{manifest['winner']}, epoch {manifest['winner_epoch']}")
    if manifest["reason"]:
        grid.add_row("because", manifest["reason"])
    grid.add_row("saved", _time(manifest["time"]))
    grid.add_row("directory", found["directory"])
    roots = _table(
        "directory", "objects", "removed", "data", "operations", "from", right=("objects", "removed", "data")
    )
    for root in manifest["roots"]:
        fork = root["fork"]
        roots.add_row(
            root["path"],
            str(root["objects"]),
            str(root["absent"]),
            bytes_text(root["data_bytes"]),
            str(root["records"]) if root["records"] else "–",
            f"operation {fork[0]}" if fork else "–",
        )
    return Group(grid, Text(""), roots)


def bundle_differences(found: Mapping[str, Any]) -> RenderableType:
    if not found["count"]:
        return Text("what the bundle has is here as well", style="green")
    table = _table("path", "difference", "")
    for difference in found["differences"]:
        detail = difference["detail"]
        regions = difference["regions"]
        if regions:
            shown = " ".join(f"{start}-{end}" for start, end in regions[:_REGIONS_SHOWN])
            detail = ", ".join(
                filter(None, (detail, f"bytes {shown}{' …' * (len(regions) > _REGIONS_SHOWN)}"))
            )
        what = difference["what"]
        table.add_row(difference["path"], Text(what, style=_STYLES.get(what, "")), detail)
    left_out = found["count"] - len(found["differences"])
    return Group(table, Text(f"and {left_out} more")) if left_out else table


def exported(found: Mapping[str, Any]) -> RenderableType:
    lines = [f"{found['objects']} objects, {bytes_text(found['bytes'])}, in {found['directory']}/files"]
    if found["partial"]:
        lines.append(
            f"of {found['partial']} files only some is there: {found['directory']}/partial says what"
        )
    if found["removed"]:
        lines.append(f"{found['removed']} names were removed: {found['directory']}/removed")
    lines += [f"problem: {text}" for text in found["problems"]]
    return Text("\n".join(lines))


def dropped(found: Mapping[str, Any]) -> RenderableType:
    return Text(f"bundle {found['manifest']['id']} was dropped")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else "–"
