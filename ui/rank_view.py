"""What the ranking screen shows: one card in work, responses being written, or why there is nothing to do."""

from __future__ import annotations

from collections.abc import Iterable

from PySide6.QtCore import Qt, Signal, SignalInstance
from PySide6.QtWidgets import QStackedWidget, QWidget

from ui.conversation_view import ConversationView
from ui.rank_board import RankBoard
from ui.rank_chrome import RankFooter, RankHeader, SamplingStrip
from ui.rank_session import RankItem, shuffled
from ui.rank_state import LETTERS, RankState
from ui.response_card import ResponseCard
from ui.sampler import Sampler, SamplingJob
from ui.theme import XS, L, M, S
from ui.widgets import Card, EmptyState, ErrorBanner, Pill, Text, button, column, plural, row, safe_tip
from ui.words import thumbs_said
from workbench.records import GOOD, Counts

_BLANK, _WORK, _EMPTY = range(3)


class RankView(QWidget):
    """Widgets only: it knows no store and decides nothing.

    ``empty_action(str)`` tells what the button of the empty page is for: sample, demonstrate or skipped.
    """

    empty_action: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, sampler: Sampler, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.header = RankHeader()
        self.strip = SamplingStrip(sampler)
        self.banner = ErrorBanner()
        self.reveal_text = Text("", "small", "muted", wrap=True, selectable=True)
        self.reveal_text.setObjectName("reveal-line")
        self.reveal_text.hide()
        self.prompt = ConversationView(max_lines=8)
        self.prompt.view.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self._pills = [Pill() for _ in range(6)]
        self.more = button("Get others…", kind="quiet", name="get-others")
        self.more.setToolTip(
            safe_tip("Two responses say the same: sample more to this prompt. They come up beside these")
        )
        self.more.hide()
        card = Card(padding=M)
        card.body.setContentsMargins(M, 12, M, 12)
        card.body.setSpacing(XS)
        card.body.addLayout(row(Text("Prompt", "small", "muted"), *self._pills, None, self.more, spacing=S))
        card.body.addWidget(self.prompt)
        self.board = RankBoard()
        self.warning = ErrorBanner()
        self.footer = RankFooter()
        work = QWidget()
        parts = column(card, self.board, self.warning, self.footer, spacing=M)
        parts.setStretch(1, 1)
        work.setLayout(parts)
        self._empty_does = "sample"
        self.empty = EmptyState(
            "rank", "Nothing to rank yet", "", "Get responses…", lambda: self.empty_action.emit(self._empty_does)
        )
        self.pages = QStackedWidget()
        self.pages.addWidget(QWidget())  # blank for the milliseconds until the first card is read
        self.pages.addWidget(work)
        self.pages.addWidget(self.empty)
        root = column(
            self.header, self.strip, self.banner, self.reveal_text, self.pages, spacing=M, margins=(L, M, L, M)
        )
        root.setStretch(4, 1)
        self.setLayout(root)

    # ---- a card in work -------------------------------------------------------------------------------------

    def show_item(self, item: RankItem, note: str) -> None:
        """Show a card that was just opened."""
        self.warning.hide()
        self.prompt.set_messages(item.prompt.messages)
        words = [("correction", "accent")] if item.corrects else []
        words += [("asked again", "accent")] if item.re_asks else []
        words += [("held-out", "accent")] if item.prompt.split == "held-out" else []
        words += [(f"{plural(item.left_out, 'response')} not shown yet", "warn")] if item.left_out else []
        self._set_pills(words + [(tag, "") for tag in item.prompt.tags])
        self.board.set_texts([one.text for one in item.responses])
        self.footer.note.setText(note)
        self.footer.set_count(len(item.responses))
        self.pages.setCurrentIndex(_WORK)

    def show_state(
        self, item: RankItem, state: RankState, flags: Iterable[tuple[str, str]], *, take_focus: bool
    ) -> None:
        """Show places, ties, flags, focus, and what is missing."""
        self.more.setVisible(bool(state.twins))
        flagged = sorted(flags)
        for position, (card, response) in enumerate(zip(self.board.cards, item.responses, strict=True)):
            pills = []
            others = [LETTERS[i] for i in state.group_of(position) if i != position]
            if response.id in item.anchors:
                pills.append(("ranked before", ""))
            if others:
                pills.append((f"same as {', '.join(others)}", "accent"))
            if response.finish_reason == "length":
                pills.append(("cut off", "warn"))
            if thumb := state.thumb(position):
                pills.append((f"thumbs {'up' if thumb == GOOD else 'down'}", "good" if thumb == GOOD else "bad"))
            pills += [(flag, "bad") for response_id, flag in flagged if response_id == response.id]
            card.set_pills(pills)
        self.board.show_state(state, take_focus=take_focus)
        every = [flag for response_id, flag in flagged if not response_id]
        about = f"All flagged: {', '.join(every)}.  " if every else ""
        if state.said:
            self.footer.say(state.said, "warn")
        elif state.complete:
            doubtful = state.all_tied and not state.only_twins
            words = "All tied: there is nothing to learn from." if doubtful else "All placed. Enter saves and goes on."
            self.footer.say(about + words, "warn" if doubtful else "good")
        else:
            self.footer.say(about + state.missing())

    def set_saving(self, saving: bool) -> None:
        """While a ranking is written nothing can be pressed twice."""
        for one in (self.footer.submit, self.footer.skip, self.footer.cannot, self.footer.flag, self.footer.undo):
            one.setEnabled(not saving)

    # ---- responses being written ----------------------------------------------------------------------------

    def show_live(self, job: SamplingJob) -> None:
        """Show a prompt whose responses are being written, in the order in which they will be ranked."""
        self.warning.hide()
        self.more.hide()
        self.prompt.set_messages(job.prompt.messages)
        self._set_pills([("being written", "accent")])
        self.board.set_count(len(job.response_ids))
        for card in self.board.cards:
            card.start_stream()
            card.set_current(False)
        for index, text in enumerate(job.texts):
            self.live_card(job, index).append(text)
            self.mark_live(job, index)
        self.footer.note.clear()
        self.set_saving(True)  # nothing can be judged yet
        self.footer.set_count(len(job.response_ids))
        self.footer.say("Responses appear as they are written; they can be ranked once all are whole.")
        self.pages.setCurrentIndex(_WORK)

    def live_card(self, job: SamplingJob, index: int) -> ResponseCard:
        """Find the card of the response with this index in its job."""
        order = shuffled(job.ranking_id, job.response_ids)
        return self.board.cards[order.index(job.response_ids[index])]

    def mark_live(self, job: SamplingJob, index: int) -> None:
        """Say of a response whether it is whole; once it is, show exactly what will be kept."""
        card, response = self.live_card(job, index), job.done.get(index)
        if response is None:
            card.set_pills([("writing…", "accent")])
            return
        if card.response() != response.text:
            card.set_response(response.text, 0)
        card.set_pills([("cut off", "warn")] if response.finish_reason == "length" else [])

    # ---- nothing to do --------------------------------------------------------------------------------------

    def show_empty(self, counts: Counts, skipped: int) -> None:
        """Say why there is nothing to rank, and offer the one thing that helps."""
        self._empty_does = "sample"
        if not counts.prompts:
            title, text = (
                "No prompts yet",
                "Write some under Demonstrate, or import a file. Then sample responses here.",
            )
            self._empty_does = "demonstrate"
        elif skipped:
            title = "Only skipped prompts are left"
            text = f"You skipped {plural(skipped, 'prompt')} in this session."
            self._empty_does = "skipped"
        elif counts.prompts_ranked:
            title = "All caught up"
            text = (
                f"{plural(counts.prompts_ranked, 'prompt')} ranked, {plural(counts.pairs, 'pair')} to learn from. "
                "More responses make more pairs; a reward model or DPO can be trained at any time."
            )
        elif counts.thumbs:
            title = "All caught up"
            text = f"{thumbs_said(counts)}. More responses make more of them; KTO can be trained at any time."
        else:
            title = "No responses to rank yet"
            text = "Sample a few responses to each prompt from any model; you rank them here, blind and by keys."
        words = {"sample": "Get responses…", "demonstrate": "Write prompts", "skipped": "Show skipped prompts"}
        self.empty.set(title, text)
        self.empty.action.setText(words[self._empty_does])
        self.pages.setCurrentIndex(_EMPTY)

    @property
    def empty_shown(self) -> bool:
        """Whether the page says that there is nothing to do."""
        return self.pages.currentIndex() == _EMPTY

    def _set_pills(self, words: list[tuple[str, str]]) -> None:
        for index, pill in enumerate(self._pills):
            pill.setVisible(index < len(words))
            if index < len(words):
                pill.set(*words[index])
