"""What the sender of a restore says, as people see it, and whether it has brought everything. Pure."""

from typing import Any

import msgspec

from replicator.agent.state import Restore
from replicator.errors import ReplicatorError
from replicator.orphans import OrphanPhase, OrphanReport, described
from replicator.restores import Existing, RestoreView
from replicator.status import MirrorStatus, TargetDataState, TargetStatus, TransmitMode

_LEFT = "left as it is"  # of a file that is not newer in the copy: no problem


def how_it_goes(told: Any, removes: bool, existing: Existing) -> bool:
    """Whether everything is there. Raises ReplicatorError if it cannot be brought."""
    status = told["connection"]
    if status["transmit_mode"] == TransmitMode.ERROR:  # else it is tried again
        raise ReplicatorError(status["state_reason"])
    progress = status["mirror"]
    if status["mirror_status"] != MirrorStatus.IDLE or status["connected_since"] is None:
        return False
    if progress["problem_count"] and progress["kind"]:
        problems = progress["problems"]
        real = [p for p in problems if not p["reason"].endswith(_LEFT)]
        if real or progress["problem_count"] > len(problems) or existing is Existing.OVERWRITE:
            first = real[0] if real else {"path": "?", "reason": "see the sender's log"}
            raise ReplicatorError(
                f"{progress['problem_count']} files could not be restored, the first of them {first['path']}:"
                f" {first['reason']}; start it again when that is repaired"
            )
        return True
    if status["target_data_state"] != TargetDataState.OK:
        return False
    report = msgspec.convert(told["orphans"], OrphanReport)
    if removes and report.phase is OrphanPhase.HALTED:
        raise ReplicatorError(
            f"orphans: {report.reason}; all else is restored: start it again with --orphans-over-limit, or"
            " without --orphans"
        )
    return not (removes and report.at_work)


def view_of(restore: Restore, told: Any) -> RestoreView:
    """`told`: what the sender said last; None: nothing (yet)."""
    if not restore.is_at_work and restore.last is not None:
        return restore.last
    view = RestoreView(
        id=restore.id,
        uuid=restore.uuid,
        phase=restore.phase,
        reason=restore.reason,
        repset=restore.repset.name,
        source=f"{restore.host}:{restore.port}",
        roots=tuple(
            msgspec.structs.replace(root, replica=place)
            for root, place in zip(restore.roots, restore.places, strict=True)
        ),
        paths=restore.request.paths,
        started=restore.started,
        finished=restore.finished,
        resumed=restore.resumed,
    )
    if told is None:
        return view
    status = told["connection"]
    progress = status["mirror"]
    orphans = msgspec.convert(told["orphans"], OrphanReport)
    waits = status["target_status_reason"] if status["target_status"] == TargetStatus.RETRYING else ""
    return msgspec.structs.replace(
        view,
        reason=view.reason or (f"waits, and tries again: {waits}" if waits else ""),
        connected=status["connected_since"] is not None,
        paused=status["mirror_status"] == MirrorStatus.PAUSED,
        percent=progress["percent"],
        done_files=progress["done_files"],
        done_bytes=progress["done_bytes"],
        sent_bytes=status["sent_mirror_bytes"],
        skipped_bytes=progress["skipped_bytes"],
        rate_bytes_per_s=progress["rate_bytes_per_s"],
        orphans=described(orphans) if orphans.phase else "",
        problem_count=progress["problem_count"],
        problems=tuple(f"{p['path']}: {p['reason']}" for p in progress["problems"]),
    )
