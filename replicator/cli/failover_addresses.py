"""`dtctl failover addresses`: which addresses a source has, as its agent says (FO-01); and what follows for a
monitor that is made without saying them in full.
"""

from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.client import Client
from replicator.cli.options import Json, agent
from replicator.errors import ReplicatorError
from replicator.failover_settings import ip_of


def register(app: typer.Typer) -> None:
    app.command("addresses", epilog="Example: dtctl failover addresses alpha")(addresses)


def addresses(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE[:PORT]", help="Host of the source, and its agent.")
    ],
    json: Json = False,
) -> None:
    """Show which addresses a source has: some of them are to be monitored and taken."""
    found = agent(context).get("failover", "addresses", source=source)
    output.emit(found, json, "source_addresses")


def which(client: Client, source: str) -> str:
    """Why a monitor without an address cannot be, with those that there are."""
    missing = "--address is missing: which address of the source do clients use (IP/PREFIX)?"
    try:
        found = client.get("failover", "addresses", source=source)
    except ReplicatorError as error:
        return f"{missing} Its agent does not say which it has: {error}"
    there = ", ".join(f"{each['address']} ({each['interface']})" for each in found)
    return f"{missing} It has {there or 'none'}"


def with_prefixes(client: Client, source: str, texts: list[str]) -> list[str]:
    """Where one is not given it is as the source has it, if its agent says so; else the whole address is."""
    if all("/" in text for text in texts):
        return texts
    try:
        found = client.get("failover", "addresses", source=source)
    except ReplicatorError:
        return texts
    known = {ip_of(each["address"]): each["address"] for each in found}
    parted = [text.partition("@") for text in texts]
    return [known.get(address, address) + at + interface for address, at, interface in parted]
