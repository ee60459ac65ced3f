"""Whether the runs in a folder are of the model and the optimizers that are asked for now: by what two steps do."""

import functools
import json
import pathlib
from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.problem import Problem, keys
from optax_ext.compare.protocol import Protocol
from optax_ext.compare.run import initialiser
from optax_ext.compare.train import Setting, start, train

FILE = "behaviour.json"
TOLERANCE = 1e-3  # relative: rounding on another machine is less, a changed setting more


def behaviour(problem: Problem, protocol: Protocol, optimizer: Optimizer, initial: Any) -> list[float]:
  """The losses of two steps at the optimizer's centre, on the first examples, and how far the parameters move.

  `initial` are the parameters and the state of seed 0.
  """
  params, state = initial
  trial = {"learning_rate": jnp.float32(optimizer.centre)}
  run = jax.jit(functools.partial(start, optimizer, protocol))(params, state, trial)
  step = jax.jit(functools.partial(train, problem, protocol, optimizer))
  size, losses, before = problem.batch_size, [], run.params
  for i in range(2):
    examples = (i * size + np.arange(size)) % problem.examples
    data = jax.tree.map(lambda array, examples=examples: jnp.asarray(array[examples]), problem.train)
    run, loss = step(run, Setting(trial, jnp.int32(0), keys(0)[1]), jnp.arange(size)[None], jnp.int32(i), data)
    losses.append(float(loss))
  moved = optax.tree_utils.tree_sub(run.params, before)
  return [float(f"{value:.6g}") for value in (*losses, float(optax.tree_utils.tree_norm(moved)))]


def check_behaviour(
  folder: pathlib.Path, problem: Problem, protocol: Protocol, optimizers: Iterable[Optimizer], ran: Collection[str]
) -> None:
  """Raises unless the optimizers that `ran` in `folder` do what they did there; notes what all do.

  Raises:
    ValueError: the model, its loss or an optimizer has changed.
  """
  path = folder / FILE
  noted: dict[str, list[float]] = json.loads(path.read_text("utf-8")) if path.exists() else {}
  known = {name: values for name, values in noted.items() if name in ran}
  initial = initialiser(problem)(0)
  now = {optimizer.name: behaviour(problem, protocol, optimizer, initial) for optimizer in optimizers}
  for name, values in now.items():
    if not np.allclose(values, known.get(name, values), rtol=TOLERANCE, atol=0, equal_nan=True):
      raise ValueError(
        f"{str(folder)!r} holds runs of {name!r} whose first steps were others: the model, its loss or the optimizer "
        "has changed since. Choose another folder, or delete this one."
      )
  path.write_text(json.dumps(known | now) + "\n", "utf-8")
