"""A checker: no connected copy that lacks something waits for a mirror that nobody begins, unless a person
or a setting wants it so.
"""

import trio

from replicator import limits
from replicator.sender.sender import Sender
from replicator.status import (
    ConnectionState,
    MirrorStatus,
    ReplicationStatus,
    TargetDataState,
    TargetStatus,
)

_SETTLES_S = 2 * limits.APPLY_GIVE_UP_S
"""What a target reports, and what follows from it here, takes no longer."""


async def nobody_is_left_behind(sender: Sender) -> None:
    """Raises AssertionError: its copy is."""
    with trio.move_on_after(_SETTLES_S):
        while is_left_behind(sender):  # noqa: ASYNC110 -- nobody tells
            await trio.sleep(0.1)
    assert not is_left_behind(sender), f"nobody mirrors it: {sender.status()}"


def is_left_behind(sender: Sender) -> bool:
    status, arguments = sender.status(), sender._arguments
    if status.target_data_state is not TargetDataState.MIRROR_REQUIRED:
        return False
    if status.mirror_status is not MirrorStatus.IDLE:
        return False
    if status.state is not ConnectionState.STARTED or status.target_status is not TargetStatus.OK:
        return False
    if status.replication_status not in (ReplicationStatus.READY, ReplicationStatus.REPLICATING):
        return False  # it says that a person has to look
    never_asked_for = arguments.options.mirror is None and arguments.restored is None
    last = sender.mirrors.last
    stopped_or_problem = last is not None and (last.stopped or last.problem_count > 0)
    return sender.mirrors.automatic and not never_asked_for and not stopped_or_problem
