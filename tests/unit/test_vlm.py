"""What a vision-language model answers becomes a reward, in its place and as it was meant, or an error."""

from __future__ import annotations

import json
import math
import random
import socket
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from chat import Raw, description, said, talking

from burnish.config import dump, load_recipe
from burnish.images import to_pil
from burnish.portraits.attributes import decode as decode_attributes
from burnish.portraits.captions import describe
from burnish.reward import RewardError, Unanswered, is_deterministic, prepare, score
from burnish.reward_cache import Cached
from burnish.reward_key import keys
from burnish.rewards import VLM, AnswerSimilarity, BERTScore, Grade, Sentences, YesNo
from burnish.rewards.learned import fetch
from burnish.rollout import Samples
from burnish.serving.answers import Answer, Missing
from burnish.serving.chat import decode
from burnish.serving.exchange import LONGEST_WAIT, asked_for
from burnish.serving.wire import WireError
from burnish.tables import ConfigError

GRADE = Grade(question='"{prompt}": {lowest} to {highest}?')


def vlm(*urls: str, reading=GRADE, **settings) -> VLM:
    given = {"timeout": 5.0, "backoff": 0.01, "retries": 2, **settings}
    return VLM(servers=urls, model="seer", reading=reading, **given)


def noisy(count: int, side: int = 8) -> Samples:
    media = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Samples(media, tuple(f"prompt {i}" for i in range(count)), ({},) * count)


def graded(question) -> Raw:
    """The mean of the image's red in ten thousandths: right for no other sample."""
    return said(f"{question.image[0].mean().item() * 10:.4f}")


def red(samples: Samples) -> list[float]:
    """What `graded` says, of the 8 bits that are sent."""
    levels = (samples.media * 255).round() / 255
    return [round(x * 10, 4) for x in levels[:, 0].mean((1, 2)).tolist()]


# --- the question and the way --------------------------------------------------------------------


def test_the_question_is_openais_chat_with_the_very_image(monkeypatch):
    monkeypatch.setenv("OURS", "secret-token")
    samples = noisy(1)
    with talking(graded) as talk:
        score(vlm(talk.url + "/", token_variable="OURS", temperature=0.5), samples)
    (asked,) = talk.questions
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["Authorization"] == "Bearer secret-token"
    assert asked.headers["Content-Type"] == "application/json"
    body = {key: value for key, value in asked.body.items() if key != "messages"}
    assert body == {"model": "seer", "temperature": 0.5, "max_tokens": 16}
    assert asked.text == '"prompt 0": 0 to 10?'
    assert to_pil(asked.image).tobytes() == to_pil(samples.media[0]).tobytes()


@pytest.mark.parametrize("concurrency", [1, 6])
def test_rewards_arrive_right_and_in_order_however_late_each_answer(concurrency):
    samples = noisy(14)

    def late(question):
        time.sleep(
            0.002 * (13 - int(question.prompt.split()[1]))
        )  # the earlier the sample, the later
        return graded(question)

    with talking(late) as one, talking(late) as two:
        found = score(vlm(one.url, two.url, concurrency=concurrency), samples)
    assert found.tolist() == pytest.approx(red(samples), abs=1e-3)  # float32's mean, 4 digits
    assert sorted(q.prompt for talk in (one, two) for q in talk.questions) == sorted(
        samples.prompts
    )
    assert min(len(one.questions), len(two.questions)) > 0


def test_a_prompt_is_no_template():
    samples = replace(noisy(1), prompts=('{highest} {prompt} {x} \\1 "',))
    with talking(graded) as talk:
        score(vlm(talk.url, reading=replace(GRADE, question="{prompt}")), samples)
    assert talk.questions[0].text == samples.prompts[0]


def test_a_description_of_the_portrait_is_rewarded_for_what_the_caption_asks(portraits):
    """The judge sees and describes, and its words are likest, on the whole, to the portrait's own caption."""
    samples, others = portraits
    reading = AnswerSimilarity(measure=Sentences(device="cpu"), expected="{prompt}")
    with talking(lambda question: said(description(question.image))) as talk:
        asker = vlm(talk.url, reading=reading)
        right = score(asker, samples)
        wrong = score(asker, replace(samples, prompts=others))
    expected = Sentences(device="cpu")([description(x) for x in samples.media], samples.prompts)
    # the renderings have 8 bits, so that the server sees them as they are
    assert right.tolist() == pytest.approx(expected, abs=1e-5)
    assert right.mean() > wrong.mean()  # 0.81 and 0.72; of single portraits it is not always so


@pytest.fixture(scope="module")
def portraits() -> tuple[Samples, tuple[str, ...]]:
    """Rendered portraits with captions, and the caption of each one's neighbour."""
    with np.load(Path(__file__).parent / "portraits_renderings.npz") as stored:
        pixels = torch.from_numpy(stored["images"][:8]).permute(0, 3, 1, 2).float() / 255
        attributes = [decode_attributes(codes) for codes in stored["codes"][:8].tolist()]
    captions = tuple(describe(each, random.Random(i)) for i, each in enumerate(attributes))
    media = F.interpolate(pixels, scale_factor=4, mode="nearest")
    return Samples(media, captions, tuple(attributes)), captions[1:] + captions[:1]


# --- servers that fail ---------------------------------------------------------------------------


def first_then(*replies, after=graded):
    """The replies, in turn, and then the right answer."""
    left, lock = list(replies), threading.Lock()

    def answer(question):
        with lock:
            return left.pop(0) if left else after(question)

    return answer


NO_TEXT = {"choices": [{"message": {"role": "assistant", "content": None}}]}
WRONG = {
    "no JSON": Raw(b"hello"),
    "cut JSON": Raw(said("5").body[:-7]),
    "a cut body": Raw(said("5").body[:-7], headers={"Content-Length": str(len(said("5").body))}),
    "a list": Raw(b"[]"),
    "nested": Raw(b"[" * 200_000),
    "no choices": Raw(b"{}"),
    "an error of success": Raw(b'{"error": {"message": "overloaded"}}'),
    "empty choices": Raw(b'{"choices": []}'),
    "choices of text": Raw(b'{"choices": ["5"]}'),
    "no message": Raw(b'{"choices": [{"text": "5"}]}'),
    "no content": Raw(json.dumps(NO_TEXT).encode()),
    "a number for a text": said(5),
    "too large": Raw(b'{"choices": [], "x": "' + b"x" * 2_000_000 + b'"}'),
    "without end": Raw(b"x" * 1000, headers={"Content-Length": "1000000000000"}),
    "NaN": Raw(b'{"choices": NaN}'),
    "busy": Raw(b"", 503),
    "too many": Raw(b'{"error": {"message": "slow down", "type": "rate"}}', 429),
    "moved": Raw(b"", 302, {"Location": "http://127.0.0.1:1/"}),
}


@pytest.mark.parametrize("reply", WRONG.values(), ids=WRONG.keys())
def test_a_failure_is_made_good_by_the_next_answer_or_stops_the_run_by_name(reply):
    samples = noisy(2)
    with talking(first_then(reply)) as talk:
        found = score(vlm(talk.url, concurrency=1), samples)
        assert found.tolist() == pytest.approx(red(samples), abs=1e-3)
        assert len(talk.questions) == 3
    with talking(lambda _: reply) as talk:
        with pytest.raises(RewardError) as caught:
            score(vlm(talk.url, concurrency=1, retries=1), samples[:1])
        assert len(talk.questions) == 2
    for part in ("'VLM'", "sample 0", "'prompt 0'", "attempt 2", talk.url):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message"), [(400, "no images here"), (401, "token_variable"), (404, "/v1")]
)
def test_what_a_server_refuses_is_not_asked_again(status, message):
    told = json.dumps({"error": {"message": "no images here", "type": "invalid", "code": status}})
    with (
        talking(lambda _: Raw(told.encode(), status)) as talk,
        pytest.raises(RewardError, match=f"(?s){status}.*no images here") as caught,
    ):
        score(vlm(talk.url, on_failure="drop"), noisy(1))
    assert message in str(caught.value)
    assert len(talk.questions) == 1


def nowhere() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def test_a_dead_server_is_a_typed_error_and_a_second_server_does_its_work():
    samples = noisy(6)
    with pytest.raises(RewardError, match="ConnectionRefused"):
        score(vlm(nowhere()), samples)
    with pytest.raises(Unanswered, match="6 of 6"):
        score(vlm(nowhere(), on_failure="drop"), samples)
    with talking(graded) as talk:
        found = score(vlm(nowhere(), talk.url), samples)
    assert found.tolist() == pytest.approx(red(samples), abs=1e-3)


@pytest.mark.parametrize("asked", ["0.3", "soon", "date"])
def test_a_server_is_left_alone_for_as_long_as_it_asks(asked):
    """Other samples wait too. A date has whole seconds, so it asks for 1 to 2 of them."""
    at_least = {"0.3": 0.3, "soon": 0.0, "date": 1.0}[asked]
    soon = datetime.now(UTC) + timedelta(seconds=2)
    value = format_datetime(soon, usegmt=True) if asked == "date" else asked
    with talking(first_then(Raw(b"", 429, {"Retry-After": value}))) as talk:
        began = time.monotonic()
        score(vlm(talk.url, concurrency=1, backoff=0.0), noisy(3))
    waited = talk.questions[1].at - talk.questions[0].at
    # a date is made, sent and read within a second, and cut down to its whole seconds
    assert at_least - (0.1 if asked == "date" else 0.0) <= waited <= at_least + 1.5
    assert time.monotonic() - began < 3


def test_a_server_cannot_ask_to_be_left_alone_for_ever():
    assert [asked_for(each) for each in ("1e9", "9" * 5000, "inf")] == [LONGEST_WAIT] * 3
    nothing = (None, "", "nan", "-5", "soon", "Wed, 21 Oct 2015 07:28:00 GMT")
    assert [asked_for(each) for each in nothing] == [0.0] * 6


def test_a_limit_on_requests_holds_for_all_that_are_sent():
    """Turns are at least 0.05 s apart, so the n-th, retries included, is 0.05 (n - 1) s after the first turn
    at the earliest; and that is not much later, since only turns are waited for."""
    samples = noisy(4)
    busy = Raw(b"", 503)
    with talking(first_then(busy, busy)) as talk:
        asker = vlm(talk.url, requests_per_minute=1200.0, concurrency=4, backoff=0.0, retries=5)
        began = time.monotonic()
        score(asker, samples)
        score(replace(asker, timeout=6.0), samples[:2])  # the limit is the servers', not the call's
    times = sorted(question.at for question in talk.questions)
    assert len(times) == 8
    for n, at in enumerate(times):
        assert at - began >= 0.05 * n
    assert times[-1] - began < 0.05 * 7 + 1


# --- in the batch --------------------------------------------------------------------------------


def test_what_has_no_reward_is_dropped_and_counted_if_the_settings_say_so():
    """Sample 1 gets no answer, sample 4 none that can be read. One sample's failures are not the server's:
    it is asked about the others, though all attempts at sample 1 have failed in a row."""

    def answer(question):
        place = int(question.prompt.split()[1])
        return {1: Raw(b"", 500), 4: said("fine!")}.get(place) or graded(question)

    samples = noisy(6)
    with talking(answer) as talk:
        asker = vlm(talk.url, on_failure="drop", retries=1, concurrency=1)
        with pytest.raises(Unanswered, match="2 of 6 samples") as caught:
            score(asker, samples)
        with pytest.raises(RewardError, match="sample 1"):
            score(replace(asker, on_failure="stop"), samples)
    assert caught.value.reward is asker
    kept = [0, 2, 3, 5]
    assert list(caught.value.rewards) == kept
    expected = [red(samples)[i] for i in kept]
    assert list(caught.value.rewards.values()) == pytest.approx(expected, abs=1e-3)


def test_an_answer_that_cannot_be_read_names_sample_prompt_and_answer():
    samples = noisy(3)

    def answer(question):
        return said("I like it!") if question.prompt == "prompt 2" else graded(question)

    with talking(answer) as talk, pytest.raises(RewardError) as caught:
        score(vlm(talk.url), samples)
    for part in ("'VLM'", "sample 2", "'prompt 2'", "'I like it!'", "not one number"):
        assert part in str(caught.value)
    assert not isinstance(caught.value, Unanswered)
    assert len(talk.questions) == 3  # another attempt would answer the same


def test_a_run_is_told_before_it_draws_that_the_model_cannot_be_asked():
    with pytest.raises(RewardError, match=r"cannot be made ready.*ConnectionRefused"):
        prepare(vlm(nowhere(), on_failure="drop"))
    with talking(graded) as talk:
        asker = vlm(talk.url)
        prepare(asker)
        prepare(asker)
    assert len(talk.questions) == 1


# --- the cache -----------------------------------------------------------------------------------


def test_a_cache_asks_once_and_keeps_apart_what_is_asked_otherwise(tmp_path):
    samples = noisy(3)
    with talking(graded) as talk:
        asker = vlm(talk.url)
        cached = Cached(reward=asker, folder=str(tmp_path))
        assert torch.equal(score(cached, samples), score(cached, samples))
        assert len(talk.questions) == 3
    network = tmp_path / "network"
    network.mkdir()
    bert_score = replace(asker, reading=AnswerSimilarity(measure=BERTScore(model=str(network))))
    before = keys(bert_score, samples)[0]
    (network / "config.json").write_text("{}")
    fetch.content.cache_clear()  # which looks once a process
    assert keys(bert_score, samples)[0] != before
    others = [
        replace(asker, model="other"),
        replace(asker, reading=replace(GRADE, highest=9.0)),
        replace(asker, reading=YesNo()),
        replace(asker, reading=AnswerSimilarity()),
        bert_score,
    ]
    others += [replace(asker, servers=("http://another",))]
    found = {keys(each, samples)[0] for each in [asker, *others]}
    assert len(found) == 7


def test_a_cache_keeps_its_answers_when_only_their_way_changes():
    asker = vlm("http://here")
    ways = {
        "requests_per_minute": 60.0,
        "timeout": 1.0,
        "retries": 9,
        "backoff": 9.0,
        "concurrency": 99,
        "token_variable": "OURS",
        "on_failure": "drop",
    }
    assert ways.keys() == VLM.transport
    assert keys(replace(asker, **ways), noisy(2)) == keys(asker, noisy(2))


def test_answers_by_chance_are_not_kept(tmp_path):
    assert is_deterministic(vlm("http://here"))
    assert not is_deterministic(vlm("http://here", temperature=0.1))
    with pytest.raises(ValueError, match="not deterministic"):
        Cached(reward=vlm("http://here", temperature=0.1), folder=str(tmp_path))


# --- readings ------------------------------------------------------------------------------------


def read(reading, *answers: Answer) -> list[float | Missing]:
    return reading.read(answers, ["a cat"] * len(answers))


@pytest.mark.parametrize(
    ("text", "grade"),
    [("7", 7), (" 7.25\n", 7.25), ("0", 0), ("10", 10), ("8.", 8), ("8/10", 8), ("8 / 10.", 8)],
)
def test_a_grade_is_the_number_that_is_said(text, grade):
    assert read(Grade(), Answer(text=text)) == [grade]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "good",
        "7 or 8",
        "7, I think",
        "Score: 7",
        "**7**",
        "7/5",
        "7e0",
        "nan",
        "inf",
        "٧",
        "7..",
        "0x7",
    ],
)
def test_what_is_not_one_number_is_no_grade(text):
    (found,) = read(Grade(), Answer(text=text))
    assert isinstance(found, Missing)
    assert "is not one number" in found.why


@pytest.mark.parametrize("text", ["10.01", "-1", "9" * 5000])
def test_a_number_outside_of_the_range_is_no_grade(text):
    (found,) = read(Grade(), Answer(text=text))
    assert isinstance(found, Missing)
    assert "from 0 to 10" in found.why
    assert len(found.why) < 200


def test_a_grade_that_was_cut_may_have_gone_on():
    (found,) = read(Grade(), Answer(text="1", cut=True))
    assert isinstance(found, Missing)
    assert read(Grade(lowest=-1, highest=1), Answer(text="-0.5")) == [-0.5]


def first(**words: float) -> Answer:
    """An answer whose first token is each word with this probability."""
    return Answer(text="?", first={token: math.log(each) for token, each in words.items()})


def test_yes_and_no_are_weighed_against_each_other():
    found = read(YesNo(), first(Yes=0.6, no=0.2, perhaps=0.2), first(yes=0.9), first(NO=0.9))
    assert found == pytest.approx([0.75, 1.0, 0.0])


def test_capitals_and_spaces_make_no_other_word():
    answer = Answer(
        text="Yes",
        first={
            "Yes": math.log(0.2),
            " yes": math.log(0.1),
            "▁YES": math.log(0.1),
            "Ġyes": math.log(0.05),
            "yesterday": math.log(0.2),
            "No\n": math.log(0.15),
        },
    )
    assert read(replace(YesNo(), least=0.1), answer) == pytest.approx([0.45 / 0.6])
    own = YesNo(yes="Ja", no="nein", least=0.1)
    assert read(own, first(ja=0.3, Nein=0.1, yes=0.6)) == pytest.approx([0.75])


def test_a_model_that_says_neither_has_not_answered():
    (found,) = read(YesNo(), first(yes=0.3, no=0.1, The=0.6))
    assert isinstance(found, Missing)
    assert "0.4 of all probability" in found.why
    (none,) = read(YesNo(), Answer(text="Yes"))
    assert isinstance(none, Missing)
    assert "no log-probabilities" in none.why


def test_yes_no_asks_for_the_first_tokens_probabilities_and_gets_them():
    chances = {"Yes": math.log(0.3), "No": math.log(0.6), "!": math.log(0.1)}
    with talking(lambda _: said("No", finish="length", first=chances)) as talk:
        found = score(vlm(talk.url, reading=YesNo()), noisy(2))
    assert found.tolist() == pytest.approx([1 / 3, 1 / 3])
    asked = {key: talk.questions[0].body[key] for key in ("max_tokens", "logprobs", "top_logprobs")}
    assert asked == {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}


@pytest.mark.parametrize("entry", [{"token": "Yes"}, {"token": "Yes", "logprob": 0.5}, "Yes", None])
def test_log_probabilities_that_are_none_are_a_wrong_answer(entry):
    logprobs = {"content": [{"token": "Yes", "logprob": -1, "top_logprobs": [entry]}]}
    choice = {"message": {"content": "Yes"}, "logprobs": logprobs}
    with pytest.raises(WireError, match="top_logprobs"):
        decode(json.dumps({"choices": [choice]}).encode())


def test_a_cut_description_is_compared_and_an_empty_one_is_none():
    reading = AnswerSimilarity(measure=Sentences(device="cpu"), expected="{prompt}")
    cut, empty, whole = read(
        reading, Answer(text="a cat", cut=True), Answer(text=" \n"), Answer(text="a cat ")
    )
    assert (cut, whole) == (pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))
    assert empty == Missing("the answer is empty")


# --- settings ------------------------------------------------------------------------------------


def test_a_recipe_says_what_is_asked_and_how_it_is_read_and_never_the_token(monkeypatch, tmp_path):
    monkeypatch.setenv("OURS", "secret-token")
    path = tmp_path / "vlm.toml"
    path.write_text(
        """
base = "compressibility"

[reward]
name = "vlm"
servers = ["http://127.0.0.1:8000/v1"]
model = "Qwen/Qwen2.5-VL-3B-Instruct"
token_variable = "OURS"
requests_per_minute = 500.0

[reward.reading]
name = "similarity"
expected = "{prompt}"

[reward.reading.measure]
name = "bert-score"
layer = 18
"""
    )
    recipe = load_recipe(str(path), [])
    reading = AnswerSimilarity(expected="{prompt}", measure=BERTScore(layer=18))
    assert recipe.reward == VLM(
        servers=("http://127.0.0.1:8000/v1",),
        model="Qwen/Qwen2.5-VL-3B-Instruct",
        reading=reading,
        token_variable="OURS",
        requests_per_minute=500.0,
    )
    assert "secret-token" not in dump(recipe) + repr(recipe)
    again = tmp_path / "again.toml"
    again.write_text(dump(recipe))
    assert load_recipe(str(again), []) == recipe
    graded = load_recipe(str(path), ["--reward.reading.name=grade", "--reward.reading.highest=5"])
    assert graded.reward.reading == Grade(highest=5.0)
    with pytest.raises(ConfigError, match=r"reward\.reading\.name = 'yesno'.*'yes-no'"):
        load_recipe(str(path), ["--reward.reading.name=yesno"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"servers": ()}, "servers is empty"),
        ({"servers": ("http://a/v1/chat/completions",)}, "without /chat/completions"),
        ({"servers": ("http://a/v1?key=1",)}, "servers"),
        ({"servers": ("ftp://a",)}, "such as http://127.0.0.1:8000/v1"),
        ({"servers": ("http://me:secret@a/v1",)}, "token_variable"),
        ({"model": ""}, "model is empty"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"requests_per_minute": 0.0}, "requests_per_minute"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0.0}, "timeout"),
    ],
)
def test_settings_that_cannot_be_asked_by_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        VLM(**{"servers": ("http://a/v1",), "model": "seer", **wrong})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("reading", "wrong", "message"),
    [
        (Grade, {"question": "{promt}?"}, r"\{promt\}"),
        (Grade, {"question": " "}, "empty"),
        (Grade, {"lowest": 10.0}, "lowest"),
        (Grade, {"highest": math.inf}, "highest"),
        (Grade, {"max_tokens": 0}, "max_tokens"),
        (YesNo, {"question": "{lowest}?"}, r"\{lowest\}"),
        (YesNo, {"yes": "No"}, "two words"),
        (YesNo, {"least": 0.0}, "least"),
        (AnswerSimilarity, {"expected": "{}"}, r"\{\}"),
        (AnswerSimilarity, {"question": "{answer}"}, r"\{answer\}"),
    ],
)
def test_a_reading_that_cannot_be_meant_is_refused(reading, wrong, message):
    with pytest.raises(ValueError, match=message):
        reading(**wrong)
