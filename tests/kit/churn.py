"""`python -m kit.churn DIRECTORY SEED`: change a small tree all the time, by all sorts of calls.

Now and then something is synced, as programs do that want it to be there after a loss of power.
"""

import contextlib
import os
import random
import signal
import sys

NAMES = 6


class Churn:
    def __init__(self, root: str, seed: int) -> None:
        self._root = root
        self._chance = random.Random(seed)
        self.count = 0

    def _path(self) -> str:
        depth = self._chance.randint(1, 3)
        return os.path.join(self._root, *(f"n{self._chance.randrange(NAMES)}" for _ in range(depth)))

    def step(self) -> None:
        change = self._chance.choice(
            (
                *(self._write, self._write, self._write, self._create, self._create, self._append),
                *(self._mkdir, self._rename, self._rename, self._unlink, self._rmdir, self._truncate),
                *(self._chmod, self._sync, self._publish),
            )
        )
        with contextlib.suppress(OSError):
            change()
            self.count += 1

    def _data(self) -> bytes:
        return self._chance.randbytes(self._chance.choice((10, 3000, 50_000)))

    def _create(self) -> None:
        with open(self._path(), "xb") as file:
            file.write(self._data())

    def _write(self) -> None:
        with open(self._path(), "r+b") as file:
            file.seek(self._chance.randrange(100_000))
            file.write(self._data())

    def _append(self) -> None:
        with open(self._path(), "ab") as file:
            file.write(self._data())

    def _truncate(self) -> None:
        os.truncate(self._path(), self._chance.randrange(50_000))

    def _mkdir(self) -> None:
        os.mkdir(self._path())

    def _rename(self) -> None:
        os.rename(self._path(), self._path())

    def _unlink(self) -> None:
        os.unlink(self._path())

    def _rmdir(self) -> None:
        os.rmdir(self._path())

    def _chmod(self) -> None:
        os.chmod(self._path(), self._chance.choice((0o644, 0o600, 0o755)))

    def _sync(self) -> None:
        descriptor = os.open(self._path(), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _publish(self) -> None:
        """As editors save."""
        path = self._path()
        with open(path + ".new", "wb") as file:
            file.write(self._data())
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + ".new", path)


def main() -> None:
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    root, seed = sys.argv[1:]
    os.makedirs(root, exist_ok=True)
    churn = Churn(root, int(seed))
    while not stopping:
        churn.step()
    print(churn.count)


if __name__ == "__main__":
    main()
