"""What runs cost and how long they take: counts that can be worked out by hand, and times that follow from them."""

import json

import pytest
import torch

from dfkd import paths
from dfkd.engine import counting, throughput
from dfkd.engine.operations import Operations
from dfkd.priors.untrained import published
from dfkd.tables import costs
from dfkd.tables.costs import Passes, Speed, place
from dfkd.tables.definition import table_of
from dfkd.tables.pipeline import span
from dfkd.tables.resolve import resolve
from dfkd.tasks import task
from tests.conftest import PAIR

DEVICE = {"A chip": {"fp32": {"resnet8 16": {"forward": 2e9, "inversion": 5e8, "training": 1e9}}}}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """files(runs): the two files in this test's own folder, with one device and the counts of these runs."""
    monkeypatch.setattr(paths, "costs", lambda: tmp_path / "costs.json")
    monkeypatch.setattr(paths, "devices", lambda: (tmp_path / "here.json", tmp_path / "devices.json"))
    (tmp_path / "devices.json").write_text(json.dumps(DEVICE))

    def write(runs):
        costs.write({"resnet8 16": 1e6}, {costs.key(run): {"what": "", **passes._asdict()} for run, passes in runs})

    return write


# --- counts


def test_a_backward_pass_belongs_to_whom_the_weights_belong():
    teacher, student = torch.nn.Linear(3, 5, bias=False), torch.nn.Conv2d(1, 2, 3, bias=False)
    with Operations(teacher=teacher, student=student) as operations:
        teacher(torch.rand(4, 3))
        student(torch.rand(4, 1, 5, 5, requires_grad=True)).sum().backward()
        torch.rand(2, 3) @ torch.rand(3, 4)
    each = 2 * 9 * 2 * 9  # of a 5×5 image
    assert operations.flops == {"teacher": 2 * 4 * 3 * 5, "student": 3 * 4 * each, "other": 2 * 2 * 3 * 4}


def test_a_grouped_convolution_costs_the_same_backward():
    """A gradient of the image and one of the weights: two forward passes. torch counts the second as if not grouped."""
    depthwise = torch.nn.Conv2d(6, 6, 3, groups=6, padding=1, bias=False)
    with Operations(it=depthwise) as operations:
        depthwise(torch.rand(2, 6, 5, 5, requires_grad=True)).sum().backward()
    assert operations.flops == {"it": 3 * 2 * (2 * 6 * 9 * 25)}
    assert operations.operators == {"aten.convolution": 5400, "aten.convolution_backward": 2 * 5400}


def test_passes_are_those_of_the_schedule(tiny):
    """Fast: T sees each image of a student step once, and in an inner step forward and backward; S trains, and gets
    the gradient of images once the warm-up is over."""
    run = tiny("fast", "k=4", "rounds=2", "training.steps=4", "training.batch=8", "synthesis_batch=6")
    found = counting.count(run)
    assert found.teacher == pytest.approx(4 * 8)
    assert found.inversion == pytest.approx(3 * 4 * 6 * 2, rel=0.01)  # a call of warm-up and two more
    assert found.student == pytest.approx(3 * 4 * 8 + 3 * 4 * 6 * 2, rel=0.05)
    assert found.other > 0


def test_what_is_not_run_costs_nothing(tiny):
    assert counting.count(tiny("teacher")) == Passes(0, 0, 0, 0)


@pytest.mark.parametrize("method", ["deepinv", "fast"])
def test_few_inner_iterations_tell_what_many_cost(method, tiny, monkeypatch):
    run = tiny(method, "k=6" if method == "fast" else "steps=16")
    short = counting.count(run)
    monkeypatch.setattr(counting, "LOOPS", ())
    assert short == pytest.approx(counting.count(run), rel=1e-6)


def test_stable_diffusion_is_the_published_one():
    """Two trajectories of five steps; each of the four intermediate images asks the U-Net once more, guidance doubles
    its rows, and every image is decoded."""
    unet, vae = published()
    assert [sum(p.numel() for p in part.parameters()) for part in (unet, vae)] == [859_520_964, 83_653_863]
    changes = ["calls=1", "steps=5", "rounds=1", "synthesis_batch=10", "prior=stable-diffusion-v1-5"]
    found = counting.count(resolve("digits", "quick", "diffdfkd-unguided", changes=changes))
    assert found.other == pytest.approx(2 * ((5 + 4) * 2 * 0.8033e12 + 5 * 2.5145e12), rel=1e-3)


def test_every_run_is_counted():
    """Else: `python -m dfkd.engine.counting`, after a change of methods, recipes or tables."""
    counted = costs.counts()["runs"]
    for run in {run.cell: run for run in span()}.values():
        resolved = resolve(run.data, run.protocol, run.method, run.pair)
        assert costs.key(resolved) in counted or not _applies(resolved), run.name
        for name in run[1:3]:
            assert place(name, task(run.data).spec.size) in costs.counts()["networks"]


def _applies(resolved) -> bool:
    from dfkd.engine.configuration import method
    from dfkd.engine.method import build_method

    return build_method(**method(resolved)).supports(resolved.task) is None


@pytest.mark.parametrize(("data", "protocol", "method"), [("digits", "quick", "ssdkd"), ("cifar10", "cpu", "kd-noise")])
def test_the_counts_are_those_of_today(data, protocol, method):
    run = resolve(data, protocol, method)
    arch, spec = run.run.teacher, run.task.spec
    images = [counting.forward(name, spec) for name in (arch, arch, run.run.student)]

    def total(passes: Passes) -> float:  # a count serves all data sets of a size, whose last layers differ
        return sum(n * each for n, each in zip(passes, [*images, 1], strict=True))

    assert total(costs.passes(run)) == pytest.approx(total(counting.count(run)), rel=1e-2)
    assert costs.counts()["networks"][place(arch, spec.size)] == pytest.approx(images[0], rel=1e-3)


# --- times


def test_a_time_is_operations_over_speed(tiny, files):
    run = tiny("fast")
    assert costs.predicted(run, costs.device("A chip")[1]) is None
    files([(run, Passes(2000, 500, 3000, 4e9))])
    # Of the generator nothing is known there: it is taken to be as fast as what is.
    assert costs.predicted(run, costs.device("A chip")[1]) == pytest.approx(
        2e9 / 2e9 + 5e8 / 5e8 + 3e9 / 1e9 + 4e9 / 1e9
    )
    assert costs.predicted(run, {}) is None
    assert costs.predicted(tiny("fast", "k=3"), costs.device("A chip")[1]) is None


def test_a_row_that_trains_nothing_takes_no_time(tiny, files):
    run = tiny("teacher")
    files([(run, Passes(0, 0, 0, 0))])
    assert costs.predicted(run, {}) == 0.0


def test_auto_is_the_precision_that_the_device_is_faster_in(files):
    run = resolve("digits", "quick", "kd-noise", PAIR)
    files([(run, Passes(0, 0, 1000, 0))])
    slow, fast = ({"resnet8 16": Speed(speed, speed, speed)} for speed in (1e9, 2e9))
    assert costs.predicted(run, {"fp32": slow}) == pytest.approx(1.0)
    assert costs.predicted(run, {"fp32": slow, "bf16": fast}) == pytest.approx(0.5)


def test_a_teachers_training_is_its_epochs(files):
    files([])
    images = json.loads(paths.manifest("digits").read_text())["splits"]["train"]["images"][0]
    found = costs.teacher("digits", "resnet8", {"epochs": 2}, costs.device("A chip")[1])
    assert found == pytest.approx(3 * 2 * images * 1e6 / 1e9)
    assert costs.teacher("digits", "resnet8", {"schedule": "none"}, costs.device("A chip")[1]) == 0.0  # only imported
    assert costs.teacher("domainnet-real", "resnet8", {"epochs": 2}, {}) is None


def test_a_teacher_is_planned_by_the_published_number_of_images_where_the_data_are_not_at_hand(tmp_path, monkeypatch):
    speeds = costs.device("AMD EPYC (AVX512), 2 threads")[1]
    recipe = table_of("tiny_imagenet").protocol("paper").teacher
    known = costs.teacher("tiny_imagenet50", "resnet34", recipe, speeds)  # 10,000 images, its manifest says
    assert known and costs.teacher("tiny_imagenet", "resnet34", recipe, speeds) == pytest.approx(10 * known)
    monkeypatch.setattr(costs.paths, "manifest", lambda data: tmp_path / "none")
    assert costs.teacher("tiny_imagenet50", "resnet34", recipe, speeds) == known
    assert costs.teacher("cifar10", "resnet34", recipe, speeds) is None


def test_this_machine_is_measured_once(tiny, files, monkeypatch):
    monkeypatch.setattr(throughput, "SECONDS", 0.0)
    run, device = tiny("kd-noise"), torch.device("cpu")
    assert throughput.predicted(run, device) is None and not paths.devices()[0].exists()
    files([(run, Passes(32, 0, 96, 1e9))])
    first = throughput.predicted(run, device)
    name, speeds = costs.device()
    assert name == throughput.name_of(device) and set(speeds["fp32"]) == {"resnet8 16", "generator 16"}
    monkeypatch.setattr(throughput, "_measure", lambda *args: pytest.fail("measured again"))
    assert first > 0 and throughput.predicted(run, device) == first


# --- the command


def test_plan_predicts_for_a_named_device(files, command):
    files(
        [(resolve("digits", "quick", method), Passes(0, 0, 0, n)) for method, n in (("teacher", 0), ("kd-real", 5e11))]
    )
    status, out, errors = command("plan", "--data", "digits", "--device", "A chip")
    lines = {line.split("--method ")[1].split()[0]: line for line in out.splitlines() if "--method" in line}
    assert (status, lines["teacher"].split("# ")[1]) == (0, "about 0 s")
    assert lines["kd-real"].endswith("# about 8 m 20 s") and lines["ssdkd"].endswith("# of unknown cost")
    assert errors.splitlines()[-1].endswith("in all on A chip, and 10 commands of unknown cost")


def test_a_device_that_nobody_measured_is_bad_input(files, command):
    status, _, errors = command("plan", "--device", "A ship")
    assert status == 2 and "unknown device 'A ship' (nearest: 'A chip'" in errors
