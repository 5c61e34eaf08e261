"""`dtctl why`: what becomes of one path."""

from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.options import Json, absolute, agent


def register(app: typer.Typer) -> None:
    app.command("why", epilog="Example: dtctl why /srv/data/report.odt")(why)


def why(
    context: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file or directory, there or not.")],
    json: Json = False,
) -> None:
    """Say why a path is, or is not, on its targets: rules, the last operations, what they wait for."""
    output.emit(agent(context).get("why", path=absolute(path)), json, "why")
