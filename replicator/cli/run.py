"""One command line, from a shell or the console: errors become one line on stderr and an exit code."""

import sys
from collections.abc import Sequence
from typing import Any

import typer

from replicator.errors import ExitCode, ReplicatorError

# typer exports only a subclass of click's usage error, and newer releases carry click inside.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C


def run(command: Any, arguments: Sequence[str]) -> int:
    """Run one command line of `dtctl`, whose click command this is. Returns its exit code."""
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
