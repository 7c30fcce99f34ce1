"""Where unexpected errors of the window go: a log file, and a card instead of silence."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType

from PySide6.QtCore import QMessageLogContext, QtMsgType, qInstallMessageHandler
from PySide6.QtWidgets import QApplication

from ui.error_card import ErrorCard
from ui.operations import post, show_failure
from workbench.folders import cache_dir

LOG_LIMIT_BYTES = 2_000_000
_log = logging.getLogger("tastemaker.ui")
_LEVELS = {
    QtMsgType.QtDebugMsg: logging.DEBUG,
    QtMsgType.QtInfoMsg: logging.INFO,
    QtMsgType.QtWarningMsg: logging.WARNING,
    QtMsgType.QtCriticalMsg: logging.ERROR,
    QtMsgType.QtFatalMsg: logging.CRITICAL,
}


def install() -> None:
    """Send log records, Qt's messages and uncaught errors to ``window.log`` in the cache folder."""
    path = cache_dir() / "window.log"
    _rotate(path)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    qInstallMessageHandler(_on_qt_message)
    uncaught = Uncaught()
    sys.excepthook = uncaught.on_error
    threading.excepthook = uncaught.on_thread_error


def _rotate(path: Path) -> None:
    """Set a log that has grown large aside at the start: a window does not write much while it runs."""
    try:
        if path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(path.with_suffix(".old.log"))
    except OSError:
        return  # none yet, or it cannot be moved: it grows on


def _on_qt_message(kind: QtMsgType, _where: QMessageLogContext, text: str) -> None:
    logging.getLogger("qt").log(_LEVELS.get(kind, logging.WARNING), "%s", text)


class Uncaught:
    """Logs errors that nobody caught and shows them as cards.

    One card at a time and each fault once: a fault in drawing comes with every frame.
    """

    def __init__(self) -> None:
        self._told: set[tuple[object, ...]] = set()

    def on_error(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Take an error of the window's thread; this is ``sys.excepthook``."""
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        self._tell(error, "")

    def on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """Take an error of another thread; this is ``threading.excepthook``."""
        error, where = args.exc_value, f" in {args.thread.name if args.thread else 'a thread'}"
        if error is not None:
            post(lambda: self._tell(error, where))

    def _tell(self, error: BaseException, where: str) -> None:
        fault = (type(error), *((frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)))
        if fault in self._told:
            _log.error("uncaught error%s again: %s", where, error)
            return
        self._told.add(fault)
        _log.error("uncaught error%s", where, exc_info=error)
        if not any(isinstance(one, ErrorCard) and one.isVisible() for one in QApplication.topLevelWidgets()):
            show_failure(error)
