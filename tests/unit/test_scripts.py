"""Scripts of a failover: what they are told, and that none of them can hurt its agent."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from kit.patience import until_async

from replicator import events, limits
from replicator.config import Failover
from replicator.errors import UsageError
from replicator.failover.occasion import Occasion, ScriptAddress, ScriptRoot, environment, variables
from replicator.failover.script_attempt import Attempt
from replicator.failover.script_result import Outcome, ScriptResult
from replicator.failover.scripts import Scripts, check, defaults, from_command_line, problems, shortened
from replicator.failover.supervised import Output, printable
from replicator.failovers import OnFailure, Script, ScriptKind

OCCASION = Occasion(
    kind=ScriptKind.PRE_FAILOVER,
    group="web",
    uuid="6f1c7b1e-0f3e-4e0a-b1d1-1d9d7c1b2a11",
    epoch=7,
    reason="10.0.0.5 does not answer",
    agent="beta",
    home="/var/lib/replicator",
    source="alpha",
    source_host="10.0.0.5",
    source_port=1500,
    addresses=(ScriptAddress("10.0.0.5/24", "eth0"), ScriptAddress("fd00::5/64", "eth1")),
    roots=(ScriptRoot(source="/srv/data", replica="/srv/copies/data", repset="data"),),
    recovery_point=1_800_000_000.25,
)


class Log:
    """Events as they come."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str]] = []

    def add(self, type_: events.EventType, **fields: object) -> None:
        self.events.append((type_.id, type_.text.format(**fields)))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def scripts(tmp_path: Path, log: Log) -> Scripts:
    return Scripts(str(tmp_path / "runs"), log.add)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Script]:
    def make(text: str, mode: int = 0o755, **options: object) -> Script:
        path = tmp_path / f"script-{len(list(tmp_path.glob('script-*')))}"
        path.write_text(text)
        path.chmod(mode)
        return Script(path=str(path), **options)  # type: ignore[arg-type]

    return make


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# --- what it is told ---


def test_a_script_is_told_everything() -> None:
    found = variables(OCCASION)
    assert found["REPLICATOR_SCRIPT"] == "pre-failover"
    assert (found["REPLICATOR_GROUP"], found["REPLICATOR_EPOCH"]) == ("web", "7")
    assert (found["REPLICATOR_ADDRESSES"], found["REPLICATOR_ADDRESS_2"]) == ("2", "fd00::5/64")
    assert found["REPLICATOR_INTERFACE_1"] == "eth0"
    assert (found["REPLICATOR_ROOT_1"], found["REPLICATOR_SOURCE_ROOT_1"]) == (
        "/srv/copies/data",
        "/srv/data",
    )
    assert found["REPLICATOR_RECOVERY_POINT"] == "2027-01-15T08:00:00.250000+00:00"
    assert found["REPLICATOR_TEST"] == ""


def test_nothing_of_the_agent_itself_reaches_a_script() -> None:
    base = {"NOTIFY_SOCKET": "x", "PYTHONPATH": "y", "REPLICATOR_EPOCH": "99", "MINE": "1", "PATH": "/bin"}
    found = environment(OCCASION, base)
    assert "NOTIFY_SOCKET" not in found and "PYTHONPATH" not in found
    assert (found["MINE"], found["PATH"], found["REPLICATOR_EPOCH"]) == ("1", "/bin", "7")


async def test_it_sees_that_with_its_arguments(scripts: Scripts, write: Callable[..., Script]) -> None:
    script = write(
        '#!/bin/sh\necho "$REPLICATOR_GROUP $REPLICATOR_EPOCH $1 $2 $#"; pwd\n', arguments=("a b", "c")
    )
    result = await scripts.run(script, OCCASION, "one")
    assert result.output == "web 7 a b c 2\n/\n"
    assert result.outcome is Outcome.DONE and result.exit_code == 0 and not result.stop


# --- how it ends ---


async def test_the_end_is_an_event_with_what_was_printed(
    scripts: Scripts, log: Log, write: Callable[..., Script]
) -> None:
    await scripts.run(write("#!/bin/sh\necho out\necho err >&2\n"), OCCASION, "one")
    [(number, text)] = log.events
    assert number == events.SCRIPT_ENDED.id
    assert "web: pre-failover script" in text and text.endswith("it printed: out | err")


@pytest.mark.parametrize("policy", OnFailure)
async def test_a_failure_stops_if_that_is_its_policy(
    policy: OnFailure, scripts: Scripts, log: Log, write: Callable[..., Script]
) -> None:
    result = await scripts.run(write("#!/bin/sh\nexit 3\n", on_failure=policy), OCCASION, "one")
    assert (result.outcome, result.exit_code, result.how()) == (Outcome.FAILED, 3, "exit code 3")
    assert result.stop is (policy is OnFailure.STOP)
    assert log.events[0][0] == events.SCRIPT_FAILED.id and "exit code 3" in log.events[0][1]


async def test_one_that_is_killed(scripts: Scripts, write: Callable[..., Script]) -> None:
    result = await scripts.run(write("#!/bin/sh\nkill -9 $$\n"), OCCASION, "one")
    assert (result.outcome, result.signal, result.exit_code) == (Outcome.FAILED, signal.SIGKILL, None)


async def test_one_that_hangs_is_ended_with_its_children(
    scripts: Scripts, write: Callable[..., Script], tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    script = write(f"#!/bin/sh\nsleep 1000 &\necho $! $$ >{pids}\necho began\nwait\n", timeout_s=0.5)
    result = await scripts.run(script, OCCASION, "one")
    assert result.outcome is Outcome.TIMED_OUT and not result.succeeded
    assert 0.5 <= result.duration_s < 3 and result.output == "began\n"
    await until_async(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


async def test_one_that_ignores_the_end_of_its_time_is_killed(
    scripts: Scripts, write: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SCRIPT_TERM_S", 0.3)
    script = write("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.05; done\n", timeout_s=0.3)
    result = await scripts.run(script, OCCASION, "one")
    assert result.outcome is Outcome.TIMED_OUT and 0.6 <= result.duration_s < 5


async def test_megabytes_are_read_and_the_first_and_last_part_is_kept(
    scripts: Scripts, log: Log, write: Callable[..., Script]
) -> None:
    script = write("#!/bin/sh\necho first\nhead -c 30000000 /dev/zero | tr '\\0' x\necho\necho last\n")
    result = await scripts.run(script, OCCASION, "one")
    assert result.outcome is Outcome.DONE and result.output_bytes == 30_000_012
    assert result.output.startswith("first\n") and result.output.endswith("\nlast\n")
    assert f"[… {30_000_012 - limits.SCRIPT_OUTPUT_BYTES} bytes left out …]" in result.output
    assert len(log.events[0][1]) < limits.SCRIPT_EVENT_BYTES + 500


async def test_a_child_that_holds_the_output_holds_nobody_up_and_lives(
    scripts: Scripts, write: Callable[..., Script], tmp_path: Path
) -> None:
    pid, done = tmp_path / "pid", tmp_path / "done"
    child = f"sleep 0.6; echo still here; echo again; touch {done}; sleep 1000"
    script = write(f"#!/bin/sh\n({child}) &\necho $! >{pid}\necho started\n")
    began_s = time.monotonic()
    result = await scripts.run(script, OCCASION, "one")
    assert time.monotonic() - began_s < 3 and result.output == "started\n"
    try:
        await until_async(done.exists)  # it could go on printing: nobody's end of the pipe was closed
        assert alive(int(pid.read_text()))
    finally:
        os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        ("#!/bin/sh\n", 0o644, "is not executable: chmod +x"),
        ("#!/no/such/interpreter\n", 0o755, "what its first line names (#!) is not there"),
        ("echo no first line\n", 0o755, "does not begin with #!"),
    ],
)
async def test_one_that_cannot_be_started_says_why(
    text: str, mode: int, reason: str, scripts: Scripts, log: Log, write: Callable[..., Script]
) -> None:
    result = await scripts.run(write(text, mode, on_failure=OnFailure.STOP), OCCASION, "one")
    assert result.outcome is Outcome.NOT_STARTED and reason in result.reason and result.stop
    assert log.events[0][0] == events.SCRIPT_FAILED.id and reason in log.events[0][1]


async def test_one_that_vanishes_says_so(scripts: Scripts, write: Callable[..., Script]) -> None:
    script = write("#!/bin/sh\n")
    assert problems(script) == []
    os.unlink(script.path)
    assert problems(script) == [f"{script.path}: No such file or directory"]
    result = await scripts.run(script, OCCASION, "one")
    assert result.reason == f"{script.path}: No such file or directory"


async def test_one_that_is_stopped(scripts: Scripts, write: Callable[..., Script], tmp_path: Path) -> None:
    script = write(f"#!/bin/sh\ntouch {tmp_path}/began\nsleep 1000\n")
    async with trio.open_nursery() as nursery:
        found: list[ScriptResult] = []

        async def run() -> None:
            found.append(await scripts.run(script, OCCASION, "one"))

        nursery.start_soon(run)
        await until_async((tmp_path / "began").exists)
        await scripts.stop("one")
    assert found[0].outcome is Outcome.STOPPED


def test_it_has_nothing_of_the_special_rights_of_its_agent() -> None:
    """Services that it starts would have it, too."""
    program = (
        "import signal; open('/proc/self/oom_score_adj', 'w').write('500');"
        "from replicator.failover.supervised import supervise;"
        "line = 'cat /proc/self/oom_score_adj; grep -E ^Sig[IB] /proc/self/status';"
        "print(supervise(['/bin/sh', '-c', line], {'PATH': '/usr/bin:/bin'}, 20)[0].output)"
    )
    said = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert said[0] == "0"
    assert said[1::2] == ["SigBlk:", "SigIgn:"]
    # Without the two that the C library keeps for itself: whoever ignores them, no program can undo it.
    programs_own = sum(1 << number - 1 for number in signal.valid_signals())
    assert [int(mask, 16) & programs_own for mask in said[2::2]] == [0, 0]


# --- not waited for ---


async def test_one_that_is_not_waited_for_tells_its_end_later(
    scripts: Scripts, log: Log, write: Callable[..., Script], tmp_path: Path
) -> None:
    script = write(f"#!/bin/sh\nwhile ! [ -e {tmp_path}/go ]; do sleep 0.02; done\nexit 4\n", wait=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scripts.serve)
        result = await scripts.run(script, OCCASION, "one")
        assert result.outcome is Outcome.STARTED and not log.events
        (tmp_path / "go").touch()
        await until_async(lambda: log.events)
        nursery.cancel_scope.cancel()
    assert "exit code 4" in log.events[0][1]


async def test_its_end_is_told_by_the_next_agent(
    scripts: Scripts, log: Log, write: Callable[..., Script], tmp_path: Path
) -> None:
    await scripts.run(write("#!/bin/sh\necho done\n", wait=False), OCCASION, "one")
    successor = Scripts(str(tmp_path / "runs"), log.add)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(successor.serve)
        await until_async(lambda: log.events)
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert len(log.events) == 1


# --- agents and keepers that are killed ---


async def test_an_attempt_under_way_is_found_again_and_not_begun_twice(
    scripts: Scripts, log: Log, write: Callable[..., Script], tmp_path: Path
) -> None:
    count = tmp_path / "count"
    script = write(
        f"#!/bin/sh\necho x >>{count}\nwhile ! [ -e {tmp_path}/go ]; do sleep 0.02; done\necho end\n"
    )
    async with trio.open_nursery() as nursery:  # an agent that does not live to see its end
        nursery.start_soon(scripts.run, script, OCCASION, "one")
        await until_async(count.exists)
        nursery.cancel_scope.cancel()
    successor = Scripts(str(tmp_path / "runs"), log.add)
    assert [name for name, result in successor.results() if result is None] == ["one"]
    (tmp_path / "go").touch()
    result = await successor.run(script, OCCASION, "one")
    assert (result.outcome, result.output, count.read_text()) == (Outcome.DONE, "end\n", "x\n")
    again = await successor.run(script, OCCASION, "one")
    assert again == result and count.read_text() == "x\n" and len(log.events) == 1
    await successor.run(script, OCCASION, "two")  # another attempt is another run
    assert count.read_text() == "x\nx\n"


async def test_one_whose_keeper_was_killed_is_lost_and_its_attempt_can_be_repeated(
    scripts: Scripts, log: Log, write: Callable[..., Script], tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    script = write(f"#!/bin/sh\necho $$ >{pid}.new; mv {pid}.new {pid}\n[ -e {tmp_path}/go ] || sleep 1000\n")
    found: list[ScriptResult] = []
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            found.append(await scripts.run(script, OCCASION, "one"))

        nursery.start_soon(run)
        await until_async(pid.exists)
        os.kill(int((tmp_path / "runs/one/keeper.pid").read_text()), signal.SIGKILL)
    assert found[0].outcome is Outcome.LOST and not found[0].succeeded
    await until_async(lambda: not alive(int(pid.read_text())))  # there are never two of them
    (tmp_path / "go").touch()
    assert (await scripts.run(script, OCCASION, "one")).outcome is Outcome.DONE


async def test_a_result_that_a_power_cut_has_emptied_is_none(
    scripts: Scripts, write: Callable[..., Script], tmp_path: Path
) -> None:
    script = write("#!/bin/sh\necho once\n")
    await scripts.run(script, OCCASION, "one")
    (tmp_path / "runs/one/result.json").write_bytes(b"")
    assert (await scripts.run(script, OCCASION, "one")).outcome is Outcome.DONE


async def test_only_so_many_runs_are_remembered(
    scripts: Scripts, write: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SCRIPT_RUNS_KEPT", 3)
    script = write("#!/bin/sh\n")
    for number in range(6):
        await scripts.run(script, OCCASION, f"run-{number}")
    assert [name for name, _ in scripts.results()] == ["run-5", "run-4", "run-3", "run-2"]


async def test_what_a_run_leaves_is_for_root_only(
    scripts: Scripts, write: Callable[..., Script], tmp_path: Path
) -> None:
    await scripts.run(write("#!/bin/sh\n"), OCCASION, "one")
    assert stat.S_IMODE((tmp_path / "runs/one").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["", "../out", ".hidden", "a/b", "a\0b"])
def test_names_of_attempts_stay_in_their_directory(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Attempt(tmp_path, name)


# --- what may be configured ---


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (Script(path="relative.sh"), "absolute path"),
        (Script(path="/x", timeout_s=0), "timeout"),
        (Script(path="/x", timeout_s=float("nan")), "timeout"),
        (Script(path="/x", arguments=("a\0",)), "without NUL"),
        (Script(path="/x", wait=False, on_failure=OnFailure.STOP), "only stop what waits"),
    ],
)
def test_what_can_never_be_right(script: Script, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        check(script)


def test_defaults_for_new_monitors() -> None:
    made = defaults(Failover(pre_failover="/etc/x/stop 'a b'", script_timeout_s=9, script_on_failure="stop"))
    assert made == {
        ScriptKind.PRE_FAILOVER: Script(
            path="/etc/x/stop", arguments=("a b",), timeout_s=9, on_failure=OnFailure.STOP
        )
    }
    assert defaults(Failover()) == {}
    with pytest.raises(UsageError, match="no command line"):
        from_command_line("/x 'unfinished", Script(path=""))


def test_a_script_that_others_can_change_is_pointed_out(write: Callable[..., Script]) -> None:
    [text] = problems(write("#!/bin/sh\n", 0o777))
    assert "others than root" in text
    [text] = problems(write("#!/bin/sh\n", 0o644))
    assert "chmod +x" in text


# --- what is kept of what is printed ---


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 21, 40, 41, 1000])
@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_first_and_last_part(size: int, chunk: int) -> None:
    data = bytes(ord("a") + n % 26 for n in range(size))
    output = Output(20)
    for start in range(0, size, chunk):
        output.add(data[start : start + chunk])
    if size <= 20:
        assert output.text() == data.decode()
    else:
        first, _, rest = output.text().partition("\n[… ")
        assert (first, rest) == (data[:10].decode(), f"{size - 20} bytes left out …]\n{data[-10:].decode()}")


def test_nothing_of_it_reaches_a_terminal() -> None:
    assert printable(b"a\x1b[31mb\r\n\xff\0") == "a\ufffd[31mb\n\ufffd\ufffd"


def test_one_line_for_an_event() -> None:
    assert shortened(" a \n\n b\n", 100) == "a | b"
    assert shortened("x" * 30, 10) == "xxxxx [… 20 characters left out …] xxxxx"
