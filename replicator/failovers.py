"""What there is to say of failover: what is monitored and how, what becomes of it, and who owns a group.

A **group** is what fails over together: the copies on one target agent that come from one source agent, and
the addresses by which clients reach that source. It has one monitor (on the target), one uuid, and one
**epoch**: the number of its present term of ownership. Only a promotion raises it, and each promotion leaves
a durable record. Values only; `replicator/failover` decides and acts.

Sources: features FO-*, FB-*; beyond 4 (epochs, leases, witness).
"""

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from replicator import limits
from replicator.bounds import Count, Id

# --- what is watched ---


class CheckKind(StrEnum):
    """How a source is asked for a sign of life. The argument of a check: see `Check`."""

    AGENT = "agent"  # heartbeat of its agent
    PING = "ping"  # ICMP
    TCP = "tcp"  # a port accepts
    HTTP = "http"  # a URL answers below 400
    COMMAND = "command"  # a program on the target ends with 0


class Check(msgspec.Struct, frozen=True):
    kind: CheckKind
    argument: str = ""  # tcp: port; http: URL, or a path at the address; command: a shell's line
    misses: Count = 0  # FO-20: that may be missing of this one; 0: as of its address


class FailWhen(StrEnum):
    """FO-20: which of the monitored addresses must have failed."""

    ALL = "all"
    ANY = "any"


class Take(StrEnum):
    """FO-06: which addresses the target takes."""

    MONITORED = "monitored"
    ALL = "all"
    NONE = "none"  # others move them: a cluster, DNS, a script (FO-08)


class WatchedAddress(msgspec.Struct, frozen=True, kw_only=True):
    """An address of the source. `interface`: of the target, which takes it; "": the one whose network it is
    in.
    """

    address: str  # IPv4 or IPv6 with its prefix, as in 10.0.0.5/24
    interface: str = ""
    interval_s: float = limits.MONITOR_INTERVAL_S
    misses: Count = limits.MONITOR_MISSES
    checks: tuple[Check, ...] = (Check(CheckKind.AGENT),)
    monitored: bool = True  # False: taken only (Take.ALL)

    @property
    def misses_min(self) -> int:
        """Of the check that fails first."""
        return min((check.misses or self.misses for check in self.checks), default=self.misses)

    @property
    def timeout_s(self) -> float:
        """FO-12: the shortest whole countdown."""
        return self.interval_s * self.misses_min


class ScriptKind(StrEnum):
    """FO-10."""

    QUESTION = "question"  # a person is asked whether to fail over
    PRE_FAILOVER = "pre-failover"
    POST_FAILOVER = "post-failover"
    PRE_FAILBACK = "pre-failback"
    POST_FAILBACK = "post-failback"
    SOURCE_POST_FAILBACK = "source-post-failback"  # on the source


class OnFailure(StrEnum):
    """What a script that fails, or takes too long, means for what is under way."""

    GO_ON = "go-on"
    STOP = "stop"


class Script(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    arguments: tuple[str, ...] = ()
    wait: bool = True
    timeout_s: float = limits.SCRIPT_TIMEOUT_S
    on_failure: OnFailure = OnFailure.GO_ON


class Lapse(StrEnum):
    """What the mounts of a source do whose lease has lapsed."""

    NONE = "none"  # go on: whoever has no witness
    SUSPEND = "suspend"  # changes wait
    READ_ONLY = "read-only"  # changes fail with EROFS
    IO_ERROR = "io-error"  # everything fails with EIO


class Policy(StrEnum):
    """Which branch of a fork survives, when both sides wrote (beyond 4.3; names after DRBD's)."""

    MANUAL = "manual"
    DISCARD_ZERO_CHANGES = "discard-zero-changes"
    PREFER_WITNESS_VOTE = "prefer-witness-vote"
    PREFER_NODE = "prefer-node"
    PREFER_NEWER_EPOCH = "prefer-newer-epoch"
    PREFER_MOST_CHANGES = "prefer-most-changes"


class Phase(StrEnum):
    """Of a group, on its target. Its table is in `replicator/failover/phases.py`."""

    WATCHING = "watching"
    ASKING = "asking"  # the source has failed; a person is asked
    DECLINED = "declined"  # a person said no; it can still be begun by hand
    TAKING_OVER = "taking over"
    ACTIVE = "failed over"
    HANDING_BACK = "failing back"
    IDLE = "not watching"


class MonitorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person chose. `copies`: uuids of the connections whose copies are promoted; empty: all that come
    from this source. It may have none at all (CF-03).
    """

    source_host: str
    source_port: int = limits.PORT
    addresses: tuple[WatchedAddress, ...] = ()
    fail_when: FailWhen = FailWhen.ALL
    take: Take = Take.MONITORED
    automatic: bool = False  # FO-09: a person is asked otherwise
    copies: tuple[str, ...] = ()
    scripts: dict[ScriptKind, Script] = {}
    witness: str = ""  # HOST[:PORT] of a third agent, or etcd://HOST:PORT[,HOST:PORT]/PREFIX
    even_if_partitioned: bool = False  # automatic without a witness: asked for by name
    fence_command: str = ""  # STONITH; has to end with 0 before anything is taken
    lapse: Lapse | None = None  # None: suspend with a witness, none without
    policy: Policy = Policy.MANUAL
    prefer_node: str = ""
    host_name: str = ""  # the target takes it; "": keeps its own
    drain_s: float = limits.FAILOVER_DRAIN_S  # how long the copies may apply what has arrived
    lag_max_s: float = 0.0  # automatic only if what the copies lack is no older than that; 0: whatever it is

    @property
    def taken(self) -> tuple[WatchedAddress, ...]:
        """FO-06: the addresses that move with the group."""
        if self.take is Take.NONE:
            return ()
        return tuple(a for a in self.addresses if a.monitored or self.take is Take.ALL)


class Monitor(msgspec.Struct, frozen=True, kw_only=True):
    """A group, as its target keeps it in state.json."""

    uuid: str  # of the group
    name: str  # what users type
    settings: MonitorSettings
    source_uuid: str = ""  # of its agent; "": it has none, or was never reached
    source_name: str = ""
    phase: Phase = Phase.WATCHING
    epoch: int = 0
    terms: int = 0  # number of the settings: it rises with each change of witness, lapse or intervals
    since: float = 0.0  # of the phase, seconds since the epoch of clocks


# --- who owns a group ---


class CopyFork(msgspec.Struct, frozen=True, kw_only=True):
    """Where a copy stood when it was promoted. `marks`: (sequence, chain) by journal id, of the last
    operation of its source that is in it.
    """

    connection: Id
    parent_epoch: Count
    marks: Annotated[dict[str, tuple[int, int]], msgspec.Meta(max_length=limits.JOURNALS)] = {}
    applied_until: float | None = None  # when the source did the last of it, by its clock (recovery point)
    exact: bool = True  # the copy was what its source was at `marks`; False: it may have had anything


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """The durable record of a change of ownership. The owner keeps it, whoever learns of it, and the witness.

    `parent_epoch`: the term before, which ended at `copies`. `vote`: who agreed; "": nobody was asked.
    """

    group: Id
    epoch: Count
    parent_epoch: Count
    owner: Id  # uuid of its agent
    owner_name: str
    copies: tuple[CopyFork, ...] = ()
    reason: str = ""
    time: float = 0.0  # seconds since the epoch of clocks
    vote: str = ""


# --- what becomes of the data ---

RETURN_NAME = "return"


def return_of(connection: str) -> str:
    """The uuid of the connection in the other direction, over the same data."""
    return str(uuid.uuid5(uuid.UUID(connection), RETURN_NAME))


class TakeOver(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be promoted here. `copies`: uuids of connections whose copies are kept here; there may be
    none (CF-03). `epoch`: the one to be reached; 0: not decided yet, see `Report.epoch`.
    """

    group: Id
    copies: tuple[str, ...] = ()
    parent_epoch: Count = 0  # the group's own
    epoch: Count = 0
    drain_s: float = limits.FAILOVER_DRAIN_S
    forced: bool = False  # by a person: also copies that are no state that the source was in
    reason: str = ""
    vote: str = ""


class CopyReport(msgspec.Struct, frozen=True, kw_only=True):
    """Of one copy, for people: what had come of its source, and what of that is in the copy."""

    connection: str
    repset: str = ""
    source_name: str = ""
    places: tuple[str, ...] = ()
    data_state: str = ""  # status.TargetDataState, before
    epoch: int = 0
    received: dict[str, int] = {}  # by journal id: sequence of the last operation that the source had sent
    applied: dict[str, int] = {}
    left_operations: int = 0  # received, and not in the copy
    left_bytes: int = 0
    applied_until: float | None = None  # recovery point: when the source did the last of `applied`
    problem: str = ""  # why it cannot be promoted unless a person forces it; "": it can


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a take-over finds, or has done. `epoch`: the one that a promotion reaches, or has reached."""

    group: str
    epoch: int
    copies: tuple[CopyReport, ...] = ()
    took_s: float = 0.0

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(copy.problem for copy in self.copies if copy.problem)

    @property
    def applied_until(self) -> float | None:
        """Recovery point of the whole: of the copy that is furthest behind."""
        return min((c.applied_until for c in self.copies if c.applied_until is not None), default=None)


# --- the same, as the source keeps it ---


class GuardedAddress(msgspec.Struct, frozen=True, kw_only=True):
    """An address by which clients reach the source; it drops it when another agent has taken it."""

    address: str  # with its prefix


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """A group in which this agent is the source: another agent watches it, and may take its place. Whether
    its mounts may write follows from it.
    """

    group: Id
    name: str = ""  # of the monitor
    target_uuid: Id = ""  # "": in plain text nobody proves it
    target_name: str = ""
    target_host: str = ""
    target_port: int = limits.PORT
    witness: str = ""  # as MonitorSettings.witness
    lease_s: float = 0.0
    lapse: Lapse = Lapse.NONE
    terms: Count = 0  # number of these settings, as `Monitor.terms`
    copies: tuple[str, ...] = ()  # uuids of connections: their mounts are guarded
    addresses: tuple[GuardedAddress, ...] = ()
    epoch: Count = 0
    opened: Count = 0  # the epoch of the promotion in spite of which a person has opened it; 0: none
    superseded: Promotion | None = None  # somebody else owns it since
    owned_by: Promotion | None = None  # by which this agent owns it; None: as configured
    by_hand: bool = False  # a person has opened it: it needs no lease until one is granted
    follows: Count = 0  # the epoch of the promotion whose branch a person has chosen; 0: none

    @property
    def is_superseded(self) -> bool:
        """Whether its mounts must not write, whatever leases there are."""
        return self.superseded is not None and self.superseded.epoch > max(self.epoch, self.opened)

    @property
    def is_held(self) -> bool:
        """Whether another agent owns the copies: nothing is transmitted, whatever a person has opened."""
        return self.superseded is not None and self.superseded.epoch > self.epoch


def superseded_reason(promotion: Promotion) -> str:
    """Why a source transmits nothing any more, for people."""
    since = datetime.fromtimestamp(promotion.time).astimezone().isoformat(sep=" ", timespec="seconds")
    return (
        f"restore required: {promotion.owner_name} has owned this data since {since} (epoch"
        f" {promotion.epoch}{': ' if promotion.reason else ''}{promotion.reason}); bring it home with"
        " `dtctl failback`"
    )
