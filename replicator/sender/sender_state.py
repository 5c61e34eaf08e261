"""home/source/<connection>.json: what a sender remembers over a restart of its process."""

import os

import msgspec

from replicator.queue.durable_file import read_if_there, replace_durably
from replicator.status import TransmitMode
from replicator.world import World


class SenderState(msgspec.Struct):
    """What is remembered."""

    transmit: TransmitMode = TransmitMode.STARTED
    transmit_reason: str = ""  # why it needs a person
    replicating: bool = True
    pending: bool = False  # something failed that only a mirror can repair
    mirror_wanted: str | None = None  # kind of a mirror that is not complete; None: none
    mirror_newer: bool = False  # its options
    mirror_checksum: bool = False
    mirror_exact: bool = False
    mirror_started_wall_ns: int | None = None
    mirror_paused: bool = False  # that one, by request or because recoveries wait for a person
    mirror_by_hand: bool = False  # a person let it go on: it is not held back any more
    settled: bool = False  # all that mirrors of the whole set have brought is durable on the target
    exact: bool = False  # so the target was when it was heard of last
    restored: str = ""  # the restore by which the source became equal to the copy, until the copy knows
    restored_last: str = ""  # the last one, which is taken up once
    boot_id: str = ""  # of the host when this process began
    target_uuid: str = ""  # the agent that had proved to be the target; "": none has
    alive_wall_ns: int = 0  # noted now and then: the host did not lose power before


class SenderStateFile:
    """The file of one connection, and its value in `state`."""

    def __init__(self, world: World, path: str, first: SenderState) -> None:
        """`first`: the state if there is no file yet. Raises msgspec.DecodeError if the file is damaged."""
        self._disk = world.disk
        self._path = path
        self._removed = False
        data = read_if_there(self._disk, path)
        self.state = first if data is None else msgspec.json.decode(data, type=SenderState)

    def save(self) -> None:
        """Replace the file durably: what is done next may rely on it, see `replace_durably`.

        Blocks, the event loop as well: rarely done (a note a minute, and a few for each run and command).
        """
        if self._removed:
            return
        self._disk.makedirs(os.path.dirname(self._path))
        replace_durably(self._disk, self._path, [msgspec.json.encode(self.state)])

    def remove(self) -> None:
        """Nothing is remembered any more, whatever is saved later."""
        self._removed = True
        try:
            self._disk.unlink(self._path)
        except FileNotFoundError:
            pass
