"""Groups of samples and the weights that an algorithm remembers: what a run is, and is not, a function of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from worlds import PROMPTS, Network, linear, nearness

from burnish.algorithms import Collection
from burnish.algorithms.ddpo import PerPrompt
from burnish.algorithms.dpo import D3PO, DPO
from burnish.algorithms.dpok import DPOK
from burnish.algorithms.grpo import GRPO
from burnish.experience import Task
from burnish.policy import Policy, snapshot, using
from burnish.randomness import Randomness
from burnish.rollout import Samples
from burnish.samplers.ddim import DDIM
from burnish.train import checkpoint
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training
from burnish.train.state import State, start

SHIFTS = {"a cat": 10.0, "a dog": 20.0, "a bird": 30.0}
ALGORITHMS = [
    pytest.param(GRPO(group_size=2, clip=0.1, kl=0.3, refill=1), id="grpo"),
    pytest.param(DPOK(clip=0.1, kl=0.3, baseline=PerPrompt(size=8, min_count=2)), id="dpok"),
    pytest.param(DPO(group_size=2, draws=3), id="dpo"),
    pytest.param(D3PO(group_size=2), id="d3po"),
]


def only_birds(samples: Samples) -> Tensor:
    """A reward with spread on one prompt of three; on the others it is constant."""
    first = samples.media.flatten(1)[:, 0]
    known = torch.tensor([prompt == "a bird" for prompt in samples.prompts])
    return torch.where(known, first, 5.0)


def collected(refill: int, *, groups: int = 12, size: int = 3, batch: int = 36) -> Collection:
    policy = Policy(linear(shifts=SHIFTS), DDIM(num_steps=3))
    task = Task(policy, PROMPTS, only_birds, samples=groups * size, batch=batch)
    algorithm = GRPO(group_size=size, refill=refill)
    return algorithm.collect(task, memory={}, randomness=Randomness(0))


def dead(found: Collection, size: int = 3) -> int:
    return sum(group.unique().numel() == 1 for group in found.rewards.split(size))


def in_groups_of_one_prompt(found: Collection) -> bool:
    prompts = found.samples.prompts
    return all(len(set(prompts[i : i + 3])) == 1 for i in range(0, len(prompts), 3))


def test_groups_without_spread_are_counted_and_have_no_advantage():
    found = collected(refill=0)
    assert in_groups_of_one_prompt(found)
    expected = sum(prompt != "a bird" for prompt in found.samples.prompts[::3])
    assert 0 < expected < 12
    assert dead(found) == expected
    assert found.metrics["groups_without_spread"] == expected / 12
    assert found.queries == 36
    flat = [prompt != "a bird" for prompt in found.samples.prompts]
    assert torch.equal(found.rows.advantages == 0, torch.tensor(flat))


@pytest.mark.parametrize("refill", [1, 2, 30])
def test_groups_without_spread_are_drawn_anew_as_often_as_asked(refill):
    before, found = collected(refill=refill - 1), collected(refill=refill)
    first = collected(refill=0)
    assert dead(found) < dead(before) if refill < 30 else dead(found) == 0
    assert found.metrics == {**found.metrics, "groups_without_spread": dead(first) / 12}
    assert len(found.samples) == len(found.rewards) == 36
    alive = first.rows.advantages != 0
    assert torch.equal(found.rewards[alive], first.rewards[alive])  # these stay as they are
    if refill < 30:
        assert found.queries == before.queries + 3 * dead(before)


def test_a_refill_that_finds_no_spread_ends():
    policy = Policy(linear(), DDIM(num_steps=2))
    task = Task(policy, PROMPTS, lambda s: torch.ones(len(s)), samples=4, batch=4)
    found = GRPO(group_size=2, refill=3).collect(task, memory={}, randomness=Randomness(0))
    assert found.queries == 4 * 4
    assert not found.rows.advantages.any()


def test_all_that_belongs_to_a_group_that_was_drawn_anew_is_its_own():
    """Prompt, conditioning, states, log-probabilities, media and reward of one place are of one chain."""
    found, first = collected(refill=2), collected(refill=0)
    trajectory, samples = found.rows.trajectory, found.samples
    assert samples.prompts != first.samples.prompts
    assert in_groups_of_one_prompt(found)
    assert trajectory.cond["shift"].tolist() == [SHIFTS[prompt] for prompt in samples.prompts]
    assert torch.equal(trajectory.x0, samples.media)  # the linear world decodes to its states
    assert torch.equal(only_birds(samples), found.rewards)
    assert len(samples.metadata) == len(samples)
    policy = Policy(linear(shifts=SHIFTS), DDIM(num_steps=3))
    _, diagnostics = GRPO(group_size=3).loss(policy, found.rows)
    assert torch.equal(diagnostics["log_ratio"], torch.zeros(len(found.rows)))
    assert len(trajectory.states[0].flatten(1).unique(dim=0)) == 36  # no noise was used twice


def test_a_refill_does_not_depend_on_the_sample_batch():
    one, other = collected(refill=2), collected(refill=2, batch=5)
    assert torch.equal(one.rewards, other.rewards)
    assert torch.equal(one.rows.trajectory.states, other.rows.trajectory.states)


def run(algorithm, model: nn.Module, reward, state: State | None = None, **training) -> list:
    reports = train(
        Policy(model, DDIM(num_steps=2)),
        algorithm,
        PROMPTS,
        reward,
        training=Training(
            **{"iterations": 2, "samples": 8, "updates": 2, "ratio_tolerance": 1e-5, **training}
        ),
        optimizer=OPTIMIZER,
        state=state,
    )
    return [report.metrics for report in reports]


OPTIMIZER = AdamW(learning_rate=0.01, eps=1e-4)


def brightness(samples: Samples) -> Tensor:
    return samples.media.flatten(1).mean(1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_sample_batch_changes_nothing_in_the_linear_world(algorithm):
    one, other = linear(), linear()
    near = nearness((2.0, 2.0))
    assert run(algorithm, one, near, sample_batch=64) == run(algorithm, other, near, sample_batch=3)
    assert all(torch.equal(a, b) for a, b in zip(snapshot(one), snapshot(other), strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_microbatch_and_the_sample_batch_change_rounding_only(algorithm):
    """Two Adam steps of 0.01 turn a relative error of 1e-6 of a gradient into one of the steps."""
    one, other = Network(), Network()
    large = run(algorithm, one, brightness)
    small = run(algorithm, other, brightness, microbatch=3, sample_batch=5)
    for a, b in zip(snapshot(one), snapshot(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=3e-5)
    for a, b in zip(large, small, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3, abs=1e-5)


class Run:
    def __init__(self, algorithm, seed: int = 0) -> None:
        self.algorithm, self.model = algorithm, Network(seed=seed)
        self.state = start(self.model, OPTIMIZER, averaged=False)

    def until(self, iterations: int) -> list:
        return run(self.algorithm, self.model, brightness, self.state, iterations=iterations)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_that_remembers_weights_goes_on_from_a_checkpoint_bitwise(algorithm, tmp_path):
    whole, stopped, resumed = Run(algorithm), Run(algorithm), Run(algorithm, seed=7)
    base = snapshot(whole.model)
    metrics = whole.until(4)
    stopped.until(2)
    checkpoint.save(stopped.state, tmp_path, keep=1)
    checkpoint.restore(resumed.state, tmp_path)
    assert resumed.until(4) == metrics[2:]
    for a, b in zip(snapshot(whole.model), snapshot(resumed.model), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(base, resumed.state.memory["reference"], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(base[0], snapshot(resumed.model)[0])
    rewards = (run.state.memory.get("rewards") for run in (whole, resumed))
    assert next(rewards) == next(rewards)
    assert resumed.state.queries == whole.state.queries


def test_weights_that_are_lent_are_laid_out_as_the_denoisers_own():
    """The rounding of a convolution depends on the layout, and a checkpoint does not keep it."""
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    other = [torch.randn(p.shape) for p in network.parameters()]
    own = [(p.data_ptr(), p.stride()) for p in network.parameters()]
    with using(network, other):
        assert [p.stride() for p in network.parameters()] == [stride for _, stride in own]
        assert all(torch.equal(p, o) for p, o in zip(network.parameters(), other, strict=True))
    assert [(p.data_ptr(), p.stride()) for p in network.parameters()] == own
    assert other[0].is_contiguous()
