"""Which way a capture talks to the kernel, and both ways behind one face.

A binding is imported only when it is used: each costs memory in every capture process.
"""

import os
import re
import threading
from typing import Protocol

import trio

from replicator.agent.resumption import Provision
from replicator.errors import UsageError
from replicator.fs.kernel_protocol import Agreement
from replicator.fs.passthrough import Passthrough

BINDINGS = ("auto", "kernel", "pyfuse3")
_KERNEL_MIN = (5, 4)  # kernel_protocol.MINOR_MIN


class Binding(Protocol):
    """Serves one mount."""

    async def serve(self) -> None:
        """Until it is unmounted, or `terminate` is called."""
        ...

    def terminate(self) -> None:
        """End `serve` although the mount is still there: for a mount that was detached."""
        ...


def check(binding: str) -> None:
    """Raises UsageError if there is no such binding."""
    if binding not in BINDINGS:
        raise UsageError(f"binding {binding!r}: must be auto, kernel or pyfuse3")


def choose(wanted: str, release: str | None = None) -> str:
    """The binding to use: `kernel` for `auto` where the kernel is new enough. `release`: of the kernel.

    Raises UsageError.
    """
    check(wanted)
    found = re.match(r"(\d+)\.(\d+)", os.uname().release if release is None else release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version >= _KERNEL_MIN:
        return "pyfuse3" if wanted == "pyfuse3" else "kernel"
    if wanted == "kernel":
        raise UsageError(
            f"binding kernel: needs Linux {_KERNEL_MIN[0]}.{_KERNEL_MIN[1]}; use auto or pyfuse3"
        )
    return "pyfuse3"


def make(
    binding: str,
    passthrough: Passthrough,
    descriptor: int,
    lock: threading.Lock,
    provision: Provision | None = None,
    agreement: Agreement | None = None,
) -> Binding:
    """The chosen binding for an open /dev/fuse whose mount is made. `lock` guards what `passthrough` uses.

    `provision` (kernel binding): what is kept for a successor. `agreement`: of a predecessor taken over from.
    """
    if binding == "kernel":
        return _Kernel(passthrough, descriptor, lock, provision, agreement)
    return _Pyfuse3(passthrough, descriptor)


class _Kernel:
    def __init__(
        self,
        passthrough: Passthrough,
        descriptor: int,
        lock: threading.Lock,
        provision: Provision | None,
        agreement: Agreement | None,
    ) -> None:
        from replicator.fs.kernel_session import Session

        if provision is None:
            self._session = Session(passthrough, descriptor, lock, agreement=agreement)
        else:
            self._session = Session(
                passthrough,
                descriptor,
                lock,
                agreement=agreement,
                intent=provision.intent,
                agreed=provision.agreed,
            )

    async def serve(self) -> None:
        # Cancelled only when all of the capture ends: then its mount is no longer served anyway.
        try:
            await trio.to_thread.run_sync(self._session.serve, abandon_on_cancel=True)
        finally:
            self._session.stop()

    def terminate(self) -> None:
        self._session.stop()


class _Pyfuse3:
    """Handlers run in the thread of the event loop, between checkpoints: they need no lock."""

    def __init__(self, passthrough: Passthrough, descriptor: int) -> None:
        from replicator.fs import pyfuse3_binding

        self._module = pyfuse3_binding
        self._binding = pyfuse3_binding.Binding(passthrough)
        self._descriptor = descriptor

    async def serve(self) -> None:
        await self._module.run(self._binding, self._descriptor)

    def terminate(self) -> None:
        self._module.terminate()
