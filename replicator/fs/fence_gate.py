"""What the kernel binding does with requests while the fence of the mount is closed.

A change that has to wait is set aside, with its request, and done when the fence opens, in the order of
arrival; or fails when the fence says so. No thread and no lock waits with it: everything else is served.
What the kernel itself makes others wait for stays so: who looks up a name in a directory waits for a change
of a name in it, and `sync` for pages of a mapping.

A page of a shared mapping may have been dirtied while the fence was open, and come back when it is closed. It
was never told to be on a disk, so it is refused like any other change, and what the kernel has of it is
forgotten: otherwise programs would go on to read what is nowhere.
"""

import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from replicator.fences import WAITING, FenceMode
from replicator.fs.fence import BOOTTIME, ERRNO, MODE_AT, UNTIL_AT, Fence, clock_ns
from replicator.fs.kernel_binding import After, Failure, Header, Reply
from replicator.fs.kernel_protocol import HEADER_BYTES, OPERATIONS, WRITE_CACHE, Opcode

CHANGES: Final = frozenset(
    {
        *(Opcode.SETATTR, Opcode.SETXATTR, Opcode.REMOVEXATTR),
        *(Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK, Opcode.CREATE, Opcode.TMPFILE),
        *(Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME, Opcode.RENAME2),
        *(Opcode.WRITE, Opcode.FALLOCATE, Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64),
    }
)
"""An open for writing is none by itself: it fails where the changes to come would, and does not wait."""
_LETTING_GO: Final = frozenset(
    {
        *(Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.RELEASE, Opcode.RELEASEDIR, Opcode.FLUSH),
        *(Opcode.INIT, Opcode.DESTROY, Opcode.INTERRUPT),
    }
)
"""Never refused: what is forgotten or closed."""
# Numbers, as the kernel sends them: members of enumerations take longer.
_CHANGES: Final = frozenset(map(int, CHANGES))
_OPEN: Final = int(Opcode.OPEN)
_FAILS_ALL: Final = int(FenceMode.IO_ERROR)
_open_flags = OPERATIONS[Opcode.OPEN].layout.unpack_from
_write_fields = OPERATIONS[Opcode.WRITE].layout.unpack_from


class _Waiting(NamedTuple):
    header: Header
    request: bytes


class FenceGate:
    """In front of `handle`, of one mount. Under the lock."""

    def __init__(
        self,
        fence: Fence,
        handle: Callable[[Header], Reply],
        buffer: memoryview,
        forget_content: Callable[[int], None],
    ) -> None:
        """`buffer`: where the request is that is handled. `forget_content`: of a node, in any thread."""
        self._words = fence.words
        self._fence = fence
        self.inner = handle
        self._buffer = buffer
        self._forget_content = forget_content
        self._waiting: deque[_Waiting] = deque()

    @property
    def waiting(self) -> int:
        """Changes that are set aside."""
        return len(self._waiting)

    def replace(self, fence: Fence) -> None:
        """Obey another one from now on."""
        self._fence, self._words = fence, fence.words

    def handle(self, header: Header) -> Reply:
        opcode = header[1]
        if opcode in _CHANGES:
            if clock_ns(BOOTTIME) < self._words[UNTIL_AT] and not self._waiting:
                return self.inner(header)
            return self._set_aside(header) if self._waiting else self._decide(header)
        if opcode == _OPEN:
            return self._decide(header)
        if (
            self._words[MODE_AT] == _FAILS_ALL
            and opcode not in _LETTING_GO
            and self._fence.closed() is not None
        ):
            return Failure(errno.EIO)
        return self.inner(header)

    def next(self) -> Header | None:
        """The request that has waited longest, back in the buffer, if it is due: then call `resumed`."""
        if not self._waiting or self._fence.closed() in WAITING:
            return None
        header, request = self._waiting.popleft()
        self._buffer[: len(request)] = request
        return header

    def resumed(self, header: Header) -> Reply:
        return self._decide(header, again=True)

    def abandon(self) -> list[Header]:
        """Those that will not be done."""
        headers = [waiting.header for waiting in self._waiting]
        self._waiting.clear()
        return headers

    def _decide(self, header: Header, *, again: bool = False) -> Reply:
        mode = self._fence.closed()
        if mode is None:
            return self.inner(header)
        if header[1] == Opcode.OPEN:
            (flags, _) = _open_flags(self._buffer, HEADER_BYTES)
            truncates = bool(flags & os.O_TRUNC)
            writes = flags & os.O_ACCMODE != os.O_RDONLY or truncates
            if mode is not FenceMode.IO_ERROR and (not writes or (mode in WAITING and not truncates)):
                return self.inner(header)
        if mode in WAITING:
            return self._set_aside(header, first=again)
        refusal = Failure(ERRNO[mode])
        if header[1] == Opcode.WRITE and _write_fields(self._buffer, HEADER_BYTES)[3] & WRITE_CACHE:
            node_id = header[3]
            return After(refusal, lambda: self._forget_content(node_id))
        return refusal

    def _set_aside(self, header: Header, *, first: bool = False) -> Reply:
        """`first`: it was before all others, and the fence has just closed again."""
        waiting = _Waiting(header, bytes(self._buffer[: header[0]]))
        if first:
            self._waiting.appendleft(waiting)
        else:
            self._waiting.append(waiting)
        return None
