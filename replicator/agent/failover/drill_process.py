"""The process of a drill's room, as its agent sees it: started, waited for, ended, found again."""

import fcntl
import os
import shutil
import signal
import sys
from pathlib import Path

import msgspec
import trio

import replicator
from replicator import limits
from replicator.agent.failover.drill_order import COPIED, ORDER, READY, RESULT, Findings, Order
from replicator.errors import ReplicatorError
from replicator.failover.held_lock import is_held

_CODE = os.path.dirname(os.path.dirname(os.path.abspath(replicator.__file__)))


class RoomError(ReplicatorError):
    """There is no room for a drill, or not any more."""


class RoomProcess:
    """By the directory of its drill. It is there as long as the lock in it is held."""

    def __init__(self, directory: str) -> None:
        self._path = Path(directory)
        self._lifeline = -1
        self._started: trio.Process | None = None

    @property
    def pid(self) -> int:
        """Of its first process; 0: not known yet."""
        try:
            return int((self._path / "room.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    @property
    def is_there(self) -> bool:
        return is_held(self._path / "lock")

    async def start(self, order: Order) -> None:
        """OSError."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._path / ORDER).write_bytes(msgspec.json.encode(order))
        lock = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        other_end, self._lifeline = os.pipe2(os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with (self._path / "room.log").open("wb") as log, trio.CancelScope(shield=True):
                self._started = await trio.lowlevel.open_process(
                    [
                        *(sys.executable, "-m", "replicator.agent.failover.drill_room"),
                        *(str(self._path), str(lock), str(other_end)),
                    ],
                    env={**os.environ, "PYTHONPATH": _CODE},
                    pass_fds=(lock, other_end),
                    stdin=-3,  # subprocess.DEVNULL
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        finally:
            os.close(lock)
            os.close(other_end)

    async def copied(self) -> None:
        """RoomError: it could not be."""
        found = await self._told(COPIED)
        if found.problem:
            raise RoomError(found.problem)

    async def ready(self) -> None:
        """The view is there, or could not be made: see `result`. RoomError."""
        with trio.move_on_after(limits.DRILL_START_S):
            await self._told(READY)
            return
        raise RoomError(f"the room of the drill was not there after {limits.DRILL_START_S:.0f} s")

    async def result(self) -> Findings:
        """RoomError: it has ended without one."""
        return await self._told(RESULT)

    async def _told(self, name: str) -> Findings:
        while True:
            for known in (name, RESULT):
                if (self._path / known).exists():
                    return msgspec.json.decode((self._path / known).read_bytes(), type=Findings)
            if not self.is_there and not (self._path / RESULT).exists():
                raise RoomError(f"the room of the drill has ended: {self._last_words()}")
            await trio.sleep(limits.CHILD_POLL_S)

    def _last_words(self) -> str:
        try:
            lines = (self._path / "room.log").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        return lines[-1] if lines else "it was killed"

    async def gone(self) -> None:
        """Wait for its end."""
        while self.is_there:  # noqa: ASYNC110  # of another process
            await trio.sleep(limits.CHILD_POLL_S)

    async def end(self, *, at_once: bool = False) -> None:
        """End it, with all that runs there. `at_once`: its commands get no chance to end by themselves.
        RoomError: it stays.
        """
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        for patience_s in (0.0 if at_once else limits.DRILL_END_S, limits.DRILL_END_S):
            with trio.move_on_after(patience_s):
                await self.gone()
                break
            if self.is_there and self.pid:
                try:
                    os.kill(self.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it has just ended
        if self.is_there:
            raise RoomError(f"the room of a drill does not end (pid {self.pid})")
        if self._started is not None:
            await self._started.wait()
            self._started = None

    def remove(self) -> None:
        """Everything that was written there. Nothing is mounted here: that was seen in the room only."""
        shutil.rmtree(self._path, ignore_errors=True)
