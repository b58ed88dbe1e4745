"""What the Stable Diffusion adapter has of its own, and what algorithms and adapters do on a real network.

That it is diffusers' pipeline is in `test_pipelines.py`, with the other families.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from families import (
    PROMPTS,
    SEED,
    STABLE_DIFFUSION,
    Model,
    adapters_alone_have_a_gradient,
    pictures,
    pipeline_pictures,
    trained,
)
from worlds import Always

import burnish
from burnish.algorithms.draft import AlignProp, DRaFT, ReFL
from burnish.experience import Task
from burnish.models.stable_diffusion import schedule_of
from burnish.models.trainable import Full, LoRA
from burnish.policy import using
from burnish.rewards.statistics import Brightness


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = STABLE_DIFFUSION.write(tmp_path_factory.mktemp("tiny"))
    return Model(STABLE_DIFFUSION, str(folder))


@pytest.mark.parametrize(
    ("guidance", "num_steps", "order"), [(1.0, 6, 2), (3.0, 6, 2), (3.0, 17, 3)]
)
def test_dpm_solver_is_the_pipelines_own_output_under_its_scheduler(
    model, guidance, num_steps, order
):
    """Within float32, of images in [0, 1]: our first estimate of x0 is divided by a signal of 0.07."""
    solved = model.policy(burnish.DPMSolver(num_steps=num_steps, order=order), guidance=guidance)
    pipeline = model.pipeline()
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, solver_order=order
    )
    expected = pipeline_pictures(pipeline, solved, guidance=guidance)
    assert (pictures(solved) - expected).abs().max() < 1e-4
    assert expected.std() > 0.01
    ddim = model.policy(model.family.ode, guidance=guidance)
    assert (pictures(ddim) - expected).abs().max() > 1e-2


def test_a_folded_adapter_has_the_output_and_the_gradient_of_peft(model):
    lora = LoRA(rank=3, alpha=6.0)
    policy = trained(model.policy(trainable=lora))
    denoiser = policy.denoiser
    cond = denoiser.encode(["red hair", "a person"])
    x = SEED.normal(range(2), denoiser.event_shape)
    time = torch.tensor([900, 20])

    def output_and_gradient():
        output = denoiser.predict(x, time, cond)
        return output, torch.autograd.grad(output.square().sum(), denoiser.parameters())

    folded, folded_gradient = output_and_gradient()
    denoiser.family.network.set_attn_processor(AttnProcessor2_0())
    texts = denoiser.encode(["", "", "red hair", "a person"])["embedding"]
    u, c = denoiser.family.network(torch.cat([x, x]), torch.cat([time, time]), texts).sample.chunk(
        2
    )
    output = u + 3.0 * (c - u)
    gradient = torch.autograd.grad(output.square().sum(), denoiser.parameters())
    assert torch.allclose(folded, output, atol=1e-5)
    for one, other in zip(folded_gradient, gradient, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * other.abs().max().item())


@pytest.mark.parametrize("algorithm", [DRaFT(train_steps=4), AlignProp(), ReFL(train_steps=2)])
def test_a_reward_is_differentiated_into_every_adapter_and_nothing_that_is_frozen(model, algorithm):
    policy = trained(model.policy())
    task = Task(policy, Always(PROMPTS), Brightness(), samples=3, batch=3)
    found = algorithm.collect(task, memory={}, randomness=SEED)
    loss, diagnostics = algorithm.loss(policy, found.rows)
    assert torch.equal(-loss, found.rewards) == (algorithm != ReFL(train_steps=2))
    assert diagnostics["reward_change"].max() < 0.5
    loss.mean().backward()
    adapters_alone_have_a_gradient(model, policy.denoiser)


def test_checkpointing_changes_nothing_of_a_rewards_gradient(model):
    policy = trained(model.policy())
    task = Task(policy, Always(PROMPTS), Brightness(), samples=3, batch=3)
    found = AlignProp().collect(task, memory={}, randomness=SEED).rows
    parameters = policy.denoiser.parameters()
    losses = [AlignProp(checkpointing=each).loss(policy, found)[0] for each in (False, True)]
    plain, checkpointed = (torch.autograd.grad(loss.sum(), parameters) for loss in losses)
    assert all(torch.equal(one, other) for one, other in zip(plain, checkpointed, strict=True))


def test_a_new_adapter_leaves_the_output_as_it_was_and_depends_on_its_seed_only(model):
    plain = pictures(model.policy(trainable=Full()))
    before = torch.get_rng_state()
    one, same, other = (model.policy(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert (pictures(one) - plain).abs().max() < 1e-6

    def first(policy):
        return torch.cat([p.flatten() for p in policy.denoiser.parameters()])

    assert torch.equal(first(one), first(same))
    assert not torch.equal(first(one), first(other))


def test_the_reference_policy_is_the_initial_adapter(model):
    policy = model.policy()
    initial = [parameter.detach().clone() for parameter in policy.denoiser.parameters()]
    base = pictures(policy)
    changed = pictures(trained(policy))
    with using(policy.denoiser, initial):
        assert torch.equal(pictures(policy), base)
    assert torch.equal(pictures(policy), changed)


def test_a_lora_target_that_matches_nothing_is_refused(model):
    with pytest.raises(ValueError, match="'to_w'"):
        burnish.load(model.folder, trainable=LoRA(targets=("to_q", "to_w")))


@pytest.mark.parametrize("name", ["clip_sample", "thresholding"])
def test_a_scheduler_with_a_rule_of_its_own_is_refused(name):
    with pytest.raises(ValueError, match=name):
        schedule_of(DDIMScheduler(**{"clip_sample": False, name: True}))
