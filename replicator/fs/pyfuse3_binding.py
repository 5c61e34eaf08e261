"""pyfuse3 in front of `Passthrough`: translates requests and replies, decides nothing.

Handlers of mutations have no checkpoint, so they run one after another in the order of the kernel's requests.
What may wait for a disk (syncs, cold reads, statfs) runs in threads meanwhile. One guard turns whatever a
handler raises into an errno: anything but a FUSEError would end the mount.
"""

import errno
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from replicator import limits
from replicator.fences import WAITING, FenceMode
from replicator.fs.credentials import Caller
from replicator.fs.fence import ERRNO, Fence
from replicator.fs.passthrough import Entry, Passthrough
from replicator.fs.tickets import Synchrony, Ticket

logger = logging.getLogger(__name__)

_CAPABILITY = b"security.capability"
_MAX_TASKS = 1000  # requests in flight: many may wait for a thread, and still others be answered
_NO_WAIT_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
# What a fence holds up (see `fence_gate`, which says the same of requests), and what it never does.
_CHANGES = frozenset(
    [
        *("setattr", "setxattr", "removexattr", "mknod", "mkdir", "symlink", "link", "create"),
        *("unlink", "rmdir", "rename", "write"),
    ]
)
_LETTING_GO = frozenset(["forget", "release", "releasedir", "flush"])

_P = ParamSpec("_P")
_T = TypeVar("_T")
_no_attribute = FUSEError(errno.ENODATA)


def _guarded(
    function: Callable[Concatenate["Binding", _P], _T],
) -> Callable[Concatenate["Binding", _P], Coroutine[Any, Any, _T]]:
    """A handler without checkpoint."""
    name = function.__name__

    @functools.wraps(function)
    async def handler(self: "Binding", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            if self.fence is not None:
                await self.pass_fence(name, args)
            if self.of_all:
                return await self.received(function, *args, **kwargs)
            return function(self, *args, **kwargs)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        except FUSEError:
            raise
        except Exception:
            raise _bug(name) from None

    return handler


def _guarded_async(
    function: Callable[Concatenate["Binding", _P], Awaitable[_T]],
) -> Callable[Concatenate["Binding", _P], Coroutine[Any, Any, _T]]:
    """A handler that waits."""
    name: str = getattr(function, "__name__", "?")

    @functools.wraps(function)
    async def handler(self: "Binding", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            if self.fence is not None:
                await self.pass_fence(name, args)
            return await function(self, *args, **kwargs)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        except FUSEError:
            raise
        except Exception:
            raise _bug(name) from None

    return handler


def _bug(operation: str) -> FUSEError:
    logger.exception("a bug in %s; the application got EIO", operation)
    return FUSEError(errno.EIO)


def _caller(context: RequestContext) -> Caller:
    return Caller(context.uid, context.gid, context.pid, context.umask)


def _attributes(node_id: int, state: os.stat_result) -> EntryAttributes:
    attributes = EntryAttributes()
    attributes.st_ino = node_id
    attributes.generation = 0
    attributes.entry_timeout = attributes.attr_timeout = limits.ATTRIBUTE_TIMEOUT_S
    attributes.st_mode = state.st_mode
    attributes.st_nlink = state.st_nlink
    attributes.st_uid = state.st_uid
    attributes.st_gid = state.st_gid
    attributes.st_rdev = state.st_rdev
    attributes.st_size = state.st_size
    attributes.st_blksize = state.st_blksize
    attributes.st_blocks = state.st_blocks
    attributes.st_atime_ns = state.st_atime_ns
    attributes.st_mtime_ns = state.st_mtime_ns
    attributes.st_ctime_ns = state.st_ctime_ns
    return attributes


async def nothing_to_cover() -> None:
    """For a mount without activity log."""


class Binding(pyfuse3.Operations):
    """Handlers for one mount. The process can serve only one: pyfuse3 keeps its session in globals."""

    enable_writeback_cache = False  # it would reorder writes of different files
    enable_acl = True
    supports_dot_lookup = False

    def __init__(
        self,
        passthrough: Passthrough,
        covered: Callable[[], Awaitable[None]] = nothing_to_cover,
        synchrony: Synchrony | None = None,
        fence: Fence | None = None,
    ) -> None:
        """`covered` returns when programs may be told that something is durable. `synchrony`: which replies
        wait for targets. `fence`: what changes obey.
        """
        super().__init__()
        self._fs = passthrough
        self._covered = covered
        self._synchrony = synchrony
        self.fence = fence
        self._answered = trio.Event()
        self._threads = trio.CapacityLimiter(limits.CAPTURE_THREADS)
        self._reads_without_waiting = True  # until the storage below refuses RWF_NOWAIT

    async def _in_thread(self, function: Callable[..., _T], *args: object) -> _T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._threads)

    # --- fenced mounts ---

    async def pass_fence(self, name: str, arguments: tuple[object, ...]) -> None:
        """Return when this may be done. No checkpoint while the fence is open. Raises OSError."""
        while self.fence is not None and (mode := self.fence.closed()) is not None:
            if mode is FenceMode.IO_ERROR and name not in _LETTING_GO:
                raise OSError(errno.EIO, "fenced")
            if name == "open":
                flags = arguments[1]
                assert isinstance(flags, int)
                truncates = bool(flags & os.O_TRUNC)
                writes = flags & os.O_ACCMODE != os.O_RDONLY or truncates
                if not writes or (mode in WAITING and not truncates):
                    return
            elif name not in _CHANGES:
                return
            if mode not in WAITING:
                if name == "write":  # it may be a page of a mapping: see `fence_gate`
                    handle_id = arguments[0]
                    assert isinstance(handle_id, int)
                    trio.lowlevel.spawn_system_task(self._forget_content, self._fs.node_of(handle_id))
                raise OSError(errno.EROFS, "fenced")
            await trio.sleep(limits.FENCE_LOOK_MS / 1000)

    async def _forget_content(self, node_id: int) -> None:
        with suppress(OSError, RuntimeError):  # the kernel has forgotten it, or all of the mount
            await self._in_thread(pyfuse3.invalidate_inode, node_id)

    async def _promise(self) -> None:
        """Return when programs may be told what targets have, or lack. Raises OSError."""
        while self.fence is not None and (mode := self.fence.closed()) is not None:
            if mode not in WAITING:
                raise OSError(ERRNO[mode], "fenced")
            await trio.sleep(limits.FENCE_LOOK_MS / 1000)

    # --- synchronous mounts ---

    @property
    def of_all(self) -> bool:
        """Whether each change waits until its targets have received it."""
        return self._synchrony is not None and self._synchrony.of_all

    def answered(self) -> None:
        """Targets may have more than before, or count no longer."""
        self._answered.set()
        self._answered = trio.Event()

    def _want(self, handle_id: int) -> Ticket | None:
        if self._synchrony is None or not self._synchrony.is_on:
            return None
        path = self._fs.handle_path(handle_id)
        return self._synchrony.want(path, durable=True) if path is not None else None

    async def _has(self, ticket: Ticket | None) -> None:
        """Return when the targets have it."""
        if ticket is None:
            return
        while not ticket.is_met():
            await self._answered.wait()
        await self._promise()

    async def received(
        self, function: Callable[Concatenate["Binding", _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call it, and wait until the targets have received what it changed."""
        assert self._synchrony is not None
        before = self._fs.head_sequence
        result = function(self, *args, **kwargs)
        if self._fs.head_sequence != before:
            await self._has(self._synchrony.want(None, durable=False))
        return result

    # --- nodes ---

    @_guarded
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            return _attributes(*self._fs.lookup(parent_inode, name))
        except FileNotFoundError:
            absent = EntryAttributes()  # inode 0: the kernel remembers that there is nothing
            absent.st_ino = 0
            absent.entry_timeout = limits.ATTRIBUTE_TIMEOUT_S
            return absent

    @_guarded
    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._fs.forget(inode_list)

    @_guarded
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return _attributes(inode, self._fs.getattr(inode))

    @_guarded
    def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        state = self._fs.setattr(
            inode,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            handle_id=fh,
        )
        return _attributes(inode, state)

    @_guarded
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._fs.readlink(inode)

    # --- names ---

    @_guarded
    def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return _attributes(*self._fs.mknod(parent_inode, name, mode, rdev, _caller(ctx)))

    @_guarded
    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return _attributes(*self._fs.mkdir(parent_inode, name, mode, _caller(ctx)))

    @_guarded
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return _attributes(*self._fs.symlink(parent_inode, name, target, _caller(ctx)))

    @_guarded
    def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        return _attributes(*self._fs.link(inode, new_parent_inode, new_name))

    @_guarded
    def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._fs.unlink(parent_inode, name)

    @_guarded
    def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._fs.rmdir(parent_inode, name)

    @_guarded
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self._fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    # --- files ---

    @_guarded
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        entry: Entry
        handle_id, entry = self._fs.create(parent_inode, name, mode, flags, _caller(ctx))
        return _file_info(handle_id), _attributes(*entry)

    @_guarded
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return _file_info(self._fs.open(inode, flags, _caller(ctx)))

    @_guarded_async
    async def read(self, fh: int, off: int, size: int) -> bytes:
        if not self._reads_without_waiting:
            return await self._in_thread(self._fs.read, fh, off, size)
        buffer = bytearray(size)
        view = memoryview(buffer)
        try:
            count = os.preadv(fh, [buffer], off, os.RWF_NOWAIT)
        except BlockingIOError:
            return await self._in_thread(self._fs.read, fh, off, size)
        except OSError as error:
            if error.errno not in _NO_WAIT_UNSUPPORTED:
                raise
            self._reads_without_waiting = False
            return await self._in_thread(self._fs.read, fh, off, size)
        if count < size and off + count < os.fstat(fh).st_size:  # the rest is not in memory
            rest = await self._in_thread(self._fs.read, fh, off + count, size - count)
            return view[:count].tobytes() + rest
        return view[:count]  # type: ignore[return-value]  # pyfuse3 takes any buffer, and this is no copy

    @_guarded_async
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        count = self._fs.write(fh, off, buf)
        if self._fs.is_synchronous(fh):
            ticket = self._want(fh)
            await self._covered()
            await self._in_thread(self._fs.fsync, fh, True)
            await self._has(ticket)
        elif self.of_all:
            assert self._synchrony is not None
            await self._has(self._synchrony.want(None, durable=False))
        return count

    @_guarded
    def flush(self, fh: int) -> None:
        self._fs.flush(fh)

    @_guarded
    def release(self, fh: int) -> None:
        self._fs.release(fh)

    @_guarded_async
    async def fsync(self, fh: int, datasync: bool) -> None:
        ticket = self._want(fh)
        await self._covered()
        await self._in_thread(self._fs.fsync, fh, datasync)
        await self._has(ticket)

    # --- directories ---

    @_guarded
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self._fs.opendir(inode)

    @_guarded
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        for entry in self._fs.readdir(fh, start_id):
            attributes = _attributes(entry.node_id, entry.state)
            if not pyfuse3.readdir_reply(token, entry.name, attributes, entry.position):
                self._fs.forget([(entry.node_id, 1)])  # it did not fit: no reference went out
                return

    @_guarded
    def releasedir(self, fh: int) -> None:
        self._fs.releasedir(fh)

    @_guarded_async
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        ticket = self._want(fh)
        await self._covered()
        await self._in_thread(self._fs.fsyncdir, fh, datasync)
        await self._has(ticket)

    @_guarded_async
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        state = await self._in_thread(self._fs.statfs)
        reply = StatvfsData()
        reply.f_bsize = state.f_bsize
        reply.f_frsize = state.f_frsize
        reply.f_blocks = state.f_blocks
        reply.f_bfree = state.f_bfree
        reply.f_bavail = state.f_bavail
        reply.f_files = state.f_files
        reply.f_ffree = state.f_ffree
        reply.f_favail = state.f_favail
        reply.f_namemax = state.f_namemax
        return reply

    # --- extended attributes ---

    @_guarded
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name == _CAPABILITY and self._fs.lacks_capability(inode):
            raise _no_attribute
        return self._fs.getxattr(inode, name)

    @_guarded
    def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        names = self._fs.listxattr(inode)
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    @_guarded
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._fs.setxattr(inode, name, value, _caller(ctx))

    @_guarded
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._fs.removexattr(inode, name)


def _file_info(handle_id: int) -> FileInfo:
    # All changes pass through this mount, so what the kernel has cached stays right across opens.
    return FileInfo(fh=handle_id, keep_cache=True)


def terminate() -> None:
    """End `run` although the mount is still there: for a mount that was detached."""
    pyfuse3.terminate()


async def run(binding: Binding, fuse_descriptor: int) -> None:
    """Serve a mounted FUSE descriptor (see `mounts.mount_fuse`) until it is unmounted."""
    pyfuse3.init(binding, f"/dev/fd/{fuse_descriptor}", set())
    try:
        await pyfuse3.main(min_tasks=1, max_tasks=_MAX_TASKS)
    finally:
        pyfuse3.close(unmount=False)
