"""How long the window takes to start, from the birth of the process: printed as one JSON line, then the window ends."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

from PySide6.QtCore import QEvent, QObject, QTimer
from PySide6.QtWidgets import QApplication, QWidget

VARIABLE = "TASTEMAKER_MEASURE_START"
FLAG = "--measure-start"


def asked_to_measure() -> bool:
    """Whether the environment or the command line asks for a measurement."""
    return bool(os.environ.get(VARIABLE)) or FLAG in sys.argv


def since_birth_s() -> float:
    """Return the seconds since this process was made, imports of Python itself included."""
    import psutil

    return time.time() - float(psutil.Process().create_time())


class StartMeter(QObject):
    """Notes the first paint of the window and the first moment at which nothing more is to do."""

    def __init__(self, window: QWidget, settled: Callable[[], bool]) -> None:
        super().__init__(window)
        self._window = window
        self._settled = settled
        self._first_paint = 0.0
        self._first_paint_cpu = 0.0
        self._timer = QTimer(self)
        self._timer.setInterval(5)
        self._timer.timeout.connect(self._look)
        window.installEventFilter(self)

    def start(self) -> None:
        """Begin to look for the end of the start."""
        self._timer.start()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Catch the window's first paint."""
        if event.type() == QEvent.Type.Paint and not self._first_paint:
            self._first_paint_cpu = time.process_time()
            self._first_paint = since_birth_s()
            self._window.removeEventFilter(self)
        return super().eventFilter(watched, event)

    def _look(self) -> None:
        if not self._first_paint or not self._settled():
            return
        import psutil

        self._timer.stop()
        told = {
            "first_paint_s": round(self._first_paint, 3),
            "idle_s": round(since_birth_s(), 3),
            "first_paint_cpu_s": round(self._first_paint_cpu, 3),
            "idle_cpu_s": round(time.process_time(), 3),
            "rss_bytes": int(psutil.Process().memory_info().rss),
            "heavy": sorted(
                {"torch", "transformers", "peft", "pyqtgraph", "numpy", "pandas"} & set(sys.modules),
            ),
        }
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        self._window.close()
        QApplication.quit()
