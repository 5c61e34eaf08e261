"""`dtctl failover adopt`: other targets of a former source become targets of this host."""

from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.options import Json, agent


def register(app: typer.Typer) -> None:
    app.command("adopt", epilog="Example: dtctl failover adopt web third-host")(adopt)


def adopt(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the monitor.")],
    host: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="Another target of the former source.")],
    json: Json = False,
) -> None:
    """After a failover: have another target of the former source follow this host, by a difference mirror."""
    body = {"action": "adopt", "host": host}
    found = agent(context).post("failover", "monitors", name, "siblings", body=body)
    output.emit(found, json, "adopted")
