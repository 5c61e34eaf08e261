"""What a sender puts into its stream, and how much it was."""

from dataclasses import dataclass
from typing import NamedTuple

from replicator.net.engine import Data
from replicator.net.frames import Frame


class Shipment(NamedTuple):
    """A frame ready to be sent."""

    frame: Frame
    data: Data | None


@dataclass
class Totals:
    """What was sent, of all sessions of this sender."""

    sent_bytes: int = 0
    operations: int = 0
    mirror_bytes: int = 0
    last_path: bytes = b""
