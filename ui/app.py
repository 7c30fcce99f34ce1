"""The application: builds theme, window and session, and makes every connection between them.

``run(path)`` is the whole of it. Nothing here imports torch, and plots are imported when the first one opens.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, QTimer
from PySide6.QtWidgets import QApplication, QDialog, QFileDialog

from ui import faults
from ui.error_card import ErrorCard, show_error
from ui.measure import StartMeter, asked_to_measure
from ui.operations import Collector, operations, run_task, shutdown
from ui.panes import KEYS
from ui.settings import Settings
from ui.theme import MODES, Theme
from ui.welcome import Welcome
from ui.window import MainWindow
from workbench.errors import UserError
from workbench.folders import config_dir

if TYPE_CHECKING:  # what a project needs is imported off the window's thread, when one is opened
    from ui.session import Session
    from ui.unsaved import Unsaved
    from workbench.project import Project
    from workbench.records import Rater

DATABASE = "project.db"
BUILD_AFTER_IDLE_MS = 250
_log = logging.getLogger("tastemaker.ui")


class App(QObject):
    """One window and the project that is open in it."""

    def __init__(self, qapp: QApplication, settings: Settings) -> None:
        super().__init__(qapp)
        self.qapp = qapp
        self.settings = settings
        mode = settings.values.theme
        self.theme = Theme(qapp, mode if mode in MODES else "system", settings.values.text_size, self)
        self.welcome = Welcome()
        self.window = MainWindow(self.theme, self.welcome)
        self.session: Session | None = None
        self.dialog: QDialog | None = None
        self._quiet = QTimer(self)
        self._quiet.setInterval(BUILD_AFTER_IDLE_MS)
        self._quiet.timeout.connect(self._build_one)
        self._opening = False
        self._connect()
        self.window.restore_geometry_text(settings.values.geometry)
        self._show_recent()

    def _connect(self) -> None:
        menus = self.window.menus
        menus.new_asked.connect(lambda: self.ask_new(sample=False))
        menus.open_asked.connect(self.ask_open)
        menus.recent_chosen.connect(lambda path: self.open(Path(path)))
        menus.close_asked.connect(self.close_project)
        menus.import_asked.connect(self.ask_import)
        menus.export_asked.connect(self.ask_export)
        menus.check_asked.connect(self.check_project)
        menus.restore_asked.connect(self.ask_restore)
        menus.quit_asked.connect(self.window.close)
        menus.undo_asked.connect(self._on_undo)
        menus.redo_asked.connect(self._on_redo)
        menus.rater_asked.connect(self.ask_rater)
        menus.theme_chosen.connect(self._on_theme)
        menus.text_size_chosen.connect(self._on_text_size)
        menus.glossary_asked.connect(self.show_glossary)
        menus.keys_asked.connect(self.show_keys)
        menus.about_asked.connect(self.show_about)
        self.welcome.new_asked.connect(lambda: self.ask_new(sample=False))
        self.welcome.sample_asked.connect(lambda: self.ask_new(sample=True))
        self.welcome.open_asked.connect(self.ask_open)
        self.welcome.recent_chosen.connect(lambda path: self.open(Path(path)))
        self.welcome.forget_asked.connect(self._on_forget)
        self.window.status.runs_clicked.connect(lambda: self.window.show_pane("runs"))
        self.window.closing.connect(self._on_closing)
        self.window.kept_open.connect(
            lambda found: self._ask_unsaved(found, self.window.close, self.window.close_anyway)
        )

    # ---- projects ----

    def open(self, path: Path) -> None:
        """Open a project, off the window's thread; what goes wrong is said in a card."""
        path = path.expanduser().absolute()
        if path.name == DATABASE:
            path = path.parent
        if self.session is not None and self.session.project.path == path:
            return
        if found := self.window.unsaved():  # (the one that is open is closed once the new one can be read)
            self._ask_unsaved(found, lambda: self.open(path), lambda: self.close_anyway(lambda: self.open(path)))
            return
        self._opening = True
        self._say_opening("Opening", path)
        run_task(
            lambda: self._open_project(path, read_only=False),
            self._on_opened,
            lambda error: self._on_open_failed(path, error),
            owner=self,
        )

    def _say_opening(self, verb: str, path: Path) -> None:
        if self.session is None:
            self.window.show_opening(path.name, str(path.parent))
        self.window.status.notify(f"{verb} {path.name}…")

    def _open_project(self, path: Path, *, read_only: bool) -> tuple[Project, Rater]:
        from ui.panes import import_pane, pane_info
        from ui.session import open_project

        import_pane(pane_info("home"))
        return open_project(path, self.settings, read_only=read_only)

    def create(self, path: Path, *, sample: bool) -> None:
        """Make a project, fill it with the sample if asked, and open it."""

        def work() -> Path:
            from workbench.project import Project

            with Project.create(path) as project:
                if sample:
                    from workbench.sample_project import fill_with_sample

                    fill_with_sample(project)
            return path

        def failed(error: BaseException) -> None:
            self._opening = False
            if self.session is None:
                self.window.clear_project()
            self.show_error(error)

        self._opening = True
        self._say_opening("Making", path)
        run_task(work, self.open, failed, owner=self)

    def close_project(self, then: Callable[[], None] | None = None) -> None:
        """Close the open project and show the welcome page; what cannot be saved is asked about first."""
        if found := self.window.unsaved():
            self._ask_unsaved(found, lambda: self.close_project(then), lambda: self.close_anyway(then))
        else:
            self.close_anyway(then)

    def close_anyway(self, then: Callable[[], None] | None = None) -> None:
        """Close the open project, whatever is lost."""
        session, self.session = self.session, None
        self._quiet.stop()
        if session is None:
            if then is not None:
                then()
            return
        self.settings.set_pane("last-pane", self.window.current)
        self.window.clear_project()
        self._show_recent()
        session.close(lambda: _finish(session, then))

    def _on_opened(self, opened: tuple[Project, Rater]) -> None:
        from ui.session import Session

        if self.session is not None:
            self.close_anyway(lambda: self._on_opened(opened))  # (what could not be saved was asked about before)
            return
        self._opening = False
        project, rater = opened
        session = Session(project, rater, self.window, self.theme, self.settings, self.navigate)
        session.context.show_error = self.show_error
        self.session = session
        if session.listener is not None:
            session.listener.asked.connect(self.raise_window)
        self.settings.remember_project(project.path)
        self._show_recent()
        run_task(self.settings.save)
        self.window.status.notify(f"{project.name} is open", "good")
        self.window.set_project(project.name, str(project.path.parent), session.make_pane)
        self.window.show_pane("home")
        session.start()
        self._quiet.start()
        if project.read_only:
            self.window.status.notify("Open for reading only: another window has this project", "warn")
        elif project.warning:
            self.window.status.notify(project.warning, "warn")

    def _on_open_failed(self, path: Path, error: BaseException) -> None:
        from ui.single_instance import ask_to_raise, socket_path
        from workbench.folders import runtime_dir
        from workbench.project import ProjectInUse

        if isinstance(error, ProjectInUse):
            run_task(
                lambda: ask_to_raise(socket_path(runtime_dir(), path)),
                lambda raised: self._on_in_use(path, raised=raised),
                self.show_error,
                owner=self,
            )
            return
        self._opening = False
        if self.session is None:
            self.window.clear_project()
        if isinstance(error, UserError) and not path.exists():
            self.settings.forget_project(str(path))
            self._show_recent()
        card = self.show_error(error)
        if isinstance(error, UserError) and any((path / "backups").glob("*.db")):
            card.add_action("Restore a backup…", lambda: self.ask_restore(path))

    def _on_in_use(self, path: Path, *, raised: bool) -> None:
        """Another process has the project: its window came forward, or nobody answered and we only read."""
        if not raised:
            run_task(
                lambda: self._open_project(path, read_only=True),
                self._on_opened,
                lambda error: self._on_open_failed(path, error),
                owner=self,
            )
            return
        self._opening = False
        if self.session is None:
            self.window.close()
        else:
            self.window.status.notify(f"{path.name} is open in another window, which was brought forward")

    def raise_window(self) -> None:
        """Bring the window to the front."""
        self.window.setWindowState(self.window.windowState() & ~self.window.windowState().WindowMinimized)
        self.window.show()
        self.window.raise_()
        self.window.activateWindow()

    # ---- deeds of the menus ----

    def ask_new(self, *, sample: bool) -> None:
        """Ask for the name and place of a new project."""
        from ui.project_dialogs import NewProject

        place = Path(self.settings.pane("projects-folder", str(Path.home() / "Tastemaker")))
        dialog = NewProject(place, sample=sample, parent=self.window)
        dialog.chosen.connect(self._on_new)
        self._open_dialog(dialog)

    def ask_open(self) -> None:
        """Ask for a project's folder."""
        start = self.settings.pane("projects-folder", str(Path.home()))
        chosen = QFileDialog.getExistingDirectory(self.window, "Open a project", start)
        if chosen:
            self.open(Path(chosen))

    def ask_import(self, path: Path | None = None) -> None:
        """Open the import dialog."""
        from ui.import_dialog import ImportDialog

        if self.session is not None:
            self._open_dialog(ImportDialog(self.session.context, path, self.window))

    def ask_export(self) -> None:
        """Open the export dialog."""
        from ui.export_dialog import ExportDialog

        if self.session is not None:
            self._open_dialog(ExportDialog(self.session.context, self.window))

    def check_project(self) -> None:
        """Check the database and every label; takes seconds on a large project."""
        from ui.project_dialogs import CheckReport

        if self.session is None:
            return
        self.window.status.notify("Checking the project…")
        run_task(
            self.session.project.check,
            lambda found: self._open_dialog(CheckReport(found, self.window)),
            self.show_error,
            owner=self,
        )

    def ask_restore(self, path: Path | None = None) -> None:
        """Ask which backup to go back to."""
        from ui.project_dialogs import RestoreBackup
        from workbench.backups import backups

        if path is None and self.session is not None:
            path = self.session.project.path
        if path is None:
            return
        project = path

        def show(found: list[tuple[str, str, int]]) -> None:
            dialog = RestoreBackup(project.name, found, self.window)
            dialog.chosen.connect(lambda name: self._restore(project, name))
            self._open_dialog(dialog)

        run_task(
            lambda: [(one.path.name, one.when, one.path.stat().st_size) for one in backups(project / "backups")],
            show,
            self.show_error,
            owner=self,
        )

    def ask_rater(self) -> None:
        """Ask for the rater's name."""
        from ui.project_dialogs import RaterName

        if self.session is not None:
            dialog = RaterName(self.session.context.rater.name, self.window)
            dialog.chosen.connect(self.session.rename_rater)
            self._open_dialog(dialog)

    def show_glossary(self) -> None:
        """Show what every metric means."""
        from ui.help_dialogs import Glossary

        self._open_dialog(Glossary(self.window))

    def show_keys(self) -> None:
        """Show the keys."""
        from ui.help_dialogs import Keys

        self._open_dialog(Keys(self.window.menus.actions(), self.window))

    def show_about(self) -> None:
        """Say what this is."""
        from ui.help_dialogs import About

        self._open_dialog(About(self.window))

    def show_error(self, error: BaseException) -> ErrorCard:
        """Show an error as a card over the window."""
        return show_error(error, self.window)

    def navigate(self, pane: str, **what: str) -> None:
        """Show a pane at something; "import" and "export" open their dialogs."""
        if pane == "import":
            self.ask_import()
        elif pane == "export":
            self.ask_export()
        else:
            self.window.show_pane(pane, **what)

    def is_settled(self) -> bool:
        """Whether all that was asked for is on screen and nothing is being read or written."""
        return not self._opening and operations().pending == 0

    def _on_undo(self) -> None:
        if self.session is not None:
            self.session.undo()

    def _on_redo(self) -> None:
        if self.session is not None:
            self.session.redo()

    def _restore(self, path: Path, name: str) -> None:
        from workbench.project import restore_backup

        def restore() -> None:
            run_task(
                lambda: restore_backup(path, name),
                lambda _aside: self.open(path),
                self.show_error,
                owner=self,
            )

        self.close_project(restore)

    def _on_new(self, folder: str, sample: bool) -> None:
        self.settings.set_pane("projects-folder", str(Path(folder).parent))
        self.create(Path(folder), sample=sample)

    def _on_forget(self, path: str) -> None:
        self.settings.forget_project(path)
        self._show_recent()
        run_task(self.settings.save)

    def _on_theme(self, mode: str) -> None:
        self.settings.values.theme = mode
        self.theme.set_mode(mode)  # type: ignore[arg-type]
        run_task(self.settings.save)

    def _on_text_size(self, size: str) -> None:
        self.settings.values.text_size = size
        self.theme.set_text_size(size)
        run_task(self.settings.save)

    def _show_recent(self) -> None:
        self.welcome.set_recent(self.settings.values.recent)
        self.window.menus.set_recent(self.settings.values.recent)

    def _ask_unsaved(self, found: list[Unsaved], again: Callable[[], object], anyway: Callable[[], object]) -> None:
        from ui.project_dialogs import UnsavedWork

        dialog = UnsavedWork(found, self.window)
        dialog.again.connect(again)
        dialog.anyway.connect(anyway)
        self._open_dialog(dialog)

    def _open_dialog(self, dialog: QDialog) -> None:
        self.dialog = dialog
        dialog.destroyed.connect(self._on_dialog_gone)
        dialog.open()

    def _on_dialog_gone(self) -> None:
        self.dialog = None

    def _build_one(self) -> None:
        """Make one pane more while nothing else happens, so that it is there when it is asked for."""
        missing = [key for key in KEYS if key not in self.window.built()]
        if not missing or self.session is None:
            self._quiet.stop()
            return
        if operations().pending == 0 and QApplication.activeModalWidget() is None:
            self.window.pane(missing[0])

    def _on_closing(self) -> None:
        self.settings.values.geometry = self.window.geometry_text()
        session, self.session = self.session, None
        self._quiet.stop()
        if session is not None:
            self.window.hide()
            self.window.clear_project()  # else what the panes still read would fail on the closed project, and say so
            session.close()
        self.settings.save()


def _finish(session: Session, then: Callable[[], None] | None) -> None:
    session.deleteLater()
    if then is not None:
        then()


def make_qapp() -> QApplication:
    """Make the application object with its names."""
    existing = QApplication.instance()
    qapp = existing if isinstance(existing, QApplication) else QApplication(sys.argv[:1])
    qapp.setApplicationName("tastemaker")
    qapp.setApplicationDisplayName("Tastemaker")
    return qapp


def run(project_path: Path | None = None) -> int:
    """Open the window on a project, on the last one, or on the welcome page. Returns the exit code."""
    qapp = make_qapp()
    faults.install()
    Collector(qapp)
    settings = Settings(config_dir() / "window.json")
    app = App(qapp, settings)
    meter = StartMeter(app.window, app.is_settled) if asked_to_measure() else None
    app.window.show()
    path = project_path or next(
        (Path(one) for one in settings.values.recent[:1] if Path(one, DATABASE).is_file()), None
    )
    if path is not None:
        app.open(path)
    if meter is not None:
        meter.start()
    code = qapp.exec()
    shutdown()
    return code
