"""The animals of Black et al. 2023 as prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from burnish.prompts import Listed, Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from burnish.randomness import Randomness

COMMON = (
    "cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox wolf "
    "lizard beetle ant butterfly fish shark whale dolphin squirrel mouse rat snake turtle frog chicken duck "
    "goose bee pig turkey fly llama camel bat gorilla hedgehog kangaroo"
)
"""The 45 common animals that the paper trains on (sec. 5.2)."""

UNSEEN = (
    "elephant giraffe penguin owl eagle crocodile octopus hamster panda koala otter beaver seal moose hippo "
    "rhino leopard cheetah ostrich peacock parrot flamingo crab lobster snail jellyfish badger hyena donkey "
    "buffalo walrus dragonfly"
)
"""32 others, chosen here; the paper's held-out animals are classes of ImageNet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Animals:
    """The paper's 45 common animals for training, 32 others held out."""

    activities: tuple[str, ...] = ()
    """A prompt is "a(n) {animal} {activity}", each pair with equal chance; without any, the animal's name
    alone, as for the aesthetic reward. The paper's: "riding a bike", "playing chess", "washing dishes"."""

    def draw(self, count: int, randomness: Randomness) -> list[Prompt]:
        return self._listed().draw(count, randomness)

    def held_out(self, count: int) -> list[Prompt]:
        return self._listed().held_out(count)

    def _listed(self) -> Listed:
        return Listed(*(self._prompts(names.split()) for names in (COMMON, UNSEEN)))

    def _prompts(self, animals: Sequence[str]) -> tuple[str, ...]:
        """All pairs, ordered so that the first ones already have every animal and every activity."""
        if not self.activities:
            return tuple(animals)
        many = len(self.activities)
        return tuple(
            f"{'an' if animal[0] in 'aeiou' else 'a'} {animal} {self.activities[(i + shift) % many]}"
            for shift in range(many)
            for i, animal in enumerate(animals)
        )
