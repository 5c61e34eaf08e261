"""The decision table of mirrors, row by row, and what a source claims by it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from replicator import limits
from replicator.mirror.comparison import TABLE, Claim, Comparison, comparison_of
from replicator.mirror.mirroring import DIFFERENCE, FORCED, FULL, RECOVERY, MirrorRun
from replicator.mirror.scan import Choice
from replicator.ops import Identity

_ID = Identity(5, 0)
WHOLE, BLOCKS = False, True


@pytest.mark.parametrize(
    ("checksum_all", "difference", "newer", "checksum", "claim", "blocks"),
    [
        (False, False, False, False, None, WHOLE),  # MR-T0: every file whole
        (True, False, False, False, None, WHOLE),
        (False, True, False, False, Claim.SIZE_AND_TIME, WHOLE),  # MR-T1
        (True, True, False, False, Claim.SIZE_AND_TIME, WHOLE),
        (False, True, True, False, Claim.NOT_OLDER, WHOLE),  # MR-T2
        (True, True, True, False, Claim.NOT_OLDER, WHOLE),
        (False, True, False, True, Claim.SIZE_AND_TIME, BLOCKS),  # MR-T3
        (True, True, False, True, Claim.CONTENT, BLOCKS),  # MR-T4
        (False, True, True, True, Claim.NOT_OLDER, BLOCKS),  # MR-T5
        (True, True, True, True, Claim.NOT_OLDER, BLOCKS),
    ],
)
def test_each_row(
    checksum_all: bool, difference: bool, newer: bool, checksum: bool, claim: Claim | None, blocks: bool
) -> None:
    found = comparison_of(difference=difference, newer=newer, checksum=checksum, checksum_all=checksum_all)
    assert found == Comparison(claim, blocks)


def test_a_full_mirror_has_no_options() -> None:
    assert len(TABLE) == 10
    for options in ({"newer": True, "checksum": False}, {"newer": False, "checksum": True}):
        with pytest.raises(KeyError):
            comparison_of(difference=False, checksum_all=False, **options)


@pytest.mark.parametrize("kind", [FULL, DIFFERENCE, RECOVERY, FORCED])
def test_a_run_knows_its_row(kind: str) -> None:
    run = MirrorRun("id", kind, False, 0, newer=True, checksum=True, checksum_all=True)
    assert run.comparison == (
        Comparison(None, WHOLE) if kind in (FULL, FORCED) else Comparison(Claim.NOT_OLDER, BLOCKS)
    )


def _never(*_: object) -> bool:
    return False


def _always(*_: object) -> bool:
    return True


def _claim(
    path: Path,
    comparison: Comparison,
    *,
    must_send_whole: Callable[..., bool] = _never,
    was_brought: Callable[..., bool] = _never,
    may_compare: Callable[..., bool] = _always,
    step_bytes: int = limits.PART_BYTES,
) -> Claim | None:
    choice = Choice(
        comparison,
        False,
        False,
        must_send_whole,
        was_brought,
        may_compare,
        _never,
        set(),
        step_bytes=step_bytes,
    )
    return choice.claim(b"file", _ID, os.stat(path))


def test_what_is_claimed_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(limits.COMPARE_MIN_BYTES + 1))
    whole, by_time, by_age = (
        Comparison(None, WHOLE),
        TABLE[False, True, False, True],
        TABLE[False, True, True, True],
    )
    by_content = TABLE[True, True, False, True]
    assert _claim(path, whole) is None
    assert _claim(path, whole, was_brought=_always) is Claim.SIZE_AND_TIME
    assert _claim(path, by_time) is Claim.SIZE_AND_TIME
    assert _claim(path, by_age) is _claim(path, by_age, was_brought=_always) is Claim.NOT_OLDER
    assert _claim(path, by_content) is Claim.CONTENT
    assert _claim(path, by_content, step_bytes=100) is Claim.NOTHING  # too large for one look
    for comparison in (by_time, by_age):
        # What was changed meanwhile looks as it likes; its blocks do not lie.
        assert _claim(path, comparison, must_send_whole=_always) is Claim.NOTHING
        assert _claim(path, comparison, must_send_whole=_always, may_compare=_never) is None
    path.write_bytes(b"small")
    assert _claim(path, by_time, must_send_whole=_always) is None  # asking costs more than sending
    assert _claim(path, by_content) is Claim.CONTENT
    path.write_bytes(b"")
    assert _claim(path, by_content) is None
