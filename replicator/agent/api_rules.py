"""Which access each request to the control API needs, and how an audit names it: one table.

`test_api_access.py` holds that every route has its row, and that who may only look can only GET. A request
that has none needs full access, and is named by its path.
"""

import string
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from replicator import limits
from replicator.access import Access


class Rule(NamedTuple):
    """`words`: a change as users type it, with fields of the path and the body; empty: nothing is changed."""

    access: Access
    words: str = ""


def _change(words: str) -> Rule:
    return Rule(Access.FULL, words)


_LOOK = Rule(Access.MONITOR)
_ASK = Rule(Access.FULL)  # changes nothing, but has others work for it
_ANYBODY = Rule(Access.NONE)  # SC-03

_CONNECTION = "/v1/connections/{connection}"
_REPSET = "/v1/repsets/{name}"
_MONITOR = "/v1/failover/monitors/{name}"

RULES: dict[tuple[str, str], Rule] = {
    ("GET", "/v1/ping"): _ANYBODY,
    ("GET", "/v1/access"): _ANYBODY,
    ("POST", "/v1/login"): _ANYBODY,  # told by an event of its own, as what follows
    ("POST", "/v1/logout"): _ANYBODY,
    ("GET", "/v1/agent"): _LOOK,
    ("POST", "/v1/agent/stop"): _change("stop the agent"),
    ("GET", "/v1/events"): _LOOK,
    ("GET", "/v1/queues"): _LOOK,
    ("GET", "/v1/why"): _LOOK,
    ("GET", "/v1/mounts"): _LOOK,
    ("POST", "/v1/mounts"): _change("mount add {path}"),
    ("DELETE", "/v1/mounts"): _change("mount remove {path}"),
    ("POST", "/v1/mounts/options"): _change("mount set {path}"),
    ("POST", "/v1/mounts/reload"): _change("mount reload {path}"),
    ("GET", "/v1/repsets"): _LOOK,
    ("POST", "/v1/repsets"): _change("repset create {name}"),
    ("GET", _REPSET): _LOOK,
    ("PUT", _REPSET): _change("repset rules of {name}"),
    ("DELETE", _REPSET): _change("repset delete {name}"),
    ("POST", _REPSET + "/rules"): _change("repset rule {name} add {path}"),
    ("DELETE", _REPSET + "/rules"): _change("repset rule remove {name} {path}"),
    ("POST", _REPSET + "/rename"): _change("repset rename {name} {new_name}"),
    ("POST", _REPSET + "/copy"): _change("repset copy {name} {new_name}"),
    ("POST", _REPSET + "/size"): _ASK,
    ("POST", _REPSET + "/priority"): _change("recovery priority {name} {priority}"),
    ("POST", "/v1/protect"): _change("protect {source} {destination}"),
    ("GET", "/v1/connections"): _LOOK,
    ("POST", "/v1/connections"): _change("connect {repset} {target}"),
    ("GET", _CONNECTION): _LOOK,
    ("DELETE", _CONNECTION): _change("disconnect {connection}"),
    ("GET", _CONNECTION + "/lag"): _LOOK,
    ("GET", _CONNECTION + "/story"): _LOOK,
    ("GET", _CONNECTION + "/runs"): _LOOK,
    ("GET", _CONNECTION + "/verify"): _LOOK,
    ("POST", _CONNECTION + "/verify"): _change("verify {action} {connection}"),
    ("GET", _CONNECTION + "/schedule"): _LOOK,
    ("POST", _CONNECTION + "/schedule"): _change("schedule {action} {connection}"),
    ("GET", _CONNECTION + "/calendar"): _LOOK,
    ("POST", _CONNECTION + "/calendar"): _change("limit schedule {action} {connection} {label}"),
    ("GET", _CONNECTION + "/diagnostics"): _LOOK,
    ("POST", _CONNECTION + "/diagnostics"): _change("diagnostics {action} {connection}"),
    ("GET", _CONNECTION + "/orphans"): _LOOK,
    ("POST", _CONNECTION + "/orphans"): _change("orphans {action} {connection}"),
    ("POST", _CONNECTION + "/disconnect"): _change("disconnect {connection}"),
    ("POST", _CONNECTION + "/mirror"): _change("mirror {action} {connection}"),
    ("POST", _CONNECTION + "/replicate"): _change("replicate {action} {connection}"),
    ("POST", _CONNECTION + "/transmit"): _change("transmit {action} {connection}"),
    ("POST", _CONNECTION + "/transmission"): _change("transmission of {connection}"),
    ("GET", "/v1/schedule"): _LOOK,
    ("POST", "/v1/schedule"): _change("schedule {action} --target {target}"),
    ("GET", "/v1/calendar"): _LOOK,
    ("POST", "/v1/calendar"): _change("limit schedule {action} --target {target} {label}"),
    ("GET", "/v1/transmission"): _LOOK,
    ("POST", "/v1/transmission"): _change("transmission of target {target}"),
    ("POST", _CONNECTION + "/target"): _change("target {action} {connection}"),
    ("POST", _CONNECTION + "/recovery"): _change("recovery {action} {connection}"),
    ("POST", _CONNECTION + "/force"): _change("recovery force {connection} {survivor}"),
    ("POST", _CONNECTION + "/wait"): _ASK,
    ("GET", "/v1/identity"): _LOOK,
    ("POST", "/v1/identity"): _change("identity {action}"),
    ("GET", "/v1/peers"): _LOOK,
    ("POST", "/v1/peers"): _change("trust {action} {peer}"),
    ("GET", "/v1/pairing"): _LOOK,
    ("POST", "/v1/pairing"): _change("pairing {action}"),
    ("POST", "/v1/pair"): _change("pair {host}"),  # the code is a secret
    ("GET", "/v1/recovery"): _LOOK,
    ("POST", "/v1/recovery"): _change("recovery speed {speed}"),
    ("GET", "/v1/restores"): _LOOK,
    ("POST", "/v1/restores"): _change("restore start {source}"),
    ("POST", "/v1/restores/copies"): _ASK,
    ("GET", "/v1/restores/{restore}"): _LOOK,
    ("POST", "/v1/restores/{restore}"): _change("restore {action} {restore}"),
    ("GET", "/v1/failover/monitors"): _LOOK,
    ("POST", "/v1/failover/monitors"): _change("failover add {name}"),
    ("GET", "/v1/failover/monitors/{name}"): _LOOK,
    ("PUT", "/v1/failover/monitors/{name}"): _change("failover edit {name}"),
    ("DELETE", "/v1/failover/monitors/{name}"): _change("failover remove {name}"),
    ("POST", "/v1/failover/monitors/{name}"): _change("failover {action} {name}"),
    ("GET", _MONITOR + "/reports"): _LOOK,
    ("GET", _MONITOR + "/siblings"): _LOOK,
    ("POST", _MONITOR + "/siblings"): _change("failover {action} {name} {host}"),
    ("GET", "/v1/failover/addresses"): _LOOK,
    ("GET", "/v1/failover/history"): _LOOK,
    ("GET", "/v1/failover/witness"): _LOOK,
    ("GET", "/v1/failover/witness/{group}"): _LOOK,
    ("DELETE", "/v1/failover/witness/{group}"): _change("witness forget {group}"),
    ("GET", _MONITOR + "/failback"): _LOOK,
    ("POST", _MONITOR + "/failback"): _change("failback {name}"),
    ("DELETE", _MONITOR + "/failback"): _change("failback {name} --abandon"),
    ("GET", "/v1/failover/failbacks/{group}"): _LOOK,
    ("GET", "/v1/divergence"): _LOOK,
    ("GET", "/v1/divergence/{bundle}"): _LOOK,
    ("POST", "/v1/divergence/{bundle}"): _change("divergence {action} {bundle}"),
    ("GET", "/v1/divergence/{bundle}/differences"): _LOOK,
    ("GET", "/v1/failover/guards"): _LOOK,
    ("GET", "/v1/failover/guards/{guard}"): _LOOK,
    ("POST", "/v1/failover/guards/{guard}"): _change("failover {action} {guard}"),
    ("GET", "/v1/failover/scripts"): _LOOK,
    ("POST", _MONITOR + "/scripts/{kind}"): _change("failover scripts set {name} {kind}"),
    ("POST", _MONITOR + "/scripts/{kind}/test"): _change("failover scripts test {name} {kind}"),
    ("POST", _MONITOR + "/test"): _ASK,
    ("GET", _MONITOR + "/drills"): _LOOK,
    ("POST", _MONITOR + "/drills"): _change("failover drill {name}"),
    ("POST", _MONITOR + "/drills/end"): _change("failover drill {name} --end"),
    ("GET", "/v1/targets"): _LOOK,
    ("POST", "/v1/targets"): _change("target {action} {uuid}"),
    ("GET", "/v1/targets/orphans"): _LOOK,
    ("POST", "/v1/targets/orphans"): _change("target orphans"),
}

# A field of such a name is never shown, wherever it is.
_SECRET = ("password", "passphrase", "secret", "token", "key", "code", "pin", "credential")


def rule(method: str, path: str) -> Rule:
    """What holds for a request to the route `path`."""
    return RULES.get((method, path)) or _change(f"{method} {path}")


def spoken(words: str, path_fields: Mapping[str, Any], body: msgspec.Struct | None) -> str:
    """The command, in the user's words: what `words` names, then what else was asked for, as name=value.

    Values that are the default are left out, secrets are not shown. One printable line.
    """
    given = _given(body) | {name: str(value) for name, value in path_fields.items()}
    formatter = string.Formatter()
    parts, named = [], set()
    for literal, field, _, _ in formatter.parse(words):
        parts.append(literal)
        if field is not None:
            named.add(field)
            parts.append(
                _text(field, given[field]) if field in given else _text(field, getattr(body, field, "…"))
            )
    more = [f"{name}={_text(name, value)}" for name, value in given.items() if name not in named]
    text = " ".join(["".join(parts).rstrip(), *more])
    return text if len(text) <= limits.AUDIT_CHARS else text[: limits.AUDIT_CHARS - 1] + "…"


def _given(body: msgspec.Struct | None) -> dict[str, Any]:
    """Fields of a body that are not the default."""
    if body is None:
        return {}
    found = {}
    for field in msgspec.structs.fields(body):
        value = getattr(body, field.name)
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        if default is msgspec.NODEFAULT or value != default:
            found[field.name] = _given(value) if isinstance(value, msgspec.Struct) else value
    return found


def _text(name: str, value: Any) -> str:
    if value is None:
        return "all"
    shown = value if isinstance(value, str) else _json(name, value)
    if any(part in _SECRET for part in name.lower().split("_")):
        return "(hidden)"
    shown = "".join(c if c.isprintable() else c.encode("unicode-escape").decode() for c in shown)
    if len(shown) > limits.AUDIT_VALUE_CHARS:
        shown = shown[: limits.AUDIT_VALUE_CHARS - 1] + "…"
    return f'"{shown}"' if not shown or " " in shown else shown


def _json(name: str, value: Any) -> str:
    plain = msgspec.to_builtins(value)
    return msgspec.json.encode(_without_secrets(plain)).decode()


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: "(hidden)"
            if any(part in _SECRET for part in str(name).lower().split("_"))
            else _without_secrets(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(inner) for inner in value]
    return value
