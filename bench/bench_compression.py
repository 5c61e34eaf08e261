"""First copies with `dtctl compression set` off, auto, and at levels, taking turns.

- `incompressible`: one file of random content, over loopback, where compression can only cost.
- `text`: one file of modules of Python's library, between two hosts (network namespaces) whose
  line takes 100 Mbit/s (tbf).
- `mixed`: the same line; half of the files are text, half random.

Time is from `dtctl mirror start` to the end of `dtctl wait`, on a connection that stands. "On the line" is
what the sender says it has sent after compression, for each byte before.
"""

import os
import random
import shutil
import statistics
import sysconfig
import time
from contextlib import ExitStack
from pathlib import Path

import harness
from kit import dtd
from kit.hosts import lan

LINE_KBIT_PER_S = 100_000


def make_random(path: Path, mib: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for _ in range(mib):
            file.write(os.urandom(harness.MIB))


def make_text(path: Path, mib: int) -> None:
    """Modules in random order; those that come again are far outside of what compression looks back on."""
    chance = random.Random(1)
    modules = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    size = 0
    with open(path, "wb") as file:
        while size < mib * harness.MIB:
            size += file.write(chance.choice(modules).read_bytes())


def copy_once(agents: harness.Pair, source: Path, copy: Path, compression: str) -> tuple[float, float]:
    """(seconds, bytes on the line for each byte)."""
    agent = agents.source_agent
    address = agents.target_agent.address
    harness.dtctl(agent, "connect", "bench", address, "--map", f"{source}={copy}", "--no-mirror")
    harness.dtctl(agent, "compression", "set", "bench", compression)
    start = time.perf_counter()
    harness.dtctl(agent, "mirror", "start", "bench", "full")
    harness.dtctl(agent, "wait", "bench")
    seconds = time.perf_counter() - start
    status = agents.status()
    harness.assert_equal(source, copy)
    agents.disconnect()
    shutil.rmtree(copy)
    return seconds, status["sent_compressed_bytes"] / status["sent_bytes"]


def measure_case(work: Path, case: str, mib: int, rounds: int, ways: list[str], table: harness.Table) -> None:
    source, copy = work / case, work / "copy"
    source.mkdir()
    if case == "incompressible":
        make_random(source / "file", mib)
    elif case == "text":
        make_text(source / "file", mib)
    else:
        for number in range(4):
            make_text(source / f"{number}-text", mib // 8)
            make_random(source / f"{number}-random", mib // 8)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with ExitStack() as stack:
        hosts = None
        if case != "incompressible":
            alpha, beta = stack.enter_context(lan("alpha", "beta"))
            beta.slow_down(LINE_KBIT_PER_S)
            hosts = (alpha, beta)
        agents = stack.enter_context(harness.pair(work, hosts=hosts))
        if hosts is not None:
            dtd.pair(agents.source_agent, agents.target_agent)
        agents.capture(source)
        copy_once(agents, source, copy, "off")  # warms the caches
        for number in range(rounds):
            for turn in range(len(ways)):
                way = ways[(number + turn) % len(ways)]
                found[way].append(copy_once(agents, source, copy, way))
            last = ", ".join(f"{way} {runs[-1][0]:.2f} s" for way, runs in found.items())
            harness.say(f"{case}: {last}")
    shutil.rmtree(source)
    off = [seconds for seconds, _ in found["off"]]
    for way, runs in found.items():
        times = [seconds for seconds, _ in runs]
        table.row(
            f"{case}, {mib} MiB, {way}",
            rounds,
            harness.median_text(times, 2),
            f"{statistics.median(a / b for a, b in zip(times, off, strict=True)):.2f}",
            f"{statistics.median(share for _, share in runs):.2f}",
        )


def measure(work: Path, quick: bool, cases: list[str], rounds: int, mib: int) -> None:
    table = harness.Table(
        "First copy of one file, median (range)",
        "what",
        "rounds",
        "seconds",
        "against off (median of pairs)",
        "on the line, of each byte",
    )
    ways = {"incompressible": ["off", "auto"], "text": ["off", "auto", "1"]}
    sizes = {"incompressible": 16 * mib, "text": mib, "mixed": mib}
    for case in cases:
        measure_case(work, case, sizes[case], rounds, ways.get(case, ["off", "auto"]), table)


if __name__ == "__main__":
    harness.run(__doc__, measure, cases=("incompressible", "text", "mixed"), rounds=(5, 1), mib=(96, 16))
