"""The fence command: nothing but exit code 0 means that the source is off. Real commands, which switch
nothing off but themselves.
"""

from pathlib import Path
from typing import Any, cast

import pytest
import trio

from replicator import limits
from replicator.agent.failover.fence_command import FenceCommand
from replicator.agent.failover.group_scripts import GroupScripts
from replicator.errors import ReplicatorError
from replicator.failover.occasion import Occasion
from replicator.failover.scripts import Scripts
from replicator.failovers import Monitor, MonitorSettings


class _Scripts:
    """Of `GroupScripts`, what a fence command needs."""

    def __init__(self, directory: Path) -> None:
        self.scripts = Scripts(str(directory), lambda *_, **__: None)

    async def occasion(self, monitor: Monitor, kind: str, *, epoch: int, reason: str) -> Occasion:
        await trio.lowlevel.checkpoint()
        return Occasion(kind=kind, group=monitor.name, uuid=monitor.uuid, epoch=epoch, reason=reason)


async def fence(directory: Path, command: str, attempt: str = "one") -> list[str]:
    """What it says."""
    settings = MonitorSettings(source_host="alpha", fence_command=command)
    said: list[str] = []
    fence_command = FenceCommand(cast(GroupScripts, cast(Any, _Scripts(directory))))
    await fence_command.fence(
        Monitor(uuid="u", name="web", settings=settings),
        epoch=7,
        reason="silent",
        attempt=attempt,
        say=said.append,
    )
    return said


async def test_exit_code_0_is_a_source_that_is_off(tmp_path: Path) -> None:
    command = 'echo "$REPLICATOR_SCRIPT $REPLICATOR_GROUP $REPLICATOR_EPOCH"; true'
    said = await fence(tmp_path, command)
    assert said[0] == "fence web 7" and said[1].startswith("the source is off")


@pytest.mark.parametrize(
    ("command", "how"), [("echo no; exit 3", "exit code 3"), ("kill -9 $$", "signal 9"), ("/nowhere", "127")]
)
async def test_anything_else_is_not(tmp_path: Path, command: str, how: str) -> None:
    with pytest.raises(ReplicatorError, match=f"did not say that alpha is off .*{how}.*--force"):
        await fence(tmp_path, command)


async def test_one_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FENCE_TIMEOUT_S", 0.3)
    with trio.fail_after(20), pytest.raises(ReplicatorError, match="timed out"):
        await fence(tmp_path, "sleep 1000")


async def test_an_attempt_that_is_asked_for_again_is_run_once(tmp_path: Path) -> None:
    """By the next agent, after a crash. What has failed is a new attempt."""
    runs = tmp_path / "runs"
    command = f"echo x >> {runs}"
    for attempt in ("one", "one", "two"):
        await fence(tmp_path / "scripts", command, attempt)
    assert runs.read_text() == "x\n" * 2
