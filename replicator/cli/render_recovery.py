"""What recovers, as a table. Pure: a document in, something to show out."""

import time
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from replicator.cli.units import bytes_text, seconds_text


def recovery(found: Mapping[str, Any]) -> RenderableType:
    """Speed of the host, and a line per connection."""
    speed = Text("speed: ").append(
        str(found["speed"]), style="yellow" if found["speed"] == "none" else "bold"
    )
    if found["speed"] == "none":
        speed.append("  (all recoveries and mirrors are suspended)")
    elif found["busy"]:
        speed.append("  (programs change files: recoveries rest in between)")
    if not found["connections"]:
        return Group(speed, Text("no connections"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for heading in ("id", "set", "priority", "auto", "recovery", "", "left", "ends"):
        table.add_column(heading, justify="right" if heading in ("id", "left") else "left", overflow="fold")
    for status in found["connections"]:
        known = status["recovery"]
        table.add_row(
            str(status["id"]),
            Text(str(status["repset"])),
            Text(str(known["priority"])),
            "on" if known["automatic"] else Text("off", style="yellow"),
            Text(str(known["text"]) or "–"),
            *_progress(status),
        )
    return Group(speed, table)


def ends_text(mirror: Mapping[str, Any]) -> str:
    """The estimated end: "14:03:10, in 5 min"; "" if it is not known."""
    remaining_s = mirror.get("remaining_s")
    if remaining_s is None:
        return ""
    clock = "%H:%M:%S" if remaining_s < 43_200 else "%Y-%m-%d %H:%M"
    return (
        f"{time.strftime(clock, time.localtime(time.time() + remaining_s))}, in {seconds_text(remaining_s)}"
    )


def _progress(status: Mapping[str, Any]) -> tuple[RenderableType, str, str]:
    """Bar with percent, bytes left, end."""
    mirror = status.get("mirror") or {}
    if status["mirror_status"] not in ("Mirroring", "Waiting", "Paused"):
        return "", "", ""
    percent = mirror.get("percent")
    if percent is None:
        return Text(f"{bytes_text(mirror.get('done_bytes') or 0)} done"), "", ""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=100, completed=percent, width=20), f"{percent:.1f} %")
    return bar, bytes_text(mirror.get("remaining_bytes") or 0), ends_text(mirror)
