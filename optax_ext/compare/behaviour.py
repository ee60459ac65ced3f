"""Whether the runs in a folder are of the model and the optimizers that are asked for now: by what a few steps do."""

import functools
import json
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.problem import Problem, keys
from optax_ext.compare.protocol import Protocol
from optax_ext.compare.run import initialiser
from optax_ext.compare.store import Store, fingerprint
from optax_ext.compare.train import Run, Setting, evaluate, start, train

FILE = "behaviour.json"
# Relative: rounding on another machine is less, a change more.
TOLERANCE = {"training": 1e-3, "updates": 1e-5, "examples": 0.0}
CURVATURES = (1.0, 0.1, 10.0)  # gradients of very different sizes show what a decay rate is


def behaviour(
  problem: Problem, protocol: Protocol, optimizer: Optimizer, initial: tuple[Any, Any], learning_rate: float
) -> dict[str, Any]:
  """What two steps of training measure, and the sizes of the optimizer's updates on functions that need no model.

  `initial` are the parameters and the state of seed 0.
  """
  trial = {"learning_rate": jnp.float32(learning_rate)}
  run = jax.jit(functools.partial(start, optimizer, protocol))(*initial, trial)
  measured = {
    "training": training(problem, protocol, optimizer, run, trial),
    "updates": sizes(protocol, optimizer, run, trial),
    "examples": [problem.examples],  # without a filler, which no first step shows
  }
  rounded = {name: [float(f"{float(value):.8g}") for value in values] for name, values in measured.items()}
  return {"learning_rate": learning_rate} | rounded


def training(
  problem: Problem, protocol: Protocol, optimizer: Optimizer, run: Run, trial: Mapping[str, jax.Array]
) -> list[jax.Array]:
  """The losses of two steps on the first examples, and the metrics of some validation examples after them."""
  step = jax.jit(functools.partial(train, problem, protocol, optimizer))
  size, losses = problem.batch_size, []
  for i in range(2):
    examples = (i * size + np.arange(size)) % problem.examples
    data = jax.tree.map(lambda array, examples=examples: jnp.asarray(array[examples]), problem.train)
    run, loss = step(run, Setting(trial, jnp.int32(0), keys(0)[1]), jnp.arange(size)[None], jnp.int32(i), data)
    losses.append(loss)
  measure = jax.jit(lambda run, data: evaluate(problem, optimizer, run, (None, data, None), with_test=False))
  data = jax.tree.map(lambda array: array[:size], problem.validation)
  try:
    jax.eval_shape(measure, run, data)
  except Exception:  # metrics may want all of the data, in pieces of some size, say
    data = problem.validation
  return [*losses, *measure(run, jax.tree.map(jnp.asarray, data)).values()]


def sizes(protocol: Protocol, optimizer: Optimizer, run: Run, trial: Mapping[str, jax.Array]) -> list[jax.Array]:
  """Of three updates, down a parabola: the root mean square of each leaf's update, summed over leaves.

  There gradient and parameters point the same way, so that weight decay is not at right angles to the rest.
  """

  def steps(params: Any, opt_state: Any, trial: Mapping[str, jax.Array]) -> list[jax.Array]:
    tx = optimizer.build(trial, 1.0, protocol.shape())
    found = []
    for curvature in CURVATURES:
      value_fn = functools.partial(_parabola, curvature)
      value, grads = jax.value_and_grad(value_fn)(params)
      updates, opt_state = tx.update(grads, opt_state, params, value=value, grad=grads, value_fn=value_fn)
      params = optax.apply_updates(params, updates)
      found.append(sum(jnp.sqrt(jnp.mean(jnp.square(leaf))) for leaf in jax.tree.leaves(updates) if leaf.size))
    return found

  return jax.jit(steps)(run.params, run.opt_state, trial)


def _parabola(curvature: float, params: Any) -> jax.Array:
  """½s‖w + c‖², with cᵢ = cos(i)/10 in each leaf."""
  shift = lambda leaf: 0.1 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)
  moved = jax.tree.map(lambda leaf: leaf + shift(leaf), params)
  return 0.5 * curvature * optax.tree_utils.tree_norm(moved, squared=True)


def opened(
  folder: pathlib.Path | None,
  problem: Problem,
  protocol: Protocol,
  optimizers: Collection[Optimizer],
  points: int | None,
) -> Store:
  """The finished runs of a folder, which are certain to be of this problem, this protocol and these optimizers.

  Raises:
    ValueError: as `Store` and `check_behaviour`.
  """
  store = Store(folder, fingerprint(problem, protocol), points)
  if folder:
    check_behaviour(folder, problem, protocol, optimizers, store.optimizers())
  return store


def check_behaviour(
  folder: pathlib.Path, problem: Problem, protocol: Protocol, optimizers: Iterable[Optimizer], ran: Collection[str]
) -> None:
  """Raises unless the optimizers that `ran` in `folder` do what they did there; notes what all do.

  Raises:
    ValueError: the model, its loss or an optimizer has changed.
  """
  path = folder / FILE
  noted: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}
  known = {name: values for name, values in noted.items() if name in ran}
  initial = initialiser(problem)(0)
  now: dict[str, dict[str, Any]] = {}
  for optimizer in optimizers:
    rate = known.get(optimizer.name, {}).get("learning_rate", float(optimizer.centre))  # a moved centre changes no run
    now[optimizer.name] = behaviour(problem, protocol, optimizer, initial, rate)
  for name, values in now.items():
    before = known.get(name, values)
    if not all(_close(values[what], before.get(what, values[what]), rtol) for what, rtol in TOLERANCE.items()):
      raise ValueError(
        f"{str(folder)!r} holds runs of {name!r} whose first steps were others: the model, its loss, a filler or the "
        "optimizer has changed since. Choose another folder, or delete this one."
      )
  whole = path.with_suffix(".new")
  whole.write_text(json.dumps(known | now) + "\n", "utf-8")
  whole.replace(path)


def _close(values: list[float], before: list[float], tolerance: float) -> bool:
  return len(values) == len(before) and np.allclose(values, before, rtol=tolerance, atol=0, equal_nan=True)
