"""Learned rewards are the published arithmetic: recomputed by hand on tiny networks of the real formats."""

from __future__ import annotations

import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny_rewards
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from burnish import experiment
from burnish.animals import Animals
from burnish.config import load_recipe
from burnish.folder import RunFolder
from burnish.images import to_pil
from burnish.recipe import NAMES, Single
from burnish.reward import Prepares, RewardError, check_differentiable, prepare, score
from burnish.reward_cache import Cached
from burnish.reward_key import keys
from burnish.rewards import Aesthetic, CLIPScore, HPSv2, ImageReward, PickScore
from burnish.rewards.learned import fetch, pixels
from burnish.rewards.learned.blip import networks
from burnish.rewards.learned.head import head_of
from burnish.rollout import Samples

LEARNED = ("aesthetic", "clip-score", "pick-score", "hps-v2", "image-reward")
PROMPTS = ("a person with red hair", "a portrait", "blue hair", "a portrait", "with a")
"""Of different lengths, so that texts are padded; one is there twice."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("learned")


@pytest.fixture(scope="module")
def rewards(folder) -> dict[str, Any]:
    return tiny_rewards.everything(folder)


@pytest.fixture
def samples() -> Samples:
    """Larger than what the networks see, and not square."""
    media = torch.rand(5, 3, 20, 26, generator=torch.Generator().manual_seed(0))
    return Samples(media, PROMPTS, ({},) * 5)


# --- what the networks see ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30, 30), (12, 12), (7, 7), (31, 20), (20, 33), (15, 40)])
def test_cropped_images_are_those_of_clips_processor_but_for_its_rounding(shape):
    levels = torch.randint(256, (2, 3, *shape), generator=torch.Generator().manual_seed(3))
    media = levels.float() / 255
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12}
    )
    theirs = processor([to_pil(image) for image in media], return_tensors="pt").pixel_values
    std = torch.tensor(pixels.STD).reshape(3, 1, 1)
    away = ((pixels.cropped(media, 12) - theirs) * std * 255).abs()
    # Pillow rounds after its first pass, which the second one weighs by weights that sum to 1 and whose
    # sizes sum to 1.25 at most, and at the end: 0.5 * 1.25 + 0.5 levels, and a little for fixed point
    assert away.max() < 1.2
    assert away.mean() < 0.4


def test_cropping_is_differentiable_to_every_pixel_that_is_seen():
    media = 0.3 + 0.4 * torch.rand(1, 3, 6, 8, dtype=torch.float64)  # no overshoot is clipped
    media.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pixels.cropped(x, 4), media)


def test_a_letterbox_holds_the_whole_image_between_black_bars():
    media = torch.rand(1, 3, 10, 20, generator=torch.Generator().manual_seed(1))
    seen = pixels.letterboxed(media, 10)
    std, mean = (torch.tensor(each).reshape(3, 1, 1) for each in (pixels.STD, pixels.MEAN))
    levels = seen * std + mean
    assert levels[..., :2, :].abs().max() < 1e-6
    assert levels[..., 7:, :].abs().max() < 1e-6
    inside = F.interpolate(media, (5, 10), mode="bicubic", antialias=True)
    torch.testing.assert_close(levels[..., 2:7, :], inside)


def test_a_square_image_fills_the_letterbox():
    media = 0.3 + 0.4 * torch.rand(2, 3, 20, 20)
    torch.testing.assert_close(pixels.letterboxed(media, 12), pixels.cropped(media, 12))


# --- the arithmetic, by hand -------------------------------------------------------------------------


def by_clip(name: str, samples: Samples) -> Any:
    """What the model's own forward pass makes of the images and prompts."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(name)(
        list(samples.prompts), padding=True, return_tensors="pt"
    )
    network = CLIPModel.from_pretrained(name).eval()
    with torch.no_grad():
        return network(**tokens, pixel_values=pixels.cropped(samples.media, tiny_rewards.SIZE))


def test_aesthetic_is_the_heads_affine_function_of_the_normalised_embedding(rewards, samples):
    reward = rewards["aesthetic"]
    weights = load_file(reward.head)
    value = by_clip(reward.model, samples).image_embeds.double().T
    for i in (0, 2, 4, 6, 7):
        weight, bias = (weights[f"layers.{i}.{part}"].double() for part in ("weight", "bias"))
        value = weight @ value + bias[:, None]
    torch.testing.assert_close(score(reward, samples), value[0].float())


def test_clip_score_is_two_and_a_half_times_the_cosine(rewards, samples):
    reward = rewards["clip-score"]
    found = by_clip(reward.model, samples)
    cosine = (found.image_embeds * found.text_embeds).sum(-1)
    assert (cosine > 0).any()
    torch.testing.assert_close(score(reward, samples), 2.5 * cosine.clamp(min=0))
    hundred = score(replace(reward, weight=100.0), samples)
    torch.testing.assert_close(hundred, 100 * cosine.clamp(min=0))


def test_clip_score_is_zero_where_image_and_text_are_opposed(rewards, samples, folder):
    reward = rewards["clip-score"]
    turned = replace(reward, model=tiny_rewards.clip(folder / "turned", turned=True))
    either = torch.stack([score(reward, samples), score(turned, samples)])
    assert (either.min(0).values == 0).all()
    assert (either.max(0).values > 0).all()


def test_pick_score_is_the_logit_of_image_and_prompt(rewards, samples):
    logits = by_clip(rewards["pick-score"].model, samples).logits_per_image
    torch.testing.assert_close(score(rewards["pick-score"], samples), logits.diagonal())


def test_hps_is_the_cosine_that_open_clips_own_forward_pass_gives(rewards, samples):
    reward = rewards["hps-v2"]
    weights = torch.load(Path(reward.weights, reward.file), weights_only=True)["state_dict"]
    seen = pixels.letterboxed(samples.media, tiny_rewards.SIZE)
    ids = reward._towers().tokenizer(list(samples.prompts), padding=True, return_tensors="pt")
    image, text = open_clip_image(weights, seen), open_clip_text(weights, ids.input_ids)
    cosine = F.cosine_similarity(image, text)
    assert cosine.std() > 0.1  # the samples differ by far more than the tolerance
    torch.testing.assert_close(score(reward, samples), cosine)


def open_clip_image(weights: dict[str, Tensor], seen: Tensor) -> Tensor:
    x = F.conv2d(seen, weights["visual.conv1.weight"], stride=4).flatten(2).mT
    first = weights["visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + weights["visual.positional_embedding"]
    x = normed(weights, "visual.ln_pre", x)
    for i in range(2):
        x = open_clip_block(weights, f"visual.transformer.resblocks.{i}.", x, None)
    return normed(weights, "visual.ln_post", x[:, 0]) @ weights["visual.proj"]


def open_clip_text(weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    length = ids.shape[1]
    x = weights["token_embedding.weight"][ids] + weights["positional_embedding"][:length]
    later = torch.full((length, length), -math.inf).triu(1)
    for i in range(2):
        x = open_clip_block(weights, f"transformer.resblocks.{i}.", x, later)
    last = normed(weights, "ln_final", x)[torch.arange(len(x)), ids.argmax(1)]
    return last @ weights["text_projection"]


def open_clip_block(
    weights: dict[str, Tensor], prefix: str, x: Tensor, mask: Tensor | None
) -> Tensor:
    own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    attention = nn.MultiheadAttention(x.shape[-1], 2, batch_first=True)
    attention.load_state_dict({n[5:]: w for n, w in own.items() if n.startswith("attn.")})
    y = normed(own, "ln_1", x)
    with torch.no_grad():
        x = x + attention(y, y, y, attn_mask=mask)[0]
    return x + linear(own, "mlp.c_proj", F.gelu(linear(own, "mlp.c_fc", normed(own, "ln_2", x))))


def test_image_reward_is_what_blips_own_forward_pass_gives(rewards, samples):
    reward = rewards["image-reward"]
    weights = torch.load(Path(reward.weights, reward.file), weights_only=True)
    seen = pixels.cropped(samples.media, tiny_rewards.SIZE)
    tokens = reward._scorer().tokenizer(list(samples.prompts), padding="max_length", max_length=35)
    read = blip_text(weights, tokens, blip_image(weights, seen))
    for i in (0, 2, 4, 6, 7):
        read = linear(weights, f"mlp.layers.{i}", read)
    expected = (read[:, 0] - 0.16717362830052426) / 1.0333394966054072
    torch.testing.assert_close(score(reward, samples), expected)
    assert expected.std() > 1e-3


def blip_image(weights: dict[str, Tensor], seen: Tensor) -> Tensor:
    own = {n.removeprefix("blip.visual_encoder."): w for n, w in weights.items()}
    patches = F.conv2d(seen, own["patch_embed.proj.weight"], own["patch_embed.proj.bias"], stride=4)
    first = own["cls_token"].expand(len(seen), 1, -1)
    x = torch.cat([first, patches.flatten(2).mT], 1) + own["pos_embed"]
    for i in range(2):
        block = f"blocks.{i}."
        qkv = linear(own, f"{block}attn.qkv", normed(own, f"{block}norm1", x, 1e-6))
        x = x + linear(own, f"{block}attn.proj", attended(*qkv.chunk(3, -1), None))
        y = linear(own, f"{block}mlp.fc1", normed(own, f"{block}norm2", x, 1e-6))
        x = x + linear(own, f"{block}mlp.fc2", F.gelu(y))
    return normed(own, "norm", x, 1e-6)


def blip_text(weights: dict[str, Tensor], tokens: Any, image: Tensor) -> Tensor:
    """BERT with an attention to the image between its own and the feed-forward layers; of the first token."""
    own = {n.removeprefix("blip.text_encoder."): w for n, w in weights.items()}
    ids, present = torch.tensor(tokens.input_ids), torch.tensor(tokens.attention_mask)
    x = own["embeddings.word_embeddings.weight"][ids]
    x = x + own["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = normed(own, "embeddings.LayerNorm", x, 1e-12)
    for i in range(2):
        layer = f"encoder.layer.{i}."
        x = bert_attention(own, f"{layer}attention.", x, x, present[:, None, None].bool())
        x = bert_attention(own, f"{layer}crossattention.", x, image, None)
        y = linear(
            own, f"{layer}output.dense", F.gelu(linear(own, f"{layer}intermediate.dense", x))
        )
        x = normed(own, f"{layer}output.LayerNorm", x + y, 1e-12)
    return x[:, 0]


def bert_attention(
    own: dict[str, Tensor], prefix: str, x: Tensor, seen: Tensor, mask: Tensor | None
) -> Tensor:
    query = linear(own, f"{prefix}self.query", x)
    key, value = (linear(own, f"{prefix}self.{part}", seen) for part in ("key", "value"))
    y = linear(own, f"{prefix}output.dense", attended(query, key, value, mask))
    return normed(own, f"{prefix}output.LayerNorm", x + y, 1e-12)


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """With two heads."""
    split = [x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (query, key, value)]
    return F.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(2)


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def normed(weights: dict[str, Tensor], name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def test_image_reward_reads_thirty_five_tokens(rewards, samples):
    one = samples[:1]
    long = replace(one, prompts=(" ".join(["red"] * 33),))
    longer = replace(one, prompts=(" ".join(["red"] * 33 + ["hair"]),))
    other = replace(one, prompts=(" ".join(["red"] * 32 + ["hair"]),))
    first, second, third = (score(rewards["image-reward"], x) for x in (long, longer, other))
    assert torch.equal(first, second)
    assert (first != third).all()


# --- what holds for all ------------------------------------------------------------------------------


def test_every_reward_that_needs_weights_is_tested_here():
    ready = {NAMES[each] for each in get_args(Single) if issubclass(each, Prepares)}
    elsewhere = {"vlm", "text-rendering", "safety", "quality", "preference"}
    assert ready == {*LEARNED, *elsewhere}


@pytest.mark.parametrize("name", LEARNED)
def test_the_gradient_reaches_the_image_and_is_the_rewards_slope(name, rewards, samples):
    reward = replace(rewards[name], batch=2)
    assert reward.differentiable
    check_differentiable(reward, samples)
    media = samples.media.clone().requires_grad_()
    found = reward(replace(samples, media=media))
    (slope,) = torch.autograd.grad(found.sum(), media)
    length = slope.flatten(1).norm(dim=1)
    moving = length > 0  # CLIPScore's is 0 where the cosine is negative
    assert moving.any()
    step = 0.02 / length.clamp(min=1e-12).reshape(-1, 1, 1, 1) * slope
    # a central difference along the slope is its length, up to the third derivative times the step
    # squared, and up to float32's 1e-6 of the reward over the step
    risen = [score(reward, replace(samples, media=samples.media + sign * step)) for sign in (1, -1)]
    rise = (risen[0] - risen[1]) / 0.04
    torch.testing.assert_close(rise[moving], length[moving], rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("name", LEARNED)
def test_chunks_and_order_change_nothing(name, rewards, samples):
    reward = rewards[name]
    whole = score(reward, samples)
    assert len(set(whole.tolist())) > 1
    order = [3, 0, 4, 2, 1]
    for batch in (1, 2, 5):
        chunked = score(replace(reward, batch=batch), samples.pick(order))
        torch.testing.assert_close(chunked, whole[order])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", LEARNED)
def test_half_precision_is_the_networks_alone(name, dtype, rewards, samples):
    reward = replace(rewards[name], dtype=dtype)
    found, whole = reward(samples), score(rewards[name], samples)
    assert found.dtype == torch.float32
    # some ten layers, each of which rounds to 8 or 11 bits; the scores are sums of what they give
    eps, scale = torch.finfo(getattr(torch, dtype)).eps, whole.abs().max().item()
    torch.testing.assert_close(found, whole, rtol=0, atol=10 * eps * max(scale, 1))
    assert (found != whole).any()


def test_heads_and_scale_stay_in_float32(rewards, samples):
    score(replace(rewards["aesthetic"], dtype="bfloat16"), samples)
    _, head = replace(rewards["aesthetic"], dtype="bfloat16")._networks()
    blip = replace(rewards["image-reward"], dtype="bfloat16")._scorer()
    assert {x.dtype for each in (head, blip.head) for x in each.parameters()} == {torch.float32}
    assert {x.dtype for x in blip.text.parameters()} == {torch.bfloat16}
    exact = rewards["pick-score"]._towers().scale
    assert replace(rewards["pick-score"], dtype="bfloat16")._towers().scale == exact


@pytest.mark.parametrize("name", LEARNED)
def test_networks_are_loaded_once_frozen_and_without_dropout(name, rewards):
    reward = rewards[name]
    prepare(reward)
    before = loaded(reward)
    prepare(replace(reward, batch=3))
    assert all(a is b for a, b in zip(before, loaded(replace(reward, batch=3)), strict=True))
    assert not any(x.requires_grad for network in before for x in network.parameters())
    assert not any(module.training for network in before for module in network.modules())


def loaded(reward: Any) -> list[nn.Module]:
    if isinstance(reward, Aesthetic):
        return list(reward._networks())
    if isinstance(reward, ImageReward):
        scorer = reward._scorer()
        return [scorer.vision, scorer.text, scorer.head]
    return [reward._towers().network]


def test_the_recipe_of_the_docs_can_be_read(tmp_path):
    page = Path(__file__).parents[2] / "docs/rewards-learned.md"
    (text,) = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "aesthetic.toml").write_text(text, encoding="utf-8")
    recipe = load_recipe(str(tmp_path / "aesthetic.toml"))
    assert (recipe.reward, recipe.prompts) == (Aesthetic(), Animals())


# --- weights that a cache's key knows ---------------------------------------------------------------


def places(reward: Any) -> list[tuple[str, str]]:
    """The settings that name folders or files, with a file that is there."""
    fields = ("model", "weights", "architecture", "head", "tokenizer")
    named = [(each, Path(getattr(reward, each))) for each in fields if hasattr(reward, each)]
    return [(each, str(next(path.iterdir()) if path.is_dir() else path)) for each, path in named]


@pytest.mark.parametrize("name", LEARNED)
def test_another_content_of_any_file_is_another_key(name, rewards, samples, tmp_path):
    reward = rewards[name]
    before = keys(reward, samples)
    for field, path in places(reward):
        whole = Path(getattr(reward, field))
        moved = tmp_path / field
        if whole.is_dir():
            shutil.copytree(whole, moved)
        else:
            shutil.copy(whole, moved)
        turned = replace(reward, **{field: str(moved)})
        assert turned.content() == reward.content()  # wherever it is
        fetch.content.cache_clear()
        changed = moved / Path(path).name if moved.is_dir() else moved
        changed.write_bytes(changed.read_bytes() + b" ")
        assert turned.content() != reward.content()
        assert keys(turned, samples)[0] != before[0]
    fetch.content.cache_clear()


def test_a_repository_is_known_by_the_commit_that_its_branch_stands_for(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--an--author"
    (repository / "refs").mkdir(parents=True)
    found = []
    for commit in ("a" * 40, "b" * 40):
        for inside in ("config.json", "inner/head.pt"):
            path = repository / "snapshots" / commit / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        (repository / "refs/main").write_text(commit)
        fetch.content.cache_clear()
        found.append(
            [fetch.content("an/author", each, "main") for each in ("config.json", "inner/head.pt")]
        )
    assert found == [["a" * 40] * 2, ["b" * 40] * 2]
    assert fetch.content("an/author", "config.json", "a" * 40) == "a" * 40


@pytest.mark.parametrize("name", LEARNED)
def test_a_cached_reward_answers_what_the_reward_does(name, rewards, samples, tmp_path):
    cached = Cached(reward=rewards[name], folder=str(tmp_path))
    prepare(cached)
    values = score(rewards[name], samples)
    assert torch.equal(score(cached, samples), values)
    assert torch.equal(score(cached, samples), values)
    assert cached.counts.take() == {"computed": 5, "answered": 5}


# --- weights that cannot be had ----------------------------------------------------------------------


def nowhere(name: str) -> dict[str, Any]:
    """Settings of each reward with something that is nowhere; this is no name that the hub could have."""
    lost = "no/such model"
    return {
        "aesthetic": Aesthetic(model=lost),
        "clip-score": CLIPScore(model=lost),
        "pick-score": PickScore(model=lost),
        "hps-v2": HPSv2(weights=lost, architecture=lost),
        "image-reward": ImageReward(weights=lost),
    }[name]


@pytest.mark.parametrize("name", LEARNED)
def test_missing_weights_are_told_with_the_reward_and_what_to_do(name):
    reward = nowhere(name)
    with pytest.raises(RewardError) as caught:
        prepare(reward)
    for part in (f"'{type(reward).__name__}'", "no/such model", "hf auth login", "hf download"):
        assert part in str(caught.value)


@pytest.mark.parametrize("field", ["reward", "evaluation.watched"])
def test_a_run_tells_of_them_before_its_first_evaluation(field, tmp_path):
    overrides = [f"--{field}.name=clip-score", f"--{field}.model=no/such model"]
    recipe = load_recipe("compressibility", [*overrides, "--model.device=cpu"])
    with pytest.raises(RewardError, match="'CLIPScore' cannot be made ready"):
        experiment.run(recipe, RunFolder(tmp_path / "run"), resume=False)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_at_random(rewards, folder):
    broken = folder / "broken"
    shutil.copytree(rewards["clip-score"].model, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match=r"lacks 1 weights, such as 'visual_projection.weight'"):
        prepare(CLIPScore(model=str(broken), device="cpu"))


@pytest.mark.parametrize("fault", ["lacks", "has besides"])
def test_an_open_clip_checkpoint_of_another_network_is_refused(fault, rewards, tmp_path):
    reward = rewards["hps-v2"]
    weights = torch.load(Path(reward.weights, reward.file), weights_only=True)["state_dict"]
    if fault == "lacks":
        weights = {name: w for name, w in weights.items() if "resblocks.1" not in name}
    else:
        weights["transformer.resblocks.7.ln_1.weight"] = torch.ones(8)
    torch.save({"state_dict": weights}, tmp_path / "other.pt")
    with pytest.raises(RewardError, match=f"the checkpoint {fault}"):
        prepare(replace(reward, weights=str(tmp_path / "other.pt")))


def test_names_that_a_network_does_not_have_are_refused(rewards):
    reward = rewards["image-reward"]
    weights = torch.load(Path(reward.weights, reward.file), weights_only=True)
    weights["blip.visual_encoder.blocks.0.norm3.weight"] = torch.ones(1)
    with pytest.raises(ValueError, match="norm3"):
        networks(weights, Path(reward.weights, "med_config.json"))


def test_a_tokenizer_of_other_words_is_refused(rewards):
    other = rewards["image-reward"].tokenizer
    with pytest.raises(RewardError, match="words, but the network embeds"):
        prepare(replace(rewards["pick-score"], tokenizer=other))


def test_a_head_for_another_clip_is_refused(rewards, tmp_path):
    torch.save(tiny_rewards.head(7).state_dict(), tmp_path / "head.pth")
    with pytest.raises(RewardError, match=r"7 numbers.* have 6"):
        prepare(replace(rewards["aesthetic"], head=str(tmp_path / "head.pth")))


def test_a_head_is_the_same_from_every_format(tmp_path):
    weights = tiny_rewards.head(6).state_dict()
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "b.pth")
    torch.save({"state_dict": weights, "epoch": 1}, tmp_path / "c.ckpt")
    features = torch.randn(3, 6)
    expected = head_of(weights).eval()(features)
    for name in ("a.safetensors", "b.pth", "c.ckpt"):
        found = head_of(fetch.state_dict(fetch.file(str(tmp_path), name, "main")))
        assert torch.equal(found.eval()(features), expected)


class Hostile:
    def __reduce__(self):
        return (os.mkdir, (os.environ["HOSTILE"],))


def test_a_hostile_file_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTILE", str(tmp_path / "executed"))
    torch.save({"layers.0.weight": Hostile()}, tmp_path / "head.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "cut.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("head.pth", "cut.safetensors", "cut.pth", "list.pth"):
        with pytest.raises(ValueError, match="cannot be had"):
            fetch.state_dict(tmp_path / name)
    assert not (tmp_path / "executed").exists()
