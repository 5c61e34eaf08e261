"""What holds for every test: a time limit, garbage collected after each, nothing left behind by the session.

A test that hangs on a dead mount must not hang the run, and a mount, process or memory directory that
outlives its test would make the next one fail for no reason of its own. So the session sweeps before it
starts (what killed sessions left) and after it ends (what its own tests left: that is an error, and is
reported as one). Descriptors count as well.
"""

import faulthandler
import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType

import pytest
import trio
from kit import leftovers, machine

from replicator import states

TEST_TIMEOUT_S = 120.0
UMASK = 0o022  # whoever runs the tests: what they make by hand is compared with what agents make
DESCRIPTORS_MAX = 400  # more at the end of a session than before it: tests that play a kill leave some
HARD_EXIT_AFTER_S = 60.0  # after the time limit: the process sits in the kernel and hears no signal

_stderr_descriptor = pytest.StashKey[int]()
_left_behind = pytest.StashKey[list[str]]()
_descriptors = pytest.StashKey[int]()
_opened = pytest.StashKey[list[tuple[int, str]]]()
_swept = pytest.StashKey[list[str]]()
_too_late = pytest.StashKey[str]()


class TestTimeoutError(Exception):
    """A test took longer than its limit."""

    __test__ = False  # a name pytest would otherwise collect


def pytest_configure(config: pytest.Config) -> None:
    os.umask(UMASK)
    states.forbidden = _forbidden_step
    config.addinivalue_line("markers", "timeout_s(seconds): another time limit than the usual one")
    # Standard error proper, before output is captured: the only way to say anything when the process hangs.
    config.stash[_stderr_descriptor] = os.dup(2)
    faulthandler.register(signal.SIGUSR1, file=config.stash[_stderr_descriptor], all_threads=True)


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """A test of capture leaves this process with capture's."""
    yield
    os.umask(UMASK)


def _forbidden_step(text: str) -> None:
    raise states.ForbiddenStepError(text)


def pytest_unconfigure(config: pytest.Config) -> None:
    faulthandler.unregister(signal.SIGUSR1)
    os.close(config.stash[_stderr_descriptor])


def pytest_report_header(config: pytest.Config) -> list[str]:
    swept = [f"removed what a killed session left: {what}" for what in config.stash.get(_swept, [])]
    return ["this machine: " + ", ".join(machine.report()), *swept]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = machine.why_no_mounts()
    for item in items:
        if reason and (item.get_closest_marker("fs") or item.get_closest_marker("e2e")):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_swept] = leftovers.sweep_dead_sessions()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays for good: collecting after each test need not look at it again."""
    gc.collect()
    gc.freeze()
    session.config.stash[_descriptors] = _descriptor_count()
    session.config.stash[_opened] = []


def _descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """One limit for set-up, call and tear-down together."""
    marker = item.get_closest_marker("timeout_s")
    limit_s = float(marker.args[0]) if marker else TEST_TIMEOUT_S

    def too_late(signum: int, frame: FrameType | None) -> None:
        first = _too_late not in item.stash
        item.stash[_too_late] = f"{item.nodeid} took longer than {limit_s:.0f} s"
        faulthandler.dump_traceback(file=item.config.stash[_stderr_descriptor], all_threads=True)
        try:
            token = trio.lowlevel.current_trio_token()
        except RuntimeError:  # no trio here
            first = False
        if first:
            # An exception out of the blue breaks trio's loop and later tests; cancelling does not.
            token.run_sync_soon(_cancel_main_task)
        else:
            raise TestTimeoutError(item.stash[_too_late])

    descriptors = _descriptor_count()
    previous = signal.signal(signal.SIGALRM, too_late)
    # Repeats: code that swallows the exception, or a tear-down that hangs as well, is interrupted again.
    signal.setitimer(signal.ITIMER_REAL, limit_s, 10.0)
    faulthandler.dump_traceback_later(
        limit_s + HARD_EXIT_AFTER_S, file=item.config.stash[_stderr_descriptor], exit=True
    )
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
        more = _descriptor_count() - descriptors
        if more > 0:
            item.config.stash[_opened].append((more, item.nodeid))


def _cancel_main_task() -> None:
    trio.lowlevel.current_root_task().child_nurseries[-1].cancel_scope.cancel()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    except BaseException:
        if _too_late in item.stash:
            raise TestTimeoutError(item.stash[_too_late]) from None
        raise


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """An unclosed file or stream becomes a failure of the test that forgot it, not of a later one."""
    gc.collect()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    factory = getattr(session.config, "_tmp_path_factory", None)
    base: Path | None = getattr(factory, "_basetemp", None)  # None: no test asked for a temporary directory
    left = leftovers.sweep(base) if base is not None else []
    more = _descriptor_count() - session.config.stash.get(_descriptors, _descriptor_count())
    if more > DESCRIPTORS_MAX:
        most = sorted(session.config.stash[_opened], reverse=True)[:20]
        left = [*left, f"{more} descriptors; most by", *(f"  {count} by {test}" for count, test in most)]
    session.config.stash[_left_behind] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for what in config.stash.get(_left_behind, []):
        terminalreporter.write_line(f"LEFT BEHIND by tests, and removed where it can be: {what}", red=True)
