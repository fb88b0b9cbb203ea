"""A proxy between a storage and a PostgreSQL server, for connections that are cut at any point."""

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy.engine import URL

_SOCKET = ".s.PGSQL.5432"
_ONCE_BYTES = 65_536


class Proxy:
    """Passes on what both ends say, and counts what the client says.

    Args:
        folder: For its socket.
        server: The server's socket.

    Attributes:
        said: How many times the client has said something.
        cut_at: At which of these ``cut`` is called, if at any.
        cut: Is given what the client says, the client's end and the server's; what it leaves open stays so.
    """

    def __init__(self, folder: Path, server: Path) -> None:
        self.said = 0
        self.cut_at: int | None = None
        self.cut: Cut = before
        self._server = server
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(folder / _SOCKET))
        self._listening.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Let nobody connect any more, and wait until all connections have ended."""
        self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                client, _ = self._listening.accept()
                thread = threading.Thread(target=self._pass_on, args=(client,))
                thread.start()
                self._threads.append(thread)

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(str(self._server))
            while client.fileno() >= 0:
                readable, _, _ = select.select([client, server], [], [])
                if server in readable:
                    said = server.recv(_ONCE_BYTES)
                    if not said:
                        return
                    client.sendall(said)
                elif said := client.recv(_ONCE_BYTES):
                    self.said += 1
                    if self.said == self.cut_at:
                        self.cut(said, client, server)
                    else:
                        server.sendall(said)
                else:
                    return


Cut = Callable[[bytes, socket.socket, socket.socket], object]


def before(_said: bytes, client: socket.socket, server: socket.socket) -> None:
    """Cut the connection; the server does not hear it."""
    client.close()
    server.close()


def after(said: bytes, client: socket.socket, server: socket.socket) -> None:
    """Cut the connection when the server has heard it; the client does not hear the answer."""
    server.sendall(said)
    client.close()
    server.close()


@contextmanager
def proxied(url: URL) -> Iterator[tuple[Proxy, str]]:
    """Give a proxy before a server, whose URL names the folder of its socket, and the URL of the proxy."""
    with TemporaryDirectory() as folder:
        proxy = Proxy(Path(folder), Path(str(url.query["host"]), _SOCKET))
        try:
            yield proxy, url.update_query_dict({"host": folder}).render_as_string(hide_password=False)
        finally:
            proxy.close()
