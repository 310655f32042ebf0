"""DiffDFKD and DDA on a tiny random Stable Diffusion, DDA on its image variations: whole runs, then the methods alone.

Equations are those of diffdfkd.md 1.4. The named random streams take the place of the program's running counter
(diffdfkd.md 1.2).
"""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import methods.diffdfkd
from dfkd.errors import UserError
from dfkd.priors import load
from dfkd.priors.stable_diffusion import ImageVariations, StableDiffusion
from dfkd.synthesis.buffer import Samples, to_bytes
from dfkd.tasks import task
from methods.dda import DDA
from methods.diffdfkd import DiffDFKD
from tests.conftest import outcome, student_digest
from tests.golden.test_cmi import BUDGET, CLASSES, SIZE, context, patches
from tests.priors import conftest as models

stable_diffusion_folder, variations_folder = models.stable_diffusion_folder, models.variations_folder

with_stable_diffusion = pytest.mark.parametrize("prior", ["stable_diffusion_folder"], indirect=True)


@pytest.fixture
def prior(request):
    """(folder, card) of the pipeline that `execute` runs with, instead of the pixel model."""
    folder = request.getfixturevalue(request.param)
    return folder, models.card_for(folder)


@pytest.fixture
def calls(monkeypatch):
    """What each synthesis step returned, of all runs of the test."""
    found = []
    for method in (DiffDFKD, DDA):

        def spy(self, ctx, synthesize=method.synthesize):
            found.append(synthesize(self, ctx))
            return found[-1]

        monkeypatch.setattr(method, "synthesize", spy)
    return found


# --- through `run`


@with_stable_diffusion
def test_diffdfkd_runs_on_stable_diffusion(prior, tiny, execute, calls):
    record = execute(tiny("diffdfkd"))
    assert (record["status"], record["error"]) == ("ok", None)
    facts = {key: record["prior"][key] for key in ("kind", "name", "trained_on", "digest")}
    card = prior[1]
    assert facts == {"kind": "diffusion"} | {key: card[key] for key in ("name", "trained_on", "digest")}
    assert card["kind"] == "stable-diffusion"
    assert [samples.labels.tolist() for samples in calls] == [[0] * 10, [1] * 10]
    for samples in calls:
        assert samples.images.shape == (10, 3, 16, 16)
        assert samples.images.min() >= 0 and samples.images.max() <= 1
        assert len({image.numpy().tobytes() for image in samples.images}) == 10
    assert record["cost"]["images_synthesised"] == record["diagnostics"]["images"] == 20
    # A call: two trajectories guided at each of five steps, and a look at the last images. Then eight images in the
    # refresh's one step and in each of the student's four.
    assert record["cost"]["teacher_forwards"] == 2 * (2 * 5 + 2) + 8 + 4 * 8
    assert record["report"]["final_agreement"] in (0, 0.25, 0.5, 0.75, 1)
    assert record["diagnostics"]["agreement"] is not None, "the images came with labels"


@pytest.mark.parametrize(
    ("prior", "kind", "backend", "options"),
    [
        ("stable_diffusion_folder", "stable-diffusion", StableDiffusion, {"steps": 4, "strength": 0.5}),
        ("variations_folder", "image-variations", ImageVariations, {"steps": 4}),
    ],
    indirect=["prior"],
)
def test_dda_runs_on_both_pipelines(prior, kind, backend, options, tiny, execute, calls, monkeypatch):
    made, augment = [], backend.augment

    def spy(self, images, count, generator, **how):
        variants = augment(self, images, count, generator, **how)
        made.append((images, count, how, variants.flatten(0, 1)))
        return variants

    monkeypatch.setattr(backend, "augment", spy)
    record = execute(tiny("dda"))
    assert (record["status"], record["error"]) == ("ok", None)
    assert (record["prior"]["kind"], record["prior"]["name"]) == ("diffusion", prior[1]["name"])
    assert prior[1]["kind"] == kind and record["prior"]["digest"] == prior[1]["digest"]
    assert record["report"]["filter_kept"] == 0.5 and -1 < record["report"]["cosine"] < 1
    assert record["cost"]["images_synthesised"] == 2 * 6 + 2 * 6 * 2 + 2 * 8
    assert [len(samples.labels) for samples in calls] == [6, 6, 6, 6, 8, 8]
    bank, kept = calls[:2], calls[2:4]
    assert len(made) == 2
    for source, samples, (images, count, how, variants) in zip(bank, kept, made, strict=True):
        assert (count, how, samples.made) == (2, options, 12)
        assert torch.equal(to_bytes(images), to_bytes(source.images))
        rows = (samples.images[:, None] == variants).flatten(2).all(2)
        assert (rows.sum(1) == 1).all(), "each is one of the variants as the pipeline made it"
        assert torch.equal(samples.labels, source.labels[rows.int().argmax(1) // 2]), "under its source's label"
        sources = images.repeat_interleave(2, 0)
        assert (variants - sources).abs().amax((1, 2, 3)).min() > 0.01


@pytest.mark.parametrize("prior", ["variations_folder"], indirect=True)
def test_diffdfkd_refuses_image_variations(prior, tiny, execute):
    with pytest.raises(UserError, match="a diffusion model that can be guided"):
        execute(tiny("diffdfkd"))


@pytest.mark.parametrize(
    ("method", "prior", "first"),
    [("diffdfkd", "stable_diffusion_folder", 1), ("dda", "variations_folder", 3)],
    indirect=["prior"],
)
def test_the_seed_decides_a_run_stopped_or_not(method, prior, first, tiny, execute, calls, tmp_path):
    """Stopped after `first` calls: DiffDFKD between two classes, DDA between the variants of two bank calls."""
    whole = execute(tiny(method))
    digest, images = student_digest(whole, tmp_path), torch.cat([samples.images for samples in calls])
    count = len(calls)
    calls.clear()
    record = execute(tiny(method), time_limit=1e-9)
    while len(calls) < first:
        record = execute(tiny(method), time_limit=1e-9, resume=True)
    assert record["status"] == "partial" and len(calls) == first
    record = execute(tiny(method), resume=True)
    assert len(calls) == count, "no call was made twice"
    assert torch.equal(torch.cat([samples.images for samples in calls]), images)
    assert outcome(record) == outcome(whole) and student_digest(record, tmp_path) == digest
    calls.clear()
    other = execute(tiny(method, seed=1))
    assert other["status"] == "ok" and student_digest(other, tmp_path) != digest
    assert not torch.equal(calls[0].images, images[: len(calls[0].images)])


@with_stable_diffusion
def test_class_names_reach_the_prompt_and_the_record(prior, tiny, execute, monkeypatch):
    asked, condition = [], StableDiffusion.condition

    def spy(self, count, prompt="", labels=None, guidance=1.0):
        asked.append((prompt, guidance))
        return condition(self, count, prompt, labels, guidance)

    monkeypatch.setattr(StableDiffusion, "condition", spy)
    record = execute(tiny("diffdfkd", "class_names=true"))
    assert record["status"] == "ok" and record["prior"]["kind"] == "diffusion, class names"
    names = task("digits").class_names
    assert asked == [([f"A realistic photo of {names[label]}."] * 2, 3.0) for label in (0, 1)]


# --- DiffDFKD alone: latents of 4 x 8 x 8, images of 16 x 16, a teacher that takes 8 x 8

T = 481
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module")
def stable_diffusion(stable_diffusion_folder):
    return load(stable_diffusion_folder, models.card_for(stable_diffusion_folder), "cpu", "fp32")


@pytest.fixture(scope="module")
def variations(variations_folder):
    return load(variations_folder, models.card_for(variations_folder), "cpu", "fp32")


@pytest.fixture
def latents():
    return torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def guiding(prior, **options):
    """A context of 30 images a call, six trajectories, and the method."""
    ctx = context(budget=replace(BUDGET, synthesis_batch=30), prior=prior)
    ctx.class_names, ctx._progress.synthesis_step = ("cat", "dog", "emu"), 1
    method = DiffDFKD(**{"calls": 4, "steps": 5, "refresh_every": 1, "mixed": True, **options})
    method.setup(ctx)
    return ctx, method


def inversion_loss(ctx, z, labels, prompt, w):
    """Equations 1 to 7 with the default weights, in float64 on copies of the networks: L_inv, and x̂_t resized, which
    overshoots [0, 1]."""
    pipeline = ctx.prior.pipeline
    unet, vae = (copy.deepcopy(part).double() for part in (pipeline.unet, pipeline.vae))
    null, given = (
        pipeline.text_encoder(pipeline.tokenizer([text], padding="max_length", return_tensors="pt").input_ids)[0]
        for text in ("", prompt)
    )
    null, given = (
        unet(z, T, encoder_hidden_states=text.double().expand(len(z), -1, -1)).sample for text in (null, given)
    )
    alpha = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)[T]
    clean = (z - (1 - alpha).sqrt() * (null + w * (given - null))) / alpha.sqrt()
    image = (vae.decode(clean / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    x = F.interpolate(image, (SIZE, SIZE), mode="bicubic", antialias=True)
    teacher, student = (copy.deepcopy(network.network).double() for network in (ctx.teacher, ctx.student))
    l_bn, found = 0.0, x
    for stage in (teacher.one, teacher.two):
        entering = stage[0](found)
        mean, variance = entering.mean((0, 2, 3)), entering.var((0, 2, 3), unbiased=False)
        l_bn = l_bn + (mean - stage[1].running_mean).norm() + (variance - stage[1].running_var).norm()
        found = stage(found)
    logits, theirs = teacher(x), student(x)
    fixed = logits.detach()
    divergence = (fixed.softmax(1) * (fixed.log_softmax(1) - theirs.log_softmax(1))).sum(1)
    l_adv = -((fixed.argmax(1) == theirs.argmax(1)) * divergence).mean()
    return 0.1 * l_bn + F.cross_entropy(logits, labels) + l_adv, x


def test_guidance_moves_the_latent_by_the_gradient_of_the_loss(stable_diffusion, latents):
    """Equations 1 to 8, through resizing, VAE and U-Net; in latent space nothing is capped (diffdfkd.md 6)."""
    ctx, method = guiding(stable_diffusion, prompt="photo", eta=0.5)
    assert method.cap == 0
    condition = stable_diffusion.condition(6, "photo.", None, 3.0)
    z, image = method._guide(ctx, latents, T, condition, LABELS, 0.1, 1.0, 1.0)
    assert z.shape == (6, 4, 8, 8) and not z.requires_grad
    exact = latents.double().requires_grad_(True)
    loss, x = inversion_loss(ctx, exact, LABELS, "photo.", 3.0)
    (gradient,) = torch.autograd.grad(6 * loss, exact)
    update = z - latents
    assert update.abs().amax((2, 3)).min() > 1e-5, "all four channels of every trajectory"
    torch.testing.assert_close(update.double(), -0.5 * gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())
    torch.testing.assert_close(image.double(), x.detach(), rtol=1e-4, atol=1e-5)


def test_guidance_brings_the_images_to_their_classes(stable_diffusion):
    """Whole trajectories from equal noise, with and without L_cls, the one term that knows the class."""
    losses = {}
    for oh in (0.0, 1.0):
        ctx, method = guiding(stable_diffusion, steps=10, bn=0.0, adv=0.0, oh=oh, cutmix=0)
        (images,) = method.sample(ctx, LABELS)
        losses[oh] = F.cross_entropy(ctx.teacher(images), LABELS).item()
    assert losses[1.0] < losses[0.0] - 0.1


def test_boxes_are_pasted_on_all_four_channels_within_a_class(stable_diffusion, monkeypatch):
    """diffdfkd.md 1.6 and 1.7, and the step after it begins from the mixed latent."""
    ctx, method = guiding(stable_diffusion)
    mixed, seen = [], []
    cutmix, noise = methods.diffdfkd.latent_cutmix, stable_diffusion.noise

    def spy(z, labels, *rest):
        mixed.append((z, labels, cutmix(z, labels, *rest)))
        return mixed[-1][2]

    def listen(z, t, condition):
        seen.append((t, z.detach().clone()))
        return noise(z, t, condition)

    monkeypatch.setattr(methods.diffdfkd, "latent_cutmix", spy)
    monkeypatch.setattr(stable_diffusion, "noise", listen)
    samples = method.synthesize(ctx)
    assert samples.images.shape == (30, 3, SIZE, SIZE)
    assert samples.labels.tolist() == 5 * LABELS.tolist(), "every image of a trajectory has its class"
    assert len(mixed) == 4 and len(seen) == 2 * 5  # a step asks twice: to guide, and to go on
    pasted_at = 0
    for step, (z, labels, after) in enumerate(mixed):
        assert z.shape == after.shape == (6, 4, 8, 8) and torch.equal(labels, LABELS)
        assert torch.equal(seen[2 * step + 1][1], after)
        pasted = after != z
        assert torch.equal(pasted, pasted[:, :1].expand(-1, 4, -1, -1))
        for i in pasted.flatten(1).any(1).nonzero().flatten().tolist():
            pasted_at += 1
            ys, xs = pasted[i, 0].nonzero().T
            box = (i, slice(None), slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1))
            assert pasted[box].all(), "one rectangle"
            partner = (i + CLASSES) % 6  # the other one of its class
            assert torch.equal(after[box], z[(partner, *box[1:])])
    assert pasted_at >= 2


def test_equal_seeds_give_equal_images_and_the_next_call_others(stable_diffusion):
    """diffdfkd.md 1.2; no draw is from the process-wide generator."""
    found = []
    for seed in (1, 2):
        ctx, method = guiding(stable_diffusion, adversarial_from=9)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        images = []
        for ctx._progress.synthesis_step in (1, 2):
            images.append(method.synthesize(ctx).images)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(images)
    one, again = found
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    # Six trajectories are each of three classes twice: the labels of both calls are the same.
    assert (one[0] - one[1]).abs().amax((1, 2, 3)).min() > 0.01


def test_class_names_change_the_prompts_and_the_images(stable_diffusion, monkeypatch):
    asked, condition, images = [], stable_diffusion.condition, {}

    def spy(count, prompt, labels, guidance):
        asked.append(prompt)
        return condition(count, prompt, labels, guidance)

    monkeypatch.setattr(stable_diffusion, "condition", spy)
    animals = ("cat", "dog", "emu")
    for names in ((), animals, ("cat", "owl", "emu")):
        # Without the term that is of the whole batch, so that a trajectory is its own.
        ctx, method = guiding(stable_diffusion, prompt="photo", class_names=bool(names), bn=0.0)
        ctx.class_names = names or animals
        images[names] = method.synthesize(ctx).images
    plain, named, renamed = images.values()
    assert asked[:2] == ["photo.", [f"photo of {name}." for name in animals] * 2]
    assert (named - plain).abs().amax((1, 2, 3)).min() > 1e-3
    changed = (renamed - named).abs().amax((1, 2, 3)) > 1e-3
    assert changed.tolist() == [label == 1 for label in LABELS.tolist() * 5], "the dogs alone"


def test_images_are_brought_to_the_teacher_s_size(stable_diffusion, monkeypatch):
    """Those kept on the way and the last ones: bicubic with antialiasing, of 16 x 16 that the decoder makes."""
    decoded, decode = [], stable_diffusion.decode

    def spy(clean):
        decoded.append(decode(clean))
        return decoded[-1]

    monkeypatch.setattr(stable_diffusion, "decode", spy)
    ctx, method = guiding(stable_diffusion)
    images = method.sample(ctx, LABELS)
    assert len(images) == 5 and len(decoded) == 6  # guided at each of five steps; the last image is another look
    for small, large in zip(images, [*decoded[:4], decoded[5]], strict=True):
        assert large.shape == (6, 3, 16, 16) and small.shape == (6, 3, SIZE, SIZE)
        expected = F.interpolate(large, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        torch.testing.assert_close(small, expected.detach())


# --- DDA alone: a bank of 8 x 8


def augmenting(prior, **options):
    """A context whose bank holds two calls of five images, and the method before its first augmenting call."""
    ctx = context(prior=prior)
    defaults = dict(nz=4, ngf=2, memory=40, steps=2, bank_steps=2, bank_batch=5, bank_calls=2, threshold=-1.0)
    method = DDA(**{**defaults, "variants": 3, "diffusion_steps": 4, "strength": 0.5, **options})
    method.setup(ctx)
    ctx.buffer.add(Samples(patches(10), torch.arange(10) % CLASSES))
    ctx._progress.synthesis_step = 3
    return ctx, method


@pytest.mark.parametrize("name", ["stable_diffusion", "variations"])
def test_variants_are_the_banks_size_with_the_labels_of_their_sources(name, request):
    ctx, method = augmenting(request.getfixturevalue(name))
    for ctx._progress.synthesis_step in (3, 4):
        samples = method.synthesize(ctx)
        assert samples.images.shape == (15, 3, SIZE, SIZE) and ctx.prior.size == 2 * SIZE
        assert samples.images.min() >= 0 and samples.images.max() <= 1
        first = 5 * (ctx.synthesis_step - 3)
        labels = [i % CLASSES for i in range(first, first + 5) for _ in range(3)]
        assert samples.labels.tolist() == labels
    assert method.report()["filter_kept"] == 1


@pytest.mark.parametrize("name", ["stable_diffusion", "variations"])
def test_equal_seeds_give_equal_variants_and_the_next_call_others(name, request):
    prior, found = request.getfixturevalue(name), []
    for seed in (1, 2):
        ctx, method = augmenting(prior)
        ctx.buffer.images[5:10] = ctx.buffer.images[:5]  # both calls begin from the same images
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        sets = []
        for ctx._progress.synthesis_step in (3, 4):
            sets.append(method.synthesize(ctx).images)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(sets)
    one, again = found
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert (one[0] - one[1]).abs().amax((1, 2, 3)).min() > 1e-3
    assert len({image.numpy().tobytes() for image in torch.cat(one)}) == 30


def test_the_filter_sees_how_far_stable_diffusion_has_drifted(stable_diffusion):
    cosines = []
    for strength in (0.0, 0.25, 1.0):
        ctx, method = augmenting(stable_diffusion, strength=strength)
        samples = method.synthesize(ctx)
        cosines.append(method.report()["cosine"])
        if not strength:
            assert torch.equal(to_bytes(samples.images), ctx.buffer.images[:5].repeat_interleave(3, 0))
    assert cosines[0] == pytest.approx(1, abs=1e-5) and max(cosines[1:]) < 0.99
