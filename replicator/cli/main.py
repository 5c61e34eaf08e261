"""`dtctl`: the command line of an agent. Assembles the commands."""

import os
import sys
from typing import Annotated

import typer

from replicator.cli import (
    compression,
    connect,
    connection,
    console,
    diagnostics,
    divergence,
    events,
    failback,
    failover,
    failover_addresses,
    failover_scripts,
    failover_trials,
    guards,
    lag,
    limit,
    login,
    monitor,
    mount,
    orphans,
    queue,
    recovery,
    repset,
    restore,
    schedule,
    siblings,
    status,
    story,
    trust,
    verify,
    why,
    witness,
)
from replicator.cli.client import Client
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


for _module in (connect, status, connection, lag, queue, story, why, verify, trust):
    _module.register(app)
app.add_typer(orphans.app, name="orphans")
app.add_typer(restore.app, name="restore")
app.add_typer(divergence.app, name="divergence")
app.add_typer(recovery.app, name="recovery")
failover.app.add_typer(failover_scripts.app, name="scripts")
failover_trials.register(failover.app)
failover_addresses.register(failover.app)
guards.register(failover.app)
siblings.register(failover.app)
app.add_typer(failover.app, name="failover")
app.add_typer(witness.app, name="witness")
app.add_typer(schedule.app, name="schedule")
app.add_typer(diagnostics.app, name="diagnostics")
app.add_typer(verify.app, name="verify")
app.add_typer(trust.identity_app, name="identity")
app.add_typer(trust.app, name="trust")
app.add_typer(compression.app, name="compression")
app.add_typer(limit.app, name="limit")
app.add_typer(mount.app, name="mount")
app.add_typer(repset.app, name="repset")
for _module in (failback, login, events, monitor, console):
    _module.register(app)


def main() -> None:
    sys.exit(run(typer.main.get_command(app), sys.argv[1:]))
