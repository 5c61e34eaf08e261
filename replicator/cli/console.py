"""`dtctl console`: a prompt in which every command works, with history and completion."""

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from replicator.cli import complete
from replicator.cli.client import Client
from replicator.cli.options import agent
from replicator.cli.run import run
from replicator.errors import ExitCode, ReplicatorError, UsageError

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completion
    from prompt_toolkit.document import Document

_LEAVE = ("exit", "quit")


def register(app: typer.Typer) -> None:
    app.command("console", epilog="Example: echo 'status' | dtctl console")(console)


def console(context: typer.Context) -> None:
    """Type commands at a prompt, with history and Tab.

    The commands are those of dtctl. A script may be piped in: it ends at the first command that fails, with
    that command's exit code.
    """
    client = agent(context)
    name = str(client.get("agent").get("name") or "agent")
    shell = Shell(client, context.find_root().command)
    if sys.stdin.isatty():
        _converse(shell, name)
        return
    for line in sys.stdin:
        code = shell.execute(line)
        if code is None:
            return
        if code != ExitCode.DONE:
            raise typer.Exit(code)


class Shell:
    """Runs the lines of a console."""

    def __init__(self, client: Client, command: Any) -> None:
        """`command`: `dtctl` itself, as click sees it."""
        self.client = client
        self.command = command

    def execute(self, line: str) -> int | None:
        """Run one line. Returns its exit code, or None when the line says to leave."""
        try:
            words = shlex.split(line, comments=True)
            if words and words[0] == "console":
                raise UsageError("this is the console already; type a command, or exit")
        except (ValueError, ReplicatorError) as error:
            print(f"dtctl: {error}", file=sys.stderr, flush=True)
            return ExitCode.USAGE
        if not words:
            return ExitCode.DONE
        if words[0] in _LEAVE:
            return None
        if words[0] == "dtctl":  # pasted from the manual
            words = words[1:]
        if words[:1] in (["help"], ["?"]):
            words = [*words[1:], "--help"]
        return run(self.command, [*self.client.arguments, *words])

    def candidates(self, text: str) -> Iterator[tuple[str, int, str]]:
        """Completions of the line so far: (word, characters it replaces, description)."""
        words, incomplete = _split(text)
        command, arguments = self.command, 0
        for index, word in enumerate(words):
            if command is self.command and index == 0 and word == "help":
                continue
            below = getattr(command, "commands", {})
            if word in below:
                command = below[word]
            elif not word.startswith("-"):
                arguments += 1
        for word, description in self._next(command, arguments, incomplete):
            if word.startswith(incomplete):
                yield word, len(incomplete), description

    def _next(self, command: Any, arguments: int, incomplete: str) -> Iterable[tuple[str, str]]:
        below = getattr(command, "commands", None)
        if below is not None:
            found = [(name, sub.get_short_help_str()) for name, sub in below.items()]
            return [*found, ("help", "Show help."), ("exit", "Leave.")] if command is self.command else found
        if incomplete.startswith("-"):
            return [
                (name, getattr(parameter, "help", None) or "")
                for parameter in command.params
                if parameter.param_type_name == "option"
                for name in parameter.opts
                if name.startswith("--")
            ]
        positional = [p for p in command.params if p.param_type_name == "argument"]
        if arguments >= len(positional):
            return []
        return self._names(positional[arguments].metavar or "")

    def _names(self, metavar: str) -> Iterable[tuple[str, str]]:
        """What stands for an argument, by the word its help uses."""
        if "CON" in metavar:
            return complete.connection_names(self.client)
        if metavar == "NAME":
            return [(name, "") for name in complete.repset_names(self.client)]
        if metavar == "PATH":
            return [(path, "") for path in complete.mount_paths(self.client)]
        if "|" in metavar:
            return [(word, "") for word in metavar.strip("[]").split("|")]
        return []


def _split(text: str) -> tuple[list[str], str]:
    """Complete words, and the one being typed."""
    try:
        words = shlex.split(text)
    except ValueError:  # an open quotation mark: everything is one word still
        return [], text
    if not text or text[-1].isspace():
        return words, ""
    return words[:-1], words[-1] if words else ""


def _converse(shell: Shell, name: str) -> None:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.history import FileHistory

    class Words(Completer):
        def get_completions(
            self, document: "Document", complete_event: "CompleteEvent"
        ) -> Iterable["Completion"]:
            for word, replaced, description in shell.candidates(document.text_before_cursor):
                yield Completion(word, start_position=-replaced, display_meta=description)

    # In a thread: asking the agent for names must not hold up typing.
    session: PromptSession[str] = PromptSession(
        history=FileHistory(_history_file()), completer=Words(), complete_in_thread=True
    )
    print("Type a command, 'help' for all of them, or 'exit'.")
    while True:
        try:
            if shell.execute(session.prompt(f"{name}> ")) is None:
                return
        except KeyboardInterrupt:  # as in a shell: the line is dropped, the console stays
            continue
        except EOFError:
            return


def _history_file() -> str:
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    directory = os.path.join(base, "replicator")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError:  # no home directory, or a read-only one: a console without a memory is still a console
        return os.devnull
    return os.path.join(directory, "console_history")
