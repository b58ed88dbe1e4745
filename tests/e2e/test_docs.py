"""The Python of the README and of the docs runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from burnish.portraits.prompts import Portraits
from burnish.reward import score
from burnish.rollout import Samples
from burnish.scoring import assess

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    """The page's fenced blocks of Python, in order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def run(code: str, **names: object) -> dict[str, object]:
    found = {"__name__": "docs", **names}
    exec(compile(code, "docs", "exec"), found)
    return found


@pytest.mark.slow
def test_the_readme_trains_by_a_reward_of_ones_own(capsys):
    torch.set_num_threads(2)
    (own,) = [code for code in blocks("README.md") if "burnish.train" in code]
    images = run(own)["images"]
    assert images.shape == (4, 3, 64, 64)
    printed = capsys.readouterr().out.splitlines()
    rewards = [float(re.search(r"reward (\S+)", line)[1]) for line in printed]
    assert len(rewards) == 10
    assert rewards[-1] > rewards[0]


def test_a_network_of_ones_own_trains_without_diffusers(capsys):
    (network,) = blocks("docs/denoiser.md")
    run(network)
    printed = capsys.readouterr().out.splitlines()
    rewards = [float(re.search(r"reward (\S+)", line)[1]) for line in printed]
    assert len(rewards) == 20
    assert rewards[-1] > rewards[0]


def test_rewards_of_ones_own_give_one_number_a_sample():
    samples = Samples(torch.rand(5, 3, 8, 8), ("a cat",) * 5, ({},) * 5)
    given = {name: value for code in blocks("docs/reward.md") for name, value in run(code).items()}
    for name in ("redness", "blueness", "unlike_the_others", "more_red"):
        assert score(given[name], samples).shape == (5,)


def test_the_reward_that_is_combined_in_the_docs_is_one():
    (code,) = blocks("docs/rewards-combined.md")
    samples = next(iter(Portraits().held_out(1)))
    images = Samples(torch.rand(2, 3, 64, 64), (samples.text,) * 2, (samples.metadata,) * 2)
    assert [*assess(run(code)["reward"], images).parts] == ["sharp", "faithful"]
