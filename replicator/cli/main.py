"""`dtctl`: the command line of an agent. Assembles the commands; errors become one line and an exit code."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from replicator.cli import connect, connection, console, events, monitor, mount, repset, status
from replicator.cli.client import Client
from replicator.errors import ExitCode, ReplicatorError
from replicator.paths import DEFAULT_HOME, HOME_VARIABLE

# typer exports only a subclass of click's usage error, and newer releases carry click inside.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C

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


for _module in (connect, status, connection):
    _module.register(app)
app.add_typer(mount.app, name="mount")
app.add_typer(repset.app, name="repset")
for _module in (events, monitor, console):
    _module.register(app)


def run(arguments: Sequence[str], command: Any = None) -> int:
    """Run one command line. Returns its exit code; errors have been told on stderr, in one line."""
    command = command or typer.main.get_command(app)
    try:
        code = command.main(list(arguments) or ["--help"], prog_name="dtctl", standalone_mode=False)
        return int(code or ExitCode.DONE)
    except ReplicatorError as error:
        return _fail(str(error), error.exit_code)
    except _UsageError as error:
        return _fail(_usage_text(error), ExitCode.USAGE)
    except (typer.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:  # `dtctl … | head`: the reader has seen enough
        return ExitCode.FAILED


def _usage_text(error: Any) -> str:
    text = " ".join(error.format_message().split())
    context = error.ctx
    hint = f"see '{context.command_path} --help'" if context is not None else "see 'dtctl --help'"
    return f"{text.rstrip('.')}; {hint}"


def _fail(text: str, code: int) -> int:
    print(f"dtctl: {text}", file=sys.stderr, flush=True)
    return int(code)


def main() -> None:
    sys.exit(run(sys.argv[1:]))
