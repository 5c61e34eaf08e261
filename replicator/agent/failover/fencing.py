"""Fences of the mounts of this host: closed, opened, shown.

A mount without fence costs nothing. A fence is a page of shared memory (`fs/fence.py`) that outlives capture
and agent; what stands in it follows from the leases of the groups of the mount (`guards.py`), and from
whether somebody froze it for a hand-over.
"""

import os
from collections.abc import Iterable
from contextlib import suppress

import trio

from replicator import events
from replicator.agent.core import Core
from replicator.agent.state import Mount
from replicator.errors import ReplicatorError
from replicator.fences import FOREVER_NS, FenceMode, FenceState, name_of
from replicator.fs.fence import FencePage, boottime_ns


class Fencing:
    """Of one agent. Mounts are named by their ids. Nothing here waits for a program."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._pages: dict[str, FencePage] = {}
        self._wanted: dict[str, tuple[FenceMode, int]] = {}  # what holds when it is thawed; none: no fence
        self._reasons: dict[str, str] = {}
        self._deaf: set[str] = set()  # whose capture knows nothing of fences

    def begin(self) -> None:
        """When the agent starts: take up the pages of this boot, and freezes of any."""
        for mount in self._core.state.mounts:
            path = self._core.home.fence(mount.id)
            was_frozen = FencePage.was_frozen(path)
            page = FencePage.find(path)
            if page is None and was_frozen:
                self._page(mount.id).set(FenceMode.FROZEN, 0)
            elif page is None:
                with suppress(FileNotFoundError):
                    os.unlink(path)  # of another boot: it would close the mount
            else:
                self._pages[mount.id] = page
                if not was_frozen:
                    self._wanted[mount.id] = page.mode, page.until_ns

    # --- a hand-over ---

    async def freeze(self, mounts: Iterable[str]) -> None:
        """For a planned hand-over: changes wait from the return on, and all that was done before is in the
        journal. Survives kills of agent and capture. Raises ReplicatorError; then nothing is frozen.
        """
        done: list[str] = []
        for mount in mounts:
            if self.is_frozen(mount):
                continue
            done.append(mount)
            page = self._page(mount)
            page.set(FenceMode.FROZEN, 0)
            await trio.to_thread.run_sync(page.sync)
            await self._tell(mount)
            if mount in self._deaf:
                await self.thaw(done)
                raise ReplicatorError(
                    f"{self._name(mount)} is served by an older software: `dtctl mount reload` it first"
                )

    async def thaw(self, mounts: Iterable[str]) -> None:
        """Take that back: what waits goes on, or fails if this agent was superseded meanwhile. Durable, as
        the freeze was: after a power loss nobody would thaw it again.
        """
        for mount in mounts:
            if self.is_frozen(mount):
                wanted = self._wanted.get(mount)
                if wanted is None:
                    await self._remove(mount)
                else:
                    page = self._page(mount)
                    page.set(*wanted)
                    await trio.to_thread.run_sync(page.sync)

    def is_frozen(self, mount: str) -> bool:
        page = self._pages.get(mount)
        return page is not None and page.mode is FenceMode.FROZEN

    # --- leases ---

    async def set_mode(
        self,
        mounts: Iterable[str],
        mode: FenceMode,
        until_ns: int,
        reason: str = "",
        *,
        for_good: bool = False,
    ) -> None:
        """Changes are carried out until then (CLOCK_BOOTTIME), and as `mode` says from then on. 0: from now
        on. A capture that does not run finds it when it starts. A frozen mount stays so, unless it is
        `for_good`: what waits there fails then.
        """
        for mount in mounts:
            is_new = mount not in self._pages
            self._wanted[mount] = mode, until_ns
            self._reasons[mount] = reason
            if for_good or not self.is_frozen(mount):
                self._page(mount).set(mode, until_ns)
            if is_new:
                await self._tell(mount)

    async def remove(self, mounts: Iterable[str]) -> None:
        """No group guards them any more. A frozen one stays so until it is thawed."""
        for mount in mounts:
            self._wanted.pop(mount, None)
            self._reasons.pop(mount, None)
            if mount in self._pages and not self.is_frozen(mount):
                await self._remove(mount)

    def until_ns(self, mount: str) -> int:
        """Until when it may be written, by what its fence says; 0: it is closed, or has none."""
        page = self._pages.get(mount)
        return page.until_ns if page is not None else 0

    def obeys(self, mount: str) -> bool:
        """Whether its programs really stop when the fence closes."""
        return mount in self._pages and mount not in self._deaf

    def state(self, mount: str) -> FenceState | None:
        """None: it has no fence."""
        page = self._pages.get(mount)
        if page is None:
            return None
        left_ns = page.until_ns - boottime_ns()
        return FenceState(
            is_open=page.is_open or page.mode is FenceMode.NONE,
            mode=name_of(page.mode),
            left_s=round(left_ns / 1e9, 3) if 0 < page.until_ns < FOREVER_NS else None,
            reason="a hand-over is under way" if self.is_frozen(mount) else self._reasons.get(mount, ""),
        )

    # --- pages ---

    def _page(self, mount: str) -> FencePage:
        if mount not in self._pages:
            self._pages[mount] = FencePage(self._core.home.fence(mount))
        return self._pages[mount]

    async def _remove(self, mount: str) -> None:
        page = self._pages.pop(mount)
        page.set(FenceMode.NONE, FOREVER_NS)
        await trio.to_thread.run_sync(page.sync)  # a power loss may bring the file back
        page.remove()
        await self._tell(mount)

    async def _tell(self, mount: str) -> None:
        """A capture that does not answer is told when it does, see `Children.start_capture`."""
        known = self._mount(mount)
        child = self._core.children.capture(known) if known is not None else None
        if known is None or child is None or child.pid is None:
            return
        try:
            await child.call("set_fence", page=self._core.children.fence(known))
            self._deaf.discard(mount)
        except ReplicatorError as error:
            if child.pid is not None:
                self._deaf.add(mount)
                self._core.events.add(events.FENCE_FAILED, path=known.path, reason=str(error))

    def _mount(self, mount: str) -> Mount | None:
        return next((known for known in self._core.state.mounts if known.id == mount), None)

    def _name(self, mount: str) -> str:
        known = self._mount(mount)
        return known.path if known is not None else mount
