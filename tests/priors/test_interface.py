"""What every backend shares: timesteps, the DDPM step, guidance, and the images of a pixel prior."""

import pytest
import torch

from dfkd.errors import UserError
from dfkd.priors import resize
from dfkd.priors.base import Condition, guided, sample


def alphas():
    """ᾱ of the scaled-linear schedule, in float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@pytest.mark.parametrize(
    ("steps", "first", "last"),
    [(50, [981, 961], 1), (70, [967, 953], 1), (10, [901, 801], 1), (25, [961, 921], 1)],
)
def test_timesteps(pixel, steps, first, last):
    found = pixel().timesteps(steps)
    assert (found[:2], found[-1], len(found)) == (first, last, steps)


def test_a_trajectory_has_timesteps(pixel):
    prior = pixel()
    for steps in (0, 1000):
        with pytest.raises(UserError, match=f"1 to 999 steps, not {steps}"):
            prior.timesteps(steps)


def test_alpha_bar_is_stable_diffusion_s(pixel):
    prior = pixel()
    assert prior.alpha(999) == pytest.approx(0.00466, abs=1e-5)
    for t in (0, 1, 481, 981):
        assert prior.alpha(t) == pytest.approx(alphas()[t].item(), rel=1e-4)


@pytest.mark.parametrize(("t", "before"), [(981, 961), (481, 461), (21, 1), (1, None)])
@pytest.mark.parametrize("clip", [False, True])
def test_a_step_is_the_posterior(pixel, generator, t, before, clip):
    """Ho et al. (2020), equations 6 and 7, in float64."""
    prior = pixel()
    prior.timesteps(50)
    z, eps = (torch.randn(2, 3, 8, 8, generator=generator(i), dtype=torch.float64) for i in (1, 2))
    found = prior.step(z, t, eps, generator(3), clip=clip)
    bar = alphas()[t]
    clean = (z - (1 - bar).sqrt() * eps) / bar.sqrt()
    if clip:
        assert clean.abs().max() > 1
        clean = clean.clamp(-1, 1)
    if before is None:
        torch.testing.assert_close(found, clean, rtol=1e-5, atol=1e-6)
        return
    previous = alphas()[before]
    alpha = bar / previous
    mean = (previous.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - previous) * z) / (1 - bar)
    variance = (1 - previous) / (1 - bar) * (1 - alpha)
    noise = torch.randn(z.shape, generator=generator(3), dtype=torch.float64)
    torch.testing.assert_close(found, mean + variance.sqrt() * noise, rtol=1e-4, atol=1e-5)


def test_clipping_is_no_state(pixel, generator):
    prior = pixel()
    prior.timesteps(50)
    z, eps = (5 * torch.randn(2, 3, 8, 8, generator=generator(i)) for i in (1, 2))
    free, clipped, again = (prior.step(z, 481, eps, generator(), clip=clip) for clip in (False, True, False))
    assert torch.equal(free, again)
    assert not torch.allclose(free, clipped)


def test_clean_undoes_the_noise(pixel, generator):
    prior = pixel()
    x, eps = (torch.randn(2, 3, 8, 8, generator=generator(i), dtype=torch.float64) for i in (1, 2))
    for t in (1, 481, 981):
        z = prior.alpha(t) ** 0.5 * x + (1 - prior.alpha(t)) ** 0.5 * eps
        torch.testing.assert_close(prior.clean(z, t, eps), x)


def test_guidance_is_equation_1():
    seen = []

    def predict(z, rows):
        seen.append(len(z))
        return z * rows.view(-1, 1)

    z, null, given = torch.randn(3, 4), torch.tensor([2.0, 3.0, 4.0]), torch.tensor([5.0, 7.0, 9.0])
    for w, expected in ((0.0, null), (1.0, given), (3.0, null + 3 * (given - null))):
        torch.testing.assert_close(guided(predict, z, Condition(null, given, w)), z * expected.view(-1, 1))
    assert seen == [3, 3, 6]


def test_the_gradient_reaches_the_latent_through_the_network(pixel, generator):
    prior = pixel()
    z = torch.randn(2, 3, 8, 8, generator=generator(), requires_grad=True)
    eps = prior.noise(z, 481, None)
    prior.decode(prior.clean(z, 481, eps)).square().sum().backward(retain_graph=True)
    whole, z.grad = z.grad, None
    prior.decode(prior.clean(z, 481, eps.detach())).square().sum().backward()
    assert whole.abs().sum() > 0
    assert not torch.allclose(whole, z.grad, rtol=1e-2)
    assert not any(p.requires_grad or p.grad is not None for p in prior.unet.parameters())
    assert not prior.unet.training


def test_class_conditions(pixel, generator):
    prior = pixel(classes=4)
    z, labels = torch.randn(2, 3, 8, 8, generator=generator()), torch.tensor([0, 2])
    null, both = (prior.unet(z, 481, class_labels=rows).sample for rows in (torch.tensor([3, 3]), labels))
    for w in (0.0, 1.0, 3.0):
        found = prior.noise(z, 481, prior.condition(2, "a prompt", labels, w))
        torch.testing.assert_close(found, null + w * (both - null), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prior.noise(z, 481, prior.condition(2)), null)
    assert not torch.allclose(null, both)
    with pytest.raises(ValueError, match="3 labels expected"):
        prior.condition(3, "", labels, 1.0)


def test_an_unconditional_prior_takes_no_condition(pixel):
    assert pixel().condition(2, "a prompt", torch.tensor([0, 1]), 3.0) is None


def test_images_lie_in_the_unit_interval(pixel, generator):
    prior = pixel()
    latents = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    assert prior.decode(latents).tolist() == [0, 0, 0.5, 1, 1]
    one, again, other = (sample(prior, 3, generator(seed), steps=5) for seed in (0, 0, 1))
    assert one.shape == (3, 3, 8, 8) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_resize(images):
    assert resize(images, 8) is images
    steps = torch.zeros(1, 1, 8, 8)
    steps[..., 4:] = 1
    for size in (4, 20):
        small = resize(steps, size)
        assert small.shape == (1, 1, size, size) and small.min() >= 0 and small.max() <= 1
    checks = (torch.arange(64).view(1, 1, 1, 64) % 2).float().expand(1, 1, 64, 64)
    torch.testing.assert_close(resize(checks, 8)[..., 2:6], torch.full((1, 1, 8, 4), 0.5), atol=0.02, rtol=0)


# dda.md 4.2: what strength s leaves of the image on the linear schedule
TABLE = {0.2: 0.761, 0.3: 0.548, 0.4: 0.263, 0.5: 0.138, 0.6: 0.041, 0.8: 0.003}


@pytest.mark.parametrize("strength", TABLE)
def test_strength_is_by_noise(pixel, images, generator, monkeypatch, strength):
    prior, seen = pixel(), []
    noise = prior.noise
    monkeypatch.setattr(prior, "noise", lambda x, t, condition: seen.append(t) or noise(x, t, condition))
    prior.augment(images, 1, generator(), strength=strength)
    ladder = list(range(961, 0, -40))
    assert seen == ladder[ladder.index(seen[0]) :]
    assert prior.alpha(seen[0]) <= TABLE[strength] + 5e-4 or seen[0] == 961
    assert seen[0] == 1 or prior.alpha(seen[0] - 40) > TABLE[strength] - 5e-4


def test_augmented_images(pixel, images, generator):
    prior = pixel()
    one, again, other = (prior.augment(images, 3, generator(seed), strength=0.3) for seed in (0, 0, 1))
    assert one.shape == (4, 3, 3, 8, 8) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert not torch.equal(one[:, 0], one[:, 1])
    kept = prior.augment(images, 3, generator(), strength=0)
    assert torch.equal(kept, images[:, None].expand(-1, 3, -1, -1, -1))
    assert prior.augment(torch.rand(2, 3, 20, 20), 2, generator()).shape == (2, 2, 3, 20, 20)
    for wrong in (-0.1, 1.1):
        with pytest.raises(UserError, match="strength lies between 0 and 1"):
            prior.augment(images, 1, generator(), strength=wrong)


def test_augmenting_in_mid_trajectory_moves_no_timestep(pixel, images, generator):
    prior = pixel()
    prior.timesteps(50)
    z, eps = (torch.randn(2, 3, 8, 8, generator=generator(i)) for i in (1, 2))
    before = prior.step(z, 481, eps, generator())
    prior.augment(images, 1, generator())
    assert torch.equal(prior.step(z, 481, eps, generator()), before)


def test_stronger_noise_moves_further(pixel, images, generator):
    prior = pixel()
    moved = [
        (prior.augment(images, 4, generator(), strength=s) - images[:, None]).abs().mean().item() for s in (0.1, 0.4)
    ]
    assert 0 < moved[0] < moved[1]


def test_augmenting_a_class_conditional_prior(pixel, images, generator):
    prior, labels = pixel(classes=4), torch.tensor([0, 1, 2, 2])
    free = prior.augment(images, 2, generator())
    steered = prior.augment(images, 2, generator(), labels=labels, guidance=3.0)
    assert steered.shape == free.shape and not torch.allclose(steered, free)


def test_another_prediction_is_refused(pixel):
    with pytest.raises(UserError, match="prior tiny predicts 'v_prediction', not the noise"):
        pixel(schedule={"prediction_type": "v_prediction"})
