"""Compression between frames and stream: what a PACKED frame carries. No I/O.

Each direction of a session is one zstd stream (RFC 8878), flushed at the end of each PACKED frame, so that a
later frame finds its like in the earlier ones. Another level begins another zstd frame in it. What comes from
the peer is unpacked into no more than it has to be: neither a frame's announced size nor the window of the
stream may make this side take memory beyond fixed limits.
"""

from typing import IO, Protocol, cast

import zstandard

from replicator import limits
from replicator.errors import RemoteProtocolError
from replicator.transmission import ZSTD_LEVELS


class _Stream(Protocol):
    def compress(self, data: bytes | bytearray | memoryview, /) -> bytes: ...
    def flush(self, mode: int = ..., /) -> bytes: ...


class Packer:
    """The sending end. After an error it is of no use."""

    def __init__(self) -> None:
        self._level = 0
        self._stream: _Stream | None = None

    def pack(self, parts: list[bytes | bytearray | memoryview], level: int) -> bytes:
        """These bytes, compressed behind all that was before. `level`: of the slider, from 1 on.

        Takes a while and lets other threads run; only one thread may be in here.
        """
        out: list[bytes] = []
        if self._stream is None or level != self._level:
            if self._stream is not None:
                out.append(self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH))
            self._stream, self._level = _compressor(level), level
        out += [self._stream.compress(part) for part in parts]
        out.append(self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        return b"".join(out)


_sampler = zstandard.ZstdCompressor(level=1)


def is_compressible(parts: list[bytes | bytearray | memoryview]) -> bool:
    """Whether samples of a frame become smaller by a tenth. In some 50 µs; for one thread."""
    longest = memoryview(max(parts, key=len))
    step = max(len(longest) // limits.AUTO_SAMPLES, 1)
    size = limits.AUTO_SAMPLE_PART_BYTES
    sample = b"".join(longest[offset : offset + size] for offset in range(0, len(longest), step))
    return len(_sampler.compress(sample)) < 0.9 * len(sample)


def _compressor(level: int) -> _Stream:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        ZSTD_LEVELS[level - 1],
        window_log=limits.PACKED_WINDOW_LOG,
        write_checksum=0,  # each frame inside has its own
        write_content_size=0,
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compressobj()


class _Exhausted(Exception):
    """There is less in a PACKED frame than it says."""


class _Feed:
    """What the decompressor reads from: one piece at a time."""

    def __init__(self) -> None:
        self.piece: memoryview | None = None

    def read(self, size: int = -1) -> memoryview:
        if self.piece is None:
            raise _Exhausted
        piece, self.piece = self.piece, None
        return piece


class Unpacker:
    """The receiving end."""

    def __init__(self) -> None:
        self._feed = _Feed()
        decompressor = zstandard.ZstdDecompressor(max_window_size=limits.UNPACKED_WINDOW_BYTES)
        self._reader = decompressor.stream_reader(cast(IO[bytes], self._feed), read_across_frames=True)

    def unpack(self, data: memoryview, size: int) -> bytes:
        """`size` bytes out of `data`, the next piece of the stream.

        Raises RemoteProtocolError, and is of no use afterwards. Never takes more than `size` bytes, and the
        window, whatever `data` is.
        """
        if not 0 < size <= limits.PACKED_PLAIN_BYTES:
            raise RemoteProtocolError(f"a PACKED frame of {size} bytes is too large")
        self._feed.piece = data
        try:
            plain: bytes = self._reader.read(size)
        except _Exhausted:
            raise RemoteProtocolError("a PACKED frame holds less than it says") from None
        except zstandard.ZstdError as error:
            raise RemoteProtocolError(f"a PACKED frame cannot be unpacked: {error}") from None
        if self._feed.piece is not None:  # what was announced came out of what the frame before had left
            raise RemoteProtocolError("a PACKED frame holds more than it says")
        return plain
