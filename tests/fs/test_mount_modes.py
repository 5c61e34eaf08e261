"""Options of a mount, on real mounts: whatever the mode, opens succeed, programs see each other's data, and
records say what happened. Programs, captures that are killed, and options that change, in every mode.
"""

import contextlib
import itertools
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from kit.mount import CALL_TIMEOUT_S, CaptureMount, replace_by_kill, replace_in_order, shown

from replicator.errors import ReplicatorError
from replicator.fs import calls
from replicator.mount_options import DEFAULTS, MountOptions
from replicator.ops import Kind, Record

KIB = 1024
FROZEN_S = 5.0
DIRECT = MountOptions(writes="direct")
PASSTHROUGH = MountOptions(reads="passthrough")
BOTH = MountOptions(writes="direct", reads="passthrough")
ALL_MODES = [
    pytest.param(DEFAULTS, id="default"),
    pytest.param(DIRECT, id="direct"),
    pytest.param(PASSTHROUGH, id="passthrough"),
    pytest.param(BOTH, id="both"),
    pytest.param(MountOptions(writes="direct", attribute_timeout=0.0, entry_timeout=0.0), id="no timeouts"),
]
MODES = ALL_MODES[:4]
Start = Callable[[MountOptions], CaptureMount]


def kernel_version() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


needs_direct = pytest.mark.skipif(kernel_version() < (6, 18), reason="writes=direct needs Linux 6.18")
pytestmark = [pytest.mark.fs, needs_direct]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[CaptureMount] = []

    def start_with(options: MountOptions) -> CaptureMount:
        mount = CaptureMount(tmp_path, settings={"binding": "kernel", "options": options})
        made.append(mount)
        return mount.start().attach()

    yield start_with
    for mount in made:
        mount.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    os.chmod(path, 0o755)
    return path


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def doubtful(records: list[Record]) -> list[bytes]:
    return [record.path for record in records if record.kind == Kind.DOUBT]


def with_options(mount: CaptureMount, options: MountOptions) -> None:
    mount.settings = msgspec.structs.replace(mount.settings, options=options)


@contextlib.contextmanager
def frozen(mount: CaptureMount) -> Iterator[None]:
    """What works within needs no capture."""
    assert mount.process is not None
    process, needed = mount.process, threading.Event()

    def thaw() -> None:  # else whoever needs it could not even be killed
        needed.set()
        process.send_signal(signal.SIGCONT)

    timer = threading.Timer(FROZEN_S, thaw)
    process.send_signal(signal.SIGSTOP)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        process.send_signal(signal.SIGCONT)
    assert not needed.is_set()


# --- what the modes are for ---


@pytest.mark.parametrize(("options", "count"), [(DEFAULTS, 2), (DIRECT, 1)])
def test_a_direct_write_is_one_record(start: Start, options: MountOptions, count: int) -> None:
    mount = start(options)
    with opened(mount.mountpoint / "f", os.O_WRONLY | os.O_CREAT) as descriptor:
        assert os.pwrite(descriptor, bytes(6000), 1000) == 6000
    writes = [text for text in shown(mount.records()) if text.startswith("WRITE")]
    assert len(writes) == count
    assert count == 2 or writes == ["WRITE f 6000@1000"]


def test_a_passed_file_is_read_and_mapped_without_capture(start: Start) -> None:
    mount = start(PASSTHROUGH)
    path = mount.mountpoint / "f"
    path.write_bytes(b"x" * 5000 + b"end")
    time.sleep(0.1)  # for the writer's release
    with (
        opened(path, os.O_RDONLY) as descriptor,
        mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapping,
        frozen(mount),
    ):
        assert os.pread(descriptor, 10, 5000) == b"end"
        assert mapping[4999:] == b"xend"


def test_programs_run_from_passed_files(start: Start) -> None:
    mount = start(BOTH)
    program = mount.mountpoint / "true"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    for _ in range(3):
        subprocess.run([program], check=True, timeout=20)


def test_where_the_storage_lies_on_another_files_are_cached(start: Start, tmp_path: Path) -> None:
    layers = {name: tmp_path / name for name in ("lower", "upper", "work", "src")}
    for path in layers.values():
        path.mkdir()
    (layers["lower"] / "f").write_bytes(b"content")
    options = f"lowerdir={layers['lower']},upperdir={layers['upper']},workdir={layers['work']}"
    made = subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", layers["src"]], check=False)
    if made.returncode:
        pytest.skip("no overlayfs here")
    try:
        mount = start(PASSTHROUGH)
        assert (mount.mountpoint / "f").read_bytes() == b"content"
        assert "cannot be read past this process" in mount.log()
        assert mount.stop() == 0
    finally:
        subprocess.run(["umount", "-l", layers["src"]], check=False)


@pytest.mark.parametrize(("options", "seen"), [(DEFAULTS, 1), (MountOptions(attribute_timeout=0.0), 2)])
def test_without_a_timeout_attributes_are_asked_for(start: Start, options: MountOptions, seen: int) -> None:
    mount = start(options)
    path = mount.mountpoint / "f"
    path.write_bytes(b"1")
    assert path.stat().st_size == 1
    below = mount.call_for_descriptor("root")
    try:
        with opened(Path(f"/proc/self/fd/{below}/f"), os.O_WRONLY) as descriptor:
            os.write(descriptor, b"22")  # behind the mount's back
    finally:
        os.close(below)
    assert path.stat().st_size == seen


@pytest.mark.parametrize(("options", "there"), [(DEFAULTS, False), (MountOptions(entry_timeout=0.0), True)])
def test_without_a_timeout_names_are_asked_for(start: Start, options: MountOptions, there: bool) -> None:
    mount = start(options)
    assert not (mount.mountpoint / "f").exists()
    below = mount.call_for_descriptor("root")
    try:
        os.close(
            os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=os.open(f"/proc/self/fd/{below}", os.O_RDONLY))
        )
    finally:
        os.close(below)
    assert (mount.mountpoint / "f").exists() == there


@pytest.mark.soak
@pytest.mark.timeout_s(180)
def test_the_kernel_ends_a_mount_whose_capture_does_not_answer(start: Start) -> None:
    mount = start(MountOptions(request_timeout=1))  # the kernel looks every 15 s
    assert mount.process is not None
    mount.process.send_signal(signal.SIGSTOP)
    with pytest.raises(OSError, match=r"not connected|abort"):
        os.listdir(mount.mountpoint)


# --- who may be open together ---


def shared(descriptor: int, access: int) -> mmap.mmap | None:
    if access == os.O_WRONLY:
        return None
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if access == os.O_RDWR else 0)
    return mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=prot)


ACCESSES = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)


@pytest.mark.parametrize("options", MODES)
def test_whoever_comes_first_all_open_and_map_and_see_each_other(
    start: Start, target: Path, options: MountOptions
) -> None:
    mount = start(options)
    number = 0
    for accesses in itertools.product(ACCESSES, repeat=3):
        path = mount.mountpoint / "-".join(map(str, accesses))
        path.write_bytes(bytes(8192))
        time.sleep(0.01)
        handles = []
        for access in accesses:
            descriptor = os.open(path, access)
            handles.append((descriptor, access, shared(descriptor, access)))
        for writer, writer_access, stored in handles:
            if writer_access == os.O_RDONLY:
                continue
            for store in (False, True):
                if store and stored is None:
                    continue
                number += 1
                data = f"{number:08}".encode()
                if stored is not None and store:
                    stored[4090:4098] = data
                else:
                    os.pwrite(writer, data, 4090)
                for reader, access, mapping in handles:
                    if access != os.O_WRONLY:
                        assert os.pread(reader, 8, 4090) == data, (accesses, writer_access, store)
                        assert mapping is not None
                        assert mapping[4090:4098] == data, (accesses, writer_access, store)
        for descriptor, _, mapping in handles:
            if mapping is not None:
                mapping.close()
            os.close(descriptor)
        if any(accesses):
            assert path.read_bytes()[4090:4098] == data
    time.sleep(0.5)
    records = mount.records()
    mount.assert_replays(records, target, doubtful(records))
    if options.reads == "cached":
        assert not doubtful(records)


# --- random operations ---


class Random:
    """Random operations on one file through several open files, against its content as it should be."""

    SIZE_MAX = 200_000

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.content = bytearray()
        self.handles: list[tuple[int, int, mmap.mmap | None]] = []
        self.buffer = mmap.mmap(-1, 64 * KIB)  # for O_DIRECT
        self.log: list[str] = []
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

    def run(self, count: int) -> None:
        steps = (
            [self.open] * 4
            + [self.close] * 3
            + [self.write] * 8
            + [self.read] * 8
            + [self.store] * 3
            + [self.look, self.look, self.truncate, self.punch, self.append, self.sync, self.write_aligned]
        )
        for _ in range(count):
            step = self.chance.choice(steps)
            self.log.append(step.__name__)
            step()
        while self.handles:
            self.close()
        assert self.path.read_bytes() == self.content, self.log[-30:]

    def pick(self, *accesses: int) -> tuple[int, int, mmap.mmap | None] | None:
        found = [handle for handle in self.handles if handle[1] & os.O_ACCMODE in accesses]
        return self.chance.choice(found) if found else None

    def place(self) -> tuple[int, bytes]:
        offset = self.chance.randrange(self.SIZE_MAX)
        size = self.chance.choice([1, 100, 4096, self.chance.randrange(1, 40_000)])
        return offset, self.chance.randbytes(min(size, self.SIZE_MAX - offset))

    def put(self, offset: int, data: bytes) -> None:
        self.content.extend(bytes(max(0, offset + len(data) - len(self.content))))
        self.content[offset : offset + len(data)] = data

    # --- steps ---

    def open(self) -> None:
        if len(self.handles) >= 5:
            self.close()
        access = self.chance.choice([os.O_RDONLY, os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
        more = self.chance.choice([0, 0, 0, os.O_DIRECT, os.O_SYNC, os.O_CREAT])
        if access != os.O_RDONLY and self.chance.random() < 0.1:
            more |= os.O_TRUNC
            self.content.clear()
        descriptor = os.open(self.path, access | more, 0o644)
        self.log.append(f"{descriptor}: {access} {more:#x}")
        self.handles.append((descriptor, access | more, None))

    def close(self) -> None:
        if self.handles:
            descriptor, _, mapping = self.handles.pop(self.chance.randrange(len(self.handles)))
            os.close(descriptor)  # a mapping may outlive it
            if mapping is not None:
                mapping.close()

    def write(self) -> None:
        handle = self.pick(os.O_WRONLY, os.O_RDWR)
        if handle is None or handle[1] & os.O_DIRECT:
            return
        offset, data = self.place()
        assert os.pwrite(handle[0], data, offset) == len(data)
        self.put(offset, data)

    def write_aligned(self) -> None:
        handle = self.pick(os.O_WRONLY, os.O_RDWR)
        if handle is None:
            return
        offset = self.chance.randrange(0, self.SIZE_MAX, 4096)
        size = self.chance.randrange(1, 5) * 4096
        data = self.chance.randbytes(size)
        self.buffer[:size] = data
        assert os.pwritev(handle[0], [memoryview(self.buffer)[:size]], offset) == size
        self.put(offset, data)

    def append(self) -> None:
        if len(self.content) < self.SIZE_MAX:
            data = self.chance.randbytes(self.chance.randrange(1, 5000))
            with opened(self.path, os.O_WRONLY | os.O_APPEND) as descriptor:
                assert os.write(descriptor, data) == len(data)
            self.content += data

    def read(self) -> None:
        handle = self.pick(os.O_RDONLY, os.O_RDWR)
        if handle is None:
            return
        offset = self.chance.randrange(0, self.SIZE_MAX, 4096)
        size = self.chance.randrange(1, 16) * 4096
        count = os.preadv(handle[0], [memoryview(self.buffer)[:size]], offset)
        assert self.buffer[:count] == self.content[offset : offset + size], (handle, offset, self.log[-30:])

    def mapped(self, *accesses: int) -> mmap.mmap | None:
        """Of the whole file as it is now."""
        handle = self.pick(*accesses)
        if handle is None or not self.content:
            return None
        descriptor, flags, mapping = handle
        if mapping is not None and (len(mapping) > len(self.content) or self.chance.random() < 0.3):
            mapping.close()
            mapping = None
        if mapping is None:
            mapping = shared(descriptor, flags & os.O_ACCMODE)
        self.handles[self.handles.index(handle)] = descriptor, flags, mapping
        return mapping

    def store(self) -> None:
        mapping = self.mapped(os.O_RDWR)
        if mapping is not None:
            offset = self.chance.randrange(len(mapping))
            data = self.chance.randbytes(min(self.chance.randrange(1, 9000), len(mapping) - offset))
            mapping[offset : offset + len(data)] = data
            self.put(offset, data)

    def look(self) -> None:
        mapping = self.mapped(os.O_RDONLY, os.O_RDWR)
        if mapping is not None:
            assert mapping[:] == self.content[: len(mapping)], self.log[-30:]

    def truncate(self) -> None:
        size = self.chance.randrange(self.SIZE_MAX)
        handle = self.pick(os.O_WRONLY, os.O_RDWR)
        if handle is None:
            os.truncate(self.path, size)
        else:
            os.ftruncate(handle[0], size)
        self.content[:] = self.content[:size].ljust(size, b"\0")

    def punch(self) -> None:
        handle = self.pick(os.O_WRONLY, os.O_RDWR)
        if handle is not None:
            offset, data = self.place()
            calls.fallocate(handle[0], calls.FALLOC_PUNCH_HOLE | calls.FALLOC_KEEP_SIZE, offset, len(data))
            end = min(offset + len(data), len(self.content))
            if end > offset:
                self.content[offset:end] = bytes(end - offset)

    def sync(self) -> None:
        if self.handles:
            os.fsync(self.chance.choice(self.handles)[0])


@pytest.mark.parametrize("options", ALL_MODES)
@pytest.mark.parametrize("seed", range(2))
def test_random_operations(start: Start, target: Path, options: MountOptions, seed: int) -> None:
    mount = start(options)
    for number in range(3):
        Random(mount.mountpoint / f"f{number}", 100 * seed + number).run(400)
    time.sleep(0.3)
    records = mount.records()
    mount.assert_replays(records, target, doubtful(records))
    if options.reads == "cached":
        assert not doubtful(records)


@pytest.mark.soak
@pytest.mark.timeout_s(3600)
@pytest.mark.parametrize("options", ALL_MODES)
def test_many_random_operations(start: Start, target: Path, options: MountOptions) -> None:
    mount = start(options)
    for seed in range(100):
        Random(mount.mountpoint / f"f{seed}", 10_000 + seed).run(2000)
        os.unlink(mount.mountpoint / f"f{seed}")
        mount.records()


@pytest.mark.parametrize("options", MODES)
def test_readers_beside_a_writer_never_see_less_than_before(
    start: Start, target: Path, options: MountOptions
) -> None:
    """In threads: each page has a number that only grows; readers open and close all the time."""
    mount = start(options)
    path = mount.mountpoint / "f"
    pages, rounds = 16, 60
    path.write_bytes(bytes(pages * 4096))
    written = [0] * pages
    problems: list[str] = []
    ends = threading.Event()

    def read(flags: int) -> None:
        while not ends.is_set():
            with opened(path, flags) as descriptor:
                for page in range(pages):
                    least = written[page]
                    found = int.from_bytes(os.pread(descriptor, 8, page * 4096), "little")
                    if found < least:
                        problems.append(f"page {page}: {found} after {least}")

    readers = [
        threading.Thread(target=read, args=(flags,)) for flags in (os.O_RDONLY, os.O_RDONLY, os.O_RDWR)
    ]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, rounds):
            with opened(path, os.O_WRONLY) as descriptor:
                for page in range(pages):
                    os.pwrite(descriptor, number.to_bytes(8, "little") * 512, page * 4096)
                    written[page] = number
    finally:
        ends.set()
        for reader in readers:
            reader.join()
    assert not problems
    time.sleep(0.5)
    records = mount.records()
    mount.assert_replays(records, target, doubtful(records))


def test_stores_that_cannot_be_seen_are_doubted(start: Start, target: Path) -> None:
    mount = start(PASSTHROUGH)
    path = mount.mountpoint / "f"
    path.write_bytes(bytes(8192))
    time.sleep(0.1)
    with (
        opened(path, os.O_RDONLY) as reader,
        opened(path, os.O_RDWR) as writer,
        mmap.mmap(writer, 0) as mapping,
    ):
        mapping[:6] = b"stored"
        assert os.pread(reader, 6, 0) == b"stored"
        records = mount.records()
        assert not doubtful(records)
    deadline = time.monotonic() + 20
    while b"f" not in doubtful(records):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        records += mount.records()
    assert path.read_bytes()[:6] == b"stored"  # and nothing older that was cached
    # From then on it is captured as ever.
    with (
        opened(path, os.O_RDONLY) as reader,
        opened(path, os.O_RDWR) as writer,
        mmap.mmap(writer, 0) as mapping,
    ):
        mapping[:6] = b"STORED"
        assert os.pread(reader, 6, 0) == b"STORED"
        mapping.flush()
    time.sleep(0.3)
    assert [text for text in shown(mount.records()) if text.startswith("WRITE")] == ["WRITE f 4096@0"]


# --- successors ---


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("replace", [replace_by_kill, replace_in_order])
def test_what_is_open_in_any_mode_stays_open(
    start: Start, target: Path, options: MountOptions, replace: Callable[[CaptureMount], None]
) -> None:
    mount = start(options)
    base = mount.mountpoint
    for name in ("read", "written", "mixed"):
        (base / name).write_bytes(name.encode() * 1000)
    time.sleep(0.1)
    reader = os.open(base / "read", os.O_RDONLY)
    writer = os.open(base / "written", os.O_RDWR)
    mixed = os.open(base / "mixed", os.O_RDONLY), os.open(base / "mixed", os.O_WRONLY)
    for number in range(3):
        replace(mount)
        data = f"after {number}".encode()
        others = [
            (os.open(base / name, access), access, name)
            for name in ("read", "written", "mixed")
            for access in (os.O_RDONLY, os.O_WRONLY)
        ]
        for descriptor, access, _ in others:
            if access == os.O_WRONLY:
                assert os.pwrite(descriptor, data, 50) == len(data)
        for descriptor in (
            reader,
            writer,
            mixed[0],
            *(d for d, access, _ in others if access == os.O_RDONLY),
        ):
            assert os.pread(descriptor, len(data), 50) == data
        for descriptor, _, _ in others:
            os.close(descriptor)
        os.pwrite(writer, data, 20)
        os.pwrite(mixed[1], data, 20)
        assert (base / "written").read_bytes()[20 : 20 + len(data)] == data
        assert os.pread(mixed[0], len(data), 20) == data
    for descriptor in (reader, writer, *mixed):
        os.close(descriptor)
    for name in ("read", "written", "mixed"):
        with opened(base / name, os.O_RDWR) as descriptor:
            os.pwrite(descriptor, b"end", 0)
        assert (base / name).read_bytes()[:3] == b"end"
    records = mount.records()
    assert not doubtful(records)
    mount.assert_replays(records, target)


def test_options_change_without_unmounting(start: Start, target: Path) -> None:
    mount = start(DEFAULTS)
    path = mount.mountpoint / "f"
    path.write_bytes(bytes(20_000))
    held = []
    for number, options in enumerate([PASSTHROUGH, DIRECT, BOTH, DEFAULTS, BOTH, PASSTHROUGH, DEFAULTS]):
        held.append(os.open(path, os.O_RDONLY))
        mount.call("check_options", options={"reads": "passthrough", "writes": "direct"})
        with_options(mount, options)
        replace_in_order(mount)
        with opened(path, os.O_WRONLY) as writer:
            os.pwrite(writer, b"%d" % number, 4095)
        with opened(path, os.O_RDONLY) as reader:
            for descriptor in (*held, reader):
                assert os.pread(descriptor, 1, 4095) == b"%d" % number
        if number % 2:
            while held:
                os.close(held.pop())
            time.sleep(0.1)
    for descriptor in held:
        os.close(descriptor)
    records = mount.records()
    assert not doubtful(records)
    mount.assert_replays(records, target)


def test_a_reload_does_not_bring_what_was_not_agreed(start: Start) -> None:
    mount = start(DEFAULTS)
    mount.call("check_options", options={})
    mount.call("check_options", options={"reads": "passthrough"})
    with pytest.raises(ReplicatorError, match="must be one of"):
        mount.call("check_options", options={"rates": "passthrough"})


# A capture that ends when it is about to tell the kernel that "passed" is open.
UNTOLD = """
import os, signal, sys
from replicator.fs.open_modes import OpenModes
real = OpenModes.opened
def opened(self, *arguments):
    answer = real(self, *arguments)
    if answer[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
OpenModes.opened = opened
from replicator.capture.process import main
sys.exit(main())
"""


def test_what_the_kernel_was_not_told_is_not_open(tmp_path: Path) -> None:
    settings = {"binding": "kernel", "options": PASSTHROUGH}
    mount = CaptureMount(tmp_path, settings=settings, program=("-c", UNTOLD))
    try:
        mount.start()
        path = mount.mountpoint / "f"
        path.write_bytes(b"content")
        time.sleep(0.1)
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
        reader.start()
        assert mount.process is not None
        mount.process.wait(CALL_TIMEOUT_S)
        mount.program = ("-m", "replicator.capture.process")
        mount.start().attach()
        reader.join(CALL_TIMEOUT_S)
        assert found == [b"content"]
        time.sleep(0.1)
        with opened(path, os.O_RDWR) as writer, mmap.mmap(writer, 0) as mapping:
            mapping[:3] = b"CON"
        assert path.read_bytes() == b"CONtent"
        time.sleep(0.2)
        texts = shown(mount.records())
        assert "WRITE f 7@0" in texts and "DOUBT f" not in texts
    finally:
        mount.close()


# Opens, reads, writes and closes files of its own and of others, until its input ends.
OPENINGS = """
import os, random, select, sys
root, seed = sys.argv[1], int(sys.argv[2])
chance = random.Random(seed)
done, mine = 0, f"{root}/own-{seed}"
os.close(os.open(mine, os.O_WRONLY | os.O_CREAT))
content = bytearray(3000)
with open(mine, "wb") as file: file.write(content)
held = []
while not select.select([sys.stdin], [], [], 0)[0]:
    done += 1
    fd = os.open(f"{root}/{chance.randrange(3)}", os.O_RDONLY)
    assert len(os.pread(fd, 4000, 0)) == 3000
    held.append(fd)
    if chance.random() < 0.3:
        place = chance.randrange(2999)
        content[place] = done % 256
        fd = os.open(mine, os.O_WRONLY)
        assert os.pwrite(fd, content[place:place + 1], place) == 1
        held.append(fd)
    fd = os.open(mine, os.O_RDONLY)
    assert os.pread(fd, 4000, 0) == content
    held.append(fd)
    while len(held) > chance.randrange(8):
        os.close(held.pop(chance.randrange(len(held))))
print(done)
"""


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("replace", [replace_by_kill, replace_in_order])
def test_files_are_opened_while_captures_come_and_go(
    start: Start, target: Path, options: MountOptions, replace: Callable[[CaptureMount], None]
) -> None:
    mount = start(options)
    for number in range(3):
        (mount.mountpoint / str(number)).write_bytes(bytes(3000))
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", OPENINGS, mount.mountpoint, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    try:
        chance = random.Random(5)
        for _ in range(5):
            time.sleep(chance.uniform(0.05, 0.3))
            replace(mount)
        for program in programs:
            done, complaint = program.communicate("end", timeout=CALL_TIMEOUT_S)
            assert program.returncode == 0, complaint
            assert int(done) > 50
    finally:
        for program in programs:
            program.kill()
            program.wait(CALL_TIMEOUT_S)
    # Nothing is left that keeps a file from being passed again.
    if options.reads == "passthrough":
        time.sleep(0.2)
        for number in range(3):
            with opened(mount.mountpoint / str(number), os.O_RDONLY) as descriptor, frozen(mount):
                assert len(os.pread(descriptor, 4000, 0)) == 3000
    records = mount.records()
    assert not doubtful(records)
    mount.assert_replays(records, target)
