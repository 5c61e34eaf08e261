"""What a sender puts into its stream, and how much it was."""

from dataclasses import dataclass
from typing import NamedTuple

from replicator.net.engine import Data
from replicator.net.frames import Checks, Frame, PieceBatch


class Shipment(NamedTuple):
    """A frame ready to be sent."""

    frame: Frame
    data: Data | None


@dataclass
class Totals:
    """What was sent, of all sessions of this sender."""

    sent_bytes: int = 0  # before compression
    operations: int = 0
    mirror_bytes: int = 0  # of them
    saved_bytes: int = 0  # of `sent_bytes`, by compression
    saved_mirror_bytes: int = 0  # of `mirror_bytes`
    last_path: bytes = b""

    def shipped(self, shipment: Shipment, saved_bytes: int) -> None:
        """It was written. What was saved of its head does not count, as the head does not."""
        if not saved_bytes or shipment.data is None:
            return
        data = shipment.data
        size = sum(map(len, data)) if isinstance(data, list) else len(data)
        saved_bytes = min(saved_bytes, size)
        self.saved_bytes += saved_bytes
        if isinstance(shipment.frame, PieceBatch | Checks):
            self.saved_mirror_bytes += saved_bytes
