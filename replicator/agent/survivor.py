"""Which side survives when both were changed (DC-24…DC-26): what may be chosen, and what would be lost. Pure.

A copy that was taken into use on its host and a source that goes on are two truths. Nothing is sent until a
person has chosen one by name.
"""

from typing import NamedTuple

from replicator.status import TargetDataState

SOURCE, TARGET = "source", "target"
SURVIVORS = (SOURCE, TARGET)


class Sides(NamedTuple):
    """What is known of both."""

    repset: str
    target: str
    data_state: TargetDataState
    queued_ops: int  # made on the source, and not on the target


class Choice(NamedTuple):
    """May it be done, and why not, or what it means."""

    allowed: bool
    text: str


def choose(sides: Sides, survivor: str, confirm: str) -> Choice:
    """`survivor`: one of `SURVIVORS`; `confirm`: the name of the set, said by whoever knows what is lost."""
    if sides.data_state is not TargetDataState.RESTORE_REQUIRED:
        return Choice(False, f"there is nothing to choose: {sides.target} has not taken its copy into use")
    if survivor == TARGET:
        return Choice(
            False,
            f"everything changed on the source since then would be lost ({sides.queued_ops} operations are"
            f" queued): restore it from the copy for that (dtctl restore start {sides.repset})",
        )
    lost = f"everything changed in the copy on {sides.target} since it was taken into use is lost"
    if confirm != sides.repset:
        return Choice(
            False, f"{lost}, and the whole source is sent: confirm that with --confirm {sides.repset}"
        )
    return Choice(True, lost)
