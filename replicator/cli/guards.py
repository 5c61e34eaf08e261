"""`dtctl failover guards`, `open`, `release` and `follow`: groups in which this host is the source."""

from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.options import Json, agent

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the monitor, as `dtctl failover guards` shows it.")
]
Confirmed = Annotated[
    bool,
    typer.Option(
        "--even-if-two-masters",
        help="The other host does not write, or both may: one of them will be left over.",
    ),
]


def register(app: typer.Typer) -> None:
    app.command("guards", epilog="Example: dtctl failover guards")(guards)
    app.command("open", epilog="Example: dtctl failover open web --even-if-two-masters")(open_)
    app.command("release", epilog="Example: dtctl failover release web --even-if-two-masters")(release)
    app.command("follow", epilog="Example: dtctl failover follow web")(follow)


def guards(context: typer.Context, json: Json = False) -> None:
    """Who watches this host, and whether its mounts may be written."""
    output.emit(agent(context).get("failover", "guards"), json, "guards")


def open_(
    context: typer.Context, name: Name, even_if_two_masters: Confirmed = False, json: Json = False
) -> None:
    """Let programs of this host write again, whatever the other host and the witness say or do not say.

    Without the option it says what is known, and what else can be done.
    """
    body = {"action": "open", "even_if_two_masters": even_if_two_masters}
    output.emit(agent(context).post("failover", "guards", name, body=body), json, "guard_opened")


def follow(context: typer.Context, name: Name, json: Json = False) -> None:
    """Let the host that has taken over win: what was written here since becomes a bundle, and is overwritten
    with what that host has (`dtctl divergence`).
    """
    body = {"action": "follow"}
    output.emit(agent(context).post("failover", "guards", name, body=body), json, "guard_follows")


def release(
    context: typer.Context, name: Name, even_if_two_masters: Confirmed = False, json: Json = False
) -> None:
    """Obey the host that watches this one no more, because it is lost for good: its leases and fences end.

    Without the option it says what that means, and what else can be done.
    """
    body = {"action": "release", "even_if_two_masters": even_if_two_masters}
    output.emit(agent(context).post("failover", "guards", name, body=body), json, "guard_released")
