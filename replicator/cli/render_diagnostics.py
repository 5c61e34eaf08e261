"""A report of throughput diagnostics, as people read it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replicator.cli.units import bytes_text, seconds_text


def diagnostics(found: Mapping[str, Any]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    grid.add_row("measured", f"since {_when(found['since'])}, {seconds_text(found['seconds'])}")
    complete = "" if found["mirror_complete"] else ", not complete"
    mirror = f"{bytes_text(found['mirror_bytes'])}{_compressed(found['mirror_ratio'])}{complete}"
    grid.add_row("mirror", mirror)
    grid.add_row("changes", f"{bytes_text(found['change_bytes'])}{_compressed(found['change_ratio'])}")
    rates = [f"average {bytes_text(found['average_bytes_per_s'])}/s"]
    for name in ("hour", "minute"):
        at = found[f"peak_{name}"]
        rate = f"peak {name} {bytes_text(found[f'peak_{name}_bytes_per_s'])}/s"
        rates.append(rate + (f" ({_when(at)})" if at is not None else ""))
    grid.add_row("bandwidth", ", ".join(rates))
    queue = []
    for name in ("hour", "day"):
        guess = " (at the average rate)" if name in found["extrapolated"] else ""
        queue.append(f"{bytes_text(found[f'queue_{name}_bytes'])} for an absence of one {name}{guess}")
    grid.add_row("queue", ", ".join(queue))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("link", "bytes per second", "mirror takes", "compressed", "carries"):
        table.add_column(heading, justify="left" if heading in ("link", "carries") else "right")
    for link in found["links"]:
        table.add_row(
            link["link"],
            bytes_text(link["bytes_per_s"]),
            _seconds(link["mirror_s"]),
            _seconds(link["mirror_compressed_s"]),
            link["carries"] or "not even the average",
        )
    return Group(grid, Text(""), table)


def _compressed(ratio: float | None) -> str:
    return "" if ratio is None else f", compressed {ratio * 100:.0f} % of it"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else seconds_text(seconds)


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")
