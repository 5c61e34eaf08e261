"""What `dtctl compression`, `limit` and `schedule` share: whose settings they change."""

from typing import Annotated, Any

import typer

from replicator.cli import complete
from replicator.cli.client import Client
from replicator.errors import UsageError

Target = Annotated[
    str | None,
    typer.Option(
        "--target", metavar="HOST", help="All connections to this host, instead of one connection CON."
    ),
]

Whose = Annotated[
    str | None,
    typer.Argument(
        metavar="[CON]",
        help="A connection; or give --target.",
        show_default=False,
        autocompletion=complete.connections,
    ),
]


def split(words: list[str], target: str | None, what: str) -> tuple[str | None, str]:
    """(connection, value) of what was typed; with `--target` there is only a value. Raises UsageError."""
    if target is not None:
        if len(words) != 1:
            raise UsageError(f"with --target HOST one more word is needed: {what}")
    elif len(words) != 2:
        raise UsageError(f"two words are needed: a connection (or --target HOST), and {what}")
    if not words[-1].strip():  # a script's variable that nobody has set must not take a limit away
        raise UsageError(f"an empty text is not {what}")
    return (None if target is not None else words[0]), words[-1]


def whose(words: list[str], target: str | None, *wanted: str) -> tuple[str | None, list[str]]:
    """(connection, values) of words of which the first is a connection unless there is `--target`. Raises
    UsageError.
    """
    count = len(wanted) + (target is None)
    if len(words) != count:
        names = " ".join(wanted if target is not None else ("CON", *wanted))
        raise UsageError(f"say {names}" + ("" if target is not None else ", or with --target HOST no CON"))
    return (None, words) if target is not None else (words[0], words[1:])


def ask(client: Client, what: str, connection: str | None, target: str | None) -> Any:
    """The schedule, or calendar, of one of both. Raises UsageError."""
    _one(connection, target)
    if connection is None:
        return client.get(what, target=target)
    return client.get("connections", connection, what)


def act(
    client: Client, what: str, connection: str | None, target: str | None, body: dict[str, object]
) -> Any:
    """Change it. Raises UsageError."""
    _one(connection, target)
    if connection is None:
        return client.post(what, body={**body, "target": target})
    return client.post("connections", connection, what, body=body)


def _one(connection: str | None, target: str | None) -> None:
    if (connection is None) == (target is None):
        raise UsageError("name a connection, or --target HOST")


def tell(
    client: Client, connection: str | None, target: str | None, body: dict[str, object]
) -> tuple[str, Any]:
    """Change it. Returns whose it was, for people, and what the agent answers."""
    if connection is None:
        return f"target {target}", client.post("transmission", body={**body, "target": target})
    return f"connection {connection}", client.post("connections", connection, "transmission", body=body)
