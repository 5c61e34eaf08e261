"""Replication sets: named lists of rules that say which part of a source is protected (features RS-01…RS-23).

Everything here is pure: paths are only compared, never looked at, so that a rule may name what does not exist
yet (RS-06).

How rules decide
    Walk from the root of the file system down to the object. At each name the most specific rule that *names*
    it decides, and a recursive rule holds for all below until a deeper name is named by another rule. A rule
    names the path it spells out, or, with wildcards in its last component, the matching names in its
    directory and, if it is recursive, in all directories below. A path spelled out is more specific than a
    wildcard; then a wildcard of a deeper directory; then one with more fixed characters; then an exclude. A
    rule that is not recursive holds for one level only: a directory and the names in it; a wildcard: the
    matching names themselves. What no rule names is not in the set.
"""

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import msgspec

from replicator import limits
from replicator.errors import ReplicatorError, UsageError

DEFAULT_NAME = "New Replication Set"  # RS-17
ILLEGAL_NAME_CHARACTERS = '.?<>:"\\/*|'  # RS-09; for names of sets only: paths need "." and "/"

_WILDCARDS = frozenset("*?[")
_RULE_TEXT = re.compile(r"(?s)(?P<path>.*\S)\s+(?P<type>inc|exc)\s*,\s*(?P<depth>rec|nonrec)\s*")


class StaleGenerationError(ReplicatorError):
    """Somebody else saved the set meanwhile (RS-12)."""


class Rule(msgspec.Struct, frozen=True, order=True):
    """`path` is absolute; `*`, `?` and `[…]` in its last component are wildcards, a backslash makes the next
    character plain.
    """

    path: str
    include: bool = True
    recursive: bool = True

    def __str__(self) -> str:
        return f"{self.path} {'inc' if self.include else 'exc'}, {'rec' if self.recursive else 'nonrec'}"


class ReplicationSet(msgspec.Struct, frozen=True):
    """`generation` counts saves: 0 has never been saved."""

    name: str
    generation: int = 0
    rules: tuple[Rule, ...] = ()


# --- names and rules ---


def check_name(name: str) -> None:
    """Raises UsageError unless `name` may name a set (RS-09)."""
    if not name or name != name.strip():
        raise UsageError(f"replication set name {name!r}: must not be empty, nor begin or end with a space")
    if len(name) > limits.NAME_CHARS:
        raise UsageError(
            f"replication set name of {len(name)} characters: at most {limits.NAME_CHARS} are allowed"
        )
    illegal = [c for c in name if c in ILLEGAL_NAME_CHARACTERS or not c.isprintable()]
    if illegal:
        raise UsageError(
            f"replication set name {name!r}: {illegal[0]!r} is not allowed, nor any of"
            f" {' '.join(ILLEGAL_NAME_CHARACTERS)}"
        )


def check_unique(name: str, taken: Collection[str]) -> None:
    """Raises ReplicatorError if a set of this name exists (RS-17)."""
    if name in taken:
        raise ReplicatorError(f"replication set {name!r} exists already: choose another name")


def unique_name(wanted: str, taken: Collection[str]) -> str:
    """A legal name like `wanted` that is not taken: characters not allowed become "-", a number is added if
    needed.
    """
    legal = "".join("-" if c in ILLEGAL_NAME_CHARACTERS or not c.isprintable() else c for c in wanted)
    legal = legal.strip(" -")[: limits.NAME_CHARS].strip() or DEFAULT_NAME
    name, number = legal, 1
    while name in taken:
        number += 1
        suffix = f" {number}"
        name = legal[: limits.NAME_CHARS - len(suffix)] + suffix
    return name


def normalise_rule_path(path: str) -> str:
    """The one spelling of a rule's path: absolute, no doubled or trailing slash. Raises UsageError for what
    no rule may be.
    """
    if not path.startswith("/"):
        raise UsageError(f"rule path {path!r}: must be absolute (begin with /)")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(f"rule path {path!r}: must be valid UTF-8; use a wildcard for such names") from None
    if "\0" in path:
        raise UsageError(f"rule path {path!r}: must not contain a NUL character")
    components = [component for component in path.split("/") if component]
    if "." in components or ".." in components:
        raise UsageError(f"rule path {path!r}: must not contain . or .. as a component")
    for component in components:
        if len(component) - len(component.rstrip("\\")) & 1:
            raise UsageError(
                f"rule path {path!r}: a backslash must stand before the character it makes plain"
            )
    for component in components[:-1]:
        if is_wildcard(component):
            raise UsageError(
                f"rule path {path!r}: wildcards are allowed in the last component only"
                f" (write \\ before a plain * ? or [)"
            )
    normal = "/" + "/".join(components)
    if len(normal) > limits.RULE_PATH_CHARS:
        raise UsageError(
            f"rule path of {len(normal)} characters: at most {limits.RULE_PATH_CHARS} are allowed; name a"
            " directory above it"
        )
    return normal


def escape(path: str) -> str:
    """A rule path that names exactly `path`."""
    return re.sub(r"([*?\[\\])", r"\\\1", path)


def unescape(path: str) -> str:
    """The path that a rule path without wildcards names."""
    return re.sub(r"(?s)\\(.)", r"\1", path)


def is_wildcard(component: str) -> bool:
    """Whether a component of a rule path has wildcards."""
    return not _WILDCARDS.isdisjoint(re.sub(r"(?s)\\.", "", component))


def rule_anchor(rule: Rule) -> str:
    """Plain absolute path where a rule begins: what it names, or the directory of its wildcard."""
    directory, _, last = rule.path.rpartition("/")
    return unescape((directory or "/") if is_wildcard(last) else rule.path)


def parse_rule(text: str) -> Rule:
    """The rule that `text` spells as `path inc, rec` (RS-02). Raises UsageError."""
    match = _RULE_TEXT.fullmatch(text)
    if match is None:
        raise UsageError(f"rule {text!r}: must read like '/srv/data inc, rec' (inc or exc, rec or nonrec)")
    return Rule(normalise_rule_path(match["path"]), match["type"] == "inc", match["depth"] == "rec")


def add_rule(repset: ReplicationSet, rule: Rule) -> ReplicationSet:
    """`repset` with `rule`, not saved yet. Raises UsageError if the rule is illegal or contradicts another of
    the same path.

    Of two rules of the same path and type the recursive one stays and the other is discarded (RS-10). Of
    different types both apply (RS-11): the one that is not recursive to its level, the recursive one to what
    is below.
    """
    rule = Rule(normalise_rule_path(rule.path), rule.include, rule.recursive)
    kept = []
    for other in repset.rules:
        if other.path == rule.path and other.include != rule.include and other.recursive == rule.recursive:
            raise UsageError(f"rule '{rule}' contradicts '{other}' of the same set: remove that one first")
        if other.path == rule.path and other.include == rule.include:
            if other.recursive or not rule.recursive:
                return repset
            continue
        kept.append(other)
    return msgspec.structs.replace(repset, rules=(*kept, rule))


def remove_rule(repset: ReplicationSet, path: str) -> ReplicationSet:
    """`repset` without its rules of that path, not saved yet. Raises UsageError if it has none."""
    path = normalise_rule_path(path)
    kept = tuple(rule for rule in repset.rules if rule.path != path)
    if len(kept) == len(repset.rules):
        known = ", ".join(f"'{rule}'" for rule in repset.rules) or "none"
        raise UsageError(f"replication set {repset.name!r} has no rule for {path!r}; its rules: {known}")
    return msgspec.structs.replace(repset, rules=kept)


def with_rules(repset: ReplicationSet, rules: Iterable[Rule]) -> ReplicationSet:
    """`repset` with exactly these rules, each checked as by `add_rule`."""
    changed = msgspec.structs.replace(repset, rules=())
    for rule in rules:
        changed = add_rule(changed, rule)
    return changed


# --- saving, copying, deleting ---


def save(current: ReplicationSet | None, changed: ReplicationSet) -> ReplicationSet:
    """`changed` as it is stored: its generation is one more. `current` is what is stored now, None if nothing
    is.

    Raises StaleGenerationError if `changed` was made from another generation than the stored one (RS-12).
    """
    check_name(changed.name)
    stored_generation = 0 if current is None else current.generation
    if changed.generation != stored_generation:
        raise StaleGenerationError(
            f"replication set {changed.name!r} was changed by somebody else (generation"
            f" {stored_generation}, yours"
            f" {changed.generation}): look at it again and repeat your change"
        )
    return msgspec.structs.replace(with_rules(changed, changed.rules), generation=stored_generation + 1)


def renamed(repset: ReplicationSet, name: str, taken: Collection[str]) -> ReplicationSet:
    """The set under a new name, not saved. Of a saved set this is a copy: the original stays (RS-20)."""
    check_name(name)
    check_unique(name, taken)
    return ReplicationSet(name, 0, repset.rules)


def check_deletable(repset: ReplicationSet, connection_ids: Collection[int]) -> None:
    """Raises ReplicatorError while the set is connected (RS-21)."""
    if connection_ids:
        raise ReplicatorError(
            f"replication set {repset.name!r} is connected ({_connections(connection_ids)}): disconnect it"
            " first"
        )


def advice_after_save(repset: ReplicationSet, connection_ids: Collection[int]) -> str:
    """What to tell whoever saved a set while it is connected (RS-19); "" if it is not."""
    if not connection_ids:
        return ""
    return (
        f"replication set {repset.name!r} is connected ({_connections(connection_ids)}) with its former"
        " rules:"
        f" disconnect, connect again and run a difference mirror to apply the new ones"
    )


def _connections(ids: Collection[int]) -> str:
    return f"connection{'s' if len(ids) > 1 else ''} {', '.join(str(i) for i in sorted(ids))}"


# --- where copies go ---


class Place(msgspec.Struct, frozen=True):
    """Where one path of a connected set goes. `agent` names the target's host: places with different names
    never meet.
    """

    repset: str
    source: str
    agent: str
    target: str


def is_inside(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or something below it. Both are normal absolute paths."""
    return path == directory or directory == "/" or path.startswith(directory + "/")


def overlapping(first: str, second: str) -> bool:
    """Whether one of two normal absolute paths is the other or inside of it."""
    return is_inside(first, second) or is_inside(second, first)


def check_places(wanted: Iterable[Place], existing: Iterable[Place]) -> None:
    """Raises ReplicatorError if two copies would be written to one place (RS-13), or the same set twice
    (RS-14).
    """
    seen = list(existing)
    for place in wanted:
        for other in seen:
            if place.agent != other.agent or not overlapping(place.target, other.target):
                continue
            if place.repset == other.repset and place.source == other.source:
                raise ReplicatorError(
                    f"replication set {place.repset!r} is already connected to {place.agent}:{other.target}"
                )
            raise ReplicatorError(
                f"{place.agent}:{place.target} is already the place of {other.source} (replication set"
                f" {other.repset!r},"
                f" {other.target}): copies must not share a place, so choose another target path"
            )
        seen.append(place)


def check_no_loop(wanted: Iterable[Place], existing: Iterable[Place], local_agents: Collection[str]) -> None:
    """Raises ReplicatorError if changes would come back to where they were made (CF-14), directly or by way
    of other sets.

    `local_agents`: which names in `Place.agent` stand for this very host. Sources are always on this host.
    """
    wanted = list(wanted)
    local = [place for place in (*wanted, *existing) if place.agent in local_agents]
    for place in wanted:
        reached = [place] if place.agent in local_agents else []
        for step in reached:  # grows while it is walked
            if overlapping(step.target, place.source):
                way = "" if step is place else f" by way of {step.source}"
                raise ReplicatorError(
                    f"the target {step.target} and the source {place.source} overlap{way}: every change"
                    " would be replicated"
                    f" for ever; choose a target outside of what is protected"
                )
            reached += [n for n in local if overlapping(step.target, n.source) and n not in reached]


# --- deciding ---


@dataclass(eq=False)
class _Wildcard:
    """The last component of a rule, and what follows if a name matches."""

    matches: Callable[[bytes], object]
    include: bool
    recursive: bool
    strength: tuple[int, bool]  # among those of one directory: more fixed characters, then exclude


@dataclass(eq=False)
class _Node:
    """What rules say about one path that they spell out."""

    children: dict[bytes, "_Node"] = field(default_factory=dict)
    level: bool | None = None  # type of the rule for this path that is not recursive, None if there is none
    tree: bool | None = None  # type of the recursive one
    wildcards: list[_Wildcard] = field(default_factory=list)
    includes_below: bool = False  # some include rule names a path below, or a wildcard here
    excludes_below: bool = False


@dataclass(eq=False, frozen=True)
class _Directory:
    """How the names in one directory are decided."""

    names: bool  # a name that no rule names
    deeper: bool  # the same in all directories below
    node: _Node | None  # rules that spell out something here
    wildcards: tuple[_Wildcard, ...]  # that name something here, the strongest first
    inherited: tuple[_Wildcard, ...]  # those of them that go on below
    may_contain: bool
    everything: bool


def _directory(names: bool, deeper: bool, node: _Node | None, inherited: tuple[_Wildcard, ...]) -> _Directory:
    own = tuple(sorted(node.wildcards, key=lambda w: w.strength, reverse=True)) if node else ()
    wildcards = own + inherited
    return _Directory(
        names=names,
        deeper=deeper,
        node=node if node and node.children else None,
        wildcards=wildcards,
        inherited=tuple(w for w in wildcards if w.recursive),
        may_contain=names
        or deeper
        or any(w.include for w in wildcards)
        or (node is not None and node.includes_below),
        everything=names
        and deeper
        and all(w.include for w in wildcards)
        and not (node is not None and node.excludes_below),
    )


def _decide(directory: _Directory, name: bytes) -> bool:
    """Whether `name` in `directory` is in the set."""
    if directory.node is not None:
        node = directory.node.children.get(name)
        if node is not None:
            if node.level is not None:
                return node.level
            if node.tree is not None:
                return node.tree
    for wildcard in directory.wildcards:
        if wildcard.matches(name):
            return wildcard.include
    return directory.names


def _descend(directory: _Directory, name: bytes) -> _Directory:
    """How names are decided in the directory `name` of `directory`."""
    node = directory.node.children.get(name) if directory.node is not None else None
    names = deeper = directory.deeper
    tree = node.tree if node is not None else None
    if tree is None:
        tree = next((w.include for w in directory.wildcards if w.recursive and w.matches(name)), None)
    if tree is not None:
        names = deeper = tree
    if node is not None and node.level is not None:
        names = node.level
    same_rules = node is directory.node is None and len(directory.wildcards) == len(directory.inherited)
    if same_rules and directory.names == directory.deeper == names == deeper:
        return directory  # decides everything below in the same way: shared
    return _directory(names, deeper, node, directory.inherited)


class Filter:
    """What of one captured directory is in a set. Paths are bytes relative to its root, b"" is the root
    itself.

    `roots`: where a scan has to start, shortest first, none inside another. Not thread-safe: each thread has
    its own.
    """

    roots: tuple[bytes, ...]
    includes: Callable[[bytes], bool]
    """Whether the object at this path is in the set."""

    def __init__(self, top: _Directory, top_included: bool, roots: Iterable[bytes]) -> None:
        self._top = top
        self._top_included = top_included
        self._directories: dict[bytes, _Directory] = {b"": top}
        self.roots = _outermost(roots)
        # The whole mount, or nothing of it, is by far the most frequent question: no look at the path at all.
        if top_included and top.everything:
            self.includes = _always
        elif not top_included and not top.may_contain:
            self.includes = _never
        else:
            self.includes = self._includes

    def may_contain(self, path: bytes) -> bool:
        """Whether this directory, or something below, can be in the set: a scan has to look into it."""
        return self._find(path).may_contain or self.includes(path)

    def everything_below(self, path: bytes) -> bool:
        """Whether this directory and everything below are in the set, whatever their names."""
        return self._find(path).everything and self.includes(path)

    def _includes(self, path: bytes) -> bool:
        parent, _, name = path.rpartition(b"/")
        if not name:
            return self._top_included
        directory = self._directories.get(parent)
        if directory is None:
            directory = self._find(parent)
        if directory.node is None and not directory.wildcards:
            return directory.names
        return _decide(directory, name)

    def _find(self, path: bytes) -> _Directory:
        """The decisions of a directory, from the nearest ancestor that is known."""
        found = self._directories.get(path)
        if found is not None:
            return found
        missing = []
        above = path
        while found is None:
            missing.append(above)
            above = above.rpartition(b"/")[0]
            found = self._directories.get(above)
        if len(self._directories) + len(missing) > limits.FILTER_DIRECTORIES:
            # Emptied, not aged: filling it again costs less than keeping an order on every look-up.
            self._directories = {b"": self._top}
        for below in reversed(missing):
            found = _descend(found, below.rpartition(b"/")[2])
            self._directories[below] = found
        return found


def _always(path: bytes) -> bool:
    return True


def _never(path: bytes) -> bool:
    return False


def compile_filter(repset: ReplicationSet, mount_root: bytes) -> Filter:
    """The decisions of `repset` about the directory captured at the absolute path `mount_root`."""
    root_node = _Node()
    for rule in repset.rules:
        _insert(root_node, rule)
    tree = root_node.tree if root_node.tree is not None else False
    included = root_node.level if root_node.level is not None else tree
    directory = _directory(included, tree, root_node, ())
    for name in mount_root.split(b"/"):
        if name:
            included = _decide(directory, name)
            directory = _descend(directory, name)
    prefix = mount_root.rstrip(b"/") + b"/"
    roots = []
    if included or directory.names or directory.deeper or any(w.include for w in directory.wildcards):
        roots.append(b"")
    for rule in repset.rules:
        anchor = rule_anchor(rule).encode()
        if rule.include and anchor.startswith(prefix) and anchor != prefix:
            roots.append(anchor[len(prefix) :])
    return Filter(directory, included, roots)


class _Verdict(int):
    """The type of a rule, include (1) or exclude (0), that remembers whose it is."""

    rule: Rule

    def __new__(cls, rule: Rule) -> "_Verdict":
        verdict = super().__new__(cls, rule.include)
        verdict.rule = rule
        return verdict

    def __eq__(self, other: object) -> bool:
        return self is other  # two rules of one type are not the same answer

    __hash__ = int.__hash__


def deciding_rule(repset: ReplicationSet, mount_root: bytes, path: bytes) -> tuple[bool, Rule | None]:
    """Whether `path`, relative to the captured directory, is in the set, and which rule decides that (None:
    no rule names it).

    The same code decides as ever: the rules only say which of them was asked.
    """
    marked = tuple(msgspec.structs.replace(rule, include=_Verdict(rule)) for rule in repset.rules)
    verdict = compile_filter(msgspec.structs.replace(repset, rules=marked), mount_root)._includes(path)
    return bool(verdict), verdict.rule if isinstance(verdict, _Verdict) else None


def _outermost(paths: Iterable[bytes]) -> tuple[bytes, ...]:
    """`paths` without those inside of another, shortest first."""
    kept: list[bytes] = []
    for path in sorted(set(paths), key=lambda p: (len(p), p)):
        if not any(above == b"" or path.startswith(above + b"/") for above in kept):
            kept.append(path)
    return tuple(kept)


def _insert(root: _Node, rule: Rule) -> None:
    components = [component for component in normalise_rule_path(rule.path).split("/") if component]
    wildcard = components.pop() if components and is_wildcard(components[-1]) else None
    node = root
    for component in components:
        _mark_below(node, rule)
        node = node.children.setdefault(unescape(component).encode(), _Node())
    if wildcard is not None:
        _mark_below(node, rule)
        fixed_characters = len(_BRACKET_OR_ESCAPE.sub("", wildcard).replace("*", "").replace("?", ""))
        node.wildcards.append(
            _Wildcard(_matcher(wildcard), rule.include, rule.recursive, (fixed_characters, not rule.include))
        )
    elif rule.recursive:
        node.tree = rule.include
    else:
        node.level = rule.include


def _mark_below(node: _Node, rule: Rule) -> None:
    if rule.include:
        node.includes_below = True
    else:
        node.excludes_below = True


_BRACKET_OR_ESCAPE = re.compile(r"(?s)(\[!?\]?[^\]]*\])|\\(.)")


def _matcher(wildcard: str) -> Callable[[bytes], object]:
    """Whether a name matches a component with wildcards. Names that are not UTF-8 match byte by byte."""

    def plain(found: re.Match[str]) -> str:
        # fnmatch knows no escapes, but a bracket around a wildcard makes it plain too.
        return found[1] or (f"[{found[2]}]" if found[2] in _WILDCARDS else found[2])

    matches = re.compile(fnmatch.translate(_BRACKET_OR_ESCAPE.sub(plain, wildcard))).match
    return lambda name: matches(name.decode("utf-8", "surrogateescape"))
