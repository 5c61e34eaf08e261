"""The capture process of a mount is killed, or reloaded, again and again under loads that notice everything.

No application sees an error, nothing is lost or done twice: the copy is, at each look, a state that the
source went through, and equal in the end. How long applications waited is printed (`pytest -rP`).
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest
import trio
from kit import compiling, postgres, probe
from kit.campaign import amount
from kit.file_exerciser import TOLD_EVERY
from kit.file_operations import FILES, History
from kit.patience import until
from kit.protected import Protected, protected
from kit.snapshots import frozen
from kit.writers import Writer, writing

from replicator.child.control import Control
from replicator.paths import Home

pytestmark = pytest.mark.e2e

KILLS = amount("KILLS", 500)  # under each load
RELOADS = amount("RELOADS", 50)
PAUSE_MAX_S = 0.25  # from an answer of one capture to the end of it
LOOK_EVERY = 25
REPLACED_WITHIN_S = 3.0  # at the least often, for limits of time
WAIT_MAX_S = 5.0  # on a machine that does other things, too; less than any time limit of an agent


class Load(Protocol):
    """An application at work in the directory `name` of the source, and what must hold of a copy of that."""

    name: str

    def command(self) -> tuple[str | Path, ...]: ...

    def look(self, copy: Path, writer: Writer) -> None:
        """At one moment, and after it: AssertionError if the source never was like `copy`."""

    def end(self, copy: Path, output: str) -> None:
        """The same when everything is done."""


class FileOperations:
    """`kit.file_exerciser` compares the mount after each operation; the copy is held against all states."""

    name = "files"

    def __init__(self, source: Path) -> None:
        self._directory = source / self.name
        self._history = History(1)

    def command(self) -> tuple[str | Path, ...]:
        return ("kit.file_exerciser", self._directory, "1", "0")

    def look(self, copy: Path, writer: Writer) -> None:
        self._find(copy, int(writer.output.split()[-1]) + TOLD_EVERY)

    def end(self, copy: Path, output: str) -> None:
        done = int(output.split()[-1])
        self._find(copy, done)
        while self._history.number < done:
            self._history.step()
        assert _contents(copy) == self._history.contents

    def _find(self, copy: Path, last: int) -> None:
        self._history.find(_contents(copy), last)


def _contents(directory: Path) -> list[bytes]:
    return [(directory / str(number)).read_bytes() for number in range(FILES)]


class Compiling:
    """`kit.compiling`: whenever it says that all is made, all is there."""

    name = "compiling"

    def __init__(self, source: Path) -> None:
        self._directory = source / self.name

    def command(self) -> tuple[str | Path, ...]:
        return ("kit.compiling", self._directory)

    def look(self, copy: Path, writer: Writer) -> None:
        assert compiling.check(copy) == []

    def end(self, copy: Path, output: str) -> None:
        assert (copy / "built").exists()
        assert compiling.check(copy) == []


class Transactions:
    """pgbench: a server on the copy starts, has transactions as a whole, and none fewer than before."""

    name = "postgres"

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._seen = 0

    def command(self) -> tuple[str | Path, ...]:
        return ("kit.postgres", self._socket)

    def look(self, copy: Path, writer: Writer) -> None:
        found = postgres.look_at_copy(copy)
        assert found.problems == []
        assert found.transactions >= self._seen
        self._seen = found.transactions

    def end(self, copy: Path, output: str) -> None:
        done = int(output.split()[-1])
        assert postgres.look(self._socket) == postgres.Look([], done)
        assert postgres.look_at_copy(copy) == postgres.Look([], done)


@contextmanager
def file_operations(pair: Protected) -> Iterator[Load]:
    yield FileOperations(pair.source)


@contextmanager
def compile_job(pair: Protected) -> Iterator[Load]:
    if reason := compiling.why_not():
        pytest.skip(reason)
    yield Compiling(pair.source)


@contextmanager
def pgbench(pair: Protected) -> Iterator[Load]:
    if reason := postgres.why_not():
        pytest.skip(reason)
    cluster = pair.source / Transactions.name
    postgres.create(cluster)
    with postgres.serving(cluster) as socket:
        yield Transactions(socket)


LOADS = [file_operations, compile_job, pgbench]
Loading = Callable[[Protected], "contextmanager[Load]"]


class Capture:
    """The capture process of the mount, whoever that is just now."""

    def __init__(self, pair: Protected) -> None:
        self._pair = pair
        self._socket = Home(str(pair.alpha.home)).socket("capture", pair.mount_id)
        self.pid = self._serving()

    def _serving(self) -> int:
        """The process that answers; 0 if none does."""

        async def ask() -> int:
            return int((await Control(self._socket).call("status", 5.0))["pid"])

        try:
            return trio.run(ask)
        except Exception:  # between two of them there are many ways not to answer
            return 0

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._wait_for_another()

    def reload(self) -> None:
        assert self._pair.alpha.json("mount", "reload", self._pair.source)["state"] == "serving"
        self._wait_for_another()

    def _wait_for_another(self) -> None:
        before = self.pid
        self.pid = until(lambda: (pid := self._serving()) != before and pid, pause_s=0.01)


def replace_often(
    pair: Protected, loading: Loading, replace: Callable[[Capture], None], count: int, root: Path
) -> None:
    chance = random.Random(count)
    with loading(pair) as load:
        commands = (load.command(), ("kit.probe", pair.source / "probe"))
        with writing(root / "out", *commands) as (writer, prober):
            until(lambda: writer.output.count("\n") > 1)
            pair.drained()
            before, capture, moments = pair.status, Capture(pair), []
            for number in range(1, count + 1):
                time.sleep(chance.uniform(0, PAUSE_MAX_S))
                moments.append(time.monotonic())
                replace(capture)
                writer.assert_running()
                if number % min(LOOK_EVERY, count // 2) == 0:
                    copy = root / f"look-{number}"
                    with frozen(before["receiver_pid"]):
                        copied(pair.copy / load.name, copy)
                    load.look(copy, writer)
                    removed(copy)
            time.sleep(PAUSE_MAX_S)  # whoever waited for the last one tells it now
            waits = probe.stalls(prober.stop(), moments)
            output = writer.stop()
        pair.drained()
        copied(pair.copy / load.name, root / "end")
        load.end(root / "end", output)
    pair.assert_equal()
    print(f"{count} times under {loading.__name__}: {probe.told(waits)}")
    assert max(waits) < WAIT_MAX_S
    after = pair.status
    assert after["target_data_state"] == "OK"
    for unchanged in ("sender_pid", "receiver_pid", "sent_mirror_bytes"):
        assert after[unchanged] == before[unchanged], unchanged


def copied(tree: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", tree, to], check=True, timeout=100)


def removed(tree: Path) -> None:
    subprocess.run(["rm", "-rf", tree], check=True, timeout=100)


@pytest.mark.timeout_s(240)  # a server of PostgreSQL is started five times
@pytest.mark.parametrize("loading", LOADS)
def test_killed_a_few_times(loading: Loading, tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        replace_often(pair, loading, Capture.kill, 6, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout_s(300 + KILLS * REPLACED_WITHIN_S)
@pytest.mark.parametrize("loading", LOADS)
def test_killed_five_hundred_times(loading: Loading, tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        replace_often(pair, loading, Capture.kill, KILLS, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout_s(300 + RELOADS * REPLACED_WITHIN_S)
@pytest.mark.parametrize("loading", LOADS)
def test_reloaded_fifty_times(loading: Loading, tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        replace_often(pair, loading, Capture.reload, RELOADS, tmp_path)
