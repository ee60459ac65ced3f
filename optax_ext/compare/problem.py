"""`Problem`: a model's initialisation, loss and metrics, and its data."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from optax_ext._common.arguments import shown
from optax_ext.compare.frameworks import KEYS, of_equinox, of_linen, of_nnx
from optax_ext.compare.streams import first_batch, is_stream, opened


@dataclasses.dataclass(frozen=True)
class Problem:
  """A model and its data, as pure functions, and arrays or loaders.

  Attributes:
    name: Names it in tables and files.
    init: `init(key) -> params`, or `-> (params, state)` where `has_state`; state is what changes beside the parameters,
      such as batch statistics.
    loss: `loss(params, batch, key) -> scalar`, key for dropout; where `has_state`, `loss(params, state, batch, key) ->
      (scalar, new state)`.
    metrics: `metrics(params, data) -> {name: scalar}` of all of `data` (no dropout); where `has_state`,
      `metrics(params, state, data)`.
    train: A tree of arrays with one leading axis, the examples; a batch is such a tree with `batch_size` of them. Where
      the data do not fit on a device, `train(seed)` gives a loader: whatever has a length, the number of batches in an
      epoch, and can be iterated anew in each epoch (a torch `DataLoader`, a grain `MapDataset`, a `tf.data.Dataset`).
      Its batches are trees of NumPy arrays or tensors, all alike. It shuffles by that seed alone, so that all
      optimizers see the same batches; one that shuffles otherwise is refused. A loader in place of the function gives
      the same batches to every seed.
    validation: A tree of arrays or a loader, no function; every decision is made on it. Of a loader, whose batches may
      differ in size, a metric is the mean over batches weighted by their sizes, which for a mean over examples is that
      of all.
    test: Like `validation`; looked at in reporting runs alone.
    batch_size: Examples in a batch. A last incomplete batch of an epoch is left out, unless there is a filler. A
      loader's batches have as many.
    metric: The metric that decides.
    maximize: Whether more of it is better.
    has_state: Whether there is such a state.
    filler: Whether the last example of `train` is a filler, which completes the last batch of each epoch and is in no
      other: an example like the others but for a weight of 0, say, that the loss heeds.
    hints: What named optimizers may want to know: `structure` (a `Structure`, as `structure_from_model` returns it, or
      a function of nothing that gives one and is called where it is wanted) and `axes` for caadam and nd_adam, and
      `normalised_units` (a bool): whether a per-unit normaliser follows each vector, which nd_adam needs.

  Example:
    >>> import jax.numpy as jnp
    >>> x = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
    >>> data = {"x": x, "y": x @ np.array([1.0, -2.0, 0.5], np.float32)}
    >>> train, validation, test = ({name: a[at : at + 30] for name, a in data.items()} for at in (0, 30, 60))
    >>> error = lambda w, data: jnp.mean((data["x"] @ w - data["y"]) ** 2)
    >>> line = Problem(
    ...   "line",
    ...   init=lambda key: jnp.zeros(3),
    ...   loss=lambda w, batch, key: error(w, batch),
    ...   metrics=lambda w, data: {"loss": error(w, data)},
    ...   train=train,
    ...   validation=validation,
    ...   test=test,
    ...   batch_size=10,
    ... )
    >>> line.steps_per_epoch
    3
  """

  name: str
  init: Callable[..., Any]
  loss: Callable[..., Any]
  metrics: Callable[..., Mapping[str, Any]]
  train: Any
  validation: Any
  test: Any
  batch_size: int
  metric: str = "loss"
  maximize: bool = False
  has_state: bool = False
  filler: bool = False
  hints: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_nnx(
    cls,
    name: str,
    build: Callable[[Any], Any],
    loss: Callable[..., Any],
    metrics: Callable[..., Mapping[str, Any]],
    train: Any,
    validation: Any,
    test: Any,
    batch_size: int,
    *,
    wrt: Any = None,
    **options: Any,
  ) -> "Problem":
    """A problem of a Flax NNX model.

    The model is in training mode for the loss and in evaluation mode for the metrics. Batch statistics and random keys
    are its state, which each run carries along.

    Args:
      name: Names it in tables and files.
      build: `build(rngs) -> model`, of `nnx.Rngs`; everything random comes from these.
      loss: `loss(model, batch) -> scalar`.
      metrics: `metrics(model, data) -> {name: scalar}`.
      train: As `Problem.train`, and so are the next three.
      validation: Like `train`.
      test: Like `train`.
      batch_size: Examples in a batch.
      wrt: Which variables are trained; by default `nnx.Param`.
      **options: Other fields of `Problem`: `metric`, `maximize`, `filler`.

    Returns:
      The `Problem`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> x = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
      >>> data = {"x": x, "y": x.sum(axis=1, keepdims=True)}
      >>> parts = [{name: a[at : at + 30] for name, a in data.items()} for at in (0, 30, 60)]
      >>> def build(rngs):
      ...   dropout = nnx.Dropout(0.1, rngs=rngs)
      ...   return nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), dropout, nnx.Linear(8, 1, rngs=rngs))
      >>> loss = lambda model, batch: jnp.mean((model(batch["x"]) - batch["y"]) ** 2)
      >>> metrics = lambda model, data: {"loss": loss(model, data)}
      >>> problem = Problem.from_nnx("sums", build, loss, metrics, *parts, batch_size=10)
      >>> problem.structure.num_layers
      2
    """
    fields = of_nnx(build, loss, metrics, train, batch_size, wrt)
    return cls(name, train=train, validation=validation, test=test, batch_size=batch_size, **fields, **options)

  @classmethod
  def from_linen(
    cls,
    name: str,
    model: Any,
    inputs: Callable[[Any], Any],
    loss: Callable[..., Any],
    metrics: Callable[..., Mapping[str, Any]],
    train: Any,
    validation: Any,
    test: Any,
    batch_size: int,
    *,
    training: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    streams: Sequence[str] = ("dropout",),
    **options: Any,
  ) -> "Problem":
    """A problem of a Flax linen module.

    Args:
      name: Names it in tables and files.
      model: The module.
      inputs: `inputs(batch)` is the module's argument, or a tuple of its arguments.
      loss: `loss(outputs, batch) -> scalar`.
      metrics: `metrics(outputs, data) -> {name: scalar}`.
      train: As `Problem.train`, and so are the next three.
      validation: Like `train`.
      test: Like `train`.
      batch_size: Examples in a batch.
      training: Keyword arguments of the module for the loss, as `{"training": True}`.
      evaluation: Those for initialisation and metrics, as `{"training": False}`.
      streams: Names of random streams beside that of the parameters; each step has keys of its own.
      **options: Other fields of `Problem`: `metric`, `maximize`, `filler`.

    Returns:
      The `Problem`.
    """
    modes = training or {}, evaluation or {}
    fields = of_linen(model, inputs, loss, metrics, train, batch_size, *modes, streams)
    return cls(name, train=train, validation=validation, test=test, batch_size=batch_size, **fields, **options)

  @classmethod
  def from_equinox(
    cls,
    name: str,
    build: Callable[[Any], Any],
    loss: Callable[..., Any],
    metrics: Callable[..., Mapping[str, Any]],
    train: Any,
    validation: Any,
    test: Any,
    batch_size: int,
    **options: Any,
  ) -> "Problem":
    """A problem of an Equinox model. Metrics see the model in inference mode.

    Args:
      name: Names it in tables and files.
      build: `build(key) -> model`; or `-> (model, state)`, as `eqx.nn.make_with_state` gives them.
      loss: `loss(model, batch, key) -> scalar`; with a state `loss(model, state, batch, key) -> (scalar, state)`.
      metrics: `metrics(model, data) -> {name: scalar}`; with a state `metrics(model, state, data)`.
      train: As `Problem.train`, and so are the next three.
      validation: Like `train`.
      test: Like `train`.
      batch_size: Examples in a batch.
      **options: Other fields of `Problem`: `metric`, `maximize`, `filler`.

    Returns:
      The `Problem`.
    """
    fields = of_equinox(build, loss, metrics, train, batch_size)
    return cls(name, train=train, validation=validation, test=test, batch_size=batch_size, **fields, **options)

  @functools.cached_property
  def structure(self) -> Any:
    """The structure among the hints; `None` where there is none."""
    hint = self.hints.get("structure")
    return hint() if callable(hint) else hint

  @functools.cached_property
  def example(self) -> Any:
    """A batch of the training data: the first examples, or the first batch of a loader."""
    return first_batch(self.train, self.batch_size)

  @property
  def streams(self) -> bool:
    """Whether the training data come from a loader."""
    return is_stream(self.train)

  @property
  def data(self) -> tuple[Any, Any, Any]:
    """Training, validation and test data."""
    return self.train, self.validation, self.test

  @property
  def examples(self) -> int:
    """The number of training examples, without a filler."""
    if self.streams:
      return self.steps_per_epoch * self.batch_size
    return len(jax.tree.leaves(self.train)[0]) - self.filler

  @property
  def steps_per_epoch(self) -> int:
    """The number of batches in the training data: all with a filler, else the complete ones; of a loader its length."""
    if self.streams:
      return len(opened(self.train, 0, "train"))
    return math.ceil(self.examples / self.batch_size) if self.filler else self.examples // self.batch_size

  def start(self, key: jax.Array) -> tuple[Any, Any]:
    """Initial parameters and state; the state is `()` where there is none."""
    return self.init(key) if self.has_state else (self.init(key), ())

  def loss_of(self, params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
    """The loss of a batch and the new state."""
    return self.loss(params, state, batch, key) if self.has_state else (self.loss(params, batch, key), state)

  def metrics_of(self, params: Any, state: Any, data: Any) -> dict[str, Any]:
    """The metrics of all of `data`, and no new state."""
    metrics = self.metrics(params, state, data) if self.has_state else self.metrics(params, data)
    if not isinstance(metrics, Mapping):
      raise TypeError(f"metrics must return a dict from names to numbers, but returned {shown(metrics)}.")
    return dict(metrics)

  def badness(self, value: Any) -> Any:
    """The deciding metric with the sign that makes less better."""
    return -value if self.maximize else value


def batches(problem: Problem, seed: int, first_step: int, steps: int) -> np.ndarray:
  """Indices of the training examples in each batch: int32, (steps, batch_size).

  Each epoch is a permutation that depends on the seed and the epoch, and on nothing else.
  """
  per_epoch, size = problem.steps_per_epoch, problem.batch_size
  epochs = range(first_step // per_epoch, (first_step + steps - 1) // per_epoch + 1)
  fill = np.full(max(per_epoch * size - problem.examples, 0), problem.examples)
  orders = [np.random.default_rng([seed, epoch]).permutation(problem.examples) for epoch in epochs]
  rows = np.concatenate([np.append(order, fill)[: per_epoch * size].reshape(per_epoch, size) for order in orders])
  skipped = first_step - epochs[0] * per_epoch
  return rows[skipped : skipped + steps].astype(np.int32)


def keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """Random keys of a seed, for the initialisation and for dropout (`jax.random.fold_in(key, step)`, steps from 0).

  Always threefry: its numbers do not depend on batching or on sharding, as those of other generators do.
  """
  init, dropout = jax.random.split(jax.random.key(seed, impl=KEYS))
  return init, dropout


def check_batch_size(problem: Problem) -> None:
  """Raises `ValueError` unless there is at least one batch."""
  size = problem.batch_size
  if not isinstance(size, numbers.Integral) or not 1 <= size <= problem.examples:
    raise ValueError(
      f"batch_size must be a whole number from 1 to that of training examples, {problem.examples}, but was {size!r}."
    )
