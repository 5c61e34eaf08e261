"""What an agent orders of the room of a drill, and what comes out. Values only."""

import msgspec

from replicator.failover.supervised import How


class Place(msgspec.Struct, frozen=True):
    """`copy`: a directory here; `at`: where the source has it."""

    copy: str
    at: str


class Command(msgspec.Struct, frozen=True, kw_only=True):
    name: str  # for the report
    command: tuple[str, ...]
    environment: dict[str, str]
    timeout_s: float


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """order.json. `commands` run one after the other, until one fails. `duplicate`: copy everything first, so
    that the copies can go on at once. `keep_s`: how long the room stays afterwards.
    """

    places: tuple[Place, ...]
    addresses: tuple[str, ...] = ()
    host_name: str = ""
    commands: tuple[Command, ...] = ()
    duplicate: bool = False
    keep_s: float = 0.0


class CommandEnd(msgspec.Struct, frozen=True, kw_only=True):
    """`code`: exit code, or number of a signal, see `supervised.How`."""

    name: str
    command: str
    how: str
    code: int
    duration_s: float
    output: str
    output_bytes: int
    reason: str = ""

    @property
    def succeeded(self) -> bool:
        return self.how == How.EXITED and self.code == 0


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What was written over the copies. `files`: made or changed, whatever kind of object; `data_bytes`: what
    that takes on the disk (a file that was changed was copied as a whole); `removed`: names.
    """

    files: int = 0
    data_bytes: int = 0
    removed: int = 0


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """result.json. `problem`: why the room could not be made; "": it was."""

    problem: str = ""
    ends: tuple[CommandEnd, ...] = ()
    changes: Changes = Changes()


ORDER, COPIED, READY, RESULT = "order.json", "copied.json", "ready.json", "result.json"
"""Files in the directory of a drill: what is to be done; all was copied; the room is there; its end."""
