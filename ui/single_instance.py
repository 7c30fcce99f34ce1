"""One window a project: the first listens on a private socket, a second asks it to come to the front."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from PySide6.QtCore import QObject, Signal, SignalInstance
from PySide6.QtNetwork import QLocalServer

from workbench.sockets import bind, connect

_ASK, _YES = b"raise\n", b"raised\n"


def socket_path(runtime: Path, project: Path) -> Path:
    """Return where a project's window listens: short, in the folder that only this user can open."""
    digest = hashlib.sha256(str(project.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return runtime / f"window-{digest}.sock"


def ask_to_raise(path: Path, timeout_s: float = 10.0) -> bool:
    """Ask the window that listens at ``path`` to come to the front; False when nobody answers. May block.

    Where nobody listens that is known at once; a busy window is given time.
    """
    with contextlib.suppress(OSError), connect(path, timeout_s) as line:
        line.sendall(_ASK)
        return line.recv(64) == _YES
    return False


class RaiseListener(QObject):
    """Listens for a second window; ``asked`` is sent for each. Only the holder of the project's lock may make one."""

    asked: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, path: Path, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._server = QLocalServer(self)
        self._path = path
        self.listening = False
        with contextlib.suppress(
            OSError
        ):  # a file left by a killed window is replaced: the lock says that nobody listens
            self.listening = self._server.listen(bind(path).detach())
        self._server.newConnection.connect(self._on_connection)

    def close(self) -> None:
        """Stop listening."""
        self._server.close()
        self._path.unlink(missing_ok=True)

    def _on_connection(self) -> None:
        line = self._server.nextPendingConnection()
        line.disconnected.connect(line.deleteLater)

        def answer() -> None:
            if bytes(line.readAll().data()).startswith(b"raise"):
                line.write(_YES)
                line.flush()
                self.asked.emit()
            line.disconnectFromServer()

        line.readyRead.connect(answer)
        if line.bytesAvailable():
            answer()
