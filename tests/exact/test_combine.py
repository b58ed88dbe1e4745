"""Composed rewards: their arithmetic by hand, their invariances, and what is asked of whom."""

from __future__ import annotations

import threading

import pytest
import torch
from worlds import Always, linear, prompts

from burnish.algorithms.grpo import GRPO
from burnish.config import dump, load_recipe
from burnish.decays import LinearDecay
from burnish.evaluate import diversity
from burnish.experience import Task, act
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.reward import RewardError, Unanswered, differentiable, score, unit_of
from burnish.rewards import Brightness, Combine, Constraint, Diversity, Gate, Term
from burnish.rollout import Samples
from burnish.samplers.ddim import DDIM
from burnish.scoring import ask, assess, weigh
from burnish.serving.server import Offer
from burnish.tables import ConfigError

ONE, TWO = [1.0, 4.0, 2.0, 3.0], [0.5, 0.25, 1.0, 2.0]
TEXTS = ("a cat", "a cat", "a dog", "a dog")


def samples_of(*columns: list[float], texts=TEXTS) -> Samples:
    """Images of one pixel whose channels are the columns."""
    media = torch.tensor(columns).T.reshape(len(columns[0]), len(columns), 1, 1)
    return Samples(media, texts, ({},) * len(texts))


def first(samples):
    return samples.media[:, 0, 0, 0]


def second(samples):
    return samples.media[:, 1, 0, 0]


SAMPLES = samples_of(ONE, TWO)


def combined(**settings):
    terms = {"one": Term(reward=first), "two": Term(reward=second)}
    return Combine(**{"terms": terms, **settings})


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sum", [1.5, 4.25, 3.0, 5.0]),
        ("product", [0.5, 1.0, 2.0, 6.0]),
        ("minimum", [0.5, 0.25, 1.0, 2.0]),
    ],
)
def test_terms_are_put_together(how, expected):
    scored = assess(combined(how=how), SAMPLES)
    assert scored.values.tolist() == scored.rewards.tolist() == expected
    assert scored.parts["one"].tolist() == ONE
    assert scored.parts["two"].tolist() == TWO


def test_a_term_is_clipped_then_weighed():
    terms = {"one": Term(reward=first, clip=(1.5, 3.5), weight=-2.0)}
    assert assess(Combine(terms=terms), SAMPLES).values.tolist() == [-3.0, -7.0, -4.0, -6.0]


def test_a_normalised_term_is_standardised_within_its_prompt_or_its_batch():
    """Two samples of a prompt are one standard deviation from their mean, whatever they are."""
    own = Combine(terms={"one": Term(reward=first, normalise="z-score")})
    assert assess(own, SAMPLES).rewards.tolist() == [-1.0, 1.0, -1.0, 1.0]
    whole = Combine(terms={"one": Term(reward=first, normalise="z-score", over="batch")})
    expected = (torch.tensor(ONE) - 2.5) / 1.25**0.5
    torch.testing.assert_close(assess(whole, SAMPLES).rewards, expected)
    assert assess(whole, SAMPLES).values.tolist() == ONE


def test_a_ranked_term_is_the_share_of_the_others_that_a_sample_beats():
    terms = {"one": Term(reward=first, normalise="rank", over="batch")}
    samples = samples_of([1.0, 4.0, 1.0, 3.0])
    assert assess(Combine(terms=terms), samples).rewards.tolist() == pytest.approx(
        [0.5 / 3, 1.0, 0.5 / 3, 2 / 3]
    )


def test_normalised_terms_weigh_alike_in_any_unit():
    """What GDPO is for: another unit of a reward, or another zero, leaves no trace in what is learned."""

    def rewards(scale, shift):
        terms = {
            "one": Term(reward=lambda s: scale * first(s) + shift, normalise="z-score"),
            "two": Term(reward=second, normalise="z-score"),
        }
        return assess(Combine(terms=terms), samples_of(ONE, TWO, texts=("a cat",) * 4)).rewards

    torch.testing.assert_close(rewards(1.0, 0.0), rewards(1000.0, -5.0), rtol=1e-4, atol=1e-5)


def test_a_sample_that_fails_a_gate_is_worth_what_the_gate_says_and_the_first_gate_has_the_word():
    gates = {
        "loud": Gate(reward=second, at_least=0.5, otherwise=-7.0),
        "large": Gate(reward=first, at_least=2.0, otherwise=-9.0),
    }
    samples = samples_of([1.0, 4.0, 2.0, 1.0], [0.5, 0.25, 1.0, 0.25])
    scored = assess(Combine(terms={"one": Term(reward=first)}, gates=gates), samples)
    assert scored.values.tolist() == scored.rewards.tolist() == [-9.0, -7.0, 2.0, -7.0]


def test_a_bonus_that_is_withdrawn_is_learned_from_and_not_reported():
    terms = {
        "one": Term(reward=first),
        "bonus": Term(reward=second, weight=LinearDecay(start=4.0, iterations=4)),
    }
    combine = Combine(terms=terms)
    assert combine.levels(1, {}) == {"weight bonus": 3.0}
    scored = assess(combine.at(1, {}), SAMPLES)
    assert scored.rewards.tolist() == [2.5, 4.75, 5.0, 9.0]
    assert scored.values.tolist() == ONE
    assert assess(combine.at(4, {}), SAMPLES).rewards.tolist() == ONE


# --- constraints ---------------------------------------------------------------------------------


def constrained(**settings):
    return Combine(
        terms={"one": Term(reward=first)},
        constraints={"two": Constraint(**{"reward": second, "at_least": 1.0, **settings})},
    )


def test_a_constraint_is_learned_from_by_its_multiplier_and_not_reported():
    combine = constrained(initial=2.0)
    assert assess(combine.at(0, {}), SAMPLES).rewards.tolist() == [0.0, 2.5, 2.0, 5.0]
    assert assess(combine.at(0, {"two": 4.0}), SAMPLES).rewards.tolist() == [-1.0, 1.0, 2.0, 7.0]
    assert assess(combine.at(0, {}), SAMPLES).values.tolist() == ONE


def test_a_multiplier_rises_while_its_constraint_is_broken_and_never_falls_below_0():
    """The mean of TWO is 0.9375: 0.0625 below a bound of 1."""
    combine = constrained(rate=8.0)
    scored = assess(combine.at(0, {}), SAMPLES)
    memory = combine.learned(scored, {})
    assert memory == {"two": 0.5}
    assert combine.learned(scored, memory) == {"two": 1.0}
    assert combine.levels(0, memory) == {"multiplier two": 0.5}
    met = constrained(rate=8.0, at_least=0.5)
    assert met.learned(scored, {"two": 5.0}) == {"two": 1.5}
    assert met.learned(scored, {"two": 1.0}) == {"two": 0.0}


def test_the_multiplier_comes_to_the_one_that_solves_the_problem():
    """Maximise -x^2 / 2 subject to x >= 3: the best answer to a multiplier m is x = m, so m has to be 3."""
    combine, memory = constrained(at_least=3.0, rate=0.5), {}
    for _ in range(60):
        x = combine.at(0, memory).multipliers["two"]
        memory = combine.learned(
            assess(combine, samples_of([-x * x / 2], [x], texts=("",))), memory
        )
    # the distance to 3 halves each time, down to float32
    assert memory["two"] == pytest.approx(3.0, abs=1e-6)


# --- gradients -----------------------------------------------------------------------------------


def test_the_gradient_is_that_of_what_is_learned_from():
    combine = Combine(
        terms={
            "one": Term(reward=first, weight=LinearDecay(start=4.0, end=1.0, iterations=3)),
            "clipped": Term(reward=second, clip=(0.5, 1.5)),
        },
        constraints={"two": Constraint(reward=second, at_least=1.0, initial=10.0)},
    )
    media = SAMPLES.media.clone().requires_grad_()
    rewards = differentiable(combine.at(1, {}), Samples(media, TEXTS, SAMPLES.metadata))
    (slope,) = torch.autograd.grad(rewards.sum(), media)
    assert slope[:, 0, 0, 0].tolist() == [3.0] * 4
    # 0.5 and 1.0 lie in the clip's interval
    assert slope[:, 1, 0, 0].tolist() == [11.0, 10.0, 11.0, 10.0]


def test_what_a_normalised_or_compared_reward_says_of_a_sample_has_no_gradient_of_its_own():
    smooth = Term(reward=Brightness())
    assert Combine(terms={"one": smooth}).differentiable
    ranked = Term(reward=Brightness(), normalise="rank")
    for terms in ({"one": ranked}, {"one": smooth, "two": Term(reward=Diversity())}):
        assert not Combine(terms=terms).differentiable


# --- groups and pairs ----------------------------------------------------------------------------


def group_sums(samples):
    assert len({*samples.prompts}) == 1
    return first(samples) / first(samples).sum()


group_sums.unit = "group"


def wins(ones, others):
    """Prefers the larger number, and besides whatever it is shown first."""
    assert ones.prompts == others.prompts
    return (first(ones) > first(others)).float() + 0.25


wins.unit = "pair"


def test_a_reward_of_groups_is_asked_about_each_prompt_by_itself():
    mixed = SAMPLES.pick([0, 2, 1, 3])
    assert score(group_sums, mixed).tolist() == pytest.approx([0.2, 0.4, 0.8, 0.6])


def test_a_reward_of_pairs_is_the_mean_over_all_others_and_a_preferred_place_favours_nobody():
    """Every sample is shown first against each other once, so 0.25 goes to all."""
    samples = samples_of([3.0, 1.0, 2.0, 2.0], texts=("a cat",) * 4)
    assert score(wins, samples).tolist() == pytest.approx([1.25, 0.25, 1 / 3 + 0.25, 1 / 3 + 0.25])


@pytest.mark.parametrize("reward", [group_sums, wins])
def test_a_sample_alone_cannot_be_compared(reward):
    with pytest.raises(
        RewardError, match=rf"'{reward.__name__}' compares .* 'a bird' has only one"
    ):
        score(reward, samples_of([1.0, 2.0, 3.0], texts=("a cat", "a cat", "a bird")))


def test_an_unknown_unit_is_refused():
    def odd(samples):
        return first(samples)

    odd.unit = "image"
    with pytest.raises(RewardError, match="unit = 'image', expected 'sample', 'group' or 'pair'"):
        score(odd, SAMPLES)


def test_diversity_is_on_average_what_an_evaluation_reports_of_each_prompt():
    media = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    samples = Samples(media, ("a cat", "a dog") * 3, ({},) * 6)
    rewards = score(Diversity(), samples)
    for start in (0, 1):
        own = media[start::2]
        assert rewards[start::2].mean().item() == pytest.approx(diversity(own), rel=1e-6)


def test_a_server_and_a_held_out_set_of_single_samples_refuse_what_compares():
    combine = combined(terms={"one": Term(reward=first), "spread": Term(reward=Diversity())})
    assert unit_of(combine) == "group"
    with pytest.raises(ValueError, match="compares the samples of a prompt, but a server"):
        Offer(reward=combine, about={"name": "combine"})
    with pytest.raises(ConfigError, match=r"evaluation\.repeats = 1 draws one"):
        load_recipe("compressibility", ["--reward.name=diversity"])
    load_recipe("compressibility", ["--reward.name=diversity", "--evaluation.repeats=2"])


# --- what is asked of whom -----------------------------------------------------------------------


def test_a_sample_that_one_part_gives_up_on_is_left_out():
    def forgetful(_):
        raise Unanswered("no answer", forgetful, {0: 1.0, 3: 2.0})

    def careless(_):
        raise Unanswered("no answer", careless, {0: 5.0, 1: 6.0, 2: 7.0, 3: 8.0})

    combine = Combine(terms={"one": Term(reward=forgetful), "two": Term(reward=careless)})
    answers = ask(combine, SAMPLES, whole=False)
    assert answers == [{"one": 1.0, "two": 5.0}, None, None, {"one": 2.0, "two": 8.0}]
    kept = [answer for answer in answers if answer is not None]
    assert weigh(combine, SAMPLES.pick([0, 3]), kept).rewards.tolist() == [6.0, 10.0]
    with pytest.raises(Unanswered):
        ask(combine, SAMPLES, whole=True)


def test_a_fault_names_the_part():
    def broken(samples):
        return torch.full((len(samples),), torch.nan)

    combine = Combine(terms={"one": Term(reward=first), "two": Term(reward=broken)})
    with pytest.raises(RewardError, match=r"'broken' returned nan for sample 0 \(prompt: 'a cat'"):
        assess(combine, SAMPLES)


def test_the_reward_is_asked_about_one_batch_while_the_next_is_drawn():
    """The reward of the first batch waits until the second is decoded: in turn, that would never be."""
    second_is_there = threading.Event()

    class Watching:
        def __init__(self, inner):
            self.inner, self.decoded = inner, 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def decode(self, x0):
            self.decoded += 1
            if self.decoded == 2:
                second_is_there.set()
            return self.inner.decode(x0)

    def patient(samples):
        assert second_is_there.wait(10)
        return samples.media.flatten(1).sum(dim=1)

    asked = prompts(*("a cat",) * 8)
    policy = Policy(Watching(linear()), DDIM(num_steps=2))
    acted = act(Task(policy, Always(asked), patient, 8, 4), asked, Randomness(0))
    assert acted.rewards.tolist() == score(patient, acted.samples).tolist()


def test_a_batch_of_a_group_is_compared_as_a_whole():
    """Batches of three cut groups of four; the reward of groups sees four all the same."""
    seen = []

    def sizes(samples):
        seen.append(len(samples))
        return samples.media.flatten(1)[:, 0]

    sizes.unit = "group"
    policy = Policy(linear(), DDIM(num_steps=2))
    task = Task(policy, Always(prompts("a cat", "a dog")), sizes, samples=8, batch=3)
    GRPO(group_size=4).collect(task, memory={}, randomness=Randomness(0))
    assert seen == [4, 4]


# --- recipes -------------------------------------------------------------------------------------

RECIPE = """
[reward]
name = "combine"
[reward.terms.small]
reward = { name = "compressibility" }
normalise = "z-score"
[reward.terms.bright]
reward = { name = "brightness" }
weight = { name = "linear", start = 1.0, iterations = 3 }
[reward.gates.own]
reward = { name = "my_module:my_reward" }
at_least = 0.5
otherwise = -1.0
[reward.constraints.faithful]
reward = { name = "portrait-alignment" }
at_least = 0.9
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "combined.toml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_says_what_is_combined_and_is_written_back_as_it_was(recipe_file, tmp_path):
    recipe = load_recipe(str(recipe_file), ["--reward.terms.small.weight=2.5"])
    assert recipe.reward.terms["small"].weight == 2.5
    assert recipe.reward.gates["own"].reward.target == "my_module:my_reward"
    again = tmp_path / "again.toml"
    again.write_text(dump(recipe))
    assert load_recipe(str(again)) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--reward.terms.small.wieght=1.0", r"reward\.terms\.small\.wieght: .* 'weight'"),
        (
            "--reward.terms.small.reward.name=brihgtness",
            r"terms\.small\.reward\.name .*'brightness'",
        ),
        ("--reward.constraints.faithful.rate=0.0", r"reward\.constraints\.faithful\.rate = 0\.0"),
        ("--reward.terms.small.clip=[2.0, 1.0]", r"reward\.terms\.small\.clip = \[2\.0, 1\.0\]"),
        ("--reward.terms=3", r"reward\.terms = 3, expected tables, each with a name"),
    ],
)
def test_what_is_wrong_in_a_combined_reward_is_named(recipe_file, override, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(recipe_file), [override])


def test_parts_have_names_of_their_own():
    with pytest.raises(ValueError, match="'one' names two parts"):
        combined(gates={"one": Gate(reward=first, at_least=0.0, otherwise=0.0)})
    with pytest.raises(ValueError, match="terms is empty"):
        Combine(terms={})
