"""A failback: what there is, what will happen, what has happened."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

_STYLES = {"done": "green", "failed": "red", "not taken back": "red", "taken back": "yellow"}


def failback_preview(found: Mapping[str, Any]) -> RenderableType:
    preview = found["preview"]
    lines: list[RenderableType] = [Text("Now", style="bold")]
    lines += [Text(f"  {text}") for text in preview["state"]]
    if preview["refused"]:
        lines += [Text("It cannot begin", style="bold red"), *(Text(f"  {t}") for t in preview["refused"])]
        return Group(*lines)
    lines.append(Text("What will happen", style="bold"))
    lines += [Text(f"  {number}. {text}") for number, text in enumerate(preview["will"], 1)]
    lines += [Text(f"Note: {text}", style="yellow") for text in preview["warnings"]]
    return Group(*lines)


def failback_report(found: Mapping[str, Any] | None) -> RenderableType:
    if found is None:
        return Text("there was no failback")
    lines = []
    for step in found["steps"]:
        style = _STYLES.get(step["outcome"], "")
        seconds = f" {step['duration_s']:.1f} s" if step["duration_s"] else ""
        lines.append(Text(f"  {step['name']}: {step['outcome']}{seconds}", style=style))
        lines += [
            Text(f"    {text}") for text in ([step["text"]] if step["text"] else []) + list(step["said"])
        ]
    text = f": {found['text']}" if found["text"] else ""
    style = {"completed": "bold green"}.get(found["outcome"], "bold yellow")
    return Group(*lines, Text(f"{found['kind']} {found['outcome']}{text}", style=style))
