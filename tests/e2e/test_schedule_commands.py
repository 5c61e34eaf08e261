"""A transmission schedule with real agents: outside of a session nothing leaves the source, over restarts."""

import re

import pytest
from kit.patience import until
from kit.protected import protected

pytestmark = [pytest.mark.fs, pytest.mark.e2e]


@pytest.mark.timeout_s(240)
def test_between_sessions_nothing_leaves(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with protected(tmp_path) as pair:
        alpha = pair.alpha
        shown = alpha.json("schedule", "start", pair.id, "--queue-bytes", "1 MB")
        assert shown["holds"] and shown["settings"]["start"]["queue_bytes"] == "1 MB"
        (pair.source / "small").write_text("waits")
        status = until(lambda: s if (s := pair.status)["connected_since"] is None else None)
        assert status["state"] == status["transmit_mode"] == "Scheduled"
        assert "when 1 MB are queued" in status["state_reason"]
        assert "1 MB are queued" in alpha.dtctl("why", str(pair.source / "small")).out
        assert alpha.json("lag", pair.id)["waits_for"] == status["state_reason"]
        alpha.stop()
        alpha.start()
        until(lambda: pair.status["sender_pid"] is not None)
        assert pair.status["transmit_mode"] == "Scheduled" and not (pair.copy / "small").exists()

        (pair.source / "large").write_bytes(bytes(1_200_000))
        until(lambda: (pair.copy / "large").exists() and pair.status["transmit_mode"] == "Scheduled")
        assert (pair.copy / "small").read_text() == "waits"
        told = [event for event in alpha.json("events") if event["id"] in (4014, 4015)]
        assert [event["id"] for event in told[-2:]] == [4014, 4015]
        assert re.search(r"started: \d+ bytes are queued$", told[-2]["text"]), told[-2]
        assert told[-1]["text"].endswith("stopped: the queue is empty")

        assert alpha.dtctl("schedule", "window", pair.id, "21:00", "21:00").code == 2
        (pair.source / "more").write_text("flows")
        alpha.dtctl("schedule", "disable", pair.id)
        pair.drained()
        assert "data flows at once" in alpha.dtctl("schedule", "show", pair.id).out
        assert alpha.json("schedule", "clear", pair.id, "all")["settings"]["start"]["queue_bytes"] == ""
        pair.assert_equal()

        calendar = ("limit", "schedule")
        assert alpha.dtctl(*calendar, "add", pair.id, "all", "slow", "--start", "00:00").code == 2
        alpha.json(*calendar, "add", pair.id, "all", "2 MB/s", "--start", "00:00")
        assert pair.status["transmission"]["limit"] == "2 MB/s"
        alpha.kill_all()
        alpha.start()
        until(lambda: pair.status["transmission"]["limit"] == "2 MB/s")
        assert "→" in alpha.dtctl(*calendar, "list", pair.id).out
        alpha.json(*calendar, "clear", pair.id)
        assert pair.status["transmission"]["limit"] == ""
        pair.assert_equal()

        # Of the target (TX-03): for connections that have none of their own, and for later ones.
        host = ("--target", "127.0.0.1")
        shown = alpha.json("schedule", "start", *host, "--queue-bytes", "1 MB")
        assert shown["target"] == "127.0.0.1" and shown["holds"]
        assert alpha.json("schedule", "show", pair.id)["target"] == "", "it was disabled for this one"
        shown = alpha.json("schedule", "enable", pair.id)
        assert shown["target"] == "127.0.0.1" and shown["settings"]["start"]["queue_bytes"] == "1 MB"
        until(lambda: pair.status["state"] == "Scheduled")
        alpha.kill_all()
        alpha.start()
        until(lambda: pair.status["sender_pid"] is not None and pair.status["state"] == "Scheduled")
        assert "target 127.0.0.1" in alpha.dtctl("schedule", "show", *host).out
        alpha.json(*calendar, "add", *host, "all", "3 MB/s", "--start", "00:00")
        assert pair.status["transmission"]["limit"] == "3 MB/s"
        alpha.json(*calendar, "remove", *host, "all")
        alpha.json("schedule", "clear", *host, "all")
        until(lambda: pair.status["state"] == "Started")
        pair.assert_equal()
        for words in (("show",), ("show", pair.id, *host), ("window", *host, "1:00"), ("clear", *host)):
            assert alpha.dtctl("schedule", *words).code == 2, words
        assert alpha.dtctl("schedule", "show", "--target", "elsewhere").code == 2
