"""What a connection means for this host: which mounts it reads, where its copies go, whether that is safe.
Pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from replicator.addresses import Address, parse_host_port
from replicator.agent.state import Connection, Map, Mount
from replicator.diagnostics import NOWHERE, is_nowhere
from replicator.errors import ReplicatorError, UsageError
from replicator.repset import (
    Filter,
    Place,
    ReplicationSet,
    compile_filter,
    is_inside,
    overlapping,
    rule_anchor,
)


@dataclass(frozen=True)
class Journal:
    """One mount that a set needs. `root` is the captured directory as the set's rules name it."""

    mount: Mount
    root: str
    filter: Filter

    @property
    def sources(self) -> list[str]:
        """Absolute paths where the set begins here, none inside another."""
        return [_join(self.root, path.decode()) for path in self.filter.roots]


def journals_of(repset: ReplicationSet, mounts: Sequence[Mount]) -> list[Journal]:
    """The mounts whose changes concern `repset`. Raises ReplicatorError if a rule names what no mount
    captures.
    """
    if not any(rule.include for rule in repset.rules):
        raise ReplicatorError(
            f"replication set {repset.name!r} includes nothing: add a rule first"
            f" (dtctl repset rule {_quoted(repset.name)} add PATH)"
        )
    needed: dict[str, Journal] = {}
    for rule in repset.rules:
        if not rule.include:
            continue
        anchor = rule_anchor(rule)
        for mount in mounts:
            # Rules may name a mount that is not over itself by either of its paths.
            root = next((r for r in (mount.mountpoint, mount.path) if is_inside(anchor, r)), None)
            if root is not None:
                break
        else:
            raise ReplicatorError(_not_captured(anchor, mounts))
        known = needed.get(mount.id)
        if known is not None and known.root != root:
            raise ReplicatorError(
                f"replication set {repset.name!r} names {mount.path} also as {mount.mountpoint}: use one of"
                " them in"
                f" all of its rules"
            )
        if known is None:
            needed[mount.id] = Journal(mount, root, compile_filter(repset, root.encode()))
    return [journal for journal in needed.values() if journal.filter.roots]


def _not_captured(path: str, mounts: Sequence[Mount]) -> str:
    below = [mount.path for mount in mounts if is_inside(mount.path, path)]
    if below:
        return (
            f"{path} is captured in part only ({', '.join(below)}): name these in the set's rules, or"
            " capture the whole"
            f" of it (dtctl mount add {_quoted(path)})"
        )
    return f"{path} is not captured: dtctl mount add {_quoted(path)} (or a directory above it) first"


def check_new_mount(path: str, mountpoint: str, mounts: Iterable[Mount], private: Iterable[str]) -> None:
    """Raises ReplicatorError if a capture there would contain, or lie in, another one, UsageError if it never
    can be: the root directory, or what is `private` to the agent.

    What the file system below allows is for the capture itself to find out.
    """
    if "/" in (path, mountpoint):
        raise UsageError("the root directory cannot be captured: name the directories that hold data")
    for mount in mounts:
        if path in (mount.path, mount.mountpoint) and mountpoint == mount.mountpoint:
            raise ReplicatorError(f"{path} is captured already")
        for new in {path, mountpoint}:
            for known in {mount.path, mount.mountpoint}:
                if overlapping(new, known):
                    raise ReplicatorError(
                        f"{new} and {known}, which is captured already, lie inside each other: use that"
                        " one, or"
                        f" remove it first (dtctl mount remove {_quoted(mount.path)})"
                    )
    if path != mountpoint and overlapping(path, mountpoint):
        raise UsageError(f"the mountpoint {mountpoint} and {path} lie inside each other: choose another one")
    for directory in private:
        for new in {path, mountpoint}:
            if overlapping(new, directory):
                raise UsageError(
                    f"{new} cannot be captured: the agent keeps its own files in {directory}, whose changes"
                    " would be captured for ever"
                )


# --- where copies go ---


def all_to_one(
    sources: Iterable[str], target_root: str, agent_name: str, repset_name: str
) -> tuple[Map, ...]:
    """CN-05: /<source>/<set>/<path> below `target_root`."""
    base = _join(_join(target_root, agent_name.replace("/", "-")), repset_name)
    return tuple(Map(source, _join(base, source.lstrip("/"))) for source in sources)


def one_to_one(sources: Iterable[str]) -> tuple[Map, ...]:
    """CN-06: the same paths."""
    return tuple(Map(source, source) for source in sources)


def check_custom(maps: Sequence[Map], sources: Sequence[str]) -> None:
    """CN-07: raises UsageError unless every path of the set has exactly one place."""
    for index, entry in enumerate(maps):
        if any(other.source == entry.source for other in maps[:index]):
            raise UsageError(f"map {entry.source}={entry.target}: {entry.source} is mapped twice")
        if not any(overlapping(entry.source, source) for source in sources):
            raise UsageError(
                f"map {entry.source}={entry.target}: the set has nothing there; it begins at"
                f" {', '.join(sources)}"
            )
    for source in sources:
        if not any(is_inside(source, entry.source) for entry in maps):
            raise UsageError(f"no map says where {source} goes: add --map {source}=/path/on/target")


def target_of(path: str, maps: Iterable[Map]) -> str:
    """Where `path` goes: by the most specific map."""
    entry = max((m for m in maps if is_inside(path, m.source)), key=lambda m: len(m.source))
    return _join(entry.target, path[len(entry.source.rstrip("/")) :].lstrip("/"))


def places_of(repset: str, sources: Iterable[str], maps: Sequence[Map], agent: str) -> list[Place]:
    """Every place that is written, for `repset.check_places` and `check_no_loop`."""
    places = []
    for source in sources:
        target = target_of(source, maps)
        places.append(Place(repset, source, agent, target))
        for entry in maps:
            below = is_inside(entry.source, source) and entry.source != source
            if below and entry.target != _join(target, entry.source[len(source) :].lstrip("/")):
                places.append(Place(repset, entry.source, agent, entry.target))
    return places


def journal_maps(root: str, maps: Sequence[Map]) -> list[tuple[str, str]]:
    """(path relative to `root`, absolute target) of every map that concerns this journal."""
    found = []
    if any(is_inside(root, entry.source) for entry in maps):
        found.append(("", target_of(root, maps)))
    for entry in maps:
        if is_inside(entry.source, root) and entry.source != root:
            found.append((entry.source[len(root.rstrip("/")) + 1 :], entry.target))
    return found


def active_prefixes(filters: Iterable[Filter]) -> list[bytes]:
    """What a capture has to journal for these connected sets: paths relative to its root, none inside
    another.
    """
    roots = {root for set_filter in filters for root in set_filter.roots}
    return sorted(
        root for root in roots if not any(above != root and _is_below(root, above) for above in roots)
    )


def _is_below(path: bytes, above: bytes) -> bool:
    return not above or path.startswith(above + b"/")


def _join(directory: str, below: str) -> str:
    return f"{directory.rstrip('/')}/{below}" if below else directory


def _quoted(text: str) -> str:
    return f"'{text}'" if " " in text else text


def check_route(route: str, target: Address | None) -> str:
    """The route of a new connection, as it is kept. Raises UsageError."""
    if not route:
        return ""
    if target is not None and is_nowhere(target.host):
        raise UsageError(f"route: nothing of a connection to {NOWHERE} leaves this host; leave it out")
    if is_nowhere(parse_host_port(route).host):
        raise UsageError(f"route {route!r}: is another address of the target, and {NOWHERE} is none")
    return route  # without a port, if there is none: that of the target is meant, see `address_of`


def address_of(connection: Connection, own: Address) -> Address:
    """Where a sender dials: by the route, if there is one. `own`: where this agent listens."""
    if connection.options.route and not is_nowhere(connection.target_host):
        return parse_host_port(connection.options.route, default_port=connection.target_port)
    if connection.target_host:
        return Address(connection.target_host, connection.target_port)
    return Address(own.connectable_host, own.port)
