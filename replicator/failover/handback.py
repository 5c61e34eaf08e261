"""The way home, decided: what a failback finds on both sides, whether it may begin, what it will do. Pure.

After a failover the target **owns** the group; the former source is **home**: its copies of the return
connections get what the owner's programs write.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from replicator.failovers import Monitor, Phase, ScriptKind

Mark = tuple[int, int]
"""(sequence, chain) of an operation in a journal."""


class Order(StrEnum):
    """FB-04, and the alternative to going home at all."""

    RESTORE_FIRST = "restore-first"  # the owner serves until home has everything; then the switch
    FAILBACK_FIRST = (
        "failback-first"  # services stop and addresses go first; home opens when it has everything
    )
    STAY = "stay"  # the owner stays where it is, and home protects it


class Then(StrEnum):
    """FB-01: what becomes of monitoring."""

    MONITOR = "monitor"
    STOP = "stop"


class HomeCopy(msgspec.Struct, frozen=True, kw_only=True):
    """What home has of one connection of the group. `connection`: uuid of the forward one.

    `prepared`: its own tail is kept, and it may be brought what differs. `problem`: why it can never become
    exact as it is; "": it can. `silent`: what keeps it does not answer, which may be because it just starts.
    """

    connection: str
    repset: str = ""
    places: tuple[str, ...] = ()
    prepared: bool = False
    exact: bool = False
    data_state: str = ""
    problem: str = ""
    silent: bool = False


class Home(msgspec.Struct, frozen=True, kw_only=True):
    """The agent that was the source before the failover, as it answered; `unreached`: why it did not."""

    unreached: str = ""
    agent: str = ""  # uuid
    name: str = ""
    host: str = ""
    epoch: int = 0  # the highest of the group that it knows of
    follows: bool = False  # it knows that it was superseded, and its mounts do not write
    copies: tuple[HomeCopy, ...] = ()
    bundles: tuple[str, ...] = ()  # ids of what is kept of its own branch
    waits: str = ""  # why it does not become a copy by itself; "": it does, or is

    @property
    def is_prepared(self) -> bool:
        return all(copy.prepared for copy in self.copies)

    @property
    def is_silent(self) -> bool:
        return any(copy.silent for copy in self.copies)


class Behind(msgspec.Struct, frozen=True, kw_only=True):
    """What one return connection has still to bring. None: it does not know yet."""

    connection: str  # uuid of the forward one
    state: str = ""
    operations: int | None = None
    bytes: int | None = None


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    monitor: Monitor
    owner: str  # name of the agent that owns the group, which is this one
    order: Order
    then: Then = Then.MONITOR
    home: Home
    behind: tuple[Behind, ...] = ()
    connections: tuple[str, ...] = ()  # uuids of the forward ones that were promoted


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """`refused`: why it cannot begin; empty: it can. `state`, `will`: for people, a line each, in order."""

    order: Order
    then: Then
    refused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    will: tuple[str, ...] = ()
    bytes_behind: int = 0


def preview(situation: Situation) -> Preview:
    return Preview(
        order=situation.order,
        then=situation.then,
        refused=tuple(_refusals(situation)),
        warnings=tuple(_warnings(situation)),
        state=tuple(_state(situation)),
        will=tuple(_will(situation)),
        bytes_behind=sum(behind.bytes or 0 for behind in situation.behind),
    )


def disagreement(heads: Mapping[str, Mapping[str, Mark]], held: Mapping[str, Mapping[str, Mark]]) -> str:
    """Why home has not exactly what the owner wrote; "": it has. Both by connection and journal. A mark is a
    number and a proof: equal ones mean equal histories.
    """
    for connection, journals in heads.items():
        if connection not in held:
            return f"the copy of connection {connection} is missing there"
        for journal, head in journals.items():
            mark = held[connection].get(journal, (0, 0))
            if mark[0] != head[0]:
                return f"journal {journal} ends at operation {head[0]} here, at {mark[0]} there"
            if mark != head:
                return f"operation {head[0]} of journal {journal} is another one there: compare both sides"
    return ""


_OWNS = (Phase.ACTIVE, Phase.HANDING_BACK)


def _refusals(situation: Situation) -> list[str]:
    monitor, home = situation.monitor, situation.home
    name = monitor.name
    if monitor.phase not in _OWNS:
        return [f"{name} is {monitor.phase}: there is nothing to hand back"]
    if home.unreached:
        source = monitor.source_name or monitor.settings.source_host
        return [
            f"{source} does not answer: {home.unreached}. Start its agent; if it is lost for good, this host"
            f" stays the owner: dtctl failover remove {name} --even-if-owner"
        ]
    found = []
    if monitor.source_uuid and home.agent != monitor.source_uuid:
        found.append(
            f"{home.name} is another agent than {monitor.source_name}, which was the source: restore to it"
            " with protection (dtctl restore start --protect), then add a monitor for it"
        )
    if home.epoch > monitor.epoch:
        found.append(f"{home.name} knows of a later owner (epoch {home.epoch}, here {monitor.epoch})")
    if not home.follows:
        found.append(
            f"{home.name} has not accepted yet that {situation.owner} owns {name}: wait, or look there"
        )
    copies = {copy.connection: copy for copy in home.copies}
    for connection in situation.connections:
        copy = copies.get(connection)
        if copy is None:
            found.append(f"{home.name} has nothing of connection {connection}: restore to it first")
        elif copy.silent:
            found.append(
                f"{copy.repset} on {home.name} does not answer yet: {copy.problem}. Its agent goes on"
                f" starting it: try again, and look there (dtctl events on {home.name}) if it stays so"
            )
        elif copy.problem:
            found.append(f"{copy.repset} on {home.name}: {copy.problem}")
    return found


def _warnings(situation: Situation) -> list[str]:
    found = []
    home, order = situation.home, situation.order
    if home.bundles:
        bundles = ", ".join(home.bundles)
        found.append(
            f"{home.name} had written what {situation.owner} never had: it is kept there (dtctl divergence"
            f" show {bundles})"
        )
    if home.waits and not home.is_prepared:
        found.append(
            f"{home.name} waits ({home.waits}): going on means that what {situation.owner} has survives; what"
            f" {home.name} wrote is kept there in a bundle first"
        )
    if order is Order.FAILBACK_FIRST:
        found.append("programs wait, or fail, until everything is there: restore-first takes seconds instead")
    if situation.then is Then.STOP and order is not Order.STAY:
        found.append(f"{home.name} is not monitored afterwards")
    return found


def _state(situation: Situation) -> list[str]:
    monitor, home = situation.monitor, situation.home
    if monitor.phase not in _OWNS:
        return [
            f"{situation.owner} has not taken over from {monitor.source_name or monitor.settings.source_host}"
        ]
    lines = [f"{situation.owner} owns {monitor.name} since epoch {monitor.epoch}, and serves"]
    if home.unreached:
        return [*lines, f"{monitor.source_name or monitor.settings.source_host}: {home.unreached}"]
    follows = "follows" if home.follows else "does not follow yet"
    lines.append(f"{home.name} at {home.host} {follows}")
    behind = {entry.connection: entry for entry in situation.behind}
    for copy in home.copies:
        places = ", ".join(copy.places)
        if not places:
            continue  # its connection has ended: only addresses have moved
        if not copy.prepared:
            how = "is not prepared yet"
        else:
            entry = behind.get(copy.connection)
            how = _how_far(copy, entry)
        lines.append(f"{copy.repset} in {places} {how}")
    return lines


def _how_far(copy: HomeCopy, behind: Behind | None) -> str:
    if behind is None or behind.operations is None:
        return "waits for what it lacks"
    if copy.exact and not behind.operations:
        return "has everything"
    if copy.exact:
        return f"lacks {behind.operations} operations ({behind.bytes or 0} bytes)"
    return f"is being brought what differs ({behind.bytes or 0} bytes are left)"


def _will(situation: Situation) -> list[str]:
    monitor, home = situation.monitor, situation.home
    owner, there = situation.owner, home.name or monitor.source_name or monitor.settings.source_host
    scripts = monitor.settings.scripts
    addresses = ", ".join(a.address for a in monitor.settings.taken)
    bring = f"bring to {there} what it lacks"
    stop = [f"run the pre-failback script of {owner}"] if ScriptKind.PRE_FAILBACK in scripts else []
    stop.append(f"hold up programs that write on {owner}")
    move = [f"move {addresses} from {owner} to {there}"] if addresses else []
    hand = [
        f"make sure that {there} has every operation, and hand {monitor.name} over to it (epoch"
        f" {monitor.epoch + 1}); until here everything can be taken back"
    ]
    opened = [f"let programs write on {there}"]
    after = [f"keep on {owner} the copy of {there} again, without a mirror"]
    if ScriptKind.POST_FAILBACK in scripts:
        after.append(f"run the post-failback script of {owner}")
    if ScriptKind.SOURCE_POST_FAILBACK in scripts:
        after.append(f"have {there} run its post-failback script")
    watched = "watch" if situation.then is Then.MONITOR else "not watch"
    after.append(f"{watched} {there} from {owner}")
    match situation.order:
        case Order.RESTORE_FIRST:
            return [f"{bring}, while {owner} serves", *stop, *hand, *move, *opened, *after]
        case Order.FAILBACK_FIRST:
            return [*stop, *move, bring, *hand, *opened, *after]
        case Order.STAY:
            return [
                f"bring to {there} what it lacks, while {owner} serves",
                f"let {owner} be the source of {monitor.name}, and {there} keep its copy",
                f"have {there} watch {owner}, with the same settings"
                if situation.then is Then.MONITOR
                else f"have nobody watch {owner}",
            ]
