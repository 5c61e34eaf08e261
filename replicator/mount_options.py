"""Options of a mount: how the kernel and capture serve it. Data and pure functions.

`OPTIONS` is the one table that state, control API, command line and documentation go by. Values are texts
everywhere outside of `MountOptions`: `NAME=VALUE`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, NamedTuple, get_args

import msgspec

from replicator import limits
from replicator.errors import UsageError
from replicator.synchrony import Policy, Sync

Writes = Literal["cached", "direct"]
Reads = Literal["cached", "passthrough"]
Idle = Literal["auto", "poll", "sleep"]

DEFAULT: Final = "default"  # as a value: whatever is the default
Value = str | int | float


class MountOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `OPTIONS` describes. Defaults are not written to files: so a later default holds for all."""

    writes: Writes = "cached"
    reads: Reads = "cached"
    attribute_timeout: float = limits.ATTRIBUTE_TIMEOUT_S
    entry_timeout: float = limits.ATTRIBUTE_TIMEOUT_S
    disk_threads: int = limits.CAPTURE_THREADS
    request_timeout: int = 0
    idle: Idle = "auto"
    sync: Sync = "async"
    sync_policy: Policy = "degrade"
    sync_timeout: float = limits.SYNC_TIMEOUT_S


class Option(NamedTuple):
    """One option. `parse` raises ValueError."""

    values: str  # as shown to users
    parse: Callable[[str], Value]
    help: str
    kernel_min: tuple[int, int]  # of any value but the default
    at_mount_only: bool = False  # agreed with the kernel once: a reload does not change it
    live: bool = False  # changed while the mount is served, by either binding


def _one_of(*known: str) -> Callable[[str], Value]:
    def parse(text: str) -> Value:
        if text not in known:
            raise ValueError
        return text

    return parse


def _seconds(text: str) -> Value:
    if not re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) or float(text) > limits.TIMEOUT_MAX_S:
        raise ValueError
    return float(text)


def _waiting_time(text: str) -> Value:
    seconds = _seconds(text)
    if not 0 < float(seconds) <= limits.SYNC_TIMEOUT_MAX_S:
        raise ValueError
    return seconds


def _between(low: int, high: int) -> Callable[[str], Value]:
    def parse(text: str) -> Value:
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return parse


_ANY_KERNEL: Final = (0, 0)
_TIMEOUT = f"seconds, 0 to {limits.TIMEOUT_MAX_S:,.0f}"

OPTIONS: Final[dict[str, Option]] = {
    "writes": Option(
        "|".join(get_args(Writes)),
        _one_of(*get_args(Writes)),
        "direct: a program's write is one change, instead of one for each page or so",
        (6, 18),  # before, a page read meanwhile could stay in the cache as it was before a direct write
    ),
    "reads": Option(
        "|".join(get_args(Reads)),
        _one_of(*get_args(Reads)),
        "passthrough: the kernel reads files opened for reading only, without capture",
        (6, 9),
    ),
    "attribute_timeout": Option(
        _TIMEOUT, _seconds, "how long the kernel relies on attributes it has been told", _ANY_KERNEL
    ),
    "entry_timeout": Option(
        _TIMEOUT, _seconds, "how long the kernel relies on names it has been told", _ANY_KERNEL
    ),
    "disk_threads": Option(
        f"1 to {limits.DISK_THREADS_MAX}",
        _between(1, limits.DISK_THREADS_MAX),
        "threads at most for what waits for a disk: reads that are not cached, and the like",
        _ANY_KERNEL,
    ),
    "request_timeout": Option(
        f"seconds, 0 to {limits.REQUEST_TIMEOUT_MAX_S}; 0 is none",
        _between(0, limits.REQUEST_TIMEOUT_MAX_S),
        "the kernel ends the mount when a call has waited so long",
        (6, 16),
        at_mount_only=True,
    ),
    "idle": Option(
        "|".join(get_args(Idle)),
        _one_of(*get_args(Idle)),
        "poll: idle processors do not halt while programs call fast; auto: on small hosts",
        _ANY_KERNEL,
    ),
    "sync": Option(
        "|".join(get_args(Sync)),
        _one_of(*get_args(Sync)),
        "fsync: what programs make durable is durable on the targets, too, before they hear of it; all: and "
        "whatever else they do has been received there",
        _ANY_KERNEL,
        live=True,
    ),
    "sync_policy": Option(
        "|".join(get_args(Policy)),
        _one_of(*get_args(Policy)),
        "when a target does not answer. degrade: go on without it until it has caught up; strict: wait",
        _ANY_KERNEL,
        live=True,
    ),
    "sync_timeout": Option(
        f"seconds, more than 0, at most {limits.SYNC_TIMEOUT_MAX_S:,}",
        _waiting_time,
        "how long a program waits for a target before that counts as not answering",
        _ANY_KERNEL,
        live=True,
    ),
}

DEFAULTS: Final = MountOptions()


def text_of(value: Value) -> str:
    """As a user writes it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def split(words: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` each, or several with commas between, as of mount(8). Raises UsageError."""
    found: dict[str, str] = {}
    for word in (part for text in words for part in text.split(",")):
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"option {word!r}: must be NAME=VALUE")
        if name in found:
            raise UsageError(f"option {name}: is there twice")
        found[name] = value
    return found


def changed(options: MountOptions, texts: Mapping[str, str]) -> MountOptions:
    """`options` with what `texts` says, by name. Raises UsageError: an unknown name, or a bad value."""
    values: dict[str, Value] = {}
    for name, text in texts.items():
        option = OPTIONS.get(name)
        if option is None:
            raise UsageError(f"option {name!r}: must be one of {', '.join(OPTIONS)}")
        if text == DEFAULT:
            values[name] = getattr(DEFAULTS, name)
            continue
        try:
            values[name] = option.parse(text)
        except ValueError:
            raise UsageError(f"option {name}={text}: must be {option.values}, or {DEFAULT}") from None
    return msgspec.structs.replace(options, **values)


def shown(options: MountOptions) -> dict[str, str]:
    """Those that are not the default, as texts: `changed` of the defaults by them gives the same."""
    return {
        name: text_of(getattr(options, name))
        for name in OPTIONS
        if getattr(options, name) != getattr(DEFAULTS, name)
    }


def table() -> list[dict[str, str]]:
    """`OPTIONS` for readers: name, values, default, needs, help."""
    return [
        {
            "name": name,
            "values": option.values,
            "default": text_of(getattr(DEFAULTS, name)),
            "needs": "Linux {}.{}".format(*option.kernel_min) if option.kernel_min > _ANY_KERNEL else "",
            "help": option.help,
        }
        for name, option in OPTIONS.items()
    ]


def differing(one: MountOptions, other: MountOptions) -> list[str]:
    """Names of the options in which they differ."""
    return [name for name in OPTIONS if getattr(one, name) != getattr(other, name)]


def refusals(options: MountOptions, binding: str, release: str) -> dict[str, str]:
    """Why which options cannot be had with this binding on a kernel of this `release` (uname -r), by name."""
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    reasons = {}
    for name, text in shown(options).items():
        least = OPTIONS[name].kernel_min
        if binding != "kernel" and not OPTIONS[name].live:
            reasons[name] = f"option {name}={text}: needs the kernel binding, and this is {binding}"
        elif version < least:
            reasons[name] = f"option {name}={text}: needs Linux {least[0]}.{least[1]}, and this is {release}"
    if options.sync != "async" and options.request_timeout:
        patience_s = float("inf") if options.sync_policy == "strict" else options.sync_timeout
        if patience_s >= options.request_timeout:
            reasons["request_timeout"] = (
                f"option request_timeout={options.request_timeout}: the mount would end when a synchronous "
                "program waits for its target; leave it out, or have a shorter sync_timeout and "
                "sync_policy=degrade"
            )
    return reasons


def check(options: MountOptions, binding: str, release: str) -> None:
    """Raises UsageError with the first of `refusals`, if there is one."""
    for reason in refusals(options, binding, release).values():
        raise UsageError(reason)
