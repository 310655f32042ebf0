"""A teacher for a run: one process makes it, a stop loses nothing, a kill leaves nothing in the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from dfkd import paths
from dfkd.artifacts import TEACHER, cards, save, weights
from dfkd.artifacts import teachers as wanted
from dfkd.engine import hooks
from dfkd.errors import CannotWrite, UserError
from dfkd.files import file_digest, replace_file
from dfkd.locks import alone
from dfkd.networks import initialise
from dfkd.paths import ROOT
from dfkd.signals import Stopped
from dfkd.tasks import task
from dfkd.teachers import recipes, training

RECIPE = {"epochs": 3, "batch": 64, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine"}
DIGITS = task("digits")
NAME = "digits_resnet8.safetensors"


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """ask(**options): what is had of a ResNet-8 for 256 digits, all of it in folders of this test's own."""
    whole = type(DIGITS).load
    monkeypatch.setattr(type(DIGITS), "load", lambda self, *a: tuple(part[:160] for part in whole(self, *a)))
    monkeypatch.setattr(paths, "WORK", tmp_path / "work")
    monkeypatch.delenv("DFKD_WEIGHTS", raising=False)

    def call(own="own", recipe=RECIPE, **options):
        options = {"say": lambda line: None} | options
        monkeypatch.setattr(paths, "teachers", lambda: tmp_path / own)
        asked = wanted.WantedTeacher("digits", "resnet8", recipe, tmp_path, torch.device("cpu"), **options)
        return asked.provide()

    return call


@pytest.fixture
def given(tmp_path):
    """A weights folder with that teacher, which has no card."""
    folder = tmp_path / "weights"
    card = TEACHER.new("digits", "resnet8", spec=DIGITS.spec.to_dict(), origin="trained", seed=0)
    save(initialise("resnet8", DIGITS.spec, 7), folder / NAME, card)
    (folder / NAME).with_suffix(".json").unlink()
    return folder


@pytest.fixture
def during(monkeypatch):
    """during(step, act): `act` happens in that step of a training; what it returns undoes that."""
    train_step = training.Supervised.train_step

    def at(step, act):
        def stepped(self, data, optim_wrapper):
            if self.progress.student_steps == step - 1:
                act()
            train_step(self, data, optim_wrapper)

        monkeypatch.setattr(training.Supervised, "train_step", stepped)
        return lambda: monkeypatch.setattr(training.Supervised, "train_step", train_step)

    return at


def interrupt(number=signal.SIGINT):
    return lambda: os.kill(os.getpid(), number)


# --- taken as it is


def test_a_recipe_without_training_takes_the_weights_with_the_rows_of_its_classes(ask, given):
    """The digits in reverse, from a file of the digits: the logits are in reverse, and no seed matters."""
    (given / NAME).rename(given / "others.safetensors")
    recipe = {"schedule": "none", "encoder": "others", "encoder_classes": [*range(10)][::-1]}
    recipe |= {"encoder_sha256": file_digest(given / "others.safetensors")}
    path, card = ask(source=given, recipe=recipe)
    assert (card["origin"], card["recipe"], card["seed"], card["seconds"]) == ("adopted", recipe, None, 0.0)
    taken, original = (weights.load(file, "resnet8", DIGITS.spec) for file in (path, given / "others.safetensors"))
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(taken(images), original(images).flip(1))
    assert ask(source=given, recipe=recipe, seed=3) == (path, card)
    with pytest.raises(UserError, match="'encoder_classes' is a required property"):
        recipes.check({"schedule": "none", "encoder": "others", "encoder_sha256": "0" * 64})


# --- stopped and gone on with


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_stopped_and_gone_on_with_is_the_same_bit_for_bit(ask, during, tmp_path, number, step):
    """Three batches an epoch: at its end, and within one."""
    straight = ask("straight")[1]
    undo = during(step, interrupt(number))
    message = f"stopped by {signal.Signals(number).name} at epoch {step / 3:.4g}/3; the same with --resume goes on"
    with pytest.raises(Stopped, match=message):
        ask()
    undo()
    assert not (tmp_path / "own").exists()
    told = []
    card = ask(say=told.append)[1]
    assert f"teacher digits_resnet8: going on from epoch {step / 3:.4g}/3" in told
    assert (card["digest"], card["accuracy"]) == (straight["digest"], straight["accuracy"])
    assert not list((tmp_path / "work").rglob("*.pt"))


def test_dropout_and_crops_go_on_too(tmp_path, monkeypatch):
    """Random streams that take no generator, and labels that move with their images."""
    monkeypatch.setattr("dfkd.tasks.digit_scenes.COUNTS", {"train": 7, "test": 1})
    scenes = task("digit-scenes")
    arrays, recipe = scenes.load("train", tmp_path), RECIPE | {"batch": 2, "epochs": 2, "focal": 2.0}

    def trained(**options):
        network = initialise("deeplabv3plus_thin16", scenes.spec, 0)
        training.train(network, *arrays, scenes, recipe, seed=0, **options)
        return network.state_dict()

    straight, stops = trained(), 0
    while True:
        torch.rand(3)  # the global stream must not matter
        try:
            stopped = trained(state=tmp_path / "state.pt", until=time.monotonic())
            break
        except Stopped:
            stops += 1
    assert stops == 8  # after six steps and at the end of two epochs
    assert all(torch.equal(straight[key], stopped[key]) for key in straight)


def test_the_time_limit_stops_it(ask, during):
    with pytest.raises(Stopped, match=r"the time limit was reached at epoch 0\.3333/3; the same with --resume goes on"):
        ask(until=time.monotonic())


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [({}, True), ({"recipe": RECIPE | {"lr": 0.2}}, False), ({"seed": 1}, False)],
)
def test_only_the_same_training_goes_on(ask, during, change, goes_on):
    undo, told = during(4, interrupt()), []
    with pytest.raises(Stopped):
        ask()
    undo()
    ask(say=told.append, **change)
    assert any("going on from epoch 1.333/3" in line for line in told) == goes_on


def test_without_resume_no_state_is_lost(ask, during):
    undo, told = during(4, interrupt()), []
    with pytest.raises(Stopped):
        ask()
    undo()
    with pytest.raises(UserError, match="is a saved state of this training: pass --resume to go on from it, or remove"):
        ask(resume=False)
    ask(say=told.append)
    assert any("going on from epoch 1.333/3" in line for line in told)


@pytest.mark.parametrize("place", [0, 40, 5000, -1])
def test_a_damaged_state_is_named(ask, during, tmp_path, place):
    undo = during(4, interrupt())
    with pytest.raises(Stopped):
        ask()
    undo()
    (state,) = (tmp_path / "work").rglob("*.pt")
    content = bytearray(state.read_bytes())
    content[place] ^= 1
    state.write_bytes(content)
    with pytest.raises(UserError, match=r"\.pt cannot be read .*; delete it to start this run afresh"):
        ask()


def test_a_full_disk_is_to_be_tried_again(ask, during, monkeypatch):
    during(4, interrupt())

    def full(path, content):
        raise CannotWrite(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(hooks, "replace_file", full)
    with pytest.raises(Stopped, match="No space left on device; the same with --resume goes on"):
        ask()


def test_weights_that_are_no_numbers_are_not_kept(ask, monkeypatch, tmp_path):
    train_step = training.Supervised.train_step

    def spoil(self, data, optim_wrapper):
        train_step(self, data, optim_wrapper)
        if self.progress.student_steps == self.steps - 1:
            self.trained.fc.bias.data[3] = torch.nan

    monkeypatch.setattr(training.Supervised, "train_step", spoil)
    with pytest.raises(UserError, match=r"training diverged: 'fc\.bias' holds nan"):
        ask()
    assert not (tmp_path / "own").exists()


# --- many at once


@pytest.mark.parametrize("way", ["trained", "adopted"])
def test_one_makes_it_and_the_others_wait(ask, given, way):
    told, found, spoken = [], [], threading.Event()
    source = given if way == "adopted" else None

    def hear(line):
        told.append(line)
        spoken.set()

    others = [threading.Thread(target=lambda: found.append(ask(source=source, say=hear))) for _ in range(2)]

    def first(line):
        if others[0].ident is None:
            for other in others:
                other.start()
            assert spoken.wait(60)

    made = ask(source=source, say=first)
    for other in others:
        other.join(60)
    assert set(told) == {"teacher digits_resnet8: waiting for another process that makes it"}
    assert found == [made, made] and made[1]["origin"] == way


HOLD = """
import sys, time
from pathlib import Path
from dfkd.locks import alone
with alone(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of the teacher."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "work" / "teachers" / "digits_resnet8.lock")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_killed_holder_leaves_no_lock(ask, holder):
    told = []

    def kill(line):
        told.append(line)
        if "waiting" in line:
            holder.kill()

    assert ask(say=kill)[1]["origin"] == "trained"
    assert told[0].endswith("waiting for another process that makes it")


def test_waiting_ends_with_the_time_limit_and_with_a_signal(ask, holder):
    with pytest.raises(Stopped, match="digits_resnet8: the time limit was reached while another process makes it"):
        ask(until=time.monotonic() + 0.1)
    said = threading.Event()  # that it waits: signals are caught from before that on
    threading.Thread(target=lambda: said.wait(60) and interrupt(signal.SIGTERM)()).start()
    with pytest.raises(Stopped, match="digits_resnet8: stopped by SIGTERM while another process makes it"):
        ask(say=lambda line: said.set())


def test_a_folder_for_locks_that_cannot_be_written(ask, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "teachers").touch()
    with pytest.raises(UserError, match=r"cannot write to .*teachers: File exists"):
        ask()


def test_what_is_there_needs_no_lock(ask, tmp_path, given):
    made = ask(source=given)
    (tmp_path / "work" / "teachers" / "digits_resnet8.lock").unlink()
    (tmp_path / "work" / "teachers").rmdir()
    (tmp_path / "work" / "teachers").touch()
    assert ask() == made


def test_a_lock_is_free_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="no"), alone(tmp_path / "a.lock", "a"):
            raise ValueError("no")


# --- after a kill, and other states that files are found in


@pytest.mark.parametrize("way", ["trained", "adopted"])
@pytest.mark.parametrize("written", [0, 1])
def test_a_kill_between_card_and_weights_leaves_nothing_in_the_way(ask, given, monkeypatch, way, written):
    """The card first: without its weights it is what every fresh clone has."""
    source, count = given if way == "adopted" else None, 0

    def killed(*arguments):
        nonlocal count
        count += 1
        if count > written:
            raise KeyboardInterrupt
        replace_file(*arguments)

    with monkeypatch.context() as patch:
        for module, name in ((cards, "replace_file"), (weights, "replace_file"), (wanted, "copy_file")):
            patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            ask(source=source)
    path, card = ask(source=source)
    assert card["origin"] == way and card["digest"] == file_digest(path)


@pytest.mark.parametrize("way", ["imported", "trained"])
def test_making_the_weights_of_a_card_again_leaves_the_card_as_it_is(ask, given, way):
    """In a fresh clone the card is there, of another day and a faster machine, and the weights are not."""
    source = given if way == "imported" else None
    path, card = ask(source=source)
    place = TEACHER.card_path(path)
    day = {"date": "2026-01-01T00:00:00+00:00"}
    for change, stays in (day, True), (day | {"seconds": 9.5}, True), ({"accuracy": 1.5}, False):
        place.write_text(committed := json.dumps({**card, **change}, sort_keys=True))
        path.unlink()
        assert file_digest(ask(source=source).path) == card["digest"]
        assert (place.read_text() == committed) == stays
    assert TEACHER.read(path)["accuracy"] == card["accuracy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "wrn16_1"}, "is the card of digits_wrn16_1, not of digits_resnet8"),
        ({"data": "cifar10"}, "is the card of cifar10_resnet8, not of digits_resnet8"),
        ({"seed": 3}, "was trained with seed 3, not 0; remove it"),
        ({"recipe": RECIPE | {"epochs": 2}}, "was trained for fewer epochs"),
        ({"data_digest": "00"}, "was measured on other data"),
    ],
)
def test_a_card_of_something_else_is_named(ask, given, tmp_path, change, message):
    path, card = ask(source=given)
    TEACHER.write(path, card | change)
    with pytest.raises(UserError, match=message) as caught:
        ask()
    assert str(tmp_path / "own") in str(caught.value)


def test_weights_and_cards_that_disagree_are_named(ask, given, tmp_path):
    path, card = ask(source=given)
    card_file = TEACHER.card_path(path)
    card_file.write_text(card_file.read_text().replace(card["digest"], "0" * 64))
    with pytest.raises(UserError, match=r"damaged, or its card is another's: .* remove it to have it made anew"):
        ask()
    path.unlink()
    assert ask(source=given)[1]["digest"] == card["digest"]
    card_file.unlink()
    with pytest.raises(UserError, match="has no card; remove it, or move it to a folder that DFKD_WEIGHTS names"):
        ask()


def test_a_card_in_the_weights_folder_is_looked_at(ask, given, tmp_path):
    facts = {"spec": DIGITS.spec.to_dict(), "digest": file_digest(given / NAME)}
    TEACHER.write(given / NAME, TEACHER.new("digits", "resnet20", origin="trained", **facts))
    with pytest.raises(UserError, match="is the card of digits_resnet20, not of digits_resnet8"):
        ask(source=given)
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
@pytest.mark.parametrize("where", ["own", "weights"])
def test_what_is_no_file_in_either_folder_is_named(ask, tmp_path, kind, where):
    """Not trained instead, as if nothing were there."""
    path = tmp_path / where / NAME
    path.parent.mkdir()
    {"folder": path.mkdir, "link": lambda: path.symlink_to("nowhere"), "pipe": lambda: os.mkfifo(path)}[kind]()
    with pytest.raises(UserError, match=f"{NAME} is .*, where a file is expected"):
        ask(source=None if where == "own" else tmp_path / "weights")


def test_too_few_images(tmp_path):
    images, labels = DIGITS.load("train", tmp_path)
    with pytest.raises(UserError, match="digits has 0 training images: too few for a teacher"):
        training.train(initialise("resnet8", DIGITS.spec, 0), images[:0], labels[:0], DIGITS, RECIPE, seed=0)
