"""Quantities and names as people read them."""

from collections.abc import Mapping
from typing import Any

from replicator.diagnostics import is_nowhere

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def bytes_text(count: float) -> str:
    """1536 → "1.5 KiB"."""
    value, power = float(count), 0
    while abs(value) >= 1000 and power < len(_UNITS) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.1f} {_UNITS[power]}" if power and value < 100 else f"{value:.0f} {_UNITS[power]}"


def count_text(count: float) -> str:
    """12345 → "12 345", with a space that does not break."""
    return f"{count:,.0f}".replace(",", " ")


def seconds_text(seconds: float) -> str:
    """0.0042 → "4 ms", 75 → "1 min 15 s", 8000 → "2 h 13 min"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def target_text(status: Mapping[str, Any]) -> str:
    """Which agent gets the copy of a connection."""
    if is_nowhere(str(status["target"])):
        return f"{status['target']} (measures only: there is no copy)"
    name, address = str(status["target"]), str(status.get("target_address") or "")
    return name if address in ("", name) else f"{name} ({address})"
