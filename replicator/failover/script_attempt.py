"""One run of a script, by what is in its directory."""

import fcntl
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import msgspec
import trio

import replicator
from replicator import limits
from replicator.bounds import MALFORMED
from replicator.errors import UsageError
from replicator.failover.held_lock import is_held
from replicator.failover.occasion import Occasion, environment
from replicator.failover.script_result import Finished, ScriptResult, judge
from replicator.failover.supervised import How
from replicator.failovers import Script

_KEEPER = "replicator.failover.script_keeper"
_CODE = os.path.dirname(os.path.dirname(os.path.abspath(replicator.__file__)))


class About(msgspec.Struct, frozen=True):
    """What is remembered of an attempt beside what its keeper needs."""

    kind: str
    group: str
    script: Script


class Attempt:
    """One run, by what is in its directory. `is_running`: its lock is held."""

    def __init__(self, base: Path, name: str) -> None:
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise UsageError(f"no name of a run: {name!r}")
        self.name = name
        self._path = base / name

    @property
    def was_ordered(self) -> bool:
        """What a loss of power has left of an order, or a full disk, is none."""
        try:
            self._about()
        except (OSError, *MALFORMED):
            return False
        return True

    @property
    def ordered_ns(self) -> int:
        return (self._path / "about.json").stat().st_mtime_ns

    @property
    def is_known(self) -> bool:
        """It runs, or has ended."""
        return self.is_running or self.result() is not None

    @property
    def is_running(self) -> bool:
        return is_held(self._path / "lock")

    @property
    def told(self) -> bool:
        return (self._path / "told").exists()

    @told.setter
    def told(self, _: bool) -> None:
        (self._path / "told").touch()

    @property
    def group(self) -> str:
        return self._about().group

    def _about(self) -> About:
        return msgspec.json.decode((self._path / "about.json").read_bytes(), type=About)

    def result(self) -> Finished | None:
        """None: it has not ended, or nobody knows how."""
        try:
            return msgspec.json.decode((self._path / "result.json").read_bytes(), type=Finished)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None  # after a loss of power it may be empty

    def judged(self) -> ScriptResult:
        about = self._about()
        return judge(about.kind, about.script, self.result())

    async def start(self, script: Script, occasion: Occasion) -> None:
        """Does nothing if it runs. OSError."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._order(script, occasion)
            # The lock goes over to the keeper with the descriptor: at no moment does nobody have it.
            with (self._path / "keeper.log").open("wb") as log, trio.CancelScope(shield=True):  # milliseconds
                await trio.run_process(
                    [
                        sys.executable,
                        "-S",
                        "-m",
                        _KEEPER,
                        str(self._path),
                        str(lock),
                    ],  # no site: it has to be quick
                    env={**os.environ, "PYTHONPATH": _CODE},
                    pass_fds=(lock,),
                    stdout=log,
                    stderr=log,
                    check=False,
                )
        except BlockingIOError:
            pass
        finally:
            os.close(lock)

    def _order(self, script: Script, occasion: Occasion) -> None:
        for name in ("result.json", "told"):
            (self._path / name).unlink(missing_ok=True)
        order = {
            "command": [script.path, *script.arguments],
            "environment": environment(occasion),
            "timeout_s": script.timeout_s,
            "output_bytes": limits.SCRIPT_OUTPUT_BYTES,
            "term_s": limits.SCRIPT_TERM_S,
        }
        (self._path / "order.json").write_text(json.dumps(order))
        about = About(occasion.kind, occasion.group, script)
        (self._path / "about.json").write_bytes(msgspec.json.encode(about))

    def fail(self, reason: str) -> None:
        """It was not even started. OSError if that cannot be noted."""
        end = Finished(How.NOT_STARTED, 0, 0.0, "", 0, reason)
        (self._path / "result.json").write_bytes(msgspec.json.encode(end))

    async def ended(self) -> None:
        began_s = trio.current_time()
        while self.is_running:
            # In proportion: what is over soon is noticed at once.
            pause_s = (trio.current_time() - began_s) / 20
            await trio.sleep(min(max(pause_s, limits.CHILD_POLL_S), limits.SCRIPT_LOOK_S))

    def stop(self) -> None:
        try:
            pid = int((self._path / "keeper.pid").read_text())
        except (FileNotFoundError, ValueError):
            return  # it has not begun
        if self.is_running:  # so nobody else can have got its number
            os.kill(pid, signal.SIGTERM)

    def forget(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
