"""Reads one root of a bundle: its objects, each with its names and where its blocks are. Blocks."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from replicator.failover import bundle_format as form
from replicator.failover.bundle_format import Absent, BundleError, Content, Names, RootManifest, Saved


@dataclass
class Item:
    """An object as it was saved. `blocks`: (offset, length, digest, where it begins in the data) of each."""

    saved: Saved
    names: list[bytes] | None = None  # of a directory whose names were saved
    blocks: list[tuple[int, int, int, int]] = field(default_factory=list)


class RootReader:
    """Root number `number` of the bundle in `directory`. BundleError where it is damaged; OSError."""

    def __init__(self, directory: str, number: int, manifest: RootManifest) -> None:
        self.manifest = manifest
        with ExitStack() as stack:
            self._entries, self._data = (
                stack.enter_context(open(os.path.join(directory, f"{number}.{name}"), "rb"))
                for name in ("entries", "data")
            )
            self._closing = stack.pop_all()

    def close(self) -> None:
        self._closing.close()

    def __enter__(self) -> "RootReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def items(self) -> Iterator[Item | Absent]:
        """All of it, in order. May be called again."""
        self._entries.seek(0)
        at = 0
        current: Item | None = None
        for frame in form.frames(self._entries, self.manifest.entries_bytes):
            match frame:
                case Saved():
                    if current is not None:
                        yield current
                    current = Item(frame)
                case Names(names):
                    if current is None:
                        raise BundleError("the bundle is damaged: names of no directory")
                    current.names = [*(current.names or ()), *names]
                case Content(blocks):
                    if current is None:
                        raise BundleError("the bundle is damaged: content of no file")
                    for offset, length, digest in blocks:
                        current.blocks.append((offset, length, digest, at))
                        at += length
                case Absent():
                    if current is not None:
                        yield current
                        current = None
                    yield frame
        if current is not None:
            yield current

    def block(self, length: int, digest: int, at: int) -> bytes:
        """The data of a block, proven by its digest."""
        data = os.pread(self._data.fileno(), length, at)
        if len(data) != length or form.digest_of(data) != digest:
            raise BundleError(f"the bundle is damaged: its data at byte {at}")
        return data
