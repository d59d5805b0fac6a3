"""The order of samples."""

import collections

import numpy as np
import pytest

from data_pipelines.read import mixture


def images(count, size, *seed):
  return np.array([mixture.permute(i, size, *seed) for i in range(count)])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_permutation_is_a_bijection_for_any_size(size):
  image = images(size, size, 5, "source", 0)
  assert sorted(image) == list(range(size))


def test_permutation_changes_with_every_part_of_its_seed():
  orders = [
    images(1000, 1000, *seed) for seed in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
  ]
  for i, one in enumerate(orders):
    assert all((one == other).mean() < 0.02 for other in orders[:i])


def test_permutation_of_a_huge_range_takes_no_memory_and_no_order_survives():
  size = 10**12
  image = images(2000, size, 0)
  assert len(set(image)) == 2000 and image.max() < size
  assert abs(image.mean() / size - 0.5) < 0.05
  assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.1


def test_every_place_of_a_small_permutation_is_equally_likely():
  seen = np.stack([images(5, 5, seed) for seed in range(4000)])
  frequencies = np.stack([(seen == value).mean(0) for value in range(5)])
  assert np.abs(frequencies - 0.2).max() < 0.03


def test_index_outside_the_range_is_an_error():
  with pytest.raises(ValueError, match="outside range"):
    mixture.permute(3, 3, 0)


def test_single_source_is_read_exactly_once_every_epoch_in_a_new_order():
  mix = mixture.make_mixture({"a": 23}, {"a": 1.0}, seed=3)
  epochs = [[mix.draw(e * 23 + i).record for i in range(23)] for e in range(3)]
  assert all(sorted(order) == list(range(23)) for order in epochs)
  assert epochs[0] != epochs[1] != epochs[2]
  assert [mix.draw(p).epoch for p in (0, 22, 23, 46)] == [0, 0, 1, 2]


def test_every_source_of_a_mixture_is_read_exactly_once_every_epoch():
  mix = mixture.make_mixture({"a": 10, "b": 7}, {"a": 0.7, "b": 0.3}, seed=0)
  read = collections.defaultdict(list)
  for p in range(500):
    draw = mix.draw(p)
    read[draw.source, draw.epoch].append(draw.record)
  whole = [records for (source, epoch), records in read.items() if epoch < 20]
  assert len(whole) == 40
  assert all(sorted(r) == list(range(len(r))) for r in whole)


def test_weights_hold_in_every_cycle_and_counts_tell_them():
  mix = mixture.make_mixture({"a": 10, "b": 7, "c": 5}, {"a": 6, "b": 3, "c": 1}, seed=1)
  assert mix.cycle == 10
  seen = collections.Counter()
  for p in range(137):
    assert mix.counts(p) == {n: seen[n] for n in "abc"}
    seen[mix.draw(p).source] += 1
  assert mix.counts(1000) == {"a": 600, "b": 300, "c": 100}
  assert mix.epochs(1000) == {"a": 60.0, "b": 300 / 7, "c": 20.0}


def test_order_does_not_depend_on_the_order_of_the_config():
  one = mixture.make_mixture({"a": 10, "b": 7}, {"a": 1, "b": 2}, seed=0)
  other = mixture.make_mixture({"b": 7, "a": 10}, {"b": 2, "a": 1}, seed=0)
  assert [one.draw(p) for p in range(60)] == [other.draw(p) for p in range(60)]


def test_stand_in_is_another_record_of_the_same_source_and_epoch():
  mix = mixture.make_mixture({"a": 5}, {"a": 1}, seed=0)
  draw = mix.draw(7)
  chain = [draw]
  for _ in range(4):
    chain.append(mix.after(chain[-1]))
  assert {d.epoch for d in chain} == {1} and sorted(d.record for d in chain) == list(range(5))
  assert mix.after(chain[-1]) == draw


@pytest.mark.parametrize(
  "sizes, weights, words",
  [
    ({"a": 0}, {"a": 1}, "empty"),
    ({"a": 3}, {"a": -1}, "positive"),
    ({"a": 3}, {"a": float("nan")}, "positive"),
    ({"a": 3, "b": 3}, {"a": 1, "b": 1e-6}, "leave it out"),
    ({}, {}, "at least one"),
  ],
)
def test_senseless_mixture_is_refused(sizes, weights, words):
  with pytest.raises(ValueError, match=words):
    mixture.make_mixture(sizes, weights, seed=0)
