"""`dtctl witness`: groups of other hosts that this agent is the witness of."""

from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.options import Json, agent

app = typer.Typer(help="Groups of other hosts that this agent is the witness of.")

Group = Annotated[str, typer.Argument(metavar="GROUP", help="Uuid of the group, or how it begins.")]


@app.command("list", epilog="Example: dtctl witness list")
def list_(context: typer.Context, json: Json = False) -> None:
    """List the groups, who owns each, and when one of its agents asked last."""
    output.emit(agent(context).get("failover", "witness"), json, "witness_groups")


@app.command("show", epilog="Example: dtctl witness show 4f0c")
def show(context: typer.Context, group: Group, json: Json = False) -> None:
    """Show a group, and the promotions that this witness knows of."""
    output.emit(agent(context).get("failover", "witness", group), json, "witness_group")


@app.command("forget", epilog="Example: dtctl witness forget 4f0c")
def forget(context: typer.Context, group: Group, json: Json = False) -> None:
    """Forget a group that exists no more. A source that comes back without a lease is not let in by a witness
    that has forgotten it: ask its target then.
    """
    found = agent(context).delete("failover", "witness", group)
    if json:
        output.print_json(found)
    else:
        output.say(f"group {found['group']} is forgotten")
