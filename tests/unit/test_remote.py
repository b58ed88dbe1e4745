"""A remote reward is the reward itself, whatever happens on the way to its servers."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from servers import HEALTHY, numbered, odd, offered, ok, place, remote
from worlds import PROMPTS, linear, nearness

from burnish.algorithms.ddpo import DDPOIS, WholeBatch
from burnish.algorithms.dpo import DPO
from burnish.algorithms.draft import DRaFT
from burnish.algorithms.grpo import GRPO
from burnish.algorithms.rwr import RWR
from burnish.config import dump, load_recipe
from burnish.experience import Task, act
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.reward import (
    RewardError,
    Unanswered,
    check_differentiable,
    score,
    score_answered,
)
from burnish.rewards import Brightness, Remote
from burnish.samplers.ddim import DDIM
from burnish.tables import ConfigError
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training

GOOD = ok({"rewards": [1.0, 2.0, 3.0]})


def counted(reward=place):
    """The reward, and how often it was asked of each place."""
    asked, lock = Counter(), threading.Lock()

    def count(samples):
        with lock:
            asked.update(known["place"] for known in samples.metadata)
        return reward(samples)

    return count, asked


@pytest.mark.parametrize("batch", [1, 3, 4, 50])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_each_reward_comes_once_and_in_its_place(batch, concurrency):
    samples, (reward, asked) = numbered(11), counted()
    with offered(reward) as one, offered(reward) as two:
        asker = remote(one.url, two.url, batch=batch, concurrency=concurrency)
        assert score(asker, samples).tolist() == score(place, samples).tolist()
    assert asked == Counter(range(11))


def test_answers_may_come_in_any_order():
    def lazy(samples):  # the earlier the sample, the later its answer
        time.sleep(0.02 * (5 - samples.metadata[0]["place"]))
        return place(samples)

    samples = numbered(5)
    with offered(lazy, at_once=5) as server:
        found = score(remote(server.url, batch=1, concurrency=5), samples)
    assert found.tolist() == score(place, samples).tolist()


def test_the_load_is_spread_over_the_servers():
    counts = [0, 0]

    def number(which):
        def reward(samples):
            counts[which] += 1
            return place(samples)

        return reward

    with offered(number(0)) as one, offered(number(1)) as two:
        score(remote(one.url, two.url, batch=1, concurrency=1), numbered(10))
    assert counts == [5, 5]


def test_several_threads_may_ask_at_once():
    samples, wrong = numbered(12), []
    with offered() as server:
        asker = remote(server.url)

        def ask(first):
            part = samples[first : first + 6]
            if score(asker, part).tolist() != score(place, part).tolist():
                wrong.append(first)

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_waiting_and_spreading_draw_nothing_from_the_runs_randomness(monkeypatch):
    def forbidden(*_):
        raise AssertionError("a draw from the global generator")

    for name in (
        "random",
        "uniform",
        "choice",
        "randrange",
        "shuffle",
    ):  # beartype draws bits itself
        monkeypatch.setattr(random, name, forbidden)
    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    answers = iter([ok({}, 503), HEALTHY, GOOD])
    with odd(lambda path: next(answers)) as server:
        score(remote(server), numbered(3))
    after = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])


def test_no_gradient_comes_over_the_wire_and_none_is_claimed():
    assert not Remote.differentiable
    with offered(Brightness()) as server, pytest.raises(RewardError, match="no gradient"):
        check_differentiable(remote(server.url), numbered(1))


# --- servers that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        ok({"rewards": [1.0, 2.0]}),
        ok('{"version": 1, "rewards": [1.0, NaN, 3.0]}'),
        ok({"rewards": [1.0, "2", 3.0]}),
        ok("hello"),
        ok("x" * 2_000_000),
        GOOD[:-5] + b"\r\n",
        ok({"error": {"kind": "internal", "message": "oh"}}, 500),
        ok({"error": {"kind": "reward", "message": "oh"}}, 500),
        ok("busy", 503),
        ok({}, 302),
        ok({}, 429),
        b"",
        b"\x00\x01\r\n\r\n",
    ],
)
def test_a_failure_is_retried_and_then_stops_the_run_by_name(answer):
    """One wrong answer is made good by the next; where all are wrong, there is an error and no number."""
    answers = {"/health": HEALTHY, "/score": answer}
    posts = []

    def once(path):
        posts.extend([path] * (path == "/score"))
        return GOOD if path == "/score" and len(posts) > 1 else answers[path]

    if answer:
        with odd(once) as server:
            assert score(remote(server, timeout=0.3), numbered(3)).tolist() == [1.0, 2.0, 3.0]
        assert len(posts) == 2
    with odd(lambda path: answers[path] or None) as server:
        asker = remote(server, retries=1, timeout=0.2)
        with pytest.raises(RewardError) as caught:
            score(asker, numbered(3))
    for part in ("'Remote'", "samples 0 to 2", "'prompt 0'", "attempt 2", server):
        assert part in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 404, 405, 413, 415])
def test_what_a_server_refuses_is_not_asked_again(status):
    posts = []

    def refuse(path):
        if path == "/health":
            return HEALTHY
        posts.append(path)
        return ok({"error": {"kind": "because", "message": "of this"}}, status)

    with odd(refuse) as server, pytest.raises(RewardError, match="because: of this"):
        score(remote(server), numbered(3))
    assert len(posts) == 1


@pytest.mark.parametrize(
    ("health", "message"),
    [
        (ok('{"version": 2, "ready": true}'), "version 2"),
        (ok({"ready": False}), "not ready"),
        (ok({"ready": "yes"}), "not ready"),
        (ok("hello"), "health"),
    ],
)
def test_a_server_that_is_not_well_is_not_asked(health, message):
    asked = []

    def answer(path):
        asked.append(path)
        return health

    with odd(answer) as server, pytest.raises(RewardError, match=message):
        score(remote(server, retries=1), numbered(3))
    assert set(asked) == {"/health"}


def test_servers_that_offer_different_rewards_are_not_mixed():
    with (
        offered(about={"name": "compressibility", "quality": 90}) as one,
        offered(about={"name": "compressibility", "quality": 95}) as two,
        pytest.raises(RewardError, match="offers the reward"),
    ):
        score(remote(one.url, two.url, batch=1, concurrency=2), numbered(8))


def test_a_wrong_token_is_told_without_it(monkeypatch):
    monkeypatch.setenv("OURS", "wrong-secret")
    with offered(token="right-secret") as server:
        with pytest.raises(RewardError, match=r"401.*token_variable") as caught:
            score(remote(server.url, token_variable="OURS"), numbered(2))
        assert "secret" not in str(caught.value)
        with pytest.raises(RewardError, match="OURS_TOO is not set"):
            score(remote(server.url, token_variable="OURS_TOO"), numbered(2))
        monkeypatch.setenv("OURS", "right-secret")
        assert len(score(remote(server.url, token_variable="OURS"), numbered(2))) == 2


def test_a_server_that_hangs_is_left_when_its_time_is_over():
    with odd(lambda path: None) as server:
        began = time.monotonic()
        with pytest.raises(RewardError, match=r"no whole answer within 0\.2 s"):
            score(remote(server, timeout=0.2, retries=1), numbered(1))
        assert 0.4 <= time.monotonic() - began < 2


def test_a_server_that_trickles_is_left_when_its_time_is_over():
    """Each byte comes within the time limit, but the answer does not."""
    listener = socket.create_server(("127.0.0.1", 0))

    def trickle():
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            for _ in range(40):
                time.sleep(0.05)
                connection.sendall(b"H")

    threading.Thread(target=trickle, daemon=True).start()
    began = time.monotonic()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(RewardError, match=r"within 0\.3 s"):
        score(remote(url, timeout=0.3, retries=0), numbered(1))
    assert time.monotonic() - began < 1.5
    listener.close()


def test_a_hanging_server_does_not_hold_up_the_others():
    samples = numbered(30)
    with odd(lambda path: None) as hanging, offered() as well:
        began = time.monotonic()
        asker = remote(hanging, well.url, batch=1, timeout=0.4, concurrency=4, backoff=1.0)
        assert score(asker, samples).tolist() == score(place, samples).tolist()
    assert time.monotonic() - began < 2


def test_a_failure_ends_what_others_are_waiting_for():
    def answer(path):
        posts.append(path)
        if path == "/health":
            return HEALTHY
        return None if posts.count("/score") == 1 else ok({}, 404)

    posts = []
    with odd(answer) as server:
        began = time.monotonic()
        with pytest.raises(RewardError, match="404"):
            score(remote(server, batch=1, timeout=6.0, concurrency=2), numbered(4))
    assert time.monotonic() - began < 2


def test_rests_double_with_each_failure_and_are_cut_short_by_chance():
    waits = []

    def answer(_):
        waits.append(time.monotonic())
        return ok({}, 503)

    with odd(answer) as server, pytest.raises(RewardError):
        score(remote(server, retries=4, backoff=0.04), numbered(1))
    rests = [later - earlier for earlier, later in pairwise(waits)]
    assert len(rests) == 4
    for k, rest in enumerate(rests):
        assert 0.02 * 2**k <= rest < 0.04 * 2**k + 0.1  # and what a busy machine adds


def test_what_fails_together_is_one_failure():
    """Four requests are under way when the server stumbles: it is not given up for four failures."""
    together, posts = threading.Barrier(4), []

    def answer(path):
        if path == "/health":
            return HEALTHY
        posts.append(path)
        if len(posts) > 4:
            return GOOD
        together.wait(5)
        return ok({}, 503)

    with odd(answer) as server:
        found = score(remote(server, retries=1, concurrency=4, backoff=0.1), numbered(12))
    assert found.tolist() == [1.0, 2.0, 3.0] * 4


def test_a_killed_server_is_done_without_until_it_is_back():
    """Clients ask for single rewards from several threads while one of two servers dies and comes back."""
    samples, (reward, asked) = numbered(240), counted()
    half, wrong = threading.Event(), []

    def slowed(part):
        time.sleep(0.001)
        if sum(asked.values()) > 60:
            half.set()
        return reward(part)

    with offered(slowed, at_once=4) as steady:
        with offered(slowed, at_once=4) as mortal:
            url, port = mortal.url, mortal.server_address[1]
            asker = remote(steady.url, url, batch=1, concurrency=4, retries=8)

            def ask(first):
                part = samples[first : first + 40]
                if score(asker, part).tolist() != score(place, part).tolist():
                    wrong.append(first)

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(0, 240, 40)]
            for thread in threads:
                thread.start()
            assert half.wait(5)
        back, again = counted(slowed)
        with offered(back, at_once=4, port=port):
            for thread in threads:
                thread.join(10)
            score(asker, samples[:40])
    assert wrong == []
    assert set(asked) == set(range(240))
    assert sum(again.values()) > 0


def test_an_error_of_ones_own_naming_is_not_asked_for_again():
    calls = []

    def knows(samples):
        calls.append(len(samples))
        raise RewardError("sample 7 is at fault")

    with pytest.raises(RewardError, match=r"^sample 7 is at fault$"):
        score(knows, numbered(8))
    assert calls == [8]


# --- in a run ------------------------------------------------------------------------------------


def run(reward, algorithm=None, **training):
    policy = Policy(linear(), DDIM(num_steps=3))
    return list(
        train(
            policy,
            algorithm or DDPOIS(clip=0.1, baseline=WholeBatch()),
            PROMPTS,
            reward,
            training=Training(
                **{"iterations": 2, "samples": 16, "updates": 2, "sample_batch": 16, **training}
            ),
            optimizer=AdamW(learning_rate=0.05),
        )
    )


def test_a_run_with_a_remote_reward_is_the_run_with_the_reward_bit_for_bit():
    near = nearness((2.0, 2.0))
    local = run(near)
    with offered(near) as one, offered(near) as two:
        afar = run(remote(one.url, two.url))
    for here, there in zip(local, afar, strict=True):
        assert here.metrics == there.metrics
        assert here.by_step == there.by_step
        assert torch.equal(here.rewards, there.rewards)
        assert torch.equal(here.samples.media, there.samples.media)
        assert "dropped" not in there.metrics


def unlucky(bad):
    """The nearness to (2, 2); it cannot be had where the first coordinate is in `bad`."""
    near = nearness((2.0, 2.0))

    def reward(samples):
        if any(round(x, 4) in bad for x in samples.media[:, 0, 0, 0].tolist()):
            raise RuntimeError("unlucky")
        return near(samples)

    return reward


def first_samples(algorithm):
    """Of the run's first iteration: their rewards, and what `unlucky` takes for them."""
    whole = run(nearness((2.0, 2.0)), algorithm, iterations=1)[0]
    return whole, [round(x, 4) for x in whole.samples.media[:, 0, 0, 0].tolist()]


def settings(server, on_failure="drop"):
    return remote(server.url, batch=1, retries=1, backoff=0.001, on_failure=on_failure)


@pytest.mark.parametrize(
    "algorithm", [DDPOIS(clip=0.1, baseline=WholeBatch()), RWR(over="collection")]
)
def test_dropped_samples_leave_the_batch_and_are_counted(algorithm):
    whole, first = first_samples(algorithm)
    with offered(unlucky({first[3], first[10]})) as server:
        (done,) = run(settings(server), algorithm, iterations=1)
        with pytest.raises(RewardError, match="unlucky"):
            run(settings(server, "stop"), algorithm, iterations=1)
    kept = [i for i in range(16) if i not in (3, 10)]
    assert torch.equal(done.rewards, whole.rewards[kept])
    assert torch.equal(done.samples.media, whole.samples.media[kept])
    assert done.samples.prompts == tuple(whole.samples.prompts[i] for i in kept)
    assert (done.metrics["dropped"], done.queries) == (2, 14)


@pytest.mark.parametrize("algorithm", [GRPO(group_size=4), GRPO(group_size=4, refill=1), DPO()])
def test_with_a_dropped_sample_goes_its_group(algorithm):
    whole, first = first_samples(algorithm)
    with offered(unlucky({first[5]})) as server:
        (done,) = run(settings(server), algorithm, iterations=1)
    kept = [*range(4), *range(8, 16)]
    assert torch.equal(done.rewards, whole.rewards[kept])
    assert done.metrics["dropped"] == 4
    assert done.metrics["groups_without_spread"] == 0


def test_what_is_left_are_the_chains_samples_and_rewards_of_the_same_places():
    def reward(_):
        raise Unanswered("some are missing", reward, {1: 1.0, 4: 4.0, 2: 2.0})

    policy = Policy(linear(), DDIM(num_steps=3))
    prompts = PROMPTS.draw(6, Randomness(0))
    whole = act(Task(policy, PROMPTS, lambda samples: range(6), 6, 6), prompts, Randomness(1))
    left = act(Task(policy, PROMPTS, reward, 6, 6), prompts, Randomness(1))
    assert left.rewards.tolist() == [1.0, 2.0, 4.0]
    assert torch.equal(left.samples.media, whole.samples.media[[1, 2, 4]])
    assert torch.equal(left.trajectory.states, whole.trajectory.states[:, [1, 2, 4]])
    assert torch.equal(left.trajectory.log_prob, whole.trajectory.log_prob[:, [1, 2, 4]])


def test_a_group_that_was_drawn_anew_and_dropped_replaces_none():
    """Two groups have no spread and are drawn anew; of these one is answered, and takes the first's place."""
    spread = [0.0, 1.0, 2.0, 3.0]
    answers = [[5.0] * 8 + spread * 2, dict(enumerate(spread, 4))]

    def reward(_):
        values = answers.pop(0)
        if isinstance(values, dict):
            raise Unanswered("some are missing", reward, values)
        return values

    (done,) = run(reward, GRPO(group_size=4, refill=1), iterations=1)
    assert done.rewards.tolist() == [*spread, 5.0, 5.0, 5.0, 5.0, *spread, *spread]
    assert "dropped" not in done.metrics
    assert done.queries == 16 + 4


def test_the_update_is_that_of_the_samples_that_are_left():
    """The gradient is the mean over what was answered: as if the other samples had not been drawn."""
    algorithm = DDPOIS(clip=0.1, baseline=WholeBatch())
    _, first = first_samples(algorithm)

    def prefix(count):
        near = nearness((2.0, 2.0))

        def reward(samples):
            bad = set(first[count:])
            raised = [round(x, 4) in bad for x in samples.media[:, 0, 0, 0].tolist()]
            if any(raised):
                raise RuntimeError("unlucky")
            return near(samples)

        return reward

    with offered(prefix(12)) as server:
        (left,) = run(settings(server), algorithm, iterations=1, updates=1)
    (fewer,) = run(nearness((2.0, 2.0)), algorithm, iterations=1, updates=1, samples=12)
    assert torch.equal(left.rewards, fewer.rewards)
    assert left.metrics["loss"] == pytest.approx(fewer.metrics["loss"], abs=1e-6)
    assert left.metrics["grad_norm"] == pytest.approx(fewer.metrics["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("algorithm", [DDPOIS(baseline=WholeBatch()), GRPO(group_size=4)])
def test_where_nothing_is_left_the_run_stops(algorithm):
    _, first = first_samples(algorithm)
    bad = set(first) if algorithm.group_size == 1 else set(first[::4])
    with offered(unlucky(bad)) as server, pytest.raises(RewardError):
        run(settings(server), algorithm, iterations=1)


def test_servers_that_are_all_gone_are_not_waited_for_by_every_part():
    with offered() as server:
        url = server.url
    began = time.monotonic()
    with pytest.raises(Unanswered, match="40 of 40"):
        score(
            remote(url, batch=1, retries=2, backoff=0.1, concurrency=2, on_failure="drop"),
            numbered(40),
        )
    assert time.monotonic() - began < 2


def test_drops_are_for_training_and_an_evaluation_stops():
    with offered(lambda samples: 1 / 0) as server, pytest.raises(RewardError, match="3 of 3"):
        score(settings(server), numbered(3))


def test_what_a_part_of_a_reward_leaves_unanswered_is_not_taken_for_the_whole():
    def inner(_):
        raise Unanswered("one is missing", inner, {0: 1.0, 2: 3.0})

    def outer(samples):
        return 10 * score(inner, samples)

    rewards, places = score_answered(inner, numbered(3))
    assert (rewards.tolist(), places) == ([1.0, 3.0], [0, 2])
    with pytest.raises(Unanswered):
        score_answered(outer, numbered(3))


@pytest.mark.parametrize("values", [{0: float("nan")}, {0: "one"}])
def test_an_answered_part_is_checked_as_any_other(values):
    def reward(_):
        raise Unanswered("some are missing", reward, values)

    with pytest.raises(RewardError, match="'reward'"):
        score_answered(reward, numbered(2))


def test_chains_that_are_run_again_by_their_number_are_not_dropped():
    def reward(_):
        raise Unanswered("one is missing", reward, {0: 1.0})

    with pytest.raises(RewardError, match="one is missing"):
        run(reward, DRaFT(), updates=1)


def test_a_recipe_names_the_variable_and_never_the_token(monkeypatch):
    monkeypatch.setenv("OURS", "secret-token")
    recipe = load_recipe(
        "compressibility",
        [
            "--reward.name=remote",
            '--reward.servers=["http://127.0.0.1:8000", "http://127.0.0.1:8001"]',
            "--reward.token_variable=OURS",
            "--reward.timeout=5",
            "--reward.on_failure=drop",
        ],
    )
    expected = Remote(servers=("http://127.0.0.1:8000", "http://127.0.0.1:8001"))
    assert recipe.reward == replace(expected, token_variable="OURS", timeout=5, on_failure="drop")
    assert "secret-token" not in dump(recipe) + repr(recipe)
    with pytest.raises(ConfigError, match=r"reward\.servers"):
        load_recipe("compressibility", ["--reward.name=remote"])
