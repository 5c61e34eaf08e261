"""How compression and limits look to people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replicator.cli.units import bytes_text


def transmission(found: Mapping[str, Any]) -> RenderableType:
    """All settings of a source, and what is in force now."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("of", "compression", "bandwidth", "limiting", "now"):
        table.add_column(column)
    targets, calendars = found["targets"], found["calendars"]
    for host in sorted({*targets, *calendars}):
        settings = _settings(targets.get(host, {}), calendars.get(host, ()))
        table.add_row(Text(f"target {host}"), *settings, Text(""))
    for connection in found["connections"]:
        name = f"connection {connection['id']} ({connection['repset']} to {connection['target']})"
        settings = _settings(connection["settings"], connection["calendar"])
        table.add_row(Text(name), *settings, Text(now(connection["now"])))
    if not found["connections"] and not targets and not calendars:
        return Text("no connections")
    levels = ", ".join(f"{n} = {zstd}" for n, zstd in enumerate(found["zstd_levels"], 1))
    return Group(table, Text(f"compression levels, and what zstd calls them: {levels}", style="dim"))


def _settings(settings: Mapping[str, Any], calendar: Sequence[str]) -> list[Text]:
    """Columns; `settings` {}: nothing was said."""
    bandwidth = settings.get("bandwidth") or ""
    limiting = "" if not bandwidth and not calendar else "on" if settings.get("limiting", True) else "off"
    limit = bandwidth or "unlimited"
    if calendar:
        limit += f", calendar: {', '.join(calendar)}"
    return [Text(word) for word in (settings.get("compression") or "–", limit, limiting)]


def now(status: Mapping[str, Any]) -> str:
    """Level, ratio and limit of one connection, as they are now."""
    compression = str(status.get("compression") or "off")
    if compression == "off":
        text = "not compressed"
    elif status.get("peer_understands") is False:
        text = "not compressed: the target is too old"
    elif level := status.get("level"):
        text = (
            f"compression {compression}, level {level}" if compression == "auto" else f"compression {level}"
        )
        text += f", {status.get('ratio') or 1.0:.1f} : 1"
    else:
        text = f"compression {compression}, none now"
    rate = status.get("limit_bytes_per_s")
    return text if rate is None else f"{text}, at most {bytes_text(rate)}/s ({status.get('limit')})"
