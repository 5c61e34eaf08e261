"""A line of 50 ms round trip that loses packets: what one stream makes of it is the source's choice."""

import random
import re
from pathlib import Path

import pytest
from kit import dtd
from kit.hosts import Host, lan
from kit.long_line import LongLine, long_line
from kit.protected import Protected
from kit.trees import assert_same_tree

from replicator.net import congestion

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="no /dev/net/tun here"),
]

MIB = 1 << 20
LINE = LongLine(round_trip_s=0.05, bytes_per_s=12_500_000, loss=0.01)


def congestion_controls(host: Host, port: int) -> set[str]:
    """Of established connections to that port, as the kernel tells (ss(8))."""
    shown = host.run("ss", "-tinHO", "state", "established", f"( dport = :{port} )")
    return set(re.findall(r"\b(?:bbr|cubic|reno)\b", shown))


@pytest.mark.parametrize("wanted", ["bbr", "reno"])
def test_a_copy_over_a_line_that_loses_packets(tmp_path: Path, wanted: str) -> None:
    if not congestion.is_usable(wanted):
        pytest.skip(f"this kernel has no {wanted}")
    configuration = f'[connection]\ncongestion_control = "{wanted}"\n'
    with (
        lan("alpha", "beta") as hosts,
        long_line(hosts[0], hosts[1], LINE) as line,
        dtd.running(tmp_path, "alpha", "beta", hosts=hosts, configuration=configuration) as (alpha, beta),
    ):
        pair = Protected(tmp_path, alpha, beta)
        pair.source.mkdir()
        (pair.source / "file").write_bytes(random.Random(1).randbytes(MIB))
        pair.connect()
        assert congestion_controls(hosts[0], beta.port) == {wanted}
        line.cut()
        (pair.source / "other").write_bytes(b"while the line was cut")
        line.mend()
        pair.drained()
        assert_same_tree(pair.source, pair.copy)
