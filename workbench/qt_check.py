"""Which system libraries Qt lacks here, and the Debian package that has each. Imports no Qt.

Run as ``python -m workbench.qt_check``: prints the packages to install, or nothing.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from workbench.errors import UserError

QT_PACKAGE = "PySide6-Essentials"
SOUND_QT = "6.11.3"
PYTHON = sys.version_info[:2]

PACKAGES = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libGLX.so.0": "libglx0",
    "libOpenGL.so.0": "libopengl0",
    "libX11.so.6": "libx11-6",
    "libX11-xcb.so.1": "libx11-xcb1",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-render.so.0": "libxcb-render0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-shm.so.0": "libxcb-shm0",
    "libxcb-sync.so.1": "libxcb-sync1",
    "libxcb-util.so.1": "libxcb-util1",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libxcb.so.1": "libxcb1",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libxkbcommon.so.0": "libxkbcommon0",
}
_NEEDED_BY = (
    "Qt/lib/libQt6Gui.so.6",
    "Qt/lib/libQt6Widgets.so.6",
    "Qt/lib/libQt6DBus.so.6",
    "Qt/lib/libQt6Svg.so.6",
    "Qt/plugins/platforms/libqoffscreen.so",
    "Qt/plugins/platforms/libqxcb.so",
)


def faulty_qt() -> UserError | None:
    """Return what is wrong with the PySide6 that is installed, and the remedy; None when nothing is known.

    6.12.0 loses references to True and None with every signal on Python before 3.12, and aborts the process after
    some hundreds of them: in the middle of somebody's labelling.
    """
    try:
        installed = version(QT_PACKAGE)
    except PackageNotFoundError:
        return None
    if PYTHON >= (3, 12) or installed != "6.12.0":
        return None
    return UserError(
        f"PySide6 {installed} aborts the window on Python {PYTHON[0]}.{PYTHON[1]}",
        "it loses references with every signal, until Python ends the process",
        f"install a sound one with: pip install {QT_PACKAGE}=={SOUND_QT}",
    )


def missing_packages() -> list[str]:
    """Return the Debian packages whose libraries Qt needs and cannot find, sorted; [] when it can start.

    Asks the dynamic linker (``ldd``) about the files of PySide6 itself, so nothing is loaded.
    """
    spec = importlib.util.find_spec("PySide6")
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(spec.submodule_search_locations[0])
    lacking: set[str] = set()
    for name in _NEEDED_BY:
        file = root / name
        if file.exists():
            lacking |= lacking_libraries(_ldd(file))
    return sorted({PACKAGES.get(library, library) for library in lacking})


def lacking_libraries(ldd_output: str) -> set[str]:
    """Read the names that ``ldd`` reports as not found."""
    return {line.split("=>")[0].strip() for line in ldd_output.splitlines() if line.rstrip().endswith("not found")}


def _ldd(file: Path) -> str:
    try:
        return subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=False, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


if __name__ == "__main__":
    print(" ".join(missing_packages()))
