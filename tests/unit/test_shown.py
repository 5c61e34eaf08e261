"""Names are bytes; what people and JSON get of them is always text."""

import errno

import msgspec
from kit.recording import make_record

from replicator.fs.apply_outcome import ApplyError
from replicator.ops import Kind, shown
from replicator.receiver.failures import reason_of
from replicator.status import Problem


def test_any_name_can_be_shown() -> None:
    assert shown("ä/b".encode()) == "ä/b"
    assert shown(b"a\xff\nb") == "a\\xff\nb"
    msgspec.json.encode(Problem(shown(bytes(range(1, 256))), ""))


def test_reasons_with_any_name_can_be_sent() -> None:
    error = ApplyError(make_record(Kind.RENAME, b"a\xff", b"b\xfe"), "no")
    for reason in (reason_of(error), reason_of(OSError(errno.EIO, "broken", "a\udcff"))):
        assert "\\xff" in reason
        msgspec.msgpack.encode(reason)
