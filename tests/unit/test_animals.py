"""The DDPO paper's prompts."""

from __future__ import annotations

from burnish.animals import Animals
from burnish.randomness import Randomness


def test_the_animals_are_the_papers_forty_five_and_others_are_held_out():
    drawn = {p.text for p in Animals().draw(2000, Randomness(0))}
    assert len(drawn) == 45  # each is missed with probability (44/45)^2000 = 3e-20
    assert {"cat", "llama", "kangaroo"} <= drawn
    held_out = [p.text for p in Animals().held_out(32)]
    assert len(set(held_out)) == 32
    assert not drawn & set(held_out)


def test_animals_do_what_they_are_asked_to_with_the_right_article():
    source = Animals(activities=("riding a bike", "playing chess", "washing dishes"))
    drawn = {p.text for p in source.draw(4000, Randomness(0))}
    assert len(drawn) == 135
    assert {"an ant playing chess", "a bear riding a bike"} <= drawn
    held_out = [p.text for p in source.held_out(96)]
    assert len(set(held_out)) == 96
    assert held_out[0] == "an elephant riding a bike"
    for first in (held_out[:32], held_out[32:64]):
        assert len({text.split()[1] for text in first}) == 32
        assert len({text.split()[2] for text in first}) == 3
