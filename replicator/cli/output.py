"""Where results go: one JSON document, or something a person likes to read.

rich is imported only when something is rendered: scripts that ask for --json do not pay for it.
"""

import json
import sys
from importlib import import_module
from typing import Any

_VIEWS = (
    *("render", "render_verify", "render_schedule", "render_diagnostics", "render_transmission"),
    *("render_failover_trials", "render_failover_reports", "render_guards", "render_divergence"),
    *("render_failback", "render_witness"),
)
"""Modules with views, the most wanted first: they are imported up to the one that has what is shown."""


def emit(document: Any, as_json: bool, view: str) -> None:
    """Print a document of the API, for people by the function of that name in `render`."""
    if as_json:
        print_json(document)
        return
    for name in _VIEWS:
        module = import_module(f"replicator.cli.{name}")
        if hasattr(module, view):
            break
    from replicator.cli import render

    render.show(getattr(module, view)(document))


def print_json(document: Any) -> None:
    # ASCII only: file names that are not UTF-8 survive as escapes, and every terminal can show them.
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """One line for people."""
    print(text, flush=True)


def warn(text: str) -> None:
    """One line for people, beside whatever is printed for programs."""
    print(text, file=sys.stderr, flush=True)


def is_terminal() -> bool:
    return sys.stdout.isatty()
