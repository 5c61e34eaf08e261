"""Processes that an agent starts ahead: what they become, and that nothing depends on them."""

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from kit.dtd import Agent, running

from replicator import limits
from replicator.agent import launcher
from replicator.agent.launcher import Launch, Launcher
from replicator.agent.process import Process
from replicator.agent.supervisor import call, write_arguments
from replicator.paths import Home
from replicator.receiver.arguments import ReceiverArguments

pytestmark = pytest.mark.e2e

CONNECTION = "11111111-2222-4333-8444-555555555555"


def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """What `condition` returns, once that is true."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "this did not happen in time"
        time.sleep(0.02)
    return found


def command_of(process_id: int) -> list[str]:
    """The words of a command line; none if the process has ended, even if nobody has waited for it."""
    try:
        return Path(f"/proc/{process_id}/cmdline").read_bytes().replace(b"\0", b" ").decode().split()
    except OSError:
        return []


def spare_of(home: Path) -> int:
    """Process id of a spare that is ready; 0 if there is none."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if command_of(int(entry))[1:] == ["-m", "replicator.agent.spare", "--home", str(home), "(ready)"]:
            return int(entry)
    return 0


def processes_ending_with(*words: str) -> list[int]:
    """Those whose command line ends so."""
    numbers = map(int, filter(str.isdigit, os.listdir("/proc")))
    return [number for number in numbers if command_of(number)[-len(words) :] == list(words)]


def open_files(process_id: int) -> dict[int, str]:
    directory = f"/proc/{process_id}/fd"
    return {int(number): os.readlink(f"{directory}/{number}") for number in os.listdir(directory)}


def parent_of(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[1])


# --- with agents ---


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Agent, Agent]]:
    with running(tmp_path, "alpha", "beta") as (alpha, beta):
        yield alpha, beta


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("content")
    return source


def protect(alpha: Agent, beta: Agent, source: Path) -> tuple[int, int]:
    """Process ids of the sender and the receiver."""
    alpha.json("protect", source, f"{beta.address}:{source.parent}/copy", "--wait")
    assert (source.parent / "copy" / "file").read_text() == "content"
    ((connection,), (target,)) = alpha.json("status"), beta.json("target", "list")
    return connection["sender_pid"], target["pid"]


def test_spares_become_sender_and_receiver(pair: tuple[Agent, Agent], source: Path) -> None:
    alpha, beta = pair
    spares = [until(lambda agent=agent: spare_of(agent.home)) for agent in pair]
    for agent, spare in zip(pair, spares, strict=True):
        log = str(agent.home / "log/spare.log")
        files = open_files(spare)
        channel = files.pop(3)
        assert channel.startswith("socket:") and files == {0: "/dev/null", 1: log, 2: log}
        assert os.getsid(spare) == spare and agent.process and parent_of(spare) == agent.process.pid

    assert list(protect(alpha, beta, source)) == spares
    for agent, role, child in zip(pair, ("sender", "receiver"), spares, strict=True):
        (arguments,) = agent.home.glob(f"run/{role}-*.json")
        assert command_of(child) == [
            sys.executable, "-m", f"replicator.{role}.process", "--arguments", str(arguments),
        ]  # fmt: skip
        assert Path(f"/proc/{child}/comm").read_text() == os.path.basename(sys.executable) + "\n"
        log = str(agent.home / "log" / arguments.with_suffix(".log").name)
        files = open_files(child)
        assert (files[1], files[2]) == (log, log) and channel not in files.values()

    alpha.kill()
    (source / "while").write_text("nobody supervises")
    until((source.parent / "copy" / "while").exists)
    alpha.start()
    (connection,) = alpha.json("status")
    assert connection["sender_pid"] == spares[0]

    os.kill(spares[0], signal.SIGKILL)  # a child of nobody now; the receiver is still its agent's
    os.kill(spares[1], signal.SIGKILL)
    after = until(lambda: [p for p in (alpha.json("status")[0]["sender_pid"],) if p not in (None, spares[0])])
    assert command_of(after[0])[2] == "replicator.sender.process"
    until(lambda: "killed by SIGKILL" in beta.dtctl("events").out)


def test_a_spare_that_was_killed_is_not_missed(pair: tuple[Agent, Agent], source: Path) -> None:
    alpha, beta = pair
    spares = [until(lambda agent=agent: spare_of(agent.home)) for agent in pair]
    for spare in spares:
        os.kill(spare, signal.SIGKILL)
    children = protect(alpha, beta, source)
    assert not set(children) & set(spares)
    for agent, spare in zip(pair, spares, strict=True):
        until(lambda spare=spare: not os.path.exists(f"/proc/{spare}"))  # somebody waited for it
        until(lambda agent=agent: spare_of(agent.home))


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_spare_ends_with_its_agent(tmp_path: Path, how: str) -> None:
    with running(tmp_path, "alone") as (agent,):
        spare = until(lambda: spare_of(agent.home))
        getattr(agent, how)()
        until(lambda: not command_of(spare))
        assert (agent.home / "log/spare.log").read_text() == ""
        agent.start()
        assert until(lambda: spare_of(agent.home)) != spare


# --- with a launcher alone ---


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(limits, "SPARE_FIRST_S", 0.0)
    monkeypatch.setattr(limits, "SPARE_NEXT_S", 0.0)
    monkeypatch.setattr(limits, "SPARE_PATIENCE_S", 60.0)
    home = Home(str(tmp_path / "home"))
    home.create()
    arguments = ReceiverArguments(
        home=home.path,
        connection_uuid=CONNECTION,
        agent_uuid="22222222-6f43-4b1b-9d0e-000000000001",
        agent_name="target",
        memory_directory=str(tmp_path / "memory" / "spool"),
    )
    write_arguments(home.arguments("receiver", CONNECTION), arguments)
    return home


def receiver_of(home: Home) -> Launch:
    return Launch("receiver", home.arguments("receiver", CONNECTION), home.child_log("receiver", CONNECTION))


async def spare_ready(home: Home) -> int:
    return await trio.to_thread.run_sync(until, lambda: spare_of(Path(home.path)))


@asynccontextmanager
async def launching(home: Home) -> AsyncIterator[Launcher]:
    made = Launcher(home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.keep_spare)
        yield made
        nursery.cancel_scope.cancel()


async def answers(home: Home, process: Process, ready: int) -> bool:
    """Whether the receiver answers; it is ended again."""
    await trio.lowlevel.wait_readable(ready)
    os.close(ready)
    if process.has_ended():
        process.close()
        return False
    await call(home.socket("receiver", CONNECTION), "status")
    await call(home.socket("receiver", CONNECTION), "stop")
    assert await process.ended() == "exit code 0"
    process.close()
    return True


async def test_a_spare_answers_as_any_child_does(home: Home) -> None:
    foreign = os.dup(0)
    os.set_inheritable(foreign, True)  # as a library may do, or whoever started the agent
    async with launching(home) as made:
        spare = await spare_ready(home)
        os.close(foreign)
        assert sorted(open_files(spare)) == [0, 1, 2, 3]
        process, ready = await made.start(receiver_of(home))
        assert process.pid == spare
        assert await answers(home, process, ready)
        assert await spare_ready(home) != spare  # the next one


async def test_a_spare_that_still_imports_is_waited_for_by_one(home: Home) -> None:
    async with launching(home) as made:
        await trio.testing.wait_all_tasks_blocked(0.05)
        (spare,) = processes_ending_with(home.path)
        assert not spare_of(Path(home.path))
        found = []

        async def start() -> None:
            found.append(await made.start(receiver_of(home)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await trio.testing.wait_all_tasks_blocked(0.01)
            other, its_ready = await made.start(receiver_of(home))  # anew, and at once
            assert not found
            await other.put_down()
            os.close(its_ready)
        ((process, ready),) = found
        assert process.pid == spare
        assert await answers(home, process, ready)


async def test_a_spare_that_takes_too_long_is_not_used(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPARE_PATIENCE_S", 0.0)
    async with launching(home) as made:
        await trio.testing.wait_all_tasks_blocked(0.05)
        process, ready = await made.start(receiver_of(home))
        assert process.pid != await spare_ready(home)
        assert await answers(home, process, ready)


async def test_a_spare_of_code_that_has_changed_is_not_used(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with launching(home) as made:
        spare = await spare_ready(home)
        monkeypatch.setattr(launcher, "code_version", lambda: "another")
        process, ready = await made.start(receiver_of(home))
        assert process.pid != spare
        assert await answers(home, process, ready)
        await trio.to_thread.run_sync(until, lambda: not command_of(spare))
        newer = await spare_ready(home)
        process, ready = await made.start(receiver_of(home))
        assert process.pid == newer
        assert await answers(home, process, ready)


def test_changed_code_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, installed = tmp_path / "code" / "replicator", tmp_path / "installed"
    for directory in (package / "agent", installed / "trio"):
        directory.mkdir(parents=True)
    module = package / "agent" / "sender.py"
    module.write_text("old")
    monkeypatch.setattr(launcher.replicator, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(launcher.trio, "__file__", str(installed / "trio" / "__init__.py"))
    seen = [launcher.code_version()]
    assert launcher.code_version() == seen[0]
    module.write_text("newer")
    seen.append(launcher.code_version())
    (package / "new.py").touch()
    seen.append(launcher.code_version())
    os.utime(installed, ns=(0, 0))
    seen.append(launcher.code_version())
    os.symlink("nowhere", package / "broken.py")
    seen += [launcher.code_version(), launcher.code_version()]
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


async def test_a_spare_that_cannot_live_is_not_started_again_and_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    real = launcher.spawn

    def logged() -> str:
        return Path(home.spare_log).read_text() if os.path.exists(home.spare_log) else ""

    def spawn(arguments: list[str], log: str, its_end: int) -> Process:
        if "replicator.agent.spare" in arguments:
            arguments = [sys.executable, "-c", "raise SystemExit('broken')"]
            started.append(arguments)
        return real(arguments, log, its_end)

    monkeypatch.setattr(launcher, "spawn", spawn)
    async with launching(home) as made:
        for count in (1, 2):
            await trio.to_thread.run_sync(until, lambda count=count: logged() == "broken\n" * count)
            await trio.sleep(0.3)
            assert len(started) == count
            process, ready = await made.start(receiver_of(home))
            assert await answers(home, process, ready)


@pytest.mark.parametrize("awaited", ["sender", "receiver"])
async def test_a_spare_that_is_needed_at_once_can_become_anything(
    home: Home, monkeypatch: pytest.MonkeyPatch, awaited: str
) -> None:
    monkeypatch.setattr(limits, "SPARE_FIRST_S", 60.0)
    made = Launcher(home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.keep_spare, awaited)
        await trio.testing.wait_all_tasks_blocked(0.05)
        (spare,) = processes_ending_with(home.path, awaited)
        process, ready = await made.start(receiver_of(home))
        assert process.pid == spare
        assert await answers(home, process, ready)
        nursery.cancel_scope.cancel()
