"""Which operations concern a path, how far they are, and which rule decides."""

import random

import msgspec
import pytest
from kit.recording import make_record

from replicator.agent.why import concerns, stage_of, why_it_waits
from replicator.ops import Kind
from replicator.repset import ReplicationSet, Rule, compile_filter, deciding_rule
from replicator.status import ConnectionState, ConnectionStatus, ReplicationStatus, TargetStatus


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
