"""Which module has which commands of `dtctl`. To import all of them takes longer than most commands do: only
those of the command that is typed are.
"""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import typer

_REGISTERED = {
    "connect": ("protect", "connect", "disconnect"),
    "status": ("status", "info"),
    "connection": ("wait", "mirror", "replicate", "transmit", "target"),
    "lag": ("lag",),
    "queue": ("queue",),
    "story": ("story",),
    "why": ("why",),
    "runs": ("runs",),
    "trust": ("pair",),
}
"""Modules whose `register` adds commands of these names."""

_GROUPS = {
    "orphans": "orphans.app",
    "restore": "restore.app",
    "divergence": "divergence.app",
    "recovery": "recovery.app",
    "failover": "failover_group.app",
    "witness": "witness.app",
    "schedule": "schedule.app",
    "diagnostics": "diagnostics.app",
    "verify": "verify.app",
    "identity": "trust.identity_app",
    "trust": "trust.app",
    "compression": "compression.app",
    "limit": "limit.app",
    "mount": "mount.app",
    "repset": "repset.app",
}

_REGISTERED_LAST = {
    "failback": ("failback",),
    "login": ("login", "logout", "whoami", "ping"),
    "events": ("events",),
    "monitor": ("monitor",),
    "console": ("console",),
}

_OF_OTHERS = frozenset({"console"})  # its lines may be any command


def add_commands(app: typer.Typer, words: Sequence[str] = (), values: frozenset[str] = frozenset()) -> None:
    """Those that a command line of these words may need: all, if it does not begin with a command, but for
    options. `values`: options that have one.
    """
    wanted = _first(words, values)
    _register(app, _REGISTERED, wanted)
    for name, place in _GROUPS.items():
        if wanted is None or name == wanted:
            module, _, attribute = place.partition(".")
            app.add_typer(getattr(_imported(module), attribute), name=name)
    _register(app, _REGISTERED_LAST, wanted)


def _register(app: typer.Typer, modules: dict[str, tuple[str, ...]], wanted: str | None) -> None:
    for module, names in modules.items():
        if wanted is None or wanted in names:
            _imported(module).register(app)


def _first(words: Sequence[str], values: frozenset[str]) -> str | None:
    """The command; None: there is none, or any may be needed."""
    left = iter(words)
    for word in left:
        if word in values:
            next(left, None)
        elif "=" not in word or not word.startswith("--"):
            known = {name for names in (*_REGISTERED.values(), *_REGISTERED_LAST.values()) for name in names}
            return word if word in (known | _GROUPS.keys()) - _OF_OTHERS else None
    return None


def _imported(module: str) -> ModuleType:
    return import_module(f"replicator.cli.{module}")
