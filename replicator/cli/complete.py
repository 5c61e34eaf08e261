"""Names for shell completion, asked of the agent. A shell must never be disturbed: no agent, no names."""

import os
from typing import Any

import typer

from replicator.cli.client import Client
from replicator.errors import ReplicatorError


def connections(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return [c for c in connection_names(_client(context)) if c[0].startswith(incomplete)]


def repsets(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return [(name, "") for name in repset_names(_client(context)) if name.startswith(incomplete)]


def mountpoints(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return [(path, "") for path in mount_paths(_client(context)) if path.startswith(incomplete)]


def monitors(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    found = _listed(_client(context), "failover", "monitors")
    names = [(str(monitor.get("name")), f"watches {monitor.get('source')}") for monitor in found]
    return [each for each in names if each[0].startswith(incomplete)]


def connection_names(client: Client) -> list[tuple[str, str]]:
    """Ids and sets of all connections, each with a short description."""
    found = []
    for status in _listed(client, "connections"):
        description = f"{status.get('repset')} → {status.get('target')}"
        found += [(str(status.get("id")), description), (str(status.get("repset")), description)]
    return found


def repset_names(client: Client) -> list[str]:
    return [str(repset.get("name")) for repset in _listed(client, "repsets")]


def mount_paths(client: Client) -> list[str]:
    return [str(mount.get("path")) for mount in _listed(client, "mounts")]


def _client(context: typer.Context) -> Client:
    # While completing, no callback runs: the options of the outermost command are there, its object is not.
    given = context.find_root().params
    if given.get("server"):
        from replicator.cli import remote

        return remote.client_for(given, may_ask=False)
    return Client(os.path.abspath(str(given.get("home"))))


def _listed(client: Client, *what: str) -> list[dict[str, Any]]:
    try:
        found = client.get(*what)
    except ReplicatorError:
        return []
    return found if isinstance(found, list) else []
