"""Automatic compression against models of lines, hosts and data, second by second."""

from dataclasses import dataclass

import pytest

from replicator import limits
from replicator.net.auto_level import AutoLevel, Look

FRAME_BYTES = limits.MIB
SPEEDS = (270e6, 120e6, 79e6, 30e6, 20e6)  # of levels from 1 on, on text
SAMPLE_S = 100e-6
RATIOS = (2.5, 2.8, 3.0, 3.1, 3.15)


@dataclass
class Model:
    """A sender that has always something to send, over a line, to a target.

    `source`: bytes/s that it reads at most; `target`: that it places; `cpu`: how fast this host compresses.
    """

    line: float
    text: bool = True
    source: float = 1e9
    target: float = 1e12
    cpu: float = 1.0
    limit: float | None = None
    others_busy: float = 0.0

    def __post_init__(self) -> None:
        self.auto = AutoLevel()
        self.now = 0.0
        self.plain = 0
        self.sent = 0.0
        self.busy = 0.0
        self.levels: list[int] = []
        self.compressed = 0

    def run(self, seconds: float) -> float:
        """Returns plain bytes per second."""
        until, began, before = self.now + seconds, self.now, self.plain
        while self.now < until:
            if self.auto.is_due(int(self.now * 1e9)):
                look = Look(self.plain, int(self.sent), int(self.busy * 1e9), self.limit, self.others_busy)
                self.auto.look(int(self.now * 1e9), look)
            level = self.auto.next_level()
            ratio, took = 1.0, 0.0
            if level:
                self.auto.sampled(compressible=self.text)
                took = SAMPLE_S / self.cpu
                level = level if self.text else 0
            if level:
                ratio = RATIOS[level - 1]
                took += FRAME_BYTES / (SPEEDS[level - 1] * self.cpu)
                self.auto.packed(level, FRAME_BYTES, int(FRAME_BYTES / ratio), int(took * 1e9))
                self.compressed += 1
            wire = FRAME_BYTES / ratio
            on_line = max(wire / min(self.line, self.limit or 1e12), FRAME_BYTES / self.target)
            # The line works while the sender reads and compresses; a slow target holds it up as well.
            self.now += max(took + FRAME_BYTES / self.source, on_line)
            self.busy += on_line
            self.plain += FRAME_BYTES
            self.sent += wire
            self.levels.append(level)
        return (self.plain - before) / (self.now - began)


def test_a_slow_line_gets_text_compressed() -> None:
    model = Model(line=12.5e6)
    model.run(3)
    assert model.run(20) > 2 * 12.5e6
    assert model.auto.level >= 1


def test_a_fast_line_is_left_alone() -> None:
    model = Model(line=1.2e9, source=700e6)
    assert model.run(20) > 0.99 * 700e6
    assert model.compressed == 0


@pytest.mark.parametrize("line", [12.5e6, 125e6, 200e6, 600e6])
def test_what_cannot_be_compressed_costs_next_to_nothing(line: float) -> None:
    off = min(line, 1e9)
    assert Model(line=line, text=False).run(30) > 0.97 * off


def test_a_slow_target_is_not_taken_for_a_slow_line_for_long() -> None:
    model = Model(line=1e9, target=80e6)
    model.run(200)
    model.levels.clear()
    model.run(200)
    assert sum(1 for level in model.levels if level) < 0.1 * len(model.levels)


def test_a_slow_processor_is_asked_for_less() -> None:
    assert Model(line=50e6, cpu=0.1).run(30) > 0.9 * 50e6  # 27 MB/s at level 1: it does not pay
    quick, slow = Model(line=12.5e6), Model(line=12.5e6, cpu=0.2)
    quick.run(20)
    assert slow.run(20) > 1.8 * 12.5e6
    assert slow.auto.level <= quick.auto.level


def test_a_bandwidth_limit_counts_as_the_line() -> None:
    model = Model(line=1e9, limit=1e6)
    model.run(5)
    assert model.run(20) > 2e6


def test_a_line_that_becomes_fast_is_noticed_and_one_that_becomes_slow() -> None:
    model = Model(line=12.5e6, source=300e6)
    model.run(10)
    model.line = 2e9
    model.run(10)
    assert model.run(10) > 0.9 * 216e6 and model.auto.level <= 1
    model.line = 12.5e6
    model.run(30)
    assert model.run(10) > 25e6


def test_data_that_change_their_kind_are_noticed() -> None:
    model = Model(line=12.5e6, text=False)
    model.run(20)
    model.text = True
    model.run(5)
    assert model.run(10) > 25e6
    model.text = False
    model.run(2)
    assert model.run(10) > 0.97 * 12.5e6


def test_a_host_that_others_need_compresses_with_the_least_effort() -> None:
    model = Model(line=2e6, others_busy=0.9)
    model.run(20)
    assert set(model.levels) == {0, 1}  # CP-04
    model.others_busy = 0.1
    model.run(20)
    assert model.auto.level >= 1


def test_an_idle_connection_says_nothing() -> None:
    model = Model(line=12.5e6)
    model.run(1)
    model.now += 1000
    model.run(3)
    assert model.run(10) > 25e6
