"""What the benchmarks share: a place that cleans up after itself, two agents in it, and readings of them.

A benchmark runs in a mount and process namespace of its own, so that the kernel takes mounts, loop devices,
memory tiers (a tmpfs of its own) and processes away however it ends. What is left is one directory below
/tmp; if even that stays, because the benchmark was killed, the next one removes it.
"""

import argparse
import ctypes
import fcntl
import mmap
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY)]

from kit import dtd  # noqa: E402
from kit.hosts import Host  # noqa: E402

from replicator.cli.client import Client  # noqa: E402

PREFIX = "replicator-bench-"
NAMESPACES = ("--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "--kill-child")
PATIENCE_S = 60.0
POLL_S = 0.0001
MIB = 1 << 20
GIB = 1 << 30


class BenchError(Exception):
    """One line: why there are no figures."""


# --- a place to measure in ---


def run(
    description: str | None,
    measure: Callable[..., None],
    *,
    cases: Sequence[str] = (),
    **numbers: tuple[int, int],
) -> None:
    """Main program of a benchmark: `measure(work, quick)` in namespaces, with a directory of its own.

    `numbers`: further arguments. Each is an option, with its default and that of --quick. `cases`: it is told
    those of them that are chosen (`--cases=ONE,OTHER`; all by default), in this order.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small and few: shows that it works, no more")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    for name, (usual, quick) in numbers.items():
        parser.add_argument(
            f"--{name}", type=int, metavar="N", help=f"default {usual:,}; with --quick {quick:,}"
        )
    if cases:
        parser.add_argument("--cases", default=",".join(cases), help=f"of these: {', '.join(cases)}")
    options = parser.parse_args()
    chosen_cases = options.cases.split(",") if cases else []
    if not set(chosen_cases) <= set(cases):
        parser.error(f"the cases are {', '.join(cases)}")
    for name, defaults in numbers.items():
        if getattr(options, name) is None:
            setattr(options, name, defaults[options.quick])
    try:
        if options.inside is None:
            sys.exit(_outside())
        chosen: dict[str, Any] = {name: getattr(options, name) for name in numbers}
        if cases:
            chosen["cases"] = [case for case in cases if case in chosen_cases]
        _inside(options.inside, partial(measure, quick=options.quick, **chosen))
    except KeyboardInterrupt:
        sys.exit(130)
    except BenchError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")


def _outside() -> int:
    if os.geteuid() != 0:
        raise BenchError("mounting needs root; run 'sudo make bench'")
    _sweep()
    work = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = _lock(work)
    try:
        command = ["unshare", *NAMESPACES, sys.executable, *sys.argv, "--inside", str(work)]
        inside = subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_parent)

        def interrupt(number: int, frame: object) -> None:
            os.killpg(inside.pid, signal.SIGINT)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupt)
        code = inside.wait()
        return code if code >= 0 else 128 - code
    finally:
        os.close(lock)
        shutil.rmtree(work, ignore_errors=True)


def _inside(work: Path, measure: Callable[[Path], None]) -> None:
    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # cleaning up is not to be interrupted
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    memory = work / "memory"
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "replicator-bench", memory], check=True)
    try:
        measure(work)
    finally:
        subprocess.run(["umount", "-l", memory], check=False)


def _lock(work: Path) -> int:
    """Shows that somebody still works there."""
    lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _sweep() -> None:
    for work in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        if not (work / "lock").exists():
            continue
        try:
            lock = _lock(work)
        except BlockingIOError:
            continue  # a benchmark that is running
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; unshare hands it on


def warm_memory(size_bytes: int) -> None:
    """Have so much of the free memory in the machine's hands: a virtual one may have returned it to its host,
    and then whoever uses it first pays for fetching it back. At most half of what is free.
    """
    free_bytes = _number(Path("/proc/meminfo").read_text(), "MemAvailable") * 1024
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, min(size_bytes, free_bytes // 2), flags=flags).close()


class Disk:
    """A fresh ext4 on a loop device."""

    def __init__(self, path: Path) -> None:
        self.path = path
        device = os.stat(path).st_dev
        self._statistics = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")

    def sync(self) -> None:
        """Everything written so far reaches the device."""
        subprocess.run(["sync", "-f", self.path], check=True)

    def written_bytes(self) -> int:
        """That ever reached the device: data, metadata and the file system's own journal."""
        return int(self._statistics.read_text().split()[6]) * 512


@contextmanager
def disk(path: Path, size_bytes: int, *, inodes: int | None = None) -> Iterator[Disk]:
    """A new file system, mounted on `path`, gone afterwards. `inodes`: room for so many files."""
    image = path.with_name(path.name + ".ext4")
    path.mkdir(exist_ok=True)
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    try:
        room = ["-N", str(inodes)] if inodes else []
        subprocess.run(["mkfs.ext4", "-q", "-F", *room, image], check=True)
        # Without the kernel's initialising of inode tables in the background: it would be measured as well.
        subprocess.run(["mount", "-o", "loop,noinit_itable", image, path], check=True)
        try:
            yield Disk(path)
        finally:
            _unmount(path)
    finally:
        image.unlink()


def _unmount(path: Path) -> None:
    deadline_s = time.monotonic() + 10
    while subprocess.run(["umount", path], capture_output=True, check=False).returncode:
        if time.monotonic() > deadline_s:
            subprocess.run(["umount", "-l", path], check=False)
            return
        time.sleep(0.05)


# --- two agents ---


class Pair:
    """Two agents on loopback: what changes on `source` goes to `target`."""

    def __init__(self, source: dtd.Agent, target: dtd.Agent) -> None:
        self.source_agent = source
        self.target_agent = target
        self.source = Client(str(source.home))
        self.target = Client(str(target.home))

    def capture(self, source: Path) -> None:
        """Mount `source`, and make a set "bench" of it."""
        self.source.post("mounts", body={"path": str(source), "mountpoint": None, "binding": "auto"})
        self.source.post("repsets", body={"name": "bench", "rules": [{"path": str(source)}]})

    def connect(self, source: Path, copy: Path, *, mirror: str | None = "full") -> None:
        """Connect the set, and wait until the copy equals it. `mirror` None: nothing is copied."""
        address = self.target_agent.address
        maps = [{"source": str(source), "target": str(copy)}]
        self.source.post(
            "connections", body={"repset": "bench", "target": address, "maps": maps, "mirror": mirror}
        )
        self.wait()

    def disconnect(self) -> None:
        """Return when the target knows of nothing any more."""
        self.source.post("connections", "bench", "disconnect")
        until(lambda: not self.target.get("targets"), interval_s=0.02)

    def wait(self) -> None:
        """Until all that was captured is applied."""
        self.source.post("connections", "bench", "wait", timeout_s=None)

    def settle(self) -> None:
        """The same, for times as well: they are journaled when a file has been quiet."""
        time.sleep(1.5)
        self.wait()

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.source.get("connections", "bench")
        return status

    def processes(self) -> dict[str, int]:
        """Ids of all processes of both agents."""
        assert self.source_agent.process and self.target_agent.process
        found = {"source dtd": self.source_agent.process.pid, "target dtd": self.target_agent.process.pid}
        (mount,) = self.source.get("mounts")
        found |= {"capture": mount["pid"], "sender": self.status()["sender_pid"]}
        (copy,) = self.target.get("targets")
        return found | {"receiver": copy["pid"]}

    def target_gone(self) -> None:
        """Kill all that runs on the target. `target_agent.start()` brings it back."""
        receivers = [target["pid"] for target in self.target.get("targets")]
        self.target_agent.kill()
        for process_id in receivers:
            os.kill(process_id, signal.SIGKILL)

    def wire_bytes(self) -> int:
        """TCP payload so far, both directions, with frame heads, acknowledgements and heartbeats."""
        port = self.target_agent.port
        command = ["ss", "-tinHO", "state", "established", f"( dport = :{port} )"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if text.count("\n") != 1:
            raise BenchError(f"one TCP connection was expected, and there are {text.count(chr(10))}")
        return sum(int(count) for count in re.findall(r" bytes_(?:sent|received):(\d+)", text))


@contextmanager
def pair(
    work: Path,
    *,
    target_home: Path | None = None,
    settings: str = "[queue]\n",
    hosts: tuple[Host, Host] | None = None,
) -> Iterator[Pair]:
    """Two agents, started; everything of theirs is taken down afterwards. `settings`: from [queue] on.
    `hosts`: where they run, the source first; otherwise both use loopback. They stand for two hosts, so the
    kernel copies nothing.
    """
    source = dtd.Agent(work / "source-home", "source", hosts and hosts[0])
    target = dtd.Agent(target_home or work / "target-home", "target", hosts and hosts[1])
    try:
        for agent in (source, target):
            agent.home.mkdir(mode=0o700, exist_ok=True)
            memory = work / "memory" / agent.name
            memory.mkdir(exist_ok=True)
            (agent.home / "replicator.toml").write_text(
                f'[mirror]\nlocal_copy = false\n{settings}memory_directory = "{memory}"\n'
            )
            agent.start()
        yield Pair(source, target)
    finally:
        for agent in (source, target):
            agent.close()
            shutil.rmtree(agent.home, ignore_errors=True)
            shutil.rmtree(work / "memory" / agent.name, ignore_errors=True)


def dtctl(agent: dtd.Agent, *words: str | os.PathLike[str]) -> None:
    """As a user runs it, start of the program included."""
    program = [sys.executable, "-c", "from replicator.cli.main import main; main()"]
    result = subprocess.run(
        [*program, "--home", agent.home, *words], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise BenchError(f"dtctl {words[0]}: {result.stderr.strip()}")


# --- reading ---


def processor_s(process_id: int) -> float:
    """Processor time a process has used, to the nanosecond: its clock of clock_getcpuclockid(3)."""
    return time.clock_gettime((~process_id << 3) | 2)


def written_bytes(process_id: int) -> int:
    """That a process caused to be written to block devices (page cache pages it made dirty)."""
    return _number(Path(f"/proc/{process_id}/io").read_text(), "write_bytes")


def memory_bytes(process_id: int, field: str) -> int:
    """A field of /proc/PID/status: VmRSS, VmHWM (its peak), RssAnon, RssShmem."""
    return _number(Path(f"/proc/{process_id}/status").read_text(), field) * 1024


def begin_peak(process_id: int) -> None:
    """The peak of its memory (VmHWM) is that from now on: proc(5), clear_refs."""
    Path(f"/proc/{process_id}/clear_refs").write_text("5")


def _number(text: str, field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+)", text, re.MULTILINE)
    assert found, field
    return int(found[1])


def used_bytes(directory: Path) -> int:
    """Space that a tree takes."""
    return sum(
        os.lstat(os.path.join(base, name)).st_blocks * 512
        for base, _, names in os.walk(directory)
        for name in names
    )


def until(seen: Callable[[], object], *, interval_s: float = POLL_S) -> None:
    """Return as soon as `seen` is true."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not seen():
        if time.monotonic() > deadline_s:
            raise BenchError(f"a change did not arrive within {PATIENCE_S:.0f} s")
        time.sleep(interval_s)


def percentile(values: Sequence[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def median_text(values: Sequence[float], digits: int = 0) -> str:
    """The median, and the range in parentheses."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def assert_equal(source: Path, copy: Path) -> str:
    """Compare with a program that shares no code with the agents. Returns what it says for a table."""
    program = REPOSITORY / "scripts" / "compare_trees.py"
    result = subprocess.run(
        [sys.executable, program, source, copy], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise BenchError(f"the copy differs: {result.stdout[:500]}{result.stderr[:500]}")
    return "equal"


# --- making and showing ---


def make_file(path: Path, size_bytes: int) -> None:
    """Random content; blocks repeat, which nothing that is measured here notices."""
    block = os.urandom(MIB)
    with open(path, "wb", buffering=0) as file:
        for _ in range(size_bytes // MIB):
            file.write(block)


def make_small_files(directory: Path, count: int, *, per_directory: int = 100, size_max: int = 8192) -> None:
    """`count` files with sizes spread evenly between 0 and `size_max` bytes."""
    content = os.urandom(size_max)
    for number in range(count):
        parent = directory / f"d{number // per_directory}"
        if number % per_directory == 0:
            parent.mkdir(parents=True)
        descriptor = os.open(parent / f"f{number}", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, content[: number * 7919 % (size_max + 1)])
        os.close(descriptor)


def make_names(directory: Path, links: int, symlinks: int, *, per_directory: int = 100) -> None:
    """Files of 4 KiB with two names each, in different directories, and symbolic links."""
    content = os.urandom(4096)
    for number in range(links):
        first, second = (directory / name / f"d{number // per_directory}" for name in ("one", "other"))
        if number % per_directory == 0:
            first.mkdir(parents=True)
            second.mkdir(parents=True)
        (first / f"f{number}").write_bytes(content)
        os.link(first / f"f{number}", second / f"f{number}")
    for number in range(symlinks):
        parent = directory / "symlinks" / f"d{number // per_directory}"
        if number % per_directory == 0:
            parent.mkdir(parents=True)
        os.symlink(f"../../one/d{number // 100}/f{number}", parent / f"s{number}")


def make_sparse_files(directory: Path, count: int, *, per_directory: int = 100, size_max: int = 8192) -> None:
    """`count` files that take no space, with sizes up to `size_max`."""
    for number in range(count):
        parent = directory / f"d{number // per_directory}"
        if number % per_directory == 0:
            parent.mkdir(parents=True)
        descriptor = os.open(parent / f"f{number}", os.O_WRONLY | os.O_CREAT)
        os.ftruncate(descriptor, number * 7919 % (size_max + 1))
        os.close(descriptor)


def say(text: str) -> None:
    """For whoever watches; not part of the result."""
    print(text, file=sys.stderr, flush=True)


class Table:
    """Markdown, row by row."""

    def __init__(self, title: str, *columns: str) -> None:
        print(f"\n### {title}\n")
        self._print(columns)
        self._print(["---"] + ["---:"] * (len(columns) - 1))

    def row(self, *cells: object) -> None:
        self._print([str(cell) for cell in cells])

    def _print(self, cells: Sequence[str]) -> None:
        print(f"| {' | '.join(cells)} |", flush=True)
