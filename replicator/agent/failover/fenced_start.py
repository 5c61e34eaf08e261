"""A source that comes back starts fenced: an agent that knows of a group, and whose mounts are not up
already, brings them up read-only. A grant of target or witness opens them (`leases.py`). Whoever owns the
group by now supersedes it (`returning.py`).
"""

import trio

from replicator import events
from replicator.agent.core import Core
from replicator.agent.failover.fencing import Fencing
from replicator.agent.failover.guards import Guards
from replicator.agent.process import serving_process
from replicator.agent.state import Mount
from replicator.capture import held_mount
from replicator.fences import FenceMode
from replicator.fs.fence import FencePage


class FencedStart:
    """Of one agent."""

    def __init__(self, core: Core, guards: Guards, fencing: Fencing) -> None:
        self._core = core
        self._guards = guards
        self._fencing = fencing

    async def before_mounts(self) -> None:
        """When the agent starts, before its mounts do: those of groups that are not up are fenced."""
        self._fencing.begin()
        self._guards.begin_fences()
        for guard in self._guards.all():
            if guard.is_superseded:
                continue
            mounts = [m for m in self._core.state.mounts if m.id in self._guards.mounts_of(guard)]
            were_up = not mounts or await trio.to_thread.run_sync(self._were_up, mounts)
            if were_up:
                inherited_s = min((self._fencing.until_ns(m.id) for m in mounts), default=0) / 1e9
                fenced = all(self._fencing.obeys(m.id) for m in mounts)
                self._guards.begin(guard, inherited_s=inherited_s, enforcing=fenced)
            else:
                self._guards.begin(guard, came_back=True)
                whom = f"{guard.target_name} or the witness" if guard.witness else guard.target_name
                self._core.events.add(events.START_FENCED, name=guard.name, whom=whom)
        await self._guards.settle()

    def _were_up(self, mounts: list[Mount]) -> bool:
        """Whether an earlier agent has left all of them to programs, and not just fenced for a start."""
        return all(self._was_up(mount) for mount in mounts)

    def _was_up(self, mount: Mount) -> bool:
        page = FencePage.find(self._core.home.fence(mount.id))
        if page is not None:
            starting = page.mode is FenceMode.READ_ONLY and not page.until_ns
            page.close()
            if starting:
                return False
        process = serving_process(self._core.home.socket("capture", mount.id))
        if process is not None:
            process.close()
            return True
        return held_mount.is_held(self._core.children.journal_settings(mount).memory_directory)
