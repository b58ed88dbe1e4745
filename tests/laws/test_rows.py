"""A row is (x, step, x_next) of one chain, whatever batch it is in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from worlds import Network, linear, prompts

from burnish import rows
from burnish.policy import Policy, snapshot, using
from burnish.randomness import Randomness
from burnish.rollout import Trajectory, rollout
from burnish.samplers.ddim import DDIM
from burnish.samplers.window import Window


def numbered() -> Trajectory:
    """7 steps and 3 chains, each value telling its place; steps 1, 3 and 4 have a density."""
    kept = torch.tensor([1, 2, 3, 4, 5, 7])
    states = 10.0 * kept.reshape(6, 1, 1) + torch.arange(3).reshape(1, 3, 1)
    return Trajectory(
        states=states.expand(6, 3, 2),
        log_prob=-10.0 * torch.tensor([[1], [3], [4]]) - torch.arange(3),
        steps=(1, 3, 4),
        kept=(1, 2, 3, 4, 5, 7),
        cond={"shift": torch.tensor([100.0, 101.0, 102.0])},
    )


def test_rows_are_all_steps_chain_by_chain():
    found = rows.transitions(numbered(), torch.tensor([0.0, 1.0, 2.0]), [1, 3])
    assert len(found) == 6
    assert found.step.tolist() == [1, 3, 1, 3, 1, 3]
    assert found.key.tolist() == [1, 3, 1, 3, 1, 3]
    assert found.sample.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.x[:, 0].tolist() == [10, 30, 11, 31, 12, 32]
    assert found.x_next[:, 1].tolist() == [20, 40, 21, 41, 22, 42]
    assert found.old_log_prob.tolist() == [-10, -30, -11, -31, -12, -32]
    assert found.advantage.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.cond["shift"].tolist() == [100, 100, 101, 101, 102, 102]
    assert found.event_size == 2


def test_a_step_has_the_states_beside_it_whatever_steps_are_left_out():
    found = rows.transitions(numbered(), torch.zeros(3), [4, 1, 3])
    assert found.x[:3, 0].tolist() == [40, 10, 30]
    assert found.x_next[:3, 0].tolist() == [50, 20, 40]
    assert found.old_log_prob[:3].tolist() == [-40, -10, -30]
    assert numbered().x0[:, 0].tolist() == [70, 71, 72]


def test_a_row_keeps_its_values_under_any_index():
    found = rows.transitions(numbered(), torch.tensor([0.0, 1.0, 2.0]), [3, 1])
    assert found.step.tolist() == [3, 1, 3, 1, 3, 1]
    some = found[torch.tensor([5, 2])][torch.tensor([1, 0, 0])]
    assert len(some) == 3
    assert some.step.tolist() == [3, 1, 1]
    assert some.sample.tolist() == [1, 2, 2]
    assert some.x[:, 0].tolist() == [31, 12, 12]
    assert some.x_next[:, 0].tolist() == [41, 22, 22]
    assert some.old_log_prob.tolist() == [-31, -12, -12]
    assert some.advantage.tolist() == [1, 2, 2]
    assert some.cond["shift"].tolist() == [101, 102, 102]


@pytest.mark.parametrize("step", [0, 2, 5, -1])
def test_a_step_without_density_is_refused(step):
    with pytest.raises(ValueError, match=rf"step {step} has no density .* one of \[1, 3, 4\]"):
        rows.transitions(numbered(), torch.zeros(3), [1, step])


@pytest.mark.parametrize(
    "sampler",
    [DDIM(num_steps=5), Window(sampler=DDIM(num_steps=5), size=2, start=1)],
    ids=["DDIM", "window"],
)
def test_rows_of_many_prompts_and_steps_score_in_one_batch_as_each_alone(sampler):
    policy = Policy(linear(shifts={"a cat": 2.0, "a dog": -3.0}), sampler)
    drawn = rollout(policy, prompts("a cat", "a dog", "a bird") * 2, Randomness(0), 6)
    found = rows.transitions(drawn, torch.zeros(6), drawn.steps)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    together = rows.log_prob(policy, found[order])
    for place, i in enumerate(order.tolist()):
        alone = rows.log_prob(policy, found[torch.tensor([i])])
        assert alone[0] == together[place]
        assert alone[0] == found.old_log_prob[i]


def test_the_prompt_is_part_of_the_policy():
    policy = Policy(linear(shifts={"a cat": 2.0}), DDIM(num_steps=5))
    drawn = rollout(policy, prompts("a cat", "a dog"), Randomness(0), 2)
    swapped = replace(drawn, cond={"shift": drawn.cond["shift"].flip(0)})
    own, other = (
        rows.log_prob(policy, rows.transitions(t, torch.zeros(2), t.steps))
        for t in (drawn, swapped)
    )
    assert (own != other).all()


def test_the_score_carries_a_gradient_to_every_parameter():
    policy = Policy(Network(), DDIM(num_steps=3))
    drawn = rollout(policy, prompts("a cat", "a dog"), Randomness(0), 2)
    rows.log_prob(policy, rows.transitions(drawn, torch.zeros(2), drawn.steps)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.denoiser.parameters())


def test_borrowed_weights_are_used_within_the_block_and_given_back():
    model, other = Network(seed=0), Network(seed=1)
    own, before = snapshot(model), [p.data_ptr() for p in model.parameters()]
    x, time, cond = torch.ones(1, 3, 2, 2), torch.tensor([3]), model.encode(["a cat"])
    mine, theirs = model.predict(x, time, cond), other.predict(x, time, cond)
    with using(model, snapshot(other)):
        assert torch.equal(model.predict(x, time, cond), theirs)
    assert torch.equal(model.predict(x, time, cond), mine)
    assert [p.data_ptr() for p in model.parameters()] == before
    assert all(torch.equal(a, b) for a, b in zip(own, model.parameters(), strict=True))


def test_weights_are_given_back_after_an_error_too():
    model = Network(seed=0)
    before = snapshot(model)

    def fail() -> None:
        with using(model, snapshot(Network(seed=1))):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_snapshot_does_not_follow_the_weights():
    model = Network()
    kept = snapshot(model)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert not torch.equal(kept[0], next(model.parameters()))
    assert not any(tensor.requires_grad for tensor in kept)
