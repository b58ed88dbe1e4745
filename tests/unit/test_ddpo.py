"""DDPO's settings, its choice of steps, and what it carries from one iteration to the next."""

from __future__ import annotations

import pytest
import torch
from worlds import ENDS_CLEAN, Always, linear, prompts

from burnish.advantages import whole_batch
from burnish.algorithms.chains import chosen_steps
from burnish.algorithms.ddpo import DDPOIS, DDPOSF, PerPrompt, WholeBatch
from burnish.experience import Task
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.samplers.ddim import DDIM

ALGORITHMS = [DDPOIS, DDPOSF]
ASKED = prompts("a cat", "a dog", "a cat", "a bird")


def scripted(*values: float):
    """A reward that gives these numbers whatever the samples are."""
    return lambda _: torch.tensor(values)


FOUR = scripted(1.0, 2.0, 4.0, 8.0)


def collected(algorithm, reward=FOUR, memory=None, policy=None, seed=0):
    policy = policy or Policy(linear(), DDIM(num_steps=5))
    task = Task(policy, Always(ASKED), reward, samples=len(ASKED), batch=len(ASKED))
    return algorithm.collect(task, memory=memory or {}, randomness=Randomness(seed))


def test_all_steps_with_a_density_are_trained_by_default():
    assert chosen_steps((0, 1, 2), None, Randomness(0)) == [0, 1, 2]
    clean = Policy(linear(schedule=ENDS_CLEAN), DDIM(num_steps=5))
    for algorithm in (DDPOIS(), DDPOSF()):
        assert collected(algorithm, policy=clean).rows.step.unique().tolist() == [0, 1, 2, 3]


def test_a_number_of_steps_is_a_seeded_draw_without_repeats():
    drawn = [chosen_steps(range(10), 3, Randomness(0).at(i)) for i in range(200)]
    assert drawn == [chosen_steps(range(10), 3, Randomness(0).at(i)) for i in range(200)]
    assert all(steps == sorted(set(steps)) and len(steps) == 3 for steps in drawn)
    counts = torch.tensor([step for steps in drawn for step in steps]).bincount(minlength=10)
    # each step is in a draw with chance 0.3: 60 +- 5 standard deviations
    assert ((counts - 60).abs() < 5 * (200 * 0.3 * 0.7) ** 0.5).all()


def test_listed_steps_are_taken_as_listed():
    assert chosen_steps(range(10), (4, 1), Randomness(0)) == [4, 1]
    assert collected(DDPOIS(train_steps=(4, 1))).rows.step.tolist() == [4, 1] * 4


def test_listed_steps_without_density_are_refused():
    clean = Policy(linear(schedule=ENDS_CLEAN), DDIM(num_steps=5))
    with pytest.raises(ValueError, match="step 4 has no density"):
        collected(DDPOIS(train_steps=(0, 4)), policy=clean)


def test_more_steps_than_have_a_density_are_refused():
    with pytest.raises(ValueError, match="train_steps = 6, but only 5"):
        collected(DDPOIS(train_steps=6))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("train_steps", [None, 1, (0,)])
def test_a_deterministic_sampler_is_refused_with_what_to_do(algorithm, train_steps):
    still = Policy(linear(), DDIM(num_steps=5, eta=0.0))
    with pytest.raises(ValueError, match=r"deterministic: .*eta = 1"):
        collected(algorithm(train_steps=train_steps), policy=still)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_drawn_steps_change_with_the_iteration_and_not_with_the_run(algorithm):
    steps = [
        tuple(collected(algorithm(train_steps=2), seed=seed).rows.step.unique().tolist())
        for seed in (0, 0, 1, 2, 3, 4)
    ]
    assert steps[0] == steps[1]
    assert len(set(steps)) > 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_advantages_are_clipped_on_both_sides(algorithm):
    """1, 2, 4, 8 have mean 3.75 and std 2.68: -1.03, -0.65, 0.09, 1.59."""
    found = collected(algorithm(baseline=WholeBatch(), advantage_clip=0.5))
    expected = whole_batch(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    assert found.rows.advantages.tolist() == pytest.approx([-0.5, -0.5, expected[2].item(), 0.5])
    assert found.metrics["advantage_clipped"] == 0.75
    assert found.rewards.tolist() == [1, 2, 4, 8]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_advantage_belongs_to_its_own_chain(algorithm):
    """The reward is the final state's first number: so is, up to scale, each row's advantage."""

    def first(samples):
        return samples.media[:, 0, 0, 0]

    found = collected(algorithm(baseline=WholeBatch()), first)
    x0 = found.rows.trajectory.x0[:, 0, 0, 0]
    assert torch.equal(found.rewards, x0)
    rows = found.rows[torch.tensor([7, 0, 13])]
    assert torch.equal(rows.advantage, whole_batch(x0)[torch.tensor([1, 0, 2])])
    assert found.samples.prompts == ("a cat", "a dog", "a cat", "a bird")


def test_memory_holds_the_rewards_of_each_prompt_and_is_not_changed_in_place():
    algorithm = DDPOIS(baseline=PerPrompt(size=3, min_count=2))
    first = collected(algorithm)
    assert first.memory == {"rewards": {"a cat": [1, 4], "a dog": [2], "a bird": [8]}}
    second = collected(algorithm, scripted(5.0, 4.0, 6.0, 8.0), first.memory)
    assert second.memory["rewards"] == {"a cat": [4, 5, 6], "a dog": [2, 4], "a bird": [8, 8]}
    assert first.memory == {"rewards": {"a cat": [1, 4], "a dog": [2], "a bird": [8]}}
    # cat {4, 5, 6}: 5 and 6 are 0 and 1.22; dog {2, 4}: 1; bird has no spread
    expected = [0, 1, (3 / 2) ** 0.5, 0]
    assert second.rows.advantages.tolist() == pytest.approx(expected)


def test_the_whole_batch_needs_no_memory():
    assert collected(DDPOIS(baseline=WholeBatch())).memory == {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_loss_of_the_collecting_policy_has_ratio_1(algorithm):
    policy = Policy(linear(), DDIM(num_steps=5))
    found = collected(algorithm(), policy=policy)
    loss, rows = algorithm().loss(policy, found.rows)
    assert loss.shape == (20,)
    assert torch.equal(rows["log_ratio"], torch.zeros(20))


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (DDPOIS, {"clip": 0.0}),
        (DDPOIS, {"clip": 1.0}),
        (DDPOIS, {"advantage_clip": 0.0}),
        (DDPOSF, {"advantage_clip": -1.0}),
        (DDPOIS, {"train_steps": 0}),
        (DDPOSF, {"train_steps": ()}),
        (PerPrompt, {"min_count": 1}),
        (PerPrompt, {"min_count": 33}),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(algorithm, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        algorithm(**settings)
