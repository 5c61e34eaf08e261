"""The loop in front of /dev/fuse: reads a request, has it handled, writes the reply.

Two system calls a request. One thread serves; most of what a request costs is putting that thread to sleep
and waking it, so after a request it looks for the next one for a moment before it sleeps. Whether that is
worth anything shows by itself (`Spin`): a mount that nobody uses costs nothing, and one that is used now and
then does not spin either.
"""

import errno
import fcntl
import logging
import mmap
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from replicator import limits
from replicator.fences import FenceMode
from replicator.fs import kernel_protocol as protocol
from replicator.fs.awake import Awake, is_worthwhile
from replicator.fs.calls import unshare_umask
from replicator.fs.disk_threads import DiskThreads
from replicator.fs.fence import Fence
from replicator.fs.fence_gate import FenceGate
from replicator.fs.held_notes import HeldNotes
from replicator.fs.holds import Gate, Holds
from replicator.fs.intent import Intent
from replicator.fs.kernel_binding import (
    After,
    Binding,
    Body,
    Failure,
    Header,
    Held,
    Later,
    Reply,
    Spliced,
    Sync,
    bug,
)
from replicator.fs.kernel_protocol import HEADER_BYTES, IN_HEADER, OUT_HEADER
from replicator.fs.open_modes import Backing, OpenModes, OpenNotes
from replicator.fs.passthrough import Passthrough
from replicator.fs.syncs import Log, Syncs
from replicator.fs.tickets import Synchrony
from replicator.fs.unseen import Unseen
from replicator.mount_options import DEFAULTS, MountOptions
from replicator.world import FifoBell

logger = logging.getLogger(__name__)

# Reading /dev/fuse: gone for good; a request that was withdrawn before it could be read; a signal.
_ENDED = frozenset({errno.ENODEV, errno.ECONNABORTED})
_AGAIN = frozenset({errno.ENOENT, errno.EINTR})
# Writing a reply: nobody waits for it any more.
_UNWANTED = frozenset({errno.ENOENT, errno.ENODEV, errno.ECONNABORTED})
# Writing a notification: the kernel does not know the object, or not any more, or it is in use.
_IN_VAIN = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EBUSY, errno.ENODEV, errno.ECONNABORTED})
_SPIN_FIRST_S = limits.SPIN_S / 4
_HEADER_BYTES = OUT_HEADER.size

_pack_header = OUT_HEADER.pack


class Spin:
    """How long to look for the next request before sleeping. Knows no clock.

    Doubles, up to `limits.SPIN_S`, when a request came meanwhile; halves, down to nothing, when none did.
    Then a number of sleeps so short that looking on would have saved them starts it again: one at first,
    twice as many after each attempt that saved nothing. For on a busy host the program that is to send the
    next request may need the very processor that looks for it; there sleeping at once is best.
    """

    __slots__ = ("_attempts", "_short_sleeps", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._attempts = 1  # short sleeps before the next
        self._short_sleeps = 0

    def came(self) -> None:
        self.seconds = min(2 * self.seconds, limits.SPIN_S)
        self._attempts = 1

    def missed(self) -> None:
        self.seconds = self.seconds / 2 if self.seconds > _SPIN_FIRST_S else 0.0
        if not self.seconds:
            self._attempts = min(2 * self._attempts, limits.SPIN_PATIENCE)
            self._short_sleeps = 0

    def slept(self, seconds: float) -> None:
        if self.seconds:
            return
        self._short_sleeps = self._short_sleeps + 1 if seconds < limits.SPIN_S else 0
        if self._short_sleeps >= self._attempts:
            self.seconds = _SPIN_FIRST_S


def _tell_nobody(*anything: object) -> None:
    """For a mount without successors, and whoever does not ask."""


class Session:
    """Serves one mount. `lock` is held while a request is handled: it protects what `passthrough` uses."""

    def __init__(
        self,
        passthrough: Passthrough,
        descriptor: int,
        lock: threading.Lock,
        *,
        agreement: protocol.Agreement | None = None,
        intent: Intent | None = None,
        open_notes: OpenNotes | None = None,
        options: MountOptions = DEFAULTS,
        agreed: Callable[[protocol.Agreement], None] = _tell_nobody,
        ready: Callable[[], None] = _tell_nobody,
        nodes_max: int = limits.NODES,
        log: Log | None = None,
        synchrony: Synchrony | None = None,
        answers: FifoBell | None = None,
        held_notes: HeldNotes | None = None,
        fence: Fence | None = None,
    ) -> None:
        """Takes `descriptor`, an open /dev/fuse whose mount is made.

        `agreement`: it was served by a predecessor that was killed. Otherwise `agreed` is told it before the
        kernel is, and `ready` called after that. `intent`, `open_notes`: see there. `log`: synced before what
        programs sync, and whenever it has something. `synchrony`: which replies wait for targets; `answers`
        is rung when some of them may have waited long enough. `fence`: what changes obey; None costs nothing.
        """
        self._is_resumed = agreement is not None
        self._agreed = agreed
        self._ready = ready
        self._passthrough = passthrough
        self._descriptor = descriptor
        self._lock = lock
        self._nodes_max = nodes_max
        self._unseen = Unseen(lock, passthrough.doubt, passthrough.identity)
        with lock:
            modes = OpenModes(
                options, Backing(descriptor), self._unseen, open_notes, passthrough.open_files()
            )
            for handle in modes.unknown:
                passthrough.release(handle)
        self._binding = Binding(passthrough, agreement, intent, options, modes if modes.is_needed else None)
        passthrough.mode_dropped = self._forget_attributes
        self._disk_threads = DiskThreads(options.disk_threads)
        self._stopping = False
        self._leaving = False
        self._is_gone = False  # the mount
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._poll.register(self._stop_read, select.POLLIN)
        self._pipe_read, self._pipe_write = -1, -1
        self._open_pipe()
        self._syncs = Syncs(self._reply, passthrough.fsync, log, lock, self._disk_threads.submit)
        self._poll.register(self._syncs.bell, select.POLLIN)
        self._synchrony = synchrony
        self._answers = answers
        self._gate: Gate | None = None
        self._fence_gate: FenceGate | None = None
        self._handle = self._binding.handle  # with the gates in front of it
        self._binding.held_notes = held_notes
        self._holds = Holds(self._reply, self._syncs.wake, held_notes)
        if answers is not None:
            self._poll.register(answers.fileno(), select.POLLIN)
        self.heed_options()
        self.heed_fence(fence)
        if self._syncs.ring is not None:
            self._poll.register(self._syncs.ring, select.POLLIN)
        self._spin = Spin()
        self._awake = Awake(is_worthwhile(options.idle, os.cpu_count() or 1))
        self._prune_wanted = threading.Event()
        self._prune_ends = threading.Event()
        self._pruner = threading.Thread(target=self._prune, name="prune", daemon=True)

    def heed_options(self) -> None:
        """Whether it is synchronous may be new. Under the lock, or before `serve`."""
        synchrony = self._synchrony
        if synchrony is None or not synchrony.is_on:
            self._gate = None  # what waits goes on as soon as its ticket says so
        elif self._gate is None:
            self._gate = Gate(self._binding.handle, self._passthrough, synchrony, self._binding.held_notes)
        self._join_gates()

    def heed_fence(self, fence: Fence | None) -> None:
        """Obey this one from now on. What waits goes on as it says. Under the lock, or before `serve`."""
        gate = self._fence_gate
        self._holds.fence = fence
        if fence is not None and gate is None:
            self._fence_gate = FenceGate(
                fence, self._binding.handle, self._binding.buffer, self._forget_content
            )
        elif gate is not None:
            gate.replace(fence or Fence.fixed(FenceMode.NONE))
            if fence is None and not gate.waiting:
                self._fence_gate = None
        self._is_fenced = fence is not None
        self._join_gates()

    def _join_gates(self) -> None:
        handle = self._binding.handle if self._gate is None else self._gate.handle
        if self._fence_gate is not None:
            self._fence_gate.inner = handle
            handle = self._fence_gate.handle
        self._handle = handle

    def stop(self) -> None:
        """End `serve` although the mount is still there: for a mount that was detached. From any thread."""
        with self._lock:
            if not self._stopping:
                self._stopping = True
                os.write(self._stop_write, b"x")

    def leave(self) -> None:
        """End `serve` between two requests, with none unanswered, and keep /dev/fuse open for a successor.

        From any thread but that of `serve`. Blocks as long as a program may have to be waited for.
        """
        self._end_pruning()
        if self._pruner.is_alive():
            self._pruner.join()  # requests are served meanwhile: it may wait for the program that made one
        self._leaving = True
        self.stop()

    def serve(self) -> bool:
        """Blocks until it is unmounted, or `stop` or `leave` is called. Whether it is left to a successor.

        The calling thread gets a umask of its own.
        """
        with suppress(OSError):  # then everybody shares one, as with the other binding
            unshare_umask()
        os.set_blocking(self._descriptor, False)
        self._syncs.thread = threading.get_ident()
        if self._is_resumed:
            self._notify(protocol.resend())
        self._pruner.start()
        try:
            self._loop()
        finally:
            with self._lock:
                self._stopping = True
            self._awake.release()
            self._end_pruning()
            self._syncs.finish()
            self._disk_threads.close()  # they answer what they have
            self._unseen.close()
            is_left = self._leaving and not self._is_gone
            strict = self._synchrony is not None and self._synchrony.is_strict
            self._holds.finish(is_left=is_left, error=errno.EIO if strict else 0)
            if self._fence_gate is not None and not is_left:
                for header in self._fence_gate.abandon():
                    self._reply(header, Failure(errno.EROFS))
            if not is_left:
                os.close(self._descriptor)
            os.close(self._stop_read)
            os.close(self._stop_write)
            self._close_pipe()
        return is_left

    def _loop(self) -> None:
        binding, lock, nodes = self._binding, self._lock, self._passthrough.nodes
        buffer = binding.buffer
        unpack_header = IN_HEADER.unpack_from
        receive, reply, served = self._receive, self._reply, self._awake.served
        while not (binding.ended or self._stopping) and receive():
            header = unpack_header(buffer)
            with lock:
                answer = self._handle(header)
            if header[1] == protocol.Opcode.INIT:
                self._begin(header, answer)
            else:
                reply(header, answer)
            served()
            if len(nodes) > self._nodes_max:
                self._prune_wanted.set()
        if binding.ended:
            self._is_gone = True

    def _begin(self, header: Header, answer: Reply) -> None:
        """A successor must know what the kernel was told."""
        agreement = self._binding.agreement
        if agreement is not None:
            self._agreed(agreement)
        self._reply(header, answer)
        if agreement is not None:
            self._ready()

    # --- receiving ---

    def _receive(self) -> bool:
        """Wait for the next request and read it into the buffer. False: there will be none."""
        descriptor, buffers, spin = self._descriptor, (self._binding.buffer,), self._spin
        syncs, holds, answers = self._syncs, self._holds, self._answers
        until = 0.0
        while True:
            if syncs.are_pending:
                syncs.tend()
            if holds.are_pending:
                holds.tend()
            if self._fence_gate is not None and self._fence_gate.waiting:
                self._tend_fence(self._fence_gate)
            try:
                count = os.readv(descriptor, buffers)
            except BlockingIOError:
                now = time.perf_counter()
                # A thread that is to answer needs the interpreter, which looking on would withhold.
                if not until and spin.seconds and not self._disk_threads.busy:
                    until = now + spin.seconds
                if now < until:
                    continue
                if until > 0:
                    spin.missed()
                until = -1.0  # whether it was worth looking is known now
                ready = self._poll.poll(self._timeout_ms)
                if not ready:
                    self._awake.release()
                elif answers is not None and (answers.fileno(), select.POLLIN) in ready:
                    answers.hear()
                if self._stopping:
                    return False
                spin.slept(time.perf_counter() - now)
            except OSError as error:
                if error.errno in _ENDED:
                    self._is_gone = True
                    return False
                if error.errno not in _AGAIN:
                    raise
            else:
                if until > 0:
                    spin.came()
                return count >= HEADER_BYTES

    @property
    def _timeout_ms(self) -> int | None:
        """Nobody rings when a fence opens."""
        gate = self._fence_gate
        if gate is not None and (gate.waiting or self._holds.are_pending):
            return limits.FENCE_LOOK_MS
        return self._awake.timeout_ms

    def _tend_fence(self, gate: FenceGate) -> None:
        """Handle what had to wait, one after the other, until it has to wait again."""
        while not (self._binding.ended or self._stopping):
            with self._lock:
                header = gate.next()
                if header is None:
                    break
                answer = gate.resumed(header)
            self._reply(header, answer)
        with self._lock:
            if not self._is_fenced and not gate.waiting:
                self._fence_gate = None
                self._join_gates()

    # --- replying ---

    def _reply(self, header: Header, reply: Reply) -> None:
        if type(reply) is bytes:
            self._send((_pack_header(_HEADER_BYTES + len(reply), 0, header[2]) + reply,))
        elif type(reply) is Failure:
            self._send((_pack_header(_HEADER_BYTES, -reply.number, header[2]),))
        elif type(reply) is Spliced:
            self._send_spliced(header, reply)
        elif type(reply) is Sync:
            self._syncs.begin(header, reply)
        elif type(reply) is After:
            self._reply(header, reply.reply)
            self._disk_threads.submit(reply.function)
        elif type(reply) is Later:
            self._disk_threads.submit(partial(self._reply_later, header, reply))
        elif type(reply) is Held:
            self._holds.hold(header, reply)
        elif reply is not None:
            self._send_body(header, reply)  # type: ignore[arg-type]  # type() narrows less than it tells

    def _send_body(self, header: Header, body: Body) -> None:
        parts = (body,) if isinstance(body, bytes) else body
        length = _HEADER_BYTES + sum(map(len, parts))
        self._send((_pack_header(length, 0, header[2]), *parts))

    def _send_spliced(self, header: Header, reply: Spliced) -> None:
        """Header and content into a pipe, and from there into the kernel: no byte of it is copied by us."""
        handle, offset, count = reply
        length = _HEADER_BYTES + count
        try:
            os.write(self._pipe_write, _pack_header(length, 0, header[2]))
            while count and (moved := os.splice(handle, self._pipe_write, count, offset_src=offset)):
                offset += moved
                count -= moved
            if not count and os.splice(self._pipe_read, self._descriptor, length) == length:
                return
            wanted = True
        except OSError as error:
            wanted = error.errno not in _UNWANTED
        self._close_pipe()  # whatever is in it now belongs to no reply
        self._open_pipe()
        if wanted:
            self._reply(header, Later(partial(os.pread, handle, reply.size, reply.offset)))

    def _open_pipe(self) -> None:
        try:
            self._pipe_read, self._pipe_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            capacity = fcntl.fcntl(self._pipe_write, fcntl.F_SETPIPE_SZ, limits.REPLY_PIPE_BYTES)
        except OSError:
            capacity = 0
        # A page takes a slot even if it is not full: one is for the header, one for a range within pages.
        self._binding.splice_bytes_max = max(0, capacity - 2 * mmap.PAGESIZE)

    def _close_pipe(self) -> None:
        if self._pipe_read >= 0:
            os.close(self._pipe_read)
            os.close(self._pipe_write)
            self._pipe_read, self._pipe_write = -1, -1

    def _send(self, parts: tuple[bytes | memoryview, ...]) -> None:
        try:
            os.writev(self._descriptor, parts)
        except OSError as error:
            if error.errno not in _UNWANTED:
                logger.error("the kernel refused a reply of %d bytes: %s", sum(map(len, parts)), error)

    def _reply_later(self, header: Header, later: Later) -> None:
        """In a thread of its own."""
        try:
            body = later.function()
        except OSError as error:
            self._reply(header, Failure(error.errno or errno.EIO))
        except Exception:
            self._reply(header, bug(header[1]))
        else:
            self._reply(header, body)

    # --- telling the kernel ---

    def _notify(self, message: bytes) -> bool:
        """Whether the kernel knows this kind of notification."""
        try:
            os.write(self._descriptor, message)
        except OSError as error:
            return error.errno in _IN_VAIN
        return True

    def _forget_attributes(self, node_id: int) -> None:
        self._notify(protocol.forget_attributes(node_id))

    def _forget_content(self, node_id: int) -> None:
        self._notify(protocol.forget_content(node_id))

    def _end_pruning(self) -> None:
        self._prune_ends.set()
        self._prune_wanted.set()

    def _prune(self) -> None:
        """Give nodes back while there are too many. In a thread of its own: it may wait for applications."""
        nodes = self._passthrough.nodes
        can_prune = True
        while True:
            self._prune_wanted.wait()
            self._prune_wanted.clear()
            excess = len(nodes) - self._nodes_max * 15 // 16
            while excess > 0 and not self._prune_ends.is_set():
                with self._lock:
                    spare = [
                        (node.id, node.parent.id, node.name)
                        for node in nodes.spare(min(excess, limits.NODES_PRUNED))
                        if node.parent is not None
                    ]
                excess -= max(len(spare), 1)
                if can_prune:
                    can_prune = self._notify(protocol.prune([node_id for node_id, _, _ in spare]))
                if not can_prune:
                    for _, parent_id, name in spare:
                        self._notify(protocol.forget_entry(parent_id, name))
            # What is in use stays: looking again at once would find the same.
            if self._prune_ends.wait(limits.PRUNE_PAUSE_S):
                return
