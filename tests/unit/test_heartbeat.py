"""The heartbeat's datagrams, who answers them, and the port that answers."""

import socket
import time
import uuid

import pytest
from kit.dtd import free_port

from replicator import limits
from replicator.failover.heartbeat import (
    DATAGRAM_BYTES,
    KEY_BYTES,
    NONCE_BYTES,
    Answerer,
    Beat,
    Kind,
    decode,
    encode,
    group_of,
)
from replicator.failover.heartbeat_port import HeartbeatPort

GROUP, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
KEY, WRONG = bytes(KEY_BYTES), bytes([1] * KEY_BYTES)
QUESTION = Beat(Kind.QUESTION, GROUP, bytes(range(NONCE_BYTES)))


def test_a_round_trip() -> None:
    data = encode(QUESTION, KEY)
    assert len(data) == DATAGRAM_BYTES
    assert decode(data, KEY) == QUESTION and group_of(data) == GROUP


def test_every_changed_bit_is_noticed() -> None:
    data = encode(QUESTION, KEY)
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        assert decode(bytes(changed), KEY) is None
    assert decode(data, WRONG) is None
    assert decode(data[:-1], KEY) is None and decode(data + b"\0", KEY) is None and decode(b"", KEY) is None


def test_a_kind_that_nobody_knows_is_none() -> None:
    assert decode(encode(QUESTION._replace(kind=7), KEY), KEY) is None  # type: ignore[arg-type]


def test_questions_with_the_right_key_are_answered() -> None:
    answerer = Answerer(4)
    data = encode(QUESTION, KEY)
    assert answerer.answer(data) is None
    assert answerer.watch(GROUP, KEY) and not answerer.watch(GROUP, KEY)
    answer = answerer.answer(data)
    assert answer is not None and decode(answer, KEY) == QUESTION._replace(kind=Kind.ANSWER)
    assert len(answer) == len(data)  # nobody can be flooded with what is sent for them
    assert answerer.answer(encode(QUESTION, WRONG)) is None
    assert answerer.answer(encode(QUESTION._replace(group=OTHER), KEY)) is None
    assert answerer.answer(answer) is None  # two of them would go on for ever
    answerer.unwatch(GROUP)
    assert answerer.answer(data) is None


def test_keys_are_bounded() -> None:
    answerer = Answerer(2)
    groups = [str(uuid.UUID(int=number)) for number in range(1, 4)]
    for group in groups:
        answerer.watch(group, KEY)
    answered = [answerer.answer(encode(QUESTION._replace(group=group), KEY)) is not None for group in groups]
    assert answered == [False, True, True]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_the_port_answers_from_where_it_was_asked(host: str) -> None:
    port = free_port()
    answerer = Answerer(1)
    answerer.watch(GROUP, KEY)
    asked = {"0.0.0.0": "127.0.0.7", "::": "::1"}.get(host, host)
    serving = HeartbeatPort(answerer, [(host, port)])
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(10)
            asking.connect((asked, port))  # an answer from elsewhere would not be let in
            asking.send(b"nonsense")
            asking.send(encode(QUESTION, WRONG))
            asking.send(encode(QUESTION, KEY))
            assert decode(asking.recv(2048), KEY) == QUESTION._replace(kind=Kind.ANSWER)
            asking.settimeout(0.05)
            with pytest.raises(TimeoutError):
                asking.recv(2048)
    finally:
        serving.close()


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="in use"):
            HeartbeatPort(Answerer(1), [("127.0.0.1", taken.getsockname()[1])])


def test_a_flood_gets_a_second_s_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEARTBEATS_PER_S", 20)
    port = free_port()
    answerer = Answerer(1)
    answerer.watch(GROUP, KEY)
    serving = HeartbeatPort(answerer, [("127.0.0.1", port)])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect(("127.0.0.1", port))
            began_s = time.monotonic()
            for _ in range(50):
                asking.send(encode(QUESTION, KEY))
            asking.settimeout(10)
            for _ in range(50):
                asking.recv(2048)
            assert time.monotonic() - began_s > 1.0
    finally:
        serving.close()
