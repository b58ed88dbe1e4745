"""What the Stable Diffusion 3 adapter has of its own: its texts, its attention, its schedule.

That it is diffusers' pipeline is in `test_pipelines.py`, with the other families.
"""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_processor import JointAttnProcessor2_0
from families import SEED, Model, stable_diffusion_3, trained

import burnish
from burnish.models.stable_diffusion_3 import T5_TOKENS, UNSUPPORTED, schedule_of
from burnish.models.trainable import Full, LoRA

TEXTS = ["red hair", "a portrait of a person"]
WIDE = LoRA(
    rank=3,
    alpha=6.0,
    targets=("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"),
)
"""On the text's projections too."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each variant, made when it is asked for the first time."""
    made = {}

    def folder(*, t5, transformer=None):
        key = (t5, transformer is not None)
        if key not in made:
            path = tmp_path_factory.mktemp("tiny")
            family = stable_diffusion_3(t5=t5, transformer=transformer)
            made[key] = Model(family, str(family.write(path)))
        return made[key]

    return folder


@pytest.mark.parametrize("t5", [False, True])
def test_texts_are_encoded_as_by_the_pipeline_and_cut_where_they_are_too_long(folders, t5):
    model = folders(t5=t5)
    long = "red hair with a portrait " * 60
    assert len(long.split()) > T5_TOKENS
    texts = ["a portrait of a person", "", "blue", long]
    denoiser = model.policy().denoiser
    ours = denoiser.encode(texts)
    with torch.no_grad():
        embedding, empty, pooled, empty_pooled = model.pipeline().encode_prompt(texts, None, None)
    assert torch.equal(_written_out(denoiser, ours)["embedding"], embedding)
    assert torch.equal(ours["pooled"], pooled)
    assert torch.equal(embedding[1], empty[1])
    assert torch.equal(pooled[1], empty_pooled[1])
    longer = denoiser.encode([*texts[:3], long + "blue hair"])
    assert all(torch.equal(longer[name], ours[name]) for name in ours)
    assert len({row.sum().item() for row in embedding}) == len(texts)


VARIANTS = pytest.mark.parametrize("transformer", [None, tiny.MEDIUM_3_5], ids=["3", "3.5"])


@VARIANTS
def test_one_token_for_256_zeros_has_the_output_and_the_gradient_of_all_of_them(
    folders, transformer
):
    """In float64, so that nothing but a wrong formula exceeds 1e-11; all weights have a gradient."""
    model = folders(t5=False, transformer=transformer)
    denoiser = model.policy(guidance=1.0, trainable=Full()).denoiser
    denoiser.family.network.double()
    for ours, theirs in _output_and_gradient(denoiser):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 * theirs.abs().max().item())


@VARIANTS
@pytest.mark.parametrize("t5", [False, True])
def test_folded_adapters_have_the_output_and_the_gradient_of_peft(folders, t5, transformer):
    """Only float32 weights are folded; 1e-3 of the largest entry is ten times what it rounds here."""
    model = folders(t5=t5, transformer=transformer)
    denoiser = trained(model.policy(guidance=1.0, trainable=WIDE)).denoiser
    for ours, theirs in _output_and_gradient(denoiser):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3 * theirs.abs().max().item())


@VARIANTS
def test_in_half_precision_one_token_for_256_is_as_near_to_the_truth_as_all_of_them(
    folders, transformer
):
    """log 256 becomes 5.53 in bfloat16, as if there were 252 tokens: less than what bfloat16 does to the
    rest, so the mean error over 4096 numbers is that of diffusers within a tenth."""
    model = folders(t5=False, transformer=transformer)
    denoiser = model.policy(guidance=1.0, dtype="bfloat16").denoiser
    exact = copy.deepcopy(denoiser.family.network).double()
    x = SEED.normal(range(64), denoiser.event_shape).bfloat16()
    time, cond = torch.full((64,), 500.0), denoiser.encode(["red hair"] * 64)
    with torch.no_grad():
        ours = denoiser.predict(x, time, cond)
        theirs, truth = (
            _by_diffusers(network, x, time, _written_out(denoiser, cond))
            for network in (denoiser.family.network, exact)
        )
    errors = [(each.double() - truth).abs().mean() for each in (ours, theirs)]
    assert errors[0] < 1.1 * errors[1]


def _output_and_gradient(denoiser):
    """Pairs (of burnish, of diffusers): the output for `TEXTS`, then the gradient in x and in each weight."""
    dtype = denoiser.family.network.dtype
    cond = {name: each.to(dtype) for name, each in denoiser.encode(TEXTS).items()}
    x = SEED.normal(range(2), denoiser.event_shape).to(dtype).requires_grad_()
    time = torch.tensor([900.0, 20.0])
    ours = denoiser.predict(x, time, cond)
    theirs = _by_diffusers(denoiser.family.network, x, time, _written_out(denoiser, cond))
    inputs = [x, *denoiser.parameters()]
    gradients = [torch.autograd.grad(each.square().sum(), inputs) for each in (ours, theirs)]
    return [(ours, theirs), *zip(*gradients, strict=True)]


def _by_diffusers(network, x, time, cond):
    """The network's output with diffusers' own attention."""
    network.set_attn_processor(JointAttnProcessor2_0())
    dtype = network.dtype
    embedding, pooled = cond["embedding"].to(dtype), cond["pooled"].to(dtype)
    return network(x.to(dtype), embedding, pooled, time).sample


def _written_out(denoiser, cond):
    """With the last token as often as it counts."""
    embedding, repeats = cond["embedding"], denoiser.family.texts.repeats
    last = embedding[:, -1:].expand(-1, repeats, -1)
    assert repeats == 1 or last.count_nonzero() == 0
    return {**cond, "embedding": torch.cat([embedding[:, :-1], last], dim=1)}


def test_t5_is_read_if_the_pipeline_names_it_and_only_then(folders, tmp_path):
    folder = shutil.copytree(folders(t5=True).folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    without = {**index, "text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(without))
    assert burnish.load(str(folder)).family.texts.t5 is None
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(folder / "text_encoder_3")
    with pytest.raises(OSError, match="no file"):
        burnish.load(str(folder))


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_scheduler_with_a_rule_of_its_own_is_refused(name):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.register_to_config(**{name: 0.1 if name == "shift_terminal" else True})
    with pytest.raises(ValueError, match=name):
        schedule_of(scheduler)


def test_the_schedule_is_that_of_the_scheduler():
    schedule = schedule_of(FlowMatchEulerDiscreteScheduler(num_train_timesteps=200, shift=6.0))
    assert (schedule.num_train, schedule.shift) == (200, 6.0)
