from pathlib import Path

import pytest
from kit.journals import Host, append, read_all, small, write

from replicator.ops import Flag, Kind
from replicator.queue.dump import main


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """A segment file with five records."""
    host = Host(small(segment_bytes=4096, memory_bytes=8192))
    writer = host.writer()
    for number in range(3):
        append(writer, write(b"dir/file%d" % number, 20, 65 + number))
    writer.append(Kind.RENAME, b"a\n\xff", path2=b"b", inode=4, generation=5, arg0=1, flags=Flag.DIRECTORY)
    writer.append(Kind.UNLINK, b"gone")
    (path,) = host.disk.paths("/memory")
    file = tmp_path / "0000000001.segment"
    file.write_bytes(host.disk.contents(path))
    return file


def test_one_line_a_record(segment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(segment)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert "segment 1" in lines[1]
    assert "WRITE" in lines[2]
    assert "'dir/file0'" in lines[2]
    assert "20B" in lines[2]
    assert r"'a\n\xff' -> 'b'" in lines[5]
    assert "4.5 1 0" in lines[5]
    assert "DIRECTORY" in lines[5]
    assert "UNLINK" in lines[6]


def test_payloads(segment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(segment), "--payload"]) == 0
    out = capsys.readouterr().out
    assert "000000  41 41 41" in out
    assert "AAAAAAAAAAAAAAAA" in out


def test_damaged_places_are_named(segment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(segment.read_bytes())
    second = 64 + 112
    data[second + 100] ^= 1  # contents of the second record
    segment.write_bytes(data)
    assert main([str(segment)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert [("damaged" in line or "not verified" in line) for line in lines[2:]] == [
        False,
        True,
        False,
        False,
        False,
    ]


def test_a_broken_head_of_a_record_is_skipped(segment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(segment.read_bytes())
    second = 64 + 112
    data[second : second + 8] = bytes(8)
    segment.write_bytes(data)
    assert main([str(segment)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"{second:>8} damaged: no record at byte {second}; 112 bytes skipped" in lines
    assert "not verified" in lines[4]
    assert "UNLINK" in lines[-1]
    assert "not verified" not in lines[-1]


@pytest.mark.parametrize("cut", [1, 40, 81])
def test_a_torn_tail_is_damage(segment: Path, cut: int, capsys: pytest.CaptureFixture[str]) -> None:
    data = segment.read_bytes()
    segment.write_bytes(data[:-cut])
    assert main([str(segment)]) == 1
    assert "cut short" in capsys.readouterr().out


def test_anything_can_be_dumped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, data in enumerate((b"", b"x", bytes(5000), bytes(range(256)) * 20)):
        file = tmp_path / f"{number}"
        file.write_bytes(data)
        assert main([str(file)]) == 1
    assert "damaged" in capsys.readouterr().out


def test_a_missing_file(tmp_path: Path, segment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), str(segment)]) == 2
    captured = capsys.readouterr()
    assert "No such file" in captured.err
    assert "UNLINK" in captured.out


def test_a_hole_says_what_was_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = Host(small(16_384, 32_768, 0))
    writer = host.writer()
    cursor = host.cursor(create=True)
    while append(writer, write(b"f", 1000)):
        pass
    writer.append(Kind.RMDIR, b"d/e", flags=int(Flag.DIRECTORY))
    read_all(cursor)
    cursor.acknowledge(writer.position.sequence)
    assert writer.record_losses()
    file = tmp_path / "segment"
    file.write_bytes(host.disk.contents(host.disk.paths("/memory/j/0")[-1]))
    assert main([str(file)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "dirty 'd' 0 NAMES" in lines
    assert "dirty 'f' 0  0-4096" in lines
