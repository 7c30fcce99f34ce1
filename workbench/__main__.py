"""The entry point ``tastemaker`` (``python -m workbench``): the window without arguments, or the command line.

The one module that may know all three packages; it imports them only when they are needed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from workbench import cli
from workbench.errors import UserError

DISPLAY_VARIABLES = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, or open the window. Returns the exit code."""
    return cli.main(sys.argv[1:] if arguments is None else list(arguments), open_window)


def open_window(project: Path | None) -> int:
    """Open the window on a project, or on the welcome page. Raises UserError when it cannot be shown here."""
    if not has_display():
        raise UserError(
            "There is no display to open a window on",
            "neither DISPLAY nor WAYLAND_DISPLAY is set",
            "run `tastemaker demo` for the whole loop on the terminal, or see `tastemaker --help`",
        )
    from workbench.qt_check import faulty_qt, missing_packages

    if (fault := faulty_qt()) is not None:
        raise fault
    try:
        import ui.app as app
    except ImportError as error:
        packages = " ".join(missing_packages())
        remedy = f"install them with: sudo apt-get install {packages}" if packages else "run `make setup` again"
        raise UserError("The window cannot start", str(error), remedy) from error
    if sys.platform == "linux" and os.environ.get("QT_QPA_PLATFORM", "xcb") == "xcb" and (lack := missing_packages()):
        raise UserError(
            "The window cannot start",
            "system libraries that Qt needs are missing",
            "install them with: sudo apt-get install " + " ".join(lack),
        )
    return app.run(project)


def has_display() -> bool:
    """Whether a window can be shown at all."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in DISPLAY_VARIABLES)


if __name__ == "__main__":
    sys.exit(main())
