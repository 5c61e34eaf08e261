"""A TCP relay that notes when how much arrived from the side that dials: what a sender really sends, second
by second, seen where it arrives.

    with counting_proxy(beta.port) as proxy:
        ...  # connect to 127.0.0.1:proxy.port
        worst, mean = proxy.rates(from_s, until_s)
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_READ_BYTES = 1 << 16


class CountingProxy:
    """Use `counting_proxy`. `arrived`: (time.monotonic(), bytes) of every read."""

    def __init__(self, port: int) -> None:
        self.arrived: list[tuple[float, int]] = []
        self._target_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def rates(self, from_s: float, until_s: float) -> tuple[float, float]:
        """(most bytes within any second, bytes per second on average) of that time."""
        window = [(when, count) for when, count in self.arrived if from_s <= when < until_s]
        worst = total = first = 0
        for when, count in window:
            total += count
            while window[first][0] <= when - 1:
                total -= window[first][1]
                first += 1
            worst = max(worst, total)
        return worst, sum(count for _, count in window) / (until_s - from_s)

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                # What is read is noted at once: no buffer of ours hides how it came.
                near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _READ_BYTES)
                far = socket.create_connection(("127.0.0.1", self._target_port))
                self._sockets += [near, far]
                self._start(self._relay, near, far, True)
                self._start(self._relay, far, near, False)

    def _relay(self, from_: socket.socket, to: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := from_.recv(_READ_BYTES):
                if counted:
                    self.arrived.append((time.monotonic(), len(data)))
                to.sendall(data)
        for end in (from_, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in [self._listener, *self._sockets]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for end in [self._listener, *self._sockets]:
            end.close()


@contextmanager
def counting_proxy(port: int) -> Iterator[CountingProxy]:
    """To 127.0.0.1:`port`."""
    proxy = CountingProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
