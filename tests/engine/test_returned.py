"""What a method returns: of a wrong kind or shape it is one line that names it, and nothing runs on with it."""

from __future__ import annotations

import pytest

from dfkd.engine.evaluator import Failed

NOISE = "rand(ctx, ctx.budget.synthesis_batch)"
SYNTHESIZE, DRAW, DISTILL = "synthesize(self, ctx)", "draw(self, ctx)", "distill(self, ctx, batch)"
WRONG = {
    "no reason": ("supports(self, task)", "True", r"supports\(\) is to return None or the reason why not, not True"),
    "no schedule": ("schedule(self, budget)", "None", r"schedule\(\) is to return a list of Stage, not None"),
    "names of stages": ("schedule(self, budget)", "['distil']", r"a list of Stage, not one with 'distil' in it"),
    "half an entry": (
        "buffer_capacity(self, budget)",
        "0.5",
        r"buffer_capacity\(\) is to return a number of images, not 0\.5",
    ),
    "half a round": ("schedule(self, budget)", "[Stage('x', 0.5, 1, 4)]", r"rounds of the stage 'x' .*, not 0\.5"),
    "a stage among others": ("schedule(self, budget)", "[*super().schedule(budget), None]", "not one with None in it"),
    "no names": ("report(self)", "[0.5]", r"report\(\) is to give finite numbers by name, not \[0\.5\]"),
    "parameters": ("modules(self)", "[torch.zeros(1)]", r"a list of modules, not one with a tensor of float32 1 in it"),
    "nothing made": (SYNTHESIZE, "None", r"synthesize\(\) is to return Samples, not None"),
    "a tensor": (SYNTHESIZE, NOISE, r"Samples, not a tensor of float32 8×3×16×16"),
    "bytes": (SYNTHESIZE, f"Samples(({NOISE} * 255).byte())", r"floats in \[0, 1\], not a tensor of uint8"),
    "one channel": (SYNTHESIZE, f"Samples({NOISE}[:, :1])", r"to be N×3×16×16, not 8×1×16×16"),
    "one image": (SYNTHESIZE, f"Samples({NOISE}[0])", r"to be N×3×16×16, not 3×16×16"),
    "another size": (SYNTHESIZE, f"Samples({NOISE}[..., :8])", r"to be N×3×16×16, not 8×3×16×8"),
    "normalised": (SYNTHESIZE, f"Samples({NOISE} * 2 - 1)", r"images from -0\.99\d* to 0\.99\d* in synthesis step 1"),
    "of 255": (SYNTHESIZE, f"Samples({NOISE} * 255)", r"images from 0\.\d* to 25\d.* in synthesis step 1"),
    "doubles": (SYNTHESIZE, f"Samples({NOISE}.double())", r"floats in \[0, 1\], not a tensor of float64"),
    "made but uncounted": (SYNTHESIZE, f"Samples({NOISE}, made='8')", r"`made` of synthesize\(\) .*, not '8'"),
    "no fields": (SYNTHESIZE, f"Samples({NOISE}, fields=None)", r"the fields of synthesize\(\) .*, not None"),
    "fractions": (SYNTHESIZE, f"Samples({NOISE}, torch.zeros(8))", r"int64 8 or None, not a tensor of float32"),
    "one label": (SYNTHESIZE, f"Samples({NOISE}, torch.tensor([1]))", r"int64 8 or None, not a tensor of int64 1"),
    "a class too high": (
        SYNTHESIZE,
        f"Samples({NOISE}, torch.full((8,), ctx.spec.classes))",
        r"labels from 10 to 10 in synthesis step 1; there are 10 classes",
    ),
    "a field of fewer": (
        SYNTHESIZE,
        f"Samples({NOISE}, fields={{'priority': torch.ones(7)}})",
        r"the field 'priority' of synthesize\(\) is to be a tensor of 8 rows, not a tensor of float32 7",
    ),
    "the label that does not count": (SYNTHESIZE, f"Samples({NOISE}, torch.full((8,), 255))", "labels from 255 to 255"),
    "no image": (DRAW, f"Batch({NOISE}[:0])", "a student batch of 0 images, 8 are granted"),
    "no batch": (DRAW, f"{NOISE}", r"draw\(\) is to return a Batch, not a tensor of float32"),
    "not augmented": (DRAW, "ctx.buffer.draw(8, ctx.rng('draw'))", r"images of draw\(\) .*, not a tensor of uint8"),
    "normalised twice": (
        DRAW,
        "Batch((super().draw(ctx).images - .5) / .5)",
        r"draw\(\) returned images outside \[0, 1\] by student step 2",
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
    with pytest.raises(Failed, match=r"draw\(\) returned images that nobody counted: .* ctx\.making_images"):
        execute(cell)


SAVED = {
    "what is not there": ("generatr", "None", "`saved` names 'generatr', which the method does not have after setup"),
    "a list of modules": ("heads", "[nn.Linear(2, 2)]", "'heads' of the method's state is a list of Linear, which"),
    "a function": ("heads", "lambda: 0", "'heads' of the method's state is a function, which cannot be saved"),
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


def test_one_name_is_no_tuple_of_names(probe, execute):
    with pytest.raises(Failed, match=r"`saved` is to be a tuple of names, such as \('generator',\), not 'heads'"):
        execute(
            probe("""
    saved = ("heads")""")
        )


def test_a_state_of_ones_own_needs_nothing_of_saved(probe, execute):
    """A subclass may keep its state otherwise and leave the base's names as they are."""
    cell = probe("""
    saved = ("of the base",)

    def state_dict(self):
        return {"count": 1}

    def load_state_dict(self, state):
        assert state == {"count": 1}""")
    assert execute(cell)["status"] == "ok"


def test_what_is_flagged_before_a_stop_is_told_after_it(probe, execute):
    """The flags are part of the state: a run that is resumed between flag and look is no better than one in one go."""
    cell = probe(
        """
    def schedule(self, budget):
        return [Stage("all", 1, synthesis_steps=1, student_steps=4)]

    def draw(self, ctx):
        return Batch(super().draw(ctx).images * (2 if ctx.student_steps == 0 else 1))""",
        "evaluations=1",
    )
    record = execute(cell, time_limit=1e-9)  # after the synthesis step
    while record["cost"]["student_steps"] < 2:
        record = execute(cell, time_limit=1e-9, resume=True)
    with pytest.raises(Failed, match=r"draw\(\) returned images outside \[0, 1\] by student step 4"):
        execute(cell, resume=True)


def test_a_synthesis_step_is_told_at_once(probe, execute):
    """And not after the hours that follow it."""
    cell = probe(f"""
    def schedule(self, budget):
        return [Stage("bank", 1, synthesis_steps=9), Stage("all", 1, student_steps=4)]

    def synthesize(self, ctx):
        assert ctx.synthesis_step < 4
        return Samples({NOISE} * (2 if ctx.synthesis_step == 3 else 1))""")
    with pytest.raises(Failed, match=r"in synthesis step 3; they are to be in \[0, 1\]"):
        execute(cell)


def test_any_iterable_of_modules_and_stages_will_do(probe, execute):
    cell = probe("""
    def setup(self, ctx):
        self.adapter = torch.nn.ModuleList([torch.nn.Linear(2, 2)])

    def modules(self):
        return self.adapter

    def schedule(self, budget):
        return iter([Stage("all", 1, synthesis_steps=1, student_steps=4)])

    def buffer_capacity(self, budget):
        return budget.synthesis_batch""")
    assert execute(cell)["status"] == "ok"


def test_rounding_is_no_fault(probe, execute):
    """A resampled image may overshoot by as much; what is stored are bytes."""
    cell = probe(f"""
    def synthesize(self, ctx):
        return Samples({NOISE} * (1 + 2e-3) - 1e-3)""")
    assert execute(cell)["status"] == "ok"
