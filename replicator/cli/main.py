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
    events,
    lag,
    limit,
    monitor,
    mount,
    orphans,
    queue,
    recovery,
    repset,
    restore,
    status,
    story,
    verify,
    why,
)
from replicator.cli.client import Client
from replicator.cli.run import run
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
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    context.obj = Client(os.path.abspath(home))


for _module in (connect, status, connection, lag, queue, story, why, verify):
    _module.register(app)
app.add_typer(orphans.app, name="orphans")
app.add_typer(restore.app, name="restore")
app.add_typer(recovery.app, name="recovery")
app.add_typer(verify.app, name="verify")
app.add_typer(compression.app, name="compression")
app.add_typer(limit.app, name="limit")
app.add_typer(mount.app, name="mount")
app.add_typer(repset.app, name="repset")
for _module in (events, monitor, console):
    _module.register(app)


def main() -> None:
    sys.exit(run(typer.main.get_command(app), sys.argv[1:]))
