"""Reward backpropagation: the chain that is run again, what its gradient reaches, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from worlds import Always, Network, linear, nearness

from burnish import rows
from burnish.algorithms.draft import AlignProp, DRaFT, ReFL
from burnish.experience import Task
from burnish.lanes import side_by_side
from burnish.policy import Policy
from burnish.prompts import Prompt
from burnish.randomness import Randomness
from burnish.reward import RewardError
from burnish.rewards.files import Compressibility
from burnish.samplers.ddim import DDIM
from burnish.samplers.window import Window
from burnish.train.loop import train
from burnish.train.settings import Training

STEPS = 5
ALGORITHMS = [DRaFT(), DRaFT(train_steps=STEPS), AlignProp(), ReFL(train_steps=3)]
RERUN = [DRaFT, AlignProp]
ASKED = [
    Prompt("a cat", {"wanted": 0.3}),
    Prompt("a dog", {"wanted": 0.9}),
    Prompt("a bird", {"wanted": 0.6}),
]


def wanted(samples) -> Tensor:
    """Nearness of the mean to what each sample's metadata asks for, less what its prompt's length costs."""
    target = torch.tensor([known["wanted"] for known in samples.metadata])
    length = torch.tensor([float(len(text)) for text in samples.prompts])
    return -(samples.media.mean((1, 2, 3)) - target).square() - 0.01 * length


def collected(algorithm, policy=None, reward=wanted, count=6, memory=None, seed=0):
    policy = policy or Policy(Network(), DDIM(num_steps=STEPS))
    task = Task(policy, Always(ASKED), reward, samples=count, batch=count)
    return algorithm.collect(task, memory=memory or {}, randomness=Randomness(seed))


def gradient(algorithm, policy, found: rows.Contexts) -> list[Tensor]:
    """Of the sum over the rows."""
    loss, _ = algorithm.loss(policy, found)
    return list(torch.autograd.grad(loss.sum(), list(policy.denoiser.parameters())))


def assert_close(some, others):
    for one, other in zip(some, others, strict=True):
        # float32: another order of a sum of tens of terms
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sampler",
    [
        DDIM(num_steps=5),
        DDIM(num_steps=5, eta=0),
        Window(sampler=DDIM(num_steps=5), size=2, start=2),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_chain_that_is_run_again_is_the_chain_that_was_drawn(sampler, storage, checkpointing):
    policy = Policy(Network(), sampler, storage=storage)
    for last in (1, 3, 5):
        found = collected(DRaFT(train_steps=last), policy).rows
        again = rows.run_again(policy, found, checkpointed=checkpointing)
        assert torch.equal(again, found.chains.x0)
        assert again.dtype == storage
        _, diagnostics = DRaFT(train_steps=last).loss(policy, found)
        assert torch.equal(diagnostics["reward_change"], torch.zeros(6))


def test_chains_that_begin_at_different_steps_end_where_they_ended():
    """In one batch, in any order: `Linear` does not feel which rows are beside it."""
    policy = Policy(linear(), DDIM(num_steps=STEPS))
    found = collected(AlignProp(), policy, count=12).rows
    assert len(found.step.unique()) > 2
    order = torch.tensor([7, 3, 3, 11, 0])
    again = rows.run_again(policy, found[order], checkpointed=False)
    assert torch.equal(again, found.chains.x0[order])


def test_a_row_keeps_its_values_under_any_index():
    found = collected(AlignProp(), count=12).rows
    some = found[torch.tensor([5, 2, 7])][torch.tensor([1, 0, 0])]
    assert len(some) == 3
    assert some.sample.tolist() == [2, 5, 5]
    assert some.step.tolist() == some.key.tolist() == found.step[[2, 5, 5]].tolist()
    assert torch.equal(
        some.x[1], found.chains.states[found.chains.kept.index(int(some.step[1])), 5]
    )
    assert torch.equal(some.cond["letters"], found.chains.cond["letters"][[2, 5, 5]])
    assert some.drawn.tolist() == found.rewards[[2, 5, 5]].tolist()
    media = torch.rand(3, 3, 2, 2)
    asked = some.ending_in(media)
    assert asked.media is media
    assert asked.prompts == ("a bird", "a bird", "a bird")
    assert found[torch.tensor([4, 0])].ending_in(media[:2]).metadata == (
        {"wanted": 0.9},
        {"wanted": 0.3},
    )


@pytest.mark.parametrize("train_steps", [1, 3, 5])
def test_draft_begins_k_steps_before_the_end(train_steps):
    assert collected(DRaFT(train_steps=train_steps)).rows.step.tolist() == [5 - train_steps] * 6


@pytest.mark.parametrize("algorithm", [AlignProp(train_steps=3), ReFL(train_steps=3)])
def test_lengths_are_drawn_evenly_from_1_to_the_most_by_the_seed(algorithm):
    policy = Policy(linear(), DDIM(num_steps=STEPS))
    steps = [collected(algorithm, policy, count=300, seed=s).rows.step for s in (0, 0, 1)]
    assert torch.equal(steps[0], steps[1])
    assert not torch.equal(steps[0], steps[2])
    counts = steps[0].bincount(minlength=5)
    assert counts[:2].tolist() == [0, 0]
    # each of three steps: 100 +- 5 standard deviations
    assert ((counts[2:] - 100).abs() < 5 * (300 * 2 / 9) ** 0.5).all()


@pytest.mark.parametrize("algorithm", RERUN)
def test_checkpointing_changes_nothing_of_the_gradient(algorithm):
    policy = Policy(Network(), DDIM(num_steps=STEPS))
    settings = {"train_steps": STEPS}
    found = collected(algorithm(**settings), policy).rows
    plain, checkpointed = (
        gradient(algorithm(**settings, checkpointing=each), policy, found) for each in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))
    assert sum(part.abs().sum() for part in plain) > 0


def test_checkpointing_holds_less():
    """Bytes that the graph keeps: of one step, not of five."""
    policy = Policy(Network(), DDIM(num_steps=STEPS))
    found = collected(DRaFT(train_steps=STEPS), policy).rows

    def held(checkpointing: bool) -> int:
        kept = []

        def pack(tensor):
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            DRaFT(train_steps=STEPS, checkpointing=checkpointing).loss(policy, found)
        return sum(kept)

    assert held(True) < 0.5 * held(False)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_the_gradient_is_the_same_in_any_microbatches(algorithm):
    policy = Policy(Network(), DDIM(num_steps=STEPS))
    found = collected(algorithm, policy, count=8).rows
    whole = gradient(algorithm, policy, found)
    for parts in ([[0, 1, 2], [3, 4, 5, 6, 7]], [[6], [2, 0, 7], [5, 1], [3, 4]]):
        pieces = [gradient(algorithm, policy, found[torch.tensor(part)]) for part in parts]
        assert_close([sum(each) for each in zip(*pieces, strict=True)], whole)


def test_checkpointed_gradients_may_be_computed_side_by_side():
    policy = Policy(Network(), DDIM(num_steps=STEPS))
    algorithm = DRaFT(train_steps=STEPS)
    found = collected(algorithm, policy, count=8).rows
    pieces = torch.arange(8).split(1)

    def alone(piece):
        return gradient(algorithm, policy, found[piece])

    expected = [alone(piece) for piece in pieces]
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        together = list(side_by_side(alone, pieces, torch.device("cpu")))
    finally:
        torch.set_num_threads(1)
    for one, other in zip(together, expected, strict=True):
        assert_close(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_queries_are_the_samples_their_second_asking_and_one_probe(algorithm):
    asked = []

    def counted(samples):
        asked.append(len(samples))
        return wanted(samples)

    policy = Policy(Network(), DDIM(num_steps=STEPS))
    geometry = Training(iterations=3, samples=6, updates=1, sample_batch=4, microbatch=4)
    reports = list(train(policy, algorithm, Always(ASKED), counted, training=geometry))
    assert [report.queries for report in reports] == [13, 25, 37]
    assert sum(asked) == 37


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_a_deterministic_sampler_trains_all_the_same(algorithm):
    policy = Policy(Network(), DDIM(num_steps=STEPS, eta=0.0))
    found = collected(algorithm, policy).rows
    assert sum(part.abs().sum() for part in gradient(algorithm, policy, found)) > 0


def detached(samples):
    return samples.media.detach().mean((1, 2, 3))


def listed(samples):
    return samples.media.mean((1, 2, 3)).tolist()


WEIGHT = torch.ones((), requires_grad=True)


def of_itself(samples):
    """A gradient, but of the reward's own weights."""
    return WEIGHT * samples.media.detach().mean((1, 2, 3))


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (Compressibility(), "Compressibility"),
        (detached, "detached"),
        (listed, "listed"),
        (of_itself, "of_itself"),
    ],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_a_reward_without_gradient_is_refused_by_name_in_the_first_collect(algorithm, reward, name):
    policy = Policy(Network(side=8), DDIM(num_steps=STEPS))
    with pytest.raises(RewardError, match=rf"'{name}' has no gradient .* such as ddpo-is"):
        collected(algorithm, policy, reward)


def test_a_reward_that_loses_its_gradient_later_is_refused_in_the_loss():
    policy = Policy(Network(), DDIM(num_steps=STEPS))
    found = collected(DRaFT(), policy, detached, memory={"reward_has_gradient": True})
    with pytest.raises(RewardError, match="'detached' has no gradient"):
        DRaFT().loss(policy, found.rows)


def test_what_the_loss_asks_is_checked_as_what_the_rollout_asks():
    policy = Policy(Network(), DDIM(num_steps=STEPS))
    answers = iter([wanted, wanted, lambda samples: wanted(samples) / 0])
    found = collected(DRaFT(), policy, lambda samples: next(answers)(samples))
    with pytest.raises(RewardError, match=r"returned -inf for sample 0 \(prompt: 'a cat'\)"):
        DRaFT().loss(policy, found.rows)


@pytest.mark.parametrize("algorithm", [DRaFT, AlignProp, ReFL])
def test_more_steps_than_the_sampler_has_and_none_are_refused(algorithm):
    with pytest.raises(ValueError, match="train_steps = 6, but the sampler has 5 steps"):
        collected(algorithm(train_steps=6))
    with pytest.raises(ValueError, match="train_steps = 0, expected at least 1"):
        algorithm(train_steps=0)


def test_a_truncated_gradient_does_not_reach_the_steps_before():
    """The rows' states are constants: with the last step's own gradient cut, nothing is left."""
    policy = Policy(linear(), DDIM(num_steps=STEPS))
    found = collected(DRaFT(train_steps=2), policy, nearness((1.0, 1.0))).rows
    assert not found.x.requires_grad
    assert not found.chains.states.requires_grad
