"""Verifies the copy of a connection while changes flow.

Each check stands at its place in the ordered stream, and the target compares with what it has exactly there.
What differs counts only if nothing touched it on the source from that place until a moment after it was read;
else it is looked at again. So load makes no difference where there is none.

Two tasks of a session use it: `run` reads, and the shipper calls `emit`. All changes happen between two
checkpoints.
"""

import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import trio

from replicator import limits
from replicator.bounds import Extent
from replicator.errors import ReplicatorError
from replicator.mirror.check_scan import Looked, Reader, content_bytes
from replicator.mirror.checks import (
    Aspect,
    CheckBatch,
    CheckNames,
    Finding,
    decode_findings,
    encode_checks,
)
from replicator.mirror.links import LinkTable
from replicator.mirror.scan import join
from replicator.net.frames import Checked, Checks
from replicator.ops import NO_IDENTITY, Flag, Kind, Record
from replicator.sender.changes import Changes, Wake
from replicator.sender.flow import Flow
from replicator.sender.mirrors import Mirrors
from replicator.sender.pace import Pace
from replicator.sender.shipments import Shipment, Totals
from replicator.sender.touched import QueuedChecks
from replicator.sender.verify_asking import Asked, Doubt, Side, made, read
from replicator.sender.verify_repair import bring
from replicator.sender.verify_run import Difference, VerifyOptions, VerifyRun, difference_of
from replicator.sender.verify_walk import Look, LookDirectory, LookFile, LookFiles, moves_of
from replicator.states import VerifyEvent
from replicator.status import VerifyPhase
from replicator.world import World

_SOON = frozenset({Aspect.MTIME})
"""What may differ although both are right: nobody has told it yet."""


class Verifier:
    """One run at most. `began`, `differs` and `ended` hear of it. `roots`: the captured directories."""

    def __init__(
        self,
        world: World,
        flows: list[Flow],
        mirrors: Mirrors,
        pace: Pace,
        totals: Totals,
        changes: Changes,
        roots: list[bytes],
        *,
        shipper: Wake,
        began: Callable[[VerifyRun], None],
        differs: Callable[[VerifyRun, list[Difference]], None],
        ended: Callable[[VerifyRun], None],
    ) -> None:
        self.run_under_way: VerifyRun | None = None
        self.last: VerifyRun | None = None
        self.understood = False  # by the target of the session
        self.connected = False
        self.budget_bytes_per_s = 0  # of a run in the background
        self._world = world
        self._flows = flows
        self._mirrors = mirrors
        self.met_orphans: Callable[[], None] = lambda: None
        self._pace = pace
        self._totals = totals
        self._changes = changes
        self._roots = roots if len(roots) > 1 else [b""]  # one needs no name
        self._shipper = shipper
        self._began = began
        self._differs = differs
        self._ended = ended
        self._sides: list[Side] = []
        self._asked: dict[int, Asked] = {}
        self._doubts: list[Doubt] = []
        self._found: dict[tuple[int, bytes], Difference] = {}
        self._to_bring: list[Difference] = []
        self._number = world.clock.wall_ns() // 1000  # larger than any of an earlier process
        self._weight = 0
        self._credit_s = 0.0  # when the budget allows the next read

    # --- what an administrator asks for ---

    def start(
        self,
        options: VerifyOptions,
        *,
        background: bool = False,
        scheduled: bool = False,
        taken_up: bool = False,
    ) -> VerifyRun:
        """VF-01. Refused while a mirror runs. `taken_up`: of a predecessor, so it waits instead."""
        if self.run_under_way is not None:
            raise ReplicatorError("a verification is running: stop it first (dtctl verify stop)")
        if self._mirrors.run is not None and not taken_up:
            raise ReplicatorError("a mirror is running: verify when it has ended")
        if not all(flow.touched.usable for flow in self._flows):
            raise ReplicatorError("the journals cannot be looked at: restart the agent")
        if not taken_up:
            if not self.connected:
                raise ReplicatorError("the target is not connected: nothing can be compared with it")
            if not self.understood:
                raise ReplicatorError("the target's agent is of a release that does not verify")
        clock = self._world.clock
        identifier = str(uuid.UUID(int=self._world.random.getrandbits(128)))
        run = VerifyRun(identifier, options, clock.monotonic_ns(), clock.wall_ns(), background, scheduled)
        self.run_under_way = self.last = run
        for flow in self._flows:
            links = LinkTable()
            side = Side(flow, Reader(flow.source, links), links)
            for root in sorted(flow.filter.roots, reverse=True):
                side.walk.push(LookDirectory(root))
            self._sides.append(side)
        self._began(run)
        self._changes.notify()
        return run

    @property
    def may_start(self) -> bool:
        """Whether a verification could begin now, if none is under way."""
        return self.connected and self.understood and self._mirrors.run is None

    def stop(self) -> None:
        run = self._running()
        run.happen(VerifyEvent.STOP)
        self._end(run)

    def pause(self) -> None:
        run = self._running()
        if run.phase is not VerifyPhase.RUNNING:
            raise ReplicatorError(f"the verification is {run.phase}")
        run.happen(VerifyEvent.PAUSE)
        self._changes.notify()

    def resume(self) -> None:
        run = self.run_under_way
        if run is None or run.phase is not VerifyPhase.PAUSED:
            raise ReplicatorError("no verification is paused")
        run.happen(VerifyEvent.RESUME)
        self._changes.notify()

    def _running(self) -> VerifyRun:
        if self.run_under_way is None:
            raise ReplicatorError("no verification is running")
        return self.run_under_way

    @property
    def waits_for(self) -> str:
        """Why the run does not go on; "": it does."""
        run = self.run_under_way
        if run is None or run.phase is VerifyPhase.REPAIRING:
            return ""
        if run.phase is VerifyPhase.PAUSED:
            return "it is paused"
        if not self.connected:
            return "the target is not connected"
        return "a mirror is running" if self._mirrors.run is not None else ""

    # --- a session ---

    def session_begins(self, *, understood: bool) -> None:
        self.connected, self.understood = True, understood

    def session_over(self) -> None:
        """What is on its way is asked again in the next one."""
        self.connected = False
        self._ask_all_again()

    def _ask_all_again(self) -> None:
        for asked in self._asked.values():
            for index in range(len(asked.checks)):
                self._look_again(asked, index)
        for doubt in self._doubts:
            self._look_again(doubt.asked, doubt.finding.index)
        self._forget_asked()

    def _forget_asked(self) -> None:
        self._asked.clear()
        self._doubts.clear()
        self._weight = 0
        for flow in self._flows:
            flow.checks.clear()

    async def run(self) -> None:
        """Until cancelled, with its session."""
        while True:
            wait_s = await self._step()
            if wait_s:
                with trio.move_on_after(wait_s):
                    await self._changes.wait()

    async def _step(self) -> float:
        """Do something. Returns how long to wait for news: 0: go on at once."""
        run = self.run_under_way
        if run is None:
            return float("inf")
        self._decide(run)
        if run.phase is VerifyPhase.REPAIRING:
            if self._mirrors.run is None:
                self._repaired(run)
                return 0
            return limits.CHECK_AGAIN_S
        if run.phase is not VerifyPhase.RUNNING or self._mirrors.run is not None or not self.understood:
            self._pace.rest()
            return self._until_decided()
        if len(self._asked) >= limits.CHECKS_IN_FLIGHT or self._weight >= self._pace.window_bytes:
            return self._until_decided()
        if len(self._to_bring) >= limits.DIFFERENCES_KEPT and not (self._asked or self._doubts):
            self._repair(run)
            return 0
        now_s = trio.current_time()
        side, look = self._next(now_s)
        if look is None or side is None:
            if self._asked or self._doubts or any(s.walk for s in self._sides):
                return self._until_decided()
            self._all_compared(run)
            return 0
        pause_s = self._pace.pause_s(in_flight=bool(self._asked))
        if run.background and self.budget_bytes_per_s:
            pause_s = max(pause_s or 0.0, self._credit_s - now_s)
        if pause_s is None or pause_s > 0:
            side.walk.push(look)
            return min(pause_s or limits.CHECK_AGAIN_S, self._until_decided())
        await self._look(run, side, look)
        return 0

    def _until_decided(self) -> float:
        now_s = trio.current_time()
        dues = [doubt.ready_s for doubt in self._doubts]
        dues += [side.walk.due_s for side in self._sides if side.walk.due_s is not None]
        later = [due for due in dues if due > now_s]
        return min((due - now_s for due in later), default=limits.CHECK_AGAIN_S)

    def _next(self, now_s: float) -> tuple[Side | None, Look | None]:
        for side in self._sides:
            look = side.walk.next(now_s)
            if look is not None:
                return side, look
        return None, None

    # --- reading ---

    async def _look(self, run: VerifyRun, side: Side, look: Look) -> None:
        flow, touched = side.flow, side.flow.touched
        if not any(a.flow is flow for a in self._asked.values()) and not any(
            d.asked.flow is flow for d in self._doubts
        ):
            touched.begin()  # nobody asks for what was before
        try:
            place = touched.open_place()
            self._pace.step_begins()
            side.recently.begin(look)
            try:
                found = await self._world.in_thread(partial(read, run, side, look, self._pace))
            finally:
                side.recently.end(trio.current_time())
            self._pace.step_ends()
        except BaseException:
            touched.abort_place()
            side.walk.push(look)
            raise
        if (
            run is not self.run_under_way or touched.place is None
        ):  # stopped meanwhile, or the session is over
            touched.abort_place()
            return
        changes = touched.close_place()
        checks, looked, looks, size = made(run, side, look, found, changes)
        read_s = trio.current_time()
        if run.background and self.budget_bytes_per_s:
            cost = size + limits.CHECK_COST_BYTES * len(checks)
            self._credit_s = max(self._credit_s, read_s) + cost / self.budget_bytes_per_s
        if not checks:
            self._shipper.ring()  # the place is open no more
            return
        self._number += 1
        weight = size // limits.COMPARE_WEIGHT + limits.CHECK_COST_BYTES * len(checks)
        self._asked[self._number] = Asked(flow, place, checks, looked, looks, weight, read_s)
        self._weight += weight
        flow.checks.append(QueuedChecks(place, checks, self._number, size))
        self._shipper.ring()

    # --- the stream ---

    def emit(self, flow: Flow, queued: QueuedChecks, out: list[Shipment]) -> None:
        """Checks have come to their place."""
        asked = self._asked.get(queued.key)
        if asked is None:
            return
        if self._mirrors.run is not None or flow.position.sequence != queued.place:
            # The target is not where it was read, or not what it is to be.
            del self._asked[queued.key]
            self._weight -= asked.weight
            for index in range(len(asked.checks)):
                self._look_again(asked, index)
            self._changes.notify()
            return
        data = encode_checks(CheckBatch(queued.key, flow.index, tuple(queued.checks)))
        out.append(Shipment(Checks(queued.key), data))
        self._pace.sent(queued.key, asked.weight, self._weight - asked.weight)
        asked.sent = True
        self._totals.sent_bytes += len(data)
        self._totals.mirror_bytes += len(data)

    def passed(self, flow: Flow, record: Record) -> None:
        """This is in the stream: what it moves from where nobody looked is looked at where it comes to."""
        if record.kind not in (Kind.RENAME, Kind.LINK):
            return
        side = next((s for s in self._sides if s.flow is flow), None)
        if side is None:
            return
        directory = bool(record.flags & Flag.DIRECTORY)
        for before, after in moves_of(record):
            if directory:
                self._look_at(side, LookDirectory(after))
            elif not side.walk.reaches(after) and self._is_open(side, before):
                self._look_at(side, LookFile(after))

    def _look_at(self, side: Side, look: LookDirectory | LookFile) -> None:
        run = self.run_under_way
        if not side.walk.again(look, trio.current_time()) and run is not None:
            run.changing += 1

    def _is_open(self, side: Side, path: bytes) -> bool:
        """Whether it is not certain that what was at this path has been compared."""
        if side.walk.reaches(path) or path in side.recently:
            return True
        asked = [*self._asked.values(), *(doubt.asked for doubt in self._doubts)]
        return any(path in batch.paths for batch in asked if batch.flow is side.flow)

    def answered(self, frame: Checked) -> None:
        """The target has compared. Raises msgspec.DecodeError."""
        findings = decode_findings(frame.findings)
        asked = self._asked.pop(frame.number, None)
        run = self.run_under_way
        if asked is None or run is None:
            return
        self._pace.arrived(frame.number)
        self._weight -= asked.weight
        if frame.mirroring:
            for index in range(len(asked.checks)):
                self._look_again(asked, index)
        else:
            ready_s = max(asked.read_s + limits.CHECK_SETTLE_S, trio.current_time())
            for finding in findings:
                if finding.index < len(asked.checks):
                    self._doubts.append(Doubt(asked, finding, ready_s))
            differing = {finding.index for finding in findings}
            for index in range(len(asked.checks)):
                if index not in differing:
                    self._count(run, asked, index)
        self._changes.notify()

    # --- deciding ---

    def _decide(self, run: VerifyRun) -> None:
        now_s = trio.current_time()
        for side in self._sides:
            flow = side.flow
            side.recently.forget(now_s, flow.touched.head, flow.position.sequence)
            places = [a.place for a in self._asked.values() if a.flow is flow]
            places += [d.asked.place for d in self._doubts if d.asked.flow is flow]
            if places:
                flow.touched.read()
                flow.touched.forget(min(places))
        ready = [doubt for doubt in self._doubts if doubt.ready_s <= now_s]
        if ready:
            self._doubts = [doubt for doubt in self._doubts if doubt.ready_s > now_s]
            for doubt in ready:
                self._judge(run, doubt)
        if len(self._found) > limits.DIFFERENCES_SHOWN:
            self._tell(run, all_of_them=False)

    def _judge(self, run: VerifyRun, doubt: Doubt) -> None:
        """Whether a finding is a difference of the copy, or of the moment."""
        asked, finding = doubt.asked, doubt.finding
        index, touched = finding.index, asked.flow.touched
        check, look, looked = asked.checks[index], asked.looks[index], asked.looked[index]
        if touched.names_since(asked.place, check):
            self._look_again(asked, index)
            return
        if finding.problem:
            run.problem(check.path, f"target: {finding.problem}")
            self._count(run, asked, index)
            return
        if isinstance(check, CheckNames):
            self._extra(run, asked.flow, check, finding)
            return
        inode, aspects = check.identity.inode, set(finding.aspects)
        blocks = [
            (start, length)
            for start, length in finding.blocks
            if not touched.content_since(asked.place, inode, start, start + length)
        ]
        if touched.object_since(asked.place, inode):
            # Content that nobody touched may count; all else may have been changed.
            aspects &= {Aspect.CONTENT, Aspect.MISSING, Aspect.TYPE}
            if not blocks:
                aspects.discard(Aspect.CONTENT)
            if not aspects:
                only_late = set(finding.aspects) <= _SOON
                tries_max = limits.CHECK_MTIME_TRIES if only_late else limits.CHECK_TRIES
                self._look_again(asked, index, tries_max=tries_max, blocks=finding.blocks)
                return
        assert looked is not None
        if aspects <= _SOON and aspects and not self._is_told(look, looked):
            self._look_again(asked, index, tries_max=limits.CHECK_MTIME_TRIES)
            return
        if finding.peer:
            if isinstance(look, LookFile) and not look.apart:
                side = next(s for s in self._sides if s.flow is asked.flow)
                side.walk.again(LookFile(check.path, apart=finding.peer), trio.current_time())
            if not aspects:
                self._count(run, asked, index)
                return
        self._count(run, asked, index)
        difference = difference_of(
            asked.flow.index, check, _finding(finding, tuple(sorted(aspects)), tuple(blocks))
        )
        former = self._found.get((difference.flow, difference.path))
        if former is not None:
            former.add(difference)
        else:
            self._found[difference.flow, difference.path] = difference

    def _is_told(self, look: Look, looked: Looked) -> bool:
        """Whether its mtime has stood for so long that the journal has it."""
        return (
            isinstance(look, LookFile | LookDirectory)
            and look.ctime_ns == looked.ctime_ns
            and trio.current_time() - look.since_s >= limits.MTIME_TOLD_S
        )

    def _extra(self, run: VerifyRun, flow: Flow, check: CheckNames, finding: Finding) -> None:
        for name, there in finding.names:
            path = join(check.path, name)
            self._found[flow.index, path] = Difference(
                flow.index, path, NO_IDENTITY, 1, {Aspect.EXTRA}, None, there
            )
        run.extra += max(finding.count - len(finding.names), 0)

    def _look_again(
        self, asked: Asked, index: int, *, tries_max: int | None = None, blocks: tuple[Extent, ...] = ()
    ) -> None:
        """It cannot be said yet; of the content, of these blocks, while the others are right."""
        run = self.run_under_way
        look, looked = asked.looks[index], asked.looked[index]
        side = next((s for s in self._sides if s.flow is asked.flow), None)
        if run is None or side is None:
            return
        tries, now_s = look.tries + 1 if not isinstance(look, LookFiles) else 1, trio.current_time()
        if not asked.sent:
            tries -= 1  # the target was not even asked
        if tries >= (limits.CHECK_TRIES if tries_max is None else tries_max):
            run.changing += 1
            self._count(run, asked, index)
            return
        delay_s = min(limits.CHECK_AGAIN_S * 1.5 ** max(tries - 1, 0), limits.CHECK_AGAIN_MAX_S)
        ctime_ns = looked.ctime_ns if looked is not None else 0
        assert not isinstance(look, LookFiles)
        since_s = look.since_s if look.ctime_ns == ctime_ns and look.since_s else asked.read_s
        again: Look
        if isinstance(look, LookDirectory):
            again = LookDirectory(look.path, look.alone, tries, ctime_ns, since_s)
        else:
            again = replace(look, tries=tries, ctime_ns=ctime_ns, since_s=since_s)
            if blocks:
                again = replace(again, start=blocks[0][0], end=sum(blocks[-1]))
        if not side.walk.again(again, now_s + delay_s):
            run.changing += 1
            self._count(run, asked, index)

    def _count(self, run: VerifyRun, asked: Asked, index: int) -> None:
        """It was compared."""
        check, look = asked.checks[index], asked.looks[index]
        if isinstance(check, CheckNames) or (isinstance(look, LookFile) and look.apart):
            return
        run.read_bytes += content_bytes(check)
        if isinstance(look, LookDirectory):
            run.directories += 1
        elif not isinstance(look, LookFile) or look.counts:
            run.files += 1
            run.file_bytes += check.size

    # --- the end ---

    def _tell(self, run: VerifyRun, *, all_of_them: bool) -> None:
        """What differs is certain: count and log it."""
        told: list[Difference] = []
        under_way = {(side.flow.index, side.large) for side in self._sides}
        for key in sorted(self._found):
            if all_of_them or key not in under_way:
                told.append(self._found.pop(key))
        for difference in told:
            difference.root = self._roots[difference.flow]
            run.found(difference)
        self._differs(run, told)
        if run.options.remirror:
            self._to_bring += [d for d in told if d.aspects != {Aspect.EXTRA}]

    def _all_compared(self, run: VerifyRun) -> None:
        self._tell(run, all_of_them=True)
        if self._to_bring:
            self._repair(run)
        else:
            run.happen(VerifyEvent.END)
            self._end(run)

    def _repair(self, run: VerifyRun) -> None:
        wanted, self._to_bring = self._to_bring, []
        if run.options.newer:
            newer = [d for d in wanted if _is_newer(d)]
            run.left += len(wanted) - len(newer)
            wanted = newer
        if not wanted:
            return
        run.remirrored += len(wanted)
        run.remirrored_directories += sum(d.is_directory for d in wanted)
        run.happen(VerifyEvent.REPAIR)
        bring(self._mirrors, self._flows, wanted, checksum=run.options.checksum)
        self._changes.notify()

    def _repaired(self, run: VerifyRun) -> None:
        run.happen(VerifyEvent.COMPARE)

    def _end(self, run: VerifyRun) -> None:
        clock = self._world.clock
        if self._found:
            self._tell(run, all_of_them=True)
        run.finished_ns, run.finished_wall_ns = clock.monotonic_ns(), clock.wall_ns()
        self.run_under_way = None
        self._forget_asked()
        self._to_bring.clear()
        for side in self._sides:
            side.links.close()
        self._sides.clear()
        self._shipper.ring()
        self._ended(run)
        if run.extra and run.options.remirror and run.phase is VerifyPhase.COMPLETE and not run.background:
            self.met_orphans()
        self._changes.notify()


def _finding(finding: Finding, aspects: tuple[Aspect, ...], blocks: tuple[tuple[int, int], ...]) -> Finding:
    return Finding(finding.index, aspects, finding.there, blocks)


def _is_newer(difference: Difference) -> bool:
    """Whether the source's is newer; what is no file has no other rule than to be as on the source."""
    if difference.here is None or difference.there is None or difference.is_directory:
        return True
    return difference.here.mtime_ns > difference.there.mtime_ns
