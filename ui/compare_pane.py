"""Compare: the same prompts through two to four models, voted on blind; and chat with any of them."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

import msgspec
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QListWidget, QListWidgetItem, QStackedWidget, QTabBar, QWidget

from ui.chat_view import ChatView
from ui.compare_results import CompareResults
from ui.compare_runner import ComparePlan, CompareRunner
from ui.compare_setup import CompareSetup
from ui.compare_state import Board
from ui.context import Context
from ui.labelling import Given, send
from ui.operations import bind_future, run_task
from ui.theme import L, M, S
from ui.times import moment
from ui.unsaved import Unsaved
from ui.widgets import ElidedLabel, EmptyState, ErrorBanner, PageHeader, Text, button, column, plural, row
from workbench import comparisons
from workbench.comparisons import AnyLine, Comparison, ComparisonLog, Voted, new_header
from workbench.errors import UserError
from workbench.ids import now
from workbench.records import Change

_SIDE, _CHAT = range(2)
_SUBTITLES = (
    "The same prompts through two to four models; your vote is blind.",
    "Talk with any model; what is worth it goes to labelling.",
)


class ComparePane(QWidget):
    """The comparing screen: side by side, and chat."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("compare-pane")
        self.setAccessibleName("Compare")
        self._context = context
        self._log: ComparisonLog | None = None
        self._activated = False
        self.board: Board | None = None
        self.runner = CompareRunner(context, self)
        self.header = PageHeader("Compare", _SUBTITLES[_SIDE])
        self.blind = button("Blind vote", name="blind", tip="Hide names and scores until you have voted")
        self.blind.setCheckable(True)
        self.blind.setChecked(True)
        self.earlier = button("Earlier…", self.open_earlier, name="earlier-comparisons")
        self.header.add_action(self.blind)
        self.header.add_action(self.earlier)
        self.tabs = QTabBar()
        self.tabs.setObjectName("compare-tabs")
        self.tabs.setAccessibleName("Side by side or chat")
        self.tabs.addTab("Side by side")
        self.tabs.addTab("Chat")
        self.tabs.setDrawBase(False)
        self.tabs.setExpanding(False)
        self.setup = CompareSetup(context)
        self.banner = ErrorBanner()
        self.about = ElidedLabel("", "body", "muted")
        self.about.setObjectName("compare-about")
        self.stop = button("Stop", self.runner.stop, name="compare-stop", tip="Keep what is whole")
        self.change = button("New comparison…", self.show_setup, name="new-comparison")
        self.bar = QWidget()
        line = row(self.about, self.stop, self.change, spacing=S)
        line.setStretch(0, 1)
        self.bar.setLayout(line)
        self.bar.hide()
        self.results = CompareResults(read_only=context.read_only)
        self.empty = EmptyState(
            "compare",
            "Which one answers better?",
            "Choose two models, for example before and after training, and a set of prompts that neither has seen. "
            "You vote without knowing which is which; the share of votes comes with its interval.",
        )
        self.pages = QStackedWidget()
        self.pages.addWidget(self.empty)
        self.pages.addWidget(self.results)
        side = QWidget()
        parts = column(self.setup, self.bar, self.banner, self.pages, spacing=M)
        parts.setStretch(3, 1)
        side.setLayout(parts)
        self.chat = ChatView(context)
        self.views = QStackedWidget()
        self.views.addWidget(side)
        self.views.addWidget(self.chat)
        root = column(self.header, self.tabs, self.views, spacing=S, margins=(L, M, L, M))
        root.setStretch(2, 1)
        self.setLayout(root)
        self._connect()

    def _connect(self) -> None:
        self.tabs.currentChanged.connect(self._on_tab)
        self.blind.toggled.connect(self._on_blind)
        self.setup.asked.connect(self.start)
        self.runner.cell_changed.connect(self._on_cell)
        self.runner.token.connect(self.results.stream)
        self.runner.progressed.connect(self._say_progress)
        self.runner.line.connect(self._keep)
        self.runner.failed.connect(self.banner.show_error)
        self.runner.finished.connect(self._say_progress)
        self.results.voted.connect(self._on_voted)
        self.results.label_asked.connect(self._send_to_labelling)
        self.banner.action_clicked.connect(self._flush)
        for picker in self.setup.models:
            picker.model_chosen.connect(self._on_models)

    # ---- the pane's life ------------------------------------------------------------------------------------

    def activate(self) -> None:
        """The pane is shown."""
        if self.tabs.currentIndex() == _CHAT:
            self.chat.entry.setFocus()
        elif self.board is not None:
            self.results.list.setFocus()

    def show_item(self, model_id: str = "", chat: str = "", with_model_id: str = "", **_: str) -> None:
        """Chat with a model (``chat`` not empty), or set models up to be compared."""
        if chat:
            self.tabs.setCurrentIndex(_CHAT)
            self.chat.model.set_model_id(model_id)
        elif model_id:
            self.tabs.setCurrentIndex(_SIDE)
            self.setup.compare(model_id, with_model_id)
            self.show_setup()

    def unsaved(self) -> Unsaved | None:
        """Write votes and answers that wait, at once: no task is waited for once the window goes."""
        self.runner.stop()
        if self._log is not None and not self._context.read_only:
            try:
                self._log.flush()
            except UserError as error:
                self._on_not_kept(error)
                return Unsaved(f"{plural(self._log.waiting, 'line')} of this comparison: votes, answers and scores")
        return None

    def _on_tab(self, index: int) -> None:
        self.views.setCurrentIndex(index)
        self.header.set_subtitle(_SUBTITLES[index])
        self.blind.setVisible(index == _SIDE)
        self.earlier.setVisible(index == _SIDE)
        self.activate()

    def _on_models(self, _model_id: str) -> None:
        if not self._activated and all(picker.models() for picker in self.setup.models):
            self._activated = True
            self.setup.models_loaded()

    # ---- running --------------------------------------------------------------------------------------------

    def start(self, plan: ComparePlan) -> None:
        """Run a comparison and open its file."""
        self.banner.hide()
        header = new_header(
            [(one.id, one.name) for one in plan.models],
            reward_id=plan.reward.id if plan.reward else "",
            reward_name=plan.reward.name if plan.reward else "",
            rater_id=self._context.rater.id,
            sampling=plan.sampling,
            quantisation=plan.quantisation,
            blind=self.blind.isChecked(),
        )
        self.runner.stop()
        self._log = ComparisonLog(self._context.project.path, header)
        self._keep(*plan.prompts)
        self.board = Board.begin(header, plan.prompts)
        self.runner.start(plan)
        self.board.cells = self.runner.cells
        self._show_results()

    def _on_cell(self, place: int, _column: int) -> None:
        if self.board is not None and self.board.cells is self.runner.cells:
            self.results.refresh_row(place)

    def show_setup(self) -> None:
        """Choose models and prompts for another comparison."""
        self.setup.show()
        self.setup.refresh()
        self.change.hide()

    def _show_results(self) -> None:
        if self.board is not None:
            self.results.show_board(self.board)
            self.pages.setCurrentWidget(self.results)
            self.setup.hide()  # its room is better used for the answers
            self.change.show()
            self.bar.show()
            self._say_progress()
            self.results.list.setFocus()

    def _say_progress(self) -> None:
        runner, board = self.runner, self.board
        self.stop.setVisible(runner.running)
        if board is None:
            return
        header = board.header
        parts = [" / ".join(header.model_names), plural(len(board.prompts), "prompt")]
        parts += [f"scored by {header.reward_name}"] if header.reward_name else []
        if runner.running:
            parts.append(f"{runner.done} of {plural(runner.total, 'answer')}")
            parts += [runner.what] if runner.what else []
        self.about.setText(" · ".join(parts))

    def _on_blind(self, blind: bool) -> None:
        if self.board is not None and not self.board.ballot.total:
            self.board.header = msgspec.structs.replace(self.board.header, blind=blind)
            self.results.refresh()

    # ---- the file -------------------------------------------------------------------------------------------

    def _keep(self, *lines: AnyLine) -> None:
        if self._log is not None and not self._context.read_only:
            self._log.add(*lines)
            self._flush()

    def _flush(self) -> None:
        log = self._log
        if log is not None:
            run_task(log.flush, lambda _: self._on_flushed(), self._on_not_kept, owner=self)

    def _on_flushed(self) -> None:
        if self.banner.action.text() == "Save again":
            self.banner.hide()

    def _on_not_kept(self, error: BaseException) -> None:
        self.banner.show_error(error, "Save again")

    def _on_voted(self, place: int, winner: int) -> None:
        board = self.board
        if board is not None:
            asked = board.prompts[place]
            order = board.order(place)
            self._keep(Voted(key=asked.key, winner=winner, shown_order=order, blind=board.header.blind, at=now()))

    # ---- earlier ones ---------------------------------------------------------------------------------------

    def open_earlier(self) -> None:
        """List earlier comparisons, to look at one again or to vote on."""
        path = self._context.project.path
        run_task(lambda: comparisons.listed(path), self._on_listed, owner=self)

    def _on_listed(self, found: list[Comparison]) -> None:
        dialog = QDialog(self)
        dialog.setObjectName("earlier-dialog")
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setWindowTitle("Earlier comparisons")
        dialog.resize(560, 400)
        view = QListWidget()
        view.setAccessibleName("Earlier comparisons, newest first")
        for one in found:
            about = f"{moment(one.header.created_at)} · {plural(len(one.prompts), 'prompt')}"
            item = QListWidgetItem(f"{' / '.join(one.header.model_names)}\n{about} · {plural(len(one.votes), 'vote')}")
            item.setData(Qt.ItemDataRole.UserRole, one)
            view.addItem(item)

        def open_() -> None:
            item = view.currentItem()
            if item is not None:
                self.show_comparison(item.data(Qt.ItemDataRole.UserRole))
                dialog.accept()

        view.itemActivated.connect(lambda _: open_())
        view.setCurrentRow(0)
        go = button("Open", open_, kind="primary", name="open-comparison")
        go.setEnabled(bool(found))
        note = Text("" if found else "There is none in this project yet.", "small", "muted")
        buttons = row(note, None, button("Close", dialog.reject), go, spacing=S)
        dialog.setLayout(column(view, buttons, spacing=M, margins=(M, M, M, M)))
        dialog.open()

    def show_comparison(self, found: Comparison) -> None:
        """Show a comparison from its file."""
        self.runner.stop()
        self._log = ComparisonLog.reopen(self._context.project.path, found.header)
        self.board = Board.restored(found)
        self.blind.setChecked(found.header.blind)
        self._show_results()

    # ---- labelling ------------------------------------------------------------------------------------------

    def _send_to_labelling(self, place: int) -> None:
        board, store = self.board, self._context.store
        if board is None:
            return
        asked, header = board.prompts[place], board.header
        answers = []
        for index in range(board.columns):
            cell = board.cells[place, index]
            if cell.finish_reason in ("stop", "length"):
                sampling = dataclasses.replace(header.sampling, seed=cell.seed)
                model = header.model_ids[index], header.model_names[index]
                answers.append(Given(cell.text, *model, cell.finish_reason, cell.token_count, sampling))
        if len(answers) < 2:
            self._context.notify("Fewer than two whole answers: nothing to rank.", "warn")
            return

        def sent(outcome: tuple[str, Future[Change]]) -> None:
            prompt_id, future = outcome
            bind_future(
                future,
                lambda _: self._context.navigate("rank", prompt_id=prompt_id),
                self.banner.show_error,
                owner=self,
            )

        run_task(
            lambda: send(store, asked.messages, answers, source="compare", prompt_id=asked.prompt_id),
            sent,
            self.banner.show_error,
            owner=self,
        )
