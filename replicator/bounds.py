"""Types of values that come from another host, with what they may be. msgspec refuses all else while it
decodes, before a list or a text of that size is made.

Integers of msgpack have 64 bits. An offset or size in a file has 63 (loff_t), ids and modes have 32.
"""

from typing import Annotated

from msgspec import DecodeError, Meta

from replicator import limits

FILE_BYTES_MAX = 2**63 - 1  # loff_t

U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
I64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""A time in ns since the epoch."""
Count = Annotated[int, Meta(ge=0)]
"""A sequence, an index or a number of something: never negative, at most 64 bits."""
Size = Annotated[int, Meta(ge=0, le=FILE_BYTES_MAX)]
"""Bytes of a file, or an offset in it."""
Extent = tuple[Size, Size]
"""(offset, length) in bytes."""
Path = Annotated[bytes, Meta(max_length=limits.PATH_BYTES)]
"""Relative to the root of a journal. What its components may be is decided where it is resolved, see
`fs.beneath`.
"""
Name = Annotated[bytes, Meta(max_length=limits.NAME_BYTES)]
"""One component of a path."""
Id = Annotated[str, Meta(max_length=limits.ID_CHARS, pattern="^[ -~]*$")]
"""Uuid of an agent, a connection, a journal or a mirror, or a word of the protocol. It is logged, and stored
where there is room for so much.
"""


def one_line(text: str, chars_max: int = limits.SHOWN_CHARS) -> str:
    """What another host says, for logs and terminals: no control characters, and not too long."""
    if len(text) > chars_max:
        text = text[: chars_max - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


MALFORMED = (DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that do not say what they should: also for a text that is not UTF-8, and for
lists in lists in lists without end.
"""
