"""Bad input of every kind, to every option of every verb and in every kind of file: one line, and nothing is left.

A fault that comes up is a row more. Files are written below the folder that the command runs in, which has its own
benchmarks/ and results/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

import bench
from dfkd import paths as places
from dfkd.tables.definition import table_of
from tests.conftest import BUDGET, PAIR, TINY

SMALL = (*(f"--set={change}" for change in TINY["template"]), *(f"--set={change}" for change in BUDGET))
QUICK = ("run", "--data=digits", f"--pair={PAIR}", "--device=cpu")
RUN = (*QUICK, "--method=template")  # of which what a row sets may come a second time: the last one counts
CIFAR = (
    "run",
    "--data=cifar10",
    "--pair=resnet8-resnet8",
    "--device=cpu",
    "--protocol=cpu",
    "--method=template",
)
TEACHER = ("teacher", "--data=digits", "--arch=resnet8", "--device=cpu")
PRIOR = ("prior", "--data=glyphs", "--size=16", "--device=cpu")
LONG = "x" * 100_000
DEEP = "[" * 100_000
BILLION = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)
)
BROKEN: dict[str, str | bytes] = {
    "half": '{"half',
    "a list": "[]",
    "deep": DEEP,
    "not UTF-8": b"\xff",
    "empty": "",
    "nothing": "{}",
}
# In place of a file.
FOLDER, PIPE, BROKEN_LINK, LOOP = "<a folder>", "<a pipe>", "<a link to nowhere>", "<a link to itself>"
_SPLIT = {"images": [4, 32, 32, 3], "images_sha256": "0" * 64, "labels": [4], "labels_sha256": "0" * 64}
MANIFEST = {
    "name": "cifar10",
    "classes": [str(i) for i in range(10)],
    "changed": "",
    "splits": {"train": _SPLIT, "test": _SPLIT},
}
TABLE, OTHER = "benchmarks/digits/table.yaml", "benchmarks/cifar10/table.yaml"
RECORD = "results/records/digits/wrn16_2-wrn16_1/fast-5/quick-seed0.json"


class Row(NamedTuple):
    """What is written first (None deletes a file), what is run, and what it must come to."""

    arguments: tuple[str, ...]
    part: str
    files: dict[str, str | bytes | None] = {}
    status: int = 2


def row(*arguments: str, part: str, status: int = 2, **files: str | bytes | None) -> Row:
    return Row(arguments, part, files.get("files", {}), status)


def each(base: tuple[str, ...], option: str, **values: tuple[str, str]) -> dict[str, Row]:
    """A row for each value of an option: name=(value, part of the line)."""
    verb = base[0]
    return {
        f"{verb} {option} {name.replace('_', ' ')}": Row((*base, f"{option}={value}"), part)
        for name, (value, part) in values.items()
    }


def names(base: tuple[str, ...], option: str, unknown: str, nearest: str) -> dict[str, Row]:
    """Rows for an option that takes a name."""
    said = f"argument {option}"
    return each(
        base,
        option,
        empty=("", said),
        path=("../../x", said),
        line_break=("x\n", said),
        nul=("x\0", said),
        space=("a b", said),
        long=(LONG, said),
        hidden=(".x", said),
        unknown=(unknown, nearest),
    )


def paths(base: tuple[str, ...], option: str, **more: tuple[str, str]) -> dict[str, Row]:
    """Rows for an option that takes a path."""
    bad = dict(empty="", nul="x\0y", nobody="~no-such-user/x", long="x" * 300, deep="x/" * 3000)
    return each(base, option, **{name: (value, option) for name, value in bad.items()}, **more)


def wholes(base: tuple[str, ...], option: str) -> dict[str, Row]:
    """Rows for an option that takes a whole number."""
    said = f"argument {option}: a whole number"
    values = dict(
        empty="",
        word="one",
        fraction="1.5",
        negative="-1",
        padded="01",
        grouped="1_0",
        spaced=" 1",
        sign="+1",
        other_digits="١",
        beyond_64_bits="9223372036854775808",
        endless="9" * 6000,
    )
    return each(base, option, **{name: (value, said) for name, value in values.items()})


def sets(**values: tuple[str, str]) -> dict[str, Row]:
    """Rows for `run --set` of Fast."""
    return each((*QUICK, "--method=fast-5"), "--set", **values)


def recipe(text: str | bytes, part: str, *arguments: str, name: str = "mine") -> Row:
    """A recipe of that text is refused by a verb, here `run`, which asks for another one."""
    path = f"benchmarks/digits/recipes/{name}.yaml"
    return Row(arguments or RUN, part, {path: text})


def table(old: str, new: str, part: str, *arguments: str) -> Row:
    """The table of digits, with a piece of the text replaced."""
    text = (places.ROOT / TABLE).read_text(encoding="utf-8")
    assert old in text
    return Row(arguments or RUN, part, {TABLE: text.replace(old, new)})


def whole(text: str | bytes, part: str) -> Row:
    """A table of digits that reads so."""
    return Row(RUN, part, {TABLE: text})


def outside(text: str | bytes, part: str) -> Row:
    """A method's file that `--import` names."""
    return Row((*QUICK, "--method=fast-5", "--import=guest.py"), part, {"guest.py": text})


def checkpoint(content: str | bytes, part: str) -> Row:
    return Row((*RUN, *SMALL, "--teacher-weights=own.pth"), part, {"own.pth": content})


REGISTERED = '@METHODS.register_module({})\nclass Guest(Method):\n    """A guest."""\n'

ROWS: dict[str, Row] = {
    "no such verb": row("leaderbord", part="unknown verb 'leaderbord' (nearest: 'leaderboard'"),
    "no such option": row("plan", "--dat", "digits", "--nonsense", part="unrecognized arguments: --nonsense"),
    "nothing to run": row("run", part="the following arguments are required: --method, --data"),
    # --- run
    **names(QUICK, "--method", "sskd", "unknown method 'sskd' (nearest: 'ssdkd'"),
    **names(RUN, "--data", "cifar11", "unknown data 'cifar11' (nearest: 'cifar10'"),
    **names(RUN, "--pair", "resnet8-resnet9", "unknown network 'resnet9' (nearest: 'resnet8'"),
    **names(RUN, "--protocol", "quik", "unknown protocol 'quik' (nearest: 'quick'"),
    **wholes(RUN, "--seed"),
    **each(
        RUN,
        "--pair",
        one=("resnet8", "TEACHER-STUDENT"),
        three=("resnet8-resnet8-resnet8", "TEACHER-STUDENT"),
        another_task=("resnet8-deeplabv3plus_thin16", "deeplabv3plus_thin16 does not fit digits"),
    ),
    **sets(
        no_value=("k", "--set takes key=value, not 'k'"),
        empty=("k=", "--set k lacks a value"),
        no_key=("=1", "unknown --set key ''"),
        unknown=("kk=3", "unknown --set key 'kk' (nearest: 'k'"),
        unknown_below=("training.stepz=3", "unknown --set key 'training.stepz' (nearest: 'training.steps'"),
        line_break=("k\n=1", r"unknown --set key 'k\n'"),
        long_key=(f"{LONG}=1", "unknown --set key 'xxx"),
        long_value=(f"k={LONG}", "--set k takes a value of type int, not 'xxx"),
        a_whole_part=("training={}", "unknown --set key 'training'"),
        word=("k=many", "--set k takes a value of type int, not 'many'"),
        fraction=("k=1.5", "--set k takes a value of type int, not '1.5'"),
        padded=("k=010", "--set k takes a value of type int, not '010'"),
        grouped=("k=1_000", "not '1_000'"),
        hexadecimal=("k=0x10", "not '0x10'"),
        octal=("k=0o10", "not '0o10'"),
        sexagesimal=("k=1:30", "not '1:30'"),
        date=("k=2001-01-01", "not '2001-01-01'"),
        yes=("k=yes", "--set k takes a value of type int, not 'yes'"),
        truth=("k=true", "--set k takes a value of type int, not 'true'"),
        null=("k=null", "--set k takes a value of type int, not 'null'"),
        mapping=("k={a: 1}", "--set k takes a value of type int"),
        half_a_list=("k=[1", "--set k: '[1' is not a value"),
        deep=(f"k={DEEP}", "is not a value: nested too deeply"),
        beyond_64_bits=("k=9223372036854775808", "an integer beyond 64 bits"),
        endless=(f"k={'9' * 6000}", "--set k: '999"),
        word_for_a_rate=("lr_g=fast", "--set lr_g takes a value of type float, not 'fast'"),
        nan=("lr_g=.nan", "--set lr_g: '.nan' is not a value"),
        nan_as_python_writes_it=("lr_g=nan", "--set lr_g takes a value of type float, not 'nan'"),
        infinite=("lr_g=.inf", "--set lr_g: '.inf' is not a value"),
        overflow=("lr_g=1e999", "--set lr_g: '1e999' is not a value"),
        code=("k=!!python/object/apply:os.getcwd []", "is not a value"),
        a_value_that_the_method_refuses=("meta=maml", "maml"),
        no_batch=("training.batch=0", "training.batch: 0 is less than the minimum of 1"),
        huge_batch=(
            "training.batch=1000000000000",
            "training.batch: 1000000000000 is greater than the maximum",
        ),
        huge_synthesis=("synthesis_batch=1000000000000", "synthesis_batch: 1000000000000 is greater than"),
        huge_steps=("training.steps=1000000000000", "training.steps: 1000000000000 is greater than"),
        no_rounds=("rounds=0", "rounds: 0 is less than the minimum of 1"),
        no_evaluations=("evaluations=0", "evaluations: 0 is less than the minimum of 1"),
        indivisible=("training.steps=401", "401 student steps do not divide into 8 rounds"),
        precision=("precision=fp63", "precision: unknown value 'fp63'"),
        optimizer=("training.optimizer.type=SGDD", "unknown optimizer 'SGDD' (nearest: 'SGD'"),
        # What mmengine's registry would import and call.
        dotted_optimizer=("training.optimizer.type=torch.optim.SGD", "unknown optimizer 'torch.optim.SGD'"),
        dotted_schedule=("training.schedule.type=os.getcwd", "unknown schedule 'os.getcwd'"),
        schedule=(
            "training.schedule.type=CosineLR",
            "unknown schedule 'CosineLR' (nearest: 'CosineAnnealingLR'",
        ),
        schedule_without_its_steps=("training.schedule.type=StepLR", "'step_size' is a required property"),
        another_types_argument=("training.schedule.gamma=0.1", "unknown --set key 'training.schedule.gamma'"),
        per=("training.schedule.per=epoch", "training.schedule.per: unknown value 'epoch'"),
        negative_rate=(
            "training.optimizer.lr=-1",
            "training.optimizer.lr: -1.0 is less than the minimum of 0",
        ),
        much_momentum=("training.optimizer.momentum=2", "training.optimizer.momentum: 2.0 is greater than"),
        an_optimizer_as_a_mapping=(
            "training.optimizer={type: SGD}",
            "unknown --set key 'training.optimizer'",
        ),
        prior_of_a_method_without_one=("prior=glyphs16", "unknown --set key 'prior'"),
    ),
    "run --set twice": row(*RUN, "--set=steps=1", "--set=steps=2", part="--set 'steps' is given twice"),
    "run --set what the new type does not take": row(
        *RUN,
        "--set=training.optimizer.momentum=0.5",
        "--set=training.optimizer.type=AdamW",
        part="unknown --set key 'training.optimizer.momentum'",
    ),
    "run --set betas that are none": row(
        *RUN,
        "--set=training.optimizer.betas=[0.9, 1.5]",
        "--set=training.optimizer.type=AdamW",
        part="training.optimizer.betas.1: 1.5",
    ),
    "run --set nesterov without momentum": row(
        *RUN,
        "--set=training.optimizer.nesterov=true",
        "--set=training.optimizer.momentum=0",
        part="training.optimizer.momentum: 0.0 is less than or equal to the minimum of 0",
    ),
    "run --set prior of nobody": row(
        *QUICK, "--method=diffdfkd", *SMALL[1:], "--set=prior=nowhere/at-all", part="nowhere/at-all"
    ),
    "run --set prior of no name": row(
        *QUICK,
        "--method=diffdfkd",
        *SMALL[1:],
        "--set=prior=glyphs61",
        part="unknown prior 'glyphs61' (nearest: 'glyphs16'",
    ),
    **each(
        (*QUICK, "--method=diffdfkd"),
        "--set",
        word_where_none_is_the_default=("cap=much", "--set cap takes a value of type float, not 'much'"),
        list_where_none_is_the_default=("cap=[1]", "--set cap takes a value of type float, not '[1]'"),
        truth_where_none_is_the_default=("cap=true", "--set cap takes a value of type float, not 'true'"),
    ),
    "run --precision unknown": row(*RUN, "--precision=fp64", part="argument --precision: invalid choice"),
    "run --precision and --set": row(*RUN, "--precision=bf16", "--set=precision=fp32", part="pass one of them"),
    **paths(RUN, "--out", below_a_file=("file/out", "cannot write to"), a_file=("file", "cannot write to")),
    "run --out very long": row(*RUN, f"--out={LONG}", part="File name too long"),
    "run --out records": row(*RUN, *SMALL, "--out=results/records", part="a custom run has no place in"),
    **paths(
        (*RUN, *SMALL),
        "--teacher-weights",
        missing=("no.pth", "no.pth"),
        folder=("results", "results"),
        surrogate=("x\udcff.pth", r"x\udcff.pth is missing"),
    ),
    **paths(
        RUN,
        "--import",
        missing=("no.py", "there is no file 'no.py'"),
        module=("no.such.module", "there is no module 'no.such.module'"),
        relative=("..x", "there is no module '..x'"),
        folder=("results", "there is no module 'results'"),
        line_break=("a\nb", r"there is no module 'a\nb'"),
    ),
    # --- run, teacher, prior
    **{
        name: found
        for base in ((*RUN, *SMALL), TEACHER, PRIOR)
        for name, found in each(
            base,
            "--time-limit",
            nan=("nan", "time-limit"),
            infinite=("inf", "time-limit"),
            zero=("0", "time-limit"),
            negative=("-1", "time-limit"),
            word=("soon", "time-limit"),
            grouped=("1_0", "time-limit"),
            other_digits=("١", "time-limit"),
            empty=("", "time-limit"),
        ).items()
    },
    **{
        name: found
        for base in ((*RUN, *SMALL), TEACHER, PRIOR)
        for name, found in each(
            base,
            "--device",
            nonsense=("gpu", "--device"),
            meta=("meta", "--device"),
            many=("cuda:99", "--device"),
            numbered=("cpu:5", "--device"),
            empty=("", "--device"),
            line_break=("cpu\n", "--device"),
        ).items()
    },
    **{
        name: found
        for base in ((*RUN, *SMALL), TEACHER, PRIOR)
        for name, found in paths(base, "--weights", missing=("nowhere", "nowhere"), file=("file", "file")).items()
    },
    "run --data-root that holds the project": row(*RUN, *SMALL, "--data-root=/", part="holds the project"),
    **paths(CIFAR, "--data-root", missing=("nowhere", "make it with: python bench.py data cifar10")),
    # --- teacher
    **names(TEACHER, "--data", "digitz", "unknown data 'digitz' (nearest: 'digits'"),
    **names(TEACHER, "--arch", "resnet9", "unknown network 'resnet9' (nearest: 'resnet8'"),
    **names(TEACHER, "--protocol", "quik", "unknown protocol 'quik' (nearest: 'quick'"),
    **wholes(TEACHER, "--seed"),
    **paths((*TEACHER, "--data=cifar10", "--protocol=cpu"), "--data-root", missing=("nowhere", "bench.py data")),
    "teacher of another task": row(*TEACHER, "--arch=deeplabv3plus_thin16", part="does not fit digits"),
    # --- prior
    **names(PRIOR, "--data", "glyph", "unknown pool 'glyph' (nearest: 'glyphs'"),
    **names(PRIOR, "--name", "stable-diffusion-v1-5", "is another prior"),
    **wholes(PRIOR, "--size"),
    **paths(
        (*PRIOR, "--data=public_images", "--size=32", "--name=x", "--set=steps=1"),
        "--data-root",
        missing=("nowhere", "make it with: python bench.py data public_images"),
    ),
    "prior --size that does not divide": row("prior", "--data=glyphs", "--size=3", part="do not divide a 'size'"),
    "prior --size nothing": row("prior", "--data=glyphs", "--size=0", part="size: 0 is less than"),
    **each(
        PRIOR,
        "--set",
        unknown=("stepz=1", "unknown --set key 'stepz' (nearest: 'steps'"),
        padded=("steps=010", "--set steps takes a value of type int, not '010'"),
        empty=("steps=", "--set steps lacks a value"),
        no_value=("steps", "--set takes key=value"),
        zero=("steps=0", "steps: 0 is less than the minimum of 1"),
        huge=("batch=1000000000000", "batch: 1000000000000 is greater than"),
        own_name=("steps=1", "choose a --name of its own"),
    ),
    # --- data
    "data unknown": row("data", "nyuv", part="unknown data 'nyuv' (nearest: 'nyuv2'"),
    "data path": row("data", "../digits", part="argument name: a name has"),
    "data nothing": row("data", part="the following arguments are required: name"),
    **paths(("data", "nyuv2"), "--from", missing=("nowhere", "nowhere"), file=("file", "file")),
    **paths(("data", "digits"), "--manifest", folder=("results", "results"), below_a_file=("file/x", "file")),
    **paths(("data", "nyuv2", "--from=results"), "--data-root", file=("file", "results")),
    # --- plan, list, leaderboard, doctor
    **names(("plan",), "--data", "cifar12", "unknown data 'cifar12'"),
    **names(("plan",), "--protocol", "papr", "unknown protocol 'papr'"),
    "plan --inputs of nothing": row("plan", "--inputs=all", part="argument --inputs: invalid choice"),
    **{
        f"plan --shard {text!r}": row("plan", f"--shard={text}", part=f"I/N with 1 <= I <= N, not {text!r}")
        for text in ("", "0/2", "3/2", "1", "a/b", "1/2/3", "1/0", "-1/2", "1.0/2", "١/٢", " 1/2", "1_0/20", "+1/2")
    },
    **paths(("list",), "--import", missing=("no.py", "there is no file 'no.py'")),
    **names(("leaderboard",), "--data", "digit", "unknown data 'digit' (nearest: 'digits'"),
    **{
        f"options that do not go together: {' '.join(words)}": Row(words, part)
        for words, part in {
            ("leaderboard", "--check", "--committed"): "not allowed with argument --check",
            ("leaderboard", "--check", "--format=csv"): "not allowed with argument --check",
            ("leaderboard", "--protocol=quick"): "--protocol goes with --format",
            ("leaderboard", "--committed", "--data=digit"): "unknown data 'digit' (nearest: 'digits'",
            ("plan", "--pipeline", "--inputs=quick"): "not allowed with argument --pipeline",
        }.items()
    },
    **paths(("doctor",), "--data-root"),
    # --- files: recipes
    "recipe: a list": recipe("[1]", "mine.yaml cannot be read: a mapping from names is expected"),
    "recipe: a text": recipe("text", "mine.yaml cannot be read: a mapping from names is expected"),
    "recipe: not UTF-8": recipe("note: é".encode("latin-1"), "mine.yaml cannot be read: not UTF-8"),
    "recipe: half": recipe("args: {k: 1", "mine.yaml cannot be read"),
    "recipe: deep": recipe(f"args: {DEEP}", "mine.yaml cannot be read: nested too deeply"),
    "recipe: aliases": recipe(BILLION, "mine.yaml cannot be read: too many entries"),
    "recipe: huge": recipe(b" " * (33 * 2**20), "mine.yaml cannot be read: more than"),
    "recipe: a key twice": recipe("note: a\nnote: b", "mine.yaml cannot be read: 'note' stands there twice"),
    **{
        f"recipe: a tag that does not fit, {value}": recipe(f"note: {value}", "not of its tag's type")
        for value in ("!!bool x", "!!map [1]", "!!timestamp x")
    },
    "recipe: an argument whose default is None": recipe(
        "method: diffdfkd\nargs: {cap: much}", "mine.yaml: args: cap takes a value of type float, not 'much'"
    ),
    "recipe: code": recipe("note: !!python/name:os.getcwd", "mine.yaml cannot be read"),
    "recipe: its own base": recipe("base: mine", "mine.yaml: base: unknown recipe 'mine'"),
    "recipe: two bases of each other": Row(
        RUN,
        "base: unknown recipe",
        {"benchmarks/digits/recipes/a.yaml": "base: b", "benchmarks/digits/recipes/b.yaml": "base: a"},
    ),
    "recipe: no such base": recipe("base: fast-6", "mine.yaml: base: unknown recipe 'fast-6' (nearest: 'fast-5'"),
    "recipe: a base that is none": recipe("base: [fast-5]", "mine.yaml: base: ['fast-5'] is not of type 'string'"),
    "recipe: a base that is a path": recipe("base: ../fast", "mine.yaml: base: '../fast' does not match"),
    "recipe: unknown key": recipe("arg: {k: 1}", "mine.yaml: unknown key 'arg' (nearest: 'args'"),
    "recipe: unknown method": recipe("method: fst", "mine.yaml 'fst' (nearest: 'fast'", *QUICK, "--method=mine"),
    "recipe: unknown argument": recipe("method: fast\nargs: {kk: 1}", "mine.yaml: args: unknown argument of fast 'kk'"),
    "recipe: a fraction": recipe("method: fast\nargs: {k: 1.5}", "mine.yaml: args: k takes a value of type int"),
    "recipe: zero-padded": recipe("method: fast\nargs: {k: 010}", "k takes a value of type int, not '010'"),
    "recipe: nan": recipe("method: fast\nargs: {bn: .nan}", "mine.yaml cannot be read: args.bn: nan is no number"),
    "recipe: a name that is none": recipe("method: fast", "a recipe's name has letters and digits", name="a b"),
    "recipe: a list of arguments": recipe("args: [1]", "mine.yaml: args: [1] is not of type 'object'"),
    "recipe: arguments in a mapping": recipe("args: {k: {a: 1}}", "mine.yaml: args.k: {'a': 1} is not of type"),
    "recipe: unknown pair": recipe("pairs: {resnet8-resnet9: {}}", "mine.yaml: pairs: unknown network 'resnet9'"),
    "recipe: another task's pair": recipe(
        "pairs: {deeplabv3plus_thin32-deeplabv3plus_thin16: {}}",
        "mine.yaml: pairs: deeplabv3plus_thin32 does not fit",
    ),
    "recipe: unknown pair of a protocol": recipe(
        "protocols: {quick: {pairs: {resnet8-resnet9: {rounds: 2}}}}",
        "mine.yaml: pairs: unknown network 'resnet9'",
    ),
    "recipe: unknown argument of a protocol's pair": recipe(
        "method: fast\nprotocols: {quick: {pairs: {wrn16_2-wrn16_1: {args: {kk: 1}}}}}",
        "mine.yaml: protocols.quick.pairs.wrn16_2-wrn16_1.args: unknown argument of fast 'kk'",
    ),
    "recipe: a setting of a pair that is fixed": recipe(
        "method: fast\nprotocols: {quick: {pairs: {resnet8-resnet8: {training: {steps: 8}}}}}",
        "fixes 'training' for all methods",
        *QUICK,
        "--method=mine",
    ),
    "recipe: an ablation of nothing": recipe("ablates: fast-6", "mine.yaml: ablates: unknown recipe 'fast-6'"),
    "recipe: two ablations of each other": Row(
        RUN,
        "is an ablation itself",
        {
            "benchmarks/digits/recipes/a.yaml": "method: fast\nablates: b\nargs: {k: 2}",
            "benchmarks/digits/recipes/b.yaml": "method: fast\nablates: a",
        },
    ),
    "recipe: an ablation of itself": recipe("ablates: mine", "mine.yaml: ablates: unknown recipe 'mine'"),
    "recipe: an ablation that takes nothing away": recipe(
        "base: fast-5\nablates: fast-5\nargs: {k: 5}",
        "mine ablates fast-5 and is the same under quick of digits",
        *QUICK,
        "--method=mine",
    ),
    "recipe: unknown protocol": recipe("protocols: {quik: {}}", "mine.yaml: protocols: unknown protocol 'quik'"),
    "recipe: unknown argument below a protocol": recipe(
        "method: fast\nprotocols: {quick: {args: {kk: 1}}}",
        "mine.yaml: protocols.quick.args: unknown argument",
    ),
    "recipe: a published budget undivided": Row(
        ("run", "--data=cifar10", "--method=fast-10", "--dry-run"),
        "mine.yaml: protocols: its budget under `paper` is not divided",
        {"benchmarks/cifar10/recipes/mine.yaml": "method: fast\nprotocols: {paper: {rounds: 100}}"},
    ),
    "recipe: unknown setting": recipe("protocols: {quick: {round: 1}}", "protocols.quick: unknown key 'round'"),
    "recipe: what the protocol fixes": recipe(
        "method: fast\nprotocols: {quick: {precision: bf16}}",
        "fixes 'precision' for all",
        *QUICK,
        "--method=mine",
    ),
    "recipe: a fraction of a round": recipe(
        "protocols: {quick: {rounds: 4.0}}", "protocols.quick.rounds: 4.0 is not of type 'integer'"
    ),
    **{
        f"recipe: a list, for {verb}": recipe("[1]", "mine.yaml cannot be read", verb)
        for verb in ("list", "plan", "leaderboard")
    },
    # --- files: tables
    "table: a list": whole("[1]", "table.yaml cannot be read"),
    "table: not UTF-8": whole(b"about: \xff", "not UTF-8"),
    "table: nothing": whole("", "table.yaml: 'about' is a required property"),
    "table: no protocols": whole("about: x\ndata: [digits]", "'protocols' is a required property"),
    "table: its own base": whole("about: x\ndata: [digits]\nbase: digits", "base: 'digits' is no table"),
    "table: a base that is a path": whole("base: ../x", "is no table that this one could start from"),
    "table: a base that is a list": whole("base: [x]", "is no table that this one could start from"),
    "table: two bases of each other": Row(
        RUN, "is no table that this one could start from", {TABLE: "base: cifar10", OTHER: "base: digits"}
    ),
    "table: data of another": table("data: [digits]", "data: [digits, nyuv2]", "stands in the table of"),
    "table: unknown data": table("data: [digits]", "data: [digitz]", "table.yaml: data: unknown data 'digitz'"),
    "table: unknown protocol": table("quick:", "quik:", "unknown value 'quik' (nearest: 'quick'"),
    "table: a text for a protocol": whole("about: x\ndata: [digits]\nprotocols: {quick: x}", "'x' is not of type"),
    "table: unknown key": table("rounds:", "round:", "protocols.quick: unknown key 'round'"),
    "table: a missing key": table("    rounds: 8", "", "protocols.quick: 'rounds' is a required property"),
    "table: a fraction": table("rounds: 8", "rounds: 8.0", "quick.rounds: 8.0 is not of type 'integer'"),
    "table: zero-padded": table("rounds: 8", "rounds: 08", "quick.rounds: '08' is not of type 'integer'"),
    "table: dotted optimizer": table("type: SGD", "type: os.getcwd", "type: unknown value 'os.getcwd'"),
    "table: its argument": table("{type: SGD,", "{type: SGD, beta: 1,", "optimizer: unknown key 'beta'"),
    "table: no per": table("per: step, ", "", "training.schedule: 'per' is a required property"),
    "table: teacher": table("epochs: 7", "epochs: 0", "quick.teacher.epochs: 0 is less than the minimum"),
    "table: teacher's schedule": table("schedule: cosine", "schedule: sine", "unknown value 'sine'"),
    "table: what a recipe may set": table("[rounds,", "[round,", "recipe_may_set.0: unknown value 'round'"),
    **{
        f"table: unknown recipe, for {verb[0]}": table(
            "ssdkd, fast-5", "ssdkd, fst", "protocols.quick.recipes: unknown method 'fst'", *verb
        )
        for verb in (("list",), ("plan",), ("leaderboard",), RUN)
    },
    "table: unknown network": table("[wrn16_2-wrn16_1]", "[a-b]", "protocols.quick: unknown network 'a'"),
    "table: a pair of one": table("[wrn16_2-wrn16_1]", "[wrn16_2]", "protocols.quick: a pair is written"),
    "table: no seeds": table("seeds: [0]", "seeds: []", "quick.seeds: [] should be non-empty"),
    "table: a negative seed": table("seeds: [0]", "seeds: [-1]", "quick.seeds.0: -1 is less than"),
    "table: a seed as a text": table("seeds: [0]", 'seeds: ["0"]', "quick.seeds.0: '0' is not of type 'integer'"),
    "table: a recipe twice": table("ssdkd, fast-5", "fast-5, fast-5", "has non-unique elements"),
    # --- files: benchmarks/priors.yaml
    "priors: a list": Row(PRIOR, "priors.yaml cannot be read", {"benchmarks/priors.yaml": "[1]"}),
    "priors: not there": Row(PRIOR, "priors.yaml is missing", {"benchmarks/priors.yaml": None}),
    "priors: a name": Row(PRIOR, "'../x' does not match", {"benchmarks/priors.yaml": "../x: {data: glyphs}"}),
    "priors: a key": Row(PRIOR, "unknown key 'date'", {"benchmarks/priors.yaml": "x: {date: glyphs}"}),
    # --- files: methods
    "method: no Python": outside("class (", "guest.py cannot be read as Python"),
    "method: not UTF-8": outside(b"# \xff", "guest.py cannot be read as Python"),
    "method: a NUL": outside("x = '\0'", "guest.py cannot be read as Python"),
    "method: deep": outside("x = " + "(" * 100_000, "guest.py cannot be read as Python"),
    "method: a name that is a path": outside(REGISTERED.format("'../../x'"), "guest.py: the name of a method has"),
    "method: a name of two lines": outside(REGISTERED.format(r"'a\nb'"), "guest.py: the name of a method has"),
    "method: a name that is no text": outside(REGISTERED.format("5"), "guest.py: the name of a method has"),
    "method: no such prior": outside(
        REGISTERED.format("'guest'") + '    prior = "difusion"\n',
        "guest.py: guest: unknown prior 'difusion' (nearest: 'diffusion'",
    ),
    "method: no dataclass": outside(
        REGISTERED.format("'guest'") + "    k: int = 3\n", "guest: Guest has hyper-parameters; put @dataclass(eq=False)"
    ),
    "method: no dataclass, of one that is": outside(
        "from baselines.fast import Fast\n"
        + REGISTERED.format("'guest'").replace("(Method)", "(Fast)")
        + "    k: int = 3\n",
        "guest: Guest has hyper-parameters; put @dataclass(eq=False)",
    ),
    **{
        f"method: {name}": outside(
            REGISTERED.format("'guest'").replace("@METHODS", "@dataclass\n@METHODS") + body, part
        )
        for name, body, part in (
            ("a constructor", "    def __init__(self, k=1): ...\n", "Guest has a constructor of its own"),
            ("no default", "    k: int\n", "guest: no default of k; hyper-parameters are dataclass fields"),
            ("a default that is computed", "    k: float = 1 / 3\n", "guest: no literal as default of k"),
            ("a None of no type", "    k: int | str | None = None\n", "guest: no type of k"),
            ("a default that cannot be", "    k: dict = {[]: 1}\n", "guest: no literal as default of k"),
            ("a field with a hook's name", "    draw: int = 1\n", "guest: draw() is a member of Method"),
        )
    },
    "method: a name that there is": outside(REGISTERED.format("'fast'"), "'fast' is registered in both"),
    # --- files: published.csv, records
    "published.csv: no columns": Row(("leaderboard",), "published.csv", {"results/published.csv": "a,b\n1,2\n"}),
    "published.csv: not UTF-8": Row(("leaderboard",), "published.csv", {"results/published.csv": b"data,\xff\n"}),
    **{
        f"record: {name}, for {' '.join(verb)}": Row(verb, "quick-seed0.json", {RECORD: content}, 1)
        for verb in (("leaderboard",), ("leaderboard", "--check"), ("list",), ("plan",))
        for name, content in BROKEN.items()
    },
    # --- files: cards, manifests, arrays, images, checkpoints
    **{
        f"card of a teacher: {name}": Row(
            (*RUN, *SMALL), "digits_resnet8.json", {"results/teachers/digits_resnet8.json": content}
        )
        for name, content in BROKEN.items()
    },
    **{
        f"card of a prior: {name}": Row(
            (*QUICK, "--method=diffdfkd", *SMALL[1:]),
            "glyphs16.json",
            {"results/priors/glyphs16.json": content, "results/priors/glyphs16/config.json": "{}"},
        )
        for name, content in BROKEN.items()
    },
    **{
        f"manifest: {name}": Row(CIFAR, "manifest.json", {"data/cifar10/manifest.json": content})
        for name, content in BROKEN.items()
    },
    **{
        f"array: {name}": Row(
            CIFAR,
            "train_images.npy",
            {"data/cifar10/manifest.json": json.dumps(MANIFEST), "data/cifar10/train_images.npy": content},
        )
        for name, content in {
            "a text": "no array",
            "half": b"\x93NUMPY\x01\x00",
            "a folder": FOLDER,
            "a pipe": PIPE,
        }.items()
    },
    "image: a text": Row(("data", "nyuv2", "--from=images"), "images", {"images/train/a.png": "no image"}),
    "image: a folder of none": Row(("data", "nyuv2", "--from=images"), "images", {"images/notes.txt": "x"}),
    **{
        f"{content}: {name}": Row(arguments, Path(name).stem, {name: content})
        for content in (FOLDER, PIPE, BROKEN_LINK, LOOP)
        for name, arguments in {
            "benchmarks/digits/recipes/mine.yaml": RUN,
            TABLE: ("plan",),
            "benchmarks/priors.yaml": PRIOR,
            "results/published.csv": ("leaderboard",),
            "results/teachers/digits_resnet8.json": (*RUN, *SMALL),
            "results/teachers/digits_resnet8.safetensors": (*RUN, *SMALL),
            "data/cifar10/manifest.json": CIFAR,
            "own.pth": (*RUN, *SMALL, "--teacher-weights=own.pth"),
            "guest.py": (*RUN, "--import=guest.py"),
        }.items()
    },
    "a folder where the record belongs": Row(
        RUN, "it is a folder", {"results/records/digits/resnet8-resnet8/template/quick-seed0.json": FOLDER}
    ),
    **{
        f"{content} where the folder {name} belongs": Row((*RUN, "--out=out/in"), "cannot write to", {name: content})
        for content in (LOOP, "a file")
        for name in ("work", "out/in/digits")
    },
    **{
        f"{content} where the records of a pair belong": Row(
            RUN, "cannot write to", {"results/records/digits/resnet8-resnet8": content}
        )
        for content in (LOOP, "a file")
    },
    "a folder where the card of a teacher to be trained belongs": Row(
        TEACHER,
        "digits_resnet8.json is a folder",
        {"results/teachers/digits_resnet8.safetensors": None, "results/teachers/digits_resnet8.json": FOLDER},
    ),
    "a folder of tables that cannot be read": Row(("plan",), "benchmarks/x cannot be read", {"benchmarks/x": LOOP}),
    **{
        f"a folder of records that cannot be read, for {' '.join(verb)}": Row(
            verb, "digits/x cannot be read", {"results/records/digits/x": LOOP}, 1
        )
        for verb in (("leaderboard",), ("list",), ("plan",))
    },
    "checkpoint: empty": checkpoint(b"", "own.pth"),
    "checkpoint: a text": checkpoint("no weights", "own.pth"),
    "checkpoint: a page": checkpoint("<!DOCTYPE html><html>not found</html>", "own.pth"),
    "checkpoint: half a safetensors file": checkpoint(struct.pack("<Q", 10**12) + b"{}", "own.pth"),
    "checkpoint: a pickle of nothing": checkpoint(b"\x80\x02N.", "own.pth"),
}


def options() -> list[tuple[str, argparse.Action]]:
    """Every (verb, option) of the parser but the help."""
    (verbs,) = (action for action in bench.parser()._actions if isinstance(action, argparse._SubParsersAction))
    return [(verb, action) for verb, its in verbs.choices.items() for action in its._actions if action.dest != "help"]


# A switch takes no value, whatever it is called.
ROWS |= {
    f"{verb} {action.option_strings[0]}": row(verb, f"{action.option_strings[0]}=1", part="ignored explicit argument")
    for verb, action in options()
    if action.nargs == 0
}


# argparse takes such a value for none at all.
ROWS |= {
    f"{verb} {action.option_strings[0]} --": row(verb, f"{action.option_strings[0]}=--", part="-- is no value")
    for verb, action in options()
    if action.nargs != 0 and action.option_strings
}


@pytest.fixture
def place(tmp_path, monkeypatch, request):
    """A folder to break things in, which the command takes for the repository and runs in."""
    for name in ("results/published.csv", RECORD):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(places.ROOT / name, tmp_path / name)
    shutil.copytree(
        places.ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("speed", "*.lock")
    )
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("benchmarks", "results", "work"):
        monkeypatch.setattr(places, name.upper(), tmp_path / name)
    monkeypatch.setenv("DFKD_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("DFKD_WEIGHTS", raising=False)
    return tmp_path


@pytest.fixture
def with_teacher(place, teacher):
    """The teacher of `RUN`, so that nothing has to be trained before a fault can show."""
    from dfkd.artifacts import TEACHER

    own = place / "results" / "teachers" / teacher[0].name
    own.parent.mkdir(parents=True)
    shutil.copyfile(teacher[0], own)
    TEACHER.write(own, {**teacher[1], "recipe": dict(table_of("digits").protocol("quick").teacher)})
    return place


def call(arguments: tuple[str, ...]) -> int:
    try:
        return bench.main(list(arguments))
    except SystemExit as end:
        return end.code


def left(place: Path) -> set[Path]:
    """Records, teachers, priors and data, and files half written."""
    found = {path for folder in ("results", "data", "work/custom") for path in (place / folder).rglob("*")}
    return {path for path in found if path.is_file() and path.suffix in (".json", ".safetensors", ".npy", ".partial")}


@pytest.mark.parametrize("name", ROWS)
def test_bad_input_is_told_in_one_line(name, with_teacher, capsys, monkeypatch):
    # Whether a method declines the task is asked in a process of its own, which takes seconds.
    monkeypatch.setattr("dfkd.session._to_be_made", lambda *_: False)
    arguments, part, files, status = ROWS[name]
    for path, content in files.items():
        path = with_teacher / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=content is not None)
        if content == FOLDER:
            path.mkdir()
        elif content == PIPE:
            os.mkfifo(path)
        elif content in (BROKEN_LINK, LOOP):
            path.symlink_to("nowhere" if content == BROKEN_LINK else path.name)
        elif content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    before = left(with_teacher)
    found = call(arguments)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("# ")]  # `plan` counts its cells there
    assert (found, len(lines)) == (status, 1), (found, err[-2000:])
    assert lines[0].startswith("bench.py: ") and part in lines[0] and len(lines[0]) < 5000
    assert "Traceback" not in out + err
    assert left(with_teacher) - before == set()


def test_every_option_has_a_row():
    tried = {(row.arguments[0], word.partition("=")[0]) for row in ROWS.values() for word in row.arguments}
    there = {(verb, action.option_strings[0]) for verb, action in options() if action.option_strings}
    assert there - tried == set()


@pytest.mark.parametrize("variable", ["DFKD_DATA", "DFKD_WEIGHTS"])
def test_a_variable_that_names_no_folder(variable, with_teacher, monkeypatch, capsys):
    monkeypatch.setenv(variable, "~no-such-user/x")
    (with_teacher / "results" / "teachers" / "digits_resnet8.safetensors").unlink()
    assert call(CIFAR if variable == "DFKD_DATA" else (*RUN, *SMALL)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "~no-such-user" in line


def test_a_tilde_is_a_home_folder(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    for verb, action in options():
        if action.type is bench.PATH and action.option_strings:
            required = [
                f"{a.option_strings[0]}=1" for v, a in options() if v == verb and a.required and a.option_strings
            ]
            names = ["digits"] if verb == "data" else []
            found = bench.parser().parse_args([verb, *names, *required, f"{action.option_strings[0]}=~/x"])
            assert getattr(found, action.dest) == place / "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="whoever may do everything is refused nothing")
def test_a_folder_that_may_not_be_written_to(place, capsys):
    (place / "out").mkdir(mode=0o500)
    assert call((*RUN, "--out=out")) == 2
    assert "permission denied" in capsys.readouterr().err.lower()
