"""`dtctl monitor`: connections live, with their states, statistics and progress; or monitors of sources."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replicator.cli.client import Client
from replicator.cli.options import agent
from replicator.errors import ReplicatorError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

_INTERVAL_S = 1.0
_HISTORY = 10  # entries that are shown


def register(app: typer.Typer) -> None:
    app.command("monitor", epilog="Example: dtctl monitor --interval 0.5")(monitor)


def monitor(
    context: typer.Context,
    interval: Annotated[
        float,
        typer.Option("--interval", min=0.1, max=3600.0, metavar="SECONDS", help="Time between two looks."),
    ] = _INTERVAL_S,
    failover: Annotated[
        bool, typer.Option("--failover", help="Monitors of sources: countdowns, questions, history.")
    ] = False,
) -> None:
    """Watch all connections; q or Ctrl-C ends it."""
    if not sys.stdout.isatty():
        raise UsageError("monitor needs a terminal; use 'dtctl status' in pipes and scripts")
    client = agent(context)
    view: View | FailoverView = FailoverView(client) if failover else View(client)
    view.update()  # an agent that is not there is an error now, and a message in the view later

    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with _single_keys(), Live(view.render(), console=console, screen=True, auto_refresh=False) as live:
        while not _key_pressed("q", interval):
            try:
                view.update()
            except ReplicatorError as error:
                view.lost(str(error))
            live.update(view.render(), refresh=True)


class View:
    """What the monitor shows. Values freeze and turn grey when the agent cannot be reached (CL-13)."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._agent: dict[str, Any] = {}
        self._statuses: list[dict[str, Any]] = []
        self._problem = ""
        self._sent: dict[str, tuple[float, int]] = {}  # uuid → (monotonic s, bytes sent) of the last look
        self._rates: dict[str, float] = {}

    def update(self) -> None:
        """Ask the agent. Raises ReplicatorError, and shows the old values then."""
        self._agent = self._client.get("agent")
        self._statuses = self._client.get("connections")
        self._problem = ""
        now_s = time.monotonic()
        for status in self._statuses:
            uuid, sent = status["uuid"], status.get("sent_bytes") or 0
            before_s, before = self._sent.get(uuid, (now_s, sent))
            if now_s > before_s:
                self._rates[uuid] = max(0, sent - before) / (now_s - before_s)
            self._sent[uuid] = (now_s, sent)

    def lost(self, reason: str) -> None:
        self._problem = reason

    def render(self) -> "RenderableType":
        from rich.console import Group
        from rich.styled import Styled
        from rich.text import Text

        from replicator.cli import render
        from replicator.cli.units import bytes_text

        parts: list[RenderableType] = [
            Text(f"{self._agent.get('name', 'agent')}  {time.strftime('%H:%M:%S')}    q ends", style="bold"),
            render.connections(self._statuses),
        ]
        for status in self._statuses:
            rate = self._rates.get(status["uuid"], 0.0)
            last = f"  {status['last_file']}" if status.get("last_file") else ""
            parts.append(
                Text(
                    f"{status['id']} {status['repset']}: {bytes_text(rate)}/s,"
                    f" {bytes_text(status['sent_bytes'])} sent{_how(status)}, queue"
                    f" {bytes_text(status['memory_queue_bytes'])} in memory and"
                    f" {bytes_text(status['disk_queue_bytes'])} on disk{last}",
                    no_wrap=True,
                    overflow="ellipsis",
                )
            )
        mirroring = [status for status in self._statuses if render.is_mirroring(status)]
        if mirroring:
            parts += [
                Text(),
                Text("mirrors", style="bold"),
                *(render.mirror_bar(status) for status in mirroring),
            ]
        if self._problem:
            return Group(Text(self._problem, style="bold red"), Styled(Group(*parts), "dim"))
        return Group(*parts)


class FailoverView:
    """FO-21: monitors of sources, what they ask, and what happened last."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._agent: dict[str, Any] = {}
        self._monitors: list[dict[str, Any]] = []
        self._history: list[dict[str, Any]] = []
        self._problem = ""

    def update(self) -> None:
        """As of `View`."""
        self._agent = self._client.get("agent")
        self._monitors = self._client.get("failover", "monitors")
        self._history = self._client.get("failover", "history")[-_HISTORY:]
        self._problem = ""

    def lost(self, reason: str) -> None:
        self._problem = reason

    def render(self) -> "RenderableType":
        from rich.console import Group
        from rich.styled import Styled
        from rich.text import Text

        from replicator.cli import render_failover

        title = f"{self._agent.get('name', 'agent')}  {time.strftime('%H:%M:%S')}    q ends"
        parts = [Text(title, style="bold"), *render_failover.live(self._monitors, self._history)]
        if self._problem:
            return Group(Text(self._problem, style="bold red"), Styled(Group(*parts), "dim"))
        return Group(*parts)


def _how(status: dict[str, Any]) -> str:
    """How it transmits, if that is worth a word."""
    from replicator.cli import render_transmission

    known = status.get("transmission") or {}
    plain = known.get("compression", "off") == "off" and known.get("limit_bytes_per_s") is None
    return "" if plain else f" ({render_transmission.now(known)})"


@contextmanager
def _single_keys() -> Iterator[None]:
    """Keys arrive at once and unseen; Ctrl-C keeps its meaning."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _key_pressed(key: str, timeout_s: float) -> bool:
    """Wait for a key. False after `timeout_s`, and for all other keys."""
    if not sys.stdin.isatty():
        time.sleep(timeout_s)
        return False
    readable, _, _ = select.select([sys.stdin], [], [], timeout_s)
    # Not through sys.stdin: what its buffer holds, select does not see.
    return bool(readable) and key in os.read(sys.stdin.fileno(), 64).decode(errors="replace").lower()
