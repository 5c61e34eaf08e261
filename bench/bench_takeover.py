"""A target takes over a copy of so many files, with the address of its source: when programs can write, when
clients can come, and where the time goes.

Source and target are network namespaces on one switch, with one disk. The copy is complete and on the disk,
then all processes of the source are killed, and a failover is asked for. Counted from its start, by the
target's events:

- opened: the copy is mounted, captured, and tracked for the way home
- address: clients find this host
- all: everybody who can be reached was told
"""

import subprocess
import time
from pathlib import Path
from typing import Any

import harness
from kit import dtd
from kit.hosts import lan
from kit.patience import until

BEGUN, OPENED, ADDRESS, COMPLETED = 101, 9370, 9320, 9325
FILES_PER_DIRECTORY = 1000
SETTLE_S = 3.0


def one_round(work: Path, files: int) -> dict[str, float]:
    """Seconds, by what; those of steps by their names."""
    work.mkdir()
    disk = harness.disk(work / "disk", 2 * harness.GIB + files * 20_000, inodes=files * 3 + 10_000)
    with disk as store, lan("source", "target") as hosts:
        source, copy = store.path / "source", store.path / "copy"
        harness.make_small_files(source, files, per_directory=FILES_PER_DIRECTORY)
        with dtd.running(work, "source", "target", hosts=hosts) as (alpha, beta):
            alpha.json("protect", source, f"{beta.address}:{copy}", "--wait")
            virtual = f"{hosts[0].address.rpartition('.')[0]}.200/24"
            options = ("--address", virtual, "--even-if-silent", "--interval", "600")
            beta.json("failover", "add", alpha.address, "--name", "bench", *options)
            until(lambda: bool(alpha.json("failover", "guards")))
            time.sleep(SETTLE_S)
            store.sync()
            alpha.kill_all()
            done = beta.dtctl("failover", "now", "bench", "--force", "--wait")
            if done.code:
                raise harness.BenchError(done.err)
            (copy / "written").write_text("by a program")
            return timeline(beta)


def timeline(agent: dtd.Agent) -> dict[str, float]:
    at: dict[int, float] = {}
    for event in agent.json("events"):
        at.setdefault(event["id"], event["time"])
    found = {
        "opened": at[OPENED] - at[BEGUN],
        "address": at[ADDRESS] - at[BEGUN],
        "all": at[COMPLETED] - at[BEGUN],
    }
    steps: list[dict[str, Any]] = agent.json("failover", "reports", "bench")[-1]["steps"]
    return found | {step["name"]: step["duration_s"] or 0.0 for step in steps}


def measure(work: Path, quick: bool, rounds: int, files: int) -> None:
    counts = sorted({100, files})
    found: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for number in range(rounds):
        for count in counts:
            found[count].append(one_round(work / f"{count}-{number}", count))
            shown = ", ".join(f"{name} {seconds:.3f}" for name, seconds in found[count][-1].items())
            harness.say(f"{count:,} files: {shown}")
            subprocess.run(["rm", "-rf", work / f"{count}-{number}"], check=True)
    columns = ("rounds", "opened, s", "address, s", "all, s", "drain, s")
    table = harness.Table("A copy is taken over", "files", *columns)
    for count, values in found.items():
        names = ("opened", "address", "all", "drain")
        table.row(f"{count:,}", len(values), *(harness.median_text([v[n] for v in values], 3) for n in names))


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=(5, 1), files=(100_000, 1_000))
