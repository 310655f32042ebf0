"""What `--set` makes of a protocol, and the closed list of optimizers and schedules."""

from __future__ import annotations

import inspect
import shutil

import pytest

from dfkd import paths
from dfkd.errors import UserError
from dfkd.optimizers import OPTIMIZERS, SCHEDULES
from dfkd.tables.resolve import resolve
from tests.conftest import PAIR

LEAST = {"step_size": 2, "milestones": [1, 3], "gamma": 0.5, "power": 1.0, "factor": 1.0}


def training(*changes: str) -> dict:
    """The training of Fast on digits (SGD of 0.1, 0.9 and 5e-4 under a cosine) with these changes."""
    return resolve("digits", "quick", "fast-5", PAIR, changes=list(changes)).config["training"]


def test_a_recipe_may_say_something_for_one_pair_of_one_protocol(tmp_path, monkeypatch):
    """The last that says something wins: `args`, `pairs`, the protocol, that pair there, `--set`."""
    monkeypatch.setattr(paths, "BENCHMARKS", shutil.copytree(paths.BENCHMARKS, tmp_path / "benchmarks"))
    (tmp_path / "benchmarks/digits/recipes/mine.yaml").write_text(
        "method: fast\n"
        "args: {k: 1}\n"
        f"pairs: {{{PAIR}: {{k: 2, bn: 2.0, oh: 2.0}}}}\n"
        "protocols:\n"
        "  quick: {rounds: 5, args: {bn: 3.0, oh: 3.0}, pairs: {resnet8-resnet8: {rounds: 4, args: {oh: 4.0}}}}\n"
    )
    other = resolve("digits", "quick", "mine", "wrn16_2-wrn16_1").config
    assert other["rounds"] == 5 and other["args"] == {"k": 1, "bn": 3.0, "oh": 3.0}
    config = resolve("digits", "quick", "mine", PAIR).config
    assert config["rounds"] == 4 and config["args"] == {"k": 2, "bn": 3.0, "oh": 4.0}
    assert "pairs" not in config
    assert resolve("digits", "quick", "mine", PAIR, changes=["oh=5"]).config["args"]["oh"] == 5.0


def test_what_a_recipe_says_beats_its_base_wherever_that_says_it(tmp_path, monkeypatch):
    """Else an ablation would be none where its base has the argument under a protocol or for a pair."""
    monkeypatch.setattr(paths, "BENCHMARKS", shutil.copytree(paths.BENCHMARKS, tmp_path / "benchmarks"))
    folder = tmp_path / "benchmarks/digits/recipes"
    (folder / "whole.yaml").write_text(
        "method: fast\n"
        f"pairs: {{{PAIR}: {{k: 2, bn: 2.0}}}}\n"
        "protocols:\n"
        f"  quick: {{rounds: 5, args: {{oh: 3.0}}, pairs: {{{PAIR}: {{rounds: 4, args: {{adv: 4.0}}}}}}}}\n"
    )
    (folder / "part.yaml").write_text("base: whole\nablates: whole\nargs: {k: 1, oh: 0.0, adv: 0.0}\n")
    (folder / "last.yaml").write_text(
        f"base: part\npairs: {{{PAIR}: {{oh: 7.0}}}}\nprotocols: {{quick: {{rounds: 10}}}}\n"
    )
    part = resolve("digits", "quick", "part", PAIR).config
    assert part["rounds"] == 4 and part["args"] == {"k": 1, "bn": 2.0, "oh": 0.0, "adv": 0.0}
    last = resolve("digits", "quick", "last", PAIR).config
    assert last["rounds"] == 10 and last["args"] == part["args"] | {"oh": 7.0}
    assert resolve("digits", "quick", "last", "wrn16_2-wrn16_1").config["args"] == {"k": 1, "oh": 0.0, "adv": 0.0}


def test_cmi_500_has_500_steps_under_every_protocol():
    """Its base has another number under `cpu`."""
    assert {resolve("cifar10", name, "cmi-500").config["args"]["steps"] for name in ("paper", "scaled", "cpu")} == {500}


def test_another_optimizer_keeps_what_both_take():
    assert training("training.optimizer.type=AdamW")["optimizer"] == {
        "type": "AdamW",
        "lr": 0.1,
        "weight_decay": 5e-4,
    }


def test_what_belongs_to_the_new_type_can_be_set_in_any_order():
    changes = [
        "training.schedule.type=MultiStepLR",
        "training.schedule.milestones=[4, 8]",
        "training.schedule.gamma=0.5",
    ]
    expected = {"type": "MultiStepLR", "per": "step", "milestones": [4, 8], "gamma": 0.5}
    assert training(*changes)["schedule"] == training(*reversed(changes))["schedule"] == expected


def test_an_argument_that_the_protocol_leaves_at_its_default_can_be_set():
    assert training("training.optimizer.nesterov=true")["optimizer"]["nesterov"] is True


def test_the_same_type_changes_nothing():
    assert training("training.optimizer.type=SGD") == training()


def test_a_whole_number_for_a_rate_is_a_fraction():
    """Or `lr=1` and `lr=1.0` would be two configurations."""
    one = resolve("digits", "quick", "fast-5", PAIR, changes=["training.optimizer.lr=1"])
    assert one.digest == resolve("digits", "quick", "fast-5", PAIR, changes=["training.optimizer.lr=1.0"]).digest


@pytest.mark.parametrize(
    ("text", "value"),
    [("recursive", "recursive"), ('"a: b"', "a: b"), ("010", "010"), ("true", "true"), ("", "")],
)
def test_a_text_is_taken_as_it_stands_or_quoted(text, value):
    cell = resolve("digits", "quick", "ssdkd", PAIR, changes=[f"priority={text}"])
    assert cell.config["args"]["priority"] == value


def test_precision_and_its_option_are_one_thing():
    by_option = resolve("digit-scenes", "quick", "fast-5", precision="bf16")
    by_set = resolve("digit-scenes", "quick", "fast-5", changes=["precision=bf16"])
    assert (by_option.digest, by_option.custom) == (by_set.digest, True)
    assert not resolve("digit-scenes", "quick", "fast-5", precision="fp32").custom


def test_a_changed_recipe_file_is_read_anew(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks" / "digits"
    shutil.copytree(paths.table("digits").parent, folder)
    monkeypatch.setattr(paths, "BENCHMARKS", tmp_path / "benchmarks")
    for k in (3, 14):
        (folder / "recipes" / "mine.yaml").write_text(f"method: fast\nargs: {{k: {k}}}\n")
        assert resolve("digits", "quick", "mine", PAIR).config["args"] == {"k": k}


def test_what_is_a_field_and_may_be_one(tmp_path):
    """`--set rounds=…` would set one of two things; a ClassVar is a constant, and takes the place of a field."""
    path = tmp_path / "shadow.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from dfkd.engine.method import METHODS, Method\n"
        '@METHODS.register_module("shadow")\n'
        "@dataclass(eq=False)\n"
        "class Shadow(Method):\n"
        "    saved: ClassVar[tuple[str, ...]] = ()\n"
        "    rounds: int = 3\n"
        "    rates: tuple[float, ...] = (0.1, 0.2)\n"
    )
    with pytest.raises(UserError, match=r"shadow\.py: a budget has a key 'rounds'"):
        resolve("digits", "quick", "shadow", PAIR, extra=str(path))
    path.write_text(path.read_text().replace("rounds: int", "turns: int"))
    assert resolve("digits", "quick", "shadow", PAIR, extra=str(path)).entry.arguments == {
        "turns": 3,
        "rates": (0.1, 0.2),
    }
    path.write_text(
        path.read_text().replace('("shadow")', '("base")')
        + '@METHODS.register_module("shadow")\n@dataclass(eq=False)\n'
        + "class Fixed(Shadow):\n    turns: ClassVar[int] = 7\n"
    )
    assert resolve("digits", "quick", "shadow", PAIR, extra=str(path)).entry.arguments == {"rates": (0.1, 0.2)}
    changed = resolve("digits", "quick", "shadow", PAIR, changes=["rates=[1, 0.5]"], extra=str(path))
    assert changed.config["args"] == {"rates": (1.0, 0.5)}
    with pytest.raises(UserError, match=r"--set rates takes a value of type float, not '\[1, x\]'"):
        resolve("digits", "quick", "shadow", PAIR, changes=["rates=[1, x]"], extra=str(path))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_what_the_schema_says(name):
    import torch

    cls = getattr(torch.optim, name)
    assert OPTIMIZERS[name]["properties"].keys() - {"type"} <= inspect.signature(cls).parameters.keys()
    assert training(f"training.optimizer.type={name}")["optimizer"]["type"] == name


@pytest.mark.parametrize("end", [1, 2, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_takes_what_the_schema_says_and_runs_to_its_end(name, end):
    import mmengine.optim  # noqa: F401  they are registered there
    import torch
    from mmengine.registry import PARAM_SCHEDULERS

    from dfkd.engine import configuration

    schema = SCHEDULES[name]
    cls = PARAM_SCHEDULERS.get(name)
    assert schema["properties"].keys() - {"type", "per"} <= {
        key for base in cls.__mro__ for key in inspect.signature(base.__init__).parameters
    }
    changes = [f"training.schedule.{key}={LEAST[key]}" for key in schema["required"] if key in LEAST]
    schedule = configuration.schedule(training(f"training.schedule.type={name}", *changes)["schedule"], end, end)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    built = PARAM_SCHEDULERS.build(schedule | {"optimizer": optimizer})
    for _ in range(end):
        optimizer.step()
        built.step()
        assert 0 <= optimizer.param_groups[0]["lr"] <= 0.1


def test_a_prior_has_a_recipe_of_the_schema_whatever_its_sizes():
    from dfkd.priors import recipes

    recipe = recipes.recipes()["public32"]
    with pytest.raises(UserError, match="2 halvings do not divide a 'size' of 30"):
        recipes.check(recipe | {"size": 30})
