"""What the mounts of a host whose right to write has ended do with changes: values only.

`replicator.fs.fence` carries it out, `replicator.agent.failover.fencing` decides.
"""

from enum import IntEnum

import msgspec

from replicator.failovers import Lapse

FOREVER_NS = 2**63 - 1
"""An expiry that never comes."""


class FenceMode(IntEnum):
    """What holds once the expiry of a fence has passed. 0 is invalid. Stored in shared memory."""

    NONE = 1  # go on
    SUSPEND = 2  # changes wait
    READ_ONLY = 3  # changes fail with EROFS
    IO_ERROR = 4  # everything fails with EIO
    FROZEN = 5  # as SUSPEND, for a planned hand-over


WAITING = frozenset({FenceMode.SUSPEND, FenceMode.FROZEN})

MODE_OF = {
    Lapse.NONE: FenceMode.NONE,
    Lapse.SUSPEND: FenceMode.SUSPEND,
    Lapse.READ_ONLY: FenceMode.READ_ONLY,
    Lapse.IO_ERROR: FenceMode.IO_ERROR,
}

STRICTNESS = (
    FenceMode.NONE,
    FenceMode.SUSPEND,
    FenceMode.FROZEN,
    FenceMode.READ_ONLY,
    FenceMode.IO_ERROR,
)
"""Of several groups that a mount is in, the last of these holds."""


class FenceState(msgspec.Struct, frozen=True, kw_only=True):
    """Of one mount, as users see it."""

    is_open: bool  # changes are carried out
    mode: str  # what holds otherwise: the name of a FenceMode, in lower case with dashes
    left_s: float | None = None  # until the lease lapses; None: it does not lapse by itself
    reason: str = ""  # why it is closed, or what its lease depends on


def name_of(mode: FenceMode) -> str:
    """As users write it."""
    return mode.name.lower().replace("_", "-")
