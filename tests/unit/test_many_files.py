"""Files read many at a time: as one by one."""

import os
import stat
from pathlib import Path

import pytest

from replicator.fs import many_files, many_states
from replicator.fs.many_files import read_many
from replicator.fs.many_states import read_states

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")

NAMES = [b"f%02d" % number for number in range(40)] + [b"link", b"long link", b"\xff" * 255]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    for number, name in enumerate(NAMES):
        path = os.fsencode(directory / os.fsdecode(name))
        if b"link" in name:
            os.symlink(b"f01" if name == b"link" else b"\xff" * 4095, path)
        else:
            Path(os.fsdecode(path)).write_bytes(bytes([number]) * number * 111)
            os.chmod(path, (0o600, 0o644, 0o4755, 0o000)[number % 4])
        os.chown(path, number % 3, number % 2, follow_symlinks=False)
        if number % 4 == 2:  # chown has taken it
            os.chmod(path, 0o6755, follow_symlinks=b"link" not in name)
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 - number * 10**17), follow_symlinks=False)
    return directory


def read(source: Path) -> tuple[bytearray, bytes]:
    """Contents, and whether each was read."""
    descriptor = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    try:
        states = read_states(descriptor, NAMES)
        kinds = [stat.S_IFLNK if b"link" in name else stat.S_IFREG for name in NAMES]
        return read_many(descriptor, NAMES, kinds, states.sizes())
    finally:
        os.close(descriptor)


def expected(source: Path) -> bytes:
    paths = [os.fsencode(source / os.fsdecode(name)) for name in NAMES]
    return b"".join(os.readlink(p) if os.path.islink(p) else Path(os.fsdecode(p)).read_bytes() for p in paths)


@pytest.mark.parametrize("in_c", [True, False])
def test_all_of_each_is_read(in_c: bool, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_c:
        monkeypatch.setattr(many_files, "_many", None)
    contents, right = read(source)
    assert right == b"\1" * len(NAMES) and contents == expected(source)


@pytest.mark.parametrize("in_c", [True, False])
def test_what_is_not_so_long_or_gone_is_not_read(
    in_c: bool, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_c:
        monkeypatch.setattr(many_files, "_many", None)
    really = many_states.ManyStates.sizes

    def meanwhile(states: many_states.ManyStates) -> list[int]:
        sizes = really(states)
        (source / "f09").write_bytes(b"shorter")
        (source / "f11").unlink()
        (source / "f12").unlink()
        (source / "f12").symlink_to("f01")
        (source / "link").unlink()
        (source / "link").symlink_to("f0")
        (source / "f13").write_bytes(b"!" * (sizes[13] + 1))  # its state tells that
        return sizes

    monkeypatch.setattr(many_states.ManyStates, "sizes", meanwhile)
    contents, right = read(source)
    wrong = {NAMES[index] for index, there in enumerate(right) if not there}
    assert wrong == {b"f09", b"f11", b"f12", b"link"}
    start = sum(number * 111 for number in range(14))
    assert contents[start : start + 14 * 111] == bytes([14]) * 14 * 111, "each has its place"
