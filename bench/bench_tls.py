"""What encryption costs: the first copy of one large file over loopback, in plain text and in TLS 1.3.

Both take turns. "processor" is that of sender and receiver, which share two processors with everything else.
On disk both wait for it now and then. In memory (of large pages, where holes are found at once) nothing
counts but the processors: that is the stricter comparison, and the steadier one. `records` is encryption and
decryption alone, between two buffers in memory, by both libraries: what is left to a session.
"""

import os
import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path

import harness
from kit import dtd

from replicator import limits
from replicator.security import certificates, pem, tls

UUIDS = ("11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222")
SECURED = "[security]\nloopback_plain = false\n[queue]\n"


def copy_s(work: Path, place: Path, size: int, *, secured: bool) -> tuple[float, float]:
    """Seconds from `dtctl connect` on until the copy is there, and of the processor. `place`: of both
    trees.
    """
    source, copy = place / "source", place / "copy"
    source.mkdir()
    harness.make_file(source / "large", size)
    os.sync()
    with harness.pair(work, settings=SECURED if secured else "[queue]\n") as agents:
        agents.capture(source)
        if secured:
            dtd.pair(agents.source_agent, agents.target_agent)
        start_s = time.perf_counter()
        agents.connect(source, copy)
        taken_s = time.perf_counter() - start_s
        processes = agents.processes()
        processor_s = sum(harness.processor_s(processes[name]) for name in ("sender", "receiver"))
        harness.assert_equal(source, copy)
        agents.disconnect()
    for directory in (source, copy):
        shutil.rmtree(directory)
    return taken_s, processor_s


def records(size: int, *, bundled: bool) -> tuple[float, float]:
    """Seconds to encrypt and to decrypt that many bytes, by the library of sessions or by Python's."""
    if not bundled:
        sys.modules["replicator.security.bundled"] = None  # type: ignore[assignment]
    ours, theirs = (certificates.make(uuid, "bench").decode() for uuid in UUIDS)
    with pem.as_file(ours) as one, pem.as_file(theirs) as other:
        dialling = tls.session_context(one, None, pem.certificate_of(theirs), server=False)
        dialled = tls.session_context(other, None, pem.certificate_of(ours), server=True)
    near, near_in, near_out = tls.opened(dialling, False)
    far, far_in, far_out = tls.opened(dialled, True)
    for _ in range(3):
        for end in (near, far):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            far_in.write(near_out.read())
            near_in.write(far_out.read())
    data = memoryview(os.urandom(limits.TLS_WRITE_BYTES))
    found = memoryview(bytearray(len(data)))
    encrypting_s = decrypting_s = 0.0
    for _ in range(size // len(data)):
        start_s = time.perf_counter()
        near.write(data)
        encrypted = near_out.read()
        middle_s = time.perf_counter()
        far_in.write(encrypted)
        filled = 0
        while filled < len(data):
            filled += int(far.read(len(data) - filled, found[filled:]))
        decrypting_s += time.perf_counter() - middle_s
        encrypting_s += middle_s - start_s
    return encrypting_s, decrypting_s


def compare(work: Path, place: Path, where: str, rounds: int, size: int) -> None:
    taken: dict[bool, list[float]] = {False: [], True: []}
    worked: dict[bool, list[float]] = {False: [], True: []}
    for index in range(rounds):
        for secured in (False, True) if index % 2 == 0 else (True, False):
            taken_s, processor_s = copy_s(work, place, size, secured=secured)
            taken[secured].append(taken_s)
            worked[secured].append(processor_s)
    ratios = [plain / secured for plain, secured in zip(taken[False], taken[True], strict=True)]
    title = f"First copy of {size // harness.MIB} MiB, {where}, median (range)"
    table = harness.Table(title, "what", "seconds", "rate, of plain", "processor, s")
    table.row(
        "plain text", harness.median_text(taken[False], 2), "1.00", harness.median_text(worked[False], 2)
    )
    ratio = harness.median_text(ratios, 2)
    table.row("TLS 1.3", harness.median_text(taken[True], 2), ratio, harness.median_text(worked[True], 2))


def measure(work: Path, quick: bool, rounds: int, mib: int, cases: list[str]) -> None:
    size = mib * harness.MIB
    if "memory" in cases:
        harness.warm_memory(3 * size)
        trees = work / "memory" / "trees"
        trees.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "huge=within_size", "trees", trees], check=True)
        compare(work, trees, "in memory (tmpfs)", rounds, size)
    if "disk" in cases:
        compare(work, work, "on disk", rounds, size)
    if "records" not in cases:
        return
    table = harness.Table(f"{mib} MiB between two buffers in memory", "library", "encrypt, s", "decrypt, s")
    for library, bundled in (("of cryptography", True), ("of Python", False)):
        table.row(library, *(f"{taken_s:.2f}" for taken_s in records(size, bundled=bundled)))


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=(5, 1), mib=(2048, 64), cases=("memory", "disk", "records"))
