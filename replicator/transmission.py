"""What may be asked of a transmission: how well it is compressed (CP-*), and how much of a line it may take
(TX-05). Tables and pure functions.

What people type is kept as they typed it; `parse_limit` and `parse_compression` say what it means, and
nothing but that acts.
"""

import math
import re

import msgspec

from replicator import limits
from replicator.errors import UsageError

OFF, AUTO = "off", "auto"
UNLIMITED = "unlimited"

ZSTD_LEVELS = (1, 3, 5, 7, 9, 12, 15, 17, 19)
"""zstd's own level for each position of the slider, from 1 on. 0 is off."""
MAXIMUM = len(ZSTD_LEVELS)

LINKS_BIT_PER_S = {
    "modem": 56_000,
    "ISDN": 64_000,
    "ISDN 128": 128_000,
    "256 kbit/s": 256_000,
    "512 kbit/s": 512_000,
    "768 kbit/s": 768_000,
    "T1": 1_544_000,
    "E1": 2_048_000,
    "10 Mbit Ethernet": 10_000_000,
    "E3": 34_368_000,
    "T3": 44_736_000,
    "100 Mbit Ethernet": 100_000_000,
    "OC-3": 155_520_000,
    "OC-12": 622_080_000,
    "1 Gbit Ethernet": 1_000_000_000,
    "10 Gbit Ethernet": 10_000_000_000,
}
"""Links whose percentages may be asked for; decimal units, as lines are sold."""


class Limit(msgspec.Struct, frozen=True):
    """At most so many bytes in so many seconds: `seconds` 0 means `bytes` per second, spread evenly; else
    they may go at once, and the rest of the seconds is waited out, as DTCL's LIMIT BANDWIDTH does.
    """

    bytes: int
    seconds: float = 0.0

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / (self.seconds or 1.0)


class TransmissionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of a connection, or of a target and with that of all connections to it. Texts as people typed them."""

    compression: str = ""  # off, auto, 1 to MAXIMUM; "": not said here
    bandwidth: str = ""  # see `parse_limit`; "": not limited here
    limiting: bool = True  # TX-04: else `bandwidth` is kept, and does not act


class TransmissionOrders(msgspec.Struct, frozen=True, kw_only=True):
    """What a sender is told: what holds for its connection, and what for all of the target."""

    compression: str = OFF
    own: TransmissionSettings = TransmissionSettings()
    target: TransmissionSettings = TransmissionSettings()
    target_page: str = ""  # shared memory of the bucket of all connections to the target; "": none


class TransmissionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a connection transmits now."""

    compression: str = OFF  # as it was asked for
    level: int = 0  # of the slider, now; 0: what is sent now is not compressed
    ratio: float = 1.0  # bytes before compression for each byte after it, of what was sent lately
    limit: str = ""  # as it was asked for: of the connection, or of its target; "": none
    limit_bytes_per_s: float | None = None  # what acts now; None: nothing
    peer_understands: bool | None = None  # whether the target can take it; None: no session


def orders(own: TransmissionSettings, target: TransmissionSettings, page: str) -> TransmissionOrders:
    """The connection's own word on compression goes before its target's; limits hold both."""
    return TransmissionOrders(
        compression=own.compression or target.compression or OFF, own=own, target=target, target_page=page
    )


def changed(
    settings: TransmissionSettings, compression: str | None, bandwidth: str | None
) -> TransmissionSettings:
    """With these texts; "": not said any more, None: as it was. Raises UsageError."""
    if compression is not None:
        spelling = parse_compression(compression) if compression.strip() else ""
        settings = msgspec.structs.replace(settings, compression=spelling)
    if bandwidth is not None:
        text = " ".join(bandwidth.split())
        settings = msgspec.structs.replace(settings, bandwidth=text if parse_limit(text) is not None else "")
    return settings


def parse_compression(text: str) -> str:
    """The same in its one spelling: off, auto, or a number. Raises UsageError."""
    word = text.strip().lower()
    word = {"0": OFF, "minimum": "1", "maximum": str(MAXIMUM)}.get(word, word)
    if word in (OFF, AUTO) or (word.isascii() and word.isdigit() and 1 <= int(word) <= MAXIMUM):
        return word if not word.isdigit() else str(int(word))
    raise UsageError(f"compression {text!r}: must be off, auto, or a level from 1 to {MAXIMUM}")


_UNITS = {
    "": 1.0,
    "b/s": 1.0,
    "kb/s": 1e3,
    "mb/s": 1e6,
    "gb/s": 1e9,
    "kib/s": 1024.0,
    "mib/s": 1024.0**2,
    "gib/s": 1024.0**3,
    "bit/s": 1 / 8,
    "kbit/s": 1e3 / 8,
    "mbit/s": 1e6 / 8,
    "gbit/s": 1e9 / 8,
}
"""Bytes per second of each, in small letters."""
_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,6})?)"
_RATE = re.compile(_NUMBER + r"\s*([A-Za-z]*(?:/s)?)")
_PERCENT = re.compile(_NUMBER + r"\s*%\s*(?:of\s+)?(\S.*)")
_BURST = re.compile(r"([0-9]{1,15})\s*,\s*" + _NUMBER)


def parse_limit(text: str) -> Limit | None:
    """What a limit means: "19300" (bytes per second), "1.5 MB/s", "10 Mbit/s", "10 % of T1", "25 % of 50
    Mbit/s", "19300, 5" (bytes, seconds); None for "unlimited" and for no text at all. Raises UsageError.

    Rounded down to whole bytes: a line is never given more than was said.
    """
    words = " ".join(text.split())
    if words.lower() in ("", UNLIMITED, "none"):
        return None
    if match := _BURST.fullmatch(words):
        limit = Limit(int(match[1]), float(match[2]))
        if not 0 < limit.seconds <= limits.BURST_MAX_S:
            raise UsageError(f"limit {text!r}: seconds must be more than 0, {limits.BURST_MAX_S:.0f} at most")
    elif match := _PERCENT.fullmatch(words):
        percent = float(match[1])
        if not 0 < percent <= 100:
            raise UsageError(f"limit {text!r}: must be more than 0 and at most 100 %")
        limit = Limit(_whole(_link(match[2]) * percent / 100))
    elif (rate := _rate(words)) is not None:
        limit = Limit(_whole(rate))
    else:
        raise UsageError(
            f'limit {text!r}: write it as "10 MB/s", "10 % of T1", "19300, 5" (bytes, seconds), or unlimited'
        )
    if limit.bytes < 1 or not limit.bytes_per_s >= limits.LIMIT_MIN_BYTES_PER_S:
        raise UsageError(f"limit {text!r}: must be at least {limits.LIMIT_MIN_BYTES_PER_S} bytes per second")
    return limit


def _whole(bytes_per_s: float) -> int:
    return math.floor(round(bytes_per_s, 6))


def _rate(words: str) -> float | None:
    """Bytes per second of "10 MB/s"; None: that is no rate. Raises UsageError where it may be bits or bytes:
    to guess would be wrong by a factor of 8.
    """
    match = _RATE.fullmatch(words)
    if match is None:
        return None
    unit = match[2]
    if unit.endswith(("b/s", "bps", "Bps")):
        power = "k" if unit[0] in "kK" else unit[:-3][:1].upper()
        count = match[1]
        raise UsageError(f"{words!r}: bytes or bits? Write {count} {power}B/s or {count} {power}bit/s")
    factor = _UNITS.get(unit.lower())
    return None if factor is None else float(match[1]) * factor


def _link(name: str) -> float:
    """Bytes per second of one of the links, or of a rate as a line is sold with. Raises UsageError."""
    known = {_plain(link): bits / 8 for link, bits in LINKS_BIT_PER_S.items()}
    rate = known.get(_plain(name))
    if rate is None:
        rate = _rate(name)
    if rate is None:
        raise UsageError(
            f'link {name!r}: write a rate, as "50 Mbit/s", or one of {", ".join(LINKS_BIT_PER_S)}'
        )
    return rate


def _plain(name: str) -> str:
    return "".join(name.lower().split()).replace("-", "")
