"""The process that forks the children of an agent: what they are, and that nothing depends on it."""

import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from kit.dtd import Agent, running
from kit.patience import until

from replicator import limits
from replicator.agent import fork_server, launcher
from replicator.agent.fork_server import ForkServer
from replicator.agent.launcher import Launcher
from replicator.agent.process import Launch, Process
from replicator.agent.supervisor import call, write_arguments
from replicator.paths import Home
from replicator.receiver.arguments import ReceiverArguments

pytestmark = pytest.mark.e2e

CONNECTION = "11111111-2222-4333-8444-555555555555"


def command_of(process_id: int) -> list[str]:
    """The words of a command line; none if the process has ended, even if nobody has waited for it."""
    try:
        return Path(f"/proc/{process_id}/cmdline").read_bytes().replace(b"\0", b" ").decode().split()
    except OSError:
        return []


def server_of(home: Path) -> int:
    """Process id of its fork server; 0 if there is none."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if command_of(int(entry))[1:] == ["-m", "replicator.agent.fork_server", "--home", str(home)]:
            return int(entry)
    return 0


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


def test_children_are_forked_and_differ_in_nothing(pair: tuple[Agent, Agent], source: Path) -> None:
    alpha, beta = pair
    servers = [server_of(agent.home) for agent in pair]
    channels = []
    for agent, server in zip(pair, servers, strict=True):
        log = str(agent.home / "log/fork-server.log")
        files = open_files(server)
        channels.append(files.pop(3))
        assert channels[-1].startswith("socket:") and files == {0: "/dev/null", 1: log, 2: log}
        assert os.getsid(server) == server and agent.process and parent_of(server) == agent.process.pid

    children = protect(alpha, beta, source)
    (capture,) = [mount["pid"] for mount in alpha.json("mount", "list")]
    all_of_them = [
        (alpha, "sender", children[0]),
        (beta, "receiver", children[1]),
        (alpha, "capture", capture),
    ]
    for agent, role, child in all_of_them:
        (arguments,) = agent.home.glob(f"run/{role}-*.json")
        assert command_of(child) == [
            sys.executable, "-m", f"replicator.{role}.process", "--arguments", str(arguments),
        ]  # fmt: skip
        assert Path(f"/proc/{child}/comm").read_text() == os.path.basename(sys.executable) + "\n"
        assert agent.process and parent_of(child) == agent.process.pid and os.getsid(child) == child
        log = str(agent.home / "log" / arguments.with_suffix(".log").name)
        files = open_files(child)
        assert (files[0], files[1], files[2]) == ("/dev/null", log, log)
        foreign = {*channels, str(agent.home / "agent.lock"), str(agent.home / "log/dtd.log")}
        assert not foreign & set(files.values())
        assert not listening(child) & listening(agent.process.pid)

    alpha.kill()
    (source / "while").write_text("nobody supervises")
    until((source.parent / "copy" / "while").exists)
    alpha.start()
    (connection,) = alpha.json("status")
    assert connection["sender_pid"] == children[0]

    for child in children:
        os.kill(child, signal.SIGKILL)  # the sender is a child of nobody now, the receiver still its agent's
    after = until(
        lambda: [p for p in (alpha.json("status")[0]["sender_pid"],) if p not in (None, children[0])]
    )
    assert command_of(after[0])[2] == "replicator.sender.process"
    until(lambda: "killed by SIGKILL" in beta.dtctl("events").out)


def listening(process_id: int) -> set[str]:
    """Sockets of a process that listen."""
    with open(f"/proc/{process_id}/net/tcp") as file:
        listens = {f"socket:[{line.split()[9]}]" for line in file if line.split()[3] == "0A"}
    return listens & set(open_files(process_id).values())


def test_a_server_that_was_killed_is_not_missed(pair: tuple[Agent, Agent], source: Path) -> None:
    servers = [server_of(agent.home) for agent in pair]
    for server in servers:
        os.kill(server, signal.SIGKILL)
    protect(*pair, source)
    for server in servers:
        until(lambda server=server: not os.path.exists(f"/proc/{server}"))  # somebody waited for it


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_server_ends_with_its_agent(tmp_path: Path, how: str) -> None:
    with running(tmp_path, "alone") as (agent,):
        server = server_of(agent.home)
        assert server
        getattr(agent, how)()
        until(lambda: not command_of(server))
        assert (agent.home / "log/fork-server.log").read_text() == ""
        agent.start()
        assert server_of(agent.home) not in (0, server)


# --- with a launcher alone ---


@pytest.fixture
def home(tmp_path: Path) -> Home:
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


@pytest.fixture
def server(home: Home) -> Iterator[ForkServer]:
    """Made before trio runs, as in an agent."""
    made = fork_server.start(home, ())
    assert made is not None
    yield made
    made.channel.close()  # the end of an agent
    until(lambda: has_ended(made))


def has_ended(server: ForkServer) -> bool:
    return not command_of(server.process.pid)


@asynccontextmanager
async def launching(server: ForkServer | None) -> AsyncIterator[Launcher]:
    made = Launcher(server, launcher.code_version())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
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


def is_forked(process: Process) -> bool:
    """The kernel keeps what a process was executed with where it was; a forked one shows another place."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    arguments_end, environment_start = int(fields[46]), int(fields[47])
    return arguments_end != environment_start


async def test_a_forked_child_answers_as_any_child_does(home: Home, server: ForkServer) -> None:
    async with launching(server) as made:
        for _ in range(2):
            process, ready = await made.start(receiver_of(home))
            assert is_forked(process)
            assert await answers(home, process, ready)


def traits(process: Process) -> dict[str, object]:
    """What a process has of who started it."""
    directory = Path(f"/proc/{process.pid}")
    lines = dict(line.split(":", 1) for line in (directory / "status").read_text().splitlines())
    names = ["SigBlk", "Umask", "CapEff", "NoNewPrivs", "Threads", "Groups", "PPid"]
    found: dict[str, object] = {name: lines[name].strip() for name in names}
    for name in ("SigIgn", "SigCgt"):  # those that an agent may have changed; pytest has more
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD):
            found[f"{name} {number.name}"] = int(lines[name], 16) >> (number - 1) & 1
    found["files"] = [name for name in open_files(process.pid).values() if not name.startswith("anon_inode")]
    found["files"] = sorted(re.sub(r"\d{4,}", "N", name) for name in found["files"])
    found["command"] = command_of(process.pid)
    found["limits"] = (directory / "limits").read_text()
    found["directory"] = os.readlink(directory / "cwd")
    found["session"] = os.getsid(process.pid) == process.pid
    return found


async def test_a_forked_child_has_what_one_that_was_started_anew_has(home: Home, server: ForkServer) -> None:
    foreign = os.dup(0)
    os.set_inheritable(foreign, True)  # as a library may do, or whoever started the agent
    found = []
    try:
        for of in (server, None):
            async with launching(of) as made:
                process, ready = await made.start(receiver_of(home))
                await trio.lowlevel.wait_readable(ready)
                assert is_forked(process) == (of is not None)
                found.append(traits(process))
                assert await answers(home, process, ready)
    finally:
        os.close(foreign)
    assert {k: (v, found[1][k]) for k, v in found[0].items() if v != found[1][k]} == {}


async def test_how_a_forked_child_failed_is_known(home: Home, server: ForkServer) -> None:
    os.unlink(home.arguments("receiver", CONNECTION))
    async with launching(server) as made:
        process, ready = await made.start(receiver_of(home))
        assert is_forked(process)
        assert await process.ended() == "exit code 1"
        process.close()
        os.close(ready)
    log = Path(home.child_log("receiver", CONNECTION)).read_text()
    assert log.endswith(f"No such file or directory: '{home.arguments('receiver', CONNECTION)}'\n")
    assert Path(home.fork_server_log).read_text() == ""


async def test_a_server_that_stands_still_is_ended(
    home: Home, server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FORK_TIMEOUT_S", 0.1)
    server.process.send(signal.SIGSTOP)
    async with launching(server) as made:
        process, ready = await made.start(receiver_of(home))
        assert not is_forked(process)
        assert await answers(home, process, ready)
        assert has_ended(server)


async def test_a_server_of_code_that_has_changed_is_not_used(
    home: Home, server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with launching(server) as made:
        monkeypatch.setattr(launcher, "code_version", lambda: "another")
        process, ready = await made.start(receiver_of(home))
        assert not is_forked(process)
        assert await answers(home, process, ready)
        assert has_ended(server)


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
