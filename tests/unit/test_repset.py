"""Replication sets, row by row of the feature list (RS-*), and the filter that decides per path."""

import timeit

import pytest

from replicator import limits, repset
from replicator.errors import ReplicatorError, UsageError
from replicator.repset import Filter, Place, ReplicationSet, Rule, StaleGenerationError, compile_filter


def rules(*texts: str) -> ReplicationSet:
    return repset.with_rules(ReplicationSet("set"), [repset.parse_rule(text) for text in texts])


def decide(*texts: str, mount: bytes = b"/srv") -> Filter:
    return compile_filter(rules(*texts), mount)


def included(decisions: Filter, *paths: bytes) -> list[bytes]:
    return [path for path in paths if decisions.includes(path)]


# --- names (RS-09, RS-17) ---


@pytest.mark.parametrize("character", [*repset.ILLEGAL_NAME_CHARACTERS, "\0", "\n"])
def test_illegal_characters_are_refused_in_names(character: str) -> None:
    with pytest.raises(UsageError, match="not allowed"):
        repset.check_name(f"a{character}b")


@pytest.mark.parametrize("name", ["", " a", "a ", "x" * (limits.NAME_CHARS + 1)])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        repset.check_name(name)


def test_ordinary_names_are_accepted() -> None:
    for name in ("web", repset.DEFAULT_NAME, "Daten für später", "x" * limits.NAME_CHARS):
        repset.check_name(name)


def test_names_are_unique() -> None:
    with pytest.raises(ReplicatorError, match="exists already"):
        repset.check_unique("web", {"web"})


def test_a_unique_name_is_legal_and_new() -> None:
    assert repset.unique_name("srv-www.example.org", ()) == "srv-www-example-org"
    assert repset.unique_name("web", {"web", "web 2"}) == "web 3"
    assert repset.unique_name("/", ()) == repset.DEFAULT_NAME
    long = "x" * limits.NAME_CHARS
    made = repset.unique_name(long, {long})
    repset.check_name(made)
    assert made != long


# --- rules (RS-02, RS-05, RS-06, RS-07) ---


@pytest.mark.parametrize(
    "text", ["/srv/data inc, rec", "/srv/a b exc, nonrec", "/srv/*.db inc, rec", "/ inc, rec"]
)
def test_rules_read_as_they_are_written(text: str) -> None:
    assert str(repset.parse_rule(text)) == text


@pytest.mark.parametrize(
    "text", ["/srv", "/srv inc", "/srv inc rec", "srv inc, rec", "/srv maybe, rec", " inc, rec"]
)
def test_malformed_rules_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        repset.parse_rule(text)


@pytest.mark.parametrize(
    ("path", "normal"), [("/srv//data/", "/srv/data"), ("/", "/"), ("//", "/"), ("/srv/[a]", "/srv/[a]")]
)
def test_paths_have_one_spelling(path: str, normal: str) -> None:
    assert repset.normalise_rule_path(path) == normal


@pytest.mark.parametrize(
    "path",
    ["srv", "", "/srv/../etc", "/srv/./x", "/srv/\0", "/srv/*/x", "/a?/b", "/[a]/b", "/srv/x\\", "/\udcff"],
)
def test_impossible_paths_are_refused(path: str) -> None:
    with pytest.raises(UsageError):
        repset.normalise_rule_path(path)


def test_rule_paths_have_a_length() -> None:
    longest = "/" + "x" * (limits.RULE_PATH_CHARS - 1)
    assert repset.normalise_rule_path(longest) == longest
    with pytest.raises(UsageError, match="at most 259"):
        repset.normalise_rule_path(longest + "x")


def test_an_escaped_path_names_itself_only() -> None:
    path = "/srv/a[1]*?\\b"
    decisions = decide(f"{repset.escape(path)} inc, rec")
    assert decisions.roots == (b"a[1]*?\\b",)
    assert included(decisions, b"a[1]*?\\b", b"a1xyb", b"a[1]*?\\b/below") == [
        b"a[1]*?\\b",
        b"a[1]*?\\b/below",
    ]


def test_an_escape_makes_a_directory_with_wildcard_characters_usable() -> None:
    decisions = decide(r"/srv/\[slug\]/x inc, rec")
    assert decisions.roots == (b"[slug]/x",)


# --- changing a set (RS-10, RS-11, RS-12, RS-18…21) ---


def test_the_recursive_rule_of_a_path_discards_the_other() -> None:
    assert rules("/srv inc, rec", "/srv inc, nonrec") == rules("/srv inc, rec")
    assert rules("/srv inc, nonrec", "/srv inc, rec") == rules("/srv inc, rec")


def test_a_contradiction_is_refused() -> None:
    with pytest.raises(UsageError, match="contradicts"):
        rules("/srv inc, rec", "/srv exc, rec")


def test_rules_of_a_path_are_removed() -> None:
    changed = repset.remove_rule(rules("/srv inc, rec", "/srv exc, nonrec", "/srv/x exc, rec"), "/srv/")
    assert changed.rules == (Rule("/srv/x", False, True),)
    with pytest.raises(UsageError, match=r"'/srv/x exc, rec'"):
        repset.remove_rule(changed, "/srv/y")


def test_every_save_counts() -> None:
    first = repset.save(None, ReplicationSet("web"))
    second = repset.save(first, repset.add_rule(first, Rule("/srv")))
    assert (first.generation, second.generation) == (1, 2)


def test_a_stale_save_is_refused() -> None:
    stored = repset.save(None, ReplicationSet("web"))
    mine = repset.add_rule(stored, Rule("/srv/mine"))
    stored = repset.save(stored, repset.add_rule(stored, Rule("/srv/theirs")))
    with pytest.raises(StaleGenerationError, match="generation 2, yours 1"):
        repset.save(stored, mine)
    with pytest.raises(StaleGenerationError):
        repset.save(None, mine)  # deleted meanwhile


def test_a_copy_is_not_saved() -> None:
    copy = repset.renamed(repset.save(None, rules("/srv inc, rec")), "copy", {"set"})
    assert copy == ReplicationSet("copy", 0, (Rule("/srv"),))
    with pytest.raises(ReplicatorError, match="exists already"):
        repset.renamed(copy, "set", {"set"})


def test_a_connected_set_stays() -> None:
    with pytest.raises(ReplicatorError, match="connections 3, 7"):
        repset.check_deletable(rules(), [7, 3])
    repset.check_deletable(rules(), [])


def test_advice_when_saved_while_connected() -> None:
    assert repset.advice_after_save(rules(), []) == ""
    assert "difference mirror" in repset.advice_after_save(rules(), [1])


# --- where copies go (RS-13, RS-14, CF-14) ---


def place(source: str, target: str, name: str = "web", agent: str = "b") -> Place:
    return Place(name, source, agent, target)


@pytest.mark.parametrize("target", ["/copy", "/copy/below", "/"])
def test_two_sets_do_not_share_a_place(target: str) -> None:
    with pytest.raises(ReplicatorError, match="must not share"):
        repset.check_places([place("/srv", target, "other")], [place("/data", "/copy")])


def test_one_set_is_not_sent_twice_to_one_place() -> None:
    with pytest.raises(ReplicatorError, match="already connected"):
        repset.check_places([place("/srv", "/copy")], [place("/srv", "/copy")])


def test_one_set_may_go_to_two_places() -> None:
    existing = [place("/srv", "/copy")]
    repset.check_places([place("/srv", "/copy2")], existing)
    repset.check_places([place("/srv", "/copy", agent="c")], existing)


@pytest.mark.parametrize("target", ["/srv", "/srv/copy", "/"])
def test_a_target_in_its_own_source_is_refused(target: str) -> None:
    with pytest.raises(ReplicatorError, match="for ever"):
        repset.check_no_loop([place("/srv", target, agent="here")], [], {"here"})


def test_the_same_path_on_another_host_is_no_loop() -> None:
    repset.check_no_loop([place("/srv", "/srv", agent="there")], [], {"here"})


def test_a_loop_by_way_of_another_set_is_refused() -> None:
    chain = [place("/b", "/c", "second", "here")]
    repset.check_no_loop([place("/a", "/b", agent="here")], chain, {"here"})  # a → b → c is a chain
    with pytest.raises(ReplicatorError, match="by way of /b"):
        repset.check_no_loop([place("/c", "/b", agent="here")], chain, {"here"})


def test_a_prefix_of_a_name_is_not_inside() -> None:
    assert not repset.overlapping("/srv/data", "/srv/data2")
    assert repset.overlapping("/srv/data", "/srv/data")
    assert repset.is_inside("/srv", "/")


# --- deciding: includes ---


def test_nothing_is_included_without_a_rule() -> None:
    decisions = decide()
    assert not decisions.includes(b"") and not decisions.may_contain(b"") and decisions.roots == ()


def test_a_whole_mount() -> None:
    decisions = decide("/srv inc, rec")
    assert decisions.roots == (b"",)
    assert decisions.includes(b"") and decisions.includes(b"a/b") and decisions.everything_below(b"a")


@pytest.mark.parametrize("rule", ["/ inc, rec", "/srv inc, rec", "/srv/data inc, rec"])
def test_a_rule_at_or_above_the_mount_covers_it(rule: str) -> None:
    decisions = decide(rule, mount=b"/srv/data")
    assert decisions.roots == (b"",) and decisions.includes(b"x")


def test_a_rule_elsewhere_covers_nothing() -> None:
    for rule in ("/srv/other inc, rec", "/srv/data2 inc, rec", "/srv inc, nonrec"):
        decisions = decide(rule, mount=b"/srv/data")
        assert not decisions.includes(b"x"), rule


def test_not_recursive_is_that_level_only() -> None:
    decisions = decide("/srv/a inc, nonrec")
    assert included(decisions, b"a", b"a/x", b"a/dir", b"a/dir/x", b"b") == [b"a", b"a/x", b"a/dir"]
    assert not decisions.may_contain(b"a/dir/deeper")


def test_exclude_below_include() -> None:
    decisions = decide("/srv inc, rec", "/srv/cache exc, rec", "/srv/cache/keep inc, rec")
    assert included(decisions, b"a", b"cache", b"cache/x", b"cache/keep", b"cache/keep/x") == [
        b"a",
        b"cache/keep",
        b"cache/keep/x",
    ]
    assert decisions.may_contain(b"cache") and not decisions.may_contain(b"cache/other")
    assert decisions.everything_below(b"cache/keep") and not decisions.everything_below(b"")


def test_order_of_rules_does_not_matter() -> None:
    texts = ["/srv inc, rec", "/srv/cache exc, rec", "/srv/cache/keep inc, nonrec", "/srv/*.tmp exc, rec"]
    paths = [b"", b"a", b"cache/x", b"cache/keep/x", b"cache/keep/x/y", b"a/b.tmp"]
    assert included(decide(*texts), *paths) == included(decide(*reversed(texts)), *paths)


def test_two_types_of_one_path_both_apply() -> None:
    level_only_out = decide("/srv/a inc, rec", "/srv/a exc, nonrec")
    assert included(level_only_out, b"a", b"a/x", b"a/d/x") == [b"a/d/x"]
    level_only_in = decide("/srv/a inc, nonrec", "/srv/a exc, rec")
    assert included(level_only_in, b"a", b"a/x", b"a/d/x") == [b"a", b"a/x"]


def test_an_exclude_of_one_level_leaves_what_is_below() -> None:
    decisions = decide("/srv inc, rec", "/srv/a exc, nonrec")
    assert included(decisions, b"a", b"a/x", b"a/d", b"a/d/x") == [b"a/d/x"]


# --- deciding: wildcards ---


def test_a_recursive_wildcard_holds_in_all_directories_below() -> None:
    decisions = decide("/srv/*.db inc, rec")
    assert decisions.roots == (b"",)
    assert included(decisions, b"", b"a.db", b"d/a.db", b"d/e/a.db", b"a.dbx", b"d") == [
        b"a.db",
        b"d/a.db",
        b"d/e/a.db",
    ]
    assert decisions.may_contain(b"d/e")


def test_a_wildcard_of_one_level() -> None:
    decisions = decide("/srv/data/*.db inc, nonrec")
    assert decisions.roots == (b"data",)
    assert included(decisions, b"data/a.db", b"data/d/a.db", b"data/x.db/y") == [b"data/a.db"]
    assert not decisions.may_contain(b"data/d")


def test_a_matching_directory_is_matched_whole() -> None:
    assert decide("/srv/proj* inc, rec").includes(b"proj1/deep/file")
    excluding = decide("/srv inc, rec", "/srv/cache* exc, rec")
    assert included(excluding, b"cache1/x", b"d/cache2/x", b"d/x") == [b"d/x"]
    assert not excluding.everything_below(b"d")


def test_wildcards_do_not_cross_directories() -> None:
    decisions = decide("/srv/a*z inc, nonrec")
    assert included(decisions, b"az", b"abz", b"a/z", b"ab/cz") == [b"az", b"abz"]


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("?", [b"a", "ä".encode(), b"\xff"], [b"", b"ab"]),
        ("[a-c]x", [b"ax", b"cx"], [b"dx", b"[a-c]x"]),
        ("[!a]x", [b"bx"], [b"ax", b"x"]),
        ("a[*]b", [b"a*b"], [b"axb"]),
        (r"a\*b*", [b"a*b", b"a*bc"], [b"axb"]),
        ("[x", [b"[x"], [b"x"]),
        ("*.[!o]", [b"a.c", b".c"], [b"a.o"]),
    ],
)
def test_wildcards_match_like_those_of_a_shell(pattern: str, yes: list[bytes], no: list[bytes]) -> None:
    decisions = decide(f"/srv/d/{pattern} inc, nonrec")
    assert included(decisions, *(b"d/" + name for name in yes)) == [b"d/" + name for name in yes]
    assert not included(decisions, *(b"d/" + name for name in no if name))


def test_a_spelled_out_name_beats_a_wildcard() -> None:
    decisions = decide("/srv inc, rec", "/srv/*.tmp exc, rec", "/srv/d/keep.tmp inc, rec")
    assert included(decisions, b"a.tmp", b"d/b.tmp", b"d/keep.tmp") == [b"d/keep.tmp"]


def test_a_wildcard_deeper_down_beats_one_higher_up() -> None:
    decisions = decide("/srv/*.tmp exc, rec", "/srv inc, rec", "/srv/d/*.tmp inc, rec")
    assert included(decisions, b"a.tmp", b"d/a.tmp", b"d/e/a.tmp") == [b"d/a.tmp", b"d/e/a.tmp"]


def test_the_wildcard_with_more_fixed_characters_wins_and_exclude_breaks_ties() -> None:
    assert decide("/srv/*.db inc, rec", "/srv/a* exc, rec").includes(b"a.db")
    assert not decide("/srv/*a inc, rec", "/srv/a* exc, rec").includes(b"aa")


def test_an_exclude_by_wildcard_holds_below_a_redundant_include() -> None:
    decisions = decide("/srv inc, rec", "/srv/sub inc, rec", "/srv/*.tmp exc, rec")
    assert not decisions.includes(b"sub/a.tmp")


# --- deciding: starting points ---


def test_roots_are_the_outermost_starting_points() -> None:
    decisions = decide(
        "/srv/a/b inc, rec", "/srv/a/b/c inc, rec", "/srv/longer/*.x inc, rec", "/srv/z exc, rec"
    )
    assert decisions.roots == (b"a/b", b"longer")
    assert not decisions.includes(b"a") and decisions.may_contain(b"a") and decisions.may_contain(b"")


def test_a_mount_excluded_from_above_starts_at_its_own_rules() -> None:
    decisions = decide("/srv inc, rec", "/srv/data exc, rec", "/srv/data/x inc, rec", mount=b"/srv/data")
    assert decisions.roots == (b"x",)


# --- deciding: speed and bounds ---


def test_the_whole_mount_costs_next_to_nothing() -> None:
    decisions = decide("/srv inc, rec")
    seconds = min(timeit.repeat(lambda: decisions.includes(b"a/b/c"), number=10_000, repeat=5)) / 10_000
    assert seconds < 1e-6  # 0.05 µs on an idle machine


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FILTER_DIRECTORIES", 50)
    decisions = decide("/srv inc, rec", "/srv/*.tmp exc, rec")
    for number in range(500):
        assert decisions.includes(b"d%d/x" % number) and not decisions.includes(b"d%d/x.tmp" % number)
    assert len(decisions._directories) <= 51


def test_the_deepest_possible_path() -> None:
    deepest = b"/".join([b"d"] * 2047)
    assert decide("/srv inc, rec", "/srv/x exc, rec").includes(deepest)
