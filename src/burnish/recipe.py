"""What a run depends on: a tree of the dataclasses that use its fields, and what does not go together.

Nothing here loads torch or a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from burnish.algorithms.awm import AWM
from burnish.algorithms.critic import Critic
from burnish.algorithms.ddpo import DDPOIS, DDPOSF, PerPrompt, WholeBatch
from burnish.algorithms.dpo import D3PO, DPO, OfflineDPO
from burnish.algorithms.dpok import DPOK
from burnish.algorithms.draft import AlignProp, DRaFT, ReFL
from burnish.algorithms.exploration import Explores, Unguided, Wider
from burnish.algorithms.grpo import GRPO
from burnish.algorithms.nft import NFT
from burnish.algorithms.rwr import RWR, RWRSparse
from burnish.algorithms.sft import SFT, BestOf
from burnish.animals import Animals
from burnish.decays import CosineDecay, ExponentialDecay, LinearDecay
from burnish.models import trainable as weights
from burnish.models.trainable import Full, LoRA
from burnish.portraits.prompts import Portraits
from burnish.preference.settings import CLIPFeatures, Linear, Perceptron, Pixels, Statistics
from burnish.prompts import Listed, PromptFile
from burnish.rewards.combine import Combine
from burnish.rewards.diversity import Diversity
from burnish.rewards.files import (
    Compressibility,
    Incompressibility,
    WebPCompressibility,
    WebPIncompressibility,
)
from burnish.rewards.learned.aesthetic import Aesthetic
from burnish.rewards.learned.clip_score import CLIPScore
from burnish.rewards.learned.hps_v2 import HPSv2
from burnish.rewards.learned.image_reward import ImageReward
from burnish.rewards.learned.pick_score import PickScore
from burnish.rewards.learned.similarity import BERTScore, Sentences
from burnish.rewards.portraits import PortraitAlignment, PortraitLikelihood
from burnish.rewards.preference import Preference
from burnish.rewards.quality import Quality
from burnish.rewards.readings import AnswerSimilarity, Grade, YesNo
from burnish.rewards.reference import Similarity, StructuralSimilarity
from burnish.rewards.remote import Remote
from burnish.rewards.safety import Safety
from burnish.rewards.statistics import Brightness, Colourfulness, Contrast, Entropy, Sharpness
from burnish.rewards.symmetry import MirrorSymmetry, RotationSymmetry
from burnish.rewards.text_rendering import TextRendering
from burnish.rewards.vlm import VLM
from burnish.samplers.ddim import DDIM
from burnish.samplers.ddpm import DDPM
from burnish.samplers.dpm import DPMSolver
from burnish.samplers.flow import CPS, DanceSDE, FlowODE, FlowSDE
from burnish.samplers.window import Window
from burnish.train.settings import AdamW, Training, check

Samplers = DDIM | DDPM | FlowODE | FlowSDE | DanceSDE | CPS | Window | DPMSolver


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str = "portraits"
    """An embedded model, a pipeline's folder, or a repository on the hub."""
    guidance: float = 5.0
    """Weight of classifier-free guidance, in sampling and in training; 1 for none."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the network's arithmetic and of the stored states; log-probabilities are float32 always."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A reward of one's own: `name = "module:attribute"`."""

    differentiable: ClassVar[bool] = True
    """As far as is known before it is first asked."""

    target: str


Single = (
    Compressibility
    | Incompressibility
    | WebPCompressibility
    | WebPIncompressibility
    | Brightness
    | Contrast
    | Colourfulness
    | Sharpness
    | Entropy
    | MirrorSymmetry
    | RotationSymmetry
    | Similarity
    | StructuralSimilarity
    | PortraitAlignment
    | PortraitLikelihood
    | Aesthetic
    | CLIPScore
    | PickScore
    | HPSv2
    | ImageReward
    | TextRendering
    | Safety
    | Quality
    | Preference
    | Diversity
    | VLM
    | Remote
    | Plugin
)
Rewards = Single | Combine[Single]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """Potential-based shaping of denoising chains (Ng et al. 1999), for the policy gradients on them."""

    reward: Single
    """Of the clean sample that the network foresees at each trained step: the potential. It is asked
    once for each."""
    weight: float = 0.5
    """Of the potential, in standard deviations of the reward; best is how strongly the two correlate."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight = {self.weight}, expected a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    every: int = 10
    """Iterations between two evaluations; the first and the last model are always evaluated."""
    prompts: int = 32
    """Held-out prompts, always with the same noise."""
    repeats: int = 1
    """Samples of each; 2 or more for a reward that compares the samples of a prompt."""
    sampler: Samplers | None = None
    """What draws them, and what `burnish sample` draws with; by default the sampler that is trained with."""
    watched: Rewards | None = None
    """A reward that is measured on the held-out samples and not optimised, such as the alignment with the
    prompts: what the policy pays with."""

    def __post_init__(self) -> None:
        for name in ("every", "prompts", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    every: int = 5
    """Iterations between two checkpoints; the last iteration always has one."""
    keep: int = 2
    """How many are kept; 2 or more, so that a damaged one has a predecessor."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 2:
            raise ValueError(
                f"every = {self.every} and keep = {self.keep}, expected every >= 1 and keep >= 2"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    folder: str
    """Where rewards are kept on disk, for this run and others; it is made if there is none."""

    def __post_init__(self) -> None:
        if Path(self.folder).exists() and not Path(self.folder).is_dir():
            raise ValueError(f"folder = {self.folder!r} is a file, expected a folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that a run depends on."""

    reward: Rewards
    prompts: Portraits | Listed | PromptFile | Animals = field(default_factory=Portraits)
    model: Model = field(default_factory=Model)
    trainable: LoRA | Full = field(default_factory=LoRA)
    sampler: Samplers = field(default_factory=DDIM)
    algorithm: (
        DDPOIS
        | DDPOSF
        | GRPO
        | DPOK
        | RWR
        | RWRSparse
        | NFT
        | AWM
        | DPO
        | OfflineDPO
        | D3PO
        | SFT
        | BestOf
        | DRaFT
        | AlignProp
        | ReFL
    ) = field(default_factory=DDPOIS)
    shaping: Shaping | None = None
    """None by default."""
    training: Training = field(default_factory=Training)
    optimizer: AdamW = field(default_factory=AdamW)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    cache: Cache | None = None
    """Of rewards, the watched one's too; none by default."""
    seed: int = 0
    """Of every random draw of the run."""

    def __post_init__(self) -> None:
        check(self.algorithm, self.training)
        weights.check(self.trainable, self.model.dtype)
        if self.algorithm.needs_density and self.sampler.deterministic:
            raise ValueError(
                f"sampler.name = {NAMES[type(self.sampler)]!r} with these settings makes every step "
                "deterministic, at once or when eta has fallen to its end, but the algorithm learns from the "
                "steps' densities; set sampler.eta above 0 (its `end`, if it falls), or take a sampler with "
                "noise"
            )
        _check_compared(self.reward, self.evaluation)
        if self.algorithm.differentiates_reward and not self.reward.differentiable:
            raise ValueError(
                f"algorithm.name = {NAMES[type(self.algorithm)]!r} differentiates the reward, but "
                f"reward.name = {NAMES[type(self.reward)]!r} has no gradient; take a differentiable reward, "
                "or an algorithm that needs none, such as ddpo-is"
            )
        if self.algorithm.differentiates_reward:
            _check_walked(NAMES[type(self.algorithm)], self.sampler)
        if self.shaping is not None and not isinstance(self.algorithm, Explores):
            raise ValueError(
                f"shaping: algorithm.name = {NAMES[type(self.algorithm)]!r} is no policy gradient on chains, "
                "so there is nothing to shape; leave it out, or take ddpo-is, ddpo-sf, grpo or dpok"
            )
        if isinstance(self.algorithm, Explores):
            _check_exploration(self.algorithm, self.model)
        _check_steps(self.algorithm.train_steps, self.sampler.num_steps)
        if isinstance(self.sampler, Window):
            _check_window(self.algorithm.train_steps, self.sampler)


def _check_compared(reward: Rewards, evaluation: Evaluation) -> None:
    for key, asked in (("reward", reward), ("evaluation.watched", evaluation.watched)):
        if evaluation.repeats < 2 and getattr(asked, "unit", "sample") != "sample":
            raise ValueError(
                f"{key} compares the samples of a prompt, but evaluation.repeats = 1 draws one of each "
                "held-out prompt; set evaluation.repeats = 2 or more"
            )


def _check_walked(algorithm: str, sampler: Samplers) -> None:
    solved = isinstance(sampler, DPMSolver)
    if solved or (isinstance(sampler, Window) and sampler.tail is not None):
        key = "sampler.name = 'dpm-solver'" if solved else "sampler.tail"
        raise ValueError(
            f"algorithm.name = {algorithm!r} differentiates through the sampler's last steps, but {key} has "
            "a solver in their place; leave it out (evaluation.sampler may be one)"
        )


def _check_steps(train_steps: int | tuple[int, ...] | None, num_steps: int) -> None:
    last = max(train_steps) if isinstance(train_steps, tuple) else (train_steps or 1) - 1
    if last >= num_steps:
        raise ValueError(
            f"algorithm.train_steps = {train_steps} does not fit sampler.num_steps = {num_steps}"
        )


def _check_exploration(algorithm: Explores, model: Model) -> None:
    if isinstance(algorithm.exploration, Unguided) and model.guidance == 1:
        raise ValueError(
            "algorithm.exploration.name = 'unguided' leaves classifier-free guidance out, but model.guidance "
            "= 1 has none; set model.guidance above 1, or take algorithm.exploration.name = 'wider'"
        )


def _check_window(train_steps: int | tuple[int, ...] | None, window: Window) -> None:
    listed = train_steps if isinstance(train_steps, tuple) else ()
    inside = range(window.start, window.start + window.size)
    if window.move != "fixed" and listed:
        raise ValueError(
            f"algorithm.train_steps = {list(listed)}, but sampler.move = {window.move!r}: a window that "
            "moves does not always hold these steps; leave train_steps out, or give a number"
        )
    if not set(listed) <= set(inside):
        raise ValueError(
            f"algorithm.train_steps = {list(listed)} does not fit the sampler's window, which holds "
            f"the steps {list(inside)}"
        )
    if isinstance(train_steps, int) and train_steps > window.size:
        raise ValueError(
            f"algorithm.train_steps = {train_steps} does not fit sampler.size = {window.size}"
        )


NAMES: Mapping[type, str] = {
    Aesthetic: "aesthetic",
    AlignProp: "align-prop",
    Animals: "animals",
    AnswerSimilarity: "similarity",
    AWM: "awm",
    BERTScore: "bert-score",
    BestOf: "best-of",
    Brightness: "brightness",
    CLIPFeatures: "clip",
    CLIPScore: "clip-score",
    Colourfulness: "colourfulness",
    Combine: "combine",
    Compressibility: "compressibility",
    Contrast: "contrast",
    CosineDecay: "cosine",
    CPS: "cps",
    Critic: "critic",
    D3PO: "d3po",
    DanceSDE: "dance-sde",
    DDIM: "ddim",
    DDPM: "ddpm",
    DDPOIS: "ddpo-is",
    DDPOSF: "ddpo-sf",
    DPMSolver: "dpm-solver",
    DPO: "dpo",
    DPOK: "dpok",
    DRaFT: "draft",
    Diversity: "diversity",
    Entropy: "entropy",
    ExponentialDecay: "exponential",
    FlowODE: "flow-ode",
    FlowSDE: "flow-sde",
    Full: "full",
    Grade: "grade",
    GRPO: "grpo",
    HPSv2: "hps-v2",
    ImageReward: "image-reward",
    Incompressibility: "incompressibility",
    Linear: "linear",
    LinearDecay: "linear",
    Listed: "list",
    LoRA: "lora",
    MirrorSymmetry: "mirror-symmetry",
    NFT: "nft",
    OfflineDPO: "offline-dpo",
    PerPrompt: "per-prompt",
    Perceptron: "perceptron",
    PickScore: "pick-score",
    Pixels: "pixels",
    PortraitAlignment: "portrait-alignment",
    PortraitLikelihood: "portrait-likelihood",
    Portraits: "portraits",
    Preference: "preference",
    PromptFile: "file",
    Quality: "quality",
    ReFL: "refl",
    RotationSymmetry: "rotation-symmetry",
    Remote: "remote",
    RWR: "rwr",
    RWRSparse: "rwr-sparse",
    Sentences: "sentences",
    Safety: "safety",
    SFT: "sft",
    Sharpness: "sharpness",
    Similarity: "similarity",
    Statistics: "statistics",
    StructuralSimilarity: "structural-similarity",
    TextRendering: "text-rendering",
    Unguided: "unguided",
    VLM: "vlm",
    WebPCompressibility: "webp-compressibility",
    WebPIncompressibility: "webp-incompressibility",
    WholeBatch: "whole-batch",
    Wider: "wider",
    Window: "window",
    YesNo: "yes-no",
}
"""What a table's `name` calls a class where there is a choice."""
