"""The embedded model's data, captions, judge and pipeline folder."""

from __future__ import annotations

import ast
import itertools
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

import burnish
import burnish.portraits.attributes as attributes_module
import burnish.portraits.captions as captions_module
from burnish.portraits import FLOW_PIPELINE, PIPELINE
from burnish.portraits.attributes import (
    HAIR_SHOWING_EARS,
    HAIR_UNDER_HAT,
    HELD_OUT,
    SCHEMA,
    attribute,
    decode,
    draw_attributes,
    encode,
    is_held_out,
)
from burnish.portraits.captions import (
    OPENINGS,
    caption,
    describe,
    describe_tersely,
    draw_prompt,
    mention,
    portrait_prompts,
)
from burnish.portraits.judge import WEIGHTS, load_judge
from burnish.portraits.prompts import Portraits
from burnish.prompts import Prompt
from burnish.randomness import Randomness

RENDERINGS = Path(__file__).parent / "portraits_renderings.npz"
"""400 renderings with held-out colour pairs, written by scripts/portraits/render.py."""

SPLITS = ("train", "held-out")


def draws(split: str, num: int = 2000) -> list[dict[str, str]]:
    rng = random.Random(0)
    return [draw_attributes(rng, split) for _ in range(num)]


def renderings() -> tuple[Tensor, list[dict[str, str]]]:
    with np.load(RENDERINGS) as stored:
        grid = torch.from_numpy(stored["images"]).permute(0, 3, 1, 2).float() / 255
        codes = stored["codes"].tolist()
    return F.interpolate(grid, scale_factor=4, mode="nearest"), [decode(c) for c in codes]


def test_training_never_shows_a_held_out_pair_and_held_out_always_does():
    assert not any(is_held_out(a) for a in draws("train"))
    assert all(is_held_out(a) for a in draws("held-out"))


def test_every_held_out_pair_names_real_colours_and_leaves_each_colour_to_train_on():
    for hair, shirt in HELD_OUT:
        assert hair in attribute("hair_color").values
        assert shirt in attribute("shirt_color").values
    seen = {(name, a[name]) for a in draws("train") for name in a}
    assert seen == {(a.name, value) for a in SCHEMA for value in a.values}


@pytest.mark.parametrize("split", SPLITS)
def test_a_portrait_claims_only_what_it_can_show(split):
    for a in draws(split):
        assert ("hair_color" in a) == (a["hair"] != "bald")
        assert a["hat"] == "none" or a["hair"] in HAIR_UNDER_HAT
        assert a["earrings"] == "none" or a["hair"] in HAIR_SHOWING_EARS


def test_decode_inverts_encode():
    assert all(decode(encode(a)) == a for a in draws("train", 200))


def test_unknown_names_and_values_are_refused():
    with pytest.raises(ValueError, match="no attribute is called 'nose'"):
        encode({"nose": "long"})
    with pytest.raises(ValueError, match="hat is 'pink'; expected one of: none, red"):
        encode({"hat": "pink"})
    with pytest.raises(ValueError, match='expected "train" or "held-out"'):
        draw_attributes(random.Random(0), "test")


def test_prompts_are_a_function_of_the_seed():
    first, again, other = (
        list(itertools.islice(portrait_prompts("train", seed), 20)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_caption_has_the_words_of_what_it_mentions_and_of_nothing_else():
    """A colour word occurs in the text exactly as often as the mentioned attributes have it."""
    rng = random.Random(0)
    colors = {"red", "blue", "green", "yellow", "purple", "black", "pink", "white", "brown"}
    for a in draws("train", 1000):
        text, mentioned = caption(a, rng)
        assert mentioned.items() <= a.items()
        words = text.replace(",", "").split()
        for color in colors:
            assert words.count(color) == list(mentioned.values()).count(color), (text, mentioned)


@pytest.mark.parametrize(
    ("mentioned", "texts"),
    [
        ({"hair": "bald"}, {"a bald person", "no hair"}),
        ({"hat": "none"}, {"a person with no hat", "no hat"}),
        ({"hair_color": "red"}, {"a person with red hair", "red hair"}),
        ({"hair": "curly"}, {"a person with curly hair", "a person with curls", "curly hair", "curls"}),
    ],
)  # fmt: skip
def test_small_captions_are_exactly_these(mentioned, texts):
    rng = random.Random(0)
    said = {describe(mentioned, rng) for _ in range(200)}
    ends = {max((t for t in texts if s.endswith(t)), key=len) for s in said}
    assert ends == texts


def test_captions_vary():
    a = draws("train", 1)[0]
    rng = random.Random(0)
    assert len({describe(a, rng) for _ in range(100)}) > 90


def test_a_terse_caption_lists_every_attribute_and_no_more():
    mentioned = {"hair": "long", "hair_color": "red", "hat": "none", "shirt_pattern": "striped"}
    rng = random.Random(0)
    said = {describe_tersely(mentioned, rng) for _ in range(200)}
    parts = {"hair long", "hair red", "no hat", "shirt striped"}
    assert all(set(text.split(", ")) == parts for text in said)
    assert len(said) == 24  # all orders


def test_terse_prompts_ask_for_what_they_mention():
    source = Portraits(terse=True, count=3)
    for prompt in (*source.draw(5, Randomness(0)), *source.held_out(5)):
        assert len(prompt.text.split(", ")) == len(prompt.metadata)
        assert not prompt.text.startswith(OPENINGS[:-1])


def test_held_out_prompts_always_mention_both_colours():
    rng = random.Random(0)
    assert all(is_held_out(draw_prompt(rng, "held-out")[1]) for _ in range(500))


def test_mentions_are_never_empty():
    rng = random.Random(0)
    assert all(mention({"hat": "none"}, rng) for _ in range(50))


@pytest.mark.parametrize("module", [attributes_module, captions_module])
def test_attributes_and_captions_import_only_the_standard_library_and_each_other(module):
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    }
    ours = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert ours <= {"burnish.portraits.attributes"}


def test_judge_reads_renderings_rightly():
    images, attributes = renderings()
    accuracy = load_judge().accuracy(images, attributes)
    assert accuracy.shape == (len(images),)
    assert accuracy.mean() >= 0.97


def test_judge_counts_only_what_is_mentioned():
    images, attributes = renderings()
    few = [{"hat": a["hat"], "skin": a["skin"]} for a in attributes]
    assert set(load_judge().accuracy(images, few).tolist()) <= {0.0, 0.5, 1.0}


def test_judge_finds_a_wrong_description_wrong():
    images, attributes = renderings()
    turned = [{"mouth": {"smiling": "frowning"}.get(a["mouth"], "smiling")} for a in attributes]
    assert load_judge().accuracy(images, turned).mean() <= 0.03


def test_log_likelihood_is_the_mean_log_probability_and_differentiable():
    images, attributes = renderings()
    images = images[:4].requires_grad_()
    judge = load_judge()
    mentioned = [{"hat": a["hat"], "mouth": a["mouth"]} for a in attributes[:4]]
    found = judge.log_likelihood(images, mentioned)
    names = [a.name for a in SCHEMA]
    logits = judge(images)
    expected = [
        torch.stack(
            [logits[names.index(n)][row].log_softmax(-1)[attribute(n).values.index(v)] for n, v in m.items()]
        ).mean()
        for row, m in enumerate(mentioned)
    ]  # fmt: skip
    torch.testing.assert_close(found, torch.stack(expected))
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert gradient.flatten(1).norm(dim=1).min() > 0


def test_judge_refuses_what_it_cannot_score():
    images, attributes = renderings()
    with pytest.raises(ValueError, match="2 descriptions for 3 images"):
        load_judge().accuracy(images[:3], attributes[:2])
    with pytest.raises(ValueError, match="mentions no attribute"):
        load_judge().accuracy(images[:1], [{}])


@pytest.fixture(scope="module")
def pipeline():
    diffusers = pytest.importorskip("diffusers")
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(PIPELINE)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_folder_holds_stable_diffusions_own_classes(pipeline):
    kinds = {name: type(part).__name__ for name, part in pipeline.components.items() if part}
    assert kinds == {
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "scheduler": "DDIMScheduler",
    }


@pytest.mark.parametrize(
    "folder",
    [
        PIPELINE / "text_encoder",
        FLOW_PIPELINE / "text_encoder",
        FLOW_PIPELINE / "text_encoder_2",
    ],
)
def test_text_weights_have_the_names_that_transformers_4_reads(folder):
    """Transformers 5 reads names with and without the prefix; 4 takes random weights without it."""
    with safe_open(folder / "model.safetensors", "pt") as stored:
        names = set(stored.keys()) - {"text_projection.weight"}
    assert all(name.startswith("text_model.") for name in names)


def test_every_caption_fits_the_tokenizer_and_is_one_token_a_word(pipeline):
    for split in SPLITS:
        for text, _ in itertools.islice(portrait_prompts(split, 3), 2000):
            ids = pipeline.tokenizer(text).input_ids
            assert len(ids) == len(text.replace(",", " ,").split()) + 2
            assert len(ids) <= pipeline.tokenizer.model_max_length


def test_the_vae_reconstructs_renderings(pipeline):
    images, _ = renderings()
    x = images[:50] * 2 - 1
    with torch.no_grad():
        decoded = pipeline.vae.decode(pipeline.vae.encode(x).latent_dist.mode()).sample
    assert (decoded - x).abs().mean() < 0.05


def test_latents_have_mean_0_and_variance_1(pipeline):
    """Within 0.1: the latents were standardised on portraits with other colour pairs."""
    images, _ = renderings()
    with torch.no_grad():
        latents = pipeline.vae.encode(images[:200] * 2 - 1).latent_dist.mode()
    latents = latents * pipeline.vae.config.scaling_factor
    assert latents.mean((0, 2, 3)).abs().max() < 0.1
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.1


def test_samples_follow_held_out_captions(pipeline):
    """Over 16 images with some 7 mentions each the standard error is about 2%."""
    prompts = list(itertools.islice(portrait_prompts("held-out", 4), 16))
    images = pipeline(
        [text for text, _ in prompts],
        num_inference_steps=12,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    accuracy = load_judge().accuracy(images, [mentioned for _, mentioned in prompts])
    assert accuracy.mean() >= 0.80


def test_the_flow_folder_holds_stable_diffusion_3s_own_classes_and_draws_as_burnish_does():
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
        FLOW_PIPELINE, text_encoder_3=None, tokenizer_3=None
    )
    pipeline.set_progress_bar_config(disable=True)
    kinds = {name: type(part).__name__ for name, part in pipeline.components.items() if part}
    assert kinds == {
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "transformer": "SD3Transformer2DModel",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    }
    text = "a person with long red hair and a blue hat"
    policy = burnish.Policy(
        burnish.load("portraits-flow", guidance=2.0), burnish.FlowODE(num_steps=3)
    )
    noise = Randomness(0).at("sample").normal([0], (4, *policy.denoiser.event_shape))[:, 0]
    theirs = pipeline(
        text, latents=noise, num_inference_steps=3, guidance_scale=2.0, output_type="pt"
    ).images
    assert (burnish.sample(policy, [text]).media - theirs).abs().max() < 1e-4


def test_samples_of_the_flow_follow_held_out_captions():
    """As above; at 20 steps the card says 96%."""
    prompts = [Prompt(*each) for each in itertools.islice(portrait_prompts("held-out", 4), 16)]
    policy = burnish.Policy(
        burnish.load("portraits-flow", guidance=2.0), burnish.FlowODE(num_steps=12)
    )
    samples = burnish.sample(policy, prompts)
    assert load_judge().accuracy(samples.media, list(samples.metadata)).mean() >= 0.85


@pytest.mark.parametrize("folder", [PIPELINE, FLOW_PIPELINE])
def test_model_and_judge_are_small(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in [*files, WEIGHTS]) <= 25e6
