"""Fuzz all targets with a coverage-guided fuzzer: atheris, libFuzzer for Python. `make fuzz` runs this.

    PYTHONPATH=tests .venv/bin/python -m fuzz.run [--inputs N] [--corpus DIR] [TARGET...]

N inputs in all (FUZZ_INPUTS), shared by the targets. Each has a process of its own. An exception that no
peer or user may be told of, an input of more than INPUT_TIMEOUT_S, a process that grows by more than
GROWTH_BYTES, and an input that takes memory out of proportion to its length are found: exit code 1. What was
found interesting is kept below DIR, and is where the next run begins.
"""

import argparse
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

from fuzz.targets import FREE_BYTES, TARGETS

INPUT_TIMEOUT_S = 5
INPUT_BYTES = 8192
GROWTH_BYTES = 96 << 20  # libFuzzer keeps what it finds interesting in memory
WARM = 0.2  # of the inputs, after which a process must not grow any more
MEASURED = 3000  # of what was kept: inputs whose memory is measured one by one


def rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fuzz(name: str, inputs: int, corpus: Path) -> None:
    """In a process of its own; libFuzzer ends it."""
    import atheris  # type: ignore[import-not-found]

    run, count, warm_bytes = TARGETS[name].run, 0, 0
    for seed in TARGETS[name].seeds():
        run(seed)  # imports all that it needs
    started = time.monotonic()

    def one(data: bytes) -> None:
        nonlocal count, warm_bytes
        run(data)
        count += 1
        if count == max(int(inputs * WARM), 1):
            warm_bytes = rss_bytes()
        elif count == inputs:
            growth, seconds = rss_bytes() - warm_bytes, time.monotonic() - started
            print(f"{name}: {count} inputs in {seconds:.0f} s, grew by {growth >> 20} MiB", flush=True)
            assert growth < GROWTH_BYTES, f"grew by {growth} bytes"

    for module in [m for m in sys.modules if m.startswith("replicator.")]:
        _instrument(atheris, module)
    options = [
        *(
            f"-runs={inputs}",
            f"-timeout={INPUT_TIMEOUT_S}",
            f"-max_len={INPUT_BYTES}",
            "-print_final_stats=0",
        ),
        *("-verbosity=0", f"-artifact_prefix={corpus.parent}/{name}-", "-rss_limit_mb=1024", str(corpus)),
    ]
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


def _instrument(atheris: object, module: str) -> None:
    """All functions and methods of a module that is loaded already."""
    instrument = atheris.instrument_func  # type: ignore[attr-defined]
    found = sys.modules[module]
    for owner in [
        found,
        *(v for v in vars(found).values() if isinstance(v, type) and v.__module__ == module),
    ]:
        for key, value in list(vars(owner).items()):
            if getattr(value, "__module__", None) == module and type(value).__name__ == "function":
                try:
                    instrument(value)
                except Exception:
                    print(f"not instrumented: {module}.{key}", file=sys.stderr)


def measure(name: str, corpus: Path) -> str:
    """What is wrong with the memory that inputs take; "" if nothing."""
    target = TARGETS[name]
    target.run(b"")
    tracemalloc.start()
    try:
        for path in sorted(corpus.iterdir())[:MEASURED]:
            data = path.read_bytes()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            target.run(data)
            taken = tracemalloc.get_traced_memory()[1] - before
            if taken > FREE_BYTES + target.memory_factor * len(data):
                return f"{path}: {len(data)} bytes took {taken} bytes of memory"
    finally:
        tracemalloc.stop()
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=" ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=int(os.environ.get("FUZZ_INPUTS", "1000000")))
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        fuzz(options.one, options.inputs, options.corpus / options.one)
        return 1  # libFuzzer does not return
    names = options.targets or list(TARGETS)
    failed = []
    for name in names:
        corpus = options.corpus / name
        corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(TARGETS[name].seeds()):
            (corpus / f"seed-{number:03}").write_bytes(data)
        command = [
            sys.executable,
            "-m",
            "fuzz.run",
            "--one",
            name,
            "--inputs",
            str(options.inputs // len(names)),
        ]
        ended = subprocess.run([*command, "--corpus", options.corpus])
        wrong = f"exit code {ended.returncode}" if ended.returncode else measure(name, corpus)
        if wrong:
            failed.append(name)
            print(f"{name}: {wrong}", flush=True)
    print(f"failed: {' '.join(failed)}" if failed else "nothing found", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
