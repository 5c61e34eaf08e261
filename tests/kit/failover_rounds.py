"""One failover under a client, and what it cost; the way home.

with failover_lab(tmp_path) as lab:
    lab.protect()
    lab.monitor("--automatic", ...)
    outcome = fail_over(lab, "power")
"""

import time
from itertools import pairwise
from typing import NamedTuple

from kit.bulk import build_bulk, change_bulk
from kit.failover_lab import FailoverLab
from kit.ledger_client import Acknowledged, Answer, owners
from kit.patience import until

LOAD_S = 1.5  # of a client, before the source fails
AFTER_S = 0.5  # and at the target
BACK_TIMEOUT_S = 60.0


class Outcome(NamedTuple):
    """`lost`: acknowledged by the source, and not at the target. `gaps`: those of which a later one is there.
    `promised`: those of the lost that were acknowledged before the recovery point which the target tells.
    """

    gap_s: float  # from the failure to the first write that the target acknowledged
    acknowledged: int  # by the source
    lost: list[Answer]
    gaps: list[Answer]
    promised: list[Answer]
    recovery_point_s: float | None  # before the failure; None: the target tells none

    @property
    def shown(self) -> str:
        point = "none" if self.recovery_point_s is None else f"{self.recovery_point_s * 1000:.0f} ms before"
        return (
            f"{self.gap_s:.2f} s without service; {self.acknowledged} acknowledged, {len(self.lost)} lost,"
            f" {len(self.gaps)} gaps, {len(self.promised)} of before the recovery point ({point})"
        )


def fail_over(lab: FailoverLab, how: str) -> Outcome:
    """`how`: "cut" (the cable of the source) or "power"."""
    lab.serve(lab.source)
    with lab.client() as client:
        client.first_answer(0)
        time.sleep(LOAD_S)
        failed_s = lab.source.lose_power() if how == "power" else lab.cut(lab.source)
        answer = client.first_answer(failed_s, BACK_TIMEOUT_S)
        assert answer.host == lab.target.name
        time.sleep(AFTER_S)
        told = client.stop()
    return judged(told, failed_s, answer, lab.served_rows(), lab.recovery_point())


def judged(
    told: Acknowledged, failed_s: float, answer: Answer, rows: list[int], point: float | None
) -> Outcome:
    """`point`: seconds since the epoch of clocks; all hosts have the machine's clock."""
    before = told.before(failed_s)
    clock_s = time.time() - time.monotonic()
    lost = before.lost(rows)
    return Outcome(
        gap_s=answer.answered_s - failed_s,
        acknowledged=len(before.answers),
        lost=lost,
        gaps=before.gaps(rows),
        promised=[] if point is None else [one for one in lost if one.answered_s + clock_s <= point],
        recovery_point_s=None if point is None else failed_s + clock_s - point,
    )


class Returned(NamedTuple):
    """A failback. `lost`: of what either host acknowledged meanwhile."""

    gap_s: float  # the longest time between two acknowledged writes
    lost: list[Answer]
    owners: list[str]


def fail_back(lab: FailoverLab, order: str) -> Returned:
    """The service runs at the target, and is started at the source when the address is there. A reversal
    ("stay") leaves it where it is.
    """
    with lab.client() as client:
        client.first_answer(0)
        time.sleep(LOAD_S)
        began_s = time.monotonic()
        report = lab.fail_back(order)
        assert report["outcome"] == "completed", report
        ended_s = time.monotonic()
        until(lambda: [a for a in client.told.by(lab.source.name) if a.sent_s > ended_s], BACK_TIMEOUT_S)
        time.sleep(AFTER_S)
        told = client.stop()
    moments = [answer.answered_s for answer in told.answers]
    gaps = [latter - former for former, latter in pairwise(moments) if latter > began_s]
    return Returned(max(gaps), told.lost(lab.served_rows()), owners(told.answers))


class Homeward(NamedTuple):
    """A failover in whose time 1 % of 64 MiB was changed, and the failback. `sent_bytes`: by the target, on
    its cable, until the former source had everything; no client wrote meanwhile.
    """

    changed_bytes: int
    sent_bytes: int
    returned: Returned

    @property
    def ratio(self) -> float:
        return self.sent_bytes / self.changed_bytes

    @property
    def shown(self) -> str:
        returned = self.returned
        return (
            f"{self.ratio:.2f} bytes sent for each that was changed, {returned.gap_s:.2f} s without service,"
            f" {len(returned.lost)} lost"
        )


def there_and_back(lab: FailoverLab, order: str) -> Homeward:
    """Of a lab in which nothing is protected yet. Ends with equal trees, protected."""
    build_bulk(lab.source.root)
    lab.protect()
    lab.monitor()
    lab.serve(lab.source)
    with lab.client() as client:
        client.first_answer(0)
        client.first_answer(lab.cut(lab.source))
    sent = lab.target.host.sent_bytes
    changed = change_bulk(lab.target.root)
    lab.source.host.mend()
    lab.restore_is_required()  # until then what it writes waits
    lab.end_service(lab.source)
    lab.follow()
    lab.home_has_everything()
    sent = lab.target.host.sent_bytes - sent
    returned = fail_back(lab, order)
    lab.end_service(lab.source)
    lab.only_holder_becomes(lab.source.name)
    until(lab.is_exact, BACK_TIMEOUT_S, 0.2)
    lab.assert_equal()
    return Homeward(changed, sent, returned)
