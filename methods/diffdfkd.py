"""DiffDFKD: a diffusion model guided by the teacher at every denoising step, with CutMix of its latents.

Qi et al., "Data-free Knowledge Distillation with Diffusion Models", ICME 2025; diffdfkd.md. Exact, from the published
program: equations 1-10, five images a trajectory, the prompt without the class's name, KD at T = 30. The program does
not run as published and the paper's text was not at hand, so these are ours (diffdfkd.md 5 has the items):

- the gradient passes the U-Net (item 1: the program switches it off and stops); `through_unet` off is a cheap mode;
- losses are summed over the batch, so that a trajectory moves as it does alone (item 6);
- CutMix is on (item 7), with one Beta(1, 1) draw (item 8; `cutmix_draw="nested"` is the program's);
- the last timestep is evaluated (item 9; `published_end` is the program's);
- no guidance while ᾱ_t < 0.005, and in pixel space an update of at most 5 % of ‖z‖ (diffdfkd.md 6);
- a refresh of the student is a fixed number of steps by the protocol's optimizer and schedule, which go on from one
  refresh to the next; none after the last round;
- batches may mix classes, and CutMix then pairs within a class (item 19);
- named random streams instead of one seed a call (diffdfkd.md 1.2);
- mSARC from SpaceshipNet's definition (diffdfkd.md 2.1), off by default; images stay bytes instead of JPEG files,
  resized with antialiasing; labels are integers, the protocol's precision serves refreshes too, and the last student
  ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dfkd.engine.context import Context
from dfkd.engine.method import METHODS, Budget, Method, Stage
from dfkd.priors import Prior, resize
from dfkd.synthesis import losses
from dfkd.synthesis.batchnorm import BatchNormLoss
from dfkd.synthesis.buffer import Batch, Samples
from dfkd.synthesis.cam import msarc


@METHODS.register_module("diffdfkd")
@dataclass(eq=False)
class DiffDFKD(Method):
    """Diffusion guided by the teacher, then distillation of a fresh student."""

    cites = "qi2025diffdfkd"
    prior = "diffusion"
    saved = ("final", "hits")

    calls: int = 1000  # synthesis steps; with one class a step these are G·C of diffdfkd.md 1.5
    steps: int = 50  # N, denoising steps of a trajectory
    guidance: float = 3.0  # w, classifier-free guidance, where the prior knows a condition
    bn: float = 0.1  # α, β, γ, the weights of L_inv (eq. 7)
    oh: float = 1.0
    adv: float = 1.0
    eta: float = 1.0  # step size of eq. 8
    adversarial_from: int = 101  # the first synthesis step (1-based) with L_adv
    refresh_every: int = 100  # synthesis steps after which the student is refreshed; with `adv` only
    refresh_steps: int = 400  # student steps of a refresh, on all images so far
    cutmix: int = 5  # CutMix takes place every k = ⌊N/`cutmix`⌋ steps but at the last one; 0: never
    # Of its box: "beta"; "nested" for the program's Beta(u, u) with u from Beta(1, 1); "none" mixes nothing but keeps
    # the images of those moments.
    cutmix_draw: str = "beta"
    intermediate: bool = True  # keep x̂_t at those moments too, five images a trajectory at `cutmix` 5
    mixed: bool = False  # as many classes in turn as leave two trajectories to each, instead of one class a step
    floor: float = 0.005  # no guidance while ᾱ_t is below this
    cap: float | None = None  # the largest update as a share of ‖z_t‖; 0: none; by default .05 in pixel space only
    through_unet: bool = True  # let the gradient pass the U-Net; off, ε̂ is held constant: cheap, another direction
    warm_steps: int = 0  # extra updates with 0.1·L_bn at the first timestep (FedCADO's; 0 in the scripts)
    published_end: bool = False  # the program's end: the last timestep is skipped, the image made of the old ε̂ and t
    prompt: str = "A realistic photo"  # what a text-conditioned prior is told
    class_names: bool = False  # add the class's name to it (side information)
    msarc: float = 0.0  # λ of mSARC in the distillation loss
    temperature: float = 30.0  # T of the distillation loss

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(calls=1, adversarial_from=0, refresh_every=1, refresh_steps=0, cutmix=0, warm_steps=0)
        if self.cutmix_draw not in ("beta", "nested", "none"):
            raise ValueError(f"cutmix_draw must be 'beta', 'nested' or 'none', not {self.cutmix_draw!r}")
        if self.steps < max(2, self.cutmix):
            raise ValueError(f"steps must be at least {max(2, self.cutmix)}, not {self.steps}")
        if self.cap is not None and not (isinstance(self.cap, float | int) and self.cap >= 0):
            raise ValueError(f"cap must be a number, at least 0, not {self.cap!r}")
        if self.adv and self.calls % self.refresh_every:
            raise ValueError(f"{self.calls} calls do not divide into refreshes every {self.refresh_every}")
        self.every = self.steps // self.cutmix if self.cutmix else 0  # k
        self.final, self.hits = 0, 0
        if self.class_names:
            self.prior = "diffusion, class names"

    @property
    def guided(self) -> bool:
        return bool(self.bn or self.oh or self.adv)

    @property
    def _pairs(self) -> bool:
        """Whether CutMix needs two trajectories of the one class of a batch."""
        return bool(self.cutmix) and self.cutmix_draw != "none" and not self.mixed

    def moments(self) -> list[int]:
        """The steps j (1-based) of CutMix, and of the images kept on the way."""
        return list(range(self.every, self.steps, self.every)) if self.every else []

    def images_of_a_trajectory(self) -> int:
        return 1 + (len(self.moments()) if self.intermediate else 0)

    def schedule(self, budget: Budget) -> list[Stage]:
        distil = Stage("distil", budget.rounds, student_steps=budget.steps_per_round, reset_student=True)
        if not self.adv:
            # Nothing here knows the student: one set serves every student of the teacher.
            return [Stage("generate", 1, synthesis_steps=self.calls, shared=True), distil]
        rounds = self.calls // self.refresh_every
        generate = Stage(
            "generate", rounds - 1, synthesis_steps=self.refresh_every, student_steps=self.refresh_steps, scored=False
        )
        return [generate, Stage("generate, last", 1, synthesis_steps=self.refresh_every), distil]

    def setup(self, ctx: Context) -> None:
        if ctx.prior is None or not ctx.prior.guides:
            raise ValueError("it needs a diffusion model that can be guided, see `prior` in the protocol")
        self.trajectories, rest = divmod(ctx.budget.synthesis_batch, self.images_of_a_trajectory())
        if rest or self.trajectories < (2 if self._pairs else 1):
            raise ValueError(
                f"synthesis_batch must be a multiple of {self.images_of_a_trajectory()} images a trajectory, and "
                f"give CutMix two of them, not {ctx.budget.synthesis_batch}"
            )
        if self.class_names and ctx.prior.classes not in (None, ctx.spec.classes):
            raise ValueError(f"the diffusion model knows {ctx.prior.classes} classes, not {ctx.spec.classes}")
        self.statistics = BatchNormLoss(ctx.teacher)
        if self.cap is None:
            self.cap = 0.05 if ctx.prior.pixel_space else 0.0

    def synthesize(self, ctx: Context) -> Samples:
        count, classes = self.trajectories, ctx.spec.classes
        shown = min(classes, max(1, count // 2)) if self.mixed else 1
        labels = (torch.arange(count, device=ctx.device) % shown + (ctx.synthesis_step - 1) * shown) % classes
        kept = self.sample(ctx, labels)
        with torch.no_grad():
            self.hits = self.hits + (ctx.teacher(kept[-1]).argmax(1) == labels).sum()
        self.final += count
        return Samples(torch.cat(kept), labels.repeat(len(kept)))

    def sample(self, ctx: Context, labels: Tensor) -> list[Tensor]:
        """One batch of trajectories: images B×C×H×W in [0, 1] at each moment kept, the final ones last (eqs. 1-10)."""
        prior, count = ctx.prior, len(labels)
        condition = self._condition(ctx, labels)
        timesteps, moments, kept = prior.timesteps(self.steps), self.moments(), []
        z = ctx.noise(count, *prior.latent_shape)
        for j, t in enumerate(timesteps[:-1] if self.published_end else timesteps, 1):
            for _ in range(self.warm_steps if j == 1 else 0):
                z, _ = self._guide(ctx, z, t, condition, labels, bn=0.1, oh=0.0, adv=0.0)
            adv = self.adv if ctx.synthesis_step >= self.adversarial_from else 0.0
            if self.guided and prior.alpha(t) >= self.floor:
                z, image = self._guide(ctx, z, t, condition, labels, self.bn, self.oh, adv)
            elif j in moments:
                image = self._look(ctx, z, t, self._noise(prior, z, t, condition))
            if j in moments:
                if self.intermediate:
                    kept.append(image)
                if self.cutmix_draw != "none":
                    z = latent_cutmix(z, labels, ctx.rng.host("cutmix"), ctx.rng("cutmix"), self.cutmix_draw)
            eps = self._noise(prior, z, t, condition)
            if t != timesteps[-1]:
                z = prior.step(z, t, eps, ctx.rng("sampler"))
        return [image.clamp(0, 1) for image in (*kept, self._look(ctx, z, t, eps))]

    def _condition(self, ctx: Context, labels: Tensor) -> object:
        if not self.class_names:
            return ctx.prior.condition(len(labels), f"{self.prompt}.", None, self.guidance)
        prompts = [f"{self.prompt} of {ctx.class_names[label]}." for label in labels.tolist()]
        return ctx.prior.condition(len(labels), prompts, labels, self.guidance)

    @torch.no_grad()
    def _noise(self, prior: Prior, z: Tensor, t: int, condition: object) -> Tensor:
        return prior.noise(z, t, condition)

    def _look(self, ctx: Context, z: Tensor, t: int, eps: Tensor) -> Tensor:
        """x̂_t in the teacher's size (eqs. 2, 3), which may overshoot [0, 1]: what guides is not clamped (item 11)."""
        return resize(ctx.prior.decode(ctx.prior.clean(z, t, eps)), ctx.spec.size, clamp=False)

    def _guide(
        self,
        ctx: Context,
        z: Tensor,
        t: int,
        condition: object,
        labels: Tensor,
        bn: float,
        oh: float,
        adv: float,
    ) -> tuple[Tensor, Tensor]:
        """z_t one step down the gradient of L_inv (eqs. 4-8), and x̂_t before it, not clamped."""
        z = z.detach().requires_grad_(True)
        if self.through_unet:
            eps = ctx.prior.noise(z, t, condition)
        else:
            eps = self._noise(ctx.prior, z, t, condition)
        image = self._look(ctx, z, t, eps)
        with self.statistics.capture():
            teacher = ctx.teacher(image)
        # Summed over trajectories: each of them moves as it would alone.
        loss = len(z) * (bn * self.statistics.loss() + oh * losses.cross_entropy(teacher, labels).mean())
        if adv:
            loss = loss + adv * losses.adversarial(teacher.detach(), ctx.student(image)).sum()
        (gradient,) = torch.autograd.grad(loss, z)
        return (z - capped(self.eta * gradient, z, self.cap)).detach(), image.detach()

    def distill(self, ctx: Context, batch: Batch) -> dict[str, Tensor]:
        if not self.msarc:
            return super().distill(ctx, batch)
        # Grad-CAM needs the teacher's gradients with respect to its maps.
        teacher = ctx.teacher.inspect(batch.images.detach().clone().requires_grad_(True))
        student = ctx.student.inspect(batch.images)
        divergence = losses.kl(teacher.logits.detach(), student.logits, self.temperature).mean()
        return {"kd": divergence, "msarc": self.msarc * msarc(teacher, student)}

    def report(self) -> dict[str, float]:
        """The share of final images that the teacher assigns to their class."""
        return {"final_agreement": int(self.hits) / self.final} if self.final else {}


def capped(update: Tensor, z: Tensor, cap: float) -> Tensor:
    """`update` with at most `cap` times the norm of `z`, for each sample; 0 leaves it alone."""
    if not cap:
        return update
    norm, limit = (torch.linalg.vector_norm(x.flatten(1), dim=1) for x in (update, z))
    return update * (cap * limit / norm.clamp_min(1e-12)).clamp_max(1)[:, None, None, None]


def latent_cutmix(
    z: Tensor, labels: Tensor, host: torch.Generator, generator: torch.Generator, draw: str = "beta"
) -> Tensor:
    """One box of every map is replaced by that of a partner of the same class (diffdfkd.md 1.6).

    Args: z N×C×H×W, labels N; `host` draws the box, `generator` the partners. One box for the batch, all channels; a
    sample may be its own partner.
    """
    top, bottom, left, right = cutmix_box(z.shape[2], z.shape[3], host, draw)
    # Random order within each class, laid over the stable order within each class.
    scattered = (labels + torch.rand(len(z), generator=generator, device=z.device)).argsort()
    partner = torch.empty_like(scattered)
    partner[labels.argsort(stable=True)] = scattered
    mixed = z.clone()
    mixed[:, :, top:bottom, left:right] = z[partner, :, top:bottom, left:right]
    return mixed


def cutmix_box(height: int, width: int, host: torch.Generator, draw: str) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a box that covers 1 − λ of the map before clipping, λ from Beta(1, 1)."""
    share, y, x = torch.rand(3, generator=host, dtype=torch.float64).tolist()
    if draw == "nested":
        seed = int(torch.randint(2**31, (), generator=host))
        share = np.random.default_rng(seed).beta(share, share)
    side = (1 - share) ** 0.5
    edges = []
    for centre, extent in ((y, height), (x, width)):
        edges += [round(min(max(extent * (centre + sign * side / 2), 0), extent)) for sign in (-1, 1)]
    return tuple(edges)
