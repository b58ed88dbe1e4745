"""The reward for text in images: what was asked for, what was read, and how near they are."""

from __future__ import annotations

import socket
import sys

import drawings
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.config import load_recipe
from burnish.reward import RewardError, check_differentiable, prepare, score
from burnish.reward_cache import Cached
from burnish.rewards import TextRendering
from burnish.rewards.text_rendering import edit_distance, likeness, quoted, reading_order
from burnish.tables import ConfigError

SIDE = 224
"""Enough for letters of 28 pixels; less work than the default."""
HELLO = drawings.text((8, 30, "Hello"))
BLANK = drawings.text()


def read(*images, asked, **settings) -> list[float]:
    known = [{"text": text} for text in asked]
    return score(
        TextRendering(side=SIDE, **settings), drawings.samples(images, metadata=known)
    ).tolist()


# --- the arithmetic


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abc", "", 3),
        ("abc", "abc", 0),
        ("abcd", "acbd", 2),  # no exchange of neighbours in one
        ("flaw", "lawn", 2),
        ("ab", "xaby", 2),
    ],
)
def test_the_edit_distance_is_levenshteins(one, other, distance):
    assert edit_distance(one, other) == distance


WORDS = st.text("ab ", max_size=6)


@given(WORDS, WORDS, WORDS)
def test_the_edit_distance_is_a_metric(a, b, c):
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_a_likeness_is_one_less_the_distance_over_the_longer_text():
    assert likeness("hello", "hello") == 1
    assert likeness("hallo", "hello") == pytest.approx(4 / 5)
    assert likeness("hell", "hello") == pytest.approx(4 / 5)
    assert likeness("hello world", "hello") == pytest.approx(5 / 11)
    assert likeness("", "hello") == 0
    assert likeness("xyz", "hello") == 0


def box(left, top, right, bottom, slant=0):
    return [[left, top], [right, top + slant], [right, bottom + slant], [left, bottom]]


@pytest.mark.parametrize(
    ("boxes", "order"),
    [
        ([], []),
        ([box(0, 40, 9, 60), box(0, 0, 9, 20)], [1, 0]),
        ([box(50, 0, 90, 20), box(0, 3, 40, 23)], [1, 0]),  # one row: the left one first
        ([box(50, 0, 90, 20), box(0, 21, 40, 41)], [0, 1]),  # two rows
        # three in a slanting row, each a little lower than the one on its left
        ([box(80, 12, 99, 32), box(0, 0, 30, 20), box(40, 6, 70, 26)], [1, 2, 0]),
        # two columns of two rows
        (
            [box(0, 0, 9, 9), box(20, 0, 29, 9), box(0, 20, 9, 29), box(20, 20, 29, 29)],
            [0, 1, 2, 3],
        ),
        # rising
        ([box(0, 10, 40, 30, -8), box(50, 0, 90, 20, -8)], [0, 1]),
    ],
)
def test_lines_are_read_row_by_row_from_the_left(boxes, order):
    assert reading_order(boxes) == order


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign that says "open"', "open"),
        ('a sign "OPEN" above "24 hours"', "OPEN 24 hours"),
        ("a sign \u201cOpen\u201d", "Open"),
        ('a mug with "it\'s me"', "it's me"),
        ("a sign that says open", None),
        ("it's a 6\" nail", None),
        ('nothing "" said', ""),
    ],
)
def test_what_is_asked_for_stands_in_double_quotes(prompt, text):
    assert quoted(prompt) == text


# --- reading


def test_what_is_drawn_is_read_and_what_is_not_costs_its_share():
    assert read(HELLO, HELLO, HELLO, asked=["Hello", "Hells", "Hello you"]) == pytest.approx(
        [1, 4 / 5, 5 / 8]
    )


def test_an_image_without_text_has_the_reward_0():
    noise = torch.rand(3, 96, 160, generator=torch.Generator().manual_seed(0))
    assert read(BLANK, noise, asked=["Hello", "Hello"]) == [0, 0]


def test_lines_and_columns_are_read_in_order():
    lines = drawings.text((8, 4, "GRAND"), (8, 50, "OPENING"), width=256)
    columns = drawings.text((180, 8, "two"), (8, 14, "one"), (8, 60, "three"), width=256)
    assert read(lines, columns, asked=["grand opening", "one two three"]) == [1, 1]


def test_case_and_spaces_count_if_they_are_asked_to():
    two = drawings.text((8, 4, "Grand"), (8, 50, "Opening"))
    asked = ["grandopening", "GRAND\n OPENING", "Grand  Opening "]
    assert read(two, two, two, asked=asked) == [1, 1, 1]
    assert read(two, two, two, asked=asked, match_spaces=True) == pytest.approx([12 / 13, 1, 1])
    # 10 of 12 letters are small in the image
    assert read(two, two, two, asked=asked, match_case=True) == pytest.approx(
        [10 / 12, 1 - 10 / 12, 1]
    )


def test_full_width_letters_are_letters():
    assert read(HELLO, asked=["\uff28\uff45\uff4c\uff4c\uff4f"], match_case=True) == [1]


def test_lines_that_were_read_with_less_confidence_are_left_out():
    assert read(HELLO, asked=["Hello"], confidence=1.0) == [0]


def test_the_metadata_go_before_the_prompt_and_the_prompt_serves_without_them():
    both = drawings.samples(
        [HELLO, HELLO, HELLO],
        ['a sign "Bonjour"', 'a sign "Hello"', "a sign"],
        [{"text": "Hello"}, {}, {"text": "Hello"}],
    )
    assert score(TextRendering(side=SIDE), both).tolist() == [1, 1, 1]


def test_nothing_is_printed_and_nothing_is_fetched(capfd, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a connection is opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    reward = TextRendering(side=SIDE + 32)  # read anew, not from the cache of another test
    prepare(reward)
    score(reward, drawings.samples([HELLO, BLANK], ['"Hello"'] * 2))
    assert capfd.readouterr() == ("", "")


# --- what goes wrong


@pytest.mark.parametrize(
    ("prompt", "metadata", "told"),
    [
        ("a sign", {}, "asks for no text.*metadata under 'text'.*double quotes"),
        ('a "sign"', {"text": 7}, "metadata text = 7, expected a text"),
        ('a "sign"', {"text": " "}, "asks for the text ' ', which is empty"),
        ('a "" sign', {}, "asks for the text '', which is empty"),
    ],
)
def test_a_sample_that_asks_for_no_text_is_named_with_its_prompt(prompt, metadata, told):
    wrong = drawings.samples([HELLO, BLANK], ['"Hello"', prompt], [{}, metadata])
    with pytest.raises(RewardError, match=f"'TextRendering'.*sample 1 .*{prompt}.*{told}"):
        score(TextRendering(side=SIDE), wrong)


def test_a_cache_blames_the_right_sample(tmp_path):
    cached = Cached(reward=TextRendering(side=SIDE), folder=str(tmp_path))
    known = drawings.samples([HELLO], ['"Hello"'])
    assert score(cached, known).tolist() == score(cached, known).tolist() == [1]
    assert cached.counts.take() == {"computed": 1, "answered": 1}
    with pytest.raises(RewardError, match=r"sample 1 \(prompt: 'none'\)"):
        score(cached, drawings.samples([HELLO, BLANK], ['"Hello"', "none"]))


@pytest.mark.parametrize("package", ["rapidocr", "onnxruntime"])
def test_a_missing_package_is_told_with_how_to_get_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RewardError, match=rf"needs the package {package}.*burnish\[ocr\]"):
        prepare(TextRendering(side=99))


def test_settings_that_cannot_be_are_refused():
    for key, value in (("side", 16), ("confidence", 1.5)):
        with pytest.raises(ConfigError, match=rf"reward\.{key} = {value}, expected"):
            load_recipe(
                "compressibility", ["--reward.name=text-rendering", f"--reward.{key}={value}"]
            )


def test_it_has_no_gradient_and_says_so():
    assert not TextRendering.differentiable
    with pytest.raises(RewardError, match="no gradient"):
        check_differentiable(TextRendering(side=SIDE), drawings.samples([HELLO], ['"Hello"']))
