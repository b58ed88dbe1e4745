"""What an algorithm on finished samples is, and is not, a function of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from worlds import ENDS_NOISY, PROMPTS, VELOCITY, Always, Network, linear, prompts

from burnish import rows, schedules
from burnish.advantages import whole_batch
from burnish.algorithms.awm import AWM
from burnish.algorithms.ddpo import WholeBatch
from burnish.algorithms.nft import NFT
from burnish.algorithms.rwr import RWR, RWRSparse
from burnish.algorithms.sft import BestOf
from burnish.config import load_recipe
from burnish.experience import Task
from burnish.policy import Policy, snapshot
from burnish.randomness import Randomness
from burnish.recipe import Recipe
from burnish.rollout import rollout
from burnish.samplers.ddim import DDIM
from burnish.samplers.ddpm import DDPM
from burnish.train import checkpoint
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training
from burnish.train.state import State, start

ALGORITHMS = [
    RWR(over="collection", draws=2),
    RWRSparse(top=0.3, over="collection", draws=4),
    NFT(baseline=WholeBatch(), draws=2, decay_slope=0.3),
    AWM(clip=0.1, baseline=WholeBatch(), draws=2),
    BestOf(group_size=4, draws=4),
]
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)


def brightness(samples) -> Tensor:
    return samples.media.flatten(1).mean(1)


def drawn(policy: Policy, count: int = 3, draws: int = 4) -> rows.Endpoints:
    """Rows of standard normal samples."""
    x0 = Randomness(5).normal(range(count), policy.denoiser.event_shape)
    cond = policy.denoiser.encode(["a cat"] * count)
    return rows.endpoints(x0, cond, torch.ones(count), draws=draws, randomness=Randomness(0))


# --- rows --------------------------------------------------------------------------------------------


def test_the_levels_of_a_sample_are_stratified_over_the_times_of_the_model():
    policy = Policy(linear(), DDIM(num_steps=2))
    found = drawn(policy, count=500)
    quantile = found.quantile.reshape(500, 4)
    strata = torch.arange(4) / 4
    assert ((quantile >= strata) & (quantile < strata + 0.25)).all()
    within = (quantile - strata) * 4
    # uniform numbers: mean 1/2, variance 1/12, over 500 rows in each stratum
    assert ((within.mean(0) - 0.5).abs() < 5 * (1 / 12 / 500) ** 0.5).all()
    time = rows.noised(policy, found).time
    assert torch.equal(time, (found.quantile * 1000).floor().long())
    assert (time.min() < 10) & (time.max() >= 990)


def test_level_0_is_data_and_the_last_is_noise():
    level = ENDS_NOISY.level(torch.tensor([0.0, 0.5, 0.9999999], dtype=torch.float64))
    assert level.time.tolist() == [0, 500, 999]
    assert torch.equal(level.signal.square(), ENDS_NOISY.alpha_bar[[0, 500, 999]].sqrt().square())
    assert (level.signal.square() + level.sigma.square() - 1).abs().max() < 1e-12


def test_the_key_is_the_tenth_of_the_levels_counted_from_noise():
    found = drawn(Policy(linear(), DDIM(num_steps=2)), count=1, draws=10)
    assert found.key.tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("model", [linear, Network], ids=["linear", "network"])
def test_a_row_has_its_noise_and_level_under_any_index(model):
    policy = Policy(model(), DDIM(num_steps=2))
    found = drawn(policy)
    whole = rows.noised(policy, found)
    order = torch.tensor([7, 2, 2, 11])
    some = rows.noised(policy, found[torch.tensor([11, 7, 2])][torch.tensor([1, 2, 2, 0])])
    for name in ("x", "time", "target", "x0", "signal", "sigma"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[order])


def test_the_rows_of_some_samples_are_the_same_as_among_all():
    policy = Policy(linear(), DDIM(num_steps=2))
    everything = drawn(policy)
    places = [2, 0]
    some = rows.endpoints(
        everything.x0,
        everything.cond,
        everything.weight,
        draws=4,
        randomness=everything.randomness,
        places=places,
    )
    assert some.sample.tolist() == [2] * 4 + [0] * 4
    index = torch.tensor([8, 9, 10, 11, 0, 1, 2, 3])
    assert torch.equal(rows.noised(policy, some).x, rows.noised(policy, everything[index]).x)


def test_noise_is_standard_normal_and_of_each_row_its_own():
    policy = Policy(linear(), DDIM(num_steps=2))
    e = rows.noised(policy, drawn(policy, count=500)).target.flatten(1)  # epsilon is the target
    size = e.numel()
    assert abs(e.mean()) < 5 / size**0.5
    assert abs(e.square().mean() - 1) < 5 * (2 / size) ** 0.5
    assert len(e.unique(dim=0)) == len(e)


@pytest.mark.parametrize("name", ["EPSILON", "VELOCITY", "SAMPLE"])
def test_the_target_is_what_estimates_the_clean_sample(name):
    schedule = replace(VELOCITY, parameterisation=getattr(schedules, name))
    policy = Policy(Network(schedule), DDIM(num_steps=2))
    found = drawn(policy, count=100)
    at = rows.noised(policy, found)
    assert torch.equal(at.x0, found.x0[found.sample])
    # float32, and an epsilon network's estimate divides by the signal, down to 0.07
    torch.testing.assert_close(rows.clean_estimate(policy, at, at.target), at.x0, rtol=0, atol=1e-4)
    signal = schedule.alpha_bar[at.time].sqrt()
    assert torch.equal(at.signal, signal.float())
    assert rows.squared_error(at.target, at.target).tolist() == [0.0] * 400


def test_the_error_is_a_mean_over_the_event():
    one = torch.tensor([[[3.0, 0.0]], [[1.0, 1.0]]])
    assert rows.squared_error(one, torch.zeros_like(one)).tolist() == [4.5, 1.0]


# --- the loop ----------------------------------------------------------------------------------------


def run(
    algorithm, iterations=2, sampler=None, reward=brightness, state=None, model=None, **training
):
    model = model or Network()
    optimizer = AdamW(learning_rate=0.01, eps=1e-4)
    geometry = {"samples": 8, "updates": 2, **training}
    reports = train(
        Policy(model, sampler or DDIM(num_steps=3)),
        algorithm,
        PROMPTS,
        reward,
        training=Training(iterations=iterations, ratio_tolerance=1e-5, **geometry),
        optimizer=optimizer,
        state=state,
    )
    return list(reports), model


@every_algorithm
@pytest.mark.parametrize("batches", [{"microbatch": 3}, {"sample_batch": 3}])
def test_batches_change_rounding_only(algorithm, batches):
    """One Adam step turns a relative error of 1e-6 of a gradient into one of its step, 0.01."""
    (small, a), (large, b) = run(algorithm, **batches), run(algorithm)
    for one, other in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(small, large, strict=True):
        torch.testing.assert_close(one.rewards, other.rewards, rtol=1e-4, atol=1e-5)
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-3, abs=1e-5)


@every_algorithm
@pytest.mark.parametrize("sampler", [DDIM(num_steps=3, eta=0.0), DDPM(num_steps=3)], ids=str)
def test_any_sampler_draws(algorithm, sampler):
    reports, model = run(algorithm, sampler=sampler)
    assert len(reports) == 2
    before = Network()
    assert not torch.equal(next(iter(model.parameters())), next(iter(before.parameters())))


@pytest.mark.parametrize("name", ["rwr", "rwr-sparse", "nft", "awm", "best-of"])
def test_a_recipe_may_have_a_deterministic_sampler(name):
    recipe = load_recipe("compressibility", ["--algorithm.name", name, "--sampler.eta", "0"])
    assert isinstance(recipe, Recipe)
    assert recipe.sampler.deterministic


@every_algorithm
def test_rewards_that_are_all_the_same_do_no_harm(algorithm):
    reports, model = run(algorithm, reward=lambda samples: torch.full((len(samples),), 3.0))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(value == value for report in reports for value in report.metrics.values())


@pytest.mark.parametrize("algorithm", [ALGORITHMS[3], ALGORITHMS[4]], ids=["AWM", "BestOf"])
def test_rewards_that_are_all_the_same_teach_these_nothing(algorithm):
    """NFT and RWR have their own samples to fit to even then."""
    reports, _ = run(algorithm, reward=lambda samples: torch.full((len(samples),), 3.0))
    assert all(report.metrics["loss"] == 0 for report in reports)
    assert all(report.metrics["grad_norm"] == 0 for report in reports)


def collected(algorithm, *values: float, memory=None, policy=None, seed=0):
    """A collection whose rewards are `values`, whatever the samples are."""
    policy = policy or Policy(linear(), DDIM(num_steps=3))
    asked = Always(prompts("a cat", "a dog"))
    task = Task(
        policy, asked, lambda _: torch.tensor(values), samples=len(values), batch=len(values)
    )
    return algorithm.collect(task, memory=memory or {}, randomness=Randomness(seed))


def test_samples_of_weight_0_get_no_rows():
    found = collected(RWRSparse(top=0.5, draws=3), 1.0, 5.0, 2.0, 4.0)
    assert found.rows.sample.tolist() == [1] * 3 + [2] * 3  # the better cat, the better dog
    assert found.metrics["samples_used"] == 0.5
    assert found.rows.weight[found.rows.sample].tolist() == [1.0] * 6
    some = collected(AWM(baseline=WholeBatch(), draws=1), 1.0, 2.0, 3.0)
    assert some.rows.sample.tolist() == [0, 2]


def test_the_worst_samples_of_nft_get_rows():
    """Optimality 0 is not weight 0: the whole of the second term pushes from there."""
    found = collected(NFT(baseline=WholeBatch(), advantage_clip=0.5, draws=2), 1.0, 2.0, 3.0)
    assert found.rows.weight.tolist() == [0.0, 0.5, 1.0]
    assert found.rows.sample.tolist() == [0, 0, 1, 1, 2, 2]


def test_groups_are_prompts_or_the_collection():
    rewards = (1.0, 10.0, 3.0, 30.0)
    apart = collected(RWR(temperature=1.0), *rewards).rows.weight
    assert apart[0] == pytest.approx(apart[1].item())
    assert apart[2] == pytest.approx(apart[3].item())
    together = collected(RWR(temperature=1.0, over="collection"), *rewards).rows.weight
    assert together.argmax() == 3
    assert together[1] > together[2]


@pytest.mark.parametrize("algorithm", [RWR(), RWRSparse()])
def test_prompts_that_are_all_alone_are_warned_of(algorithm):
    with pytest.warns(UserWarning, match="over = 'collection'"):
        found = collected(algorithm, 1.0, 2.0)
    assert found.rows.weight.tolist() == [1.0, 1.0]


def test_a_group_without_spread_is_reported_and_gets_no_rows():
    found = collected(BestOf(group_size=2, draws=1), 1.0, 2.0, 3.0, 3.0)
    assert found.rows.sample.tolist() == [1]
    assert found.metrics["groups_without_spread"] == 0.5
    assert found.samples.prompts == ("a cat", "a cat", "a dog", "a dog")


# --- the old policy ----------------------------------------------------------------------------------


def set_to(model, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_the_old_policy_keeps_a_growing_share_of_itself_up_to_the_most():
    """Weights 0, 1, 2, 3 with shares min(0.2 i, 0.5): 0; 0.8; 0.4 * 0.8 + 0.6 * 2 = 1.52; then half and
    half with 3, 2.26; and half and half with 4, 3.13."""
    algorithm = NFT(baseline=WholeBatch(), decay_slope=0.2, decay_max=0.5)
    policy = Policy(linear(), DDIM(num_steps=2))
    memory: dict = {}
    for weight, expected in enumerate([0.0, 0.8, 1.52, 2.26, 3.13]):
        set_to(policy.denoiser, float(weight))
        before = memory
        memory = collected(algorithm, 1.0, 2.0, memory=memory, policy=policy).memory
        assert memory["iteration"] == weight + 1
        for tensor in memory["old"]:
            torch.testing.assert_close(tensor, torch.full_like(tensor, expected))
        assert before == {} or before["iteration"] == weight  # what was given is not changed
        assert all((parameter == weight).all() for parameter in policy.denoiser.parameters())


def test_samples_and_recorded_predictions_are_of_the_old_policy():
    old, new = Network(seed=0), Network(seed=1)
    policy = Policy(new, DDIM(num_steps=3))
    memory = {"old": snapshot(old), "iteration": 1}
    algorithm = NFT(baseline=WholeBatch(), decay_slope=0.999, decay_max=0.999, draws=2)
    found = collected(algorithm, 1.0, 2.0, memory=memory, policy=policy)
    kept = found.memory["old"]
    with torch.no_grad():
        for parameter, value in zip(old.parameters(), kept, strict=True):
            parameter.copy_(value)
    theirs = Policy(old, DDIM(num_steps=3))
    asked = prompts("a cat", "a dog")
    chains = rollout(theirs, asked, Randomness(0).at("rollout"), 2)
    assert torch.equal(found.rows.x0, chains.x0)
    at = rows.noised(theirs, found.rows)
    with torch.no_grad():
        expected, own = rows.predict(theirs, at), rows.predict(policy, at)
    torch.testing.assert_close(found.rows.recorded["old"], expected)
    assert (own - expected).abs().max() > 0.1
    assert torch.equal(found.rows.weight, 0.5 + 0.5 * whole_batch(torch.tensor([1.0, 2.0])) / 5)


@every_algorithm
def test_a_run_goes_on_bitwise_from_a_checkpoint(algorithm, tmp_path):
    whole, model = run(algorithm, iterations=4)
    stopped = beginning()
    run(algorithm, iterations=2, state=stopped[0], model=stopped[1])
    checkpoint.save(stopped[0], tmp_path, keep=1)
    state, resumed = beginning(seed=7)
    checkpoint.restore(state, tmp_path)
    then, _ = run(algorithm, iterations=4, state=state, model=resumed)
    assert [report.metrics for report in then] == [report.metrics for report in whole[2:]]
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def beginning(seed: int = 0) -> tuple[State, Network]:
    model = Network(seed=seed)
    return start(model, AdamW(learning_rate=0.01, eps=1e-4), averaged=False), model


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (RWR, {"temperature": 0.0}),
        (RWR, {"draws": 0}),
        (RWRSparse, {"top": 0.0}),
        (RWRSparse, {"top": 1.1}),
        (NFT, {"strength": 0.0}),
        (NFT, {"advantage_clip": -1.0}),
        (NFT, {"decay_slope": -0.1}),
        (NFT, {"decay_max": 1.0}),
        (AWM, {"clip": 0.0}),
        (AWM, {"advantage_clip": 0.0}),
        (BestOf, {"group_size": 1}),
        (BestOf, {"draws": 0}),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(algorithm, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        algorithm(**settings)
