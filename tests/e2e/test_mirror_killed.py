"""A mirror whose sender or receiver is killed goes on where it was: it ends equal, and reads little twice."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import leftovers
from kit.campaign import amount
from kit.patience import until
from kit.protected import Protected, protected

pytestmark = pytest.mark.e2e

LONG = amount("MIRROR_KILLS", 50)
FILES = 9000  # what is on its way (16 MiB, and a transfer) is below 4 % of them
FILE_BYTES = 64 * 1024
MIB = 1024 * 1024
LARGE_MIB = amount("MIRROR_KILLS_LARGE_MIB", 256)
ON_ITS_WAY = 24 * MIB  # pieces that were read, and are not on the target
READ_TWICE = 0.05  # of the tree, at most
MIRROR_S = 60.0  # for a moment to come


def build(directory: Path) -> int:
    """Files of several sizes, and one that is a transfer of its own. Returns how many bytes."""
    chance = random.Random(1)
    content = chance.randbytes(2 * FILE_BYTES)
    total = 0
    for number in range(FILES):
        below = directory / f"d{number // 100:03}" / f"e{number % 3}"
        below.mkdir(parents=True, exist_ok=True)
        size = chance.randrange(2 * FILE_BYTES)
        (below / f"f{number}").write_bytes(content[:size])
        total += size
    (directory / "large").write_bytes(content * 32)
    return total + 64 * FILE_BYTES


def read_bytes(process_id: int) -> int:
    """By system calls, of whatever kind."""
    for line in Path(f"/proc/{process_id}/io").read_text().splitlines():
        if line.startswith("rchar"):
            return int(line.split()[1])
    raise AssertionError("no rchar")


class Victim:
    """A pair of agents whose mirrors are killed."""

    def __init__(self, pair: Protected, size: int) -> None:
        self.pair = pair
        self.size = size
        self.fresh_bytes = 0  # that a new sender reads before it has anything to do: Python, mostly
        self.twice = READ_TWICE
        self.reads: list[float] = []  # bytes read of each mirror, as a share of the tree

    def process(self, side: str) -> int:
        if side == "sender":
            return int(self.pair.status["sender_pid"] or 0)
        commands = leftovers.processes_of_home(self.pair.beta.home)
        return next((pid for pid, command in commands.items() if "replicator.receiver.process" in command), 0)

    def measure_fresh(self) -> None:
        before = self.process("sender")
        os.kill(before, signal.SIGKILL)
        until(lambda: self.process("sender") not in (0, before))
        self.pair.drained()
        self.fresh_bytes = read_bytes(self.process("sender"))

    def forgive(self) -> None:
        """Agents that begin anew start a child at once that was killed again and again."""
        for agent in (self.pair.alpha, self.pair.beta):
            agent.kill()
            agent.start()

    def round(self, chance: random.Random, side: str, first: float = 0.0) -> None:
        """`first`: the share of the tree that is read before the kill, at least."""
        pair = self.pair
        sender = self.process("sender")
        before = read_bytes(sender)
        pair.alpha.json("mirror", "start", pair.id, "full")
        victim = self.process(side)
        moment = before + (first + (0.9 - first) * chance.random() if first else chance.random()) * self.size
        until(lambda: read_bytes(sender) >= moment, MIRROR_S, 0.001)
        if side == "sender":
            os.kill(victim, signal.SIGSTOP)
            read_first = read_bytes(victim) - before
            os.kill(victim, signal.SIGKILL)
            until(lambda: self.process("sender") not in (0, victim))
            pair.drained()
            total = read_first + read_bytes(self.process("sender")) - self.fresh_bytes
        else:
            os.kill(victim, signal.SIGKILL)
            until(lambda: self.process("receiver") not in (0, victim))
            pair.drained()
            total = read_bytes(sender) - before
        assert pair.status["target_data_state"] == "OK", pair.status
        self.reads.append(total / self.size)
        print(f"{side} killed after {(moment - before) / self.size:.2f}, read {self.reads[-1]:.3f}")
        assert total <= (1 + self.twice) * self.size, (side, self.reads)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    (tmp_path / "source").mkdir()
    size = build(tmp_path / "source")
    with protected(tmp_path) as pair:
        victim = Victim(pair, size)
        victim.measure_fresh()
        yield victim


def kill_often(victim: Victim, count: int) -> None:
    chance = random.Random(count)
    for number in range(count):
        victim.round(chance, ("sender", "receiver")[number % 2])
        if number % 5 == 4 or number == count - 1:
            victim.pair.assert_equal()
            victim.forgive()
    shares = sorted(victim.reads)
    print(
        f"{count} kills: read {shares[len(shares) // 2]:.3f} of the tree (median), {shares[-1]:.3f} at most"
    )


@pytest.mark.timeout_s(300)
def test_some_kills(victim: Victim) -> None:
    kill_often(victim, 5)


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Victim]:
    """A pair with one file."""
    (tmp_path / "source").mkdir()
    with open(tmp_path / "source" / "large", "wb") as file:
        content = random.Random(2).randbytes(MIB)
        for number in range(LARGE_MIB):
            file.write(number.to_bytes(8, "big") + content[8:])
    with protected(tmp_path, configuration="[mirror]\nlocal_copy = false\n") as pair:
        victim = Victim(pair, LARGE_MIB * MIB)
        victim.measure_fresh()
        yield victim


@pytest.mark.timeout_s(300)
def test_one_large_file_goes_on(large: Victim) -> None:
    """Killed when most of it has been read."""
    large.twice = ON_ITS_WAY / large.size
    for side in ("sender", "receiver"):
        large.round(random.Random(1), side, first=0.6)
        large.pair.assert_equal()


@pytest.mark.soak
@pytest.mark.timeout_s(300 + LONG * 60)
def test_many_kills(victim: Victim) -> None:
    kill_often(victim, LONG)
