"""Supervised baselines: fine-tuning on given images, and on the best of the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from burnish import advantages, experience, image_list, rows
from burnish.algorithms import Collection, Memory, chains, endpoints

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Task
    from burnish.image_list import Entry
    from burnish.policy import Policy
    from burnish.randomness import Randomness


@dataclass(frozen=True, slots=True, kw_only=True)
class SFT:
    """The denoising loss of pre-training on images with prompts.

    The images are rewarded like samples, so that the report tells how good they are; no update depends on
    it.
    """

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    differentiates_reward: ClassVar[bool] = False
    group_size = 1
    train_steps = None

    data: str
    """A file of JSON lines {"image": path, "prompt": text}, or a folder with such a `metadata.jsonl`; paths
    are relative to the file. Other keys are what a reward finds in the sample's metadata."""
    draws: int = 1
    """Rows an image that is drawn: noise levels at which it is fitted."""

    def __post_init__(self) -> None:
        endpoints.check(self.draws)
        self._entries()

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Endpoints]:
        drawn = randomness.at("data").choices(self._entries(), task.samples)
        files = [entry.images["image"] for entry in drawn]
        images = experience.read(task, [entry.prompt for entry in drawn], files)
        given = experience.given(task, images)
        return endpoints.collection(
            given,
            given.rewards.new_ones(len(drawn)),
            range(len(drawn)),
            memory,
            draws=self.draws,
            randomness=randomness,
        )

    def loss(
        self, policy: Policy, minibatch: rows.Endpoints
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return endpoints.weighted_loss(policy, minibatch)

    def _entries(self) -> list[Entry]:
        return image_list.read(self.data, ("image",))


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOf:
    """Fine-tuning on the best of each group of the model's own samples (RAFT: Dong et al. 2023, arXiv
    2304.06767, algorithm 1)."""

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    differentiates_reward: ClassVar[bool] = False
    train_steps = None

    group_size: int = 8
    """Samples of a prompt, of which the best is kept."""
    draws: int = 8
    """Rows a kept sample: noise levels at which it is fitted. As many as `group_size` give as many rows as
    samples were drawn."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size = {self.group_size}, expected at least 2")
        endpoints.check(self.draws)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Endpoints]:
        size = self.group_size
        acted = chains.act_in_groups(task, task.samples // size, size, randomness)
        weights = advantages.best_of_group(acted.rewards, size)
        found = endpoints.collection(
            acted,
            weights,
            endpoints.weighty(weights),
            memory,
            draws=self.draws,
            randomness=randomness,
        )
        dead = len(advantages.without_spread(acted.rewards, size)) * size / len(acted.samples)
        return replace(found, metrics={**found.metrics, "groups_without_spread": dead})

    def loss(
        self, policy: Policy, minibatch: rows.Endpoints
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return endpoints.weighted_loss(policy, minibatch)
