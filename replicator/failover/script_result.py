"""What became of a script, and what that means for what is under way."""

from enum import StrEnum

import msgspec

from replicator.failover.supervised import How
from replicator.failovers import OnFailure, Script


class Outcome(StrEnum):
    DONE = "done"  # exit code 0
    FAILED = "failed"  # another one, or a signal
    TIMED_OUT = "timed out"
    STOPPED = "stopped"
    NOT_STARTED = "not started"  # it is not there, not executable, …
    LOST = "lost"  # its keeper was killed: nobody knows
    STARTED = "started"  # it is not waited for


class ScriptResult(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    path: str
    outcome: Outcome
    exit_code: int | None = None
    signal: int | None = None
    duration_s: float = 0.0
    output: str = ""  # the first and the last part
    output_bytes: int = 0  # printed in all
    reason: str = ""
    stop: bool = False  # what is under way has to stop: the script failed, and that is its policy

    @property
    def succeeded(self) -> bool:
        return self.outcome in (Outcome.DONE, Outcome.STARTED)

    def how(self) -> str:
        """In a few words."""
        if self.outcome is Outcome.FAILED:
            return f"exit code {self.exit_code}" if self.signal is None else f"killed by signal {self.signal}"
        return f"{self.outcome}: {self.reason}" if self.reason else str(self.outcome)


class Finished(msgspec.Struct, frozen=True):
    """result.json, as a keeper writes it: `supervised.Ended`."""

    how: How
    code: int
    duration_s: float
    output: str
    output_bytes: int
    reason: str


_OUTCOMES = {
    How.KILLED: Outcome.FAILED,
    How.TIMED_OUT: Outcome.TIMED_OUT,
    How.STOPPED: Outcome.STOPPED,
    How.NOT_STARTED: Outcome.NOT_STARTED,
}


def judge(kind: str, script: Script, end: Finished | None) -> ScriptResult:
    if end is None:
        outcome, reason = Outcome.LOST, "the process that kept it was killed"
        return ScriptResult(kind=kind, path=script.path, outcome=outcome, reason=reason, stop=_stops(script))
    exited = end.how is How.EXITED
    outcome = (Outcome.FAILED if end.code else Outcome.DONE) if exited else _OUTCOMES[end.how]
    return ScriptResult(
        kind=kind,
        path=script.path,
        outcome=outcome,
        exit_code=end.code if exited else None,
        signal=end.code if end.how is How.KILLED else None,
        duration_s=end.duration_s,
        output=end.output,
        output_bytes=end.output_bytes,
        reason=end.reason,
        stop=outcome is not Outcome.DONE and _stops(script),
    )


def _stops(script: Script) -> bool:
    return script.on_failure is OnFailure.STOP
