"""Recipes: every setting of the five training methods, with range, meaning and the source of its default.

A recipe is frozen, and complete but for what it leaves to the memory plan (:mod:`workbench.memory_choice`).
:func:`preset` makes one that suits the labels and the machine; :meth:`problems` names every fault, with its field,
before any model is loaded.
Sources: InstructGPT (Ouyang et al. 2022), N+ (Huang et al. 2024, "The N+ implementation details of RLHF with PPO"),
QLoRA (Dettmers et al. 2023), DPO (Rafailov et al. 2023), TRL 1.16 (SFT, reward, DPO, KTO) and 1.12 (PPO).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from workbench.records import Method
from workbench.settings_fields import Applies, Problem, range_problems, setting, settings_of, unused_problems

SMALL_BASE_PARAMETERS = 1_000_000_000
"""Below this a bf16 base learns better than NF4 and still fits (measured: SFT loss 1.45 against 1.62 at 135 M)."""
WITH_VALUE = Applies("advantage", ("gae",))
WITH_REWARD_MODEL = Applies("rule", ("",))
LOSS_TYPES = ("sigmoid", "sigmoid_norm", "ipo", "ipo_sum", "hinge", "robust", "simpo", "orpo")
WITHOUT_REFERENCE = ("simpo", "orpo")
"""Preference losses that compare the policy with nothing but itself."""


@dataclass(frozen=True, slots=True)
class CommonRecipe:
    """What all methods share: the adapter, the optimiser, the batch, the device."""

    quantisation: str = setting(
        "nf4",
        "How the frozen base is held: nf4 (4-bit, double quantisation) or bf16",
        choices=("nf4", "bf16"),
        source="QLoRA",
        group="Model",
    )
    lora_rank: int = setting(
        16,
        "Rank of the LoRA matrices; ignored when training continues an adapter",
        low=1,
        high=512,
        source="TRL",
        group="Model",
    )
    lora_alpha: int = setting(
        32,
        "LoRA scale: updates are multiplied by alpha / rank",
        low=1,
        high=2048,
        source="TRL",
        group="Model",
    )
    learning_rate: float = setting(2e-4, "Step size of AdamW", low=1e-8, high=1e-1, source="QLoRA", group="Optimiser")
    schedule: str = setting(
        "linear",
        "How the learning rate falls",
        choices=("constant", "linear", "cosine"),
        source="TRL",
        group="Optimiser",
    )
    warmup_steps: int = setting(
        0,
        "Steps over which the learning rate rises from 0",
        unit="steps",
        low=0,
        high=100_000,
        source="TRL",
        group="Optimiser",
    )
    weight_decay: float = setting(0.0, "AdamW's decay of the weights", low=0, high=1, source="TRL", group="Optimiser")
    max_grad_norm: float = setting(
        1.0,
        "Gradients longer than this are shortened to it",
        low=0.01,
        high=1000,
        source="TRL",
        group="Optimiser",
    )
    epochs: float = setting(3.0, "Passes over the data", low=0.01, high=1000, source="TRL")
    max_steps: int = setting(
        0, "Stop after so many optimiser steps; 0: after the epochs", unit="steps", low=0, high=10_000_000
    )
    batch: int = setting(
        8,
        "Rows per optimiser step (pairs for DPO)",
        low=1,
        high=65_536,
        source="TRL",
    )
    micro_batch: int = setting(
        0,
        "Rows held in memory at once; the batch is accumulated from them exactly. 0: what the memory plan finds room "
        "for, with gradient checkpointing only where nothing fits without it",
        low=0,
        high=4096,
        group="Memory",
    )
    head_rows: int = setting(
        0,
        "Positions whose logits are held at once; less costs no accuracy and a little time. 0: as the memory plan "
        "finds room, at most 512",
        low=0,
        high=65_536,
        group="Memory",
    )
    max_length: int = setting(1024, "Longest prompt plus completion", unit="tokens", low=16, high=131_072, source="TRL")
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: less memory, about 30 % slower", group="Memory"
    )
    seed: int = setting(0, "Seed of data order, adapter and sampling", low=0, high=2**31 - 1)
    device: str = setting(
        "auto", "auto takes the GPU when there is one", choices=("auto", "cuda", "cpu"), group="Memory"
    )
    eval_every: int = setting(
        10,
        "Measure on held-out data every so many steps; 0: only at start and end",
        unit="steps",
        low=0,
        high=100_000,
        group="Reporting",
    )
    save_every: int = setting(
        50,
        "Write a checkpoint every so many steps; 0: only at the end",
        unit="steps",
        low=0,
        high=100_000,
        group="Reporting",
    )
    keep_checkpoints: int = setting(2, "Newest resumable checkpoints kept", low=1, high=1000, group="Reporting")

    @property
    def batch_counts_rankings(self) -> bool:
        """Whether ``batch`` counts rankings, of any number of pairs each, and not rows."""
        return False

    def problems(self) -> list[Problem]:
        """Return every fault with its field."""
        found = range_problems(self)
        if self.micro_batch > self.batch and not self.batch_counts_rankings:
            found.append(
                Problem(
                    "micro_batch",
                    f"micro_batch {self.micro_batch} is larger than batch {self.batch}",
                    "lower micro_batch or raise batch",
                )
            )
        return found


@dataclass(frozen=True, slots=True)
class SftRecipe(CommonRecipe):
    """Supervised fine-tuning on demonstrations: loss on the completion only."""

    train_on: str = setting(
        "completion",
        "Which tokens are trained: the completion, or the whole conversation",
        choices=("completion", "conversation"),
        source="TRL",
        group="Loss",
    )
    neftune_alpha: float = setting(
        0.0,
        "NEFTune: noise on the embeddings in training, against overfitting; 0: none, 5 in the paper",
        low=0,
        high=100,
        source="Jain et al. 2023",
        group="Loss",
    )


@dataclass(frozen=True, slots=True)
class RewardRecipe(CommonRecipe):
    """A Bradley-Terry reward model on preference pairs: a scalar head on the last real token."""

    learning_rate: float = setting(
        1e-4, "Step size of AdamW for the adapter", low=1e-8, high=1e-1, source="TRL", group="Optimiser"
    )
    head_learning_rate: float = setting(
        1e-3,
        "Step size of AdamW for the scalar head",
        low=1e-8,
        high=1e-1,
        source="Tastemaker: 10x the adapter's, since the head starts at random",
        group="Optimiser",
    )
    heads: int = setting(
        1,
        "Scalar heads on the one adapter, each with a start and about half the rankings of its own: the score is their "
        "mean, their spread says how much it is a guess; 1: none, 4 to 16 for an ensemble, at no cost worth naming",
        low=1,
        high=64,
        source="Coste et al. 2024 (5 models), Osband et al. 2016 (heads)",
        group="Model",
    )
    epochs: float = setting(
        1.0, "Passes over the pairs; more overfit at once", low=0.01, high=1000, source="InstructGPT"
    )
    batch: int = setting(
        8,
        "Rankings per optimiser step, each with all its pairs; they weigh alike, however many pairs each has",
        unit="rankings",
        low=1,
        high=65_536,
        source="InstructGPT (64)",
    )
    schedule: str = setting(
        "cosine",
        "How the learning rate falls",
        choices=("constant", "linear", "cosine"),
        source="N+",
        group="Optimiser",
    )
    center_coefficient: float = setting(
        0.01,
        "Weight of (r_chosen + r_rejected)^2, which keeps scores near 0",
        low=0,
        high=10,
        source="TRL docs, arXiv 2312.09244",
        group="Loss",
    )
    margin_per_tier: float = setting(
        0.0,
        "Margin asked for per tier between chosen and rejected; 0: none, 1/3 or 1 in Llama 2",
        low=0,
        high=100,
        source="TRL (none); Llama 2, eq. 2",
        group="Loss",
    )
    label_smoothing: float = setting(
        0.0,
        "Share of labels taken to be wrong; keeps scores from running apart",
        low=0,
        high=0.49,
        source="TRL (none); Szegedy et al. 2016",
        group="Loss",
    )
    ties: bool = setting(
        False,
        "Train on responses of one tier too: a tie asks for equal scores (half a label each way)",
        source="InstructGPT, which drops ties",
        group="Data",
    )
    pairs_from_rankings: str = setting(
        "all",
        "Every ordered pair across tiers, or only the best against the rest",
        choices=("all", "best-vs-rest"),
        source="InstructGPT",
        group="Data",
    )

    @property
    def batch_counts_rankings(self) -> bool:
        """A batch is of rankings: a step of pairs would give one of 36 pairs the weight of 36 rankings of one pair."""
        return True


@dataclass(frozen=True, slots=True)
class DpoRecipe(CommonRecipe):
    """Direct preference optimisation against the frozen starting model, and its relatives without one."""

    learning_rate: float = setting(
        2e-5,
        "Step size of AdamW; for LoRA about 10x that of full training",
        low=1e-8,
        high=1e-1,
        source="Tastemaker, after TRL's LoRA advice",
        group="Optimiser",
    )
    epochs: float = setting(1.0, "Passes over the pairs", low=0.01, high=1000, source="DPO")
    beta: float = setting(
        0.1,
        "How strongly the policy is held to its reference; SimPO: weight of a token's mean log-probability, 2 to 10",
        low=0.0001,
        high=100,
        source="DPO",
        group="Loss",
        applies=Applies("loss_type", tuple(one for one in LOSS_TYPES if one != "orpo")),  # it has orpo_lambda
    )
    loss_type: str = setting(
        "sigmoid",
        "Which preference loss; sigmoid_norm and ipo divide by length, ipo_sum is IPO as in its paper, simpo and orpo need "
        "no reference",
        choices=LOSS_TYPES,
        source="DPO",
        group="Loss",
    )
    simpo_gamma: float = setting(
        0.5,
        "SimPO only: how much better than the rejected the chosen response must be; often half of beta",
        low=0,
        high=100,
        source="TRL",
        group="Loss",
        applies=Applies("loss_type", ("simpo",)),
    )
    orpo_lambda: float = setting(
        0.1,
        "ORPO only: weight of the odds ratio beside the chosen response's loss",
        low=0.0001,
        high=100,
        source="ORPO, TRL",
        group="Loss",
        applies=Applies("loss_type", ("orpo",)),
    )
    label_smoothing: float = setting(
        0.0,
        "Share of labels taken to be wrong: conservative DPO for sigmoid, unbiased for robust",
        low=0,
        high=0.49,
        source="TRL; Mitchell 2023 (conservative DPO), Chowdhury et al. 2024 (robust)",
        group="Loss",
    )
    pairs_from_rankings: str = setting(
        "all",
        "Every ordered pair across tiers, or only the best against the rest",
        choices=("all", "best-vs-rest"),
        source="InstructGPT",
        group="Data",
    )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares the policy with the model that it started from."""
        return self.loss_type not in WITHOUT_REFERENCE

    def problems(self) -> list[Problem]:
        """Return every fault with its field."""
        found = CommonRecipe.problems(self)
        if self.loss_type == "robust" and self.label_smoothing == 0:
            found.append(
                Problem(
                    "label_smoothing",
                    "robust DPO with label_smoothing 0 is plain sigmoid DPO",
                    "set the share of wrong labels, e.g. 0.1",
                    "warning",
                )
            )
        if self.loss_type not in ("sigmoid", "robust") and self.label_smoothing > 0:
            found.append(
                Problem(
                    "label_smoothing",
                    f"{self.loss_type} has no label smoothing",
                    "set it to 0, or choose sigmoid or robust",
                )
            )
        if self.loss_type == "simpo" and self.beta < 1:
            found.append(
                Problem(
                    "beta",
                    f"SimPO with beta {self.beta:g} learns slowly: it weighs the mean over tokens, not their sum",
                    "set it between 2 and 10",
                    "warning",
                )
            )
        return [*found, *unused_problems(self, _standards("dpo"))]


@dataclass(frozen=True, slots=True)
class KtoRecipe(CommonRecipe):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024) on responses that were judged one by one."""

    learning_rate: float = setting(
        2e-5,
        "Step size of AdamW; for LoRA about 10x that of full training",
        low=1e-8,
        high=1e-1,
        source="Tastemaker, as for DPO; TRL 1e-6, the paper 5e-7 to 5e-6, for full training",
        group="Optimiser",
    )
    epochs: float = setting(1.0, "Passes over the judged responses", low=0.01, high=1000, source="KTO")
    batch: int = setting(
        8,
        "Responses per optimiser step; they also measure the KL that rewards are compared with, so 2 at least",
        low=2,
        high=65_536,
        source="KTO (8 to 128)",
    )
    beta: float = setting(
        0.1,
        "How strongly the policy is held to its reference, and how soon a gain or loss saturates",
        low=0.0001,
        high=100,
        source="KTO, TRL",
        group="Loss",
    )
    desirable_weight: float = setting(
        1.0,
        "Weight of each wanted response; raise it where these are few",
        low=0,
        high=1000,
        source="KTO, TRL",
        group="Loss",
    )
    undesirable_weight: float = setting(
        1.0,
        "Weight of each unwanted response; raise it where these are few",
        low=0,
        high=1000,
        source="KTO, TRL",
        group="Loss",
    )
    rankings_as_thumbs: str = setting(
        "none",
        "What a ranking without thumbs is taken to say: nothing, or that its best tier is wanted and its worst is not",
        choices=("none", "best-and-worst"),
        source="Tastemaker; the paper takes pairs apart as best-and-worst does",
        group="Data",
    )

    def problems(self) -> list[Problem]:
        """Return every fault with its field."""
        found = CommonRecipe.problems(self)
        if self.desirable_weight == self.undesirable_weight == 0:
            found.append(
                Problem(
                    "desirable_weight",
                    "with both weights 0 no response counts, and nothing is learned",
                    "set desirable_weight or undesirable_weight above 0",
                )
            )
        return found


def thumb_weights(recipe: KtoRecipe, desirable: int, undesirable: int) -> list[Problem]:
    """Say where the weighted wanted and unwanted responses are out of balance.

    ``1 <= desirable_weight n_d / (undesirable_weight n_u) <= 4/3`` is what worked best over many ratios of data
    (Ethayarajh et al. 2024, section 4.2, eq. 8). Only one kind of response is a warning of its own.
    """
    total = desirable + undesirable
    if not desirable or not undesirable:
        kind = "wanted" if desirable else "unwanted"
        other = "down" if desirable else "up"
        only = Problem(
            "data",
            f"All {total:,} judged responses are {kind}: KTO then has nothing to set them against",
            f"give some responses thumbs {other}",
            "warning",
        )
        return [only] if total else []
    gain, loss = recipe.desirable_weight * desirable, recipe.undesirable_weight * undesirable
    if loss <= gain <= loss * 4 / 3 * (1 + 1e-9):
        return []
    raised = gain < loss
    few = "desirable_weight" if raised else "undesirable_weight"
    low, high = _balanced(few, gain, loss, desirable, undesirable)
    limit = next(one.high for one in settings_of(KtoRecipe) if one.name == few)
    if limit is not None and low > limit:  # then the other is lowered
        few = "undesirable_weight" if raised else "desirable_weight"
        low, high = _balanced(few, gain, loss, desirable, undesirable)
    wrong = "too little" if raised else "too much"
    return [
        Problem(
            few,
            f"{desirable:,} wanted and {undesirable:,} unwanted responses, weighted {_plain(gain)} : {_plain(loss)}: the"
            f" wanted count {wrong}, best is between 1:1 and 4:3",
            f"set {few} between {_plain(low)} and {_plain(high)}",
            "warning",
        )
    ]


def _balanced(weight: str, gain: float, loss: float, desirable: int, undesirable: int) -> tuple[float, float]:
    """Between which values of a weight the wanted count as much as the unwanted, up to a third more."""
    if weight == "desirable_weight":
        return loss / desirable, loss / desirable * 4 / 3
    return gain / undesirable * 3 / 4, gain / undesirable


def _plain(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class PpoRecipe(CommonRecipe):
    """PPO against a reward model (or a written rule), on a KL leash to the starting model; RLOO and GRPO likewise."""

    learning_rate: float = setting(
        5e-5,
        "Step size of AdamW for the policy adapter",
        low=1e-8,
        high=1e-1,
        source="Tastemaker: 10x N+'s 3e-6, for LoRA",
        group="Optimiser",
    )
    value_learning_rate: float = setting(
        1e-4,
        "Step size of AdamW for the value adapter and head",
        low=1e-8,
        high=1e-1,
        source="Tastemaker: 2x the policy's; N+ and TRL have one step size for both",
        group="Optimiser",
        applies=WITH_VALUE,
    )
    schedule: str = setting(
        "linear",
        "How the learning rate falls",
        choices=("constant", "linear", "cosine"),
        source="TRL",
        group="Optimiser",
    )
    epochs: float = 1.0  # no setting here: episodes says how long a run is
    max_steps: int = setting(
        0, "Stop after so many rollouts; 0: after the episodes", unit="rollouts", low=0, high=10_000_000
    )
    episodes: int = setting(
        512,
        "Responses rolled out in the whole run; takes the place of epochs",
        low=1,
        high=100_000_000,
        source="Tastemaker, for one machine; N+ 1 M",
        group="Rollout",
    )
    batch: int = setting(
        32,
        "Episodes per rollout",
        low=2,
        high=65_536,
        source="Tastemaker, for one machine; InstructGPT and N+ 512",
        group="Rollout",
    )
    responses_per_prompt: int = setting(
        1,
        "Responses drawn to each prompt of a rollout; rloo and grpo compare them, and want 2 or more",
        low=1,
        high=1024,
        source="InstructGPT; RLOO 2 to 4, GRPO 64",
        group="Rollout",
    )
    mini_batches: int = setting(
        1, "Optimiser steps per PPO epoch on one rollout", low=1, high=1024, source="N+", group="PPO"
    )
    ppo_epochs: int = setting(4, "Passes over each rollout", low=1, high=100, source="N+", group="PPO")
    response_length: int = setting(
        64, "Longest response", unit="tokens", low=1, high=32_768, source="N+ (53)", group="Rollout"
    )
    temperature: float = setting(
        0.7,
        "Sampling temperature, the same in rollout and training",
        low=0.01,
        high=10,
        source="N+",
        group="Rollout",
    )
    kl_coefficient: float = setting(
        0.05, "Price of one nat of KL to the reference", low=0, high=100, source="N+", group="KL leash"
    )
    kl_target: float = setting(
        0.0,
        "Adapt the KL coefficient towards this KL per response; 0: fixed coefficient",
        unit="nats",
        low=0,
        high=10_000,
        source="Ziegler et al. 2019 (6)",
        group="KL leash",
    )
    kl_horizon: int = setting(
        10_000,
        "Episodes over which the coefficient adapts",
        low=1,
        high=100_000_000,
        source="Ziegler et al. 2019",
        group="KL leash",
        applies=Applies("kl_target"),
    )
    kl_estimator: str = setting(
        "k1",
        "Estimator of the KL paid in the reward; grpo has k3 in its loss",
        choices=("k1", "k3"),
        source="TRL",
        group="KL leash",
        applies=Applies("advantage", ("gae", "rloo")),
    )
    score_norm: str = setting(
        "calibrated",
        "What the reward model's raw score is paid in: calibrated, standard deviations of ranked responses above the "
        "demonstrations' mean; centred, above that mean alone; raw, as it is",
        choices=("calibrated", "centred", "raw"),
        source="InstructGPT and N+ (the mean), Ziegler et al. 2019 (the deviation); TRL 0.11 use_score_norm",
        group="Reward",
        applies=WITH_REWARD_MODEL,
    )
    score_clip: float = setting(
        0.0,
        "Clip the score to +- this, in the unit of score_norm and before anything is taken off it, so that a few extreme "
        "scores do not decide an update; 0: never, 3 to 5 where they do",
        low=0,
        high=1000,
        source="TRL 0.11 (score_clip, off there too)",
        group="Reward",
        applies=WITH_REWARD_MODEL,
    )
    missing_eos_penalty: float = setting(
        1.0,
        "Taken from the score of a response that was cut off",
        low=0,
        high=1000,
        source="TRL",
        group="Reward",
    )
    score_position: str = setting(
        "last",
        "Token that is paid the score: the last one, or one later as TRL does",
        choices=("last", "after"),
        source="InstructGPT",
        group="Reward",
        applies=WITH_VALUE,
    )
    whiten_rewards: bool = setting(
        False,
        "Scale rewards to unit variance over the rollout, keeping their mean",
        source="TRL",
        group="Reward",
        applies=WITH_VALUE,
    )
    uncertainty_penalty: float = setting(
        0.0,
        "Taken from the score for every standard deviation between the reward model's heads; 0: none, 0.1 to 1 where "
        "the policy seeks what the heads disagree on",
        low=0,
        high=100,
        source="Coste et al. 2024 (UWO, there of the variance)",
        group="Reward",
        applies=WITH_REWARD_MODEL,
    )
    rule: str = setting(
        "",
        "Score by a written rule instead of a reward model, e.g. shorter-than:40",
        source="InstructGPT (a reward model)",
        group="Reward",
    )
    advantage: str = setting(
        "gae",
        "What a response is measured by: gae, a value model; rloo, the mean of the other responses to its prompt; grpo, the same in standard deviations, with the KL in the loss",
        choices=("gae", "rloo", "grpo"),
        source="InstructGPT",
        group="PPO",
    )
    gamma: float = setting(1.0, "Discount", low=0, high=1, source="InstructGPT", group="PPO", applies=WITH_VALUE)
    gae_lambda: float = setting(
        0.95, "GAE's lambda", low=0, high=1, source="InstructGPT", group="PPO", applies=WITH_VALUE
    )
    ptx_coefficient: float = setting(
        0.0,
        "PPO-ptx: weight of the demonstrations' loss a token in the policy's update, against forgetting what they taught; "
        "0: none, 0.1 to 1 holds on to them, 27.8 in InstructGPT with text of pretraining",
        low=0,
        high=1000,
        source="InstructGPT, eq. 2",
        group="PPO",
    )
    clip_range: float = setting(
        0.2,
        "Probability ratios are clipped to 1 +- this",
        low=0.001,
        high=10,
        source="InstructGPT",
        group="PPO",
    )
    value_clip_range: float = setting(
        0.2,
        "Values move at most this far from the rollout's",
        low=0.001,
        high=1000,
        source="N+",
        group="PPO",
        applies=WITH_VALUE,
    )
    value_coefficient: float = setting(
        0.1,
        "Weight of the value loss; the value has an optimiser of its own, so this only moves where its gradient is clipped",
        low=0,
        high=100,
        source="N+",
        group="PPO",
        applies=WITH_VALUE,
    )
    max_kl: float = setting(
        0.0,
        "Pause and save when KL per response passes this; 0: never",
        unit="nats",
        low=0,
        high=10_000,
        source="Tastemaker, after Gao et al. 2022: beyond some KL a rising score means less",
        group="KL leash",
    )

    @property
    def pays_kl(self) -> bool:
        """Whether the KL to the reference is paid in the reward; GRPO has it in the loss."""
        return self.advantage != "grpo"

    @property
    def has_value(self) -> bool:
        """Whether a value model is trained beside the policy."""
        return self.advantage == "gae"

    @property
    def prompts_per_rollout(self) -> int:
        """How many prompts a rollout draws responses to."""
        return self.batch // self.responses_per_prompt

    def problems(self) -> list[Problem]:
        """Return every fault with its field."""
        found = [*CommonRecipe.problems(self), *self._group_problems()]
        if self.mini_batches > 0 and self.batch % self.mini_batches:
            found.append(
                Problem(
                    "mini_batches",
                    f"{self.batch} episodes do not split into {self.mini_batches} equal mini-batches",
                    "choose a divisor of batch",
                )
            )
        if self.response_length >= self.max_length:
            found.append(
                Problem(
                    "response_length",
                    f"a response of {self.response_length} tokens leaves no room for a prompt in {self.max_length}",
                    "raise max_length or lower response_length",
                )
            )
        if self.kl_target > 0 and self.kl_coefficient == 0:
            found.append(
                Problem(
                    "kl_coefficient",
                    "an adaptive KL coefficient that starts at 0 stays 0, since it moves by factors",
                    "start it at 0.05, or set kl_target to 0",
                )
            )
        if self.rule:
            try:
                parse_rule(self.rule)
            except ValueError as error:
                found.append(
                    Problem("rule", str(error), "use shorter-than:TOKENS, longer-than:TOKENS or contains:TEXT")
                )
        return [*found, *unused_problems(self, _standards("ppo"))]

    def _group_problems(self) -> list[Problem]:
        """Faults of the responses to one prompt, and of comparing them."""
        found = []
        if self.responses_per_prompt > 0 and self.batch % self.responses_per_prompt:
            found.append(
                Problem(
                    "responses_per_prompt",
                    f"{self.batch} episodes do not split into {self.responses_per_prompt} responses to each prompt",
                    "choose a divisor of batch",
                )
            )
        if not self.has_value and self.responses_per_prompt < 2:
            found.append(
                Problem(
                    "responses_per_prompt",
                    f"{self.advantage} compares the responses to one prompt, and one has none beside it",
                    "set it to 2 or more, e.g. 4",
                )
            )
        return found


Recipe = SftRecipe | RewardRecipe | DpoRecipe | KtoRecipe | PpoRecipe
RECIPES: dict[Method, type[Recipe]] = {
    "sft": SftRecipe,
    "reward": RewardRecipe,
    "dpo": DpoRecipe,
    "kto": KtoRecipe,
    "ppo": PpoRecipe,
}
PRESETS: tuple[str, ...] = ("Quick look", "Balanced", "Thorough")


def methods_with(setting_name: str) -> tuple[Method, ...]:
    """Which methods have a setting of that name."""
    return tuple(
        method for method, recipe in RECIPES.items() if any(one.name == setting_name for one in settings_of(recipe))
    )


def parse_rule(rule: str) -> tuple[str, str]:
    """Split a rule such as ``shorter-than:40`` into its name and argument.

    Rules: ``shorter-than:N`` (1 if fewer than N tokens and ended by EOS, else 0), ``longer-than:N``,
    ``contains:TEXT``. Raises ValueError with the reason.
    """
    name, _, argument = rule.partition(":")
    if name not in ("shorter-than", "longer-than", "contains"):
        raise ValueError(f"there is no rule {name!r}")
    if not argument:
        raise ValueError(f"the rule {name!r} needs an argument after a colon")
    if name != "contains" and not (argument.isdecimal() and len(argument) < 10 and int(argument)):
        raise ValueError(f"{name!r} needs a number of tokens above 0, not {argument[:20]!r}")
    return name, argument


def preset(method: Method, name: str, rows: int, base_parameters: int = 0, *, cuda: bool = False) -> Recipe:
    """Resolve a preset against what trains (demonstrations, rankings, pairs for DPO, prompts) and the base's size.

    Quick look ends in minutes and shows that everything works; Balanced uses the field's defaults; Thorough
    takes more passes. Small bases are held in bf16 where they fit, since they learn better so.
    Raises ValueError for an unknown preset.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    level = PRESETS.index(name)
    small = 0 < base_parameters < SMALL_BASE_PARAMETERS
    changes: dict[str, Any] = {"quantisation": "bf16" if small else "nf4"}
    if not cuda:
        changes |= {"max_length": (384, 512, 1024)[level]}
    if method == "ppo":
        changes |= {
            "episodes": (128, 512, 4096)[level],
            "batch": (16, 32, 64)[level],
            "ppo_epochs": (2, 4, 4)[level],
            "mini_batches": (2, 1, 1)[level],
            "learning_rate": (3e-4, 1e-4, 5e-5)[level],  # few rollouts want longer steps (measured at 135 M)
            "value_learning_rate": (5e-4, 2e-4, 1e-4)[level],
            "response_length": (48, 64, 128)[level],
            "eval_every": 4,
            "save_every": (4, 8, 16)[level],
        }
    else:
        fewest_steps = 16 if method == "reward" else 4  # a ranking has several pairs, yet few rankings want steps too
        batch = min(8, max(2 if method == "kto" else 1, rows // fewest_steps))
        passes = {"sft": (1.0, 3.0, 5.0), "reward": (1.0, 1.0, 2.0), "dpo": (1.0, 2.0, 3.0), "kto": (1.0, 2.0, 3.0)}
        per_epoch = max(1, -(-rows // batch))
        changes |= {
            "batch": batch,
            "epochs": passes[method][level],
            "max_steps": 20 if level == 0 and per_epoch > 20 else 0,
            "eval_every": max(1, min(10, per_epoch // 4)),
            "save_every": max(5, min(50, per_epoch)),
        }
    return dataclasses.replace(RECIPES[method](), **changes)


@lru_cache
def _standards(method: Method) -> tuple[Recipe, ...]:
    """The recipes that nobody chose setting by setting: the defaults and the presets."""
    return (RECIPES[method](), *(preset(method, name, 0) for name in PRESETS))
