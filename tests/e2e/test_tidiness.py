"""What is no longer protected leaves nothing behind: in the memory directory, in the home, on the mount."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from kit.dtd import Agent, running
from kit.patience import until

from replicator.child.control import Control

pytestmark = pytest.mark.e2e


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Agent]:
    with running(tmp_path, "alone") as (agent,):
        yield agent


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    (path / "file").write_text("content")
    return path


def memory_of(agent: Agent) -> Path:
    return Path("/dev/shm", "replicator-" + json.loads((agent.home / "agent.json").read_text())["uuid"])


def kept(agent: Agent) -> set[str]:
    """What the agent keeps for mounts and connections."""
    below = [p for d in ("run", "queue", "target", "source") for p in agent.home.joinpath(d).glob("*")]
    return {p.name for p in [*below, *memory_of(agent).glob("*")]} - {"agent.bell", "bare-files"}


def test_nothing_is_left_of_what_is_no_longer_protected(alone: Agent, source: Path, tmp_path: Path) -> None:
    connection = alone.json("protect", source, tmp_path / "copy", "--wait")
    assert len(kept(alone)) > 4
    assert memory_of(alone).stat().st_mode & 0o777 == 0o700
    assert alone.dtctl("disconnect", str(connection["id"])).code == 0
    until(lambda: not any(connection["uuid"] in name for name in kept(alone)))
    removed = alone.dtctl("mount", "remove", source)
    assert (removed.code, removed.err) == (0, "")
    assert kept(alone) == set()
    alone.stop()
    assert not memory_of(alone).exists()


def test_nothing_is_left_of_what_could_not_be_mounted(alone: Agent, source: Path) -> None:
    for path in (source / "none", source / "file", "/proc"):
        refused = alone.dtctl("mount", "add", path)
        assert refused.code == 2 and refused.err.count("\n") == 1
    assert kept(alone) == set()


def test_memory_is_given_back_when_everything_stops(alone: Agent, source: Path) -> None:
    alone.json("mount", "add", source)
    assert os.listdir(memory_of(alone))
    assert alone.dtd("--stop-mounts").code == 0
    assert alone.process is not None and alone.process.wait(20) == 0
    assert not memory_of(alone).exists()
    alone.start()  # answers while its mounts still come up
    until(lambda: [mount["state"] for mount in alone.json("mount", "list")] == ["serving"])


def test_a_mount_whose_capture_died_is_removed_with_its_mount(alone: Agent, source: Path) -> None:
    alone.json("mount", "add", source)
    (mount,) = alone.json("mount", "list")
    os.kill(mount["pid"], signal.SIGKILL)
    assert alone.dtctl("mount", "remove", source).code == 0  # whether it is up again or not
    assert not os.path.ismount(source)
    assert (source / "file").read_text() == "content"


def test_a_directory_of_somebody_else_is_not_used_for_memory(alone: Agent) -> None:
    alone.stop()
    memory = memory_of(alone)
    memory.mkdir()
    os.chown(memory, 65534, 65534)
    try:
        refused = alone.dtd()
    finally:
        memory.rmdir()
    assert refused.code == 1 and "was made by somebody else" in refused.err


def test_a_sender_waits_no_longer_than_it_is_told(alone: Agent, source: Path, tmp_path: Path) -> None:
    connection = alone.json("protect", source, tmp_path / "copy", "--wait")
    (mount,) = alone.json("mount", "list")
    path = str(alone.home / "run" / f"sender-{connection['uuid']}.sock")

    async def ask(sequence: int, timeout_s: float | None) -> object:
        sequences = {mount["id"]: sequence}
        return await Control(path).call("wait", 10.0, sequences=sequences, timeout_s=timeout_s)

    assert trio.run(ask, 0, None) is True
    assert trio.run(ask, 10**12, 0.1) is False
