"""What needs a terminal: the monitor and the console, on a pseudo-terminal."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import dtd
from kit.dtd import Agent

pytestmark = pytest.mark.e2e


class Terminal:
    """A program that believes a person sits before it."""

    def __init__(self, agent: Agent, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, 150))
        self._seen = ""
        command = [sys.executable, "-c", "from replicator.cli.main import main; main()", "--home", agent.home]
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={
                **os.environ,
                "TERM": "xterm",
                "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody here answers where the cursor is
                "XDG_STATE_HOME": str(agent.home),
            },
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def see(self, text: str, timeout_s: float = 20.0) -> None:
        """Wait until `text` has been shown after what was seen before."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self._seen:
            assert time.monotonic() < deadline_s, f"{text!r} did not appear in {self._seen!r}"
            self._read()
        self._seen = self._seen.split(text, 1)[1]

    def _read(self) -> None:
        if select.select([self._master], [], [], 0.1)[0]:
            try:
                data = os.read(self._master, 65536).decode(errors="replace")
            except OSError:  # the program has closed the terminal
                return
            self._seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data)

    def end(self, timeout_s: float = 10.0) -> int:
        """The exit code. Reads on meanwhile: a program whose terminal is full cannot end."""
        deadline_s = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s, "the program did not end"
            self._read()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with dtd.running(tmp_path, "alpha") as (alpha,):
        yield alpha


def test_monitor_shows_and_ends_with_q(agent: Agent) -> None:
    terminal = Terminal(agent, "monitor", "--interval", "0.2")
    try:
        terminal.see("alpha")
        terminal.see("no connections")
        agent.stop()
        terminal.see("no agent answers")
        agent.start()
        terminal.type("q")
        assert terminal.end() == 0
    finally:
        terminal.close()


def test_monitor_ends_with_ctrl_c(agent: Agent) -> None:
    terminal = Terminal(agent, "monitor")
    try:
        terminal.see("no connections")
        terminal.process.send_signal(2)
        assert terminal.end() == 130
    finally:
        terminal.close()


def test_console_completes_runs_and_remembers(agent: Agent) -> None:
    for number in (1, 2):
        terminal = Terminal(agent, "console")
        try:
            terminal.see("alpha>")
            if number == 1:
                terminal.type("repset cre")
                terminal.see("Create an empty set")  # the menu
                terminal.type("\t web\r")
                terminal.see("web (generation 1)")
                terminal.type("nonsense\r")
                terminal.see("No such command")
            else:
                terminal.type("\x1b[A" * 3)  # up, past exit and nonsense: the history of the first console
                terminal.see("repset create web")
                terminal.type("\x03")  # Ctrl-C drops the line, not the console
                terminal.type("repset list\r")
                terminal.see("generation")
            terminal.type("exit\r")
            assert terminal.end() == 0
        finally:
            terminal.close()
