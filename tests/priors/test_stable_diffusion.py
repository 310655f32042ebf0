"""Stable Diffusion's code path with pipelines of a few ten thousand random weights, made and read offline."""

import json
import shutil

import pytest
import torch

from dfkd.errors import UserError
from dfkd.priors import load, stable_diffusion
from tests.priors.conftest import card_for


@pytest.fixture
def prior(stable_diffusion_folder):
    return load(stable_diffusion_folder, card_for(stable_diffusion_folder), "cpu", "fp32")


@pytest.fixture
def variations(variations_folder):
    return load(variations_folder, card_for(variations_folder), "cpu", "fp32")


@pytest.fixture
def latents(prior, generator):
    return torch.randn(2, *prior.latent_shape, generator=generator())


def test_shapes_and_schedule(prior):
    assert (prior.latent_shape, prior.size, prior.pixel_space, prior.guides) == ((4, 8, 8), 16, False, True)
    assert prior.card["kind"] == "stable-diffusion" and prior.card["size"] == 16
    for steps, ends in {50: (981, 1), 70: (967, 1), 10: (901, 1)}.items():
        found = prior.timesteps(steps)
        assert (found[0], found[-1]) == ends
    assert prior.alpha(999) == pytest.approx(0.00466, abs=1e-5)
    assert prior.pipeline.safety_checker is None


def test_ddpm_steps_do_not_clip(prior, latents):
    prior.timesteps(50)
    eps = torch.zeros_like(latents)
    assert prior.step(10 * latents, 1, eps, None).abs().max() > 5


def test_guidance_scale(prior, latents):
    embeddings = prior.condition(2, "a photo", None, 3.0)
    assert embeddings.null.shape == embeddings.given.shape == (2, 16, 32)
    null, given = (
        prior.unet(latents, 481, encoder_hidden_states=rows).sample for rows in (embeddings.null, embeddings.given)
    )
    assert (given - null).abs().max() > 1e-4
    for w in (0.0, 1.0, 3.0):
        found = prior.noise(latents, 481, prior.condition(2, "a photo", None, w))
        torch.testing.assert_close(found, null + w * (given - null), rtol=1e-4, atol=1e-5)
    empty = prior.condition(2, "", None, 1.0)
    torch.testing.assert_close(empty.given, empty.null)


def test_a_prompt_for_each(prior):
    both = prior.condition(2, ["a photo", "photo of an owl"], None, 3.0).given
    torch.testing.assert_close(both[0], prior.condition(1, "a photo", None, 3.0).given[0])
    assert not torch.allclose(both[0], both[1])
    with pytest.raises(ValueError, match="3 prompts expected, 2 found"):
        prior.condition(3, ["a photo", "photo of an owl"], None, 3.0)


def image(prior, z, t, condition):
    return prior.decode(prior.clean(z, t, prior.noise(z, t, condition)))


def test_decoded_images(prior, latents):
    with torch.no_grad():
        found = prior.decode(latents)
        whole = prior.vae.decode(latents / prior.vae.config.scaling_factor).sample
    assert found.shape == (2, 3, 16, 16) and found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(found, (whole / 2 + 0.5).clamp(0, 1))


def test_a_guided_step_changes_the_latent(prior, latents):
    """A gradient step on a loss of the image lowers it: through the VAE and the U-Net, weights frozen."""
    condition = prior.condition(2, "a photo", None, 3.0)
    z = latents.clone().requires_grad_()

    def loss(z):
        return (image(prior, z, 481, condition) - 0.8).square().mean(0).sum()

    before = loss(z)
    before.backward()
    assert z.grad.shape == latents.shape and z.grad.abs().amax((1, 2, 3)).min() > 0
    moved = latents - 0.1 * z.grad / z.grad.norm()
    assert not torch.equal(moved, latents)
    with torch.no_grad():
        assert loss(moved) < before
    parameters = [
        *prior.unet.parameters(),
        *prior.vae.parameters(),
        *prior.pipeline.text_encoder.parameters(),
    ]
    assert not any(p.requires_grad or p.grad is not None for p in parameters)


def test_the_gradient_passes_the_network(prior, latents):
    condition = prior.condition(2, "a photo", None, 3.0)
    z = latents.clone().requires_grad_()
    eps = prior.noise(z, 481, condition)
    gradients = [
        torch.autograd.grad(prior.decode(prior.clean(z, 481, e)).square().sum(), z, retain_graph=True)[0]
        for e in (eps, eps.detach())
    ]
    assert not torch.allclose(*gradients, rtol=1e-2)


def test_checkpointing_keeps_less_and_changes_nothing(prior, latents):
    """It has to work in eval mode with frozen weights, where it is used."""
    condition = prior.condition(2, "a photo", None, 3.0)

    def measure():
        kept, z = [], latents.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            value = image(prior, z, 481, condition).square().sum()
        return sum(kept), torch.autograd.grad(value, z)[0]

    less, gradient = measure()
    for part in (prior.unet, prior.vae):
        assert part.is_gradient_checkpointing and not part.training
        part.disable_gradient_checkpointing()
    more, reference = measure()
    assert less < 0.3 * more
    torch.testing.assert_close(gradient, reference)


def check_variants(prior, images, generator, **options):
    one, again, other = (prior.augment(images, 3, generator(seed), steps=4, **options) for seed in (0, 0, 1))
    assert one.shape == (4, 3, 3, 8, 8) and one.dtype == torch.float32
    assert one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert not torch.equal(one[:, 0], one[:, 1])
    return one


def test_image_to_image(prior, images, generator, monkeypatch):
    whole = check_variants(prior, images, generator, strength=0.5)
    monkeypatch.setattr(stable_diffusion, "ROWS", 5)
    parts = check_variants(prior, images, generator, strength=0.5)
    assert not torch.equal(whole, parts)  # other noise, the same kind of images
    kept = prior.augment(images, 3, generator(), strength=0)
    assert torch.equal(kept, images[:, None].expand(-1, 3, -1, -1, -1))
    with pytest.raises(UserError, match="strength lies between 0 and 1"):
        prior.augment(images, 1, generator(), strength=2)


def test_image_to_image_heeds_prompt_and_guidance(prior, images, generator):
    how = {"steps": 4, "strength": 0.8}
    found = [
        prior.augment(images, 1, generator(), prompt=prompt, guidance=w, **how)
        for prompt, w in (("a photo", 3.0), ("a photo", 7.0), ("an owl", 3.0))
    ]
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[0], found[2])


def test_image_variations(variations, images, generator, monkeypatch):
    assert (variations.guides, variations.pixel_space, variations.size) == (False, False, 16)
    seen = []
    encode = variations.pipeline._encode_image

    def spy(image, *rest):
        seen.append(image)
        return encode(image, *rest)

    monkeypatch.setattr(variations.pipeline, "_encode_image", spy)
    check_variants(variations, images, generator)
    expected = torch.nn.functional.interpolate(images, (24, 24), mode="bicubic", antialias=False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (stable_diffusion.CLIP_MEAN, stable_diffusion.CLIP_STD))
    torch.testing.assert_close(seen[0][::3], (expected - mean) / std)
    assert not torch.equal(
        variations.augment(images, 1, generator(), steps=4),
        variations.augment(images.flip(0), 1, generator(), steps=4),
    )


def test_no_safety_checker_is_asked_for(stable_diffusion_folder, tmp_path):
    """As downloaded: the index names one, and a feature extractor, and neither is there."""
    folder = shutil.copytree(stable_diffusion_folder, tmp_path / "sd")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index | {"requires_safety_checker": True}))
    prior = load(folder, card_for(folder), "cpu", "fp32")
    assert prior.pipeline.safety_checker is None
    assert prior._image_to_image.safety_checker is None


def test_a_folder_of_another_kind_is_refused(stable_diffusion_folder, variations_folder, tmp_path):
    with pytest.raises(UserError, match="holds no StableDiffusionPipeline") as caught:
        load(tmp_path, card_for(stable_diffusion_folder), "cpu", "fp32")
    assert "\n" not in str(caught.value)
