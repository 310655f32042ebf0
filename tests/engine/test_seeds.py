"""Seeds by axis: streams do not disturb one another, and every random state survives a file."""

import random

import numpy as np
import pytest
import torch

from dfkd.engine.seeds import Streams, global_state, load_global_state, seed_for, seed_globals


@pytest.fixture(autouse=True)
def leave_the_process_as_it_was():
    state = global_state()
    yield
    load_global_state(state)


def through_a_file(state, tmp_path, **options):
    torch.save(state, tmp_path / "state.pt")
    return torch.load(tmp_path / "state.pt", weights_only=True, **options)


def draw(generator, count=4):
    return torch.rand(count, generator=generator).tolist()


def plain(state):
    """Nothing but containers, numbers, strings and tensors."""
    if isinstance(state, dict):
        return all(type(key) is str and plain(value) for key, value in state.items())
    if type(state) in (list, tuple):
        return all(plain(value) for value in state)
    return state is None or type(state) in (int, float, str, bool, torch.Tensor)


# --- seed_for


def test_a_seed_is_a_function_of_the_names_for_good():
    # sha256 of the names joined by \x1f, its first 8 bytes, halved. Records depend on these values.
    assert seed_for("student-init", "cifar10", "resnet8", 0) == 8909911348796409571
    assert 0 <= seed_for("student-init") < 2**63


def test_names_are_kept_apart():
    names = [("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab"), ("ab", "c", ""), ("a", 0), ("a", 1), ("a",)]
    assert len({seed_for(*n) for n in names}) == len(names)


# --- streams


def test_streams_are_independent():
    alone = Streams("cpu", "run", 0)
    expected = draw(alone("noise")) + draw(alone("noise"))
    disturbed = Streams("cpu", "run", 0)
    draw(disturbed("labels"), 100)
    first = draw(disturbed("noise"))
    draw(disturbed("augment"), 7)
    draw(disturbed.host("noise"), 7)
    torch.rand(5)
    assert first + draw(disturbed("noise")) == expected


def test_a_stream_goes_on():
    streams = Streams("cpu", "run")
    assert streams("noise") is streams("noise")
    assert draw(streams("noise")) != draw(streams("noise"))


def test_streams_differ_by_name_and_identity():
    drawn = [
        draw(Streams("cpu", *identity)(name))
        for identity in (("run", 0), ("run", 1), ("other", 0))
        for name in ("noise", "labels")
    ]
    drawn.append(draw(Streams("cpu", "run", 0).host("noise")))
    assert len({tuple(values) for values in drawn}) == len(drawn)


def test_streams_leave_the_global_generators_alone():
    before = torch.get_rng_state()
    draw(Streams("cpu", "run")("noise"))
    assert torch.equal(torch.get_rng_state(), before)


def test_host_streams_are_on_the_host():
    streams = Streams("meta", "run")
    assert streams.host("jitter").device.type == "cpu"


def test_streams_round_trip(tmp_path):
    streams = Streams("cpu", "run", 0)
    for generator in (streams("noise"), streams("labels"), streams.host("jitter")):
        draw(generator, 5)
    state = through_a_file(streams.state_dict(), tmp_path)
    assert plain(state)
    again = Streams("cpu", "run", 0)
    draw(again("noise"), 3)  # what the building of a run draws before its state is loaded
    again.load_state_dict(state)
    assert draw(again("noise")) == draw(streams("noise"))
    assert draw(again("labels")) == draw(streams("labels"))
    assert draw(again.host("jitter")) == draw(streams.host("jitter"))
    # A stream first used later starts where it would have.
    assert draw(again("new")) == draw(streams("new"))


# --- the process's generators


def draw_globals():
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        *torch.rand(3).tolist(),
        random.getrandbits(70),
        int(np.random.randint(1 << 30)),
    ]


def test_seed_globals_seeds_all_three():
    drawn = []
    for seed in (2**62 + 3, 2**62 + 3, 2**62 + 4):
        seed_globals(seed)
        drawn.append(draw_globals())
    assert drawn[0] == drawn[1]
    assert all(one != two for one, two in zip(drawn[0], drawn[2], strict=True))


def test_global_state_round_trip(tmp_path):
    seed_globals(3)
    # An odd number of normal draws: python and numpy each hold a cached second one.
    random.gauss(0, 1), np.random.randn(), torch.randn(3)
    state = global_state()
    assert plain(state)
    assert state["python"][2] is not None and state["numpy"][3] == 1
    state = through_a_file(state, tmp_path)
    expected = [random.gauss(0, 1), np.random.randn(), *draw_globals()]
    seed_globals(99)
    load_global_state(state)
    assert [random.gauss(0, 1), np.random.randn(), *draw_globals()] == expected


def test_global_state_round_trip_without_a_cached_draw(tmp_path):
    seed_globals(3)
    state = through_a_file(global_state(), tmp_path)
    expected = draw_globals()
    random.gauss(0, 1)
    load_global_state(state)
    assert draw_globals() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_global_state_round_trip_through_the_gpu(tmp_path):
    """A run on a GPU reads its state with `map_location`, which moves the random states there too."""
    seed_globals(3)
    state = through_a_file(global_state(), tmp_path, map_location="cuda")
    expected = [*draw_globals(), *torch.rand(3, device="cuda").tolist()]
    load_global_state(state)
    assert [*draw_globals(), *torch.rand(3, device="cuda").tolist()] == expected
