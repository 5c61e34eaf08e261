"""What options of `dtctl failover add` and `edit` make of a monitor's settings."""

import os
import shlex
from typing import Any

import msgspec

from replicator.errors import UsageError
from replicator.failover_settings import ip_of, parse_address, parse_check
from replicator.failovers import (
    Check,
    FailWhen,
    Lapse,
    MonitorSettings,
    Policy,
    Script,
    ScriptKind,
    Take,
    WatchedAddress,
)


def monitored_addresses(texts: list[str]) -> list[WatchedAddress]:
    """Of `--address`. Raises UsageError."""
    return [parse_address(text) for text in texts]


def other_addresses(texts: list[str] | None) -> list[WatchedAddress]:
    """Of `--also`. Raises UsageError."""
    found = [parse_address(text) for text in texts or []]
    return [msgspec.structs.replace(address, monitored=False) for address in found]


def readdressed(
    settings: MonitorSettings, address: list[str] | None, also: list[str] | None
) -> MonitorSettings:
    """None: as they are. What is there under the same IP keeps its timing and checks."""
    known = {ip_of(each.address): each for each in settings.addresses}
    monitored = [each for each in settings.addresses if each.monitored]
    others = [each for each in settings.addresses if not each.monitored]
    if address is not None:
        monitored = [
            msgspec.structs.replace(
                known.get(ip_of(new.address), new),
                address=new.address,
                interface=new.interface,
                monitored=True,
            )
            for new in monitored_addresses(address)
        ]
    if also is not None:
        others = other_addresses([text for text in also if text])
    return msgspec.structs.replace(settings, addresses=(*monitored, *others))


def timed(
    settings: MonitorSettings, only: str, interval: float | None, misses: int | None, check: list[str] | None
) -> MonitorSettings:
    """`only`: an address; "": all of them. None: as it is."""
    wanted = ip_of(only)
    if wanted and all(ip_of(each.address) != wanted for each in settings.addresses):
        raise UsageError(f"--for {only}: is no address of this monitor")
    checks: tuple[Check, ...] | None = tuple(parse_check(text) for text in check) if check else None

    def with_timing(address: WatchedAddress) -> WatchedAddress:
        if not address.monitored or (wanted and ip_of(address.address) != wanted):
            return address
        return msgspec.structs.replace(
            address,
            interval_s=address.interval_s if interval is None else interval,
            misses=address.misses if misses is None else misses,
            checks=address.checks if checks is None else checks,
        )

    return msgspec.structs.replace(
        settings, addresses=tuple(with_timing(each) for each in settings.addresses)
    )


def chosen(settings: MonitorSettings, **given: Any) -> MonitorSettings:
    """What is None stays. Raises UsageError."""
    fields = {name: value for name, value in given.items() if value is not None}
    for name, allowed in (("fail_when", FailWhen), ("take", Take), ("lapse", Lapse), ("policy", Policy)):
        if fields.get(name, allowed) is not allowed and fields[name] not in list(allowed):
            option = name.replace("_", "-")
            raise UsageError(f"--{option} {fields[name]}: must be one of {', '.join(allowed)}")
    known = msgspec.to_builtins(settings)
    try:
        return msgspec.convert({**known, **fields}, MonitorSettings)
    except msgspec.ValidationError as error:
        raise UsageError(" ".join(str(error).split()) + " (dtctl failover add --help)") from None


def scripted(settings: MonitorSettings, texts: list[str] | None) -> MonitorSettings:
    """`texts`: of `--script`. Raises UsageError."""
    chosen = dict(settings.scripts)
    for text in texts or []:
        kind, separator, line = text.partition("=")
        if not separator or kind not in list(ScriptKind):
            raise UsageError(f"--script {text}: write it as KIND=COMMAND; kinds: {', '.join(ScriptKind)}")
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"--script {text}: {error}: quote it as in a shell") from None
        if words:
            known = chosen.get(ScriptKind(kind), Script(path=""))
            chosen[ScriptKind(kind)] = msgspec.structs.replace(
                known, path=os.path.abspath(words[0]), arguments=tuple(words[1:])
            )
        else:
            chosen.pop(ScriptKind(kind), None)
    return msgspec.structs.replace(settings, scripts=chosen)
