"""Who may do what with an agent: everything, look, or nothing (features SC-01…06).

Pure: accounts and groups are looked up elsewhere.
"""

from collections.abc import Collection
from enum import IntEnum

import msgspec

from replicator import limits
from replicator.errors import NotPermittedError, UsageError


class Access(IntEnum):
    """What somebody may do, as a login yields it (SC-06)."""

    NONE = 0
    MONITOR = 1
    FULL = 2

    @property
    def label(self) -> str:
        """The word that scripts know."""
        return _LABELS[self]


_LABELS = {
    Access.NONE: "DT_NO_ACCESS",
    Access.MONITOR: "DT_MONITOR_ACCESS",
    Access.FULL: "DT_FULL_ACCESS",
}


class LoginRequiredError(NotPermittedError):
    """Nobody is logged in here, or no longer."""


class SlowDownError(NotPermittedError):
    """Too many failed logins: this one was not looked at."""


class Account(msgspec.Struct, frozen=True):
    """A user of the operating system, with all groups, the primary one included."""

    name: str
    uid: int
    groups: frozenset[int]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. `origin`: from where, in words. `how` that is known: socket, password or certificate."""

    user: str
    origin: str
    how: str
    access: Access

    def __str__(self) -> str:
        return f"{self.user} from {self.origin}"


class AccessView(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent answers to who asks who they are."""

    agent: str
    user: str
    origin: str
    how: str
    access: int
    level: str


def decide(account: Account | None, admins: int | None, monitors: int | None) -> Access:
    """What `account` may do. `admins`, `monitors`: ids of the groups; None: there is no such group here.

    Root may do everything, so an agent is never out of everybody's reach.
    """
    if account is None:
        return Access.NONE
    if account.uid == 0 or _has(account.groups, admins):
        return Access.FULL
    return Access.MONITOR if _has(account.groups, monitors) else Access.NONE


def _has(groups: Collection[int], group: int | None) -> bool:
    return group is not None and group in groups


def check_user(name: str) -> str:
    """A user's name as somebody from elsewhere gives it. Raises UsageError."""
    if not name or len(name) > limits.USER_CHARS or name != name.strip():
        raise UsageError(f"user: must be 1 to {limits.USER_CHARS} characters, without blanks around them")
    if not name.isprintable() or any(c in name for c in ":/"):
        raise UsageError("user: must be printable, without : and /")
    return name
