"""What a script is told: its environment."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

_OURS = frozenset(
    {"NOTIFY_SOCKET", "JOURNAL_STREAM", "INVOCATION_ID", "PYTHONPATH", "LISTEN_FDS", "LISTEN_PID"}
)
"""Of the agent's environment: of no use to others, or harmful."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ScriptRoot(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of a copy. Absolute paths, as on the source and on this host."""

    source: str
    replica: str
    connection: str = ""
    repset: str = ""


class ScriptAddress(msgspec.Struct, frozen=True):
    address: str  # with its prefix
    interface: str = ""


class Occasion(msgspec.Struct, frozen=True, kw_only=True):
    """What a script runs for. `recovery_point`: when the source did the last change that is in the copies,
    seconds since the epoch of clocks; None: unknown. `epoch`: the term that begins (or is given back).
    """

    kind: str  # `ScriptKind`, or another word for what is run
    group: str  # its name
    uuid: str
    epoch: int = 0
    reason: str = ""
    agent: str = ""  # name of this agent
    home: str = ""  # of this agent: dtctl finds it by that
    source: str = ""  # name of the source's agent, or its host
    source_uuid: str = ""
    source_host: str = ""
    source_port: int = 0
    addresses: tuple[ScriptAddress, ...] = ()
    roots: tuple[ScriptRoot, ...] = ()
    recovery_point: float | None = None
    test: bool = False  # nothing has happened: somebody wants to see the script run


def variables(occasion: Occasion) -> dict[str, str]:
    """The environment variables of a script: `docs/administrators/failover-scripts.md` has the table.

    Lists are numbered from 1 (REPLICATOR_ROOT_1), with their length in REPLICATOR_ROOTS.
    """
    point = occasion.recovery_point
    values = {
        "SCRIPT": occasion.kind,
        "TEST": "1" if occasion.test else "",
        "GROUP": occasion.group,
        "GROUP_UUID": occasion.uuid,
        "EPOCH": str(occasion.epoch),
        "REASON": occasion.reason,
        "AGENT": occasion.agent,
        "HOME": occasion.home,
        "SOURCE": occasion.source,
        "SOURCE_UUID": occasion.source_uuid,
        "SOURCE_HOST": occasion.source_host,
        "SOURCE_PORT": str(occasion.source_port or ""),
        "RECOVERY_POINT": "" if point is None else datetime.fromtimestamp(point, UTC).isoformat(),
        "RECOVERY_POINT_S": "" if point is None else f"{point:.6f}",
        "ADDRESSES": str(len(occasion.addresses)),
        "ROOTS": str(len(occasion.roots)),
    }
    for number, address in enumerate(occasion.addresses, 1):
        values[f"ADDRESS_{number}"] = address.address
        values[f"INTERFACE_{number}"] = address.interface
    for number, root in enumerate(occasion.roots, 1):
        values[f"ROOT_{number}"] = root.replica
        values[f"SOURCE_ROOT_{number}"] = root.source
        values[f"REPSET_{number}"] = root.repset
        values[f"CONNECTION_{number}"] = root.connection
    return {f"REPLICATOR_{name}": value.replace("\0", "") for name, value in values.items()}


def environment(occasion: Occasion, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """All variables of a script: those of its agent (`base`), and what it is told."""
    own = os.environ if base is None else base
    kept = {k: v for k, v in own.items() if k not in _OURS and not k.startswith("REPLICATOR_")}
    return {"PATH": _PATH, "LANG": "C.UTF-8", **kept, **variables(occasion)}
