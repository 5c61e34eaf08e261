"""Programs of the kit that write until they are told to stop."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import replicator
from kit.hosts import Host

STOP_TIMEOUT_S = 60.0
PATH = os.pathsep.join((str(Path(__file__).parents[1]), str(Path(replicator.__file__).parents[1])))


class Writer:
    """One program, on a host of its own if there is one. `stop` asserts that it never saw an error."""

    def __init__(self, output: Path, module: str, *arguments: str | Path, host: Host | None = None) -> None:
        self._name = " ".join((module, *map(str, arguments)))
        self._output = output
        with open(output, "xb") as out, open(f"{output}.err", "xb") as err:
            self._process = subprocess.Popen(
                [*(host.command if host else ()), sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": PATH},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return self._output.read_text()

    def assert_running(self) -> None:
        assert self._process.poll() is None, self._how()

    def stop(self) -> str:
        """Let it finish what it does. Returns its output."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(STOP_TIMEOUT_S)
        assert code == 0, self._how()
        return self.output

    def finish(self, timeout_s: float) -> str:
        """Wait until it ends by itself. Returns its output."""
        code = self._process.wait(timeout_s)
        assert code == 0, self._how()
        return self.output

    def _how(self) -> str:
        return f"{self._name} failed:\n{Path(f'{self._output}.err').read_text()}"

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)


@contextmanager
def writing(outputs: Path, *commands: tuple[str | Path, ...]) -> Iterator[list[Writer]]:
    """Modules of the kit at work, with their arguments. Who still runs afterwards is killed."""
    outputs.mkdir()
    writers: list[Writer] = []
    try:
        for number, (module, *arguments) in enumerate(commands):
            writers.append(Writer(outputs / f"writer-{number}", str(module), *arguments))
        yield writers
    finally:
        for writer in writers:
            writer.close()
