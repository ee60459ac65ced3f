"""Makes the pure functions of a problem from a Flax NNX, Flax linen or Equinox model.

Each function gives the fields `init`, `loss`, `metrics`, `has_state` and `hints` of a `Problem`. The state holds what a
model changes beside its parameters: batch statistics, counters, random keys. The structure that caadam and nd_adam want
is traced from the loss, where one of them asks for it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from optax_ext import structure_from_model
from optax_ext._common.arguments import check_takes, module_of_flax, shown
from optax_ext.compare.streams import first_batch

Fields = dict[str, Any]
KEYS = "threefry2x32"  # the same numbers whatever implementation the caller has chosen


def of_nnx(
  build: Callable[[Any], Any],
  loss: Callable[..., Any],
  metrics: Callable[..., Any],
  train: Any,
  batch_size: int,
  wrt: Any,
) -> Fields:
  """Of `build(rngs) -> model`, `loss(model, batch)` and `metrics(model, data)`."""
  from flax import nnx

  if module_of_flax(build) or not callable(build):
    raise TypeError(f"build must be a function that makes the model, build(rngs), but was {shown(build)}.")
  check_takes("build", build, "rngs")
  wrt = nnx.Param if wrt is None else wrt
  graph, *_ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), wrt, ...)
  # copied, so that the model's variables belong to the trace that they are used in
  merged = lambda params, state: nnx.merge(graph, params, state, copy=True)

  def init(key: jax.Array) -> tuple[Any, Any]:
    _, params, state = nnx.split(build(nnx.Rngs(key)), wrt, ...)
    return params, state

  def loss_of(params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    model = merged(params, state)
    model.train()
    value = loss(model, batch)
    changed = nnx.split(model, wrt, ...)[2]
    # in the structure of the state before, as some versions of Flax keep notes of their own beside the arrays
    return value, jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(changed))

  def metrics_of(params: Any, state: Any, data: Any) -> Mapping[str, Any]:
    model = merged(params, state)
    model.eval()
    return metrics(model, data)

  return _fields(init, loss_of, metrics_of, train, batch_size)


def of_linen(
  model: Any,
  inputs: Callable[[Any], Any],
  loss: Callable[..., Any],
  metrics: Callable[..., Any],
  train: Any,
  batch_size: int,
  training: Mapping[str, Any],
  evaluation: Mapping[str, Any],
  streams: Sequence[str],
) -> Fields:
  """Of a module, its arguments `inputs(batch)`, `loss(outputs, batch)` and `metrics(outputs, data)`."""

  def arguments(batch: Any) -> tuple[Any, ...]:
    found = inputs(batch)
    return found if isinstance(found, tuple) else (found,)

  def streams_of(key: jax.Array) -> dict[str, jax.Array]:
    return dict(zip(streams, jax.random.split(key, max(1, len(streams))), strict=False))

  def init(key: jax.Array) -> tuple[Any, Any]:
    first = arguments(jax.tree.map(lambda array: jax.numpy.asarray(array[:1]), first_batch(train, 1)))
    variables = model.init({"params": key, **streams_of(jax.random.fold_in(key, 1))}, *first, **evaluation)
    return variables["params"], {name: of for name, of in variables.items() if name != "params"}

  def loss_of(params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    variables, options = {"params": params, **state}, {"rngs": streams_of(key), **training}
    outputs, changed = model.apply(variables, *arguments(batch), mutable=list(state), **options)
    return loss(outputs, batch), {**state, **changed}

  def metrics_of(params: Any, state: Any, data: Any) -> Mapping[str, Any]:
    return metrics(model.apply({"params": params, **state}, *arguments(data), **evaluation), data)

  return _fields(init, loss_of, metrics_of, train, batch_size)


def of_equinox(
  build: Callable[[Any], Any], loss: Callable[..., Any], metrics: Callable[..., Any], train: Any, batch_size: int
) -> Fields:
  """Of `build(key) -> model`, `loss(model, batch, key)` and `metrics(model, data)`.

  Or of `build(key) -> (model, state)`, `loss(model, state, batch, key) -> (scalar, state)` and `metrics(model, state,
  data)`.
  """
  import equinox as eqx

  check_takes("build", build, "key")

  def parts(key: jax.Array) -> tuple[Any, Any, Any]:
    """Parameters; other arrays and the leaves of the state; what is no array."""
    built = build(key)
    model, state = built if isinstance(built, tuple) else (built, None)
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    arrays, static = eqx.partition(rest, eqx.is_array)
    leaves, treedef = jax.tree.flatten(state)
    return params, (arrays, leaves), (static, treedef, isinstance(built, tuple))

  fixed = []  # of one call: the marks by which a model finds its state are its own

  def traced(key: jax.Array) -> None:
    fixed.append(parts(key)[2])

  jax.eval_shape(traced, jax.random.key(0))
  static, treedef, stateful = fixed[0]

  def whole(params: Any, state: Any) -> tuple[Any, ...]:
    arrays, leaves = state
    model = eqx.combine(params, arrays, static)
    return (model, jax.tree.unflatten(treedef, leaves)) if stateful else (model,)

  def loss_of(params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    found = loss(*whole(params, state), batch, key)
    value, new = found if stateful else (found, None)
    return value, (state[0], jax.tree.leaves(new) if stateful else state[1])

  def metrics_of(params: Any, state: Any, data: Any) -> Mapping[str, Any]:
    model, *rest = whole(params, state)
    return metrics(eqx.nn.inference_mode(model), *rest, data)

  return _fields(lambda key: parts(key)[:2], loss_of, metrics_of, train, batch_size)


def _fields(
  init: Callable[..., Any], loss: Callable[..., Any], metrics: Callable[..., Any], train: Any, batch_size: int
) -> Fields:
  def structure() -> Any:
    """Read off the loss in training, whose state is made inside, since it is no input."""
    key = jax.random.key(0, impl=KEYS)
    params, _ = jax.eval_shape(init, key)
    shape = lambda array: jax.ShapeDtypeStruct((batch_size, *np.shape(array)[1:]), array.dtype)
    batch = jax.tree.map(shape, first_batch(train, 1))
    return structure_from_model(lambda params, batch: loss(params, init(key)[1], batch, key)[0], params, batch)

  return {"init": init, "loss": loss, "metrics": metrics, "has_state": True, "hints": {"structure": structure}}
