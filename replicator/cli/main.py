"""`dtctl`: the command line of an agent. Assembles the commands."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from replicator.cli.client import Client
from replicator.cli.commands import add_commands
from replicator.cli.run import run
from replicator.errors import UsageError
from replicator.paths import DEFAULT_HOME, HOME_VARIABLE

app = typer.Typer(
    name="dtctl",
    help="Control the replication agent of this host.",
    epilog="Example: dtctl protect /srv/data backup.example.org:/srv/data --wait",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"dtctl {version('replicator')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    home: Annotated[
        str,
        typer.Option("--home", envvar=HOME_VARIABLE, metavar="DIR", help="Home directory of the agent."),
    ] = DEFAULT_HOME,
    server: Annotated[
        str,
        typer.Option(
            "--server",
            envvar="REPLICATOR_SERVER",
            metavar="HOST[:PORT]",
            help="An agent on another host, instead of one of this host.",
            show_default=False,
        ),
    ] = "",
    user: Annotated[
        str,
        typer.Option(
            "--user",
            envvar="REPLICATOR_USER",
            metavar="NAME",
            help="Who you are there (default: as here).",
            show_default=False,
        ),
    ] = "",
    ca: Annotated[
        str,
        typer.Option(
            "--ca",
            envvar="REPLICATOR_CA",
            metavar="FILE",
            help="Trust servers whose certificate this CA has signed.",
            show_default=False,
        ),
    ] = "",
    cert: Annotated[
        str,
        typer.Option(
            "--cert",
            envvar="REPLICATOR_CERT",
            metavar="FILE",
            help="Your certificate and its key, instead of a password.",
            show_default=False,
        ),
    ] = "",
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    if server and _is_typed(context, "home"):
        if _is_typed(context, "server"):
            raise UsageError("--home and --server name two agents: give one of them")
        server = ""  # of the environment
    if server:
        from replicator.cli import remote  # with TLS, which a client of this host does not load

        context.obj = remote.client_for(context.params, may_ask=sys.stdin.isatty())
    else:
        context.obj = Client(os.path.abspath(home))


def _is_typed(context: typer.Context, name: str) -> bool:
    """Whether an option was on the command line, and not in the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


VALUES = frozenset({"--home", "--server", "--user", "--ca", "--cert"})
"""Options before a command that have a value."""


def command(words: Sequence[str] = ()) -> Any:
    """`dtctl` as click sees it, with what a command line of these words may need."""
    add_commands(app, words, VALUES)
    return typer.main.get_command(app)


def main() -> None:
    words = sys.argv[1:]
    sys.exit(run(command(() if _is_completion() else words), words))


def _is_completion() -> bool:
    """A shell asks what could come next: it says so in the environment."""
    return any(name.endswith("DTCTL_COMPLETE") for name in os.environ)
