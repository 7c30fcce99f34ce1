"""Responses on the ranking screen while a model writes them."""

from __future__ import annotations

from PySide6.QtCore import QObject

from ui.rank_view import RankView
from ui.sampler import Sampler, SamplingJob


class LiveCards(QObject):
    """Shows one prompt's responses as they come; :attr:`job` is None while a card in work is on screen."""

    def __init__(self, view: RankView, sampler: Sampler, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._view = view
        self.job: SamplingJob | None = None
        sampler.token.connect(self._on_token)
        sampler.response_done.connect(self._on_done)

    def show(self, job: SamplingJob) -> bool:
        """Show a job from now on; False when it is on screen already."""
        if job is self.job:
            return False
        self.job = job
        self._view.show_live(job)
        return True

    def end(self) -> None:
        """Something else is on screen."""
        self.job = None

    def _on_token(self, job: SamplingJob, index: int, text: str) -> None:
        if job is self.job:
            self._view.live_card(job, index).append(text)

    def _on_done(self, job: SamplingJob, index: int) -> None:
        if job is self.job:
            self._view.mark_live(job, index)
