"""Checks that a problem's parts fit together, before anything is compiled."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_ext.compare.fingerprint import PLATFORM, Traced, digest
from optax_ext.compare.problem import Problem, check_batch_size, keys
from optax_ext.compare.streams import first_batch, is_stream

SPLITS = ("train", "validation", "test")


def check_problem(problem: Problem) -> tuple[Traced, Any]:
  """What the problem's programs are, and the shapes of its parameters. Compiles and computes nothing.

  Raises:
    TypeError, ValueError: what does not fit, in one sentence.
  """
  validation, test = _check_data(problem)
  init_key, dropout_key = jax.eval_shape(lambda: keys(0))
  batch = problem.example
  if problem.has_state and not _is_pair(jax.eval_shape(problem.init, init_key)):
    raise TypeError(f"init of the problem {problem.name!r} must return (params, state), since has_state is true.")
  params, state = jax.eval_shape(problem.start, init_key)
  given = params, state, batch, dropout_key
  if problem.has_state and not _is_pair(_shapes("loss", problem.loss, *given)):
    raise TypeError(f"loss of the problem {problem.name!r} must return (scalar, new state), since has_state is true.")
  loss, new_state = _shapes("loss", problem.loss_of, *given)
  if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
    what = f"{loss.dtype} of shape {loss.shape}" if hasattr(loss, "shape") else type(loss).__name__
    raise ValueError(
      f"loss must return a floating-point scalar, but for one batch returned {what}; take its mean, say."
    )
  if _kinds(new_state) != _kinds(state):
    raise ValueError("loss must return a state of the same structure, shapes and dtypes as init, but did not.")
  metrics = _trace("metrics of the validation data", problem.metrics_of, params, state, validation)
  _check_metrics(problem, metrics.out_info)
  if jax.tree.map(np.shape, test) != jax.tree.map(np.shape, validation):
    _check_metrics(problem, _shapes("metrics of the test data", problem.metrics_of, params, state, test))

  gradient = _program(_trace("gradient of the loss", jax.value_and_grad(problem.loss_of, has_aux=True), *given))
  init = _program(_trace("init", problem.start, init_key))
  texts = init.as_text(), gradient.as_text(), _program(metrics).as_text()
  traced = Traced(
    digest(*texts, f"{problem.filler}"),
    operations=max(1.0, float((gradient.cost_analysis() or {}).get("flops", 0.0))),
    convolves="stablehlo.convolution" in texts[1],
    bytes=max(1, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))),
  )
  return traced, params


def _check_metrics(problem: Problem, metrics: Mapping[str, Any]) -> None:
  if problem.metric not in metrics:
    raise ValueError(
      f"metric is {problem.metric!r}, but metrics returns only {', '.join(map(repr, metrics)) or 'none'}."
    )
  for name, value in metrics.items():
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.number):
      what = f"{value.dtype} of shape {value.shape}" if hasattr(value, "shape") else type(value).__name__
      raise ValueError(f"metrics must return numbers, but {name!r} is {what}.")


def check_start(problem: Problem, measured: Mapping[str, Any]) -> None:
  """Raises unless the deciding metrics of the initial parameters of seed 0, by name of their data, are finite."""
  for split, value in measured.items():
    _check_finite(problem, f"{problem.metric} of the {split} data", value, np.isfinite(value))


def check_first_step(problem: Problem) -> None:
  """Raises where the loss of the first batch or its gradient is not finite at the initial parameters of seed 0.

  A run that diverged at once asks for it.
  """
  init_key, dropout_key = keys(0)
  params, state = jax.jit(problem.start)(init_key)
  batch = jax.tree.map(jnp.asarray, problem.example)
  grad_of = jax.jit(jax.value_and_grad(problem.loss_of, has_aux=True))
  (value, _), grads = grad_of(params, state, batch, dropout_key)
  _check_finite(problem, "loss of the first batch", value, np.isfinite(value))
  unclear = sum(int(np.sum(~np.isfinite(leaf))) for leaf in jax.device_get(jax.tree.leaves(grads)))
  _check_finite(problem, "gradient of the first batch", f"not finite in {unclear} places", not unclear)


def _check_finite(problem: Problem, what: str, said: Any, fine: Any) -> None:
  if not fine:
    raise ValueError(
      f"The {what} is {said} at the initial parameters of seed 0, before any step; look at the data and the loss of "
      f"the problem {problem.name!r}."
    )


def _check_data(problem: Problem) -> tuple[Any, Any]:
  """What metrics are traced with: validation and test arrays, or a batch of each."""
  parts = [_known(problem, split, data) for split, data in zip(SPLITS, problem.data, strict=True)]
  train = parts[0]
  for split, given, data in zip(SPLITS, problem.data, parts, strict=True):
    what = f"a batch of {split}" if is_stream(given) else split
    leaves = jax.tree.leaves(data)
    if not leaves:
      raise ValueError(f"{what} must hold at least one array, but holds none.")
    lengths = {np.shape(leaf)[:1] for leaf in leaves}
    if len(lengths) > 1 or lengths in ({()}, {(0,)}):
      shapes = ", ".join(str(np.shape(leaf)) for leaf in leaves)
      raise ValueError(f"The arrays of {what} must have one leading axis, the examples, in common, but are {shapes}.")
    if jax.tree.structure(data) != jax.tree.structure(train):
      lists = [name for name, of in zip(SPLITS, problem.data, strict=True) if isinstance(of, list | tuple)]
      hint = f": a list of batches, as {lists[0]} may be, is a tree; join them, or give a loader" if lists else ""
      raise ValueError(f"{what} must be a tree of arrays like train, but is {jax.tree.structure(data)}{hint}.")
    for leaf in leaves:
      if jnp.issubdtype(np.result_type(leaf), jnp.inexact) and not np.isfinite(leaf).all():
        raise ValueError(
          f"An array of {what}, of shape {np.shape(leaf)}, holds NaN or infinity; leave such examples out."
        )
    for leaf, like in zip(leaves, jax.tree.leaves(train), strict=True):
      if (np.shape(leaf)[1:], np.result_type(leaf)) != (np.shape(like)[1:], np.result_type(like)):
        raise ValueError(
          f"Examples of {what} must have the shapes and dtypes of those of train, but one is {np.result_type(leaf)} "
          f"of shape {np.shape(leaf)[1:]} where train has {np.result_type(like)} of shape {np.shape(like)[1:]}."
        )
  if problem.streams:
    _check_stream(problem, len(jax.tree.leaves(train)[0]))
  check_batch_size(problem)
  return parts[1], parts[2]


def _known(problem: Problem, split: str, data: Any) -> Any:
  """Arrays as they are; of a loader its first batch, which must be the same at each pass."""
  if not is_stream(data):
    return data
  if callable(data) and split != "train":
    raise TypeError(f"{split} must be a tree of arrays or a loader, the same for each seed, but is a function.")
  batch, again = (first_batch(data, problem.batch_size, split) for _ in range(2))
  kind = lambda batch: (jax.tree.structure(batch), [(leaf.shape, leaf.tobytes()) for leaf in jax.tree.leaves(batch)])
  if kind(batch) != kind(again):
    how = "train(seed) must shuffle by its seed alone" if callable(data) else f"give {split} in one order"
    how += (
      "" if callable(data) or split != "train" else ", or a function train(seed), whose loader shuffles by that seed"
    )
    raise ValueError(f"{split} began with another batch when it was read again, so that no runs can be paired: {how}.")
  return batch


def _check_stream(problem: Problem, size: int) -> None:
  if problem.filler:
    raise ValueError("filler is for arrays: a loader completes its last batch itself, or leaves it out.")
  if problem.batch_size != size:
    raise ValueError(f"batch_size must be that of the loader's batches, {size}, but was {problem.batch_size!r}.")


def _shapes(what: str, function: Callable[..., Any], *args: Any) -> Any:
  return _trace(what, function, *args).out_info


def _trace(what: str, function: Callable[..., Any], *args: Any) -> Any:
  try:
    return jax.jit(function).trace(*args)
  except Exception as error:
    reason = str(error).strip().partition("\n")[0]
    raise ValueError(f"{what} failed when traced on its data, with {type(error).__name__}: {reason}") from error


def _program(traced: Any) -> Any:
  return traced.lower(lowering_platforms=PLATFORM)


def _is_pair(value: Any) -> bool:
  return isinstance(value, tuple) and len(value) == 2


def _kinds(tree: Any) -> tuple[Any, list[Any]]:
  """Structure, shapes and dtypes; nodes of some frameworks do not compare as trees do."""
  return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
