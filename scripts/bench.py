"""Run the benchmarks and keep their tables. `make bench` runs this.

    bench.py [--quick] [--OPTION=N...] [NAME...]

Each bench/bench_*.py prints one Markdown document; it goes to bench/results/NAME.md, below a line about the
machine it was measured on. Names choose some of them: `bench.py mirror latency`. --quick only shows that they
work: it measures little and keeps nothing. Other options are those of the benchmarks that are named, see
`bench_NAME.py --help`.
"""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1] / "bench"


def machine() -> str:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"Measured on: {os.cpu_count()} processors, {memory_bytes / 2**30:.0f} GiB of memory,"
        f" Linux {platform.release()}, Python {platform.python_version()}.\n"
    )


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    options = [word for word in arguments if word.startswith("--")]
    names = [word for word in arguments if word not in options]
    programs = {path.stem.removeprefix("bench_"): path for path in sorted(BENCH.glob("bench_*.py"))}
    unknown = [name for name in names if name not in programs]
    if unknown or not programs:
        print(
            f"bench: no such benchmark: {' '.join(unknown)}; there are: {' '.join(programs)}", file=sys.stderr
        )
        return 2
    results = BENCH / "results"
    results.mkdir(exist_ok=True)
    failed = []
    for name in names or programs:
        print(f"\n# {name}", flush=True)
        program = subprocess.Popen(
            [sys.executable, programs[name], *options], stdout=subprocess.PIPE, text=True
        )
        assert program.stdout is not None
        lines = []
        try:
            for line in program.stdout:  # shown while it is measured
                print(line, end="", flush=True)
                lines.append(line)
            code = program.wait()
        except KeyboardInterrupt:
            program.send_signal(signal.SIGINT)
            program.wait()  # it takes down what it has set up
            return 130
        if code:
            failed.append(name)
        elif "--quick" not in options:
            (results / f"{name}.md").write_text(f"{machine()}\n{''.join(lines)}")
    for name in failed:
        print(f"bench: {name} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(main(sys.argv[1:]))
