"""Synchronous mounts: what a program was told is durable is on the target's disk, whatever happens then."""

import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit import bank, dtd, postgres
from kit.campaign import amount
from kit.patience import until
from kit.power_cut import Disk, NoDisk
from kit.protected import Protected
from kit.slow_line import SlowLine, slow_line
from kit.writers import writing

from replicator import limits

pytestmark = pytest.mark.e2e

ASYNCHRONOUS = ("sync=async",)
MOMENTS = amount("SYNCHRONOUS_MOMENTS", 100)


class Hosts:
    """A source, a line that can be held, and a target whose copy lies on a disk that can lose power."""

    def __init__(self, pair: Protected, line: SlowLine, disk: Disk) -> None:
        self.pair = pair
        self.line = line
        self.disk = disk

    def become(self, *options: str) -> None:
        """Have these options, and be synchronous if that is one of them."""
        done = self.pair.alpha.dtctl("mount", "set", self.pair.source, *options)
        assert done.code == 0, done.err
        if any(option.startswith("sync=") and option != "sync=async" for option in options):
            self.until_state("Synchronous")

    def until_state(self, state: str) -> None:
        until(lambda: self.pair.status["synchrony"] == state, 30)

    @property
    def events(self) -> list[int]:
        return [event["id"] for event in self.pair.alpha.json("events")]


@contextmanager
def running(directory: Path, round_trip_s: float = 0.0, binding: str = "auto") -> Iterator[Hosts]:
    try:
        disk = Disk(directory, directory / "disk")
    except NoDisk as error:
        pytest.skip(str(error))
    try:
        with (
            dtd.running(directory, "alpha", "beta") as (alpha, beta),
            slow_line(beta.port, round_trip_s) as line,
        ):
            pair = Protected(directory, alpha, beta, disk.mountpoint / "copy")
            pair.source.mkdir()
            added = alpha.dtctl("mount", "add", pair.source, "--binding", binding)
            assert added.code == 0, added.err
            target = f"127.0.0.1:{line.port}:{pair.copy}"
            pair.id = str(alpha.json("protect", pair.source, target, "--wait")["id"])
            yield Hosts(pair, line, disk)
    finally:
        disk.close()


# --- nothing that was acknowledged is lost ---


def lost(disk: Disk, scratch: Path, told: Callable[[], set[str]], found: Callable[[Path], set[str]]) -> int:
    """How many of what programs were told the target's disk has not, if both hosts lose power now."""
    acknowledged = told()  # before the power goes
    with disk.as_after_a_cut(scratch) as left:
        return len(acknowledged - found(left / "copy"))


def bank_losses(directory: Path, mode: str, moments: int, *options: str) -> list[int]:
    chance = random.Random(moments)
    with running(directory) as hosts:
        bank.create(hosts.pair.source / "db", mode)
        hosts.pair.drained()
        hosts.become(*options)
        command = ("kit.bank", hosts.pair.source / "db", mode, "1")
        with writing(directory / "out", command) as (writer,):

            def told() -> set[str]:
                writer.assert_running()
                return {line.split()[0] for line in writer.output.split("\n")[:-1]}

            def found(copy: Path) -> set[str]:
                look = bank.examine(copy, "db", directory / "opened")
                shutil.rmtree(directory / "opened")
                if look.problems:  # nobody promised that this disk has anything, if nobody waits
                    assert options == ASYNCHRONOUS, look.problems
                    return set()
                return look.transfers

            until(lambda: len(told()) > 5)
            losses = []
            for _ in range(moments):
                time.sleep(chance.uniform(0, 0.3))
                losses.append(lost(hosts.disk, directory / "cut", told, found))
            assert len(told()) > 5 + moments, "hardly anything was committed"
            writer.stop()
        hosts.pair.assert_equal()
        assert options == ASYNCHRONOUS or hosts.pair.status["synchrony"] == "Synchronous"
        return losses


@pytest.mark.parametrize("mode", ["wal", "truncate"])
def test_sqlite_loses_no_commit(tmp_path: Path, mode: str) -> None:
    assert not any(bank_losses(tmp_path, mode, 5, "sync=fsync", "sync_timeout=60"))


def test_an_asynchronous_mount_does(tmp_path: Path) -> None:
    """So the others can fail: what a target has received is not on its disk at once."""
    assert any(bank_losses(tmp_path, "wal", 2, *ASYNCHRONOUS))


@pytest.mark.soak
@pytest.mark.timeout_s(600 + 5 * MOMENTS)
@pytest.mark.parametrize("mode", ["wal", "truncate"])
def test_sqlite_at_many_moments(tmp_path: Path, mode: str) -> None:
    losses = bank_losses(tmp_path, mode, MOMENTS, "sync=fsync", "sync_timeout=60")
    print(f"{mode}: {MOMENTS} moments, {sum(losses)} acknowledged commits lost")
    assert not any(losses)


def postgres_losses(directory: Path, moments: int) -> list[int]:
    if reason := postgres.why_not():
        pytest.skip(reason)
    chance = random.Random(moments)
    with running(directory) as hosts:
        cluster, output = hosts.pair.source / "cluster", directory / "told"
        postgres.create(cluster)
        hosts.pair.drained()
        hosts.become("sync=fsync", "sync_timeout=60")

        def told() -> set[str]:
            return set(map(str, postgres.told(output)))

        def found(copy: Path) -> set[str]:
            opened = directory / "opened"
            subprocess.run(["cp", "-a", copy / "cluster", opened], check=True, timeout=60)
            rows = postgres.rows_of_copy(opened)
            shutil.rmtree(opened)
            return set(map(str, rows))

        losses = []
        with postgres.serving(cluster) as socket, postgres.committing(socket, output):
            until(lambda: len(told()) > 5)
            for _ in range(moments):
                time.sleep(chance.uniform(0, 0.5))
                losses.append(lost(hosts.disk, directory / "cut", told, found))
            assert len(told()) > 5 + moments, "hardly anything was committed"
        hosts.pair.drained()
        assert hosts.pair.status["synchrony"] == "Synchronous"
        return losses


def test_postgres_loses_no_transaction(tmp_path: Path) -> None:
    assert not any(postgres_losses(tmp_path, 2))


@pytest.mark.soak
@pytest.mark.timeout_s(600 + 15 * MOMENTS)
def test_postgres_at_many_moments(tmp_path: Path) -> None:
    losses = postgres_losses(tmp_path, MOMENTS)
    print(f"PostgreSQL: {MOMENTS} moments, {sum(losses)} acknowledged transactions lost")
    assert not any(losses)


# --- each call that is to wait does ---


@pytest.mark.parametrize("binding", ["kernel", "pyfuse3"])
def test_each_kind_of_durable_change_is_on_the_target_when_it_returns(tmp_path: Path, binding: str) -> None:
    with running(tmp_path, 0.02, binding) as hosts:
        hosts.become("sync=fsync")
        source, copy = hosts.pair.source, hosts.pair.copy

        with open(source / "f", "wb", buffering=0) as file:
            file.write(b"fsync")
            os.fsync(file.fileno())
            assert (copy / "f").read_bytes() == b"fsync"
            file.write(b"+data")
            os.fdatasync(file.fileno())
            assert (copy / "f").read_bytes() == b"fsync+data"
        for flag in (os.O_SYNC, os.O_DSYNC):
            descriptor = os.open(source / "s", os.O_WRONLY | os.O_CREAT | flag)
            os.write(descriptor, b"%d" % flag)
            assert (copy / "s").read_bytes() == b"%d" % flag
            os.close(descriptor)
            os.unlink(source / "s")
        (source / "new").write_bytes(b"renamed")
        descriptor = os.open(source / "new", os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        os.rename(source / "new", source / "f")
        descriptor = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)
        assert (copy / "f").read_bytes() == b"renamed" and not (copy / "new").exists()
        program = (
            "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); m[:3] = b'MAP';"
            "m.flush(); assert open(sys.argv[2], 'rb').read() == b'MAPamed'"
        )
        subprocess.run(["python3", "-c", program, source / "f", copy / "f"], check=True, timeout=30)


@pytest.mark.parametrize("binding", ["kernel", "pyfuse3"])
def test_all_operations_wait_until_they_are_received(tmp_path: Path, binding: str) -> None:
    with running(tmp_path, 0.02, binding) as hosts:
        hosts.become("sync=all", "sync_timeout=60")
        source = hosts.pair.source
        began_s = time.monotonic()
        (source / "d").mkdir()
        (source / "d" / "f").write_bytes(b"x")
        os.rename(source / "d", source / "e")
        os.chmod(source / "e" / "f", 0o600)
        assert time.monotonic() - began_s > 5 * 0.02, "mkdir, create, write, rename, chmod: a round trip each"
        pid = hosts.pair.status["sender_pid"]
        os.kill(pid, 9)  # what was received needs no source any more
        until(lambda: (hosts.pair.copy / "e" / "f").exists() and (hosts.pair.copy / "e" / "f").stat().st_size)
        hosts.pair.assert_equal()


def test_changes_of_names_that_wait_are_not_done_twice(tmp_path: Path) -> None:
    """A capture is killed while programs wait for what it has done: their calls are handed out again."""
    with running(tmp_path) as hosts:
        hosts.become("sync=all", "sync_timeout=60", "sync_policy=strict")
        source = hosts.pair.source
        places = [source / f"place{number}" for number in range(8)]
        for place in places:
            place.mkdir()
        (mount,) = hosts.pair.alpha.json("mount", "list")
        hosts.line.hold()
        errors: list[OSError] = []

        def work(place: Path) -> None:
            try:
                (place / "made").mkdir()
            except OSError as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(place,)) for place in places]
        for thread in threads:
            thread.start()
        time.sleep(1)
        assert all(thread.is_alive() for thread in threads)
        os.kill(mount["pid"], 9)
        until(lambda: hosts.pair.alpha.json("mount", "list")[0]["pid"] not in (None, mount["pid"]), 30)
        time.sleep(1)
        assert all(thread.is_alive() for thread in threads)
        hosts.line.release()
        hosts.line.cut()
        for thread in threads:
            thread.join(60)
        assert not errors
        assert all((hosts.pair.copy / place.name / "made").is_dir() for place in places)
        hosts.pair.assert_equal()


# --- a target that does not answer ---


def synced(path: Path, done: list[float]) -> threading.Thread:
    """A program that waits in fsync; `done` gets the seconds that it took."""

    def work() -> None:
        began_s = time.monotonic()
        with open(path, "ab", buffering=0) as file:
            file.write(b"waited for")
            os.fsync(file.fileno())
        done.append(time.monotonic() - began_s)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def others_go_on(source: Path) -> None:
    """Programs that ask for nothing durable, while others wait and will not stop waiting."""
    for number in range(50):
        (source / f"other{number}").write_bytes(b"x" * 5000)
        assert (source / f"other{number}").read_bytes() == b"x" * 5000
        os.rename(source / f"other{number}", source / "renamed")
    assert os.listdir(source)


def test_a_target_that_is_away_is_given_up_and_comes_back(tmp_path: Path) -> None:
    with running(tmp_path) as hosts:
        hosts.become("sync=fsync", "sync_timeout=2")
        source = hosts.pair.source
        hosts.line.hold()
        done: list[float] = []
        threads = [synced(source / f"f{number}", done) for number in range(4)]
        for thread in threads:
            thread.join(30)
        assert len(done) == 4 and min(done) > 1.9, done
        hosts.until_state("Degraded")
        assert hosts.pair.status["synchrony_reason"]
        quick: list[float] = []
        synced(source / "g", quick).join(30)
        assert quick[0] < 1.9  # nobody waits now
        hosts.line.release()
        hosts.until_state("Synchronous")
        synced(source / "h", quick).join(30)
        assert (hosts.pair.copy / "h").read_bytes() == b"waited for"
        assert [event for event in hosts.events if event in (9140, 9141, 9142)][-3:] == [9140, 9141, 9140]
        hosts.pair.assert_equal()


def test_strict_programs_wait_over_kills_and_others_go_on(tmp_path: Path) -> None:
    with running(tmp_path) as hosts:
        hosts.become("sync=fsync", "sync_timeout=1", "sync_policy=strict")
        pair = hosts.pair
        hosts.line.hold()
        done: list[float] = []
        count = limits.CAPTURE_THREADS + 8  # more than there are threads for what waits
        threads = [synced(pair.source / f"f{number}", done) for number in range(count)]
        hosts.until_state("Waiting")
        others_go_on(pair.source)
        (mount,) = pair.alpha.json("mount", "list")
        os.kill(mount["pid"], 9)  # the capture: its successor is asked again
        os.kill(pair.status["sender_pid"], 9)
        until(lambda: pair.alpha.json("mount", "list")[0]["pid"] not in (None, mount["pid"]), 30)
        others_go_on(pair.source)
        time.sleep(2)
        assert not done
        hosts.line.release()
        hosts.line.cut()
        for thread in threads:
            thread.join(60)
        assert len(done) == count
        for number in range(count):
            assert (pair.copy / f"f{number}").read_bytes() == b"waited for"
        hosts.until_state("Synchronous")
        assert 9142 in hosts.events
        pair.assert_equal()


def test_a_person_lets_programs_go_on(tmp_path: Path) -> None:
    with running(tmp_path) as hosts:
        hosts.become("sync=fsync", "sync_timeout=1", "sync_policy=strict")
        hosts.line.hold()
        done: list[float] = []
        thread = synced(hosts.pair.source / "f", done)
        hosts.until_state("Waiting")
        hosts.become("sync=async")
        thread.join(10)
        assert done
        hosts.line.release()
