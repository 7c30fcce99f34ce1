"""Rank: K responses side by side, blind and shuffled, judged by keys; saved before the next prompt is shown."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from PySide6.QtCore import QEvent, QPoint, Qt
from PySide6.QtGui import QHideEvent, QKeyEvent, QShowEvent
from PySide6.QtWidgets import QMenu, QWidget

from ui.consistency_dialog import ConsistencyDialog
from ui.context import Context
from ui.flag_menu import open_flag_menu
from ui.labelling import READ_ONLY
from ui.operations import bind_future, run_task
from ui.rank_feed import RankFeed
from ui.rank_history import RankHistoryDialog
from ui.rank_keys import bind_key, undo_key
from ui.rank_live import LiveCards
from ui.rank_open import Opened, open_prompt
from ui.rank_session import RankItem, Stopwatch, Work, judged, reveal_line
from ui.rank_state import LETTERS, RankSheet
from ui.rank_undo import RankUndo
from ui.rank_view import RankView
from ui.re_ask import ReAsks
from ui.sampler import Sampler, SamplingJob, SamplingPlan
from ui.sampling_dialog import SamplingDialog
from ui.unsaved import Unsaved, finish_writes
from ui.widgets import column, plural
from workbench.records import BAD, GOOD, Change, Counts, ModelRecord, Outcome, Ranking, ResponseFlag

_WARNINGS = {
    "tied": ("All responses are tied", "No preference can be learned from this card. Enter again saves it so."),
    "untouched": ("The order was not changed", "Enter again confirms the ranking as it was."),
}


class RankPane(QWidget):
    """The ranking screen."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("rank-pane")
        self.setAccessibleName("Rank")
        self._context = context
        self._work: Work | None = None
        self._aside: list[Work] = []  # unfinished cards that another one was opened over
        self._saving = False
        self._unsaved: Ranking | None = None
        self.flag_menu: QMenu | None = None
        self._revealed: set[str] = set()  # responses whose models were told: what shows them again is not blind
        self._names: dict[str, str] = {}
        self.stopwatch = Stopwatch()
        self.feed = RankFeed(context, self)
        self.re_asks = ReAsks(context, self)
        self.sampler = Sampler(context, self)
        self.view = RankView(self.sampler)
        self.live = LiveCards(self.view, self.sampler, self)
        self.way_back = RankUndo(context, self.view, self.feed, self.re_asks, lambda: self._at_hand, self)
        self.acts, self.stats = self.way_back.acts, self.way_back.stats
        self.setLayout(column(self.view))
        if context.read_only:
            self.view.header.sample.setEnabled(False)
            self.view.header.sample.setToolTip(READ_ONLY)
            self.view.empty.action.setEnabled(False)
        self._connect()
        self._add_keys()

    def _connect(self) -> None:
        view, settings = self.view, self._context.settings
        self._context.changed.connect(self._on_changed)
        self.feed.arrived.connect(self._on_feed)
        self.feed.counted.connect(self._on_counted)
        self.re_asks.withdrawn.connect(self._withdraw)
        self.way_back.opened.connect(self._on_opened)
        self.way_back.redone.connect(self._on_redone)
        self.sampler.job_started.connect(self._on_job)
        self.sampler.arrived.connect(lambda *_: self.feed.refill())
        self.sampler.failed.connect(view.banner.show_error)
        self.sampler.finished.connect(self._on_sampling_finished)
        view.board.place_clicked.connect(self._on_place_clicked)
        view.board.focused.connect(self._on_focused)
        view.empty_action.connect(self._on_empty_action)
        view.header.columns.setCurrentIndex(int(settings.pane("rank.columns", "0")))
        view.board.set_columns(view.header.columns.currentData())
        view.header.reveal.setChecked(settings.pane("rank.reveal") == "1")
        view.header.columns_chosen.connect(self._on_columns)
        view.header.reveal.toggled.connect(self._on_reveal)
        view.header.differences.toggled.connect(self._show_differences)
        view.header.sample.clicked.connect(lambda _: self.ask_for_responses())
        view.more.clicked.connect(lambda _: self.ask_for_responses(to_this=True))
        view.header.earlier.clicked.connect(self.open_history)
        view.header.consistency.clicked.connect(self.open_consistency)
        view.footer.submit.clicked.connect(self.submit)
        view.footer.skip.clicked.connect(self.skip)
        view.footer.cannot.clicked.connect(self.cannot_rank)
        view.footer.flag.clicked.connect(self.open_flags)
        view.footer.undo.clicked.connect(self.undo)
        view.footer.note.returnPressed.connect(self._focus_board)
        view.warning.action_clicked.connect(self._save_again)

    def _add_keys(self) -> None:
        header, footer, board = self.view.header, self.view.footer, self.view.board
        for name in ("1", "2", "3", "4", "5", "6", "7", "8", "9", "=", "+", "-", "Backspace"):
            bind_key(self, name, partial(self._press, name))
        for name, act in (
            ("S", self.skip),
            ("X", self.cannot_rank),
            ("F", self.open_flags),
            ("N", footer.note.setFocus),
            ("D", header.differences.toggle),
            ("R", header.reveal.toggle),
            ("H", self.open_history),
            ("C", self.open_consistency),
            ("G", self.ask_for_responses),
            ("Esc", self._focus_board),
        ):
            bind_key(self, name, act)
        for name in ("Left", "Right", "Up", "Down"):
            bind_key(board, name, partial(self._press, name))
        for name in ("Return", "Enter"):
            bind_key(board, name, self.submit)

    # ---- the pane's life ------------------------------------------------------------------------------------

    def activate(self) -> None:
        """The pane is shown: read what is new and put the focus on the card."""
        self._load_names()
        self.feed.refill()
        self._focus_board()

    def show_item(self, prompt_id: str = "", ranking_id: str = "", sample: str = "", **_: str) -> None:
        """Open a label of a prompt to correct it, or what waits there for this rater; or ask for responses."""
        if sample:
            self.ask_for_responses()
        store, rater_id = self._context.store, self._context.rater.id
        if prompt_id:
            run_task(
                lambda: open_prompt(store, prompt_id, rater_id, ranking_id),
                partial(self._on_found, prompt_id),
                self._context.show_error,
                owner=self,
            )

    @property
    def item(self) -> RankItem | None:
        """The card in work."""
        return self._work.item if self._work else None

    @property
    def sheet(self) -> RankSheet | None:
        """Places, ties and focus of the card in work."""
        return self._work.sheet if self._work else None

    def unsaved(self) -> Unsaved | None:
        """Save what could not be saved before: a ranking, and sampled responses."""
        if not self._saving:
            self._save_again()
        self.sampler.stop()
        self.sampler.retry()
        finish_writes(self._context.store)
        parts = ["a ranking"] if self._unsaved is not None else []
        parts += [f"the responses to {plural(self.sampler.unsaved, 'prompt')}"] if self.sampler.unsaved else []
        what = " and ".join(parts)
        return Unsaved(what[:1].upper() + what[1:], "\n\n".join(self.sampler.unsaved_texts())) if parts else None

    def _load_names(self) -> None:
        run_task(self._context.store.models, self._on_models, owner=self)

    def _on_models(self, models: list[ModelRecord]) -> None:
        self._names = {one.id: one.name for one in models}

    def _on_changed(self, change: Change) -> None:
        if "models" in change.kinds:
            self._load_names()
        if self.feed.follow_rater():  # whoever judges now has seen nothing but what stands here
            for work in self._at_hand:
                self.feed.hold_back(work.item.prompt.id)
            self._withdraw({one.item.ranking_id for one in self._at_hand if not self.re_asks.is_own(one.item)})
        self.re_asks.on_changed(change, [one.item for one in self._at_hand])
        self.way_back.on_changed(change)
        self.feed.on_changed(change)

    @property
    def _at_hand(self) -> list[Work]:
        """The cards that are begun: those put aside, and last the one on screen."""
        return [*self._aside, *([self._work] if self._work else [])]

    def _withdraw(self, cards: Collection[str]) -> None:
        """Put away, by ranking id, cards that ask once more for what this rater has not said, or says no more."""
        gone = [work for work in self._at_hand if work.item.ranking_id in cards]
        on_screen = self._work is not None and self._work in gone and not self._saving
        self._aside = [work for work in self._aside if work not in gone]
        if on_screen:
            self._work = self._unsaved = None
        for work in gone:
            self.way_back.let_go(work.item.prompt.id)
        if on_screen:
            self._context.notify(
                "The earlier card was put away: what it asks for once more is not yours, or stands no more."
            )
            self._next()

    # ---- which card -----------------------------------------------------------------------------------------

    def _next(self) -> None:
        self._work = None
        if self._aside:
            self._show(self._aside.pop())
        elif (item := self.re_asks.take() or self.feed.take()) is not None:
            self._open(item)
        elif self.sampler.job is not None:
            self._on_job(self.sampler.job)
        else:
            self.stopwatch.pause()
            self.feed.refill()  # its count decides what the empty page says
        self._say_session()

    def _open(self, item: RankItem) -> None:
        self._show(Work.begin(item))

    def _show(self, work: Work) -> None:
        self._work = work
        self.live.end()
        self.feed.hold_back(work.item.prompt.id)
        self.sampler.taken(work.item.prompt.id)
        self.stopwatch.restart(work.seconds)
        focus = work.sheet.state.focus
        self.view.show_item(work.item, work.note)
        work.sheet.focus(focus)  # the page that comes back gives the focus to the card that had it last
        self._refresh()
        self._tick()

    def _on_found(self, prompt_id: str, found: Opened) -> None:
        if found.said:
            self._context.notify(found.said, "warn")
        self._on_opened(prompt_id, found.item)

    def _on_opened(self, prompt_id: str, item: RankItem | None) -> None:
        if item is None:
            self.way_back.let_go(prompt_id)
            self._context.notify("This prompt has fewer than two responses: nothing to rank yet.", "warn")
        elif not self.re_asks.is_own(item):
            self.way_back.let_go(prompt_id)  # another rater's answer was undone
        elif self._work is not None and not item.places and self._work.item.same_as(item):
            self._focus_board()  # it came up by itself meanwhile
        elif self._saving:
            self._aside.append(Work.begin(item))  # it comes next, once this card is saved
        else:
            self._put_aside()
            self._open(item)
            self._focus_board()

    def _put_aside(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.note, work.seconds = self.view.footer.note.text(), self.stopwatch.seconds
            self._aside.append(work)

    def _on_feed(self) -> None:
        if self._work is None and not self._saving:
            self._next()

    def _on_counted(self, waiting: int) -> None:
        self._say_session()
        if self._work is None and not self._saving and not waiting:
            if self.sampler.job is not None:
                self._on_job(self.sampler.job)
            else:
                store, rater_id, skipped = self._context.store, self._context.rater.id, self.feed.passed_over
                run_task(
                    lambda: (store.counts(), len(skipped.intersection(store.next_to_rank(rater_id=rater_id)))),
                    lambda found: self._show_empty(*found),
                    owner=self,
                )

    def _show_empty(self, counts: Counts, skipped: int) -> None:
        if self._work is None and self.sampler.job is None:
            self.live.end()
            self.view.show_empty(counts, skipped)

    def _on_empty_action(self, what: str) -> None:
        if what == "demonstrate":
            self._context.navigate("demonstrate")
        elif what == "skipped":
            self.feed.start_over()
        else:
            self.ask_for_responses()

    def _say_session(self) -> None:
        left = self.feed.waiting + (self._work is not None) + len(self._aside)
        ready = f"{plural(left, 'prompt')} to rank" if left else "nothing waits"
        self.view.header.set_subtitle(f"{ready} · {self.stats.line()}")

    # ---- responses being written ----------------------------------------------------------------------------

    def ask_for_responses(self, *, to_this: bool = False) -> None:
        """Open the dialog that samples responses; with ``to_this`` the prompt on screen is chosen there."""
        if self._context.read_only:
            self._context.notify(READ_ONLY, "warn")
            return
        dialog = SamplingDialog(self._context, self.item.prompt.id if self.item else "", self, choose_current=to_this)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.planned.connect(self.start_sampling)
        dialog.finished.connect(lambda _: self._focus_board())
        dialog.open()

    def start_sampling(self, plan: SamplingPlan) -> None:
        """Draw responses as planned."""
        self.view.banner.hide()
        self.sampler.start(plan)

    def _on_job(self, job: SamplingJob) -> None:
        self.feed.promise(job.prompt.id, job.ranking_id)
        if self._work is None and not self._saving and self.live.show(job):
            self.stopwatch.pause()

    def _on_sampling_finished(self) -> None:
        if self._work is None:
            self.feed.refill()

    # ---- keys and clicks ------------------------------------------------------------------------------------

    def _press(self, key: str) -> None:
        work = self._work
        if work is None:
            if self.live.job is not None and key.isdigit():
                self.view.footer.say("Still being written: the responses can be ranked once all are whole.", "warn")
            return
        if self._saving:
            return
        focus = work.sheet.state.focus
        if work.sheet.press(key, self.view.board.columns):
            self._refresh()
            if work.sheet.state.focus != focus:
                self._show_differences()
        elif key in ("Up", "Down"):
            self.view.board.cards[focus].scroll_text(f"line-{key.lower()}")

    def _on_place_clicked(self, position: int, place: int) -> None:
        if self._work is not None and not self._saving:
            self._work.sheet.place(position, place)
            self._refresh()
            self._show_differences()

    def _on_focused(self, position: int) -> None:
        work = self._work
        if work is not None and work.sheet.state.focus != position:
            work.sheet.focus(position)
            self._refresh(take_focus=False)
            self._show_differences()

    def _refresh(self, *, take_focus: bool = True) -> None:
        work = self._work
        if work is None:
            return
        if work.warned and (work.sheet.state.touched and not work.sheet.state.all_tied):
            work.warned = ""
            self.view.warning.hide()
        typing = self.view.footer.note.hasFocus()
        self.view.show_state(work.item, work.sheet.state, work.flags, take_focus=take_focus and not typing)
        self.view.set_saving(self._saving or self._context.read_only)

    def _focus_board(self) -> None:
        if self._work is not None:
            self.view.board.cards[self._work.sheet.state.focus].setFocus(Qt.FocusReason.OtherFocusReason)
        else:
            self.setFocus()

    def _show_differences(self) -> None:
        if self._work is not None:
            on = self.view.header.differences.isChecked()
            self.view.board.show_differences(self._work.sheet.state.focus if on else None)

    def open_flags(self) -> None:
        """Show the menu of flags for the focused response and for all."""
        work = self._work
        if work is not None and not self._saving:
            focus = work.sheet.state.focus
            at = self.view.footer.flag.mapToGlobal(QPoint(0, 0))
            flags = work.flags | {(work.item.ids[focus], work.sheet.state.thumb(focus))}
            self.flag_menu = open_flag_menu(at, LETTERS[focus], work.item.ids[focus], flags, self._set_flag)

    def _set_flag(self, response_id: str, flag: str, on: bool) -> None:
        if self._work is None:
            return
        if flag in (GOOD, BAD):
            self._work.sheet.set_thumb(self._work.item.ids.index(response_id), flag)
        else:
            (self._work.flags.add if on else self._work.flags.discard)((response_id, flag))
        self._refresh()

    # ---- judging --------------------------------------------------------------------------------------------

    def submit(self) -> None:
        """Save the ranking and go on; says what is missing when something is."""
        work = self._work
        if work is None or self._saving or self._context.read_only:
            return
        state = work.sheet.state
        if not state.complete:
            work.sheet.focus(state.unplaced[0])
            self._refresh()
            self.view.footer.say(state.missing(), "warn")
            return
        work.note = self.view.footer.note.text()
        doubt = work.doubt()
        if doubt and work.warned != doubt:
            work.warned = doubt
            self.view.warning.show_message(*_WARNINGS[doubt], tone="warn")
            return
        self._finish("ranked")

    def skip(self) -> None:
        """Leave the card for later."""
        if self._work is not None and self._work.item.corrects and not self._saving:
            self.feed.let_go(self._work.item.prompt.id)
            self._next()  # the earlier ranking stands; there is nothing to note
        else:
            self._finish("skipped")

    def cannot_rank(self) -> None:
        """Say that nothing here can be judged: the prompt does not come up again."""
        self._finish("cannot-rank")

    def _finish(self, outcome: Outcome) -> None:
        work = self._work
        if work is None or self._saving or self._context.read_only:
            return
        self.stopwatch.pause()
        ranking = judged(
            work.item,
            work.sheet.state,
            rater_id=self._context.rater.id,
            outcome=outcome,
            flags=[ResponseFlag(*one) for one in work.flags],
            note=self.view.footer.note.text(),
            seconds=self.stopwatch.seconds,
            blind=self._revealed.isdisjoint(work.item.ids),
        )
        self._save(ranking)

    def _save(self, ranking: Ranking) -> None:
        self._saving = True
        self._unsaved = ranking
        self.view.set_saving(True)
        future = self.re_asks.save(ranking, self.item)
        bind_future(future, lambda change: self._on_saved(ranking, change), self._on_not_saved, owner=self)

    def _save_again(self) -> None:
        """Save the card as it stands now: it may have been changed since it was refused."""
        refused, work = self._unsaved, self._work
        if refused is None or work is None or refused.id != work.item.ranking_id:
            return
        if refused.outcome == "ranked":
            self.submit()
        else:
            self._finish(refused.outcome)

    def _on_saved(self, ranking: Ranking, change: Change) -> None:
        work, self._saving = self._work, False
        self.view.set_saving(False)
        self._unsaved = None
        self.acts.add(ranking, change.label)
        for counted in self.re_asks.without_answers([ranking]):
            self.stats.add(counted, work.item.corrects if work else None)
        self.way_back.done_with(ranking)
        self.re_asks.on_judged(ranking)
        if work is not None and self.view.header.reveal.isChecked():
            self._revealed.update(work.item.ids)
            self.view.reveal_text.setText(reveal_line(work.item, self._names, LETTERS))
            self.view.reveal_text.show()
        self._next()

    def _on_not_saved(self, error: BaseException) -> None:
        self._saving = False
        self.view.set_saving(False)
        if self._unsaved is not None and self._unsaved.outcome == "skipped" and self.item and self.item.re_asks:
            self._unsaved = None
            self.feed.let_go(self.item.prompt.id)
            self._context.notify(f"Skipped, but not noted: the card may come back. {error}", "warn")
            self._next()  # the ranking that stands is not touched; there is nothing to keep
            return
        self.view.warning.show_error(error, "Try again")
        self.view.footer.say("Not saved. The card stays as it is.", "bad")
        self._tick()

    # ---- undo -----------------------------------------------------------------------------------------------

    def undo(self) -> None:
        """Take the last placement of this card back, or else the last ranking of this session."""
        if self._saving or self.acts.busy or self._context.read_only:
            return
        if self._work is not None and self._work.sheet.undo():
            self._refresh()
        else:
            self.way_back.undo()

    def redo(self) -> None:
        """Bring back the last placement, or else the last ranking, that was taken back."""
        if self._saving or self.acts.busy or self._context.read_only:
            return
        if self._work is not None and self._work.sheet.redo():
            self._refresh()
        elif not (self._work and self._work.sheet.state.touched):
            self.way_back.redo()

    def _on_redone(self, ranking: Ranking) -> None:
        if self._work is None or self._work.item.prompt.id == ranking.prompt_id:
            self.way_back.done_with(ranking)
            self._next()

    def open_history(self) -> None:
        """List earlier cards, to open one and correct it."""
        dialog = RankHistoryDialog(self._context, self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.picked.connect(self.way_back.correct)
        dialog.finished.connect(lambda _: self._focus_board())
        dialog.open()

    def open_consistency(self) -> None:
        """Say how consistent the labels are."""
        dialog = ConsistencyDialog(self._context, self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.finished.connect(lambda _: self._focus_board())
        dialog.open()

    # ---- settings, time and focus ---------------------------------------------------------------------------

    def _on_columns(self, columns: int) -> None:
        self.view.board.set_columns(columns)
        self._context.settings.set_pane("rank.columns", str(self.view.header.columns.currentIndex()))

    def _on_reveal(self, on: bool) -> None:
        self._context.settings.set_pane("rank.reveal", "1" if on else "0")
        if not on:
            self.view.reveal_text.hide()

    def _tick(self) -> None:
        watching = self.isVisible() and self.isActiveWindow() and self._work is not None and not self._saving
        (self.stopwatch.start if watching else self.stopwatch.pause)()

    def showEvent(self, event: QShowEvent) -> None:
        """Let time count."""
        super().showEvent(event)
        self._tick()

    def hideEvent(self, event: QHideEvent) -> None:
        """Let time stand still."""
        super().hideEvent(event)
        self.stopwatch.pause()

    def event(self, event: QEvent) -> bool:
        """Claim undo and redo before the window's own take them: here they first mean this card."""
        if event.type() == QEvent.Type.ShortcutOverride and isinstance(event, QKeyEvent) and undo_key(event):
            event.accept()
            return True
        done = super().event(event)
        if event.type() in (QEvent.Type.WindowActivate, QEvent.Type.WindowDeactivate):
            self._tick()  # time stands still while the window is not active
        return done

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Undo and redo."""
        which = undo_key(event)
        if which:
            (self.undo if which == "undo" else self.redo)()
        else:
            super().keyPressEvent(event)
