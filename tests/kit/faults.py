"""Random faults of two hosts under load, and what each of them cost.

    with mixed_load(...) as load:
        campaign = Campaign(hosts, load, seed, scratch)
        for _ in range(300):
            campaign.round()      # one fault, and a look at everything afterwards
        print(campaign.told())

After each fault applications have seen no error, and the copy becomes equal to the source. What went over the
cable meanwhile is compared with what applications changed in that time, and a tree of files that nobody uses
tells whether everything was compared: then the kernel has noted that its directories were read.
"""

import os
import random
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from kit.mixed_load import MIB, Load
from kit.snapshots import beneath, frozen
from kit.stories import check_story
from kit.trees import differences, snapshot
from kit.two_hosts import PROCESSES, TwoHosts
from kit.unused import forget_reads, was_read
from replicator.status import StoryEntry

KIB = 1 << 10
SHORT_S = (0.2, 4.0)
LONG_S = (13.0, 16.0)  # more than a session stays silent before it is given up
LONG_CHANCE = 0.15
STOPPED_APPLICATIONS_MAX_S = 2.0  # they wait for a capture that is stopped
OVERFLOW_BYTES = 80 * MIB  # more than the queue has room for
RECOVERY_S = (0.0, 1.5)  # after a fault that has to be recovered from
CALM_S = (0.0, 1.5)  # of load after a fault
RATIO_MAX = 3
BYTES_PER_FILE_MAX = 64 * KIB


class Outcome(NamedTuple):
    """What one fault cost."""

    kind: str
    detail: str
    converged_s: float  # from the end of the fault on, load included
    sent_bytes: int  # over the cable, with all headers
    written_bytes: int  # by applications, from before the fault until all was equal
    touched_files: int  # in that time; those that are gone are not counted
    full_scan: bool  # directories that nobody uses were read
    mirrors: tuple[str, ...]  # that began

    @property
    def allowed_bytes(self) -> int:
        return RATIO_MAX * self.written_bytes + BYTES_PER_FILE_MAX * self.touched_files

    @property
    def shown(self) -> str:
        return (
            f"{self.kind} ({self.detail}): {self.converged_s:.1f} s, sent {self.sent_bytes / MIB:.2f} MiB;"
            f" written {self.written_bytes / MIB:.2f} MiB, {self.touched_files} files touched,"
            f" {self.allowed_bytes / MIB:.2f} MiB allowed; mirrors {list(self.mirrors)}"
            f"{', FULL SCAN' if self.full_scan else ''}"
        )


# --- faults: each inflicts itself, waits, and heals. Returns what it was, for people. ---


class Scene(NamedTuple):
    """What faults work on."""

    hosts: TwoHosts
    load: Load
    chance: random.Random

    def duration_s(self) -> float:
        long = self.chance.random() < LONG_CHANCE
        return self.chance.uniform(*(LONG_S if long else SHORT_S))


def kill_one(scene: Scene) -> str:
    return _kill(scene, [scene.chance.choice(PROCESSES)])


def kill_two(scene: Scene) -> str:
    while {"capture", "holder"} == set(names := scene.chance.sample(PROCESSES, 2)):
        pass  # each of them is what outlives the other
    return _kill(scene, names)


def _kill(scene: Scene, names: Sequence[str]) -> str:
    killed = scene.hosts.kill(names)
    scene.hosts.restart_killed()
    return " and ".join(killed) or "nobody was there"


def stop_process(scene: Scene) -> str:
    name = scene.chance.choice(PROCESSES)
    process_id, duration_s = scene.hosts.process(name), scene.duration_s()
    if process_id is None:
        return "nobody was there"
    if name == "capture":
        duration_s = min(duration_s, STOPPED_APPLICATIONS_MAX_S)
    with suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGSTOP)
        time.sleep(duration_s)
        os.kill(process_id, signal.SIGCONT)
    return f"{name} for {duration_s:.1f} s"


def cut_network(scene: Scene) -> str:
    duration_s = scene.duration_s()
    with _cut(scene):
        time.sleep(duration_s)
    return f"{duration_s:.1f} s"


@contextmanager
def _cut(scene: Scene) -> Iterator[None]:
    host = scene.chance.choice([scene.hosts.source_host, scene.hosts.target_host])
    host.cut()
    try:
        yield
    finally:
        host.mend()


def half_open(scene: Scene) -> str:
    duration_s = scene.duration_s()
    deaf, other = scene.chance.sample([scene.hosts.source_host, scene.hosts.target_host], 2)
    with deaf.deaf_to(other):
        time.sleep(duration_s)
    return f"{'source' if other is scene.hosts.target_host else 'target'} unheard for {duration_s:.1f} s"


def full_queue(scene: Scene) -> str:
    """The disk of the queue, and its memory, are full: more happens than they have room for."""
    hosts = scene.hosts
    way = scene.chance.choice(["network cut", "receiver stopped", "transmission stopped", "target stopped"])
    if way == "network cut":
        with _cut(scene):
            scene.load.write(OVERFLOW_BYTES)
    elif way == "receiver stopped":
        receiver = hosts.process("receiver")
        with frozen(receiver) if receiver is not None else nullcontext():
            scene.load.write(OVERFLOW_BYTES)
    elif way == "transmission stopped":
        assert hosts.alpha.dtctl("transmit", "stop", hosts.id).code == 0
        scene.load.write(OVERFLOW_BYTES)
        assert hosts.alpha.dtctl("transmit", "start", hosts.id).code == 0
    else:
        hosts.beta.stop()
        assert hosts.beta.dtd("--stop-mounts").code == 0
        scene.load.write(OVERFLOW_BYTES)
        hosts.beta.start()
    return way


def full_target(scene: Scene) -> str:
    """No room for the copy, nor for anything else on the target."""
    hosts, load = scene.hosts, scene.load
    filler, wanted = hosts.disk.path / "filler", load.directory / "large" / "wanted"
    former = wanted.with_name("former")  # kept until there is room again: it would make some
    with open(filler, "wb") as file:
        size = 0
        while (free := hosts.disk.free_bytes) > 4 * MIB:
            size += free - MIB
            os.posix_fallocate(file.fileno(), 0, size)
    try:
        if wanted.exists():
            wanted.rename(former)
        wanted.write_bytes(os.urandom(16 * MIB))
        load.note(16 * MIB)
        deadline_s = time.monotonic() + 15
        while (status := hosts.status["target_status"]) != "Retrying" and time.monotonic() < deadline_s:
            time.sleep(0.1)
        time.sleep(scene.chance.uniform(0, 3))
    finally:
        filler.unlink()
    former.unlink(missing_ok=True)
    return f"target status was {status}"


def target_power(scene: Scene) -> str:
    down_s = scene.chance.uniform(0, 3)
    scene.hosts.lose_target_power()
    time.sleep(down_s)
    scene.hosts.beta.start()
    return f"off for {down_s:.1f} s"


def clean_restart(scene: Scene) -> str:
    """As for an update of the software, or for a reboot of the target."""
    hosts = scene.hosts
    side = scene.chance.choice(["source agent", "target agent", "target host"])
    agent = hosts.alpha if side == "source agent" else hosts.beta
    agent.stop()
    if side == "target host":
        assert agent.dtd("--stop-mounts").code == 0
    time.sleep(scene.chance.uniform(0, 2))
    agent.start()
    return side


def in_a_recovery(scene: Scene) -> str:
    """A second fault, while what the first one left is being repaired."""
    first = scene.chance.choice([full_queue, target_power])(scene)
    time.sleep(scene.chance.uniform(*RECOVERY_S))
    second = scene.chance.choice([kill_one, kill_two, cut_network, full_queue, target_power, clean_restart])
    return f"{first}, then {second.__name__}: {second(scene)}"


Fault = Callable[[Scene], str]
FAULTS: dict[str, tuple[Fault, int]] = {  # and how often, in relation to the others
    "kill -9 of one": (kill_one, 6),
    "kill -9 of two": (kill_two, 6),
    "SIGSTOP": (stop_process, 5),
    "cut network": (cut_network, 4),
    "half-open network": (half_open, 4),
    "full queue disk": (full_queue, 3),
    "full target disk": (full_target, 2),
    "target power loss": (target_power, 4),
    "clean restart": (clean_restart, 2),
    "second fault in a recovery": (in_a_recovery, 4),
}


# --- the campaign ---


class Campaign:
    """`unused`: name of the directory below the source's root that `kit.unused` has built."""

    def __init__(self, hosts: TwoHosts, load: Load, unused: str, scratch: Path, seed: int) -> None:
        self.outcomes: list[Outcome] = []
        self._scene = Scene(hosts, load, random.Random(seed))
        self._unused = unused
        self._scratch = scratch
        self._story_end = -1
        self._mount_id = hosts.mount_id
        self._told_story()

    def round(self, kind: str | None = None) -> Outcome:
        """One fault, of any kind if none is given. Raises AssertionError if anything is wrong then."""
        hosts, load, chance = self._scene.hosts, self._scene.load, self._scene.chance
        names = list(FAULTS)
        (drawn,) = chance.choices(names, [FAULTS[name][1] for name in names])
        kind = kind or drawn
        inflict, _ = FAULTS[kind]
        self._forget_reads()
        began_s, written, sent = time.time(), load.written_bytes, hosts.source_host.sent_bytes
        detail = inflict(self._scene)
        healed_s = time.monotonic()
        time.sleep(chance.uniform(*CALM_S))
        load.assert_running()
        try:
            with load.paused():
                hosts.converged()
                converged_s = time.monotonic() - healed_s
                sent = hosts.source_host.sent_bytes - sent
                written = load.written_bytes - written
                scanned = self._was_read()
                with beneath(hosts.alpha.home, self._mount_id) as below:
                    touched = _touched(Path(below, load.directory.name), began_s)
                    hosts.sync()
                    self._assert_equal(below)
                self._check_applications()
        except AssertionError as error:
            error.add_note(f"round {len(self.outcomes)}: {kind} ({detail})")
            raise
        load.assert_running()
        outcome = Outcome(kind, detail, converged_s, sent, written, touched, scanned, self._told_story())
        self.outcomes.append(outcome)
        print(f"{len(self.outcomes)}: {outcome.shown}", flush=True)
        return outcome

    def _assert_equal(self, below: str) -> None:
        found = differences(snapshot(below), snapshot(self._scene.hosts.copy))
        # To ext4 preallocated blocks are data while they are cached, so a recovery may bring them as zeros.
        preallocating = f"{self._scene.load.directory.name}/files/"
        wrong = [line for line in found if not (line.startswith(preallocating) and ": holes: " in line)]
        assert not wrong, "\n".join(wrong[:50])

    def _check_applications(self) -> None:
        scratch = self._scratch / "copy"
        load = self._scene.load
        problems = load.problems(self._scene.hosts.copy / load.directory.name, scratch)
        shutil.rmtree(scratch)
        assert not problems, problems

    def _forget_reads(self) -> None:
        with beneath(self._scene.hosts.alpha.home, self._mount_id) as below:
            forget_reads(os.path.join(below, self._unused))

    def _was_read(self) -> bool:
        with beneath(self._scene.hosts.alpha.home, self._mount_id) as below:
            return was_read(os.path.join(below, self._unused))

    def _told_story(self) -> tuple[str, ...]:
        """Checks what is new in the story. Returns the mirrors that began."""
        entries = self._scene.hosts.story(self._story_end)
        check_story(msgspec.convert(entries, list[StoryEntry]))
        self._story_end = max((entry["sequence"] for entry in entries), default=self._story_end)
        return tuple(
            entry["reason"]
            for entry in entries
            if entry["dimension"] == "mirror status" and entry["event"] == "mirror begins"
        )

    # --- results ---

    def told(self) -> str:
        """A table, a line per kind of fault."""
        lines = [f"{len(self.outcomes)} faults"]
        for kind in FAULTS:
            if found := [outcome for outcome in self.outcomes if outcome.kind == kind]:
                times = [outcome.converged_s for outcome in found]
                ratios = [outcome.sent_bytes / outcome.allowed_bytes for outcome in found]
                plain = [o.sent_bytes / max(o.written_bytes, 1) for o in found]
                lines.append(
                    f"{kind}: {len(found)}, equal after {statistics.median(times):.1f} s (median),"
                    f" {max(times):.1f} s (most); sent {statistics.median(plain):.2f} of what was written"
                    f" (median), at most {max(ratios):.2f} of what is allowed;"
                    f" {sum(o.full_scan for o in found)} full scans"
                )
        return "\n".join(lines)


def _touched(directory: Path, since_s: float) -> int:
    """Files below that changed since then, in whatever way."""
    found = 0
    for where, _, names in os.walk(directory):
        found += sum(os.lstat(os.path.join(where, name)).st_ctime >= since_s for name in names)
    return found
