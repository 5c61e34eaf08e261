"""A dry run of a failover: everything it would look at is looked at, and nothing is changed.

The source is alive while this runs. So an address that answers is in use by the source, as it should be; what
is found out is that it *can* be taken: there is an interface, and the question whether somebody has it gets
an answer.
"""

import shlex
import shutil
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

import trio

from replicator import limits
from replicator.agent.failover import procedure
from replicator.agent.failover.failover_plan import Failover
from replicator.agent.failover.group_copies import GroupCopies, GroupCopy
from replicator.agent.failover.group_scripts import GroupScripts
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.procedure import Arbiter, Data, Question
from replicator.agent.state import new_uuid
from replicator.errors import ReplicatorError
from replicator.failover import addresses
from replicator.failover.candidate import Order
from replicator.failover.phases import OWNING
from replicator.failover_drills import Drill, DrillState
from replicator.failover_test import FailoverTest, Mark, TestedPart, TestedStep
from replicator.failovers import Monitor, ScriptKind, TakeOver, WatchedAddress
from replicator.status import TargetDataState

_HERE = (ScriptKind.PRE_FAILOVER, ScriptKind.POST_FAILOVER, ScriptKind.PRE_FAILBACK, ScriptKind.POST_FAILBACK)


class Asking(Protocol):
    """`watching.Watching`."""

    async def ask_once(self, monitor: Monitor, address: WatchedAddress, timeout_s: float) -> str: ...


class Reaching(Protocol):
    """Asks a witness for a sign of life: raises ReplicatorError if there is none."""

    async def __call__(self, monitor: Monitor) -> None: ...


class Checkup:
    """`Service.failover.checkup`. `drills`: those of a group, the newest first."""

    def __init__(
        self,
        groups: Groups,
        copies: GroupCopies,
        group_scripts: GroupScripts,
        asking: Asking,
        data: Data,
        arbiter: Arbiter,
        reach_witness: Reaching,
        failover: Failover,
        drills: Callable[[str], Awaitable[Sequence[Drill]]],
    ) -> None:
        self._groups = groups
        self._copies = copies
        self._scripts = group_scripts
        self._asking = asking
        self._data = data
        self._arbiter = arbiter
        self._reach_witness = reach_witness
        self._failover = failover
        self._drills = drills

    async def test(self, key: str) -> FailoverTest:
        """Raises NotFoundError: there is no such monitor."""
        monitor = self._groups.find(key)
        looks = (
            self._signs_of_life,
            self._addresses,
            self._copies_of,
            self._permission,
            self._witness,
            self._programs,
            self._last_drill,
        )
        found: list[list[TestedPart]] = [[] for _ in looks]

        async def look(number: int) -> None:
            found[number] = await looks[number](monitor)

        async with trio.open_nursery() as nursery:
            for number in range(len(looks)):
                nursery.start_soon(look, number)
        checks = [_about_phase(monitor), *(part for parts in found for part in parts)]
        failed = [part for part in checks if part.result is Mark.FAILED]
        warned = [part for part in checks if part.result is Mark.WARNING]
        return FailoverTest(
            name=monitor.name,
            ready=not failed,
            verdict=_verdict(monitor, failed, warned),
            checks=tuple(checks),
            steps=tuple(self._steps(monitor)),
        )

    # --- what is looked at ---

    async def _signs_of_life(self, monitor: Monitor) -> list[TestedPart]:
        async def ask(address: WatchedAddress) -> TestedPart:
            kinds = ", ".join(check.kind for check in address.checks)
            reason = await self._asking.ask_once(monitor, address, limits.MONITOR_FIRST_S)
            text = f"does not answer: {reason}" if reason else f"answers ({kinds})"
            return _part(f"monitors {address.address}", Mark.WARNING if reason else Mark.OK, text)

        return await _all([partial(ask, a) for a in monitor.settings.addresses if a.monitored])

    async def _addresses(self, monitor: Monitor) -> list[TestedPart]:
        try:
            host = await addresses.look()
            wanted = addresses.wanted(monitor.settings)
        except (ReplicatorError, OSError) as error:
            return [_part("addresses", Mark.FAILED, str(error))]

        async def look(item: addresses.Wanted) -> TestedPart:
            name = f"takes {item.address}"
            try:
                place = addresses.place_of(item, host)
            except ReplicatorError as error:
                return _part(name, Mark.FAILED, str(error))
            if (link := host.has(item.address)) is not None:
                mark = Mark.OK if monitor.phase in OWNING else Mark.FAILED
                return _part(name, mark, f"this host has it already, on {link.name}")
            try:
                await addresses.probe([place], host)
            except addresses.ConflictError as error:
                return _part(name, Mark.OK, f"on {place.link.name}; now {error}")
            except OSError as error:
                return _part(name, Mark.FAILED, f"nobody can be asked who has it: {error.strerror}")
            return _part(name, Mark.OK, f"on {place.link.name}; nobody there has it now")

        found = await _all([partial(look, item) for item in wanted])
        return found + [_part("addresses", Mark.WARNING, text) for text in addresses.risks(monitor.settings)]

    async def _copies_of(self, monitor: Monitor) -> list[TestedPart]:
        copies = await self._copies.of(monitor)
        if not copies:
            return [_part("copies", Mark.WARNING, "none: only addresses and scripts are failed over")]
        return [_about_copy(copy) for copy in copies]

    async def _permission(self, monitor: Monitor) -> list[TestedPart]:
        """Whether a failover that a person wants now would be begun."""
        copies = tuple(copy.connection for copy in await self._copies.of(monitor))
        order = TakeOver(group=monitor.uuid, copies=copies, parent_epoch=monitor.epoch)
        try:
            report = await self._data.look(order)
            flaws = {copy.repset or copy.connection: copy.problem for copy in report.copies if copy.problem}
            question = Question(
                monitor=monitor,
                order=Order.PERSON,
                attempt=new_uuid(),
                epoch=report.epoch,
                copies=copies,
                flaws=flaws,
            )
            await self._arbiter.check(question)
        except ReplicatorError as error:
            return [_part("permission", Mark.FAILED, str(error))]
        return [_part("permission", Mark.OK, f"a person may fail over; the epoch would be {report.epoch}")]

    async def _witness(self, monitor: Monitor) -> list[TestedPart]:
        settings = monitor.settings
        if not settings.witness:
            return [] if settings.fence_command or not settings.automatic else [_NOBODY_CERTAIN]
        try:
            await self._reach_witness(monitor)
        except ReplicatorError as error:
            return [_part("witness", Mark.FAILED, f"{settings.witness}: {error}")]
        return [_part("witness", Mark.OK, f"{settings.witness} answers")]

    async def _programs(self, monitor: Monitor) -> list[TestedPart]:
        found = []
        if command := monitor.settings.fence_command:
            missing = _missing_program(command)
            text = f"{missing} is not here" if missing else f"{command} (not run)"
            found.append(_part("fence command", Mark.FAILED if missing else Mark.OK, text))
        for view in self._scripts.views(monitor.uuid):
            stops = view.script.on_failure == "stop"
            bad = [p for p in view.problems if "others than root" not in p]
            mark = (Mark.FAILED if stops else Mark.WARNING) if bad else Mark.WARNING
            text = "; ".join(view.problems) or f"{view.script.path} can be run"
            if view.kind not in _HERE and not view.problems:
                text = f"{view.script.path} is run by others: not looked at"
            found.append(_part(f"{view.kind} script", mark if view.problems else Mark.OK, text))
        return found

    async def _last_drill(self, monitor: Monitor) -> list[TestedPart]:
        known = await self._drills(monitor.uuid)
        if not known:
            text = f"never: do the services start on the copies? dtctl failover drill {monitor.name}"
            return [_part("last drill", Mark.WARNING, text)]
        passed = known[0].state in (DrillState.PASSED, DrillState.KEPT, DrillState.RUNNING)
        return [_part("last drill", Mark.OK if passed else Mark.WARNING, known[0].text())]

    # --- what would be done ---

    def _steps(self, monitor: Monitor) -> list[TestedStep]:
        plan = self._failover.plan({"monitor": monitor, "order": Order.PERSON})
        return [TestedStep(name=step.name, text=_would(step.name, monitor)) for step in plan.steps]


def _part(name: str, result: Mark, text: str) -> TestedPart:
    return TestedPart(name=name, result=result, text=" ".join(text.split()))


_NOBODY_CERTAIN = _part(
    "witness",
    Mark.WARNING,
    "none, and no fence command: if only the line between the two is cut, both will write",
)


async def _all(looks: Sequence[Callable[[], Awaitable[TestedPart]]]) -> list[TestedPart]:
    """At the same time; in their order."""
    found: dict[int, TestedPart] = {}

    async def look(number: int) -> None:
        found[number] = await looks[number]()

    async with trio.open_nursery() as nursery:
        for number in range(len(looks)):
            nursery.start_soon(look, number)
    return [found[number] for number in range(len(looks))]


def _about_phase(monitor: Monitor) -> TestedPart:
    how = "automatic" if monitor.settings.automatic else "a person is asked"
    if monitor.phase in OWNING:
        return _part("monitor", Mark.FAILED, f"{monitor.phase}: this host has taken over already")
    return _part("monitor", Mark.OK, f"{monitor.phase} ({how})")


def _about_copy(copy: GroupCopy) -> TestedPart:
    name = f"copy of {copy.repset or copy.connection}"
    if copy.problem:
        return _part(name, Mark.FAILED, copy.problem)
    if copy.data_state != TargetDataState.OK:
        return _part(name, Mark.FAILED, f"is no state that its source was in: {copy.data_state}")
    where = ", ".join(root.replica for root in copy.roots)
    if copy.restoring:
        return _part(name, Mark.WARNING, f"in {where}; stands still, for a restore or a drill")
    if not copy.connected:
        return _part(name, Mark.WARNING, f"in {where}; complete, and its source is not connected")
    waits = f"; {copy.waiting_bytes} bytes have arrived and are not applied" if copy.waiting_bytes else ""
    return _part(name, Mark.OK, f"in {where}; complete{waits}")


def _missing_program(line: str) -> str:
    """The first word of a shell's line, if it is no program here; "" if it is, or nobody can tell."""
    try:
        words = shlex.split(line)
    except ValueError:
        return line
    plain = words and words[0].replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum()
    return words[0] if plain and shutil.which(words[0]) is None and words[0] not in _BUILTIN else ""


_BUILTIN = frozenset({"exit", "if", "for", "while", "cd", "exec", "set", "eval", "case", "until", "export"})


def _would(step: str, monitor: Monitor) -> str:
    settings = monitor.settings
    scripts = {f"{kind} script": script.path for kind, script in settings.scripts.items()}
    taken = ", ".join(a.address for a in settings.taken)
    return {
        procedure.CHECK: "look at the copies, and whether there is any use in beginning",
        procedure.FENCE: f"switch the source off: {settings.fence_command}",
        procedure.VOTE: f"wait until the source cannot write; ask {settings.witness or 'nobody else'}",
        procedure.PROBE: f"ask the networks who has {taken}",
        procedure.DRAIN: f"refuse the source, apply what has arrived, for at most {settings.drain_s:.0f} s",
        procedure.PROMOTE: "own the group by a higher epoch, durably: from here on nothing is taken back",
        procedure.OPEN: "end the locks of the copies, capture them, track what changes",
        procedure.ADDRESSES: f"take and announce {taken}",
        procedure.HOST_NAME: f"be called {settings.host_name}",
        procedure.TELL: "tell the source, the witness and other targets",
    }.get(step, scripts.get(step, ""))


def _verdict(monitor: Monitor, failed: Sequence[TestedPart], warned: Sequence[TestedPart]) -> str:
    if failed:
        return f"{monitor.name} could NOT be failed over now: {', '.join(part.name for part in failed)}"
    if warned:
        return f"{monitor.name} could be failed over; look at: {', '.join(part.name for part in warned)}"
    return f"{monitor.name} could be failed over"
