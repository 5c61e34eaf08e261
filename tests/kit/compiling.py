"""A compile job that says when it is complete, so that a copy of its directory can be held against that.

    python -m kit.compiling DIRECTORY    # until SIGTERM; prints its rounds, fails if make does

Each round removes the file "built", changes some sources, runs make and the program it makes, and renames a
list of what is there then into place as "built". So a directory with that file is exactly what the list says.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

PARTS = 8
_MAKEFILE = f"""\
OBJECTS = main.o {" ".join(f"part{n}.o" for n in range(PARTS))}
program: $(OBJECTS)
\t$(CC) -o $@ $(OBJECTS)
%.o: %.c parts.h
\t$(CC) -O1 -g -c -o $@ $<
clean:
\trm -f program $(OBJECTS)
"""
_HEADER = "".join(f"int part{n}(void);\n" for n in range(PARTS))
_MAIN = f"""\
#include <stdio.h>
#include "parts.h"
int main(void) {{ printf("%d\\n", {" + ".join(f"part{n}()" for n in range(PARTS))}); return 0; }}
"""


def why_not() -> str:
    """Why it cannot run here; empty if it can."""
    missing = [name for name in ("make", "gcc") if shutil.which(name) is None]
    return f"no {' and no '.join(missing)} here" if missing else ""


def check(directory: Path) -> list[str]:
    """What is wrong with a copy of the directory at any moment, for people."""
    try:
        wanted = (directory / "built").read_text()
    except FileNotFoundError:
        return []
    found = listing(directory)
    return [] if found == wanted else [f"built:\n{wanted}\nbut there is:\n{found}"]


def listing(directory: Path) -> str:
    lines = []
    for path in sorted(directory.iterdir()):
        if path.is_file() and not path.name.startswith("built"):
            lines.append(f"{path.name} {hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}\n")
    return "".join(lines)


def main() -> None:
    directory = Path(sys.argv[1])
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    (directory / "tmp").mkdir(parents=True)
    for name, text in (("Makefile", _MAKEFILE), ("parts.h", _HEADER), ("main.c", _MAIN)):
        (directory / name).write_text(text)
    chance = random.Random(1)
    values = [0] * PARTS
    changed = set(range(PARTS))
    rounds = 0
    while not stopping:
        (directory / "built").unlink(missing_ok=True)
        for part in changed:
            values[part] = chance.randrange(1000)
            (directory / f"part{part}.c").write_text(f"int part{part}(void) {{ return {values[part]}; }}\n")
        if chance.random() < 0.2:
            _make(directory, "clean")
        _make(directory, "-j2", "program")
        assert int(_run(directory, directory / "program")) == sum(values)
        (directory / "built.new").write_text(listing(directory))
        os.rename(directory / "built.new", directory / "built")
        rounds += 1
        os.write(1, b"%d\n" % rounds)
        changed = {chance.randrange(PARTS) for _ in range(3)}
        assert check(directory) == []


def _make(directory: Path, *arguments: str) -> None:
    _run(directory, "make", "-s", "CC=gcc -pipe", *arguments)


def _run(directory: Path, *command: str | Path) -> str:
    environment = {**os.environ, "TMPDIR": str(directory / "tmp"), "MAKEFLAGS": ""}
    # A session of its own: SIGTERM is for this program, and it lets the round end.
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False, process_group=0
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


if __name__ == "__main__":
    main()
