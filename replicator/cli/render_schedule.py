"""A transmission schedule, as people read it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replicator.cli.units import bytes_text, seconds_text
from replicator.transmission_schedule import size_text


def schedule(found: Mapping[str, Any]) -> RenderableType:
    settings = found["settings"]
    start, stop, window = settings["start"], settings["stop"], settings["window"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    starts = [
        f"at {start['at']}" if start["at"] else "",
        f"every {start['every']}" if start["every"] else "",
        f"when the queue is {start['queue_percent']:g} % full" if start["queue_percent"] is not None else "",
        f"when {size_text(start['queue_bytes'])} are queued" if start["queue_bytes"] else "",
    ]
    stops = [
        f"after {stop['after']}" if stop["after"] else "",
        f"when {size_text(stop['sent_bytes'])} are sent" if stop["sent_bytes"] else "",
        "when the queue is empty",
    ]
    if found["target"]:
        grid.add_row("of", f"target {found['target']}")
    grid.add_row("start", ", ".join(filter(None, starts)) or "–")
    grid.add_row("stop", ", ".join(filter(None, stops)))
    grid.add_row("window", f"{window['opens']} to {window['closes']}" if window["opens"] else "–")
    grid.add_row("enabled", "yes" if settings["enabled"] else "no: data flows at once")
    if found["session_began"] is not None:
        began = datetime.fromtimestamp(found["session_began"]).strftime("%Y-%m-%d %H:%M:%S")
        sent = bytes_text(found["session_bytes"])
        lasts = seconds_text(found["session_seconds"])
        grid.add_row("session", f"since {began} ({found['session_why']}): {sent} in {lasts}")
    if found["last_end"]:
        grid.add_row("last end", found["last_end"])
    grid.add_row("next", Text(found["next"] or found["next_reason"], style="green"))
    return grid


def calendar(found: Mapping[str, Any]) -> RenderableType:
    """The entries of a calendar of limits; the one that holds is marked."""
    if not found["entries"]:
        return Text("no calendar: the limit of `dtctl limit bandwidth` holds always")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "entry", "days", "from", "to", "limit"):
        table.add_column(heading)
    for entry in found["entries"]:
        mark = "→" if entry["label"] == found["label"] else ""
        days = ",".join(entry["days"]) or "every day"
        end = entry["end"] or "(next)"
        table.add_row(mark, entry["label"], days, entry["start"], end, entry["limit"])
    until = datetime.fromtimestamp(found["until"]).strftime("%Y-%m-%d %H:%M") if found["until"] else "–"
    holds = found["label"] or "the limit without a calendar"
    now = f"now: {holds}, until {until}"
    if not found["limiting"]:
        now = "now: none of them, for limiting is off; `dtctl limit on` lets them act"
    return Group(table, Text(now))
