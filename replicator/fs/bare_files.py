"""Which groups of files are known to have no replicated extended attributes, so that nobody has to ask again.

To list the attributes of a file costs as much as all else that is asked of it, and there are nearly never
any. Whatever gives a file an attribute, or an ACL, changes its ctime. So for a group of files (what is asked
of one directory at a time) one digest is kept of what proves that nothing has happened to them: inode and
ctime of each. It is found again as long as all of them are as they were; else they are asked, as ever.

What the proof rests on:

- Kernel and file system stamp every such change. True of `_STAMPING`, others are always asked. One mount of
  one boot: all that is changed in it goes through this kernel. The digest holds both, so what is restored
  from an image, made by a tool, or mounted at the same place is another file system.
- A later change has another ctime: a group is only learned when all its files were quiet before it was asked
  for longer than the file system's clock is coarse. If the clock was put back since, everything is forgotten.
- A digest is found that is not there with a probability of 2^-64.

The file holds `limits.BARE_GROUPS` digests at most, 8 bytes each, at places that they say themselves: a new
one takes the place of an older one. Several processes use it at a time, each with one call for a digest; what
is lost by that is asked again. What cannot be read or written is not known, that is all.
"""

import contextlib
import os
import time

import xxhash

from replicator import limits
from replicator.fs import calls
from replicator.fs.many_states import ManyStates, Mount, with_xattrs

_FORMAT = b"1"
"""Another one when other attributes are replicated: what was bare may have those."""

_STAMPING = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x01021994})  # ext4, XFS, btrfs, tmpfs: linux/magic.h
_WORD_BYTES = 8
_HEAD_BYTES = _WORD_BYTES  # when the last group was learned


class BareFiles:
    """Keeps its digests in the file `path`, for as long as the process lives."""

    def __init__(self, path: str, boot_id: str) -> None:
        self._seed = _FORMAT + boot_id.encode()
        self._stamping: dict[Mount, bool] = {}
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            self._descriptor = -1

    def with_xattrs(self, directory: int, states: ManyStates) -> list[int]:
        """As `many_states.with_xattrs` of the names of `states`, which were read just now. OSError."""
        now_ns = time.time_ns()
        digest = self._digest(directory, states)
        if digest is None:
            return with_xattrs(directory, states.names)
        place, word = _HEAD_BYTES + digest % limits.BARE_GROUPS * _WORD_BYTES, digest >> 64
        if self._read(0) > now_ns:
            self._forget()
        elif self._read(place) == word:
            return []
        found = with_xattrs(directory, states.names)
        if not found and not states.any_changed_since(now_ns - limits.FILE_CLOCK_STEP_NS):
            self._write(place, word)
            self._write(0, now_ns)
        return found

    def _digest(self, directory: int, states: ManyStates) -> int | None:
        """What is the same only as long as nothing has happened to any of them; None: nothing is."""
        mount = states.mount()
        if mount is None or self._descriptor < 0:
            return None
        stamps = self._stamping.get(mount)
        if stamps is None:
            inside = os.fstat(directory).st_dev == mount.device  # and no file that is a mount of its own
            stamps = self._stamping[mount] = inside and calls.file_system_type(directory) in _STAMPING
        return xxhash.xxh3_128_intdigest(b"".join([self._seed, states.changes()])) if stamps else None

    def _read(self, place: int) -> int:
        try:
            return int.from_bytes(os.pread(self._descriptor, _WORD_BYTES, place), "little")
        except OSError:
            return 0

    def _write(self, place: int, word: int) -> None:
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, word.to_bytes(_WORD_BYTES, "little"), place)

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
