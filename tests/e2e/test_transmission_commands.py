"""Compression and limits with real agents: what goes over the line, measured where it arrives."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from kit import dtd
from kit.counting_proxy import CountingProxy, counting_proxy
from kit.patience import until
from kit.protected import protected
from kit.trees import assert_same_tree

pytestmark = pytest.mark.e2e

SECONDS = int(os.environ.get("SOAK_LIMIT_S", "30"))
TEXT = b"".join(b"%d: a line of a text that repeats itself\n" % n for n in range(100_000))


def connected(alpha: dtd.Agent, proxy: CountingProxy, source: Path, copy: Path, *options: str) -> str:
    source.mkdir()
    return str(alpha.json("protect", source, f"{proxy.address}:{copy}", "--wait", *options)["id"])


def transmission(alpha: dtd.Agent, con: str) -> dict[str, Any]:
    found = alpha.json("status", con)[0]["transmission"]
    assert isinstance(found, dict)
    return found


@pytest.mark.timeout_s(240)
def test_compression_and_limits_are_set_shown_kept_and_obeyed(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    with dtd.running(tmp_path, "alpha", "beta") as (alpha, beta), counting_proxy(beta.port) as proxy:
        options = ("--compression", "auto", "--limit", "2 MB/s")
        con = connected(alpha, proxy, source, copy, *options)
        now = transmission(alpha, con)
        assert (now["compression"], now["limit"], now["limit_bytes_per_s"]) == ("auto", "2 MB/s", 2_000_000)
        assert alpha.dtctl("limit", "bandwidth", con, "unlimited").code == 0
        assert alpha.dtctl("compression", "set", con, "3").code == 0
        before = sum(count for _, count in proxy.arrived)
        (source / "text").write_bytes(TEXT)
        assert alpha.dtctl("wait", con, "--timeout", "60").code == 0
        (status,) = alpha.json("status", con)
        went = sum(count for _, count in proxy.arrived) - before
        assert status["sent_replication_bytes"] > len(TEXT)
        assert went < len(TEXT) / 4
        assert status["sent_compressed_replication_bytes"] == pytest.approx(went, abs=20_000)
        assert status["transmission"]["level"] == 3

        # Said of the target; a connection's own word goes first.
        host = "127.0.0.1"
        assert alpha.dtctl("limit", "bandwidth", "--target", host, "10 % of T1").code == 0
        assert alpha.dtctl("compression", "set", "--target", host, "auto").code == 0
        now = transmission(alpha, con)
        assert (now["compression"], now["limit"], now["limit_bytes_per_s"]) == ("3", "10 % of T1", 19_300)
        assert alpha.dtctl("compression", "set", con, "default").code == 0
        assert transmission(alpha, con)["compression"] == "auto"
        assert alpha.dtctl("limit", "bandwidth", con, "5000").code == 0
        assert transmission(alpha, con)["limit"] == "5000 and 10 % of T1"
        assert "10 % of T1" in alpha.dtctl("limit").out
        assert "T1" in alpha.dtctl("limit", "links").out
        shown = alpha.dtctl("status", con).out
        assert "5000 and 10 % of T1" in shown

        # Kept while off, and over a restart of the agent, and by the next sender.
        assert alpha.dtctl("limit", "off", con).code == 0
        alpha.stop()
        alpha.start()
        os.kill(alpha.json("status", con)[0]["sender_pid"], 9)
        until(lambda: alpha.json("status", con)[0]["state"] == "Started", 30)
        assert transmission(alpha, con)["limit"] == "10 % of T1"
        assert alpha.dtctl("limit", "on", con).code == 0
        assert transmission(alpha, con)["limit_bytes_per_s"] == 5000

        for words, code in (
            (("limit", "bandwidth", con, "fast"), 2),
            (("limit", "bandwidth", con), 2),
            (("limit", "bandwidth", "--target", "elsewhere", "1 MB/s"), 2),
            (("compression", "set", con, "99"), 2),
            (("limit", "off"), 2),
        ):
            refused = alpha.dtctl(*words)
            assert refused.code == code and refused.err.count("\n") == 1, refused.err
        assert alpha.dtctl("limit", "bandwidth", con, "unlimited").code == 0
        assert alpha.dtctl("limit", "bandwidth", "--target", host, "unlimited").code == 0
        assert transmission(alpha, con)["limit_bytes_per_s"] is None
        assert alpha.dtctl("wait", con, "--timeout", "60").code == 0
        assert_same_tree(source, copy)
        alpha.json("disconnect", con)
        assert not list((alpha.home / "run").glob("limit-*"))


@pytest.mark.soak
@pytest.mark.timeout_s(600)
@pytest.mark.parametrize("rate", [10_000_000, 1_000_000, 100_000])
def test_a_limit_is_kept_where_it_arrives(rate: int, tmp_path: Path) -> None:
    """Within 3 % over 30 s, within 20 % over any second, over the line of a mirror."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    with dtd.running(tmp_path, "alpha", "beta") as (alpha, beta), counting_proxy(beta.port) as proxy:
        con = connected(alpha, proxy, source, copy)
        connected_since = alpha.json("status", con)[0]["connected_since"]
        assert alpha.dtctl("limit", "bandwidth", con, str(rate)).code == 0
        (source / "file").write_bytes(os.urandom((SECONDS + 10) * rate))
        time.sleep(3)
        began = time.monotonic()
        time.sleep(SECONDS)
        worst, mean = proxy.rates(began, began + SECONDS)
        print(f"{rate}: {mean:.0f} bytes/s over {SECONDS} s, {worst} in the worst second")
        (status,) = alpha.json("status", con)
        assert status["connected_since"] == connected_since
        assert alpha.dtctl("limit", "bandwidth", con, "unlimited").code == 0
        assert alpha.dtctl("wait", con, "--timeout", "60").code == 0
        assert_same_tree(source, copy)
    assert mean == pytest.approx(rate, rel=0.03)
    assert worst <= 1.2 * rate


def test_the_configuration_says_what_new_connections_get(tmp_path: Path) -> None:
    """[transmission] of the source, unless somebody says something else; target.keep_deleted (RP-04)."""
    source, copy, kept = tmp_path / "source", tmp_path / "copy", tmp_path / "kept"
    source.mkdir()
    (source / "file").write_text("precious")
    said = '[transmission]\ncompression = "3"\nbandwidth = "40 % of 1 Gbit Ethernet"\n'
    with protected(
        tmp_path,
        configuration=said + "[mirror]\nreplication_ratio = 5\n",
        beta_configuration=f'[target]\nkeep_deleted = "{kept}"\n',
    ) as pair:
        now = pair.status["transmission"]
        assert (now["compression"], now["limit"]) == ("3", "40 % of 1 Gbit Ethernet")
        assert now["limit_bytes_per_s"] == 50_000_000
        (source / "file").unlink()
        pair.drained()
        assert not (copy / "file").exists()
        assert [path.read_text() for path in (kept / pair.status["uuid"]).rglob("file")] == ["precious"]
        pair.assert_equal()
        # What is said of a target, or with the command, goes before it.
        alpha, host = pair.alpha, ("--target", "127.0.0.1")
        assert alpha.dtctl("compression", "set", *host, "auto").code == 0
        other = tmp_path / "other"
        other.mkdir()
        made = alpha.json("protect", other, f"{pair.beta.address}:{tmp_path / 'second'}", "--limit", "1 MB/s")
        assert made["transmission"]["compression"] == "auto" and made["transmission"]["limit"] == "1 MB/s"
