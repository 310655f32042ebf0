"""The replay buffer against Python models, its draws against ssdkd.md E6 and E7, its log against interruptions."""

from collections import Counter, deque

import pytest
import torch

from dfkd.errors import UserError
from dfkd.synthesis.buffer import ReplayBuffer, Samples, ShuffledPasses, to_bytes

SHAPE = (1, 1, 2)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(ids):
    """Images of two pixels that spell the ids, in the middle of each byte's interval."""
    ids = torch.as_tensor(ids)
    return (torch.stack([ids // 256, ids % 256], 1).view(-1, *SHAPE) + 0.5) / 255


def read(images):
    """The ids that byte images spell."""
    values = images.flatten(1).long()
    return (values[:, 0] * 256 + values[:, 1]).tolist()


def samples(ids, priority=None, labels=None):
    ids = torch.as_tensor(ids)
    fields = {"id": ids}
    if priority is not None:
        fields["priority"] = torch.tensor(priority, dtype=torch.float32)
    return Samples(picture(ids), None if labels is None else torch.tensor(labels), fields)


def filled(priority, capacity=None, **options):
    buffer = ReplayBuffer(capacity or len(priority), SHAPE, **options)
    buffer.add(samples(range(len(priority)), priority))
    return buffer


def present(buffer):
    """The ids held, by image; fails where a field lies in another slot than its image."""
    ids = read(buffer.images[: len(buffer)])
    assert buffer.fields["id"][: len(buffer)].tolist() == ids
    return ids


# --- bytes


def test_images_are_stored_as_floor_of_255_x():
    # 127.5, 254.97, 0.9945 and 1.02 of a byte; what lies outside [0, 1] is clamped, not wrapped.
    x = torch.tensor([0.0, 0.5, 0.9999, 0.0039, 0.004, 1.0, 1.01, -0.01])
    assert to_bytes(x).tolist() == [0, 127, 254, 0, 1, 255, 255, 0]
    buffer = ReplayBuffer(4, (1, 2, 4))
    buffer.add(Samples(x.view(1, 1, 2, 4).requires_grad_(True)))
    assert buffer.images.dtype == torch.uint8
    assert buffer.images[0].flatten().tolist() == [0, 127, 254, 0, 1, 255, 255, 0]


def test_to_bytes_leaves_its_argument_alone():
    x = torch.tensor([0.3, 1.2])
    to_bytes(x)
    assert x.tolist() == pytest.approx([0.3, 1.2])


# --- replacement


@pytest.mark.parametrize("capacity, count, adds", [(5000, 256, 45), (10, 4, 12), (8, 8, 3), (7, 5, 20), (5, 1, 12)])
def test_oldest_entries_leave(capacity, count, adds):
    """5000 is no multiple of 256: the twentieth call fills 136 slots and overwrites 120."""
    buffer, model = ReplayBuffer(capacity, SHAPE), deque(maxlen=capacity)
    for call in range(adds):
        ids = list(range(call * count, (call + 1) * count))
        slots = buffer.add(samples(ids))
        model.extend(ids)
        assert len(buffer) == len(model)
        assert sorted(present(buffer)) == list(model)
        assert read(buffer.images[slots]) == ids, "add returns the slots in the order of the samples"
        assert slots.dtype == torch.int64


def test_lowest_entries_leave():
    buffer = filled([3.0, 1.0, 2.0, 5.0], replace="lowest")
    slots = buffer.add(samples([10, 11], [0.0, 0.5]))
    assert sorted(slots.tolist()) == [1, 2]
    assert sorted(present(buffer)) == [0, 3, 10, 11]
    buffer.add(samples([12], [9.0]))
    assert sorted(present(buffer)) == [0, 3, 11, 12]


def test_what_is_being_added_does_not_evict_itself():
    buffer = filled([3.0, 1.0, 2.0], capacity=4, replace="lowest")
    buffer.add(samples([10, 11], [0.0, 0.0]))
    assert sorted(present(buffer)) == [0, 2, 10, 11]
    assert len(buffer) == 4


def test_lowest_follows_changed_priorities():
    buffer = filled([3.0, 1.0, 2.0], replace="lowest")
    buffer.set_priority(torch.tensor([0]), torch.tensor([0.5]))
    buffer.add(samples([10], [1.0]))
    assert sorted(present(buffer)) == [1, 2, 10]


def test_refusals():
    with pytest.raises(ValueError, match="replace"):
        ReplayBuffer(4, SHAPE, replace="newest")
    with pytest.raises(ValueError, match="do not fit"):
        ReplayBuffer(4, SHAPE).add(samples(range(5)))


def test_newest():
    buffer = ReplayBuffer(5, SHAPE)
    for call in range(3):
        buffer.add(samples(range(3 * call, 3 * call + 3)))
    assert read(buffer.newest(4)) == [8, 7, 6, 5]
    assert read(buffer.newest(99)) == [8, 7, 6, 5, 4]


def test_fields_carry_no_graph():
    buffer = ReplayBuffer(2, SHAPE)
    images = picture([1, 2]).requires_grad_(True)
    buffer.add(Samples(images, fields={"priority": images.sum((1, 2, 3))}))
    assert not buffer.fields["priority"].requires_grad


# --- histogram


def test_histogram_counts_what_is_there():
    buffer = ReplayBuffer(4, SHAPE)
    assert buffer.histogram("labels", 3).tolist() == [0, 0, 0]
    buffer.add(samples([0, 1, 2], labels=[2, 0, 2]))
    assert buffer.histogram("labels", 3).tolist() == [1, 0, 2]  # the free slot holds a 0 that does not count
    buffer.add(samples([3, 4], labels=[1, 1]))  # over the label 2 of the first entry
    assert buffer.histogram("labels", 3).tolist() == [1, 2, 1]


def test_histogram_of_shares_sums_rows():
    buffer = ReplayBuffer(3, SHAPE)
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
    buffer.add(Samples(picture([0, 1]), fields={"shares": shares}))
    assert buffer.histogram("shares", 3).tolist() == [0.5, 0.75, 0.75]


# --- uniform draws


def test_draws_are_shuffled_passes():
    buffer, generator = ReplayBuffer(12, SHAPE), rng()
    buffer.add(samples(range(10), labels=[i % 3 for i in range(10)]))
    batches = [buffer.draw(4, generator) for _ in range(5)]
    assert all(len(batch.images) == 4 for batch in batches)
    drawn = [i for batch in batches for i in batch.indices.tolist()]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:] and drawn[:10] != list(range(10))
    for batch in batches:
        assert batch.images.dtype == torch.uint8 and batch.weights is None
        assert read(batch.images) == batch.indices.tolist() == batch.fields["id"].tolist()
        assert batch.labels.tolist() == [i % 3 for i in batch.indices.tolist()]
        assert "labels" not in batch.fields


def test_adding_starts_a_new_pass():
    buffer, generator = ReplayBuffer(12, SHAPE), rng()
    buffer.add(samples(range(10)))
    buffer.draw(7, generator)
    buffer.add(samples([10, 11]))
    assert sorted(buffer.draw(12, generator).indices.tolist()) == list(range(12))


def test_a_batch_may_span_passes():
    assert Counter(ShuffledPasses().draw(10, 3, rng()).tolist()[:9]) == {0: 3, 1: 3, 2: 3}


def test_draws_come_from_the_generator_alone():
    one, two = filled([1.0] * 9), filled([1.0] * 9)
    before = torch.get_rng_state()
    assert torch.equal(one.draw(6, rng(3)).indices, two.draw(6, rng(3)).indices)
    assert torch.equal(one.draw_by_priority(6, rng(3)).indices, two.draw_by_priority(6, rng(3)).indices)
    assert torch.equal(torch.get_rng_state(), before)


# --- draws by priority


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_frequencies_follow_e6(alpha):
    # |δ| + ε is .5, 1.5, 2.5, 5.5; the two free slots are never drawn.
    buffer = filled([0.0, 1.0, -2.0, 5.0], capacity=6)
    count = 40_000
    indices = buffer.draw_by_priority(count, rng(1), alpha=alpha, eps=0.5).indices
    mass = [m**alpha for m in (0.5, 1.5, 2.5, 5.5)]
    expected = [count * m / sum(mass) for m in mass]
    observed = indices.bincount(minlength=4).tolist()
    assert len(observed) == 4
    # 3 degrees of freedom: 16.3 is the 99.9 % point.
    assert sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True)) < 16.3


def test_frequencies_follow_e6_in_a_large_buffer():
    # In float32 the second half would fall between the steps of a running sum that has reached a million.
    count = 200_000
    priority = torch.full((count,), 1 / 64)
    priority[: count // 2] = 10.0
    buffer = ReplayBuffer(count, (1, 1, 1))
    buffer.add(Samples(torch.zeros(count, 1, 1, 1), fields={"priority": priority}))
    indices = buffer.draw_by_priority(400_000, rng(2), eps=0.0).indices
    tail = indices[indices >= count // 2]
    assert abs(len(tail) - 624) < 4 * 624**0.5  # 400 000 · (1/64) / (10 + 1/64)
    for counts in ((tail % 4).bincount(), (indices[indices < count // 2] // 25_000).bincount()):
        assert len(counts) == 4
        mean = counts.double().mean()
        assert ((counts - mean) ** 2 / mean).sum() < 16.3  # 3 degrees of freedom


def test_an_entry_without_mass_is_never_drawn():
    buffer = filled([0.0, 1.0, 0.0, 1.0, 0.0])
    assert set(buffer.draw_by_priority(2000, rng(), eps=0.0).indices.tolist()) == {1, 3}


def test_eps_keeps_every_entry_drawable():
    buffer = filled([0.0, 0.0, 0.0])
    assert set(buffer.draw_by_priority(200, rng()).indices.tolist()) == {0, 1, 2}


def test_weights_follow_e7():
    buffer = filled([0.0, 1.0, 2.0, 5.0], capacity=6)
    batch = buffer.draw_by_priority(400, rng(1), beta=0.4, eps=0.5)
    # N = 4, not 6: N·P = .2, .6, 1, 2.2, each to the power −.4.
    expected = torch.tensor([1.903654, 1.226703, 1.0, 0.729509])
    assert batch.weights.dtype == torch.float32
    torch.testing.assert_close(batch.weights, expected[batch.indices], rtol=2e-6, atol=0)
    assert read(batch.images) == batch.indices.tolist()


def test_weights_follow_the_power_of_the_priorities():
    batch = filled([1.0, 16.0]).draw_by_priority(50, rng(), alpha=0.5, beta=1.0, eps=0.0)
    # Masses 1 and 4: P = .2, .8; w = 1/(2 P).
    torch.testing.assert_close(batch.weights, torch.tensor([2.5, 0.625])[batch.indices])


def test_beta_0_means_no_weights():
    assert filled([1.0, 16.0]).draw_by_priority(9, rng(), beta=0.0).weights.tolist() == [1.0] * 9


def test_set_priority_takes_the_mean_of_duplicates():
    buffer = filled([10.0, 20.0, 30.0, 40.0])
    values = torch.tensor([2.0, 4.0, 7.0], dtype=torch.float64, requires_grad=True)
    buffer.set_priority(torch.tensor([1, 1, 2]), values)
    priority = buffer.fields["priority"]
    assert priority.tolist() == [10.0, 3.0, 7.0, 40.0]  # the old 20 has no part in the mean
    assert priority.dtype == torch.float32 and not priority.requires_grad


# --- state and log


def work(buffer, generator, calls, start=0):
    """Adds and draws; what was drawn."""
    drawn = []
    for call in range(start, start + calls):
        ids = range(call * 600, (call + 1) * 600)
        buffer.add(samples(ids, [float(i % 7) for i in ids], labels=[i % 10 for i in ids]))
        drawn.append(read(buffer.draw(700, generator).images))
        batch = buffer.draw_by_priority(50, generator)
        buffer.set_priority(batch.indices, batch.weights)
        drawn.append(read(batch.images))
    return drawn


def saved(buffer, path):
    torch.save(buffer.state_dict(), path)
    return torch.load(path, weights_only=True)


def contents(buffer):
    fields = {name: values[: len(buffer)].clone() for name, values in buffer.fields.items()}
    return {"images": buffer.images[: len(buffer)].clone(), **fields}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("replace", ["oldest", "lowest"])
@pytest.mark.parametrize("logged", [True, False])
@pytest.mark.parametrize("calls", [3, 10])
def test_a_resumed_buffer_goes_on_as_if_nothing_had_happened(tmp_path, replace, logged, calls):
    """Capacity 5000: partly filled after 3 calls, partly overwritten after 10."""
    log, generator = tmp_path / "bank.bin" if logged else None, rng(4)
    buffer = ReplayBuffer(5000, SHAPE, replace=replace, log=log)
    work(buffer, generator, calls)
    state, at = saved(buffer, tmp_path / "state.pt"), generator.get_state()
    before = contents(buffer)
    # Goes on past the saved state, then is killed: its log is longer than the state knows.
    straight = work(buffer, generator, 4, start=calls)
    again = ReplayBuffer(5000, SHAPE, replace=replace, log=log)
    again.load_state_dict(state)
    assert same(contents(again), before)
    assert len(again) == min(5000, 600 * calls)
    generator.set_state(at)
    assert work(again, generator, 4, start=calls) == straight
    assert same(contents(again), contents(buffer))
    assert read(again.newest(20)) == read(buffer.newest(20))


def test_a_pass_goes_on_where_it_stopped(tmp_path):
    buffer, generator = ReplayBuffer(10, SHAPE), rng()
    buffer.add(samples(range(10)))
    first = buffer.draw(6, generator).indices.tolist()
    again = ReplayBuffer(10, SHAPE)
    again.load_state_dict(saved(buffer, tmp_path / "state.pt"))
    assert sorted(first + again.draw(4, rng(77)).indices.tolist()) == list(range(10))


def test_what_was_logged_after_the_state_is_cut_off(tmp_path):
    log = tmp_path / "bank.bin"
    buffer = ReplayBuffer(5, SHAPE, log=log)
    buffer.add(samples(range(4)))
    buffer.add(samples(range(4, 8)))
    state = saved(buffer, tmp_path / "state.pt")
    buffer.add(samples(range(8, 12)))
    assert log.stat().st_size == 12 * 2
    again = ReplayBuffer(5, SHAPE, log=log)
    again.load_state_dict(state)
    assert log.stat().st_size == 8 * 2
    again.add(samples([20, 21]))
    # The bytes of ids below 256 are (0, id), one pair per image ever added, overwritten ones included.
    assert log.read_bytes()[1::2] == bytes([0, 1, 2, 3, 4, 5, 6, 7, 20, 21])
    third = ReplayBuffer(5, SHAPE, log=log)
    third.load_state_dict(saved(again, tmp_path / "state.pt"))
    assert sorted(present(third)) == [5, 6, 7, 20, 21]


def test_a_damaged_log_is_refused(tmp_path):
    log = tmp_path / "bank.bin"
    buffer = ReplayBuffer(5, SHAPE, log=log)
    buffer.add(samples(range(5)))
    state, good = saved(buffer, tmp_path / "state.pt"), log.read_bytes()
    for bad in (good[:3] + b"\xff" + good[4:], good[:-1], b""):
        again = ReplayBuffer(5, SHAPE, log=log)
        log.write_bytes(bad)
        with pytest.raises(UserError, match="saved state"):
            again.load_state_dict(state)


def test_a_missing_log_is_refused(tmp_path):
    log = tmp_path / "bank.bin"
    buffer = ReplayBuffer(5, SHAPE, log=log)
    buffer.add(samples(range(5)))
    state = saved(buffer, tmp_path / "state.pt")
    log.unlink()
    with pytest.raises(UserError, match="saved state"):
        ReplayBuffer(5, SHAPE, log=log).load_state_dict(state)


def test_a_new_run_does_not_inherit_the_log_of_another(tmp_path):
    log = tmp_path / "bank.bin"
    ReplayBuffer(5, SHAPE, log=log).add(samples(range(5)))
    buffer = ReplayBuffer(5, SHAPE, log=log)
    buffer.add(samples([7]))
    again = ReplayBuffer(5, SHAPE, log=log)
    again.load_state_dict(saved(buffer, tmp_path / "state.pt"))
    assert present(again) == [7]
    assert log.stat().st_size == 2


def test_a_state_before_the_first_image(tmp_path):
    log = tmp_path / "bank.bin"
    state = saved(ReplayBuffer(5, SHAPE, log=log), tmp_path / "state.pt")
    again = ReplayBuffer(5, SHAPE, log=log)
    again.load_state_dict(state)
    assert len(again) == 0
    again.add(samples([3]))
    assert present(again) == [3] and log.stat().st_size == 2


def numbers(state):
    """Bytes of all tensors in a nest of containers."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(numbers(value) for value in state.values())
    return sum(numbers(value) for value in state) if isinstance(state, list | tuple) else 0


def test_a_state_beside_a_log_holds_no_images(tmp_path):
    images = torch.rand(50, 3, 16, 16, generator=rng())
    buffer = ReplayBuffer(50, (3, 16, 16), log=tmp_path / "bank.bin")
    buffer.add(Samples(images, torch.zeros(50, dtype=torch.int64), {"priority": torch.ones(50)}))
    buffer.draw(5, rng())
    assert numbers(buffer.state_dict()) < 50 * 100 < 50 * 3 * 16 * 16
    assert (tmp_path / "bank.bin").stat().st_size == 50 * 3 * 16 * 16
    torch.save(buffer.state_dict(), tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size < 50 * 3 * 16 * 16 / 2
