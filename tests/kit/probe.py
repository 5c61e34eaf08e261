"""How long applications wait: a program that writes a little every moment, and tells when that took long.

    python -m kit.probe FILE    # until SIGTERM; prints "<began> <took>" in seconds of CLOCK_MONOTONIC

That clock is the same for all processes, so `stalls` can say which of the waits belong to what a test did.
"""

import os
import signal
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

TOLD_FROM_S = 0.005
PAUSE_S = 0.002


def stalls(output: str, moments: Sequence[float]) -> list[float]:
    """The longest wait after each of `moments` (ascending) and before the next, in seconds; 0: none."""
    waits = [(float(began), float(took)) for began, took in map(str.split, output.splitlines())]
    return [
        max((took for began, took in waits if began + took > moment and began < following), default=0.0)
        for moment, following in pairwise([*moments, float("inf")])
    ]


def told(stalls_s: Iterable[float]) -> str:
    found = [stall_s * 1000 for stall_s in stalls_s]
    return f"applications waited {statistics.median(found):.0f} ms (median), at most {max(found):.0f} ms"


def main() -> None:
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
    number = 0
    while not stopping:
        number += 1
        began = time.monotonic()
        assert os.pwrite(descriptor, b"%015d\n" % number, 0) == 16
        took = time.monotonic() - began
        if took >= TOLD_FROM_S:
            os.write(1, f"{began:.6f} {took:.6f}\n".encode())
        time.sleep(PAUSE_S)
    os.close(descriptor)


if __name__ == "__main__":
    main()
