"""`dtctl identity`, `dtctl pair`, `dtctl trust`: who this agent is, and which other agents it trusts."""

import sys
from datetime import datetime
from typing import Annotated, Any

import typer

from replicator.cli import output
from replicator.cli.options import Json, agent
from replicator.errors import UsageError

identity_app = typer.Typer(help="The key and certificate of this agent.", invoke_without_command=True)
app = typer.Typer(help="Other agents that this one trusts.")

PeerName = Annotated[
    str, typer.Argument(metavar="AGENT", help="Name, uuid or fingerprint of a paired agent.")
]


def register(application: typer.Typer) -> None:
    epilog = "Examples: dtctl pair --show  |  dtctl pair backup.example.org"
    application.command("pair", epilog=epilog)(pair)


@identity_app.callback(epilog="Examples: dtctl identity  |  dtctl identity renew")
def identity(context: typer.Context, json: Json = False) -> None:
    """Show who this agent is to others: compare the fingerprint with what they show."""
    if context.invoked_subcommand is None:
        _show_identity(agent(context).get("identity"), json)


@identity_app.command("renew", epilog="Example: dtctl identity renew")
def renew(context: typer.Context, json: Json = False) -> None:
    """Make a new key. Paired agents are told of it, by the old key; sessions go on."""
    _show_identity(agent(context).post("identity", body={"action": "renew"}), json)


def _show_identity(found: Any, json: bool) -> None:
    if json:
        output.print_json(found)
        return
    output.say(f"{found['name']} ({found['uuid']})")
    output.say(f"fingerprint  {found['fingerprint']}")
    kind = "by the organisation's authority" if found["by_authority"] else "made by this agent"
    output.say(f"valid until  {_date(found['until'])}, {kind}")
    if found["next_fingerprint"]:
        output.say(f"next         {found['next_fingerprint']}")
        output.say(f"  shown once these know it: {', '.join(found['waiting_for']) or '(in a moment)'}")
    if found["plain"]:
        output.say(f"plain text   is spoken with {', '.join(found['plain'])}")


def pair(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Argument(metavar="HOST[:PORT]", help="The other agent, which shows a code.")
    ] = None,
    code: Annotated[
        str | None,
        typer.Option("--code", metavar="CODE", help="The code it shows; -: read it from standard input."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show a code here, for 10 minutes, to be typed there.")
    ] = False,
    close: Annotated[
        bool, typer.Option("--close", help="The code that is shown is of no use any more.")
    ] = False,
    json: Json = False,
) -> None:
    """Make this agent and another one trust each other. One of them shows a code, on the other one it is
    typed.
    """
    client = agent(context)
    if sum((show, close, host is not None)) != 1 or (code is not None and host is None):
        raise UsageError("either --show, or HOST and the code that is shown there, or --close")
    if host is None:
        found = client.post("pairing", body={"action": "open" if show else "close"})
        if json:
            output.print_json(found)
        elif show:
            output.say(found["code"])
            minutes = found["seconds_left"] / 60
            output.warn(
                f"for {minutes:.0f} minutes, on the other host: dtctl pair THIS_HOST --code {found['code']}"
            )
        else:
            output.say("pairing is closed")
        return
    found = client.post("pair", body={"host": host, "code": _code(code)})
    if json:
        output.print_json(found)
    else:
        output.say(f"paired with {found['name']}: {found['fingerprint']}")


def _code(given: str | None) -> str:
    if given == "-" or (given is None and not sys.stdin.isatty()):
        return sys.stdin.readline().strip()
    if given is None:
        return str(typer.prompt("code", hide_input=True))
    return given


@app.command("list", epilog="Example: dtctl trust list")
def list_(context: typer.Context, json: Json = False) -> None:
    """List the agents that were paired, and those whose trust was revoked."""
    found = agent(context).get("peers")
    if json:
        output.print_json(found)
        return
    if not found:
        output.say("no agent is paired: dtctl pair --show, or dtctl pair HOST")
    for peer in found:
        state = f"revoked {_date(peer['revoked'])}" if peer["revoked"] else f"paired {_date(peer['added'])}"
        more = ", restores from all copies" if peer["restores_all"] else ""
        output.say(f"{peer['name']}  {state}{more}  {peer['address']}".rstrip())
        output.say(f"  fingerprint  {peer['fingerprint']}")


@app.command("revoke", epilog="Example: dtctl trust revoke alpha")
def revoke(context: typer.Context, peer: PeerName, json: Json = False) -> None:
    """Trust an agent no more: its sessions end at once, and its certificates are refused."""
    found = agent(context).post("peers", body={"action": "revoke", "peer": peer})
    if json:
        output.print_json(found)
    else:
        output.say(f"{found['name']} is trusted no more")


@app.command("restores", epilog="Examples: dtctl trust restores gamma all  |  dtctl trust restores gamma own")
def restores(
    context: typer.Context,
    peer: PeerName,
    which: Annotated[str, typer.Argument(metavar="all|own", help="Copies that are kept here.")],
    json: Json = False,
) -> None:
    """Which copies an agent may restore from: its own ones, or all, as the successor of a lost host."""
    if which not in ("all", "own"):
        raise UsageError(f"{which!r}: must be all or own")
    found = agent(context).post("peers", body={"action": f"restores-{which}", "peer": peer})
    if json:
        output.print_json(found)
    else:
        output.say(f"{found['name']} may restore from {'all copies' if which == 'all' else 'its own copies'}")


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")
