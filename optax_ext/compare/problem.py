"""What is trained: a model's initialisation and loss, what is measured of it, and its data."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Problem:
  """A model and its data, as pure functions and arrays.

  Attributes:
    name: Names it in tables and files.
    init: `init(key) -> params`, or `-> (params, state)` where `has_state`; state is what changes beside the parameters,
      such as batch statistics.
    loss: `loss(params, batch, key) -> scalar`, key for dropout; where `has_state`, `loss(params, state, batch, key) ->
      (scalar, new state)`.
    metrics: `metrics(params, data) -> {name: scalar}` of all of `data` (no dropout); where `has_state`,
      `metrics(params, state, data)`.
    train: A tree of arrays with one leading axis, the examples; a batch is such a tree with `batch_size` of them.
    validation: Like `train`; every decision is made on it.
    test: Like `train`; looked at in reporting runs alone.
    batch_size: Examples in a batch. A last incomplete batch of an epoch is left out, unless there is a filler.
    metric: The metric that decides.
    maximize: Whether more of it is better.
    has_state: Whether there is such a state.
    filler: Whether the last example of `train` is a filler, which completes the last batch of each epoch and is in no
      other: an example like the others but for a weight of 0, say, that the loss heeds.
    hints: What named optimizers may want to know: `structure` (a `Structure`, as `structure_from_model` returns it) and
      `axes` for caadam and nd_adam, and `normalised_units` (a bool): whether a per-unit normaliser follows each vector,
      which nd_adam needs.

  Example:
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

  @property
  def data(self) -> tuple[Any, Any, Any]:
    """Training, validation and test arrays."""
    return self.train, self.validation, self.test

  @property
  def examples(self) -> int:
    """How many there are for training, without a filler."""
    return len(jax.tree.leaves(self.train)[0]) - self.filler

  @property
  def steps_per_epoch(self) -> int:
    """Batches in the training data: the complete ones, or with a filler all."""
    return math.ceil(self.examples / self.batch_size) if self.filler else self.examples // self.batch_size

  def start(self, key: jax.Array) -> tuple[Any, Any]:
    """Initial parameters and state; the state is `()` where there is none."""
    return self.init(key) if self.has_state else (self.init(key), ())

  def loss_of(self, params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
    """The loss of a batch and the new state."""
    return self.loss(params, state, batch, key) if self.has_state else (self.loss(params, batch, key), state)

  def metrics_of(self, params: Any, state: Any, data: Any) -> dict[str, Any]:
    """The metrics of all of `data`, and no new state."""
    return dict(self.metrics(params, state, data) if self.has_state else self.metrics(params, data))

  def badness(self, value: Any) -> Any:
    """The deciding metric with the sign that makes less better."""
    return -value if self.maximize else value


def batches(problem: Problem, seed: int, first_step: int, steps: int) -> np.ndarray:
  """Which training examples are in which batch: int32, (steps, batch_size).

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
  init, dropout = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
  return init, dropout


def check_problem(problem: Problem) -> None:
  """Raises unless the problem's parts fit together and all is finite at the start. Takes one step and one evaluation.

  Raises:
    TypeError, ValueError: what does not fit, in one sentence.
  """
  _check_arrays(problem)
  init_key, dropout_key = keys(0)
  batch = jax.tree.map(lambda array: jnp.asarray(array[: problem.batch_size]), problem.train)
  if problem.has_state and not _is_pair(jax.eval_shape(problem.init, init_key)):
    raise TypeError(f"init of the problem {problem.name!r} must return (params, state), since has_state is true.")
  params, state = jax.jit(problem.start)(init_key)
  if problem.has_state and not _is_pair(_shapes("loss", problem.loss, params, state, batch, dropout_key)):
    raise TypeError(f"loss of the problem {problem.name!r} must return (scalar, new state), since has_state is true.")
  loss, new_state = _shapes("loss", problem.loss_of, params, state, batch, dropout_key)
  if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
    what = f"{loss.dtype} of shape {loss.shape}" if hasattr(loss, "shape") else type(loss).__name__
    raise ValueError(
      f"loss must return a floating-point scalar, but for one batch returned {what}; take its mean, say."
    )
  if jax.tree.map(_kind, new_state) != jax.tree.map(_kind, state):
    raise ValueError("loss must return a state of the same structure, shapes and dtypes as init, but did not.")
  for split, data in [("validation", problem.validation), ("test", problem.test)]:
    metrics = _shapes(f"metrics of the {split} data", problem.metrics_of, params, state, data)
    if problem.metric not in metrics:
      raise ValueError(
        f"metric is {problem.metric!r}, but metrics returns only {', '.join(map(repr, metrics)) or 'none'}."
      )
    for name, value in metrics.items():
      if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.number):
        what = f"{value.dtype} of shape {value.shape}" if hasattr(value, "shape") else type(value).__name__
        raise ValueError(f"metrics must return numbers, but {name!r} is {what}.")
  _check_finite(problem, params, state, batch, dropout_key)


def _check_finite(problem: Problem, params: Any, state: Any, batch: Any, key: jax.Array) -> None:
  grad_of = jax.jit(jax.value_and_grad(problem.loss_of, has_aux=True))
  (value, _), grads = grad_of(params, state, batch, key)
  measure = jax.jit(lambda *of: problem.metrics_of(*of)[problem.metric])
  held_out = {"validation": problem.validation, "test": problem.test}  # of the test data: whether finite, no more
  metrics = {split: measure(params, state, data) for split, data in held_out.items()}
  unclear = sum(int(jnp.sum(~jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grads))
  for what, fine, said in [
    ("loss of the first batch", np.isfinite(value), value),
    ("gradient of the first batch", not unclear, f"not finite in {unclear} places"),
    *((f"{problem.metric} of the {split} data", np.isfinite(value), value) for split, value in metrics.items()),
  ]:
    if not fine:
      raise ValueError(
        f"The {what} is {said} at the initial parameters of seed 0, before any step; look at the data and the loss of "
        f"the problem {problem.name!r}."
      )


def check_batch_size(problem: Problem) -> None:
  """Raises `ValueError` unless there is at least one batch."""
  size = problem.batch_size
  if not isinstance(size, numbers.Integral) or not 1 <= size <= problem.examples:
    raise ValueError(
      f"batch_size must be a whole number from 1 to that of training examples, {problem.examples}, but was {size!r}."
    )


def _check_arrays(problem: Problem) -> None:
  for split, data in zip(["train", "validation", "test"], problem.data, strict=True):
    leaves = jax.tree.leaves(data)
    if not leaves:
      raise ValueError(f"{split} must hold at least one array, but holds none.")
    lengths = {np.shape(leaf)[:1] for leaf in leaves}
    if len(lengths) > 1 or lengths in ({()}, {(0,)}):
      shapes = ", ".join(str(np.shape(leaf)) for leaf in leaves)
      raise ValueError(f"The arrays of {split} must have one leading axis, the examples, in common, but are {shapes}.")
    if jax.tree.structure(data) != jax.tree.structure(problem.train):
      raise ValueError(f"{split} must be a tree of arrays like train, but is {jax.tree.structure(data)}.")
    for leaf in leaves:
      if jnp.issubdtype(np.result_type(leaf), jnp.inexact) and not np.isfinite(leaf).all():
        raise ValueError(
          f"An array of {split}, of shape {np.shape(leaf)}, holds NaN or infinity; leave such examples out."
        )
    for leaf, like in zip(leaves, jax.tree.leaves(problem.train), strict=True):
      if (np.shape(leaf)[1:], np.result_type(leaf)) != (np.shape(like)[1:], np.result_type(like)):
        raise ValueError(
          f"Examples of {split} must have the shapes and dtypes of those of train, but one is {np.result_type(leaf)} "
          f"of shape {np.shape(leaf)[1:]} where train has {np.result_type(like)} of shape {np.shape(like)[1:]}."
        )
  check_batch_size(problem)


def _shapes(what: str, function: Callable[..., Any], *args: Any) -> Any:
  try:
    return jax.eval_shape(function, *args)
  except Exception as error:
    reason = str(error).strip().partition("\n")[0]
    raise ValueError(f"{what} failed when traced on its data, with {type(error).__name__}: {reason}") from error


def _is_pair(value: Any) -> bool:
  return isinstance(value, tuple) and len(value) == 2


def _kind(leaf: Any) -> tuple[Any, ...]:
  return leaf.shape, leaf.dtype
