"""Packets of ARP and neighbour discovery, against what the standards say. Kernels judge them, too:
tests/e2e/test_taking_addresses.py.
"""

import ipaddress
import struct
from random import Random

import pytest

from replicator.failover import neighbours
from replicator.failover.neighbours import Sign, announcements, probe, understood

MAC = bytes.fromhex("020000000a01")
V4, V6 = ipaddress.ip_address("10.0.0.5"), ipaddress.ip_address("2001:db8::12:3456")


def test_an_arp_probe_says_nothing_of_its_sender() -> None:
    assert probe(V4, MAC) == bytes.fromhex(
        "ffffffffffff 020000000a01 0806  0001 0800 06 04 0001  020000000a01 00000000  000000000000 0a000005"
    )


def test_an_arp_announcement_has_the_address_twice() -> None:
    request, reply = announcements(V4, MAC)
    assert request == bytes.fromhex(
        "ffffffffffff 020000000a01 0806  0001 0800 06 04 0001  020000000a01 0a000005  000000000000 0a000005"
    )
    assert reply[20:22] == b"\0\2"


def test_a_solicitation_goes_to_the_group_of_the_address() -> None:
    frame = probe(V6, MAC)
    assert frame[:14] == bytes.fromhex("3333ff123456 020000000a01 86dd")
    assert frame[14:22] == bytes.fromhex("60000000 0018 3a ff")
    assert frame[22:38] == bytes(16)  # from nowhere: duplicate address detection
    assert frame[38:54] == ipaddress.IPv6Address("ff02::1:ff12:3456").packed
    assert frame[54:56] == b"\x87\0" and frame[62:] == V6.packed
    assert checksum_is_right(frame)


def test_an_advertisement_overrides_what_neighbours_remember() -> None:
    (frame,) = announcements(V6, MAC)
    assert frame[:14] == bytes.fromhex("333300000001 020000000a01 86dd")
    assert frame[22:54] == V6.packed + ipaddress.IPv6Address("ff02::1").packed
    assert frame[54:56] == b"\x88\0" and frame[58:62] == bytes.fromhex("20000000")
    assert frame[62:] == V6.packed + b"\2\1" + MAC
    assert checksum_is_right(frame)


def checksum_is_right(frame: bytes) -> bool:
    body = frame[54:]
    words = frame[22:54] + struct.pack("!II", len(body), 58) + body
    return sum(struct.unpack(f"!{len(words) // 2}H", words)) % 0xFFFF == 0


def test_what_is_a_sign_of_an_owner() -> None:
    for address in (V4, V6):
        assert understood(probe(address, MAC)) == Sign(address, MAC, probes=True)
        for frame in announcements(address, MAC):
            assert understood(frame) == Sign(address, MAC)


def test_what_is_none() -> None:
    question = bytearray(probe(V4, MAC))
    question[28:32] = bytes([10, 0, 0, 9])  # somebody with another address asks for ours
    assert understood(bytes(question)) == Sign(ipaddress.ip_address("10.0.0.9"), MAC)
    far = bytearray(announcements(V6, MAC)[0])
    far[21] = 254  # it came through a router
    assert understood(bytes(far)) is None
    assert understood(b"") is None
    assert understood(probe(V4, MAC)[:30]) is None
    asked = bytearray(probe(V6, MAC))
    asked[22:38] = V6.packed  # a neighbour that resolves the address in use
    assert understood(bytes(asked)) is None


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_are_understood_or_not(seed: int) -> None:
    random = Random(seed)
    frames = [probe(V4, MAC), probe(V6, MAC), *announcements(V4, MAC), *announcements(V6, MAC)]
    for _ in range(200):
        frame = bytearray(random.choice(frames))
        for _ in range(random.randrange(8)):
            frame[random.randrange(len(frame))] = random.randrange(256)
        understood(bytes(frame[: random.randrange(len(frame) + 1)]))


def test_the_solicited_node_group() -> None:
    assert str(neighbours.solicited_node(V6)) == "ff02::1:ff12:3456"
