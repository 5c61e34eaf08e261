"""A receiver as a real process, killed again and again while operations stream in."""

import base64
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from kit.recording import Source
from kit.scripted_source import CONNECTION, RecordedJournal, ScriptedSession, connect_frame
from kit.trees import assert_same_tree

import replicator
from replicator.child.control import Control
from replicator.net.frames import Connected, Disconnect, MirrorBegin, MirrorEnd
from replicator.net.session import SessionEnded
from replicator.ops import RENAME_EXCHANGE
from replicator.receiver.arguments import ReceiverArguments

pytestmark = pytest.mark.e2e


class ReceiverProcess:
    def __init__(self, directory: Path) -> None:
        self.target = directory / "target"
        self.memory = directory / "memory" / "spool"
        self.home = directory / "home"
        (self.home / "run").mkdir(parents=True)
        self._arguments = directory / "arguments.json"
        self._arguments.write_bytes(
            msgspec.json.encode(
                ReceiverArguments(
                    home=str(self.home),
                    connection_uuid=CONNECTION,
                    agent_uuid="22222222-6f43-4b1b-9d0e-000000000001",
                    agent_name="target",
                    memory_directory=str(self.memory),
                )
            )
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.socket = str(self.home / f"run/receiver-{CONNECTION}.sock")

    def spawn(self, **more: Any) -> "subprocess.Popen[bytes]":
        package = os.path.dirname(os.path.dirname(replicator.__file__))
        return subprocess.Popen(
            [sys.executable, "-m", "replicator.receiver.process", "--arguments", str(self._arguments)],
            env={**os.environ, "PYTHONPATH": package},
            **more,
        )

    async def start(self) -> None:
        self.process = self.spawn()
        with trio.fail_after(20):
            while True:
                assert self.process.poll() is None, "it ended at once"
                try:
                    await self.call("status")
                    return
                except OSError:
                    await trio.sleep(0.02)

    async def call(self, name: str, descriptors: tuple[int, ...] = (), **arguments: Any) -> Any:
        async with Control(self.socket) as control:
            return (await control.call_with_descriptors(name, 10.0, descriptors, **arguments))[0]

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    async def wait(self) -> int:
        assert self.process is not None
        return await trio.to_thread.run_sync(self.process.wait, 20)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[tuple[ScriptedSession, Connected]]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            stream = await trio.open_tcp_stream(*listener.getsockname())
            accepted, _ = listener.accept()
        async with stream:
            with accepted:
                await self.call(
                    "adopt", (accepted.fileno(),), first=base64.b64encode(b"").decode(), other_targets=[]
                )
            source = ScriptedSession(stream)
            answer = await source.open(connect_frame(str(self.target)))
            assert isinstance(answer, Connected), answer
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.listen)
                nursery.start_soon(source.session.heartbeat)
                yield source, answer
                nursery.cancel_scope.cancel()


@pytest.fixture
def receiver(tmp_path: Path) -> Any:
    process = ReceiverProcess(tmp_path)
    yield process
    process.kill()


def churn(source: Source, rounds: int, seed: int) -> None:
    """Operations that show when one is done twice, left out or out of order."""
    chance = random.Random(seed)
    names = [b"d%d/f%d" % (d, f) for d in range(4) for f in range(5)]
    for d in range(4):
        source.mkdir(b"d%d" % d)
    for name in names:
        source.create(name)
        source.write(name, 0, name * 10)
    for number in range(rounds):
        one, other = chance.sample(names, 2)
        if os.path.samefile(source.at(one), source.at(other)):
            continue  # two names of one file: the kernel would do nothing
        match chance.randrange(5):
            case 0:
                source.rename(one, other, RENAME_EXCHANGE)
            case 1:
                source.rename(one, other)
                source.create(one)
            case 2:
                source.write(one, chance.randrange(2000), b"%d" % number * 20)
            case 3:
                source.unlink(one)
                source.link(other, one)
            case 4:
                source.truncate(one, chance.randrange(3000))
    source.settle()


async def test_killed_again_and_again(receiver: ReceiverProcess, tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        (tmp_path / "source").mkdir(mode=0o755)
        source_tree = Source(tmp_path / "source")
        churn(source_tree, 6000, 3)
    finally:
        os.umask(former)
    journal = RecordedJournal()
    for record in source_tree.records:
        journal.add(record)
    end = len(journal)
    chance = random.Random(11)
    kills = 0
    acknowledged = 0
    done = False
    while not done:
        await receiver.start()
        async with receiver.session() as (session, connected):
            mark = connected.received[0]
            begin = mark.sequence if mark is not None else 0
            assert begin >= acknowledged, "what was received may not be lost by a kill"
            last = end if kills >= 8 else chance.randint(begin, min(begin + 1500, end))
            try:
                while begin < last:
                    count = min(chance.randint(1, 40), last - begin)
                    await session.send(*journal.run(begin, begin + count))
                    begin += count
                if last == end:
                    await session.applied(end)
                    done = True
                else:
                    await trio.sleep(chance.random() * 0.05)
            except SessionEnded:
                raise AssertionError("the session ended before the kill") from None
            acknowledged = session.acknowledged.received[0]
            if not done:
                receiver.kill()
                kills += 1
    assert_same_tree(tmp_path / "source", receiver.target)


async def test_stop_and_forget(receiver: ReceiverProcess) -> None:
    await receiver.start()
    async with receiver.session() as (session, _):
        await session.send(MirrorBegin("m", "full"))
        await session.send(MirrorEnd("m", True))
        await session.until(lambda: session.events != [] and session.state.data_state == "OK")
        await receiver.call("stop")
        assert "stopped" in await session.until_ended()
    assert await receiver.wait() == 0
    await receiver.start()
    async with receiver.session() as (session, connected):
        assert connected.data_state == "OK"
        await session.send(Disconnect(CONNECTION))
        assert "deleted" in await session.until_ended()
    assert await receiver.wait() == 0
    assert not receiver.memory.exists() and os.listdir(receiver.home / "target") == []
    assert receiver.target.is_dir()


async def test_only_one_process_at_a_time(receiver: ReceiverProcess) -> None:
    await receiver.start()
    second = receiver.spawn(stderr=subprocess.PIPE)
    _, errors = await trio.to_thread.run_sync(second.communicate, None, 20)
    assert second.returncode == 1
    assert b"another process" in errors and errors.count(b"\n") == 1
    await receiver.call("status")
