"""A group comes home after a failover: what travels, and how long its clients wait.

Hosts are network namespaces on one switch, each with its own disk: an HTTP service with an SQLite database
whose client writes all the time, and 64 MiB of other files. The source is cut off, the target takes over, and
1 % of the blocks of these files are changed there, at random places. Then the source is back, follows, and
the group goes home, in each order; or it stays, and the former source protects it. Each round is a new pair
of hosts, and ends with equal trees.

- bytes sent: all that the target sent on its cable until the former source had everything, for each byte that
  was changed.
- without service: the longest time between two writes that the client got acknowledged, during the failback.
"""

from pathlib import Path

import harness
from kit.failover_lab import failover_lab
from kit.failover_rounds import Homeward, there_and_back

CASES = ("restore-first", "failback-first", "stay")


def one_round(directory: Path, order: str) -> Homeward:
    directory.mkdir()
    with failover_lab(directory, witness=True) as lab:
        return there_and_back(lab, order)


def measure(work: Path, quick: bool, cases: list[str], rounds: int) -> None:
    table = harness.Table(
        "Home after 1 % was changed at the target",
        "order",
        "rounds",
        "bytes sent / changed",
        "without service, s",
        "acknowledged writes lost",
    )
    found: dict[str, list[Homeward]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            found[case].append(one_round(work / f"{case}-{number}", case))
            harness.say(f"{case}: {found[case][-1].shown}")
    for case, rounds_ in found.items():
        table.row(
            case,
            len(rounds_),
            harness.median_text([one.ratio for one in rounds_], 2),
            harness.median_text([one.returned.gap_s for one in rounds_], 2),
            sum(len(one.returned.lost) for one in rounds_),
        )


if __name__ == "__main__":
    harness.run(__doc__, measure, cases=CASES, rounds=(5, 1))
