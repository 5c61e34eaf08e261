"""Wake-ups between the tasks of one process: something may be new. Whoever wakes looks what it is.

`Changes` wakes all that wait. `Wake` is for one task, also if it is not waiting yet.
"""

from collections.abc import Callable

import trio


class Changes:
    """`on_change` is called at each notification, before anybody wakes."""

    def __init__(self, on_change: Callable[[], None] | None = None) -> None:
        self._event = trio.Event()
        self._on_change = on_change

    def notify(self) -> None:
        self._event.set()
        self._event = trio.Event()
        if self._on_change is not None:
            self._on_change()

    async def wait(self) -> None:
        """Until the next notification."""
        await self._event.wait()


class Wake:
    """Of one task, which looks for work after `begin`, and waits if it finds none."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        """There may be work."""
        self._event.set()

    def begin(self) -> None:
        """From here on a ring is not missed."""
        self._event = trio.Event()

    async def wait(self) -> None:
        """Until somebody has rung since `begin`."""
        await self._event.wait()
