"""Protect a real directory, end to end, and prove that the copy is equal. `make demo` runs this.

    demo.py [--source DIR] [--target DIR] [--host-mounts]

Two agents on this machine, source and target, with homes of their own below /tmp. The source directory is
mounted over itself, mirrored to the other agent while programs keep changing files in it, and every change
arrives on the target. Then both trees are compared by a program that shares no code with the agents, and
everything is taken down.

What it does to the machine: - It runs in a mount and process namespace of its own: no other program sees
the mount, and the kernel removes mounts
  and processes even if the demo is killed. With --host-mounts all programs of this machine see the mount
  instead, so that changes made by anybody arrive.
- Nothing in the source directory is changed, but for one directory (.replicator-demo) that the demo's
writers work in
  and that is removed at the end. The source's modification time is then put back.
- The target must be new or empty. A target named on the command line stays; otherwise it is below /tmp and
removed.

Exit code: 0 if the trees were equal, 1 if not or if anything failed, 130 after Ctrl-C.
"""

import argparse
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from replicator.cli import render
from replicator.cli.client import Client
from replicator.cli.units import bytes_text, count_text, seconds_text
from replicator.errors import ReplicatorError
from replicator.limits import MEMORY_DIRECTORY, QUIET_MTIME_S

SCRIPTS = Path(__file__).resolve().parent
PROGRAMS = Path(sys.executable).parent  # where dtd and dtctl are installed: the same virtual environment
PREFIX = "replicator-demo-"
WORK_NAME = ".replicator-demo"  # the writers' directory in the source
MARKER = ".made-by-replicator-demo"
WRITERS = 3
WRITING_MIN_S = 5.0  # writers run at least this long, also when the mirror is faster,
WRITING_MAX_S = 60.0  # and at most this long, so that the demo of a large tree does not fill the disk
LATENCY_SAMPLES = 300
STALL_S = 90.0  # no progress for so long: something is wrong
START_TIMEOUT_S = 20.0
NAMESPACES = ("--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "--kill-child")

STARTED_S = time.monotonic()

# A pipe has no width: nothing is wrapped there.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 240)


class DemoError(Exception):
    """One line: what is wrong and what to do about it."""


# --- outside: what must hold before, and what is removed after, whatever happens inside ---


def outside(options: argparse.Namespace) -> int:
    source = os.path.realpath(options.source)
    if os.geteuid() == 0:
        sweep_killed_demos(source)
    check_machine(source, options.target)
    with ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix=PREFIX))
        stack.callback(remove_work, work)
        lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)

        command = [sys.executable, __file__, "--source", source, "--inside", str(work)]
        if options.target:
            command += ["--target", os.path.abspath(options.target)]
        if not options.host_mounts:
            if run_quietly("unshare", *NAMESPACES, "true"):
                command = ["unshare", *NAMESPACES, *command]
            else:
                console.print(
                    "No namespaces here: all programs of this machine see the demo's mount.", style="yellow"
                )
        before = os.stat(source)
        inner = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)
        try:
            code = wait_and_forward_signals(inner)
        finally:
            remove_writers_directory(source)
            os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
        return code


def check_machine(source: str, target: str | None) -> None:
    if os.geteuid() != 0:
        raise DemoError("mounting needs root; run 'sudo make demo'")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise DemoError(f"/dev/fuse cannot be used ({error.strerror}); try 'modprobe fuse'") from None
    if not os.path.isdir(source):
        raise DemoError(f"{source} is not a directory; name another with SRC=")
    if os.path.ismount(source) and is_fuse(source):
        raise DemoError(f"{source} is a FUSE mount already; name another directory with SRC=")
    if target is None:
        return
    copy = os.path.realpath(target)
    if os.path.exists(copy) and (not os.path.isdir(copy) or os.listdir(copy)):
        raise DemoError(f"{target} is not an empty directory; name a new one with DST=")
    if (
        copy == source
        or copy.startswith(source.rstrip("/") + "/")
        or source.startswith(copy.rstrip("/") + "/")
    ):
        raise DemoError(f"{target} and {source} lie within each other; name another directory with DST=")


def is_fuse(path: str) -> bool:
    return any(point == path and kind.startswith("fuse") for point, kind in mounts())


def mounts() -> Iterator[tuple[str, str]]:
    """Mount points of this namespace with the type of their file system, oldest first."""
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, right = line.split(" - ", 1)
            yield left.split()[4].encode().decode("unicode_escape"), right.split()[0]


def sweep_killed_demos(source: str) -> None:
    """Remove what demos left that were killed with no chance to clean up. A running demo holds its lock."""
    for work in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        try:
            lock = os.open(work / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError("another demo is running; wait for its end") from None
        finally:
            os.close(lock)
        remove_work(work)
    remove_writers_directory(source)


def remove_writers_directory(source: str) -> None:
    directory = os.path.join(source, WORK_NAME)
    if not os.path.lexists(directory):
        return
    if not os.path.exists(os.path.join(directory, MARKER)):
        raise DemoError(
            f"{directory} exists and is not the demo's; rename it or name another directory with SRC="
        )
    shutil.rmtree(directory)


def remove_work(work: Path) -> None:
    """Mounts and processes first (without namespaces they may still be there), then directories."""
    for process_id in processes_of(work):
        os.kill(process_id, signal.SIGKILL)
    for point, _ in reversed(list(mounts())):
        if point.startswith(f"{work}/"):
            run_quietly("umount", "-l", point)
    shutil.rmtree(memory_of(work), ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)


def memory_of(work: Path) -> Path:
    """Where the demo's agents keep the memory tier of their queues: a place of its own is easily removed."""
    return Path(MEMORY_DIRECTORY, work.name)


def processes_of(work: Path) -> Iterator[int]:
    """Processes whose command line names this demo's directory, this one and its parents excepted."""
    needle = f"{work}/".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if needle in Path("/proc", entry, "cmdline").read_bytes():
                    yield int(entry)
            except OSError:
                continue  # it ended meanwhile


def run_quietly(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def die_with_parent() -> None:
    """In the child: SIGKILL when the parent dies. unshare passes it on to all that it started."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def wait_and_forward_signals(inner: subprocess.Popen[bytes]) -> int:
    """Ctrl-C and SIGTERM become Ctrl-C inside, which then takes everything down and ends."""

    def forward(signum: int, frame: object) -> None:
        os.killpg(inner.pid, signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    try:
        return inner.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # cleaning up is not to be interrupted


# --- inside: the demo proper ---


class Agent:
    """A dtd of the demo."""

    def __init__(self, work: Path, name: str) -> None:
        self.name = name
        self.home = str(work / name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.client = Client(self.home)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--home", self.home, "--name", self.name, "--listen", f"127.0.0.1:{self.port}"]
        show_command("dtd", *arguments)
        os.makedirs(self.home, mode=0o700)
        memory = memory_of(Path(self.home).parent)
        memory.mkdir(mode=0o700, exist_ok=True)
        Path(self.home, "replicator.toml").write_text(f'[queue]\nmemory_directory = "{memory}"\n')
        with open(f"{self.home}/output.log", "wb") as log:
            self._process = subprocess.Popen([str(PROGRAMS / "dtd"), *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.client.get("agent")
                return
            except ReplicatorError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    output = Path(self.home, "output.log").read_text(errors="replace").strip()
                    raise DemoError(f"the {self.name} agent did not start: {output or error}") from None
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        subprocess.run(
            [PROGRAMS / "dtd", "--home", self.home, "--stop-mounts"],
            capture_output=True,
            check=False,
            timeout=60,
        )

    def dtctl(self, *arguments: str) -> Any:
        """Run a command as a user would. Returns its JSON document."""
        show_command("dtctl", "--home", self.home, *arguments)
        result = subprocess.run(
            [PROGRAMS / "dtctl", "--home", self.home, *arguments, "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise DemoError(result.stderr.strip() or f"dtctl {arguments[0]} ended with {result.returncode}")
        return json.loads(result.stdout)


class Writers:
    """Programs that change files in one directory of the source while it is mirrored."""

    def __init__(self, directory: str, work: Path) -> None:
        self._directory = directory
        self._counts = [work / f"writer-{number}" for number in range(WRITERS)]
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        os.mkdir(self._directory)
        Path(self._directory, MARKER).touch()
        for number, count in enumerate(self._counts):
            command = [
                sys.executable,
                str(SCRIPTS / "demo_writer.py"),
                f"{self._directory}/{number}",
                str(number),
            ]
            with open(count, "wb") as output:
                self._processes.append(subprocess.Popen(command, stdout=output))

    @property
    def running(self) -> bool:
        return bool(self._processes)

    @property
    def operations(self) -> int:
        return sum(int(count.read_bytes() or 0) for count in self._counts if count.exists())

    def check(self) -> None:
        for process in self._processes:
            if process.poll() is not None:
                raise DemoError(f"a writer ended with {process.returncode}: an application saw an error")

    def stop(self) -> None:
        """Let them finish what they are doing. Raises DemoError if one of them had failed."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.terminate()
        for process in processes:
            if process.wait(30) != 0:
                raise DemoError(f"a writer ended with {process.returncode}: an application saw an error")

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def inside(source: str, target: str | None, work: Path) -> int:
    copy = target or str(work / "copy")
    # Opened before the mount covers it: the way to the storage below, past everything of ours.
    below = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    entries, size = measure(source, copy)
    console.print(f"Protecting {source}: {count_text(entries)} entries, {bytes_text(size)}. Copy: {copy}\n")

    with ExitStack() as stack:
        stack.callback(os.close, below)
        target_agent, source_agent = Agent(work, "target"), Agent(work, "source")
        for agent in (target_agent, source_agent):
            stack.callback(agent.stop)
            agent.start()
        stack.callback(show_warnings, source_agent, target_agent)
        stack.callback(unmount, source)
        os.makedirs(copy, exist_ok=True)

        started_s = time.monotonic()
        connection = source_agent.dtctl("protect", source, f"127.0.0.1:{target_agent.port}:{copy}")
        con = str(connection["id"])
        writers_directory = os.path.join(source, WORK_NAME)
        writers = Writers(writers_directory, work)
        stack.callback(writers.kill)
        writers.start()
        mirror_s, operations_at_end, mirror = watch(source_agent.client, con, writers, started_s)
        writers.stop()
        operations = writers.operations

        source_agent.dtctl("wait", con, "--timeout", "120")
        latencies_ms = measure_latency(writers_directory, os.path.join(copy, WORK_NAME))
        # A file's time is journaled once it has been quiet: then "drained" means equal in times, too.
        time.sleep(QUIET_MTIME_S + 0.5)
        status = source_agent.dtctl("wait", con, "--timeout", "120")

        console.print("\nComparing with scripts/compare_trees.py, which shares no code with the agents:")
        results = [
            compare(
                "storage below the mount, with the copy", f"/proc/self/fd/{below}/.", copy, pass_fds=(below,)
            ),
            compare("mount, with the copy (names and attributes)", source, copy, "--no-content"),
        ]
        show_figures(
            entries=results[0]["entries"],
            compared=results[0]["bytes"],
            mirror=mirror,
            mirror_s=mirror_s,
            during=operations_at_end,
            operations=operations,
            status=status,
            latencies_ms=latencies_ms,
        )
        console.print()
        equal = all(not result["difference_count"] and not result["errors"] for result in results)

        # Cleaning up is replicated like everything else.
        shutil.rmtree(writers_directory)
        source_agent.dtctl("wait", con, "--timeout", "120")
        if os.path.lexists(os.path.join(copy, WORK_NAME)):
            raise DemoError("the writers' directory was removed from the source, but not from the target")
        source_agent.dtctl("disconnect", con)
        source_agent.dtctl("mount", "remove", source)
    elapsed = seconds_text(time.monotonic() - STARTED_S)
    if equal:
        console.print(
            f"\nSource and copy are equal. Everything is taken down, after {elapsed}.", style="bold green"
        )
        return 0
    console.print("\nSource and copy DIFFER.", style="bold red")
    return 1


def measure(source: str, copy: str) -> tuple[int, int]:
    """Entries and bytes of the source. Raises DemoError if the copy has no room for them."""
    entries = size = used = 0
    for directory, directories, files in os.walk(source):
        entries += len(directories) + len(files)
        for name in files:
            try:
                state = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:
                continue
            size += state.st_size
            used += state.st_blocks * 512
    parent = os.path.dirname(copy)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    free = shutil.disk_usage(parent).free
    if used * 1.05 > free:
        raise DemoError(
            f"{source} needs {bytes_text(used)} and {parent} has {bytes_text(free)} left; name DST="
        )
    return entries, size


def watch(client: Client, con: str, writers: Writers, started_s: float) -> tuple[float, int, dict[str, Any]]:
    """Show the mirror's progress until it is done and the writers have worked for a while.

    Returns the mirror's seconds, the writers' operations until its end, and its last progress.
    """
    mirror_s: float | None = None
    during = 0
    mirror: dict[str, Any] = {}
    last_change_s, last_seen = time.monotonic(), ""
    with live() as update:
        while mirror_s is None or time.monotonic() - started_s < WRITING_MIN_S:
            time.sleep(0.2)
            if writers.running and time.monotonic() - started_s > WRITING_MAX_S:
                writers.stop()
            writers.check()
            status = client.get("connections", con)
            now_s = time.monotonic()
            if mirror_s is None and status["target_data_state"] == "OK" and status["mirror_status"] == "Idle":
                mirror_s, during, mirror = now_s - started_s, writers.operations, status["mirror"]
            seen = json.dumps([status["mirror"], status["sent_bytes"]])
            if seen != last_seen:
                last_change_s, last_seen = now_s, seen
            elif now_s - last_change_s > STALL_S:
                raise DemoError(f"no progress for {STALL_S:.0f} s; status: {json.dumps(status)}")
            writing = f"writers: {count_text(writers.operations)} operations, queued: {status['queued_ops']}"
            update(status, writing)
    return mirror_s, during, mirror


@contextmanager
def live() -> Iterator[Callable[[dict[str, Any], str], None]]:
    """A live view on a terminal; a line now and then elsewhere."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as view:

            def redraw(status: dict[str, Any], writing: str) -> None:
                view.update(Group(Text(), render.mirror_bar(status), Text(writing)), refresh=True)

            yield redraw
        return
    last_s = 0.0

    def log(status: dict[str, Any], writing: str) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= 2.0:
            last_s = time.monotonic()
            done = status["mirror"]["done_files"]
            print(f"  mirror {render.mirror_text(status)}: {done} files; {writing}", flush=True)

    yield log


def measure_latency(source: str, copy: str) -> list[float]:
    """Milliseconds from the start of a 4 KiB write on the source until the target's file has it."""
    name, samples = "latency", []
    with open(os.path.join(source, name), "wb", buffering=0) as file:
        file.write(bytes(4096))
        arrived = os.path.join(copy, name)
        deadline = time.monotonic() + 30
        while not os.path.exists(arrived) or os.stat(arrived).st_size != 4096:
            if time.monotonic() > deadline:
                raise DemoError("a new file did not arrive on the target within 30 s")
            time.sleep(0.01)
        target = os.open(arrived, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for number in range(1, LATENCY_SAMPLES + 1):
                block = number.to_bytes(8, "big") + bytes(4088)
                start = time.perf_counter()
                os.pwrite(file.fileno(), block, 0)
                while os.pread(target, 8, 0) != block[:8]:
                    if time.perf_counter() - start > 30:
                        raise DemoError("a write did not arrive on the target within 30 s")
                    time.sleep(0.0001)
                samples.append((time.perf_counter() - start) * 1000)
                time.sleep(0.005)
        finally:
            os.close(target)
    return samples


def compare(what: str, a: str, b: str, *options: str, pass_fds: tuple[int, ...] = ()) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPTS / "compare_trees.py"), a, b, "--json", *options]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, pass_fds=pass_fds)
    if not result.stdout:
        raise DemoError(f"the comparison failed with {result.returncode}")
    found = cast(dict[str, Any], json.loads(result.stdout))
    good = not found["difference_count"] and not found["errors"]
    console.print(
        f"  {what}: {count_text(found['entries'])} entries, {bytes_text(found['bytes'])},"
        f" {found['difference_count']} differences, {len(found['errors'])} errors ({found['seconds']:.1f} s)",
        style="green" if good else "bold red",
    )
    for difference in found["differences"]:
        console.print(Text("    {path}: {what}: {a} | {b}".format(**difference)))
    for error in found["errors"][:20]:
        console.print(Text(f"    {error}"))
    return found


def show_figures(
    *,
    entries: int,
    compared: int,
    mirror: dict[str, Any],
    mirror_s: float,
    during: int,
    operations: int,
    status: dict[str, Any],
    latencies_ms: list[float],
) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    ordered = sorted(latencies_ms)
    median, late = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    for label, value in (
        ("entries compared", f"{count_text(entries)}, {bytes_text(compared)} of content"),
        ("mirror", f"{count_text(mirror['done_files'])} files in {seconds_text(mirror_s)}"),
        ("sent by the mirror", bytes_text(status["sent_mirror_bytes"])),
        ("writers' operations", f"{count_text(operations)}, {count_text(during)} of them during the mirror"),
        ("change to target", f"median {median:.2f} ms, 99th percentile {late:.2f} ms (4 KiB writes, idle)"),
    ):
        table.add_row(Text(label, style="bold"), value)
    console.print()
    console.print(table)


def show_warnings(*agents: Agent) -> None:
    """What the agents themselves found remarkable: nothing, on a good day."""
    for agent in agents:
        try:
            events = agent.client.get("events")
        except ReplicatorError as error:
            console.print(Text(f"{agent.name}: {error}", style="red"))
            continue
        for event in events:
            if event["severity"] != "info":
                console.print(Text(f"{agent.name}: {event['severity']}: {event['text']}", style="yellow"))


def unmount(source: str) -> None:
    """If the agents did not: whatever went wrong, the demo leaves no mount."""
    while is_fuse(source):
        if not run_quietly("umount", "-l", source):
            raise DemoError(f"{source} is still mounted; run 'umount -l {source}'")


def show_command(*words: str) -> None:
    console.print(Text(f"{time.monotonic() - STARTED_S:6.1f} s  $ {' '.join(words)}", style="dim"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("--source", default="/usr/share")
    parser.add_argument("--target")
    parser.add_argument("--host-mounts", action="store_true")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.inside:
            return inside(options.source, options.target, Path(options.inside))
        return outside(options)
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything is taken down.")
        return 130
    except (DemoError, ReplicatorError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
