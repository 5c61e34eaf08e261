"""`dtctl login`, `logout`, `whoami`, `ping`: agents of other hosts, and what one may do there."""

import getpass
import sys
from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.client import Client
from replicator.cli.options import Json, agent
from replicator.errors import UsageError


def register(app: typer.Typer) -> None:
    app.command("login", epilog="Example: dtctl --server backup --user alice login")(login)
    app.command("logout", epilog="Example: dtctl --server backup logout")(logout)
    app.command("whoami", epilog="Examples: dtctl whoami  |  dtctl --server backup whoami")(whoami)
    app.command("ping", epilog="Example: dtctl ping")(ping)


def login(
    context: typer.Context,
    password_file: Annotated[
        str,
        typer.Option(
            "--password-file",
            metavar="FILE",
            help="Read the password from this file, or descriptor (/dev/fd/3), instead of asking for it.",
            show_default=False,
        ),
    ] = "",
    fingerprint: Annotated[
        str,
        typer.Option(
            "--fingerprint",
            metavar="AB:CD:…",
            help="Of the server's certificate, as 'dtctl ping' shows it on its host.",
            show_default=False,
        ),
    ] = "",
    json: Json = False,
) -> None:
    """Log in to an agent of another host (--server) with your password there.

    The login lasts until it is not used for a while, and is kept for your user alone.
    """
    from replicator.cli.remote import RemoteClient, read_password

    client = agent(context)
    if not isinstance(client, RemoteClient):
        raise UsageError(
            "the agent of this host knows who you are; to log in to another one give --server HOST"
        )
    if password_file:
        password = read_password(password_file)
    elif sys.stdin.isatty():
        # The server is looked at first: nobody types a password for one that is not known.
        client.look(fingerprint)
        password = getpass.getpass(f"Password of {client.user} on {client.server.host}: ")
    else:
        raise UsageError("there is no terminal to ask for the password: give --password-file FILE")
    found = client.log_in(password, fingerprint)
    if json:
        output.print_json(found)
    else:
        output.say(f"User access level set to {found['level']}")


def logout(
    context: typer.Context,
    everywhere: Annotated[
        bool, typer.Option("--all", help="Forget all logins of yours that are kept here, to whatever server.")
    ] = False,
) -> None:
    """End the login to an agent of another host (--server)."""
    from replicator.cli.known_servers import Logins
    from replicator.cli.remote import RemoteClient

    if everywhere:
        count = Logins().forget_all()
        output.say(f"{count} logins forgotten; what nobody uses ends at its agent by itself")
        return
    client = agent(context)
    if not isinstance(client, RemoteClient):
        raise UsageError("nobody logs in on an agent's own host; give --server HOST")
    client.log_out()


def whoami(context: typer.Context, json: Json = False) -> None:
    """Show who the agent takes you for, and what you may do: 0 nothing, 1 look, 2 everything."""
    found = agent(context).get("access")
    if json:
        output.print_json(found)
    else:
        output.say(f"{found['user']} from {found['origin']}: {found['level']} ({found['access']})")


def ping(context: typer.Context, json: Json = False) -> None:
    """Say whether an agent answers. It takes no access."""
    client: Client = agent(context)
    found = client.get("ping")
    if json:
        output.print_json(found)
        return
    output.say(f"{found['agent']} answers")
    if found["control"]:
        output.say(f"remote control on {found['control']}, {found['fingerprint']}")
