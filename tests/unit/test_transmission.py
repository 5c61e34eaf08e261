"""What people may ask for of a transmission, and what it means."""

import pytest

from replicator.errors import UsageError
from replicator.transmission import (
    LINKS_BIT_PER_S,
    MAXIMUM,
    Limit,
    TransmissionSettings,
    changed,
    orders,
    parse_compression,
    parse_limit,
)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("19300", Limit(19_300)),
        ("19300 B/s", Limit(19_300)),
        ("10 MB/s", Limit(10_000_000)),
        ("1.5MB/s", Limit(1_500_000)),
        ("100 kB/s", Limit(100_000)),
        ("1 KiB/s", Limit(1024)),
        ("10 Mbit/s", Limit(1_250_000)),
        ("10 % of T1", Limit(19_300)),  # TX-05
        ("10% t1", Limit(19_300)),
        ("60 % of 256 kbit/s", Limit(19_200)),
        ("33.3 % of isdn", Limit(2_664)),
        ("100 % of 100 Mbit Ethernet", Limit(12_500_000)),
        ("50 % of oc3", Limit(9_720_000)),
        ("25 % of 50 Mbit/s", Limit(1_562_500)),
        ("10 % of 2 MB/s", Limit(200_000)),
        ("19300, 5", Limit(19_300, 5.0)),  # DTCL: limit bandwidth 19300, 5 to beta
        ("1000000,0.5", Limit(1_000_000, 0.5)),
        ("unlimited", None),
        ("Unlimited", None),
        ("none", None),
        ("", None),
        ("  ", None),
    ],
)
def test_limits_are_read(text: str, limit: Limit | None) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "99",
        "-5",
        "1e9",
        "fast",
        "10 apples",
        "0 % of T1",
        "101 % of T1",
        "10 % of T2",
        "10 %",
        "5, 0",
        "0, 5",
        "1000000, 3601",
        "400, 5",
        "1, 2, 3",
        "٣٠٠٠",
        "10 MB",
        "10 MB/min",
        "nan",
        "1000 %of",
    ],
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_limit(text)


@pytest.mark.parametrize(
    "text", ["10 Mb/s", "10 mb/s", "100kb/s", "8 Kib/s", "800 b/s", "10Mbps", "10 % of 50 Mb/s"]
)
def test_what_may_be_bits_or_bytes_is_asked_back(text: str) -> None:
    """A guess would be wrong by a factor of 8."""
    with pytest.raises(UsageError, match=r"Write (\d+ [kM]?B/s) or (\d+ [kM]?bit/s)$") as found:
        parse_limit(text)
    for proposal in str(found.value).partition("Write ")[2].split(" or "):
        assert parse_limit(proposal) is not None


def test_every_link_can_be_named_as_it_is_shown() -> None:
    for name, bit_per_s in LINKS_BIT_PER_S.items():
        assert parse_limit(f"50 % of {name}") == Limit(bit_per_s // 16)


def test_compression_has_one_spelling() -> None:
    assert [parse_compression(t) for t in ("OFF", "0", "Auto", "3", "minimum", "maximum", "07")] == [
        *("off", "off", "auto", "3", "1"),
        *(str(MAXIMUM), "7"),
    ]
    for text in ("", "-1", str(MAXIMUM + 1), "best", "³"):
        with pytest.raises(UsageError):
            parse_compression(text)


def test_what_is_not_said_stays() -> None:
    said = changed(TransmissionSettings(), "Maximum", "  10 %  of T1 ")
    assert said == TransmissionSettings(compression="9", bandwidth="10 % of T1")
    assert changed(said, None, "unlimited") == TransmissionSettings(compression="9")
    assert changed(said, "", None) == TransmissionSettings(bandwidth="10 % of T1")
    for compression, bandwidth in (("fast", ""), ("", "fast")):
        with pytest.raises(UsageError, match="fast"):
            changed(said, compression, bandwidth)


def test_a_connection_goes_before_its_target() -> None:
    target = TransmissionSettings(compression="auto", bandwidth="1 MB/s")
    assert orders(TransmissionSettings(), target, "p").compression == "auto"
    assert orders(TransmissionSettings(compression="off"), target, "p").compression == "off"
    assert orders(TransmissionSettings(), TransmissionSettings(), "p").compression == "off"  # CP-01
