"""Which operations concern a path, how far they are, and which rule decides."""

import random

import msgspec
import pytest
from kit.recording import make_record

from replicator.mirror.order import Order
from replicator.ops import NO_IDENTITY, Identity, Kind
from replicator.queue.dirty import Dirty, DirtyMap, Scope
from replicator.repset import ReplicationSet, Rule, compile_filter, deciding_rule
from replicator.sender.doubts import covers, dirty_text, lost, quarantine_text
from replicator.sender.why import concerns, stage_of, why_it_waits
from replicator.status import ConnectionState, ConnectionStatus, Problem, ReplicationStatus, TargetStatus


@pytest.mark.parametrize(
    ("kind", "path", "path2", "asked", "expected"),
    [
        (Kind.WRITE, b"d/f", b"", b"d/f", True),
        (Kind.WRITE, b"d/f", b"", b"d", True),
        (Kind.WRITE, b"d/f", b"", b"", True),
        (Kind.WRITE, b"d/f", b"", b"d/ff", False),
        (Kind.WRITE, b"d/f", b"", b"d/f/g", False),
        (Kind.RENAME, b"c", b"d", b"d/f", True),
        (Kind.RENAME, b"d", b"e", b"d/f", True),
        (Kind.RMDIR, b"d", b"", b"d/f", True),
        (Kind.RENAME, b"x", b"y", b"d/f", False),
    ],
)
def test_concerns(kind: Kind, path: bytes, path2: bytes, asked: bytes, expected: bool) -> None:
    assert concerns(make_record(kind, path, path2), asked) is expected


def test_stages() -> None:
    marks = {"sent": 50, "received": 40, "applied": 30, "durable": 20}
    stages = [stage_of(sequence, **marks) for sequence in (20, 21, 30, 31, 40, 41, 50, 51)]
    assert stages == ["durable", "applied", "applied", "received", "received", "sent", "sent", "journaled"]


GOOD = ConnectionStatus(
    id=1, uuid="u", repset="web", target="b:1", state=ConnectionState.STARTED, target_status=TargetStatus.OK
)


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        ("durable", {}, ""),
        ("journaled", {}, "behind what is being sent"),
        ("journaled", {"state": ConnectionState.PAUSED}, "transmission is paused"),
        ("journaled", {"state": ConnectionState.ERROR, "state_reason": "no route"}, "no route"),
        ("journaled", {"replication_status": ReplicationStatus.STOPPED}, "replication is stopped"),
        ("sent", {}, "on its way"),
        ("received", {"target_status": TargetStatus.PAUSED}, "the target is paused"),
        ("received", {"target_status": TargetStatus.RETRYING, "target_status_reason": "full"}, "full"),
        ("received", {}, "the target's queue"),
        ("applied", {}, "next sync"),
    ],
)
def test_what_it_waits_for(stage: str, changes: dict[str, object], words: str) -> None:
    good = msgspec.structs.replace(GOOD, replication_status=ReplicationStatus.REPLICATING)
    text = why_it_waits(stage, msgspec.structs.replace(good, **changes))
    assert words in text and bool(text) == bool(words)


# --- which rule ---

RULES = (
    Rule("/srv"),
    Rule("/srv/*.tmp", include=False),
    Rule("/srv/cache", include=False),
    Rule("/srv/cache/keep"),
    Rule("/srv/level", recursive=False),
)


@pytest.mark.parametrize(
    ("path", "included", "rule"),
    [
        ("", True, RULES[0]),
        ("a/b", True, RULES[0]),
        ("a/b.tmp", False, RULES[1]),
        ("b.tmp/below", False, RULES[1]),
        ("cache", False, RULES[2]),
        ("cache/x", False, RULES[2]),
        ("cache/keep/x", True, RULES[3]),
        ("level/x", True, RULES[4]),
        ("level/x/y", True, RULES[0]),
    ],
)
def test_the_rule_that_decides(path: str, included: bool, rule: Rule) -> None:
    assert deciding_rule(ReplicationSet("web", 1, RULES), b"/srv", path.encode()) == (included, rule)


def test_what_no_rule_names() -> None:
    assert deciding_rule(ReplicationSet("web", 1, (Rule("/srv/a"),)), b"/srv", b"b") == (False, None)
    assert deciding_rule(ReplicationSet("web", 1, (Rule("/"),)), b"/srv", b"b") == (True, Rule("/"))


@pytest.mark.parametrize("seed", range(200))
def test_it_decides_as_the_filter_does(seed: int) -> None:
    chance = random.Random(seed)

    def path(depth: int) -> str:
        return "/".join(chance.choice("abc") for _ in range(depth))

    rules = []
    for _ in range(chance.randint(1, 6)):
        end = chance.choice(("", "/a*", "/*", "/[ab]"))
        text = "/srv/" + path(chance.randint(1, 3)) + end
        rules.append(Rule(text, chance.random() < 0.5, chance.random() < 0.7))
    repset = ReplicationSet("web", 1, tuple({(r.path, r.recursive): r for r in rules}.values()))
    decides = compile_filter(repset, b"/srv")
    for _ in range(50):
        asked = path(chance.randint(1, 5)).encode()
        included, rule = deciding_rule(repset, b"/srv", asked)
        assert included == bool(decides.includes(asked)), asked
        assert rule is None or rule.include == included
        assert rule is not None or not included


# --- dirty, or given up ---


@pytest.mark.parametrize(
    ("path", "scope", "asked", "expected"),
    [
        (b"d/f", Scope.WHOLE, b"d/f", True),
        (b"d/f", Scope.WHOLE, b"d", True),
        (b"d/f", Scope.WHOLE, b"d/g", False),
        (b"d/f", Scope.WHOLE, b"d/f/x", False),
        (b"d", Scope.TREE, b"d/f/x", True),
        (b"", Scope.TREE, b"d/f", True),
        (b"d", Scope.TREE, b"e", False),
        (b"d", Scope.NAMES, b"d/f", True),
        (b"d", Scope.NAMES, b"d/f/x", False),
        (b"d", Scope.FILES, b"d/f", True),
        (b"d", Scope.ATTRIBUTES | Scope.DIRECTORY, b"d/f", False),
        (b"d/f", Scope.LINKED, b"d/f", False),
    ],
)
def test_what_an_entry_of_a_dirty_map_covers(path: bytes, scope: Scope, asked: bytes, expected: bool) -> None:
    assert covers(Dirty(path, scope, NO_IDENTITY), asked) is expected


def test_a_hole_says_what_was_lost() -> None:
    dirty = DirtyMap()
    dirty.fold(make_record(Kind.WRITE, b"d/f", payload=b"x"))
    hole = make_record(Kind.HOLE, b"", payload=dirty.encode())
    assert lost(hole, b"d/f") and lost(hole, b"d") and not lost(hole, b"d/g")
    for says_nothing in (b"", b"damaged"):
        assert lost(make_record(Kind.HOLE, b"", payload=says_nothing), b"anything")


def test_dirty() -> None:
    order, identity = Order(), Identity(7, 1)
    assert dirty_text(order, [], b"a", losing=False) == ""
    assert "full" in dirty_text(order, [], b"a", losing=True)
    order.begin([b"tree"])
    order.require_regions(b"file", identity, [(0, 4096)])
    order.require_names(b"names")
    texts = {
        path: dirty_text(order, [], path, losing=False) for path in (b"tree/x", b"file", b"names", b"names/x")
    }
    assert len(set(texts.values())) == 4 and all(texts.values())
    assert dirty_text(order, [], b"other", losing=False) == ""
    request = order.next_patch()
    assert request is not None and dirty_text(order, [], b"file", losing=False)  # until it is sent
    order.patch_sent(request, 1)
    assert dirty_text(order, [], b"file", losing=False) == ""


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("d/f", "target: no space"),
        ("d", "d/f: target: no space"),
        ("", "d/f: target: no space"),
        ("e/below", "e: no permission"),
        ("d/g", ""),
    ],
)
def test_left_as_it_was(asked: str, text: str) -> None:
    problems = [Problem("d/f", "target: no space"), Problem("e", "no permission")]
    assert quarantine_text(problems, asked) == text
