"""What a PPO step reports: metrics over real tokens, and samples with their numbers per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from engine.advantages import (
    Advantages,
    explained_variance,
    group_spread,
    kl_per_token,
    masked_mean,
    response_mask,
)
from engine.meters import Meters
from engine.ppo_losses import PolicyLoss, ValueLoss
from engine.text_stream import token_texts
from workbench.protocol import Sample
from workbench.recipes import PpoRecipe
from workbench.statistics import FEWEST, mean_interval

if TYPE_CHECKING:
    from engine.ppo import Rollout

_DECIMALS = 5
_GRAM = 4
_EQUAL_SCORES = 1e-6


class MicroBatch(NamedTuple):
    """The sums of one micro-batch of an update."""

    policy: PolicyLoss
    entropy: Tensor
    value: ValueLoss | None = None  # None: there is no value function
    kl: Tensor | None = None  # to the reference, in the loss; None: it is not (only GRPO has it there)


class UpdateMeters:
    """Means over every real token of every mini-batch of one rollout's update."""

    def __init__(self) -> None:
        self._meters = Meters()
        self._pending: list[MicroBatch] = []
        self._ptx: list[Tensor] = []
        self._ratios: list[float] = []
        self._first_ratio_off: float | None = None

    def add(self, policy: PolicyLoss, entropy: Tensor, value: ValueLoss | None, kl: Tensor | None) -> None:
        """Take a micro-batch's sums; they count once its mini-batch is whole."""
        self._pending.append(
            MicroBatch(
                policy._replace(loss=policy.loss.detach()),
                entropy.detach().sum(),
                None if value is None else value._replace(loss=value.loss.detach()),
                None if kl is None else kl.detach(),
            )
        )

    def add_ptx(self, loss: Tensor) -> None:
        """Take a micro-batch of demonstrations: the sum of their loss."""
        self._ptx.append(loss.detach())

    def forget_mini_batch(self) -> None:
        """Forget the micro-batches of a mini-batch that starts again."""
        self._pending.clear()
        self._ptx.clear()

    def end_mini_batch(self, tokens: int, value_tokens: int, ptx_tokens: int = 0) -> dict[str, Tensor]:
        """Count the mini-batch. Returns its mean losses by name."""
        policies = [one.policy for one in self._pending]
        values = [one.value for one in self._pending if one.value is not None]
        kls = [one.kl for one in self._pending if one.kl is not None]
        ratio = _total([one.ratio for one in policies])
        losses = {"loss/policy_avg": (_total([one.loss for one in policies]), tokens)}
        if values:
            losses["loss/value_avg"] = (_total([one.loss for one in values]), value_tokens)
            self._meters.add_sum("val/clipfrac_avg", _total([one.clipped for one in values]), value_tokens)
        if kls:
            losses["loss/kl_avg"] = (_total(kls), tokens)
        if self._ptx:
            losses["loss/ptx"] = (_total(self._ptx), ptx_tokens)
        for key, (total, count) in losses.items():
            self._meters.add_sum(key, total, count)
        self._meters.add_sum("policy/clipfrac_avg", _total([one.clipped for one in policies]), tokens)
        self._meters.add_sum("policy/approxkl_avg", _total([one.approx_kl for one in policies]), tokens)
        self._meters.add_sum("policy/entropy_avg", _total([one.entropy for one in self._pending]), tokens)
        self._meters.add_sum("val/ratio", ratio, tokens)
        self._ratios.append(float(ratio) / tokens)
        if self._first_ratio_off is None:
            self._first_ratio_off = float(_total([one.ratio_off for one in policies])) / tokens
        self.forget_mini_batch()
        return {key: total / count for key, (total, count) in losses.items()}

    def add_norm(self, norm: Tensor) -> None:
        """Take the policy's gradient length before clipping."""
        self._meters.add("grad_norm", norm)

    def flush(self) -> dict[str, float]:
        """Return the means of the whole update."""
        ratios = torch.tensor(self._ratios, dtype=torch.float64)
        values = self._meters.flush()
        values["ppo/ratio_first"] = self._ratios[0]
        values["ppo/ratio_off"] = self._first_ratio_off or 0.0
        values["val/ratio_var"] = float(ratios.var()) if len(ratios) > 1 else 0.0
        return values


def _total(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum()


def rollout_metrics(batch: Rollout, targets: Advantages, kl_coefficient: float, recipe: PpoRecipe) -> dict[str, float]:
    """Metrics of a rollout, by the glossary's names: means over responses, or over real tokens."""
    mask, rows = targets.mask, len(batch.episodes)
    kl = torch.where(mask, kl_per_token(batch.logps, batch.ref_logps, recipe.kl_estimator), 0)
    penalty = float(-kl_coefficient * kl.sum()) / rows if recipe.pays_kl else 0.0
    scores = float(batch.scores.mean())
    ended = sum(one.ended for one in batch.episodes)
    if batch.values is None:
        spread = group_spread(batch.scores, batch.groups)
        more = {"frac_reward_zero_std": float((spread < _EQUAL_SCORES).double().mean())}
    else:
        more = {
            "ppo/returns_mean": float(masked_mean(targets.returns, targets.value_mask)),
            "ppo/values_mean": float(masked_mean(batch.values, targets.value_mask)),
            "ppo/explained_variance": explained_variance(targets.returns, batch.values, targets.value_mask),
        }
    if batch.clipped is not None:
        more["objective/scores_clipped"] = batch.clipped
    if batch.score_stds is not None:
        more["objective/score_std_heads"] = float(batch.score_stds.mean())
    return more | {
        "objective/scores": scores,
        "objective/kl": float(torch.where(mask, batch.kl, 0).sum()) / rows,
        "objective/non_score_reward": penalty,
        "objective/rlhf_reward": scores + penalty,
        "objective/entropy": float(-torch.where(mask, batch.logps, 0).sum()) / rows,
        "val/num_eos_tokens": float(ended),
        "ppo/eos_missing": 1 - ended / rows,
        "ppo/mean_length": float(batch.lengths.double().mean()),
        "ppo/kl_coefficient": kl_coefficient,
        "ppo/repetition": sum(repetition(one.ids) for one in batch.episodes) / rows,
    }


def evaluation_metrics(batch: Rollout, before: Mapping[str, float] | None = None) -> dict[str, float]:
    """Metrics of responses to held-out prompts; ``before``: the scores by prompt before the first rollout."""
    mask = response_mask(batch.lengths, batch.logps.shape[1])
    more = {} if batch.score_stds is None else {"eval_objective/score_std_heads": float(batch.score_stds.mean())}
    if before:
        more |= _gain(scores_by_prompt(batch), before)
    return more | {
        "eval_objective/scores": float(batch.scores.mean()),
        "eval_objective/kl": float(torch.where(mask, batch.kl, 0).sum()) / len(batch.episodes),
        "eval_ppo/mean_length": float(batch.lengths.double().mean()),
    }


def scores_by_prompt(batch: Rollout) -> dict[str, float]:
    """The score of the response to each prompt."""
    return {one.prompt_id: float(score) for one, score in zip(batch.episodes, batch.scores, strict=True)}


def _gain(scores: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """What the same prompts, drawn from the same seeds, score more than before: chance is in the differences alone."""
    gains = [score - before[prompt] for prompt, score in scores.items() if prompt in before]
    if len(gains) < FEWEST:
        return {}
    names = ("eval_objective/scores_gain", "eval_objective/scores_gain_low", "eval_objective/scores_gain_high")
    return dict(zip(names, mean_interval(gains), strict=True))


def repetition(ids: Sequence[int]) -> float:
    """Share of a response's 4-grams that occurred in it before."""
    grams = [tuple(ids[start : start + _GRAM]) for start in range(len(ids) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def samples_of(step: int, batch: Rollout, targets: Advantages | None, tokenizer: Any) -> list[Sample]:
    """Make one row of samples.jsonl of every episode, with its numbers per token where they exist."""
    samples = []
    for row, one in enumerate(batch.episodes):
        length = len(one.ids)
        # With the score paid one position after the last token, its reward is shown on the last.
        rewards = targets.rewards[row].tolist() if targets is not None else []
        if len(rewards) > length and targets is not None and bool(targets.value_mask[row, length]):
            rewards[length - 1] += rewards[length]
        samples.append(
            Sample(
                step=step,
                prompt_id=one.prompt_id,
                prompt=one.prompt,
                response=one.text,
                score=round(float(batch.scores[row]), _DECIMALS),
                kl=round(float(batch.kl[row, :length].sum()), _DECIMALS),
                ended=one.ended,
                tokens=tuple(token_texts(tokenizer, one.ids)),
                token_logps=_rounded(batch.logps[row, :length].tolist()),
                token_kl=_rounded(batch.kl[row, :length].tolist()),
                token_rewards=_rounded(rewards[:length]),
                token_values=_rounded(batch.values[row, :length].tolist()) if batch.values is not None else (),
                token_advantages=_rounded(targets.advantages[row, :length].tolist()) if targets is not None else (),
            )
        )
    return samples


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(one, _DECIMALS) for one in values)
