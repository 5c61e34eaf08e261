"""How procedures end, told to people: an event, and a line of the group's history."""

import time

from replicator import events
from replicator.agent.core import Core
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.procedure import FAILOVER
from replicator.failover_reports import Report, ReportOutcome


class Narration:
    """`Procedures` calls `ended`."""

    def __init__(self, core: Core, groups: Groups) -> None:
        self._core = core
        self._groups = groups

    async def ended(self, report: Report) -> None:
        """It has ended, or waits for a person."""
        add = self._core.events.add
        common = {"name": report.name or report.group, "kind": report.kind}
        match report.outcome:
            case ReportOutcome.COMPLETED:
                seconds = report.ended - report.began
                event = add(events.FAILOVER_COMPLETED, **common, seconds=seconds, text=summary(report))
            case ReportOutcome.TAKEN_BACK:
                event = add(events.FAILOVER_TAKEN_BACK, **common, text=report.text)
            case _:
                event = add(events.FAILOVER_HALTED, **common, text=report.text)
        monitor = self._groups.get(report.group)
        if monitor is not None:
            await self._groups.note(monitor, str(report.outcome).replace(" ", "-"), event.text)

    def warn(self, text: str) -> None:
        self._core.events.add(events.ADVICE, text=text)


def summary(report: Report) -> str:
    """What was taken over, and up to when."""
    parts = []
    if report.addresses:
        who = "this host" if report.kind == FAILOVER else "home"
        parts.append(f"{who} has {', '.join(report.addresses)}")
    if report.recovery_point is not None:
        at = time.strftime("%H:%M:%S", time.localtime(report.recovery_point))
        fraction = f"{report.recovery_point % 1:.3f}"[1:]
        parts.append(f"the last change that is in the copies is of {at}{fraction}")
    left = sum(copy.left_operations for copy in report.copies)
    if left:
        parts.append(f"{left} operations had arrived and are not applied")
    return "; ".join(parts) or f"epoch {report.epoch}"
