"""A service as clients know it, HTTP over SQLite: it appends numbers, and says so once they are committed.

    python -m kit.ledger DIRECTORY ADDRESS PORT JOURNAL_MODE HOST [--frail]    # until SIGTERM
    POST /17     appends the row 17; 200 after COMMIT (synchronous = FULL), with the name of the host
    GET /        all rows, one per line

`--frail`: it ends with the first write that fails, as a service that somebody starts again.
`kit.ledger_client` is a client that never rests; `rows` reads what a copy of the database holds,
`rows_in` what any bytes of one do.
"""

import http.server
import os
import re
import shutil
import signal
import socket
import sqlite3
import sys
from pathlib import Path

NAME = "ledger.db"
BUSY_TIMEOUT_S = 60.0
TEXT_BYTES = 200
_ROW = re.compile(rb"row (\d+) x")


def text_of(number: int) -> str:
    """The row's text: in any page or log frame that has the row it stands as it is, see `rows_in`."""
    return f"row {number} ".ljust(TEXT_BYTES, "x")


def open_ledger(directory: Path, journal_mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(directory / NAME, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    (mode,) = connection.execute(f"pragma journal_mode = {journal_mode}").fetchone()
    assert mode == journal_mode, mode
    # In rollback mode FULL leaves the end of a transaction, an unlink, to the next sync.
    connection.execute(f"pragma synchronous = {'full' if journal_mode == 'wal' else 'extra'}")
    connection.execute("create table if not exists entry (number integer primary key, text text not null)")
    return connection


def rows(directory: Path, scratch: Path) -> list[int]:
    """What the database has when it is copied, with its journals, and opened there. DatabaseError."""
    scratch.mkdir()
    for file in directory.glob(NAME + "*"):
        shutil.copyfile(file, scratch / file.name)
    connection = sqlite3.connect(scratch / NAME)
    try:
        problems = [row[0] for row in connection.execute("pragma integrity_check") if row[0] != "ok"]
        assert not problems, problems
        return [number for (number,) in connection.execute("select number from entry order by number")]
    finally:
        connection.close()
        shutil.rmtree(scratch)


def rows_in(file: Path) -> set[int]:
    """Rows whose text stands somewhere in a file: a part of a database or of its log, say."""
    return {int(number) for number in _ROW.findall(file.read_bytes())}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: "_Server"

    def do_POST(self) -> None:
        try:
            self.server.ledger.execute(
                "insert or ignore into entry values (?, ?)", (number := int(self.path[1:]), text_of(number))
            )
        except sqlite3.Error as error:  # the mount is fenced, or gone: the client is told
            self._answer(503, str(error))
            if self.server.is_frail:
                print(f"{self.server.host}: {error}", flush=True)
                os._exit(1)
        else:
            self._answer(200, self.server.host)

    def do_GET(self) -> None:
        try:
            found = self.server.ledger.execute("select number from entry order by number").fetchall()
        except sqlite3.Error as error:
            self._answer(503, str(error))
        else:
            self._answer(200, "".join(f"{number}\n" for (number,) in found))

    def _answer(self, code: int, text: str) -> None:
        content = text.encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class _Server(http.server.HTTPServer):
    """One request after the other: what is answered first is committed first."""

    ledger: sqlite3.Connection
    is_frail = False

    def __init__(self, address: str, port: int, host: str) -> None:
        self.host = host
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)

    def get_request(self) -> tuple[socket.socket, object]:
        request, client = super().get_request()
        request.settimeout(1.0)  # a client whose cable is cut must not keep the others waiting
        return request, client

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client went away


def main() -> None:
    directory, address, port, journal_mode, host, *frail = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with _Server(address, int(port), host) as server:
        server.is_frail = bool(frail)
        server.ledger = open_ledger(Path(directory), journal_mode)
        server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
