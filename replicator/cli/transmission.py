"""What `dtctl compression` and `dtctl limit` share: whose settings they change."""

from typing import Annotated, Any

import typer

from replicator.cli.client import Client
from replicator.errors import UsageError

Target = Annotated[
    str | None,
    typer.Option(
        "--target", metavar="HOST", help="All connections to this host, instead of one connection CON."
    ),
]


def split(words: list[str], target: str | None, what: str) -> tuple[str | None, str]:
    """(connection, value) of what was typed; with `--target` there is only a value. Raises UsageError."""
    if target is not None:
        if len(words) != 1:
            raise UsageError(f"with --target HOST one more word is needed: {what}")
        return None, words[0]
    if len(words) != 2:
        raise UsageError(f"two words are needed: a connection (or --target HOST), and {what}")
    return words[0], words[1]


def tell(
    client: Client, connection: str | None, target: str | None, body: dict[str, object]
) -> tuple[str, Any]:
    """Change it. Returns whose it was, for people, and what the agent answers."""
    if connection is None:
        return f"target {target}", client.post("transmission", body={**body, "target": target})
    return f"connection {connection}", client.post("connections", connection, "transmission", body=body)
