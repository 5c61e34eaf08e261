"""Which way a capture talks to the kernel, and both ways behind one face.

A binding is imported only when it is used: each costs memory in every capture process.
"""

import threading
from collections.abc import Callable
from typing import Protocol

import trio

from replicator.capture.activity_keeper import ActivityKeeper
from replicator.capture.resumption import Provision
from replicator.capture.synchrony import Synchrony
from replicator.fences import FenceMode
from replicator.fs.fence import Fence
from replicator.fs.kernel_protocol import Agreement
from replicator.fs.passthrough import Passthrough
from replicator.mount_options import DEFAULTS, MountOptions
from replicator.queue.activity import ActivityLog
from replicator.world import FifoBell


class Binding(Protocol):
    """Serves one mount."""

    async def serve(self, ready: Callable[[], None]) -> bool:
        """Until it is unmounted, or `terminate` or `leave` is called. Whether it is left to a successor.

        `ready` is called once the kernel has been told how to speak: from then on a kill is survived.
        """
        ...

    def heed_options(self) -> None:
        """Whether the mount is synchronous may be new. Under the lock."""
        ...

    def heed_fence(self, fence: Fence | None) -> None:
        """Changes obey this one from now on. Under the lock."""
        ...

    def terminate(self) -> None:
        """End `serve` although the mount is still there: for a mount that was detached."""
        ...

    async def leave(self) -> None:
        """End `serve` between two requests: a successor is to go on. Only with a `Provision`."""
        ...


def make(
    binding: str,
    passthrough: Passthrough,
    descriptor: int,
    lock: threading.Lock,
    provision: Provision | None = None,
    agreement: Agreement | None = None,
    options: MountOptions = DEFAULTS,
    keeper: ActivityKeeper | None = None,
    synchrony: Synchrony | None = None,
    answers: FifoBell | None = None,
    fence: Fence | None = None,
) -> Binding:
    """The chosen binding for an open /dev/fuse whose mount is made. `lock` guards what `passthrough` uses.

    `provision` (kernel binding): what is kept for a successor. `agreement`: of a predecessor taken over from.
    `options`: only the kernel binding has any. `keeper`: of the log to be synced before what programs sync.
    `synchrony`, `answers`: which replies wait for targets, and what is rung when they may be due.
    `fence`: what changes obey.
    """
    if binding == "kernel":
        log = keeper.log if keeper is not None else None
        return _Kernel(
            passthrough, descriptor, lock, provision, agreement, options, log, synchrony, answers, fence
        )
    return _Pyfuse3(passthrough, descriptor, keeper, synchrony, answers, fence)


class _Kernel:
    def __init__(
        self,
        passthrough: Passthrough,
        descriptor: int,
        lock: threading.Lock,
        provision: Provision | None,
        agreement: Agreement | None,
        options: MountOptions,
        log: ActivityLog | None,
        synchrony: Synchrony | None,
        answers: FifoBell | None,
        fence: Fence | None,
    ) -> None:
        from replicator.fs.kernel_session import Session

        self._is_resumed = agreement is not None
        self._token: trio.lowlevel.TrioToken | None = None
        self._tell: Callable[[], None] = lambda: None
        if provision is None:
            self._session = Session(
                passthrough,
                descriptor,
                lock,
                agreement=agreement,
                options=options,
                ready=self._ready,
                log=log,
                synchrony=synchrony,
                answers=answers,
                fence=fence,
            )
        else:
            self._session = Session(
                passthrough,
                descriptor,
                lock,
                agreement=agreement,
                intent=provision.intent,
                open_notes=provision.open_notes,
                held_notes=provision.held_notes,
                options=options,
                agreed=provision.agreed,
                ready=self._ready,
                log=log,
                synchrony=synchrony,
                answers=answers,
                fence=fence,
            )

    def _ready(self) -> None:
        """In the thread that serves, which must not wait."""
        assert self._token is not None
        self._token.run_sync_soon(self._tell)

    async def serve(self, ready: Callable[[], None]) -> bool:
        self._token, self._tell = trio.lowlevel.current_trio_token(), ready
        if self._is_resumed:
            ready()
        # Cancelled only when all of the capture ends: then its mount is no longer served anyway.
        try:
            return await trio.to_thread.run_sync(self._session.serve, abandon_on_cancel=True)
        finally:
            self._session.stop()

    def heed_options(self) -> None:
        self._session.heed_options()

    def heed_fence(self, fence: Fence | None) -> None:
        self._session.heed_fence(fence)

    def terminate(self) -> None:
        self._session.stop()

    async def leave(self) -> None:
        await trio.to_thread.run_sync(self._session.leave)


class _Pyfuse3:
    """Handlers run in the thread of the event loop, between checkpoints: they need no lock."""

    def __init__(
        self,
        passthrough: Passthrough,
        descriptor: int,
        keeper: ActivityKeeper | None,
        synchrony: Synchrony | None,
        answers: FifoBell | None,
        fence: Fence | None,
    ) -> None:
        from replicator.fs import pyfuse3_binding

        self._module = pyfuse3_binding
        self._keeper = keeper
        covered = keeper.covered if keeper is not None else pyfuse3_binding.nothing_to_cover
        self._answers = answers
        self._binding = pyfuse3_binding.Binding(passthrough, covered, synchrony, fence)
        self._descriptor = descriptor

    async def serve(self, ready: Callable[[], None]) -> bool:
        ready()  # it does not say when, and no kill is survived anyway
        async with trio.open_nursery() as nursery:
            if self._keeper is not None:
                nursery.start_soon(self._keeper.run_syncs)
            if self._answers is not None:
                nursery.start_soon(self._hear, self._answers)
            await self._module.run(self._binding, self._descriptor)
            nursery.cancel_scope.cancel()
        return False

    async def _hear(self, answers: FifoBell) -> None:
        while True:
            await answers.wait()
            self._binding.answered()

    def heed_options(self) -> None:
        self._binding.answered()

    def heed_fence(self, fence: Fence | None) -> None:
        self._binding.fence = fence

    def terminate(self) -> None:
        if self._binding.fence is not None:  # what waits there is to end
            self._binding.fence = Fence.fixed(FenceMode.READ_ONLY)
        self._module.terminate()

    async def leave(self) -> None:
        raise NotImplementedError("what libfuse knows of a mount cannot be handed on")
