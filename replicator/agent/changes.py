"""Wake-ups between the tasks of one process: something may be new. Whoever wakes looks what it is."""

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
