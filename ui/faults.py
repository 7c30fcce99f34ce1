"""Where unexpected errors of the window go: a log file, and a card instead of silence."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from types import TracebackType

from PySide6.QtCore import QMessageLogContext, QtMsgType, qInstallMessageHandler

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
    sys.excepthook = _on_uncaught
    threading.excepthook = _on_thread_uncaught


def _rotate(path: Path) -> None:
    """Set a log that has grown large aside at the start: a window does not write much while it runs."""
    try:
        if path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(path.with_suffix(".old.log"))
    except OSError:
        return  # none yet, or it cannot be moved: it grows on


def _on_qt_message(kind: QtMsgType, _where: QMessageLogContext, text: str) -> None:
    logging.getLogger("qt").log(_LEVELS.get(kind, logging.WARNING), "%s", text)


def _on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _log.error("uncaught error", exc_info=(kind, error, trace))
    show_failure(error)


def _on_thread_uncaught(args: threading.ExceptHookArgs) -> None:
    error = args.exc_value
    if error is None:
        return
    _log.error("uncaught error in %s", args.thread.name if args.thread else "a thread", exc_info=error)
    post(lambda: show_failure(error))
