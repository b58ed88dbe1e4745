"""Every family's adapter against diffusers' own pipeline, on tiny models with random weights.

What is said of one family alone is in `test_stable_diffusion.py` and `test_stable_diffusion_3.py`.
Pictures agree within 1e-5: both sides compute in float32, in different orders.
"""

from __future__ import annotations

import pytest
import torch
from families import (
    FAMILIES,
    PROMPTS,
    SEED,
    Model,
    adapters_alone_have_a_gradient,
    pictures,
    pipeline_pictures,
    trained,
)
from PIL import Image

from burnish import images
from burnish.models.trainable import Full, LoRA
from burnish.policy import Guided, take
from burnish.rollout import rollout


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    family = FAMILIES[request.param]
    return Model(family, str(family.write(tmp_path_factory.mktemp("tiny"))))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_deterministic_rollout_is_the_pipelines_own_output(model, guidance):
    policy = model.policy(model.family.ode, guidance=guidance)
    expected = pipeline_pictures(model.pipeline(), policy, guidance=guidance)
    assert (pictures(policy) - expected).abs().max() < 1e-5
    assert expected.std() > 0.01


def test_images_are_encoded_as_by_the_pipelines_own_processor(model, tmp_path):
    """A file becomes the latents that diffusers' image processor and its VAE's mode give."""
    pixels = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    Image.fromarray(pixels.numpy()).save(tmp_path / "image.png")
    denoiser = model.policy().denoiser
    latents = denoiser.encode_media(images.read_image(tmp_path / "image.png", 16, 16)[None])
    pipeline = model.pipeline()
    with torch.no_grad():
        given = pipeline.image_processor.preprocess(Image.open(tmp_path / "image.png"))
        mode = pipeline.vae.encode(given).latent_dist.mode()
    theirs = (mode - (pipeline.vae.config.shift_factor or 0)) * pipeline.vae.config.scaling_factor
    assert latents.shape == (1, *denoiser.event_shape)
    assert denoiser.media_shape == (3, 16, 16)
    assert not latents.requires_grad
    torch.testing.assert_close(latents, theirs, rtol=1e-4, atol=1e-5)


def test_a_trained_lora_loads_in_plain_diffusers_and_gives_the_same_pictures(model, tmp_path):
    policy = model.policy(model.family.ode, trainable=LoRA(rank=3, alpha=6.0))
    base = pictures(policy)
    ours = pictures(trained(policy))
    policy.denoiser.save(tmp_path)
    pipeline = model.pipeline()
    pipeline.load_lora_weights(tmp_path)
    assert (ours - pipeline_pictures(pipeline, policy, guidance=3.0)).abs().max() < 1e-5
    assert (ours - base).abs().max() > 1e-3


def test_full_weights_load_in_plain_diffusers(model, tmp_path):
    policy = trained(model.policy(model.family.ode, trainable=Full()))
    policy.denoiser.save(tmp_path)
    network = model.family.network.from_pretrained(tmp_path / model.family.part)
    pipeline = model.pipeline(**{model.family.part: network})
    theirs = pipeline_pictures(pipeline, policy, guidance=3.0)
    assert (pictures(policy) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("trainable", [LoRA(rank=2), Full()], ids=["lora", "full"])
def test_saved_weights_load_back_bitwise(model, tmp_path, trainable):
    policy = trained(model.policy(trainable=trainable))
    policy.denoiser.save(tmp_path)
    other = model.policy(trainable=trainable, seed=5)
    other.denoiser.load(tmp_path)
    assert torch.equal(pictures(policy), pictures(other))


def test_guidance_extrapolates_from_the_unconditional_prediction_once(model):
    policies = {w: model.policy(guidance=w) for w in (1.0, 2.0, 5.0)}
    plain = policies[1.0].denoiser
    x = SEED.normal(range(3), plain.event_shape)
    time = policies[1.0].kernel.times[[0, 1, 3]]
    cond = plain.encode([prompt.text for prompt in PROMPTS])
    with torch.no_grad():
        c = plain.predict(x, time, cond)
        u = plain.predict(x, time, plain.encode(["", "", ""]))
        for weight in (2.0, 5.0):
            predicted = policies[weight].denoiser.predict(x, time, cond)
            assert torch.allclose(predicted, u + weight * (c - u), atol=1e-5)
    assert (c - u).abs().max() > 1e-4


def test_one_pass_gives_the_prediction_with_guidance_and_the_one_without(model):
    policies = {w: model.policy(guidance=w) for w in (1.0, 5.0)}
    guided, plain = policies[5.0].denoiser, policies[1.0].denoiser
    assert isinstance(guided, Guided)
    x = SEED.normal(range(3), guided.event_shape)
    time = policies[5.0].kernel.times[[0, 1, 3]]
    cond = guided.encode([prompt.text for prompt in PROMPTS])
    with torch.no_grad():
        both = guided.predict_both(x, time, cond)
        assert torch.equal(both[0], guided.predict(x, time, cond))
        # another batch size, hence another order of summation
        assert torch.allclose(both[1], plain.predict(x, time, cond), atol=1e-5)
        assert (both[0] - both[1]).abs().max() > 1e-4
        for each in plain.predict_both(x, time, cond):
            assert torch.equal(each, plain.predict(x, time, cond))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scoring_a_rollout_again_in_its_own_geometry_gives_ratio_exactly_one(model, dtype):
    policy = trained(model.policy(dtype=dtype))
    trajectory = rollout(policy, PROMPTS, SEED, batch=3)
    assert trajectory.states.dtype == getattr(torch, dtype)
    assert trajectory.log_prob.dtype == torch.float32
    for position, k in enumerate(trajectory.steps):
        step = torch.full((3,), k)
        with torch.no_grad():
            again = policy.transition(step, trajectory.states[k], trajectory.cond)
        score = again.log_prob(trajectory.states[k + 1])
        assert torch.equal(score, trajectory.log_prob[position])


def test_rows_of_a_batch_are_predicted_as_if_each_were_alone(model):
    """Those too that share a text, whose keys and values may be computed once."""
    policy = trained(model.policy())
    denoiser = policy.denoiser
    cond = denoiser.encode(["red hair", "a person", "red hair", "", "a person"])
    x = SEED.normal(range(5), denoiser.event_shape)
    time = policy.kernel.times[[0, 0, 1, 2, 3]]
    with torch.no_grad():
        together = denoiser.predict(x, time, cond)
        alone = [
            denoiser.predict(x[i : i + 1], time[i : i + 1], take(cond, slice(i, i + 1)))
            for i in range(5)
        ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_an_adapter_is_float32_on_a_half_precision_network(model):
    denoiser = model.policy(dtype="bfloat16").denoiser
    assert {parameter.dtype for parameter in denoiser.parameters()} == {torch.float32}
    assert model.network(denoiser).dtype == torch.bfloat16


def test_the_gradient_reaches_the_adapter_and_nothing_else(model):
    policy = trained(model.policy())
    denoiser = policy.denoiser
    x = SEED.normal([0], denoiser.event_shape)
    predicted = denoiser.predict(x, policy.kernel.times[[2]], denoiser.encode(["red hair"]))
    denoiser.decode(predicted).sum().backward()
    adapters_alone_have_a_gradient(model, denoiser)
