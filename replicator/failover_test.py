"""A test of a failover, as people see it: what it would find now, and what it would do. Values only."""

from enum import StrEnum

import msgspec


class Mark(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it would work, and somebody should know
    FAILED = "failed"  # a failover would not work


class TestedPart(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    result: Mark
    text: str


class TestedStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step of the procedure, in its order, and what it would do."""

    name: str
    text: str


class FailoverTest(msgspec.Struct, frozen=True, kw_only=True):
    """`ready`: nothing has failed. `verdict`: the same in words."""

    name: str  # of the monitor
    ready: bool
    verdict: str
    checks: tuple[TestedPart, ...]
    steps: tuple[TestedStep, ...]
