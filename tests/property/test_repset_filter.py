"""The compiled filter against the definition of rules, spelled out name by name without any shortcut."""

import fnmatch

from hypothesis import given
from hypothesis import strategies as st

from replicator import repset
from replicator.errors import UsageError
from replicator.repset import ReplicationSet, Rule, compile_filter

_NAMES = ["a", "b", "ab", "a.x", "b.x"]
_PATTERNS = ["*", "*.x", "a*", "?", "[ab]", "[!a]*"]
_MOUNT = "/m/n"

_below = st.lists(st.sampled_from(_NAMES), max_size=4)
_directories = st.one_of(
    _below.map(lambda names: ["m", "n", *names]), st.sampled_from([[], ["m"], ["m", "n"], ["z"]])
)
_rule_paths = st.one_of(
    _directories.map(lambda names: "/" + "/".join(names)),
    st.tuples(_directories, st.sampled_from(_PATTERNS)).map(lambda t: "/" + "/".join([*t[0], t[1]])),
)
_rules = st.lists(st.builds(Rule, _rule_paths, st.booleans(), st.booleans()), max_size=6)
_paths = _below.map(lambda names: "/".join(names))


def _set_of(rules: list[Rule]) -> ReplicationSet:
    made = ReplicationSet("set")
    for rule in rules:
        try:
            made = repset.add_rule(made, rule)
        except UsageError:
            pass  # contradicts an earlier one
    return made


def _names_it(rule: Rule, names: list[str]) -> tuple[int, ...] | None:
    """How specifically `rule` names this very path; None if it does not."""
    components = [c for c in rule.path.split("/") if c]
    if components and repset.is_wildcard(components[-1]):
        *directory, pattern = components
        inside = names[: len(directory)] == directory and len(names) > len(directory)
        if not inside or (not rule.recursive and len(names) != len(directory) + 1):
            return None
        if not fnmatch.fnmatchcase(names[-1], pattern):
            return None
        fixed = len(pattern.replace("[ab]", "").replace("[!a]", "").replace("*", "").replace("?", ""))
        return (0, len(directory), fixed, not rule.include)
    return (1,) if components == names else None


def _includes(rules: tuple[Rule, ...], path: str) -> bool:
    """The definition in the docstring of `repset`, read literally."""
    names = [name for name in f"{_MOUNT}/{path}".split("/") if name]
    level = tree = False  # what holds for the names in this directory, and for all below
    for depth in range(len(names) + 1):
        here = names[:depth]
        naming = [(s, r) for r in rules if (s := _names_it(r, here)) is not None]
        naming.sort(key=lambda n: n[0], reverse=True)
        plain = {r.recursive: r.include for s, r in naming if s == (1,)}
        wild = [r for s, r in naming if s != (1,)]
        own = plain.get(False, plain.get(True, wild[0].include if wild else level))
        below = plain.get(True, next((r.include for r in wild if r.recursive), tree))
        level, tree = plain.get(False, below), below
    return own


@given(_rules, _paths)
def test_includes_is_what_the_definition_says(rules: list[Rule], path: str) -> None:
    made = _set_of(rules)
    assert compile_filter(made, _MOUNT.encode()).includes(path.encode()) == _includes(made.rules, path)


@given(_rules, _paths, _paths)
def test_shortcuts_never_hide_anything(rules: list[Rule], above: str, below: str) -> None:
    made = _set_of(rules)
    decisions = compile_filter(made, _MOUNT.encode())
    directory, path = above.encode(), f"{above}/{below}".strip("/").encode()
    if decisions.includes(path):
        assert decisions.may_contain(directory)
        assert any(path == root or not root or path.startswith(root + b"/") for root in decisions.roots)
    elif decisions.everything_below(directory):
        raise AssertionError(f"{path!r} is not in the set")


@given(_rules)
def test_roots_are_apart_from_each_other_and_hold_something(rules: list[Rule]) -> None:
    decisions = compile_filter(_set_of(rules), _MOUNT.encode())
    roots = decisions.roots
    assert list(roots) == sorted(roots, key=len)
    for root in roots:
        assert decisions.may_contain(root)
        assert not any(other != root and (not other or root.startswith(other + b"/")) for other in roots)


@given(_rules, _rules, _paths)
def test_answers_do_not_depend_on_what_was_asked_before(rules: list[Rule], _: list[Rule], path: str) -> None:
    made = _set_of(rules)
    warm = compile_filter(made, _MOUNT.encode())
    for name in _NAMES:
        warm.includes(f"{path}/{name}".strip("/").encode())
    fresh = compile_filter(made, _MOUNT.encode())
    for question in (path.encode(), f"{path}/a/b".strip("/").encode()):
        assert warm.includes(question) == fresh.includes(question)


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_an_escaped_name_names_itself(name: str) -> None:
    if name in (".", ".."):
        return
    made = _set_of([Rule(repset.escape(f"{_MOUNT}/{name}"))])
    decisions = compile_filter(made, _MOUNT.encode())
    assert decisions.roots == (name.encode(),) and decisions.includes(name.encode())
    assert not decisions.includes(name.encode() + b"x")
