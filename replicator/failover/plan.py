"""A procedure of steps that ends one way or the other, whatever interrupts it: completed, or taken back.

One step **commits**: until it is done, a failure, a crash or somebody's second thought takes everything back,
in reverse order; once it is done, nothing is taken back any more, and what is missing is done after a crash.
A step that fails then **halts** the procedure: a person looks, and it is tried again.

Pure: what has happened is a row of notes, and `decide` says what comes next. `plan_journal.py` keeps the
notes, `plan_runner.py` does the steps. A note is durable before what it announces is begun, and before what
it reports is built on. So of a crash at any point only one thing is unknown: whether the one step that was
begun last took effect. Therefore both `do` and `undo` may come twice, and `undo` may find the work half done.

Where the other side of a procedure is **lost** for good nobody can tell any more whether the step that
commits took effect. A person says so, and it counts as done: of both answers it is the one that overrules
nobody.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec


class Outcome(StrEnum):
    COMPLETED = "completed"
    TAKEN_BACK = "taken back"


# --- notes ---


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag="opened"):
    """The first note. `kind` and `arguments` are all that is needed to build the steps again after a crash.

    `subject`: what it is about (a group's uuid). Times are seconds since the epoch of clocks.
    """

    uuid: str
    kind: str
    subject: str
    arguments: dict[str, Any]
    steps: tuple[str, ...]
    reason: str = ""
    forced: bool = False
    time: float


class Doing(msgspec.Struct, frozen=True, kw_only=True, tag="doing"):
    """About to be done. `about`: what `undo` will need, even if nothing else is known."""

    step: str
    about: Any = None
    time: float


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """`found`: by looking, after a crash in the middle."""

    step: str
    result: Any = None
    duration_s: float = 0.0
    said: tuple[str, ...] = ()
    found: bool = False


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    step: str
    reason: str
    duration_s: float = 0.0
    said: tuple[str, ...] = ()


class Undoing(msgspec.Struct, frozen=True, kw_only=True, tag="undoing"):
    step: str
    time: float


class Undone(msgspec.Struct, frozen=True, kw_only=True, tag="undone"):
    """`problem`: what could not be taken back; a person has to look."""

    step: str
    problem: str = ""
    duration_s: float = 0.0


class Restarted(msgspec.Struct, frozen=True, kw_only=True, tag="restarted"):
    """Whoever did the steps had ended in the middle, and is there again."""

    time: float


class Abandoned(msgspec.Struct, frozen=True, kw_only=True, tag="abandoned"):
    """Somebody does not want it any more. Without effect once the procedure is committed."""

    reason: str
    time: float


class Retried(msgspec.Struct, frozen=True, kw_only=True, tag="retried"):
    """A procedure that has halted goes on. `forced`: from here on."""

    forced: bool
    time: float


class Lost(msgspec.Struct, frozen=True, kw_only=True, tag="lost"):
    """A person says that the other side is gone for good: what only it could do, or say, is passed over."""

    time: float


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    outcome: Outcome
    time: float


Note = Opened | Doing | Done | Failed | Undoing | Undone | Restarted | Abandoned | Retried | Lost | Ended


# --- what comes next ---


class Shape(NamedTuple):
    """What the decision needs to know of a step.

    `commits`: see the module. `optional`: its failure after the commitment is noted, and does not halt.
    """

    name: str
    has_undo: bool = False
    commits: bool = False
    optional: bool = False


class Action(StrEnum):
    DO = "do"
    LOOK = "look"  # whether a step that commits took effect before a crash
    UNDO = "undo"
    HALT = "halt"  # until a person wants it tried again
    END = "end"


class Next(NamedTuple):
    """`step`: its name, for DO, LOOK, UNDO and HALT. `outcome`: for END."""

    action: Action
    step: str = ""
    outcome: Outcome | None = None
    reason: str = ""


class _At(StrEnum):
    """How far a step is."""

    IDLE = "idle"
    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"


def decide(shapes: Sequence[Shape], notes: Sequence[Note]) -> Next:
    """What comes next, of what has happened. The same notes lead to the same decision, also after a crash.

    `notes` without any: ValueError. A step that is not known any more (other software wrote the notes) is
    passed over; a person is told by whoever builds the steps.
    """
    if not notes:
        raise ValueError("a plan begins with a note")
    at = {shape.name: _At.IDLE for shape in shapes}
    reasons: dict[str, str] = {}
    committed = backwards = restarted = False
    why_back = ""
    commits = {shape.name for shape in shapes if shape.commits}
    optional = {shape.name for shape in shapes if shape.optional}
    for note in notes:
        match note:
            case Doing():
                at[note.step] = _At.BEGUN
            case Done():
                at[note.step] = _At.DONE
                committed = committed or note.step in commits
            case Failed():
                at[note.step], reasons[note.step] = _At.FAILED, note.reason
                if not committed:
                    backwards, why_back = True, f"{note.step}: {note.reason}"
            case Undone():
                at[note.step] = _At.UNDONE
            case Restarted() | Retried() | Lost():
                if committed:  # whatever failed is tried again
                    at = {name: _At.IDLE if how is _At.FAILED else how for name, how in at.items()}
                elif isinstance(note, Restarted):
                    restarted = True
            case Abandoned():
                if not committed:
                    backwards, why_back = True, note.reason
            case Ended():
                return Next(Action.END, outcome=note.outcome)
            case Opened() | Undoing():
                pass
    if not committed and (restarted or backwards):
        for shape in shapes:  # what was decided before the crash does not say what the crash left behind
            if shape.commits and at[shape.name] is _At.BEGUN:
                return Next(Action.LOOK, shape.name)
        return _back(shapes, at, why_back or "interrupted before anything was final")
    for shape in shapes:
        how = at[shape.name]
        if how is _At.FAILED and shape.name in optional:
            continue
        if how is _At.FAILED:
            return Next(Action.HALT, shape.name, reason=reasons[shape.name])
        if how is not _At.DONE:
            return Next(Action.DO, shape.name)
    return Next(Action.END, outcome=Outcome.COMPLETED)


def _back(shapes: Sequence[Shape], at: dict[str, _At], reason: str) -> Next:
    for shape in reversed(shapes):
        if shape.has_undo and at[shape.name] in (_At.BEGUN, _At.DONE, _At.FAILED):
            return Next(Action.UNDO, shape.name, reason=reason)
    return Next(Action.END, outcome=Outcome.TAKEN_BACK, reason=reason)


def is_committed(shapes: Sequence[Shape], notes: Sequence[Note]) -> bool:
    """Whether nothing is taken back any more."""
    commits = {shape.name for shape in shapes if shape.commits}
    return any(isinstance(note, Done) and note.step in commits for note in notes)


def is_in_doubt(shapes: Sequence[Shape], notes: Sequence[Note]) -> bool:
    """Whether the step that commits was begun, and nobody knows yet whether it took effect."""
    commits = {shape.name for shape in shapes if shape.commits}
    how = [note for note in notes if isinstance(note, Doing | Done | Failed) and note.step in commits]
    return bool(how) and isinstance(how[-1], Doing)


def is_lost(notes: Sequence[Note]) -> bool:
    """Whether the other side is."""
    return any(isinstance(note, Lost) for note in notes)
