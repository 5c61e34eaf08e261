"""The process that keeps one running script: `python -m replicator.failover.script_keeper DIRECTORY LOCK`.

It outlives the agent that started it, as all children do, so that one that is killed in the middle of a
script kills no script, and its successor finds how it ended. DIRECTORY/order.json says what to run, and
DIRECTORY/result.json how it ended. LOCK is the number of a descriptor whose file is locked (flock) as long
as the script runs. SIGTERM ends the script.
"""

import json
import os
import signal
import sys

from replicator.failover.supervised import Ended, How, supervise


def keep(directory: str, lock: int) -> None:
    """Run what is ordered. Returns when nobody holds its output any more."""
    with open(os.path.join(directory, "order.json")) as file:
        order = json.load(file)
    stopped, ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        ended, output = supervise(
            order["command"],
            order["environment"],
            order["timeout_s"],
            order["output_bytes"],
            order["term_s"],
            stopped,
        )
    except Exception as error:  # whatever it is: somebody waits for a result
        ended, output = Ended(How.NOT_STARTED, reason=f"{order['command'][0]}: {error}"), -1
    result = os.path.join(directory, "result.json")
    with open(result + ".new", "w") as file:
        json.dump(ended._asdict(), file)
    os.replace(result + ".new", result)
    os.close(lock)
    # A service that it has started in the background may go on printing; without a reader that would end it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while output >= 0 and os.read(output, 1 << 16):
        pass


def main() -> None:
    directory, lock = sys.argv[1], int(sys.argv[2])
    if os.fork():
        os._exit(0)  # so that nobody has to wait for it
    os.setsid()
    os.chdir("/")
    with open(os.path.join(directory, "keeper.pid"), "w") as file:
        file.write(str(os.getpid()))
    keep(directory, lock)


if __name__ == "__main__":
    main()
