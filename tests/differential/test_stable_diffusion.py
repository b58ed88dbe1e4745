"""The Stable Diffusion adapter against diffusers' own pipeline, on tiny models with random weights."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from worlds import Always

import burnish
from burnish import images
from burnish.algorithms.draft import AlignProp, DRaFT, ReFL
from burnish.experience import Task
from burnish.models.stable_diffusion import schedule_of
from burnish.models.trainable import Full, LoRA
from burnish.policy import Guided, take, using
from burnish.prompts import Prompt
from burnish.randomness import Randomness
from burnish.rewards.image import Brightness
from burnish.rollout import decode, rollout

PROMPTS = [Prompt("a portrait of a person"), Prompt("red hair"), Prompt("a person with blue hair")]
SEED = Randomness(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.stable_diffusion(tmp_path_factory.mktemp("tiny")))


def _policy(folder, *, guidance=3.0, num_steps=4, eta=1.0, trainable=None, dtype="float32", seed=0):
    denoiser = burnish.load(
        folder, guidance=guidance, trainable=trainable, dtype=dtype, device="cpu", seed=seed
    )
    storage = getattr(torch, dtype)
    return burnish.Policy(denoiser, burnish.DDIM(num_steps=num_steps, eta=eta), storage=storage)


def _trained(policy):
    """Random weights where training would have put some."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.denoiser.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


def _pipeline_images(pipeline, policy, *, guidance, num_steps):
    """The pipeline's own pictures of `PROMPTS` under the noise that `rollout` draws for `SEED`."""
    shape = (policy.kernel.num_steps + 1, *policy.denoiser.event_shape)
    noise = SEED.normal(range(len(PROMPTS)), shape)[:, 0]
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        [prompt.text for prompt in PROMPTS],
        latents=noise,
        guidance_scale=guidance,
        num_inference_steps=num_steps,
        eta=0.0,
        output_type="np",
        height=16,
        width=16,
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _images(policy):
    x0 = rollout(policy, PROMPTS, SEED, batch=3).x0
    return decode(policy, x0, PROMPTS, batch=3).media


def test_images_are_encoded_as_by_the_pipelines_own_processor(folder, tmp_path):
    """A file becomes the latents that diffusers' image processor and its VAE's mode give."""
    pixels = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    Image.fromarray(pixels.numpy()).save(tmp_path / "image.png")
    policy = _policy(folder)
    media = images.read_image(tmp_path / "image.png", 16, 16)[None]
    latents = policy.denoiser.encode_media(media)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    with torch.no_grad():
        given = pipeline.image_processor.preprocess(Image.open(tmp_path / "image.png"))
        theirs = pipeline.vae.encode(given).latent_dist.mode() * pipeline.vae.config.scaling_factor
    assert latents.shape == (1, *policy.denoiser.event_shape)
    assert not latents.requires_grad
    torch.testing.assert_close(latents, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_deterministic_rollout_is_the_pipelines_own_output(folder, guidance):
    policy = _policy(folder, guidance=guidance, eta=0.0)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    expected = _pipeline_images(pipeline, policy, guidance=guidance, num_steps=4)
    assert (_images(policy) - expected).abs().max() < 1e-5
    assert expected.std() > 0.01


def test_a_trained_lora_loads_in_plain_diffusers_and_gives_the_same_pictures(folder, tmp_path):
    lora = LoRA(rank=3, alpha=6.0)
    policy = _policy(folder, eta=0.0, trainable=lora)
    base = _images(policy)
    ours = _images(_trained(policy))
    policy.denoiser.save(tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(tmp_path)
    theirs = _pipeline_images(pipeline, policy, guidance=3.0, num_steps=4)
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - base).abs().max() > 1e-3


@pytest.mark.parametrize("trainable", [LoRA(rank=2), Full()])
def test_saved_weights_load_back_bitwise(folder, tmp_path, trainable):
    policy = _trained(_policy(folder, trainable=trainable))
    policy.denoiser.save(tmp_path)
    other = _policy(folder, trainable=trainable, seed=5)
    other.denoiser.load(tmp_path)
    assert torch.equal(_images(policy), _images(other))


def test_full_weights_load_in_plain_diffusers(folder, tmp_path):
    policy = _trained(_policy(folder, eta=0.0, trainable=Full()))
    policy.denoiser.save(tmp_path)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, unet=unet)
    theirs = _pipeline_images(pipeline, policy, guidance=3.0, num_steps=4)
    assert (_images(policy) - theirs).abs().max() < 1e-5


def test_guidance_extrapolates_from_the_unconditional_prediction_once(folder):
    denoisers = {w: _policy(folder, guidance=w).denoiser for w in (1.0, 2.0, 5.0)}
    x = SEED.normal(range(3), denoisers[1.0].event_shape)
    time = torch.tensor([900, 500, 20])
    cond = denoisers[1.0].encode([prompt.text for prompt in PROMPTS])
    null = denoisers[1.0].encode(["", "", ""])
    with torch.no_grad():
        c = denoisers[1.0].predict(x, time, cond)
        u = denoisers[1.0].predict(x, time, null)
        for weight in (2.0, 5.0):
            predicted = denoisers[weight].predict(x, time, cond)
            assert torch.allclose(predicted, u + weight * (c - u), atol=1e-5)
    assert (c - u).abs().max() > 1e-4


def test_one_pass_gives_the_prediction_with_guidance_and_the_one_without(folder):
    guided, plain = (_policy(folder, guidance=w).denoiser for w in (5.0, 1.0))
    assert isinstance(guided, Guided)
    x = SEED.normal(range(3), guided.event_shape)
    time = torch.tensor([900, 500, 20])
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
def test_scoring_a_rollout_again_in_its_own_geometry_gives_ratio_exactly_one(folder, dtype):
    policy = _trained(_policy(folder, dtype=dtype))
    trajectory = rollout(policy, PROMPTS, SEED, batch=3)
    assert trajectory.states.dtype == getattr(torch, dtype)
    assert trajectory.log_prob.dtype == torch.float32
    for position, k in enumerate(trajectory.steps):
        step = torch.full((3,), k)
        with torch.no_grad():
            again = policy.transition(step, trajectory.states[k], trajectory.cond)
        score = again.log_prob(trajectory.states[k + 1])
        assert torch.equal(score, trajectory.log_prob[position])


def test_rows_that_share_a_text_are_predicted_as_if_each_were_alone(folder):
    denoiser = _trained(_policy(folder)).denoiser
    texts = ["red hair", "a person", "red hair", "", "a person"]
    cond = denoiser.encode(texts)
    x = SEED.normal(range(5), denoiser.event_shape)
    time = torch.tensor([900, 900, 500, 20, 1])
    with torch.no_grad():
        together = denoiser.predict(x, time, cond)
        alone = [
            denoiser.predict(x[i : i + 1], time[i : i + 1], take(cond, slice(i, i + 1)))
            for i in range(5)
        ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_a_folded_adapter_has_the_output_and_the_gradient_of_peft(folder):
    lora = LoRA(rank=3, alpha=6.0)
    policy = _trained(_policy(folder, trainable=lora))
    denoiser = policy.denoiser
    cond = denoiser.encode(["red hair", "a person"])
    x = SEED.normal(range(2), denoiser.event_shape)
    time = torch.tensor([900, 20])

    def output_and_gradient():
        output = denoiser.predict(x, time, cond)
        return output, torch.autograd.grad(output.square().sum(), denoiser.parameters())

    folded, folded_gradient = output_and_gradient()
    denoiser.unet.set_attn_processor(AttnProcessor2_0())
    texts = denoiser.encode(["", "", "red hair", "a person"])["embedding"]
    u, c = denoiser.unet(torch.cat([x, x]), torch.cat([time, time]), texts).sample.chunk(2)
    output = u + 3.0 * (c - u)
    gradient = torch.autograd.grad(output.square().sum(), denoiser.parameters())
    assert torch.allclose(folded, output, atol=1e-5)
    for one, other in zip(folded_gradient, gradient, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * other.abs().max().item())


def test_an_adapter_is_float32_on_a_half_precision_network(folder):
    denoiser = _policy(folder, dtype="bfloat16").denoiser
    assert {parameter.dtype for parameter in denoiser.parameters()} == {torch.float32}
    assert denoiser.unet.dtype == torch.bfloat16


def test_the_gradient_reaches_the_adapter_and_nothing_else(folder):
    policy = _trained(_policy(folder))
    denoiser = policy.denoiser
    cond = denoiser.encode(["red hair"])
    x = SEED.normal([0], denoiser.event_shape)
    denoiser.decode(denoiser.predict(x, torch.tensor([500]), cond)).sum().backward()
    trained = {id(parameter) for parameter in denoiser.parameters()}
    for network in (denoiser.unet, denoiser.text_encoder, denoiser.vae):
        for name, parameter in network.named_parameters():
            assert (parameter.grad is not None) == (id(parameter) in trained), name


@pytest.mark.parametrize("algorithm", [DRaFT(train_steps=4), AlignProp(), ReFL(train_steps=2)])
def test_a_reward_is_differentiated_into_every_adapter_and_nothing_that_is_frozen(
    folder, algorithm
):
    policy = _trained(_policy(folder))
    denoiser = policy.denoiser
    task = Task(policy, Always(PROMPTS), Brightness(), samples=3, batch=3)
    found = algorithm.collect(task, memory={}, randomness=SEED)
    loss, diagnostics = algorithm.loss(policy, found.rows)
    assert torch.equal(-loss, found.rewards) == (algorithm != ReFL(train_steps=2))
    assert diagnostics["reward_change"].max() < 0.5
    loss.mean().backward()
    trained = {id(parameter) for parameter in denoiser.parameters()}
    for network in (denoiser.unet, denoiser.text_encoder, denoiser.vae):
        for name, parameter in network.named_parameters():
            assert (parameter.grad is not None) == (id(parameter) in trained), name
            assert parameter.grad is None or parameter.grad.abs().max() > 0, name


def test_checkpointing_changes_nothing_of_a_rewards_gradient(folder):
    policy = _trained(_policy(folder))
    task = Task(policy, Always(PROMPTS), Brightness(), samples=3, batch=3)
    found = AlignProp().collect(task, memory={}, randomness=SEED).rows
    parameters = policy.denoiser.parameters()
    losses = [AlignProp(checkpointing=each).loss(policy, found)[0] for each in (False, True)]
    plain, checkpointed = (torch.autograd.grad(loss.sum(), parameters) for loss in losses)
    assert all(torch.equal(one, other) for one, other in zip(plain, checkpointed, strict=True))


def test_a_new_adapter_leaves_the_output_as_it_was_and_depends_on_its_seed_only(folder):
    plain = _images(_policy(folder, trainable=Full()))
    before = torch.get_rng_state()
    one, same, other = (_policy(folder, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert (_images(one) - plain).abs().max() < 1e-6

    def first(policy):
        return torch.cat([p.flatten() for p in policy.denoiser.parameters()])

    assert torch.equal(first(one), first(same))
    assert not torch.equal(first(one), first(other))


def test_the_reference_policy_is_the_initial_adapter(folder):
    policy = _policy(folder)
    initial = [parameter.detach().clone() for parameter in policy.denoiser.parameters()]
    base = _images(policy)
    changed = _images(_trained(policy))
    with using(policy.denoiser, initial):
        assert torch.equal(_images(policy), base)
    assert torch.equal(_images(policy), changed)


def test_a_lora_target_that_matches_nothing_is_refused(folder):
    with pytest.raises(ValueError, match="'to_w'"):
        burnish.load(folder, trainable=LoRA(targets=("to_q", "to_w")))


@pytest.mark.parametrize("name", ["clip_sample", "thresholding"])
def test_a_scheduler_with_a_rule_of_its_own_is_refused(name):
    with pytest.raises(ValueError, match=name):
        schedule_of(DDIMScheduler(**{"clip_sample": False, name: True}))


def test_folders_that_hold_no_known_pipeline_are_refused(tmp_path):
    with pytest.raises(ValueError, match="model_index"):
        burnish.load(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "OddPipeline"}))
    with pytest.raises(ValueError, match=r"OddPipeline.*StableDiffusionPipeline"):
        burnish.load(str(tmp_path))


def test_a_name_that_is_nowhere_is_refused():
    with pytest.raises(ValueError, match="no such folder"):
        burnish.load("no/such model")
