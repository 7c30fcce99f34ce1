"""PPO against a reward model or a rule, on a KL leash to the starting model (Ziegler 2019, InstructGPT, N+).

RLOO (Ahmadian et al. 2024) and GRPO (Shao et al. 2024) are the same loop without a value function: K responses to each
prompt are one another's baseline. GRPO's KL is a term of the loss instead of the reward. With a ``ptx_coefficient`` the
loss of demonstrations is mixed into every update (PPO-ptx, InstructGPT eq. 2).

A step is one rollout: **rollout** draws responses and measures them with the training forward, **score** asks the
reward model, **advantage** turns scores and KL into targets, **update** makes ``ppo_epochs x mini_batches`` optimiser
steps. Policy, reference, reward and value are adapters on one base (:mod:`engine.ppo_models`).

Everything random follows from (seed, step), so a resumed run needs the models and optimisers alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from engine.advantages import (
    Advantages,
    adapted_kl_coefficient,
    group_advantages,
    kl_per_token,
    rollout_advantages,
)
from engine.batching import cutter, in_passes
from engine.checkpoints import load_state, save_state
from engine.completions import encode_demonstrations
from engine.eval_samples import try_samples
from engine.generate import SEED_LIMIT, generate, row_seeds
from engine.kept_passes import KeptPasses, Pass
from engine.masking import Example
from engine.memory import MicroBatch, warn_of_less_room
from engine.meters import Throughput
from engine.mini_batches import in_order, longest_group_first, mini_batches, of_epoch
from engine.optim import Group, Optimiser
from engine.ppo_losses import kl_loss, policy_loss, value_loss
from engine.ppo_models import POLICY, Episode, Players, open_players
from engine.ppo_report import UpdateMeters, evaluation_metrics, rollout_metrics, samples_of, scores_by_prompt
from engine.session import Session
from engine.templates import encode_prompt
from engine.text_stream import decode
from engine.trainee import eval_due, refuse_empty, window
from workbench.errors import UserError
from workbench.recipes import PpoRecipe
from workbench.records import Sampling
from workbench.rows import PromptRow

_STATE = "state_training.pt"
EVAL_PROMPTS = 32
RATIO_TOLERANCE = 1e-3
"""How far ratios may be from 1, on average, before the first step of a rollout: rollout and training must agree."""


@dataclass(frozen=True, slots=True)
class PromptIds:
    """A prompt to roll out."""

    id: str
    text: str
    ids: tuple[int, ...]


@dataclass
class Rollout:
    """B episodes and what the players say of them. R positions; 0 beyond a response's length."""

    episodes: list[Episode]
    minis: list[range]  # the episodes of each mini-batch of the first epoch
    lengths: Tensor  # [B]
    logps: Tensor  # [B, R]
    ref_logps: Tensor  # [B, R]
    values: Tensor | None  # [B, R]; None without a value function
    scores: Tensor  # [B], the penalties for a missing EOS and for the heads' disagreement taken off
    kept: KeptPasses = field(default_factory=KeptPasses)  # of the mini-batch that is learnt from first
    clipped: float | None = None  # share of the scores that score_clip changed; None without it
    score_stds: Tensor | None = None  # [B] over the reward model's heads; None without an ensemble

    @property
    def kl(self) -> Tensor:
        """KL to the reference of every token, log pi - log ref (k1), [B, R]."""
        return self.logps - self.ref_logps

    @property
    def groups(self) -> Tensor:
        """Which prompt of the rollout each episode answers, [B]."""
        return torch.tensor([one.group for one in self.episodes], device=self.logps.device)


@dataclass
class Trainer:
    """What a step needs and a checkpoint holds."""

    players: Players
    policy_optimiser: Optimiser
    value_optimiser: Optimiser | None  # None without a value function
    throughput: Throughput
    kl_coefficient: float
    micro_batch: MicroBatch
    demonstrations: list[Example] = field(default_factory=list)  # mixed into the updates; none without ptx
    over_max_kl: bool = False
    ratio_warned: bool = False
    first_scores: dict[str, float] = field(default_factory=dict)  # of held-out prompts, before the first rollout

    @property
    def optimisers(self) -> list[Optimiser]:
        """The policy's, and the value's where there is one."""
        return [self.policy_optimiser, *([self.value_optimiser] if self.value_optimiser else [])]

    def save(self, folder: Path) -> None:
        """Write a resumable checkpoint."""
        self.players.save(folder)
        state = {
            "policy": self.policy_optimiser.state(),
            "value": self.value_optimiser.state() if self.value_optimiser else None,
            "kl_coefficient": self.kl_coefficient,
            "num_tokens": self.throughput.num_tokens,
            "over_max_kl": self.over_max_kl,
            "first_scores": self.first_scores,
            "micro_batch": self.micro_batch.state(),
        }
        save_state(folder / _STATE, state)

    def restore(self, session: Session, folder: Path) -> int:
        """Go on from a checkpoint. Returns the steps done."""
        self.players.restore(folder)
        state = load_state(folder / _STATE)
        self.policy_optimiser.restore(state["policy"])
        if self.value_optimiser:
            self.value_optimiser.restore(state["value"])
        self.kl_coefficient = float(state["kl_coefficient"])
        self.throughput.num_tokens = int(state["num_tokens"])
        self.over_max_kl = bool(state["over_max_kl"])
        self.first_scores = state.get("first_scores", {})  # neither is in a checkpoint of an earlier version
        if "micro_batch" in state:
            self.micro_batch.restore(session, state["micro_batch"])
        return int(folder.name)


def run(session: Session) -> None:
    """Train a policy with PPO, from the session's start model to its ``final/`` folder."""
    recipe = cast(PpoRecipe, session.recipe)
    players = open_players(session)
    session.phase("preparing", "tokenising the prompts")
    prompts = encode_prompts(session, players, "train")
    heldout = encode_prompts(session, players, "heldout")[:EVAL_PROMPTS]
    total = -(-recipe.episodes // recipe.batch)
    total = min(total, recipe.max_steps) if recipe.max_steps else total
    trainer = _trainer(players, recipe, total)
    trainer.demonstrations = demonstrations_to_mix_in(session, players)
    checkpoint = session.latest_checkpoint()
    start = trainer.restore(session, checkpoint) if checkpoint else 0
    session.restore_rng()
    session.progress(start, total)

    def measure(step: int) -> None:
        asked = session.sample_asked()
        if heldout and eval_due(session, step, total):
            evaluate(session, trainer, heldout, step, keep=asked)
        elif asked:
            shown = heldout or prompts[:EVAL_PROMPTS]
            work = partial(evaluate, session, trainer, shown, step, keep=True, measures=bool(heldout))
            try_samples(session, step, work)

    if start == 0:
        measure(0)
    for step in range(start + 1, total + 1):
        trainer.throughput.restart()
        chosen = prompts_of_step(prompts, recipe.prompts_per_rollout, recipe.seed, step)
        session.phase("rollout", f"{recipe.batch} responses")
        seed = step_seed(recipe.seed, step)
        batch = rollout(session, trainer, chosen, seed, count=recipe.responses_per_prompt, step=step)
        session.phase("score")
        score(session, trainer, batch)
        targets = advantage(trainer, batch)
        session.phase("update")
        rate = trainer.policy_optimiser.learning_rate
        meters = update(session, trainer, batch, targets, step)
        trainer.throughput.add(sum(one.tokens for one in batch.episodes), len(batch.episodes))
        values = rollout_metrics(batch, targets, trainer.kl_coefficient, recipe) | meters.flush()
        values |= trainer.throughput.flush()
        values |= {"learning_rate": rate, "episode": float(step * recipe.batch)}
        values["epoch"] = step * recipe.prompts_per_rollout / len(prompts)
        session.metrics(step, values)
        session.write_samples(step, samples_of(step, batch, targets, players.base.tokenizer))
        _watch(session, trainer, values, step)
        measure(step)
        session.at_step_end(step, total, trainer.save)
    session.finish(players.save_policy)


# ---- the four parts of a step --------------------------------------------------------------------------------


@torch.no_grad()
def rollout(
    session: Session,
    trainer: Trainer,
    prompts: Sequence[PromptIds],
    seed: int,
    *,
    count: int = 1,
    step: int = 0,
    with_values: bool = True,
) -> Rollout:
    """Draw ``count`` responses to each prompt, then measure them under policy, reference and value.

    With a ``step`` of the run the graphs of its first mini-batch are kept for its update; 0: nothing is learnt.

    The sampler's own probabilities are not used: they come from other kernels and another batch shape. The prompts are
    dealt out at random to the mini-batches of the update's first epoch (:mod:`engine.mini_batches`).
    """
    players, recipe = trainer.players, trainer.players.recipe
    with_values = with_values and players.head is not None
    sampling = Sampling(recipe.temperature, 1.0, 0, recipe.response_length, seed)
    with players.adapters.use(POLICY):
        seeds = row_seeds(seed, len(prompts) * count)
        drawn = generate(
            players.base,
            [one.ids for one in prompts],
            sampling,
            count=count,
            seeds=seeds,
            on_less_room=partial(warn_of_less_room, session),
        )
    groups = []
    for number, (prompt, responses) in enumerate(zip(prompts, drawn, strict=True)):
        group = []
        for response in responses:
            words = response.ids[:-1] if response.ended else response.ids
            text = decode(players.base.tokenizer, words)
            group.append(Episode(prompt.id, prompt.text, prompt.ids, response.ids, response.ended, text, number))
        groups.append(group)
    random.Random(f"{seed}/minis").shuffle(groups)
    episodes = [one for group in groups for one in group]
    minis = mini_batches(len(episodes), recipe.mini_batches)
    episodes = [episodes[row] for mini in minis for row in longest_group_first(episodes, mini)]
    width = recipe.response_length
    kept = KeptPasses()
    if step:
        kept = KeptPasses(in_order(minis, recipe.seed, step, 0)[0], players.tokens_to_keep())

    def measure(part: Sequence[int]) -> tuple[Pass, Tensor]:
        rows = players.layout([episodes[index] for index in part])
        tokens = rows.input_ids.numel()  # padding has a graph too
        keeps = kept.wants(part, tokens)
        with torch.set_grad_enabled(keeps):
            made = players.passed(rows, width, with_values=with_values)
        if keeps:
            kept.keep(part, tokens, made)
        ref_logps, _ = players.policy_logps(players.reference, rows, width)
        return made.detached(), ref_logps

    measured: list[tuple[Pass, Tensor]] = []
    for mini in minis:
        measured += trainer.micro_batch.run(
            session, mini, measure, reset=kept.drop, cut=micro_batches(players, episodes), learns=False
        )
    logps, ref_logps = torch.cat([one.logps for one, _ in measured]), torch.cat([one for _, one in measured])
    values = [one.values for one, _ in measured if one.values is not None]
    lengths = torch.tensor([len(one.ids) for one in episodes], device=logps.device)
    scores = torch.zeros(len(episodes), device=logps.device)
    return Rollout(episodes, minis, lengths, logps, ref_logps, torch.cat(values) if values else None, scores, kept)


def score(session: Session, trainer: Trainer, batch: Rollout) -> None:
    """Fill in the scores: the reward model's, clipped to +- ``score_clip``, or the rule's, less what is taken off.

    ``mean - uncertainty_penalty * std`` over the reward model's heads (Coste et al. 2024, eq. 4, with the standard
    deviation in the place of the variance, so that the penalty has the score's unit), and ``missing_eos_penalty`` off
    a response that was cut off.
    """
    players, recipe = trainer.players, trainer.players.recipe
    found = trainer.micro_batch.run(session, batch.episodes, players.scores, reset=batch.kept.drop, learns=False)
    scores = torch.tensor([one for part, _ in found for one in part], dtype=batch.logps.dtype)
    if recipe.score_clip and players.reward is not None:
        whole, scores = scores, scores.clamp(-recipe.score_clip, recipe.score_clip)
        batch.clipped = float((scores != whole).double().mean())
    if players.heads > 1:
        stds = torch.tensor([one for _, part in found for one in part], dtype=batch.logps.dtype)
        scores = scores - recipe.uncertainty_penalty * stds
        batch.score_stds = stds.to(batch.logps.device)
    cut = torch.tensor([not one.ended for one in batch.episodes])
    scores = scores - recipe.missing_eos_penalty * cut
    batch.scores = scores.to(batch.logps.device)


def advantage(trainer: Trainer, batch: Rollout) -> Advantages:
    """Turn scores and KL into rewards per token, and these into advantages, by GAE or within the prompt's group."""
    recipe = trainer.players.recipe
    kl = kl_per_token(batch.logps, batch.ref_logps, recipe.kl_estimator)
    if batch.values is None:
        return group_advantages(
            recipe.advantage,
            kl=kl,
            scores=batch.scores,
            lengths=batch.lengths,
            groups=batch.groups,
            kl_coefficient=trainer.kl_coefficient,
        )
    return rollout_advantages(
        kl=kl,
        scores=batch.scores,
        values=batch.values,
        lengths=batch.lengths,
        kl_coefficient=trainer.kl_coefficient,
        gamma=recipe.gamma,
        lam=recipe.gae_lambda,
        position=recipe.score_position,
        whiten_rewards=recipe.whiten_rewards,
    )


def update(session: Session, trainer: Trainer, batch: Rollout, targets: Advantages, step: int) -> UpdateMeters:
    """Make ``ppo_epochs x mini_batches`` optimiser steps of policy and value on one rollout.

    Losses are sums over a micro-batch divided by the tokens of its whole mini-batch, so micro-batches change nothing.
    (GRPO's paper divides by each response's own tokens first, which makes long bad answers cheap; TRL's default does
    as here: Yu et al. 2025.) The policy's backward pass is done before the value's forward begins.

    PPO-ptx (InstructGPT, eq. 2) adds ``ptx_coefficient * mean(-log p)`` over the trained tokens of as many
    demonstrations as the mini-batch has episodes, in the same optimiser step.
    """
    players, recipe = trainer.players, trainer.players.recipe
    width = batch.logps.shape[1]
    meters = UpdateMeters()
    cut = _cut_both(players, micro_batches(players, batch.episodes))
    for epoch in range(recipe.ppo_epochs):
        for place, mini in enumerate(of_epoch(batch.episodes, batch.minis, recipe.seed, step, epoch), 1):
            whole = torch.tensor(mini, device=batch.logps.device)
            number = ((step - 1) * recipe.ppo_epochs + epoch) * len(batch.minis) + place
            shown = demonstrations_of(trainer, len(mini), number)
            shown_tokens = sum(one.trained_tokens for one in shown)
            tokens, value_tokens = int(targets.mask[whole].sum()), int(targets.value_mask[whole].sum())

            def work(
                part: Sequence[int | Example],
                tokens: int = tokens,
                value_tokens: int = value_tokens,
                shown_tokens: int = shown_tokens,
            ) -> None:
                if isinstance(part[0], Example):
                    nll = players.demonstration_loss(cast(Sequence[Example], part))
                    (recipe.ptx_coefficient * nll / shown_tokens).backward()
                    meters.add_ptx(nll)
                    return
                numbers = cast(Sequence[int], part)
                at = torch.tensor(numbers, device=batch.logps.device)
                mask = targets.mask[at]
                made = batch.kept.take(numbers)
                rows = players.layout([batch.episodes[number] for number in numbers])
                logps, entropy = (made.logps, made.entropy) if made else players.policy_logps(POLICY, rows, width)
                policy = policy_loss(logps, batch.logps[at], targets.advantages[at], mask, recipe.clip_range)
                loss, kl, value = policy.loss, None, None
                if recipe.advantage == "grpo":
                    kl = kl_loss(logps, batch.ref_logps[at], mask)
                    loss = loss + trainer.kl_coefficient * kl
                (loss / tokens).backward()
                if batch.values is not None:
                    values = players.values(rows, width) if made is None or made.values is None else made.values
                    value = value_loss(
                        values, batch.values[at], targets.returns[at], targets.value_mask[at], recipe.value_clip_range
                    )
                    (recipe.value_coefficient * value.loss / value_tokens).backward()
                meters.add(policy, entropy, value, kl)

            def reset() -> None:
                for one in trainer.optimisers:
                    one.zero()
                batch.kept.drop()
                meters.forget_mini_batch()

            rows: list[int | Example] = [*mini, *shown]
            trainer.micro_batch.run(session, rows, work, reset=reset, cut=cut)
            ids = [batch.episodes[number].prompt_id for number in mini]
            for key, mean in meters.end_mini_batch(tokens, value_tokens, shown_tokens).items():
                session.check_finite(step, key, mean, ids)
            norms = [one.clip() for one in trainer.optimisers]
            for norm in norms:
                session.check_finite(step, "grad_norm", norm, ids)
            meters.add_norm(norms[0])
            for one in trainer.optimisers:
                one.step()
    return meters


# ---- around it -----------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(
    session: Session,
    trainer: Trainer,
    prompts: Sequence[PromptIds],
    step: int,
    *,
    keep: bool,
    measures: bool = True,
) -> None:
    """Score responses to held-out prompts, drawn at the same temperature from the same seeds every time.

    With ``keep`` they are written as samples: the researcher asked for them. Where no prompt is held out those are
    of training prompts, and nothing ``measures``.
    """
    session.phase("evaluating", f"{len(prompts)} {'held-out ' if measures else ''}prompts")
    batch = rollout(session, trainer, prompts, step_seed(trainer.players.recipe.seed, 0), with_values=False)
    score(session, trainer, batch)
    if measures:
        session.metrics(step, evaluation_metrics(batch, trainer.first_scores))
        if step == 0:
            trainer.first_scores = scores_by_prompt(batch)
    if keep:
        session.write_samples(step, samples_of(step, batch, None, trainer.players.base.tokenizer))


def encode_prompts(session: Session, players: Players, name: str) -> list[PromptIds]:
    """Encode a data file's prompts; those that leave no room for a whole response are left out, counted aloud."""
    recipe = players.recipe
    room = window(session, players.adapters) - recipe.response_length
    rows = cast(list[PromptRow], session.rows(name))
    fitting = []
    for row in rows:
        ids = encode_prompt(players.base.tokenizer, row.prompt)
        if 0 < len(ids) <= room:
            last = next((one.content for one in reversed(row.prompt) if one.role == "user"), "")
            fitting.append(PromptIds(row.id, last, tuple(ids)))
    if len(fitting) < len(rows):
        which = "prompts" if name == "train" else "held-out prompts"
        session.warn(
            "rows-dropped",
            f"{len(rows) - len(fitting)} of {len(rows)} {which} were left out: they are longer than {room} tokens",
            "raise max_length, or lower response_length",
        )
    if name == "train" and not fitting:
        refuse_empty("prompts", len(rows), room)
    return fitting


def prompts_of_step(prompts: Sequence[PromptIds], batch: int, seed: int, step: int) -> list[PromptIds]:
    """Choose the prompts of a step (from 1): each pass over them is a new shuffle, fixed by the seed."""
    return in_passes(prompts, batch, step, f"{seed}/prompts")


def demonstrations_to_mix_in(session: Session, players: Players) -> list[Example]:
    """The demonstrations of PPO-ptx; none while its coefficient is 0. Raises UserError when there should be some."""
    if not players.recipe.ptx_coefficient:
        return []
    examples, _ = encode_demonstrations(session, players.adapters, "demonstrations", window(session, players.adapters))
    if not examples:
        raise UserError(
            "There are no demonstrations to mix into PPO",
            f"ptx_coefficient is {players.recipe.ptx_coefficient:g} and the run has none that can be trained on",
            "write some and mark them final, or set ptx_coefficient to 0",
        )
    return examples


def demonstrations_of(trainer: Trainer, count: int, number: int) -> list[Example]:
    """The ``count`` demonstrations of the run's optimiser step ``number`` (from 1), longest first; none without ptx."""
    if not trainer.demonstrations:
        return []
    seed = f"{trainer.players.recipe.seed}/demonstrations"
    return sorted(in_passes(trainer.demonstrations, count, number, seed), key=lambda one: -len(one.input_ids))


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's sampling; step 0 is the evaluation's."""
    return random.Random(f"{seed}/sampling/{step}").randrange(SEED_LIMIT)


def micro_batches(players: Players, episodes: Sequence[Episode]) -> Callable[[Sequence[int], int], list[Sequence[int]]]:
    """How the rows of a mini-batch are cut: the same in rollout, score and update, so that the first ratio is 1."""
    return cutter(lambda index: episodes[index].tokens, players.base)


def _cut_both(
    players: Players, episodes: Callable[[Sequence[int], int], list[Sequence[int]]]
) -> Callable[[Sequence[int | Example], int], list[Sequence[int | Example]]]:
    """How episodes and demonstrations of an update are cut: never into one micro-batch."""
    demonstrations: Callable[[Sequence[Example], int], list[Sequence[Example]]] = cutter(
        lambda one: len(one.input_ids), players.base
    )

    def cut(rows: Sequence[int | Example], most: int) -> list[Sequence[int | Example]]:
        numbers = [one for one in rows if not isinstance(one, Example)]
        shown = [one for one in rows if isinstance(one, Example)]
        return [*episodes(numbers, most), *demonstrations(shown, most)]

    return cut


def _trainer(players: Players, recipe: PpoRecipe, total: int) -> Trainer:
    steps = total * recipe.ppo_epochs * recipe.mini_batches
    value = [Group(players.value_parameters(), recipe.value_learning_rate)] if recipe.has_value else []
    return Trainer(
        players=players,
        policy_optimiser=Optimiser([Group(players.policy_parameters(), recipe.learning_rate)], recipe, steps),
        value_optimiser=Optimiser(value, recipe, steps) if value else None,
        throughput=Throughput(),
        kl_coefficient=recipe.kl_coefficient,
        micro_batch=MicroBatch(min(recipe.micro_batch, max(1, recipe.batch // recipe.mini_batches))),
    )


def _watch(session: Session, trainer: Trainer, values: dict[str, float], step: int) -> None:
    """Adapt the KL coefficient; say aloud when the ratio is off or the KL has left its bound."""
    recipe, kl = trainer.players.recipe, values["objective/kl"]
    if recipe.kl_target > 0:
        trainer.kl_coefficient = adapted_kl_coefficient(
            trainer.kl_coefficient, kl, recipe.kl_target, recipe.kl_horizon, recipe.batch
        )
    off = values["ppo/ratio_off"]
    if off > RATIO_TOLERANCE and not trainer.ratio_warned:
        trainer.ratio_warned = True
        session.warn(
            "ratio",
            f"Before the first step of rollout {step} the ratios were {off:.4f} away from 1 on average: "
            "rollout and training disagree on the same tokens",
            "hold the base in bf16 instead of nf4, or lower micro_batch until memory does not run out",
        )
    over = recipe.max_kl > 0 and kl > recipe.max_kl
    if over and not trainer.over_max_kl:
        session.pause_and_save(
            "max-kl",
            f"KL to the reference is {kl:.1f} nats per response, above the bound of {recipe.max_kl:g}: "
            "the run is saved and waits",
            "look at the samples; resume to go on, or start again with a higher KL coefficient",
        )
    trainer.over_max_kl = over
