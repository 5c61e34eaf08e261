"""The verifications of one connection: by hand, by a schedule (VF-04), and all the time in the background.

What is to be done is kept in `home/source/<connection>.verify`: it outlives sender, agent and host.
"""

import os
import sys
from collections.abc import Callable

import msgspec
import trio

from replicator import limits
from replicator.bounds import MALFORMED
from replicator.errors import ReplicatorError, UsageError
from replicator.queue.durable_file import read_if_there, replace_durably
from replicator.schedules import Schedule, every_text, next_after
from replicator.sender.run_reports import VERIFY, RunReports
from replicator.sender.verifier import Verifier
from replicator.sender.verify_log import VerifyLog
from replicator.sender.verify_run import Difference, VerifyOptions, VerifyRun
from replicator.status import VerifyPhase, VerifyProgress
from replicator.world import World


class VerifyState(msgspec.Struct):
    """What is remembered."""

    wanted: VerifyOptions | None = None  # a verification by hand that has not ended
    paused: bool = False  # that one
    schedule: Schedule | None = None
    schedule_options: VerifyOptions = VerifyOptions()
    next_s: float | None = None  # seconds since the epoch; in the past: one was missed
    background_bytes_per_s: int = 0
    background_options: VerifyOptions = VerifyOptions(checksum=True)
    everything_since_s: float | None = None  # everything was looked at later than this


class VerifyControl:
    """Assembled before the verifier that it drives: see `attach`. `ring`: the agent is to look."""

    def __init__(
        self, world: World, path: str, log: VerifyLog, reports: RunReports, ring: Callable[[], object]
    ) -> None:
        self.log = log
        self.reports = reports
        self._world = world
        self._path = path
        self._ring = ring
        self._removed = False
        self._background_s = 0.0  # when the next walk may begin
        self._logged = ""  # id of the run whose beginning is in the log
        self.state = self._load()
        self._verifier: Verifier | None = None

    def attach(self, verifier: Verifier) -> None:
        """Take up what a predecessor had left."""
        self._verifier = verifier
        verifier.budget_bytes_per_s = self.state.background_bytes_per_s
        if self.state.wanted is not None:
            verifier.start(self.state.wanted, taken_up=True)
            if self.state.paused:
                verifier.pause()

    @property
    def verifier(self) -> Verifier:
        assert self._verifier is not None
        return self._verifier

    # --- what an administrator asks for ---

    def start(self, options: VerifyOptions) -> str:
        """VF-01. Returns the id of the run."""
        check(options)
        self._make_room()
        return self._start(options)

    def _start(self, options: VerifyOptions, *, scheduled: bool = False) -> str:
        run = self.verifier.start(options, scheduled=scheduled)
        self.state.wanted, self.state.paused = options, False
        self._save()
        return run.run_id

    def _make_room(self) -> None:
        run = self.verifier.run_under_way
        if run is not None and run.background:
            self.verifier.stop()

    def act(self, action: str) -> None:
        """`stop`, `pause` or `resume`."""
        verifier = self.verifier
        if action == "stop":
            run = verifier.run_under_way
            if run is not None and run.background:
                raise ReplicatorError("it is the verification in the background: dtctl verify background off")
            verifier.stop()
        elif action == "pause":
            verifier.pause()
        elif action == "resume":
            verifier.resume()
        else:
            raise UsageError(f"unknown action {action!r}")
        self.state.paused = action == "pause"
        self._save()

    def schedule(self, schedule: Schedule | None, options: VerifyOptions) -> None:
        """VF-04. None: no more."""
        if schedule is not None:
            check(options)
            if not 0 <= schedule.every_s <= limits.SCHEDULE_MAX_S:
                raise UsageError(f"every {every_text(schedule.every_s)}: must be at most a year")
        now_s = self._world.clock.wall_ns() / 1e9
        self.state.schedule, self.state.schedule_options = schedule, options
        self.state.next_s = None
        if schedule is not None:
            passed = schedule.first <= now_s
            self.state.next_s = now_s if passed and not schedule.every_s else schedule.first
            if passed and schedule.every_s and now_s - schedule.first > limits.SCHEDULE_LOOK_S * 2:
                self.state.next_s = next_after(schedule, now_s)
        self._save()

    def background(self, bytes_per_s: int, options: VerifyOptions) -> None:
        """0: no more."""
        if bytes_per_s < 0:
            raise UsageError("a budget is a number of bytes per second; 0 ends it")
        check(options)
        self._make_room()
        self.state.background_bytes_per_s, self.state.background_options = bytes_per_s, options
        self._background_s = 0.0
        self.verifier.budget_bytes_per_s = bytes_per_s
        self._save()

    def progress(self, *, names: bool = False) -> VerifyProgress:
        """Of the run under way, or of the last, and what is to come."""
        verifier, state, clock = self.verifier, self.state, self._world.clock
        run = verifier.last
        progress = run.progress(clock.monotonic_ns(), names=names) if run is not None else VerifyProgress()
        since_s = state.everything_since_s
        return msgspec.structs.replace(
            progress,
            waits_for=verifier.waits_for,
            next_run=state.next_s,
            schedule=self._schedule_text(),
            background_bytes_per_s=state.background_bytes_per_s,
            oldest_seconds=None if since_s is None else max(clock.wall_ns() / 1e9 - since_s, 0.0),
        )

    def _schedule_text(self) -> str:
        schedule = self.state.schedule
        if schedule is None:
            return ""
        every = f"every {every_text(schedule.every_s)}" if schedule.every_s else "once"
        options = self.state.schedule_options.text
        return f"{every} ({options})" if options else every

    # --- by itself ---

    async def run(self) -> None:
        """Start what is due. Until cancelled."""
        while True:
            self.look()
            await trio.sleep(limits.SCHEDULE_LOOK_S)

    def look(self) -> None:
        """Whether something is to begin now."""
        state, verifier = self.state, self.verifier
        now_s = self._world.clock.wall_ns() / 1e9
        run = verifier.run_under_way
        if state.next_s is not None and state.next_s <= now_s and (run is None or run.background):
            try:
                if verifier.may_start:
                    self._make_room()
                    self._start(state.schedule_options, scheduled=True)
                    # Only once, however many were missed.
                    state.next_s = next_after(state.schedule, now_s) if state.schedule is not None else None
                    if state.next_s is None:
                        state.schedule = None
                    self._save()
                    self._ring()
            except ReplicatorError as error:
                print(f"the verification that is due has to wait: {error}", file=sys.stderr, flush=True)
        elif (
            state.background_bytes_per_s
            and run is None
            and verifier.may_start
            and trio.current_time() >= self._background_s
        ):
            verifier.start(state.background_options, background=True)

    # --- what the verifier tells ---

    def began(self, run: VerifyRun) -> None:
        if not run.background:  # that one begins all the time
            self._log_beginning(run)

    def differs(self, run: VerifyRun, differences: list[Difference]) -> None:
        if differences:
            self._log_beginning(run)
            self.log.differs(run, differences)

    def ended(self, run: VerifyRun) -> None:
        if run.background and run.phase is VerifyPhase.STOPPED:
            return
        if run.background:
            self._background_s = trio.current_time() + limits.BACKGROUND_PAUSE_S
        if self._logged == run.run_id:
            self.log.end(run)
        self.reports.add(run.report())
        if run.phase is VerifyPhase.COMPLETE:
            self.state.everything_since_s = run.started_wall_ns / 1e9
        if not run.background:
            self.state.wanted, self.state.paused = None, False
        self._save()
        self._ring()

    def _log_beginning(self, run: VerifyRun) -> None:
        if self._logged != run.run_id:
            self._logged = run.run_id
            self.log.begin(run)

    # --- the file ---

    def _load(self) -> VerifyState:
        data = read_if_there(self._world.disk, self._path)
        if data is None:
            return VerifyState()
        try:
            return msgspec.json.decode(data, type=VerifyState)
        except MALFORMED as error:
            print(f"{self._path}: damaged, schedules are lost: {error}", file=sys.stderr, flush=True)
            return VerifyState()

    def _save(self) -> None:
        if self._removed:
            return
        self._world.disk.makedirs(os.path.dirname(self._path))
        replace_durably(self._world.disk, self._path, [msgspec.json.encode(self.state)])

    def remove(self) -> None:
        """The connection is gone for good. The log stays: it is the administrator's."""
        self._removed = True
        self.reports.remove()
        try:
            self._world.disk.unlink(self._path)
        except OSError:
            pass  # there is none

    def history(self, count: int | None = None) -> list[object]:
        return [*self.reports.newest((VERIFY,), count)]


def check(options: VerifyOptions) -> None:
    """UsageError unless they make sense."""
    if options.newer and not options.remirror:
        raise UsageError("newer says which files are brought, and nothing is: add remirror (--remirror)")
