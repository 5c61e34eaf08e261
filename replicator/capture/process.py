"""The capture process of one mount: opens its journal, mounts, serves the file system and the control socket.

It outlives the agent. SIGTERM and SIGHUP are ignored, because they reach it when an agent or a terminal
ends, and a mount that goes away takes the data from under applications. It ends by the control call
`stop`, by SIGINT (the same as `stop`), or when somebody unmounts its file system; by the call `leave` it ends
with its mount left as it is, for a successor to serve on. kill -9 loses no operation: its journal keeps what
was appended, and a successor serves the mount on, or makes another: then the dead one lets nobody at the
directory below until it is there, and the one operation in flight is marked as in doubt.

Small on purpose: one such process runs per mount, in the path of every operation of the applications.
"""

import argparse
import errno
import gc
import logging
import os
import resource
import signal
import sys
import threading
from functools import partial
from importlib import import_module

import msgspec
import trio

from replicator import limits, mount_options
from replicator.capture import bindings
from replicator.capture.activity_keeper import ActivityKeeper
from replicator.capture.arguments import CaptureSettings
from replicator.capture.binding_choice import choose
from replicator.capture.resumption import FORMAT, Provision, Resumption
from replicator.capture.resumption import take as resumption_of
from replicator.capture.synchrony import Synchrony
from replicator.child import control, interpreter
from replicator.errors import ExitCode, ReplicatorError
from replicator.fs import calls, mounts
from replicator.fs.credentials import prepare_process
from replicator.fs.fence import fence_at
from replicator.fs.kernel_protocol import InitFlag
from replicator.fs.mtimes import Notes
from replicator.fs.passthrough import Passthrough
from replicator.fs.recorder import Recorder
from replicator.mount_options import MountOptions
from replicator.ops import NAME_KINDS, Kind
from replicator.paths import Home, remove_if_empty
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalWriter
from replicator.queue.statistics import JournalStatistics
from replicator.synchrony import SyncView
from replicator.world import FifoBell, World

logger = logging.getLogger("replicator.capture")


class CaptureStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to the call `status`, which waits until it serves: ended before, it has not started."""

    pid: int
    state: str  # "serving" or "stopping"
    path: str
    mountpoint: str
    binding: str
    active: list[bytes]
    head_sequence: int
    memory_bytes: int
    disk_bytes: int
    lost_ops: int
    losing: bool  # the journal can take nothing at the moment
    segments: int
    queue: JournalStatistics
    nodes: int
    pending_mtimes: int
    skipped_ops: int  # paths too long to be replicated
    skipped_path: str  # the last of them
    hot: bool  # a loss of power would leave something to compare
    covered: bool  # what that is, is noted durably
    synchrony: list[SyncView]  # of the connections that programs wait for, if any


class Capture:
    """One running capture. Requests may be served in another thread; all else happens in that of `run`."""

    def __init__(self, world: World, settings: CaptureSettings, resumption: Resumption | None = None) -> None:
        """`resumption`: what a predecessor left. Then its mount is served on."""
        self._world = world
        self._resumption = resumption
        self._provision: Provision | None = None
        self._settings = settings
        self._state = "starting"
        self._stop_persists = True
        self._is_left = False  # to a successor
        self._started = trio.Event()
        self._unmounted = trio.Event()
        self._stopped = trio.Event()
        self._failure: ReplicatorError | None = None
        # The thread that serves and the one of `run` share the file system and the journal; it is held for
        # one request, or for one of the short steps below.
        self._lock = threading.Lock()
        self._dead: frozenset[int] = frozenset()
        self._synchrony_set = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until stopped, unmounted, or left to a successor.

        Raises ReplicatorError if it cannot start, or cannot save the journal. `task_status`: it is mounted,
        and agreed with the kernel how to speak.
        """
        settings = self._settings
        resumption = self._resumption
        self._binding_name = "kernel" if resumption is not None else choose(settings.binding)
        options = self._possible_options()
        if resumption is None:
            path, mountpoint, dead = self._check()
        else:  # a look at them would wait for an answer of ours
            path, mountpoint, dead = settings.path, settings.mountpoint, frozenset()
        self._journal = JournalWriter.open(
            self._world, settings.journal, settings.mount_id, keeps_activity=True
        )
        for reader in settings.readers:
            Cursor.open(self._world, settings.journal, settings.mount_id, reader, create=True).close()
        self._keeper = ActivityKeeper(self._world, self._journal, self._lock, self._sync_storage)
        self._recorder = Recorder(self._journal)
        self._recorder.set_active(settings.active)
        self._synchrony = Synchrony(
            self._journal.answers(),
            lambda: self._journal.wanted_sequence,
            self._world.clock,
            self._synchrony_changed,
        )
        self._synchrony.start(options, settings.synchronous)
        if self._binding_name == "kernel":
            held = None if resumption is None else resumption.held
            self._provision = Provision(settings.memory_directory, held)
        self._passthrough = Passthrough(
            mounts.open_root(path, dead) if resumption is None else resumption.descriptors.root,
            self._recorder,
            descriptors_max=_descriptors_max(),
            monotonic_ns=self._world.clock.monotonic_ns,
            notes=Notes(os.path.join(settings.memory_directory, "mtimes")),
            ledger=self._provision.ledger if self._provision is not None else None,
        )
        try:
            if resumption is not None:
                self._passthrough.resume(resumption.alive, resumption.descriptors)
                if self._provision is not None and self._provision.intent is not None:
                    self._provision.intent.decide(self._journal.position.sequence)
            self._recover()
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    control.serve, Home(settings.home).socket("capture", settings.mount_id), self._handlers()
                )
                descriptor = (
                    mounts.mount_fuse(path, mountpoint, dead)
                    if resumption is None
                    else resumption.descriptors.fuse
                )
                if resumption is None and self._provision is not None:
                    self._provision.hold(descriptor, self._passthrough.root_fd)
                if resumption is not None:
                    logger.warning("took over from a former process")
                if dead:
                    logger.warning("took the place of the mount that a former process left at %s", mountpoint)
                answers = FifoBell(self._synchrony.bell_path)
                nursery.start_soon(self._close_at_end, answers)
                self._binding = bindings.make(
                    self._binding_name,
                    self._passthrough,
                    descriptor,
                    self._lock,
                    self._provision,
                    None if resumption is None else resumption.agreement,
                    options,
                    self._keeper,
                    self._synchrony,
                    answers,
                    fence_at(settings.fence),
                )
                nursery.start_soon(self._tick)
                nursery.start_soon(self._look_at_targets)
                nursery.start_soon(self._keeper.keep)
                if self._provision is not None:
                    nursery.start_soon(self._provision.keep)
                nursery.start_soon(self._heed_signals)

                def ready() -> None:
                    if self._started.is_set():
                        return  # a successor that the kernel asks once more
                    self._state = "serving"
                    logger.info("serving %s at %s with the %s binding", path, mountpoint, self._binding_name)
                    self._started.set()
                    task_status.started()

                try:
                    self._is_left = await self._binding.serve(ready)
                finally:
                    try:
                        self._finish()
                    except BaseException:
                        self._journal.close(persist=False)
                        raise
                    finally:
                        self._stopped.set()  # whoever asked for it is not to wait for ever
                nursery.cancel_scope.cancel()
        finally:
            if not self._stopped.is_set():
                self._journal.close(persist=False)
            if not self._is_left:  # else whatever is open stays open, by the holder
                self._passthrough.close()
            if self._provision is not None and self._unmounted.is_set():
                self._provision.remove()
            memory = settings.memory_directory  # empty if the journal was saved to disk
            remove_if_empty(memory, os.path.dirname(memory))
        if self._failure is not None:
            raise self._failure

    def _possible_options(self) -> MountOptions:
        """What was asked for, without what this kernel lacks: it may be older than when it was asked."""
        options = self._settings.options
        refusals = mount_options.refusals(options, self._binding_name, os.uname().release)
        for reason in refusals.values():
            logger.warning("%s: served without it", reason)
        return mount_options.changed(options, dict.fromkeys(refusals, mount_options.DEFAULT))

    def _check(self) -> tuple[str, str, frozenset[int]]:
        """The directory, where it is to be mounted, and what dead mounts are there. Raises UsageError."""
        settings = self._settings
        path, mountpoint = mounts.resolve(settings.path), mounts.resolve(settings.mountpoint)
        dead = self._dead = mounts.dead_layers(mountpoint)
        own = [settings.home, settings.disk_directory, settings.memory_directory]
        others = mounts.without(mounts.read_mountinfo(), dead)
        mounts.check_mount(path, mountpoint, others, own_directories=own)
        return path, mountpoint, dead

    def _handlers(self) -> dict[str, control.Handler]:
        return {
            "status": self.status,
            "set_active": self.set_active,
            "settle": self.settle,
            "root": self.root,
            "collect": self.collect,
            "stop": self.stop,
            "leave": self.leave,
            "check_options": self.check_options,
            "set_synchrony": self.set_synchrony,
            "set_fence": self.set_fence,
        }

    def _recover(self) -> None:
        """The operation that a killed predecessor was in the middle of may have happened or not."""
        flight = self._journal.recovery.flight
        in_doubt: list[bytes] = []
        if flight is not None and self._resumption is not None:
            # Not answered, so the kernel hands it out again: it is done, or finished, then.
            self._journal.clear_flight()
            in_doubt = [flight.path, flight.path2] if flight.path2 else [flight.path]
        elif flight is not None:
            logger.warning("the former process ended within an operation on %r", flight.path)
            in_doubt = [flight.path, flight.path2] if flight.path2 else [flight.path]
            for path in in_doubt:
                self._journal.append(Kind.DOUBT, path)
            self._journal.clear_flight()
        unsettled = in_doubt if flight is not None and flight.kind in NAME_KINDS else []
        self._passthrough.recover(in_doubt, unsettled)

    async def _tick(self) -> None:
        next_collect = trio.current_time()
        while True:
            # No mtime is due before it has been quiet for as long as this sleeps.
            pending = self._passthrough.pending_mtimes
            await trio.sleep(limits.CAPTURE_TICK_S if pending else limits.COLLECT_INTERVAL_S)
            with self._lock:
                self._passthrough.tick()
            if trio.current_time() >= next_collect:
                next_collect = trio.current_time() + limits.COLLECT_INTERVAL_S
                with self._lock:
                    self._journal.collect()
                    self._journal.record_losses()

    # --- synchronous ---

    async def _look_at_targets(self) -> None:
        """Until cancelled. A mount that is asynchronous costs nothing."""
        while True:
            if not self._synchrony.is_on:
                self._synchrony_set = trio.Event()
                await self._synchrony_set.wait()
            with self._lock:
                self._synchrony.look()
            await trio.sleep(limits.SYNCHRONY_LOOK_S)

    def _synchrony_changed(self) -> None:
        """Programs that wait may go on; an administrator wants to hear of it."""
        for view in self._synchrony.views():
            logger.info("%s is %s %s", view.connection, view.state.value, view.reason)
        self._world.doorbells.ring(self._synchrony.bell_path)
        self._world.doorbells.ring(Home(self._settings.home).bell)

    async def set_synchrony(self, options: dict[str, str]) -> None:
        """From now on. `options`: all that are not the default; those of synchronous mounts count."""
        with self._lock:
            self._synchrony.configure(mount_options.changed(mount_options.DEFAULTS, options))
            self._binding.heed_options()
        self._synchrony_set.set()
        self._world.doorbells.ring(self._synchrony.bell_path)

    # --- fenced ---

    async def set_fence(self, page: str) -> None:
        """Changes obey this page of shared memory from now on; "": none. On return none is under way that
        began before.
        """
        await self._started.wait()
        with self._lock:
            self._binding.heed_fence(fence_at(page))

    async def _close_at_end(self, bell: FifoBell) -> None:
        try:
            await trio.sleep_forever()
        finally:
            bell.close()

    async def _heed_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                if number != signal.SIGINT:
                    logger.warning("%s ignored: a mount outlives its agent", signal.Signals(number).name)
                    continue
                try:
                    await self.stop()
                except ReplicatorError as error:
                    logger.error("not stopped: %s", error)

    def _finish(self) -> None:
        """The file system is gone: journal what is left and close. Or it is left: close."""
        self._state = "stopping"
        if self._is_left:
            self._journal.close(persist=False)
            return
        self._unmounted.set()
        try:
            mounts.clear_layers(self._settings.mountpoint, self._dead)  # those that had to stay below ours
        except OSError as error:
            logger.warning("a former mount is left at %s: %s", self._settings.mountpoint, error)
        self._passthrough.settle()
        try:
            if self._stop_persists:  # readers have, or will have, what the storage may lose yet
                self._sync_storage()
            self._journal.close(self._stop_persists)
        except ReplicatorError as error:
            self._failure = error
        except OSError as error:
            self._failure = ReplicatorError(f"cannot sync {self._settings.path}: {error}")
            self._journal.close(persist=False)  # as if power was lost now: what is hot is compared

    def _sync_storage(self) -> None:
        """All that was done to the captured directory so far is on its disk on return."""
        if any(
            entry.point != self._settings.path and mounts.is_inside(entry.point, self._settings.path)
            for entry in mounts.read_mountinfo()
        ):
            os.sync()  # other file systems lie in it
        else:
            descriptor = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._passthrough.root_fd)
            try:
                calls.syncfs(descriptor)  # which the root's own cannot do: it is not open for reading
            finally:
                os.close(descriptor)

    # --- control calls ---

    async def status(self) -> CaptureStatus:
        await self._started.wait()
        with self._lock:
            journal = self._journal.statistics()
            losing = self._journal.losing
        return CaptureStatus(
            pid=os.getpid(),
            state=self._state,
            path=self._settings.path,
            mountpoint=self._settings.mountpoint,
            binding=self._binding_name,
            active=list(self._recorder.active),
            head_sequence=journal.head_sequence,
            memory_bytes=journal.memory_bytes,
            disk_bytes=journal.disk_bytes,
            lost_ops=journal.lost_ops,
            losing=losing,
            segments=journal.segments,
            queue=journal,
            nodes=len(self._passthrough.nodes),
            pending_mtimes=self._passthrough.pending_mtimes,
            skipped_ops=self._recorder.skipped_ops,
            skipped_path=self._recorder.skipped_path.decode(errors="backslashreplace"),
            hot=self._keeper.is_hot,
            covered=self._keeper.log.is_covering,
            synchrony=self._synchrony.views(),
        )

    async def set_active(self, prefixes: list[str], synchronous: dict[str, list[str]] | None = None) -> None:
        """Journal from now on what happens at or below these mount-relative paths (in base64).

        `synchronous`: the same by connection, of those that a synchronous mount waits for.
        """
        former = self._recorder.active
        with self._lock:
            self._recorder.set_active(msgspec.convert(prefixes, list[bytes]))
            self._synchrony.set_connections(msgspec.convert(synchronous or {}, dict[str, list[bytes]]))
            grown = not set(self._recorder.active) <= set(former)
            if grown:
                self._journal.forget_coverage()
        if grown:
            await self._world.in_thread(self._journal.save_header)

    async def settle(self) -> dict[str, int]:
        """Journal every pending mtime; the sequence a target must have applied to equal the source."""
        with self._lock:
            self._passthrough.settle()
            complete = self._journal.record_losses()
            # A HOLE that finds no room yet will be the next record: before it nothing equals the source.
            return {"sequence": self._journal.position.sequence + (not complete)}

    async def root(self) -> control.WithDescriptors:
        """A descriptor of the directory below the mount, for readers of the storage itself."""
        return control.WithDescriptors(None, [os.dup(self._passthrough.root_fd)])

    async def collect(self) -> None:
        with self._lock:
            self._journal.collect()

    async def stop(self, persist: bool = True, force: bool = False) -> None:
        """Unmount, save the journal to disk if `persist`, and end.

        An error while the mount is busy, unless `force`: then it is detached, and programs that still have
        files open there get errors after `limits.DETACHED_SERVE_S`. So do those in other
        mount namespaces that have it, too: there nobody can be asked.
        """
        self._stop_persists = persist
        # Shielded: with the mount everything else ends, and the caller is to hear how it went.
        with trio.CancelScope(shield=True):
            await self._take_down(force)
            await self._stopped.wait()
        if self._failure is not None:
            raise self._failure

    async def leave(self, format: int) -> None:
        """End between two requests and leave the mount as it is: calls there wait for a successor.

        `format`: `resumption.FORMAT` of that. An error, and nothing has changed, if it could not take over.
        """
        problem = self._unfit_for(format)
        if problem:
            raise ReplicatorError(f"{self._settings.mountpoint} cannot be reloaded: {problem}")
        with trio.CancelScope(shield=True):  # as in `stop`
            await self._binding.leave()
            await self._stopped.wait()
        if not self._is_left:
            raise ReplicatorError(f"{self._settings.mountpoint} was unmounted meanwhile")

    async def check_options(self, options: dict[str, str]) -> None:
        """An error if a reload would not be enough to have these: not agreed with the kernel."""
        agreed = self._provision.agreed_flags if self._provision is not None else InitFlag(0)
        wanted = mount_options.changed(mount_options.DEFAULTS, options)
        for name, value, flag in (
            ("reads", "passthrough", InitFlag.PASSTHROUGH),
            ("writes", "direct", InitFlag.DIRECT_IO_ALLOW_MMAP),
        ):
            if getattr(wanted, name) == value and not agreed & flag:
                raise ReplicatorError(
                    f"{name}={value} was not agreed with the kernel when {self._settings.path} was mounted:"
                    f" dtctl mount remove {self._settings.path}, and add it with --option {name}={value}"
                )

    def _unfit_for(self, successor: int) -> str:
        """Why a successor of this format could not take over; "" if it can."""
        if self._binding_name != "kernel":
            return (
                f"the {self._binding_name} binding cannot hand a mount on; stop what uses it and add it anew"
            )
        if self._state != "serving" or self._provision is None or not self._provision.is_complete:
            return "nothing is kept for a successor; this needs Linux 6.9 and room in memory"
        if successor != FORMAT:
            return f"the new software takes over format {successor} only, not {FORMAT}; see its release notes"
        return ""

    async def _take_down(self, force: bool) -> None:
        try:
            await self._unmount(lazy=False)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise ReplicatorError(f"cannot unmount: {error.strerror}: {error.filename}") from error
            if not force:
                raise ReplicatorError(
                    f"{self._settings.mountpoint} is busy: programs have files open there or stand in it"
                ) from None
            await self._unmount(lazy=True)
        # Another mount namespace (a container) may have it still, and would keep it for as long as it lives.
        with trio.move_on_after(limits.DETACHED_SERVE_S):
            await self._unmounted.wait()
        if not self._unmounted.is_set():
            logger.warning("unmounted here, and ended where other mount namespaces still have it")
            self._binding.terminate()

    async def _unmount(self, lazy: bool) -> None:
        # In a thread: the kernel may have requests for us before it lets go.
        await trio.to_thread.run_sync(partial(mounts.unmount, self._settings.mountpoint, lazy=lazy))


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _descriptors_max() -> int:
    """How many directories may be kept open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(limits.NODE_DESCRIPTORS, soft // 2)


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def preload() -> None:
    """Import what nearly every capture uses: for whoever forks captures, so that none of them has to."""
    if choose("auto") == "kernel":
        import_module("replicator.fs.kernel_session")


def run(arguments_file: str) -> int:
    """Its exit code. `arguments_file`: CaptureSettings as JSON."""
    with open(arguments_file, "rb") as file:
        settings = msgspec.json.decode(file.read(), type=CaptureSettings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    prepare_process()
    interpreter.keep_freed_memory()
    # Nodes are many, live long and form no cycles: looking through all of them would stop every application.
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    sys.setswitchinterval(limits.THREAD_SWITCH_S)  # the serving thread never waits long for the other
    # Descriptors of a predecessor come at the numbers they had: all numbers must be allowed, and free.
    _raise_descriptor_limit()
    control.move_ready_descriptor()
    resumption = resumption_of(settings.memory_directory)
    try:
        trio.run(Capture(World(), settings, resumption).run)
    except ReplicatorError as error:
        return _fail(error)
    except BaseExceptionGroup as group:
        cause = _single(group)
        if not isinstance(cause, ReplicatorError):
            raise
        return _fail(cause)
    return ExitCode.DONE


def _fail(error: ReplicatorError) -> int:
    logger.error("%s", error)
    return error.exit_code


def main() -> int:
    parser = argparse.ArgumentParser(prog="replicator.capture.process")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--arguments", metavar="FILE", help="CaptureSettings as JSON")
    what.add_argument("--format", action="store_true", help="print what it takes over, and end")
    options = parser.parse_args()
    if options.format:
        import_module("replicator.fs.kernel_session")  # all that a successor needs is there
        print(FORMAT)
        return ExitCode.DONE
    return run(options.arguments)


if __name__ == "__main__":
    sys.exit(main())
