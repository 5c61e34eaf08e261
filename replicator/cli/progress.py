"""Waiting for a connection, with the mirror's progress for those who watch."""

import queue
import sys
import threading
import time
from typing import Any

from replicator.cli.client import Client

_REFRESH_S = 0.25


def wait_for(client: Client, connection: str, timeout_s: float | None, *, quiet: bool) -> Any:
    """Wait until everything captured before this call is applied on the target and no mirror runs.

    Returns the connection's status then. Raises ReplicatorError on timeout. Ctrl-C ends the waiting only.
    """
    if not quiet and sys.stderr.isatty():
        _wait_and_show(client, connection, timeout_s)
    else:
        client.post("connections", connection, "wait", body=_body(timeout_s), timeout_s=None)
    return client.get("connections", connection)


def _body(timeout_s: float | None) -> dict[str, object]:
    return {} if timeout_s is None else {"timeout_s": timeout_s}


def _wait_and_show(client: Client, connection: str, timeout_s: float | None) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from replicator.cli import render

    # The wait is one blocking request: what "before this call" means is decided once, so it cannot be cut
    # into short ones. It gets a thread, and this one looks at the status meanwhile.
    answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            client.post("connections", connection, "wait", body=_body(timeout_s), timeout_s=None)
        except BaseException as error:  # raised again in the thread that waits
            answers.put(error)
        else:
            answers.put(None)

    threading.Thread(target=ask, daemon=True).start()
    with Live(console=Console(stderr=True, highlight=False), transient=True, auto_refresh=False) as live:
        while True:
            started = time.monotonic()
            status = client.get("connections", connection)
            if render.is_mirroring(status):
                live.update(render.mirror_bar(status), refresh=True)
            else:
                live.update(Text(f"{status['queued_ops']} operations queued"), refresh=True)
            try:
                error = answers.get(timeout=max(0.0, started + _REFRESH_S - time.monotonic()) or 0.01)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            return
