"""Rollout: what is scored is what was drawn, and chance is addressed by chain."""

from __future__ import annotations

import pytest
import torch
from worlds import ALPHA_BAR, ENDS_CLEAN, PROMPTS, STRAIGHT, Network, linear, prompts

from burnish import rows
from burnish.algorithms.grpo import GRPO
from burnish.experience import Task
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.rollout import Sharing, decode, rollout, sample
from burnish.samplers.ddim import DDIM
from burnish.samplers.ddpm import DDPM
from burnish.samplers.flow import CPS, FlowODE, FlowSDE
from burnish.samplers.window import Window
from burnish.schedules import DiffusionSchedule

DTYPES = [torch.float32, torch.bfloat16]
TEXTS = ("a cat", "a dog", "a bird", "a cat", "two dogs")
COUNT = 16


def many(count: int = COUNT):
    return prompts(*(TEXTS[i % len(TEXTS)] for i in range(count)))


def advantages(count: int = COUNT) -> torch.Tensor:
    return torch.zeros(count)


@pytest.mark.parametrize(
    "sampler", [DDIM(num_steps=10), DDPM(num_steps=4, variance="beta")], ids=str
)
@pytest.mark.parametrize("storage", DTYPES)
@pytest.mark.parametrize("model", [Network, linear])
def test_the_first_ratio_is_exactly_1_in_the_same_batch_geometry(model, storage, sampler):
    policy = Policy(model(), sampler, storage)
    drawn = rollout(policy, many(), Randomness(0), COUNT)
    everything = rows.transitions(drawn, advantages(), drawn.steps)
    for position in range(len(drawn.steps)):
        step = everything[torch.nonzero(everything.position == position).flatten()]
        assert torch.equal(rows.log_prob(policy, step), drawn.log_prob[position])


@pytest.mark.parametrize("storage", DTYPES)
@pytest.mark.parametrize("batch", [1, 3, COUNT])
def test_the_first_ratio_is_1_within_1e6_per_dimension_in_any_other_geometry(batch, storage):
    """On 192 dimensions, over which the rounding errors of a state average out."""
    policy = Policy(Network(side=8), DDIM(num_steps=10), storage)
    drawn = rollout(policy, many(), Randomness(0), batch)
    everything = rows.transitions(drawn, advantages(), drawn.steps)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
    for index in order.split(64):
        mixed = everything[index]
        with torch.no_grad():
            log_ratio = rows.log_prob(policy, mixed) - mixed.old_log_prob
        assert log_ratio.abs().max() / mixed.event_size < 1e-6


@pytest.mark.parametrize("storage", DTYPES)
def test_states_are_kept_in_the_storage_dtype_and_scores_in_float32(storage):
    policy = Policy(Network(), DDIM(num_steps=4), storage)
    drawn = rollout(policy, many(5), Randomness(0), 5)
    assert drawn.states.dtype == storage
    assert drawn.log_prob.dtype == torch.float32
    assert drawn.states.shape == (5, 5, 3, 2, 2)
    assert drawn.log_prob.shape == (4, 5)
    assert torch.equal(drawn.x0, drawn.states[-1])


def test_a_bfloat16_chain_is_not_scored_on_its_float32_sample():
    """Rounding moves the last states by more than their std, so the difference is plain."""
    policy = Policy(linear(), DDIM(num_steps=20), torch.bfloat16)
    drawn = rollout(policy, many(200), Randomness(0), 200)
    noise = Randomness(0).normal(range(200), (21, 2, 1, 1))
    unrounded = -0.5 * noise[:, 20].square().flatten(1).sum(1)
    std = policy.kernel.std[-1].float()
    unrounded = unrounded - 2 * std.log() - torch.tensor(2 * torch.pi).log()
    assert (drawn.log_prob[-1] - unrounded).abs().mean() > 1e-3


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_changes_nothing_but_rounding(batch):
    policy = Policy(Network(), DDIM(num_steps=5))
    whole = rollout(policy, many(), Randomness(0), COUNT)
    parts = rollout(policy, many(), Randomness(0), batch)
    torch.testing.assert_close(parts.states, whole.states, rtol=1e-5, atol=1e-5)
    assert torch.equal(parts.states[0], whole.states[0])
    assert torch.equal(parts.cond["letters"], whole.cond["letters"])
    # a score moves by z / std times the state's rounding; the last std is 0.02
    torch.testing.assert_close(parts.log_prob, whole.log_prob, rtol=0, atol=5e-3)


def test_the_batch_changes_nothing_at_all_where_the_arithmetic_is_row_by_row():
    policy = Policy(linear(shifts={"a cat": 1.0}), DDIM(num_steps=5))
    whole = rollout(policy, many(), Randomness(0), COUNT)
    parts = rollout(policy, many(), Randomness(0), 7)
    assert torch.equal(parts.states, whole.states)
    assert torch.equal(parts.log_prob, whole.log_prob)


def test_the_noise_of_chain_i_depends_on_i_only():
    policy = Policy(linear(), DDIM(num_steps=5))
    long = rollout(policy, prompts("") * 12, Randomness(0).at("rollout"), 5)
    short = rollout(policy, prompts("") * 6, Randomness(0).at("rollout"), 6)
    assert torch.equal(long.states[:, :6], short.states)
    noise = Randomness(0).at("rollout").normal(range(12), (6, 2, 1, 1))
    assert torch.equal(long.states[0], noise[:, 0])
    assert len(long.states[0].unique()) == 24
    other = rollout(policy, prompts("") * 6, Randomness(1).at("rollout"), 6)
    assert not torch.equal(other.states, short.states)


def test_the_noise_of_a_chain_is_white():
    """Recovered from the states: standard normal, and uncorrelated between steps and chains."""
    count = 4000
    policy = Policy(linear((0.5,)), DDIM(num_steps=4))
    drawn = rollout(policy, prompts("") * count, Randomness(0), count)
    noise = [drawn.states[0]]
    for k in range(4):
        with torch.no_grad():
            transition = policy.transition(torch.full((count,), k), drawn.states[k], drawn.cond)
        noise.append((drawn.states[k + 1] - transition.mean) / transition.std.reshape(-1, 1, 1, 1))
    white = torch.stack(noise).reshape(5, count).double()
    covariance = white @ white.T / count
    assert (covariance - torch.eye(5)).abs().max() < 5 * (2 / count) ** 0.5
    assert white.mean(1).abs().max() < 5 / count**0.5
    neighbours = (white[:, 1:] * white[:, :-1]).mean(1)
    assert neighbours.abs().max() < 5 / count**0.5


def test_scores_are_the_densities_of_the_drawn_steps_by_hand():
    policy = Policy(linear(), DDIM(num_steps=4))
    drawn = rollout(policy, many(6), Randomness(0), 6)
    noise = Randomness(0).normal(range(6), (5, 2, 1, 1))
    for k in range(4):
        z, std = noise[:, k + 1].flatten(1), policy.kernel.std[k].float()
        by_hand = (-0.5 * z.square() - std.log() - 0.5 * torch.tensor(2 * torch.pi).log()).sum(1)
        # z is (x - mean) / std of rounded states: an error of 1e-7 / std, times z
        torch.testing.assert_close(drawn.log_prob[k], by_hand, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("policy", "scored"),
    [
        (Policy(linear(), DDIM(num_steps=5)), (0, 1, 2, 3, 4)),
        (Policy(linear(schedule=ENDS_CLEAN), DDIM(num_steps=5)), (0, 1, 2, 3)),
        (
            Policy(
                linear(
                    schedule=DiffusionSchedule(
                        alpha_bar=ALPHA_BAR, final_alpha_bar=float(ALPHA_BAR[0])
                    )
                ),
                DDIM(num_steps=5),
            ),
            (0, 1, 2, 3),
        ),
        (Policy(linear(), DDIM(num_steps=5, eta=0.0)), ()),
        (Policy(linear(), Window(sampler=DDIM(num_steps=5), size=2, start=1)), (1, 2)),
        (Policy(linear(schedule=STRAIGHT), FlowSDE(num_steps=5)), (0, 1, 2, 3, 4)),
        (Policy(linear(schedule=STRAIGHT), CPS(num_steps=5)), (0, 1, 2, 3)),
        (Policy(linear(schedule=STRAIGHT), FlowODE(num_steps=5)), ()),
    ],
    ids=[
        "noisy end",
        "clean end",
        "no move at the end",
        "deterministic",
        "window",
        "flow SDE",
        "CPS",
        "flow ODE",
    ],
)
def test_a_step_without_variance_is_not_scored_and_not_trained(policy, scored):
    drawn = rollout(policy, many(3), Randomness(0), 2)
    assert drawn.steps == scored
    assert drawn.log_prob.shape == (len(scored), 3)
    assert drawn.log_prob.isfinite().all()
    assert drawn.states.isfinite().all()
    for step in set(range(5)) - set(scored):
        with pytest.raises(ValueError, match=f"step {step} has no density"):
            rows.transitions(drawn, advantages(3), [*scored, step])


def replayed(policy: Policy, count: int, num_steps: int) -> torch.Tensor:
    """Every state of `rollout`'s chains under Randomness(0), by the policy's transitions alone."""
    noise = Randomness(0).normal(range(count), (num_steps + 1, *policy.denoiser.event_shape))
    cond = policy.denoiser.encode([prompt.text for prompt in many(count)])
    states = [noise[:, 0]]
    for k in range(num_steps):
        with torch.no_grad():
            transition = policy.transition(torch.full((count,), k), states[-1], cond)
        states.append(transition.sample(noise[:, k + 1]))
    return torch.stack(states)


@pytest.mark.parametrize(
    ("sampler", "kept"),
    [
        (DDIM(num_steps=5), [0, 1, 2, 3, 4, 5]),
        (DDIM(num_steps=5, eta=0.0), [5]),
        (Window(sampler=DDIM(num_steps=5), size=2, start=0), [0, 1, 2, 5]),
        (Window(sampler=DDIM(num_steps=5), size=2, start=1), [1, 2, 3, 5]),
        (Window(sampler=DDIM(num_steps=5), size=2, start=2), [2, 3, 4, 5]),
        (Window(sampler=DDIM(num_steps=5), size=2, start=3), [3, 4, 5]),
    ],
    ids=["all", "none", "at noise", "inside", "one before the end", "at the end"],
)
def test_only_the_scored_steps_states_and_the_last_are_stored(sampler, kept):
    policy = Policy(linear(), sampler)
    drawn = rollout(policy, many(4), Randomness(0), 3)
    whole = replayed(policy, 4, 5)
    assert torch.equal(drawn.states, whole[kept])
    assert drawn.states.untyped_storage().nbytes() == len(kept) * whole[0].numel() * 4
    assert torch.equal(drawn.x0, whole[-1])
    for step in drawn.steps:
        found = rows.transitions(drawn, advantages(4), [step])
        assert torch.equal(found.x, whole[step])
        assert torch.equal(found.x_next, whole[step + 1])


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_the_chains_of_a_group_share_as_many_states_as_asked_for(batch):
    policy, asked = Policy(linear(), DDIM(num_steps=4)), prompts("") * 8
    alone = rollout(policy, asked, Randomness(0), 8)
    for shared in range(5):
        drawn = rollout(
            policy, asked, Randomness(0), batch, sharing=Sharing(group=4, states=shared)
        )
        groups = drawn.states.unflatten(1, (2, 4))
        assert torch.equal(groups[:, :, 0], alone.states.unflatten(1, (2, 4))[:, :, 0])
        same = (groups == groups[:, :, :1]).flatten(2).all(2)
        assert same.all(1).tolist() == [True] * shared + [False] * (5 - shared)
        assert len(drawn.x0.unique()) == drawn.x0.numel()


@pytest.mark.parametrize("refill", [0, 2])
def test_a_group_of_grpo_branches_where_it_is_asked_to(refill):
    """Also a group that was drawn again: a reward of 0 for all but the last draw leaves no spread."""
    given = iter([torch.zeros(8)] * refill + [torch.arange(8.0)] * 2)
    algorithm = GRPO(group_size=4, shared=3, refill=refill)
    task = Task(Policy(linear(), DDIM(num_steps=4)), PROMPTS, lambda _: next(given), 8, 8)
    states = algorithm.collect(task, memory={}, randomness=Randomness(0)).rows.trajectory.states
    groups = states.unflatten(1, (2, 4))
    same = (groups == groups[:, :, :1]).flatten(2).all(2)
    assert same.tolist() == [[True] * 2] * 3 + [[False] * 2] * 2
    assert not torch.equal(groups[0, 0], groups[0, 1])


@pytest.mark.parametrize(
    ("sampler", "most"),
    [
        (DDIM(num_steps=4), 4),
        (Window(sampler=DDIM(num_steps=4), size=2, start=1), 3),
        (DDIM(num_steps=4, eta=0.0), 0),
    ],
    ids=["all", "window", "deterministic"],
)
def test_chains_that_would_be_the_same_to_their_end_are_refused(sampler, most):
    policy, asked = Policy(linear(), sampler), prompts("") * 4
    rollout(policy, asked, Randomness(0), 4, sharing=Sharing(group=2, states=most))
    with pytest.raises(ValueError, match=f"share {most + 1} states .* {most} states can be shared"):
        rollout(policy, asked, Randomness(0), 4, sharing=Sharing(group=2, states=most + 1))


def test_rollout_leaves_no_gradient():
    drawn = rollout(Policy(Network(), DDIM(num_steps=3)), many(4), Randomness(0), 4)
    assert not drawn.states.requires_grad
    assert not drawn.log_prob.requires_grad


def test_samples_are_decoded_in_chunks_with_their_prompts():
    policy = Policy(Network(), DDIM(num_steps=3), torch.bfloat16)
    asked = PROMPTS.draw(7, Randomness(0))
    drawn = rollout(policy, asked, Randomness(0), 7)
    whole, parts = (decode(policy, drawn.x0, asked, batch) for batch in (7, 3))
    assert torch.equal(whole.media, drawn.x0.float().sigmoid())
    assert torch.equal(whole.media, parts.media)
    assert whole.media.dtype == torch.float32
    assert whole.prompts == tuple(prompt.text for prompt in asked)
    assert len(whole[2:4]) == 2
    assert torch.equal(whole[2:4].media, whole.media[2:4])
    assert whole[2:4].prompts == whole.prompts[2:4]


def test_sample_repeats_itself_and_takes_plain_text():
    policy = Policy(Network(), DDIM(num_steps=3))
    one, same, other = (sample(policy, ["a cat", "a dog"], seed=seed).media for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="no prompts"):
        sample(policy, [])
