"""Data from loaders: the same numbers as from arrays, the same batches for every optimizer, and clear sentences."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from test_compare import linear, toy
from test_frameworks import of_equinox, of_linen

from optax_ext.compare import Optimizer, Protocol, batches, compare
from optax_ext.compare.checks import check_problem
from optax_ext.compare.programs import Common
from optax_ext.compare.run import Runner, Task
from optax_ext.compare.store import fingerprint

ONE = jax.devices()[:1]
PROTOCOL = Protocol(8, 4)  # of epochs of 3 batches


class Tensor:
  """What a loader of another framework gives: no array of NumPy, but one can be made of it."""

  def __init__(self, array):
    self.array = array

  def __array__(self, dtype=None, copy=None):
    return np.asarray(self.array, dtype)


class Loader:
  """Batches of `rows` of the data in the order of the epoch, which is another at each pass, as of a torch loader."""

  def __init__(self, data, orders, wrap=Tensor):
    self.data, self.orders, self.wrap, self.passes = data, orders, wrap, 0

  def __len__(self):
    return len(self.orders(0))

  def __iter__(self):
    self.passes += 1
    for rows in self.orders(self.passes - 1):
      yield {name: self.wrap(array[rows]) for name, array in self.data.items()}


def loaded(problem):
  """The same problem with the same batches, from a loader."""
  per = problem.steps_per_epoch
  train = lambda seed: Loader(problem.train, lambda epoch: batches(problem, seed, epoch * per, per))
  return dataclasses.replace(problem, train=train)


def runs(problem, tasks, way="step", devices=ONE, **options):
  runner = Runner(Common(problem, PROTOCOL, devices), Optimizer("sgd", optax.sgd), way)
  return runner.run(tasks, **options)


TASKS = [Task({"learning_rate": rate}, seed) for rate in (0.1, 0.02) for seed in (0, 7)]


@pytest.mark.slow
def test_batches_of_a_loader_train_as_those_of_arrays():
  """To the bit, past the end of an epoch."""
  problem = linear()
  assert loaded(problem).steps_per_epoch == problem.steps_per_epoch == 3
  assert runs(loaded(problem), TASKS[1:2]) == runs(problem, TASKS[1:2])


@pytest.mark.heavy
@pytest.mark.parametrize(("way", "devices"), [("map", 2), ("vmap", 1), ("vmap", 2)])
def test_runs_of_several_seeds_go_together(way, devices):
  expected = runs(toy(), TASKS)
  for one, other in zip(runs(loaded(toy()), TASKS, way, jax.devices()[:devices]), expected, strict=True):
    assert (one.trial, one.seed) == (other.trial, other.seed)
    for name, curve in one.curves.items():
      np.testing.assert_allclose(curve, other.curves[name], rtol=1e-5)


@pytest.mark.heavy
def test_metrics_of_a_loader_are_means_weighted_by_size():
  """Of batches of 10 and 6 examples, and of 20 one by one."""
  problem = linear()
  parts = lambda sizes: Loader(problem.validation, lambda epoch: np.split(np.arange(16), np.cumsum(sizes)[:-1]))
  test = Loader(problem.test, lambda epoch: np.arange(20)[:, None], wrap=np.asarray)
  whole = runs(problem, TASKS[:1], with_test=True)[0]
  found = runs(dataclasses.replace(problem, validation=parts([10, 6]), test=test), TASKS[:1], with_test=True)[0]
  for name in ("train/loss", "validation/loss", "test/loss"):
    np.testing.assert_allclose(found.curves[name], whole.curves[name], rtol=1e-5)
  assert found.curves["train/loss"] == whole.curves["train/loss"]


@pytest.mark.heavy
def test_every_optimizer_sees_the_same_batches(tmp_path):
  """Two names of one optimizer are identical; the folder is gone on from."""
  problem = loaded(linear())
  options = {"learning_rates": [0.01, 0.1], "devices": ONE, "progress": False, "tuning_seeds": 2, "quick": True}
  arms = {"one": optax.sgd, "other": lambda rate: optax.sgd(rate)}
  found = compare(problem, arms, PROTOCOL, out=tmp_path, **options)
  assert [d.verdict for d in found.tuned.values()] == ["identical"]
  assert compare(problem, arms, PROTOCOL, out=tmp_path, **options).summary() == found.summary()


@pytest.mark.heavy
@pytest.mark.parametrize("make", [of_linen, of_equinox])
def test_models_of_frameworks_take_loaders(make):
  problem = make()
  assert runs(loaded(problem), TASKS[:1]) == runs(problem, TASKS[:1])


def test_a_folder_knows_a_loader_by_its_length_and_first_batch():
  problem = loaded(linear())
  other = dataclasses.replace(problem, train=lambda seed: problem.train(seed + 1))
  longer = dataclasses.replace(linear(), train=lambda seed: Loader(linear().train, lambda epoch: [range(16)] * 4))
  assert len({fingerprint(of, PROTOCOL) for of in (problem, other, longer)}) == 3
  assert fingerprint(problem, PROTOCOL) == fingerprint(loaded(linear()), PROTOCOL)


class Endless:
  def __iter__(self):
    return iter(lambda: {}, None)


class Once(Loader):
  def __next__(self):
    raise StopIteration


DATA = linear().train
order = lambda rows: lambda epoch: rows
once = Once(DATA, order([range(16)]))
drawn = np.random.default_rng(0)
shuffling = Loader(DATA, lambda epoch: drawn.permutation(60)[:48].reshape(3, 16))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"train": Endless()}, "train must have a length, the number of its batches in an epoch, but a Endless has none"),
    ({"train": (batch for batch in [])}, "train must have a length, .* but a generator has none"),
    ({"train": lambda seed: Loader(DATA, order([]))}, r"train\(0\) is empty: its length, .* is 0"),
    ({"train": lambda seed: 3}, r"train\(0\) must be iterable, giving batches, but is a int"),
    ({"train": lambda: once}, r"train must be a function of \(seed\), but was the function <lambda>, which takes \(\)"),
    ({"test": [DATA] * 3}, "test must be a tree of arrays like train, .* a list of batches, as test may be, is a tree"),
    ({"train": once}, "train can be iterated once alone"),
    ({"train": shuffling}, r"train began with another batch .* give train in one order, or a function train\(seed\)"),
    ({"train": lambda seed: shuffling}, r"so that no runs can be paired: train\(seed\) must shuffle by its seed alone"),
    ({"train": Loader(DATA, order([range(15)]))}, "batch_size must be that of the loader's batches, 15, but was 16"),
    ({"train": Loader({"x": DATA["x"]}, order([range(16)]))}, "validation must be a tree of arrays like train"),
    ({"train": Loader({}, order([range(16)]))}, "a batch of train must hold at least one array"),
    ({"train": Loader(DATA, order([range(16)])), "filler": True}, "filler is for arrays"),
    ({"validation": lambda seed: once}, "validation must be a tree of arrays or a loader, .* but is a function"),
    ({"test": Loader({"x": DATA["x"] * np.nan, "y": DATA["y"]}, order([range(16)]))}, "of a batch of test.* holds NaN"),
  ],
)
def test_bad_loaders_are_told_before_any_training(changes, message):
  with pytest.raises((TypeError, ValueError), match=message):
    check_problem(dataclasses.replace(linear(), **changes))


class Lying(Loader):
  def __len__(self):
    return 2


@pytest.mark.parametrize(
  ("train", "message"),
  [
    (
      Loader(DATA, order([range(16), range(12)])),
      r"Batch 2 of train must have the shapes .* but one array is float32 of shape \(12, 5\) where the first has "
      r"float32 of shape \(16, 5\): leave out an incomplete last batch \(drop_last=True in torch",
    ),
    (Lying(DATA, order([range(16)])), "train has length 2, but an epoch ended after 1 batches"),
    (Lying(DATA, order([range(16)] * 3)), "train has length 2, but goes on after as many batches of an epoch"),
  ],
)
def test_batches_that_differ_are_told_when_they_come(train, message):
  problem = dataclasses.replace(linear(), train=train)
  check_problem(problem)
  with pytest.raises(ValueError, match=message):
    runs(problem, TASKS[:1])


def test_batches_of_other_trees_are_told():
  problem = linear()
  test = Loader(problem.test, order([range(16)]))
  test.orders = lambda epoch: [range(16)]
  one, other = {"x": DATA["x"][:16], "y": DATA["y"][:16]}, {"x": DATA["x"][:16]}

  class Changing(Loader):
    def __iter__(self):
      return iter([one, other])

  changing = Changing(DATA, order([range(16)] * 2))
  with pytest.raises(ValueError, match=r"Batch 2 of train must be a tree like the first batch, PyTreeDef.*'y'"):
    runs(dataclasses.replace(problem, train=changing), TASKS[:1])
  with pytest.raises(ValueError, match=r"Batch 2 of validation must be a tree like the first batch"):
    runs(dataclasses.replace(problem, validation=changing), TASKS[:1])
