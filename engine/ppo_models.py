"""The four players of PPO on one base: policy, reference, reward and value, each an adapter (and perhaps a head).

RLOO and GRPO have no value: its adapter is never made.

Every number that enters a loss comes from :meth:`Players.policy_logps` and :meth:`Players.values`: rollout and update
call the same functions on the same rows in the same layout, so that the first ratio of an update is exactly 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from engine.adapters import Adapters
from engine.advantages import response_mask
from engine.base_model import LoadedBase
from engine.checkpoints import load_tensors, save_tensors
from engine.heads import ScalarHead, mean_head
from engine.kept_passes import Pass, room_for_passes
from engine.masking import Example
from engine.packing import Layout
from engine.rules import Rule, rule_scorer
from engine.score import RewardModel, load_reward
from engine.session import Session
from engine.templates import end_of_turn
from engine.trainee import open_start
from workbench.errors import UserError
from workbench.model_folders import refuse_changed_model
from workbench.recipes import PpoRecipe

POLICY, REFERENCE, REWARD, VALUE = "policy", "reference", "reward", "value"
_VALUE_FILE = "state_value.safetensors"
_HEAD = "value_head"


@dataclass(frozen=True, slots=True)
class Episode:
    """One prompt and the response that was drawn to it."""

    prompt_id: str
    prompt: str  # the last user turn, for people
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]  # the response, what ended it included
    ended: bool
    text: str
    group: int = 0  # the responses to one prompt of a rollout have the same

    @property
    def tokens(self) -> int:
        """Prompt and response."""
        return len(self.prompt_ids) + len(self.ids)

    def scored_ids(self, end: int) -> list[int]:
        """Prompt and response as a reward model was trained on them: what ended has the template's ``end``.

        A model may end its response with another EOS of its folder. That is an end in use too, where the same text is
        stored without it; but in the reward model's training no sequence has it.
        """
        return [*self.prompt_ids, *self.ids[:-1], end] if self.ended else [*self.prompt_ids, *self.ids]


@dataclass
class Players:
    """Policy, reference, reward and value on one base."""

    adapters: Adapters
    recipe: PpoRecipe
    reference: str | None  # None: the bare base
    head: ScalarHead | None  # of the value function; None: there is none
    value_offset: float  # added to the head's output: the reward model's normalisation
    reward: RewardModel | None
    rule: Rule | None

    @property
    def base(self) -> LoadedBase:
        """The model under all four."""
        return self.adapters.base

    def policy_parameters(self) -> list[torch.nn.Parameter]:
        """What the policy's optimiser trains."""
        return self.adapters.parameters(POLICY)

    def value_parameters(self) -> list[torch.nn.Parameter]:
        """What the value's optimiser trains: its adapter and its head. Nothing where there is no value function."""
        return [] if self.head is None else [*self.adapters.parameters(VALUE), *self.head.parameters()]

    def layout(self, episodes: Sequence[Episode]) -> Layout:
        """Lay episodes out for a forward pass; the response's tokens count."""
        return self.adapters.lay_out(
            [Example.plain((*one.prompt_ids, *one.ids), len(one.prompt_ids)) for one in episodes]
        )

    def policy_logps(self, name: str | None, rows: Layout, width: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the response's tokens under an adapter, and entropies: both [C, width], 0 beyond.

        At the sampling temperature: that is the distribution the responses were drawn from.
        """
        logps, entropy, _ = self.adapters.token_stats(name, rows, self.recipe.temperature)
        keep = response_mask(rows.lengths, width)
        return _spread(logps, keep), _spread(entropy, keep)

    def values(self, rows: Layout, width: int) -> Tensor:
        """V at every response position, [C, width]: read where the token is predicted; one more, after the last token.

        Position t < length is the state before token t, so V[t] never sees what it is to predict. A response of n
        tokens has n + 1 states: one before each token, and one behind the last.
        """
        with self.adapters.use(VALUE):
            hidden = self.adapters.flat(rows, rows.through)
        keep = response_mask(rows.lengths + 1, width + 1)
        head = cast(ScalarHead, self.head)
        return _spread(head(hidden) + self.value_offset, keep)[:, :width]

    def passed(self, rows: Layout, width: int, *, with_values: bool) -> Pass:
        """What policy and, where asked and there is one, value make of a layout."""
        logps, entropy = self.policy_logps(POLICY, rows, width)
        return Pass(logps, entropy, self.values(rows, width) if with_values else None)

    def tokens_to_keep(self) -> int:
        """Tokens whose graphs there is room for, from a rollout to its update."""
        passes = 1 if self.head is None else 2
        rank = self.adapters.configs[POLICY].r
        return room_for_passes(self.base, rank, passes, checkpointing=self.recipe.gradient_checkpointing)

    @property
    def heads(self) -> int:
        """How many heads score; 0 where a rule does."""
        return self.reward.head.count if self.reward is not None else 0

    def scores(self, episodes: Sequence[Episode]) -> tuple[list[float], list[float]]:
        """Score responses with the rule, or with the reward model in the unit that the recipe pays in.

        Returns the scores and, in the same unit, how far the reward model's heads are apart (0 with a single one).
        """
        if self.rule is not None:
            return [self.rule(one.text, len(one.ids), one.ended) for one in episodes], [0.0] * len(episodes)
        reward = cast(RewardModel, self.reward)
        end = end_of_turn(self.base.tokenizer).token
        raw, stds = reward.measure_ids([one.scored_ids(end) for one in episodes], len(episodes))
        paid = reward.stats.paid_in(self.recipe.score_norm)
        return [paid.standardise(one) for one in raw.tolist()], (stds / paid.std).tolist()

    def demonstration_loss(self, examples: Sequence[Example]) -> Tensor:
        """Sum ``-log p`` over the trained tokens of demonstrations under the policy, at a temperature of 1."""
        logps, *_ = self.adapters.token_stats(POLICY, self.adapters.lay_out(examples))
        return -logps.sum()

    def save_policy(self, folder: Path) -> None:
        """Write the policy as a plain peft folder."""
        self.adapters.save(POLICY, folder)

    def save(self, folder: Path) -> None:
        """Write all that trains: the policy as a model, the value function for resuming only."""
        self.save_policy(folder)
        if self.head is not None:
            save_tensors(folder / _VALUE_FILE, dict(self.adapters.state(VALUE)) | {_HEAD: self.head.weight})

    def restore(self, folder: Path) -> None:
        """Put a checkpoint's policy and value function back."""
        self.adapters.restore(POLICY, folder)
        if self.head is None:
            return
        tensors = load_tensors(folder / _VALUE_FILE)
        with torch.no_grad():
            for key, target in self.adapters.state(VALUE).items():
                target.copy_(tensors[key])
            self.head.weight.copy_(tensors[_HEAD])


def open_players(session: Session) -> Players:
    """Load the base and set up the players as they stand before the first rollout."""
    recipe = cast(PpoRecipe, session.recipe)
    adapters = open_start(session, POLICY, sampling=True)
    reference = None
    if session.spec.model.adapter:
        adapters.copy(POLICY, REFERENCE, trainable=False)
        reference = REFERENCE
    rule = rule_scorer(recipe.rule) if recipe.rule else None
    reward = None if rule else _open_reward(session, adapters)
    players = Players(adapters, recipe, reference, None, 0.0, reward, rule)
    if recipe.has_value:
        _add_value(players, session)
    return players


def _open_reward(session: Session, adapters: Adapters) -> RewardModel:
    chosen = session.spec.reward
    if chosen is None:
        raise UserError(
            "This run has nothing to score with", "it has no reward model and no rule", "choose one of both"
        )
    if Path(chosen.base).resolve() != Path(session.spec.model.base).resolve():
        raise UserError(
            f"The reward model {chosen.name} cannot score this policy",
            "it stands on another base model",
            "train a reward model on the policy's base",
        )
    refuse_changed_model(chosen)
    reward = load_reward(adapters, chosen.adapter, REWARD)
    if reward.stats.count == 0:
        session.warn(
            "reward-uncalibrated",
            f"The reward model {chosen.name} was never calibrated: its raw scores are paid as they are",
            "train it again with demonstrations, or choose the KL coefficient to suit its scores",
        )
    if reward.head.count == 1 and cast(PpoRecipe, session.recipe).uncertainty_penalty:
        session.warn(
            "one-head",
            f"The reward model {chosen.name} has one head, which disagrees with nobody: "
            "uncertainty_penalty takes nothing",
            "train a reward model with heads of 4 or more",
        )
    return reward


def _add_value(players: Players, session: Session) -> None:
    """The value starts as the reward model, in the units of paid scores; beside a rule as the policy, with V = 0."""
    adapters, reward, recipe = players.adapters, players.reward, players.recipe
    players.head = ScalarHead(players.base.hidden_size, players.base.device)
    if reward is not None:
        adapters.copy(REWARD, VALUE, trainable=True)
        paid = reward.stats.paid_in(recipe.score_norm)
        start = mean_head(reward.head.weight) / paid.std
        players.value_offset = -paid.mean / paid.std
    else:
        start = torch.zeros_like(players.head.weight)
        if session.spec.model.adapter:
            adapters.copy(POLICY, VALUE, trainable=True)
        else:
            adapters.add(VALUE, rank=recipe.lora_rank, alpha=recipe.lora_alpha, trainable=True, seed=recipe.seed + 1)
    with torch.no_grad():
        players.head.weight.copy_(start)


def _spread(flat: Tensor, keep: Tensor) -> Tensor:
    """Put flat values [N] where ``keep`` [C, W] is True, row by row; 0 elsewhere."""
    return torch.zeros(keep.shape, dtype=flat.dtype, device=flat.device).masked_scatter(keep, flat)
