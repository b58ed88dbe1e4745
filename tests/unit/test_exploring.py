"""Exploration as a setting: its decays, its count of iterations, and the algorithms that have it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from worlds import PROMPTS, Always, linear, nearness, prompts

from burnish.algorithms.ddpo import DDPOIS, DDPOSF, WholeBatch
from burnish.algorithms.dpok import DPOK
from burnish.algorithms.exploration import Wider
from burnish.algorithms.grpo import GRPO
from burnish.config import dump, load_recipe
from burnish.decays import CosineDecay, LinearDecay
from burnish.experience import Task
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.samplers.ddim import DDIM
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training
from burnish.transitions import Gaussian

NEAR = nearness((1.0, 1.0))
ALWAYS = Wider(epsilon=LinearDecay(start=0.5, end=0.5), widening=2.0)
ALGORITHMS = [
    DDPOIS(baseline=WholeBatch()),
    DDPOSF(baseline=WholeBatch()),
    DPOK(baseline=WholeBatch()),
    GRPO(group_size=4),
]


def collected(algorithm, memory=None, reward=NEAR, samples=8):
    policy = Policy(linear(), DDIM(num_steps=3))
    task = Task(policy, Always(prompts("a cat", "a dog")), reward, samples=samples, batch=3)
    return algorithm.collect(task, memory=memory or {}, randomness=Randomness(0))


def test_an_explored_deviation_is_wider_by_the_root_of_the_dimensions():
    at = Gaussian(torch.zeros(1, 4, 2, 2), torch.ones(1))
    other = Wider(widening=2.0).explored(at)
    assert torch.equal(other.mean, at.mean)
    assert torch.equal(other.std, torch.full((1,), 1.5))


@pytest.mark.parametrize("size", [4, 64, 1024])
def test_the_weight_of_an_explored_action_does_not_fall_with_the_dimensions(size):
    """Under the wide part the log of narrow over wide has mean d (log k - (k^2 - 1) / 2), from -0.88 to -1
    here, where k = 1.5 has -0.88 at d = 4 and -225 at d = 1024. Its variance is d (k^2 - 1)^2 / 2."""
    at = Gaussian(torch.zeros(4000, size), torch.ones(4000))
    scale = Wider().explored(at).std[0].item()
    x = scale * torch.randn(4000, size, generator=torch.Generator().manual_seed(0))
    log_ratio = at.log_prob(x) - replace(at, std=scale * at.std).log_prob(x)
    expected = size * (math.log(scale) - (scale**2 - 1) / 2)
    assert -1 < expected < -0.87
    assert abs(log_ratio.mean() - expected) < 5 * (size / 2 / 4000) ** 0.5 * (scale**2 - 1)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)
def test_every_policy_gradient_explores_and_weights_its_rows(algorithm):
    plain, found = collected(algorithm), collected(replace(algorithm, exploration=ALWAYS))
    assert torch.equal(plain.rows.weight, torch.ones(24))
    weight = found.rows.trajectory.weight
    assert torch.equal(found.rows.weight, weight[found.rows.sample])
    assert len(weight.unique()) == 8
    assert weight.max() <= 2.0**3
    share = weight.sum() ** 2 / (8 * weight.square().sum())
    assert found.metrics["effective_samples"] == pytest.approx(share.item())
    assert found.metrics["exploration_epsilon"] == 0.5
    policy = Policy(linear(), DDIM(num_steps=3))
    loss, values = algorithm.loss(policy, found.rows)
    bare = replace(found.rows, trajectory=replace(found.rows.trajectory, behaviour_log_prob=None))
    assert torch.equal(loss, algorithm.loss(policy, bare)[0] * found.rows.weight)
    assert torch.equal(values["log_ratio"], torch.zeros(24))


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)
def test_without_exploration_nothing_is_counted_or_reported(algorithm):
    found = collected(algorithm)
    assert "explored_iterations" not in found.memory
    assert not {"exploration_epsilon", "effective_samples"} & set(found.metrics)


def test_the_chance_falls_with_the_iterations_that_the_memory_has_counted():
    algorithm = DDPOIS(exploration=Wider(epsilon=LinearDecay(start=0.4, iterations=2)))
    memory, seen = {}, []
    for _ in range(3):
        found = collected(algorithm, memory)
        memory = found.memory
        seen.append(found.metrics["exploration_epsilon"])
    assert seen == pytest.approx([0.4, 0.2, 0.0])
    assert memory["explored_iterations"] == 3
    assert torch.equal(found.rows.weight, torch.ones(24))


def test_groups_that_are_drawn_again_are_explored_too():
    """Every first reward is the same, so all groups are refilled."""
    asked = []

    def reward(samples):
        asked.extend(samples.prompts)
        fresh = len(asked) > 8
        return torch.arange(len(samples)).float() if fresh else torch.zeros(len(samples))

    algorithm = GRPO(group_size=4, refill=1, exploration=ALWAYS)
    found = collected(algorithm, reward=reward)
    assert len(asked) == 16
    assert len(found.rows.trajectory.weight.unique()) == 8


def test_an_explored_run_learns_and_its_first_ratio_is_1():
    """The loop stops a run whose log-ratio is not 0 before an update."""
    model = linear()
    policy = Policy(model, DDIM(num_steps=3))
    before = model.expected_reward(policy.kernel, (2.0, 2.0)).item()
    reports = train(
        policy,
        DDPOIS(clip=0.1, baseline=WholeBatch(), exploration=Wider()),
        PROMPTS,
        nearness((2.0, 2.0)),
        training=Training(iterations=25, samples=32, updates=2, sample_batch=32),
        optimizer=AdamW(learning_rate=0.3),
    )
    assert all(report.metrics["first_log_ratio"] < 1e-6 for report in reports)
    assert before < -8
    assert model.expected_reward(policy.kernel, (2.0, 2.0)).item() > -0.5


@pytest.mark.parametrize(
    ("kind", "settings", "key"),
    [
        (Wider, {"epsilon": LinearDecay(start=1.0)}, "epsilon.start"),
        (Wider, {"epsilon": LinearDecay(start=0.5, end=-0.1)}, "epsilon.end"),
        (Wider, {"widening": 0.0}, "widening"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(kind, settings, key):
    with pytest.raises(ValueError, match=key):
        kind(**settings)


def test_a_recipe_asks_for_exploration_and_writes_it_out(tmp_path):
    recipe = load_recipe(
        "compressibility",
        [
            "--algorithm.discount",
            "0.95",
            "--algorithm.exploration.epsilon.name",
            "cosine",
            "--algorithm.exploration.epsilon.start",
            "0.1",
        ],
    )
    assert recipe.algorithm.exploration == Wider(epsilon=CosineDecay(start=0.1))
    assert recipe.algorithm.discount == 0.95
    path = tmp_path / "again.toml"
    path.write_text(dump(recipe))
    assert load_recipe(str(path)) == recipe
    assert load_recipe("compressibility").algorithm.exploration is None
