"""The report of a procedure, of its notes. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from replicator.failover.plan import (
    Action,
    Doing,
    Done,
    Ended,
    Failed,
    Note,
    Opened,
    Outcome,
    Restarted,
    Retried,
    Shape,
    Undoing,
    Undone,
    decide,
    is_committed,
)
from replicator.failover_reports import Report, ReportOutcome, StepOutcome, StepReport
from replicator.failovers import CopyReport

DRAINED, TAKEN, EPOCH = "drained", "taken", "epoch"
"""Keys of what a step returns that belong to the report as a whole: rows of `CopyReport`, texts, a number."""


def report_of(shapes: Sequence[Shape], notes: Sequence[Note], *, name: str = "") -> Report:
    """How it goes, or went. `name`: of the monitor."""
    opened = notes[0]
    assert isinstance(opened, Opened)
    steps = {step: StepReport(name=step) for step in opened.steps}
    whole: dict[str, Any] = {}
    replace = msgspec.structs.replace
    interruptions = 0
    forced = opened.forced
    ended = 0.0
    for note in notes:
        match note:
            case Doing():
                steps[note.step] = replace(
                    steps[note.step], outcome=StepOutcome.RUNNING, began=note.time, text=""
                )
            case Done():
                steps[note.step] = replace(
                    steps[note.step],
                    outcome=StepOutcome.DONE,
                    duration_s=note.duration_s,
                    said=note.said,
                    found=note.found,
                )
                if isinstance(note.result, dict):
                    whole |= {k: v for k, v in note.result.items() if k in (DRAINED, TAKEN, EPOCH)}
            case Failed():
                steps[note.step] = replace(
                    steps[note.step],
                    outcome=StepOutcome.FAILED,
                    duration_s=note.duration_s,
                    text=note.reason,
                    said=note.said,
                )
            case Undoing():
                steps[note.step] = replace(steps[note.step], outcome=StepOutcome.UNDOING)
            case Undone():
                how = StepOutcome.UNDO_FAILED if note.problem else StepOutcome.UNDONE
                text = note.problem or steps[note.step].text
                steps[note.step] = replace(steps[note.step], outcome=how, text=text)
            case Restarted():
                interruptions += 1
            case Retried():
                forced = forced or note.forced
            case Ended():
                ended = note.time
    outcome, text = _outcome(shapes, notes)
    return Report(
        uuid=opened.uuid,
        kind=opened.kind,
        group=opened.subject,
        name=name,
        reason=opened.reason,
        forced=forced,
        began=opened.time,
        ended=ended,
        outcome=outcome,
        text=text,
        interruptions=interruptions,
        epoch=whole.get(EPOCH, 0) if is_committed(shapes, notes) else 0,
        copies=msgspec.convert(whole.get(DRAINED, ()), tuple[CopyReport, ...]),
        addresses=tuple(whole.get(TAKEN, ())),
        steps=tuple(steps.values()),
    )


def _outcome(shapes: Sequence[Shape], notes: Sequence[Note]) -> tuple[ReportOutcome, str]:
    what = decide(shapes, notes)
    if isinstance(notes[-1], Ended):
        before = decide(shapes, notes[:-1])
        completed = what.outcome is Outcome.COMPLETED
        return ReportOutcome.COMPLETED if completed else ReportOutcome.TAKEN_BACK, before.reason
    if what.action is Action.HALT:
        return ReportOutcome.HALTED, f"{what.step}: {what.reason}"
    back = what.action is Action.UNDO or (what.action is Action.END and not is_committed(shapes, notes))
    return (ReportOutcome.TAKING_BACK, what.reason) if back else (ReportOutcome.RUNNING, "")
