"""Errors a user meets, and the exit code each of them has.

A `ReplicatorError` is a user's or an environment's mistake: one line, no traceback. Anything else that
escapes is a bug and keeps its traceback.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `dtd` and `dtctl` (the command contract)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_PERMITTED = 4


class ReplicatorError(Exception):
    """One line for a person: what is wrong and what to do about it."""

    exit_code = ExitCode.FAILED


class UsageError(ReplicatorError):
    """The request itself makes no sense: bad name, bad path, bad option."""

    exit_code = ExitCode.USAGE


class UnreachableError(ReplicatorError):
    """No agent answers where one was expected."""

    exit_code = ExitCode.UNREACHABLE


class NotPermittedError(ReplicatorError):
    """The caller may not do this."""

    exit_code = ExitCode.NOT_PERMITTED


class ConfigError(UsageError):
    """A configuration file names something unknown or out of range."""


class JournalError(ReplicatorError):
    """A journal is damaged or cannot be read at the position asked for."""


class ProtocolError(ReplicatorError):
    """Base of both kinds of protocol violations."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol: close the connection, log the reason."""


class LocalProtocolError(ProtocolError):
    """We tried to send something the protocol does not allow: a bug of ours."""
