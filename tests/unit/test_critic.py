"""The critic as a baseline: what it is before it has learned, what it remembers, and what it reads."""

from __future__ import annotations

import pytest
import torch
from worlds import PROMPTS, Always, Network, linear, prompts

from burnish import rows, values
from burnish.advantages import generalised, standardise, whole_batch
from burnish.algorithms.critic import Critic
from burnish.algorithms.ddpo import DDPOIS, DDPOSF
from burnish.algorithms.dpok import DPOK
from burnish.algorithms.exploration import Wider
from burnish.config import dump, load_recipe
from burnish.decays import LinearDecay
from burnish.experience import Task
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.rollout import Trajectory, rollout
from burnish.samplers.ddim import DDIM
from burnish.tables import ConfigError
from burnish.train import checkpoint
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training
from burnish.train.state import start

SMALL = Critic(width=8, updates=3, batch=8)
ASKED = prompts("a cat", "a dog", "a bird", "a cat")


def first_number(samples):
    return samples.media[:, 0, 0, 0]


def collected(algorithm, memory=None, reward=first_number, seed=0):
    task = Task(Policy(linear(), DDIM(num_steps=3)), Always(ASKED), reward, samples=4, batch=4)
    return algorithm.collect(task, memory=memory or {}, randomness=Randomness(seed))


@pytest.mark.parametrize("algorithm", [DDPOIS, DDPOSF, DPOK])
def test_a_critic_that_knows_nothing_is_the_whole_batchs_baseline(algorithm):
    found = collected(algorithm(baseline=SMALL))
    expected = whole_batch(found.rewards)
    assert found.rows.advantages.shape == (3, 4)
    torch.testing.assert_close(found.rows.advantages, expected.expand(3, 4))
    assert found.metrics["critic_explained"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_chains_are_judged_by_the_critic_that_has_not_seen_them(gae_lambda):
    """Its value of this iteration is of the memory that came in; so no reward is in its own baseline."""
    algorithm = DDPOIS(baseline=Critic(gae_lambda=gae_lambda, width=8, updates=50, batch=8))
    memory = collected(algorithm).memory
    found = collected(algorithm, memory, seed=1)
    learner = values.Learner(
        memory["critic"], memory["critic_moments"], 50, tuple(memory["critic_unit"])
    )
    value = learner.value(values.inputs(found.rows.trajectory))
    assert value.std() > 1e-3  # it has learned something
    raw = generalised(found.rewards, value, gae_lambda)
    expected = standardise(raw.flatten(), raw.flatten()).reshape(3, 4)
    torch.testing.assert_close(found.rows.advantages, expected)
    left = (found.rewards - value).square().mean() / found.rewards.var(correction=0)
    assert found.metrics["critic_explained"] == pytest.approx(1 - left.item(), abs=1e-5)


def test_what_it_remembers_is_what_it_remembered_trained_on_this_iterations_chains():
    """Weights and moments go on; each state's target is its own chain's reward, by the chain's weight."""
    algorithm = DDPOIS(
        baseline=SMALL, exploration=Wider(epsilon=LinearDecay(start=0.9), widening=2.0)
    )
    memory = collected(algorithm).memory
    found = collected(algorithm, memory, seed=1)
    drawn = found.rows.trajectory
    assert drawn.weight.std() > 0.1
    learned = values.fit(
        values.Learner(memory["critic"], memory["critic_moments"], 3, tuple(memory["critic_unit"])),
        values.inputs(drawn).reshape(12, -1),
        torch.cat([found.rewards] * 3),
        torch.cat([drawn.weight] * 3),
        learning_rate=SMALL.learning_rate,
        updates=3,
        batch=8,
        randomness=Randomness(1).at("critic", "fit"),
    )
    ours = [*found.memory["critic"], *found.memory["critic_moments"]]
    theirs = [*learned.weights, *learned.moments]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_each_row_has_the_advantage_of_its_own_step():
    found = collected(
        DDPOIS(baseline=SMALL, train_steps=(2, 0)), collected(DDPOIS(baseline=SMALL)).memory
    )
    assert found.rows.step.tolist() == [2, 0] * 4
    expected = found.rows.advantages[[2, 0]].T.flatten()
    assert torch.equal(found.rows.advantage, expected)
    assert len(expected.unique()) == 8


def test_the_memory_that_was_passed_in_is_not_changed():
    first = collected(DDPOIS(baseline=SMALL)).memory
    kept = [tensor.clone() for tensor in [*first["critic"], *first["critic_moments"]]]
    second = collected(DDPOIS(baseline=SMALL), first, seed=1).memory
    now = [*first["critic"], *first["critic_moments"]]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert (first["critic_updates"], second["critic_updates"]) == (3, 6)
    assert second["critic_unit"] == first["critic_unit"]
    assert not torch.equal(first["critic"][0], second["critic"][0])


def test_training_in_two_parts_is_training_in_one():
    """The moments and their count go on; only the rows' draws are addressed by the part."""
    drawn = rollout(Policy(linear(), DDIM(num_steps=3)), prompts("") * 6, Randomness(0), 6)
    seen, reward = values.inputs(drawn), drawn.x0[:, 0, 0, 0]
    one = two = values.beginner(seen.shape[-1], 8, reward, Randomness(0))

    def fit(learner: values.Learner, updates: int) -> values.Learner:
        return values.fit(
            learner,
            seen.flatten(0, 1)[:1],
            reward[:1],
            torch.ones(1),
            learning_rate=0.01,
            updates=updates,
            batch=1,
            randomness=Randomness(0),
        )

    one = fit(one, 4)
    for _ in range(4):
        two = fit(two, 1)
    assert all(torch.equal(a, b) for a, b in zip(one.weights, two.weights, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one.moments, two.moments, strict=True))


def test_rewards_without_spread_have_no_advantage():
    found = collected(DDPOIS(baseline=SMALL), reward=lambda samples: torch.ones(len(samples)))
    assert torch.equal(found.rows.advantages, torch.zeros(3, 4))
    assert found.metrics["critic_explained"] == 0
    assert found.memory["critic_unit"] == [1.0, 1.0]


def test_the_discount_weights_the_critics_advantages():
    plain, some = (
        collected(DDPOIS(baseline=SMALL, discount=d)).rows.advantages for d in (1.0, 0.5)
    )
    assert torch.equal(some, plain * torch.tensor([[0.25], [0.5], [1.0]]))


@pytest.mark.parametrize(
    ("event", "features"),
    [((3,), 6), ((2, 3), 12), ((4, 2, 2), 32), ((1, 16, 32), 128), ((2, 3, 16, 16), 768)],
)
def test_any_event_shape_is_read(event, features):
    """Means and mean squares over at most 8 x 8 cells a plane."""
    states = torch.randn(4, 5, *event, generator=torch.Generator().manual_seed(0))
    cond = {
        "tokens": torch.arange(5)[:, None].expand(5, 7),
        "embedding": torch.arange(5.0)[:, None, None]
        + torch.tensor([[0.0], [1.0]]).expand(5, 2, 3),
        "shift": torch.arange(5.0),
    }
    seen = values.inputs(Trajectory(states, torch.zeros(2, 5), (0, 2), (0, 1, 2, 3), cond))
    assert seen.shape == (2, 5, features + values.WAVES + 3 + 1)
    assert torch.equal(seen[0, :, -4:-1], (torch.arange(5.0) + 0.5)[:, None].expand(5, 3))
    assert torch.equal(seen[1, :, -1], torch.arange(5.0))
    if features == 2 * states[0, 0].numel():
        assert torch.equal(seen[1, :, : features // 2], states[2].flatten(1))
        assert torch.equal(seen[1, :, features // 2 : features], states[2].square().flatten(1))
    else:
        torch.testing.assert_close(
            seen[1, :, : features // 2].mean(1), states[2].flatten(1).mean(1)
        )


def test_a_run_with_a_critic_that_explores_resumes_bitwise(tmp_path):
    """Weights, moments and the count of iterations are in the checkpoint."""
    algorithm = DDPOIS(
        baseline=Critic(gae_lambda=0.9, width=8, updates=3, batch=8),
        exploration=Wider(epsilon=LinearDecay(start=0.5, iterations=4)),
    )

    def until(state, model, iterations):
        return list(
            train(
                Policy(model, DDIM(num_steps=2)),
                algorithm,
                PROMPTS,
                lambda samples: samples.media.flatten(1).mean(1),
                training=Training(
                    iterations=iterations, samples=6, updates=2, ratio_tolerance=1e-5
                ),
                optimizer=AdamW(learning_rate=0.01),
                state=state,
            )
        )

    def begin(seed):
        model = Network(seed=seed)
        return start(model, AdamW(learning_rate=0.01), averaged=False), model

    state, model = begin(0)
    whole = until(state, model, 4)
    stopped, other = begin(0)
    until(stopped, other, 2)
    checkpoint.save(stopped, tmp_path, keep=1)
    resumed, again = begin(7)
    checkpoint.restore(resumed, tmp_path)
    rest = until(resumed, again, 4)
    assert [report.metrics for report in rest] == [report.metrics for report in whole[2:]]
    assert [report.metrics["exploration_epsilon"] for report in whole] == [0.5, 0.375, 0.25, 0.125]
    for name in ("critic", "critic_moments"):
        ours, theirs = resumed.memory[name], state.memory[name]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True)
    )


def test_it_learns_to_explain_the_rewards_over_the_iterations():
    algorithm = DDPOIS(baseline=Critic(width=32, updates=60, batch=64, learning_rate=3e-3))
    task = Task(
        Policy(linear(), DDIM(num_steps=3)), Always(ASKED), first_number, samples=64, batch=64
    )
    memory, explained = {}, []
    for iteration in range(4):
        found = algorithm.collect(task, memory=memory, randomness=Randomness(iteration))
        memory = found.memory
        explained.append(found.metrics["critic_explained"])
    assert explained[0] == pytest.approx(0, abs=1e-6)
    assert explained[-1] > 0.2


@pytest.mark.parametrize(
    "settings",
    [
        {"gae_lambda": 1.1},
        {"gae_lambda": -0.1},
        {"width": 0},
        {"updates": 0},
        {"batch": 0},
        {"learning_rate": 0.0},
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Critic(**settings)


def test_a_recipe_asks_for_a_critic_and_writes_it_out():
    recipe = load_recipe(
        "compressibility",
        ["--algorithm.baseline.name", "critic", "--algorithm.baseline.gae_lambda", "0.95"],
    )
    assert recipe.algorithm.baseline == Critic(gae_lambda=0.95)
    assert "gae_lambda = 0.95" in dump(recipe)
    with pytest.raises(ConfigError, match=r"algorithm\.baseline\.gae_lambda"):
        load_recipe(
            "compressibility",
            ["--algorithm.baseline.name", "critic", "--algorithm.baseline.gae_lambda", "2.0"],
        )


def test_advantages_of_chains_serve_all_their_steps():
    drawn = rollout(Policy(linear(), DDIM(num_steps=3)), prompts("") * 2, Randomness(0), 2)
    one = rows.transitions(drawn, torch.tensor([1.0, 2.0]), drawn.steps)
    each = rows.transitions(drawn, torch.tensor([[1.0, 2.0]]).expand(3, 2), drawn.steps)
    assert torch.equal(one.advantage, each.advantage)
    assert one.advantage.tolist() == [1, 1, 1, 2, 2, 2]
