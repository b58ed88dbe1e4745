"""The training loop: what a run is, and is not, a function of."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from worlds import PROMPTS, Network, linear, nearness

from burnish.algorithms.ddpo import DDPOIS, DDPOSF, PerPrompt, WholeBatch
from burnish.experience import Task
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.reward import RewardError
from burnish.samplers.ddim import DDIM
from burnish.train.loop import Iteration, TrainingError, train
from burnish.train.settings import AdamW, Training
from burnish.train.state import State, start

TARGET = (2.0, 2.0)
NEARNESS = nearness(TARGET)
STEPS = 3


def run(
    model=None,
    algorithm=None,
    *,
    reward=NEARNESS,
    seed: int = 0,
    optimizer: AdamW | None = None,
    state: State | None = None,
    **training,
) -> tuple[list[Iteration], nn.Module]:
    geometry = {"iterations": 2, "samples": 16, "updates": 2, "sample_batch": 16, **training}
    model = model or linear()
    policy = Policy(model, DDIM(num_steps=STEPS))
    algorithm = algorithm or DDPOIS(clip=0.1, baseline=WholeBatch())
    optimizer = optimizer or AdamW(learning_rate=0.05)
    reports = train(
        policy,
        algorithm,
        PROMPTS,
        reward,
        training=Training(**geometry),
        optimizer=optimizer,
        seed=seed,
        state=state,
    )
    return list(reports), model


def brightness(samples):
    return samples.media.flatten(1).mean(1)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_same(some, others):
    assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize(
    ("algorithm", "updates", "reached"),
    [
        (DDPOIS(clip=0.1, baseline=WholeBatch()), 2, -0.1),
        (DDPOIS(clip=0.1, baseline=PerPrompt()), 2, -0.5),
        (DDPOSF(baseline=WholeBatch()), 1, -0.5),
    ],
    ids=["IS", "IS per prompt", "SF"],
)
def test_the_reward_rises_to_near_the_optimum_of_the_linear_world(algorithm, updates, reached):
    """At the optimum all chains end at the target: E[r] = 0. It starts at -8.7."""
    model = linear()
    policy = Policy(model, DDIM(num_steps=STEPS))
    before = model.expected_reward(policy.kernel, TARGET).item()
    optimizer = AdamW(learning_rate=0.3)
    run(model, algorithm, iterations=25, samples=32, updates=updates, optimizer=optimizer)
    assert before < -8
    assert model.expected_reward(policy.kernel, TARGET).item() > reached


def test_the_same_seed_gives_the_same_run_bitwise_and_another_does_not():
    (one, a), (same, b), (other, c) = (run(Network(), reward=brightness, seed=s) for s in (1, 1, 2))
    assert_same(weights(a), weights(b))
    assert [x.metrics for x in one] == [x.metrics for x in same]
    assert not torch.equal(weights(a)[0], weights(c)[0])
    assert one[0].samples.prompts != other[0].samples.prompts


def test_each_iteration_draws_anew():
    """With a learning rate of next to nothing only chance tells the iterations apart."""
    reports, _ = run(optimizer=AdamW(learning_rate=1e-12), iterations=3)
    assert len({report.rewards[0].item() for report in reports}) == 3
    assert len({report.samples.prompts for report in reports}) == 3


@pytest.mark.parametrize("microbatch", [1, 7])
def test_the_microbatch_changes_rounding_only(microbatch):
    """One Adam step turns a relative error of 1e-6 of a gradient into one of its step, 0.01."""
    runs = [
        run(
            Network(),
            reward=brightness,
            microbatch=size,
            samples=8,
            optimizer=AdamW(learning_rate=0.01, eps=1e-4),
            ratio_tolerance=1e-5,
        )
        for size in (microbatch, 64)
    ]
    (small, a), (large, b) = runs
    for one, other in zip(weights(a), weights(b), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(small, large, strict=True):
        assert one.metrics["grad_norm"] == pytest.approx(other.metrics["grad_norm"], rel=1e-3)
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-3, abs=1e-5)


def test_the_sample_batch_changes_rounding_only():
    (_, a), (_, b) = (run(sample_batch=size) for size in (3, 16))
    assert_same(weights(a), weights(b))


@pytest.mark.parametrize("microbatch", [5, 1000])
def test_the_gradient_is_that_of_the_mean_loss_over_the_rows(microbatch):
    """One update of one iteration, against autograd on all rows at once."""
    algorithm = DDPOIS(clip=0.1, baseline=WholeBatch())
    (report,), _ = run(linear(), algorithm, iterations=1, updates=1, microbatch=microbatch)
    model = linear()
    root = Randomness(0).at("iteration", 0)
    policy = Policy(model, DDIM(num_steps=STEPS))
    task = Task(policy, PROMPTS, NEARNESS, samples=16, batch=16)
    collection = algorithm.collect(task, memory={}, randomness=root)
    loss, _ = algorithm.loss(policy, collection.rows)
    loss.mean().backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert report.metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert report.metrics["loss"] == pytest.approx(loss.mean().item(), rel=1e-4, abs=1e-6)
    assert torch.equal(report.rewards, collection.rewards)


def test_the_gradient_is_clipped_to_its_norm():
    """Adam's first moment after one step is (1 - beta) times the gradient it was given."""
    model, optimizer = linear(), AdamW(max_grad_norm=1e-3)
    state = start(model, optimizer, averaged=False)
    (report,), _ = run(model, optimizer=optimizer, state=state, iterations=1, updates=1)
    moments = [state.optimizer.state[p]["exp_avg"] for p in model.parameters()]
    norm = torch.stack([moment.norm() for moment in moments]).norm().item()
    assert report.metrics["grad_norm"] > 0.1
    assert norm == pytest.approx(0.1 * 1e-3, rel=1e-4)


def test_updates_and_epochs_are_optimiser_steps_over_every_row_once():
    model, optimizer = linear(), AdamW(learning_rate=1e-3)
    state = start(model, optimizer, averaged=False)
    reports, _ = run(
        model, optimizer=optimizer, state=state, iterations=2, updates=4, epochs=3, microbatch=5
    )
    steps = {int(values["step"]) for values in state.optimizer.state.values()}
    assert steps == {2 * 4 * 3}
    assert state.iteration == 2
    assert state.queries == 2 * 16
    assert [report.number for report in reports] == [1, 2]
    assert [report.queries for report in reports] == [16, 32]
    assert sorted(reports[0].by_step["log_ratio"]) == [0, 1, 2]


def test_more_updates_than_rows_are_as_many_as_rows():
    model, optimizer = linear(), AdamW()
    state = start(model, optimizer, averaged=False)
    run(model, optimizer=optimizer, state=state, iterations=1, samples=2, updates=100)
    assert {int(v["step"]) for v in state.optimizer.state.values()} == {2 * STEPS}


def test_an_iteration_starts_without_the_gradient_of_the_one_before():
    """With a learning rate of next to nothing, iteration 2 is the same after iteration 1 and alone."""
    optimizer = AdamW(learning_rate=1e-12)
    (_, second), model = run(optimizer=optimizer, updates=1)
    fresh = linear()
    alone = start(fresh, optimizer, averaged=False)
    alone.iteration = 1
    (report,), _ = run(fresh, optimizer=optimizer, updates=1, state=alone)
    assert torch.equal(report.rewards, second.rewards)
    assert report.metrics["grad_norm"] == pytest.approx(second.metrics["grad_norm"], rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_average_of_the_weights_follows_its_formula_at_every_update():
    model, optimizer = linear(), AdamW(learning_rate=0.05)
    state = start(model, optimizer, averaged=True)
    expected, seen = weights(model), []
    state.optimizer.register_step_post_hook(lambda *_: seen.append(weights(model)))
    run(model, optimizer=optimizer, state=state, iterations=2, updates=3, ema=0.8)
    assert len(seen) == 6
    for step in seen:
        expected = [0.8 * mean + 0.2 * new for mean, new in zip(expected, step, strict=True)]
    for mean, by_hand in zip(state.average, expected, strict=True):
        torch.testing.assert_close(mean, by_hand, rtol=1e-5, atol=1e-6)


def test_an_average_changes_nothing_of_the_run():
    (_, a), (_, b) = run(), run(ema=0.9)
    assert_same(weights(a), weights(b))


def test_rewards_without_spread_change_nothing_and_do_not_crash():
    model = Network()
    before = weights(model)
    reports, _ = run(
        model,
        reward=lambda samples: torch.full((len(samples),), 3.0),
        optimizer=AdamW(weight_decay=0.0),
        updates=2,
    )
    assert_same(weights(model), before)
    assert reports[-1].metrics["grad_norm"] == 0
    assert reports[-1].metrics["loss"] == 0


def test_an_on_policy_algorithm_takes_one_update_an_iteration():
    for geometry in ({"updates": 2}, {"updates": 1, "epochs": 2}):
        with pytest.raises(ValueError, match="DDPOSF is on-policy: one update"):
            run(algorithm=DDPOSF(), **geometry)
    run(algorithm=DDPOSF(), updates=1, epochs=1)


class Noisy(nn.Module):
    """A network that does not give the same output twice, as one with dropout."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = linear(), scale
        self.event_shape, self.schedule = self.inner.event_shape, self.inner.schedule
        self.encode, self.decode = self.inner.encode, self.inner.decode

    def predict(self, x, time, cond):
        return self.inner.predict(x, time, cond) + self.scale * torch.randn_like(x)


def test_a_network_that_answers_differently_twice_is_found_out():
    torch.manual_seed(0)
    with pytest.raises(TrainingError, match=r"iteration 1: .* log-ratio .* dropout"):
        run(Noisy(1e-2))
    run(Noisy(0.0))


def test_the_first_log_ratio_is_measured_and_exactly_0_in_the_same_geometry():
    reports, _ = run()
    assert [report.metrics["first_log_ratio"] for report in reports] == [0.0, 0.0]
    # after the first update it is not 0 any more
    assert reports[0].metrics["approx_kl"] > 0


def test_the_clip_fraction_and_kl_are_0_with_one_update():
    reports, _ = run(updates=1)
    assert all(report.metrics["clip_fraction"] == 0 for report in reports)
    assert all(report.metrics["approx_kl"] == 0 for report in reports)


class Kink(nn.Module):
    """Finite outputs whose gradient is not: the square root at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.event_shape, self.schedule = self.inner.event_shape, self.inner.schedule
        self.encode, self.decode = self.inner.encode, self.inner.decode

    def predict(self, x, time, cond):
        return self.inner.predict(x, time, cond) + (0 * self.inner.mean).sqrt()


def test_a_gradient_that_is_not_finite_stops_the_run_and_leaves_the_weights():
    model = Kink()
    before = weights(model)
    with pytest.raises(TrainingError, match="iteration 1: the gradient is not finite"):
        run(model)
    assert_same(weights(model), before)


def test_a_loss_that_is_not_finite_stops_the_run():
    """A learning rate at the end of float32: the second update sees weights that overflow."""
    with pytest.raises(TrainingError, match="iteration 1: the loss is not finite"):
        run(Network(), reward=brightness, optimizer=AdamW(learning_rate=3e37))


def test_a_reward_that_fails_stops_the_run_before_any_update():
    model = linear()
    before = weights(model)
    with pytest.raises(RewardError, match="sample 0"):
        run(model, reward=lambda samples: torch.full((len(samples),), torch.nan))
    assert_same(weights(model), before)


def test_a_run_can_be_taken_up_from_its_state():
    """Two iterations and then two are four."""
    algorithm = DDPOIS(clip=0.1, baseline=PerPrompt(size=8, min_count=2))
    optimizer = AdamW(learning_rate=0.05)
    (whole, a), model = run(linear(), algorithm, iterations=4), linear()
    state = start(model, optimizer, averaged=False)
    first, _ = run(model, algorithm, iterations=2, state=state)
    then, _ = run(model, algorithm, iterations=4, state=state)
    assert [r.metrics for r in [*first, *then]] == [r.metrics for r in whole]
    assert_same(weights(model), weights(a))
    assert state.iteration == 4


def test_a_denoiser_with_nothing_to_train_is_refused():
    model = linear().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        run(model)


@pytest.mark.parametrize(
    "settings",
    [
        {"iterations": 0},
        {"samples": 0},
        {"epochs": 0},
        {"updates": 0},
        {"sample_batch": 0},
        {"microbatch": 0},
        {"ema": 0.0},
        {"ema": 1.0},
        {"ratio_tolerance": 0.0},
    ],
)
def test_geometry_that_cannot_be_is_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Training(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.0},
        {"eps": 0.0},
        {"max_grad_norm": 0.0},
        {"weight_decay": -1.0},
        {"betas": (0.9, 1.0)},
    ],
)
def test_optimiser_settings_that_cannot_be_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        AdamW(**settings)


def test_prompts_are_drawn_one_by_one():
    """The i-th prompt does not depend on how many are drawn."""
    root = Randomness(0)
    assert PROMPTS.draw(10, root)[:4] == PROMPTS.draw(4, root)
    assert {prompt.text for prompt in PROMPTS.draw(50, root)} == set(PROMPTS.train)
