"""Copies of large files that a target is building, part by part, without a name that anybody knows."""

import os
from dataclasses import dataclass

from replicator.fs.beneath import Root
from replicator.mirror.moved import OldCopy
from replicator.ops import NO_IDENTITY, Identity


@dataclass
class OpenTransfer:
    """A copy being built. `name` is that of a temporary file: in `kept_in`, where a successor of this process
    finds it (`begun.py`), or beside the file, where files without a name are not supported.
    """

    descriptor: int
    identity: Identity
    path: bytes
    name: bytes | None
    old: OldCopy | None = None  # what it is built from
    kept_in: Root | None = None
    offered: bool = False  # it was made elsewhere, for a sender that puts its content there

    def close(self) -> None:
        os.close(self.descriptor)
        if self.old is not None:
            self.old.close()


class OpenTransfers:
    """Copies being built: by number for parts, by identity for the records that change them meanwhile."""

    def __init__(self, kept: bytes) -> None:
        """`kept`: what names of files begin with that are kept over a kill, open or not."""
        self._kept = kept
        self._by_number: dict[int, OpenTransfer] = {}
        self._by_identity: dict[Identity, OpenTransfer] = {}

    def __bool__(self) -> bool:
        return bool(self._by_number)

    def get(self, identity: Identity) -> int | None:
        """The descriptor of the copy of that file, None if none is open."""
        transfer = self._by_identity.get(identity)
        return transfer.descriptor if transfer is not None else None

    def numbered(self, number: int) -> OpenTransfer | None:
        return self._by_number.get(number)

    def number_of(self, identity: Identity) -> int | None:
        transfer = self._by_identity.get(identity)
        if transfer is None:
            return None
        return next(number for number, other in self._by_number.items() if other is transfer)

    def add(self, number: int, transfer: OpenTransfer) -> None:
        self._by_number[number] = transfer
        if transfer.identity != NO_IDENTITY:
            self._by_identity[transfer.identity] = transfer

    def pop(self, number: int) -> OpenTransfer | None:
        transfer = self._by_number.pop(number, None)
        if transfer is not None and self._by_identity.get(transfer.identity) is transfer:
            del self._by_identity[transfer.identity]
        return transfer

    def numbers(self) -> list[int]:
        return list(self._by_number)

    def has_name(self, name: bytes) -> bool:
        """Whether it is one of those, which no source has."""
        open_ones = self._by_number.values()
        return name.startswith(self._kept) or any(transfer.name == name for transfer in open_ones)
