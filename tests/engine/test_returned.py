"""What a method returns: of a wrong kind or shape it is one line that names it, and nothing runs on with it."""

from __future__ import annotations

import pytest

from dfkd.engine.evaluator import Failed

NOISE = "rand(ctx, ctx.budget.synthesis_batch)"
SYNTHESIZE, DRAW, DISTILL = "synthesize(self, ctx)", "draw(self, ctx)", "distill(self, ctx, batch)"
WRONG = {
    "no reason": ("supports(self, task)", "True", r"supports\(\) is to return None or the reason why not, not True"),
    "no schedule": ("schedule(self, budget)", "None", r"schedule\(\) is to return a list of Stage, not None"),
    "names of stages": ("schedule(self, budget)", "['distil']", r"a list of Stage, not a list of str"),
    "half an entry": ("buffer_capacity(self, budget)", "0.5", r"number of images of at least 1, not 0\.5"),
    "no entry": ("buffer_capacity(self, budget)", "0", r"number of images of at least 1, not 0"),
    "parameters": ("modules(self)", "[torch.zeros(1)]", r"a list of modules, not a list of Tensor"),
    "nothing made": (SYNTHESIZE, "None", r"synthesize\(\) is to return Samples, not None"),
    "a tensor": (SYNTHESIZE, NOISE, r"Samples, not a tensor of float32 8×3×16×16"),
    "bytes": (SYNTHESIZE, f"Samples(({NOISE} * 255).byte())", r"floats in \[0, 1\], not a tensor of uint8"),
    "one channel": (SYNTHESIZE, f"Samples({NOISE}[:, :1])", r"to be N×3×16×16, not 8×1×16×16"),
    "one image": (SYNTHESIZE, f"Samples({NOISE}[0])", r"to be N×3×16×16, not 3×16×16"),
    "another size": (SYNTHESIZE, f"Samples({NOISE}[..., :8])", r"to be N×3×16×16, not 8×3×16×8"),
    "normalised": (SYNTHESIZE, f"Samples({NOISE} * 2 - 1)", r"an image of the method was outside \[0, 1\]"),
    "of 255": (SYNTHESIZE, f"Samples({NOISE} * 255)", r"an image of the method was outside \[0, 1\]"),
    "fractions": (SYNTHESIZE, f"Samples({NOISE}, torch.zeros(8))", r"int64 8 or None, not a tensor of float32"),
    "one label": (SYNTHESIZE, f"Samples({NOISE}, torch.tensor([1]))", r"int64 8 or None, not a tensor of int64 1"),
    "a class too high": (
        SYNTHESIZE,
        f"Samples({NOISE}, torch.full((8,), ctx.spec.classes))",
        "a label of the method was of no class",
    ),
    "a field of fewer": (
        SYNTHESIZE,
        f"Samples({NOISE}, fields={{'priority': torch.ones(7)}})",
        r"the field 'priority' of synthesize\(\) is to be a tensor of 8 rows, not a tensor of float32 7",
    ),
    "no batch": (DRAW, f"{NOISE}", r"draw\(\) is to return a Batch, not a tensor of float32"),
    "not augmented": (DRAW, "ctx.buffer.draw(8, ctx.rng('draw'))", r"images of draw\(\) .*, not a tensor of uint8"),
    "normalised twice": (
        DRAW,
        "Batch((super().draw(ctx).images - .5) / .5)",
        r"an image of the method was outside \[0, 1\]",
    ),
    "a tensor for losses": (DISTILL, "torch.zeros(())", r"a dict of named losses, not a tensor of one float32"),
    "no loss": (DISTILL, "{}", r"a dict of named losses, not an empty dict"),
    "a loss an image": (
        DISTILL,
        "{'kd': ctx.student(batch.images).sum(1)}",
        r"the loss 'kd' of distill\(\) is to be a tensor of one number, not a tensor of float32 8",
    ),
    "a number": (DISTILL, "super().distill(ctx, batch) | {'x': 0.5}", r"the loss 'x' .*, not 0\.5"),
    "another network's": (
        DISTILL,
        "{'kd': ctx.teach(batch.images).mean()}",
        r"no loss of distill\(\) has a gradient",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_return_is_one_line(case, probe, execute):
    header, value, told = WRONG[case]
    kept = []
    with pytest.raises(Failed, match=f"^the method is at fault: .*{told}") as failure:
        execute(probe(f"    def {header}:\n        return {value}"), keep=kept.append)
    assert "\n" not in str(failure.value)
    assert kept[0]["status"] == "failed" and kept[0]["error"] == str(failure.value)


def test_images_that_are_not_counted_are_refused(probe, execute):
    cell = probe("""
    def schedule(self, budget):
        return [Stage("all", 2, student_steps=2)]

    def draw(self, ctx):
        return Batch(rand(ctx, ctx.budget.batch))""")
    with pytest.raises(Failed, match=r"draw\(\) makes its images outside `with ctx\.making_images\(count\):`"):
        execute(cell)


SAVED = {
    "what is not there": ("generatr", "None", "`saved` names 'generatr', which the method does not have after setup"),
    "a list of modules": (
        "heads",
        "[nn.Linear(2, 2)]",
        "'heads' of its state is a list of Linear, which",
    ),
    "a function": ("heads", "lambda: 0", "'heads' of its state is a function, which"),
}


@pytest.mark.parametrize("case", SAVED)
def test_a_state_that_cannot_be_read_back_is_refused_before_the_first_step(case, probe, execute):
    name, value, told = SAVED[case]
    cell = probe(f"""
    from torch import nn
    saved = ({name!r},)

    def setup(self, ctx):
        nn = torch.nn
        self.heads = {value}

    def synthesize(self, ctx):
        raise AssertionError("too late")""")
    with pytest.raises(Failed, match=f"the method is at fault: {told}"):
        execute(cell)


def test_what_is_flagged_before_a_stop_is_told_after_it(probe, execute):
    """The flags are part of the state: a run that is resumed between flag and look is no better than one in one go."""
    cell = probe(f"""
    def schedule(self, budget):
        return [Stage("all", 1, synthesis_steps=2, student_steps=4)]

    def synthesize(self, ctx):
        return Samples({NOISE} * (2 if ctx.synthesis_step == 1 else 1))""")
    assert execute(cell, time_limit=1e-9)["status"] == "partial"
    with pytest.raises(Failed, match=r"outside \[0, 1\]"):
        execute(cell, resume=True)


def test_rounding_is_no_fault(probe, execute):
    """A resampled image may overshoot by as much; what is stored are bytes."""
    cell = probe(f"""
    def synthesize(self, ctx):
        return Samples({NOISE} * (1 + 2e-3) - 1e-3)""")
    assert execute(cell)["status"] == "ok"
