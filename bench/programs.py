"""What a benchmark of capture runs: system calls one by one, and programs as people use them.

Each takes a file system and returns seconds per operation. What it needs is made at its first run there and
stays for the next.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sysconfig
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
from file_systems import FileSystem

LARGE_BYTES = 64 * harness.MIB
BLOCK = os.urandom(4096)
LARGE = os.urandom(harness.MIB)
CLIENTS = 4  # of pgbench

Program = Callable[[FileSystem], float]


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    blocks: int = 4000
    files: int = 2000
    source_files: int = 600
    inserts: int = 200
    seconds: int = 4  # of what runs for a time
    scale: int = 2  # of pgbench


class Programs:
    """All of them, with what they share: a source tree as an archive and as a repository, both native."""

    def __init__(self, work: Path, sizes: Sizes) -> None:
        self._work = work
        self._sizes = sizes
        self._archive = work / "source.tar"
        self._repository = work / "repository"
        _make_source(self._archive, self._repository, sizes.source_files)

    def all(self) -> dict[str, Program]:
        """By what their operation is. In this order: some use what others have left."""
        programs: dict[str, Program] = {
            "4 KiB write": self.write_blocks,
            "1 MiB write": self.write_large,
            "4 KiB read, cached": self.read_cached,
            "1 MiB read, uncached": self.read_uncached,
            "create, write 2 KiB, close": self.create,
            "stat": self.stat,
            "stat of what is not there": self.stat_absent,
            "unlink": self.unlink,
            "untar of a source tree": self.untar,
            "git clone and status": self.clone,
            "SQLite insert and commit": self.insert,
        }
        if shutil.which("fio"):
            programs["fio randrw 4 KiB"] = self.random_io
        if _postgres() and shutil.which("pgbench"):
            programs[f"pgbench transaction, {CLIENTS} clients"] = self.transact
        return programs

    # --- system calls ---

    def write_blocks(self, files: FileSystem) -> float:
        count = self._sizes.blocks
        descriptor = os.open(files.directory / "blocks", os.O_RDWR | os.O_CREAT)
        start = time.perf_counter()
        for number in range(count):
            os.pwrite(descriptor, BLOCK, number * 7919 % count * len(BLOCK))
        elapsed = time.perf_counter() - start
        os.close(descriptor)
        return elapsed / count

    def write_large(self, files: FileSystem) -> float:
        """To a new file, one after the other."""
        path = files.directory / "large"
        path.unlink(missing_ok=True)
        count = LARGE_BYTES // len(LARGE)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        start = time.perf_counter()
        for number in range(count):
            os.pwrite(descriptor, LARGE, number * len(LARGE))
        elapsed = time.perf_counter() - start
        os.fsync(descriptor)
        os.close(descriptor)
        return elapsed / count

    def read_cached(self, files: FileSystem) -> float:
        count = self._sizes.blocks
        descriptor = os.open(files.directory / "large", os.O_RDONLY)
        while os.read(descriptor, harness.MIB):
            pass
        start = time.perf_counter()
        for number in range(count):
            os.pread(descriptor, len(BLOCK), number * 7919 % count * len(BLOCK))
        elapsed = time.perf_counter() - start
        os.close(descriptor)
        return elapsed / count

    def read_uncached(self, files: FileSystem) -> float:
        """Neither in the cache of the file system nor in that of the storage below, where that is a disk."""
        for path in (files.directory / "large", files.below / "large"):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        descriptor = os.open(files.directory / "large", os.O_RDONLY)
        start = time.perf_counter()
        while os.read(descriptor, harness.MIB):
            pass
        elapsed = time.perf_counter() - start
        os.close(descriptor)
        return elapsed / (LARGE_BYTES // harness.MIB)

    def create(self, files: FileSystem) -> float:
        directory = files.directory / "small"
        directory.mkdir(exist_ok=True)
        start = time.perf_counter()
        for number in range(self._sizes.files):
            descriptor = os.open(directory / f"f{number}", os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, BLOCK[:2048])
            os.close(descriptor)
        return (time.perf_counter() - start) / self._sizes.files

    def stat(self, files: FileSystem) -> float:
        directory = files.directory / "small"
        start = time.perf_counter()
        for number in range(self._sizes.files):
            os.stat(directory / f"f{number}")
        return (time.perf_counter() - start) / self._sizes.files

    def stat_absent(self, files: FileSystem) -> float:
        directory, now = files.directory / "small", time.monotonic_ns()
        start = time.perf_counter()
        for number in range(self._sizes.files):
            os.path.exists(directory / f"{now}-{number}")
        return (time.perf_counter() - start) / self._sizes.files

    def unlink(self, files: FileSystem) -> float:
        directory = files.directory / "small"
        start = time.perf_counter()
        for number in range(self._sizes.files):
            os.unlink(directory / f"f{number}")
        return (time.perf_counter() - start) / self._sizes.files

    # --- programs ---

    def untar(self, files: FileSystem) -> float:
        directory = files.directory / "untar"
        directory.mkdir()
        elapsed = _timed("tar", "xf", self._archive, "-C", directory)
        shutil.rmtree(directory)
        return elapsed

    def clone(self, files: FileSystem) -> float:
        directory = files.directory / "clone"
        elapsed = _timed("git", "clone", "-q", "--no-hardlinks", self._repository, directory)
        elapsed += _timed("git", "-C", directory, "status", "--short")
        shutil.rmtree(directory)
        return elapsed

    def insert(self, files: FileSystem) -> float:
        path = files.directory / "database"
        path.unlink(missing_ok=True)
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("create table t (n integer primary key, text)")
        start = time.perf_counter()
        for number in range(self._sizes.inserts):
            database.execute("insert into t values (?, ?)", (number, "text" * 25))
        elapsed = time.perf_counter() - start
        database.close()
        return elapsed / self._sizes.inserts

    def random_io(self, files: FileSystem) -> float:
        """Reads and writes, half and half."""
        report = self._work / "fio.json"
        command = ["fio", "--name=random", f"--directory={files.directory}", "--rw=randrw", "--bs=4k"]
        command += ["--size=32m", "--time_based", f"--runtime={self._sizes.seconds}", "--ioengine=psync"]
        command += ["--fallocate=none", "--output-format=json", f"--output={report}"]
        _timed(*command)
        (job,) = json.loads(report.read_text())["jobs"]
        return 1 / float(job["read"]["iops"] + job["write"]["iops"])

    def transact(self, files: FileSystem) -> float:
        """TPC-B, by a server of its own."""
        if not files.for_all_users:
            raise harness.BenchError("PostgreSQL does not run as root")
        data, socket = files.directory / "postgres", self._work / "socket"
        tools = _postgres()
        assert tools is not None
        socket.mkdir(exist_ok=True)
        shutil.chown(socket, "postgres", "postgres")
        control = (tools / "pg_ctl", "-s", "-w", "-D", data)
        is_new = not data.exists()
        if is_new:
            data.mkdir(mode=0o700)
            shutil.chown(data, "postgres", "postgres")
            _as_postgres(tools / "initdb", "-N", "-A", "trust", "-D", data)
        options = f"-k {socket} -c listen_addresses="
        _as_postgres(*control, "-l", socket / "log", "-o", options, "start")
        try:
            if is_new:
                _as_postgres("pgbench", "-h", socket, "-i", "-q", "-s", str(self._sizes.scale), "postgres")
            run = ["-c", str(CLIENTS), "-j", "2", "-T", str(self._sizes.seconds)]
            text = _as_postgres("pgbench", "-h", socket, *run, "postgres")
        finally:
            _as_postgres(*control, "-m", "fast", "stop")
        (line,) = [line for line in text.splitlines() if line.startswith("tps = ")]
        return 1 / float(line.split()[2])


def _make_source(archive: Path, repository: Path, count: int) -> None:
    """A tree of sources: what there is of the interpreter's own library, without tests."""
    library = Path(sysconfig.get_paths()["stdlib"])
    foreign = {"test", "tests", "site-packages", "dist-packages", "idlelib"}
    names = sorted(path.relative_to(library) for path in library.rglob("*.py"))
    names = [name for name in names if not foreign & set(name.parts)][:count]
    with tarfile.open(archive, "w") as file:
        for name in names:
            file.add(library / name, name)
    repository.mkdir()
    with tarfile.open(archive) as file:
        file.extractall(repository, filter="data")
    git = ("git", "-C", repository, "-c", "user.name=bench", "-c", "user.email=bench@localhost")
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "sources")):
        _timed(*git, *words)


def _postgres() -> Path | None:
    """Where the programs of the newest PostgreSQL server are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def _as_postgres(*command: str | Path) -> str:
    return _run(command, user="postgres", group="postgres", extra_groups=[], cwd="/")


def _timed(*command: str | Path) -> float:
    start = time.perf_counter()
    _run(command)
    return time.perf_counter() - start


def _run(command: tuple[str | Path, ...], **options: object) -> str:
    result = subprocess.run(  # type: ignore[call-overload]  # options of one of its overloads
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **options
    )
    if result.returncode:
        raise harness.BenchError(f"{Path(command[0]).name}: {result.stderr.strip()[-300:]}")
    return str(result.stdout)
