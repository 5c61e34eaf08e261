"""The source dies under an HTTP service with an SQLite database, whose client writes all the time; the target
takes the address and starts the service.

Hosts are network namespaces on one switch, each with its own disk. The target looks for a sign of life every
second and takes over after three that are missing, by itself; a third agent is the witness. The source's
cable is cut, or its host loses power: its processes and memory are gone, and what its disk had not synced.
Each round is a new pair of hosts.

- time without service: from the failure to the first write that a client got acknowledged by the target. The
  countdown is 3 s of it.
- lost: writes that the source had acknowledged and the target does not have. None may be older than the
  recovery point that the target tells, and none may be missing before one that is there.
"""

import statistics
from pathlib import Path

import harness
from kit.failover_lab import failover_lab
from kit.failover_rounds import Outcome, fail_over

CASES = ("cut", "power", "cut-fsync", "power-fsync")


def one_round(directory: Path, case: str, mode: str) -> Outcome:
    how, _, sync = case.partition("-")
    directory.mkdir()
    with failover_lab(directory, witness=True, mode=mode) as lab:
        lab.protect(synchronous=bool(sync))
        lab.monitor(automatic=True)
        return fail_over(lab, how)


def measure(work: Path, quick: bool, cases: list[str], rounds: int) -> None:
    table = harness.Table(
        "Source dies under a service, sign of life 1 s × 3",
        "how",
        "rounds",
        "without service, s",
        "acknowledged writes lost (median, most)",
        "older than the recovery point, or gaps",
    )
    found: dict[str, list[Outcome]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            mode = ("wal", "delete")[number % 2]
            found[case].append(one_round(work / f"{case}-{number}", case, mode))
            harness.say(f"{case} ({mode}): {found[case][-1].shown}")
    for case, outcomes in found.items():
        lost = [len(outcome.lost) for outcome in outcomes]
        table.row(
            case,
            len(outcomes),
            harness.median_text([outcome.gap_s for outcome in outcomes], 2),
            f"{statistics.median(lost):.0f}, {max(lost)}",
            sum(len(outcome.promised) + len(outcome.gaps) for outcome in outcomes),
        )


if __name__ == "__main__":
    harness.run(__doc__, measure, cases=CASES, rounds=(20, 1))
