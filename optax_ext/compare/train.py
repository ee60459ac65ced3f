"""One run as pure functions: start, some steps, an evaluation. Nothing here knows of other runs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.problem import Problem
from optax_ext.compare.protocol import Protocol, Watch, judge, watch


class Run(NamedTuple):
  """What changes while one run trains."""

  params: Any
  state: Any  # of the model
  opt_state: Any
  watch: Watch


class Setting(NamedTuple):
  """What makes one run different from another, and does not change."""

  trial: Mapping[str, jax.Array]  # the learning rate, and in track B other settings
  seed: jax.Array  # its index among the seeds of this batch of runs
  dropout: jax.Array  # key


def start(optimizer: Optimizer, protocol: Protocol, params: Any, state: Any, trial: Mapping[str, jax.Array]) -> Run:
  """A run before its first step."""
  params = optimizer.prepare(params) if optimizer.prepare else params
  return Run(params, state, optimizer.build(trial, 1.0, protocol.shape()).init(params), watch())


def train(
  problem: Problem,
  protocol: Protocol,
  optimizer: Optimizer,
  run: Run,
  setting: Setting,
  rows: jax.Array,
  first_step: jax.Array,
  data: Any,
) -> tuple[Run, jax.Array]:
  """Takes a step on each batch, whose examples `rows` (steps, batch_size) names. Gives the mean of the losses too."""
  tx = optimizer.build(setting.trial, run.watch.scale.astype(setting.trial["learning_rate"].dtype), protocol.shape())

  def step(carry: tuple[Any, Any, Any], step_and_rows: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
    params, state, opt_state = carry
    index, chosen = step_and_rows
    batch = jax.tree.map(lambda array: array[chosen], data)
    key = jax.random.fold_in(setting.dropout, index)
    loss_of = lambda params: problem.loss_of(params, state, batch, key)
    (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    extra = {"value": loss, "grad": grads, "value_fn": lambda params: loss_of(params)[0]}  # for those that want them
    updates, new_opt_state = tx.update(grads, opt_state, params, **extra)
    opt_state = jax.tree.map(_in_dtype_of, new_opt_state, opt_state)  # a float32 setting may have widened it
    return (optax.apply_updates(params, updates), state, opt_state), loss

  carry: Any = (run.params, run.state, run.opt_state)
  if len(rows) == 1:  # without a loop
    (params, state, opt_state), loss = step(carry, (first_step, rows[0]))
  else:
    steps = first_step + jnp.arange(len(rows))
    (params, state, opt_state), losses = jax.lax.scan(step, carry, (steps, rows))
    loss = losses.mean()
  return Run(params, state, opt_state, run.watch), loss


def evaluate(problem: Problem, optimizer: Optimizer, run: Run, data: Any, with_test: bool) -> dict[str, jax.Array]:
  """Metrics of the validation data, and in reporting runs of the test data, as "validation/name" and "test/name"."""
  _, validation, test = data
  params = optimizer.evaluated(run.opt_state, run.params) if optimizer.evaluated else run.params
  values = {"validation": problem.metrics_of(params, run.state, validation)}
  if with_test:
    values["test"] = problem.metrics_of(params, run.state, test)
  return {f"{split}/{name}": jnp.asarray(value) for split, of in values.items() for name, value in of.items()}


def conclude(
  problem: Problem,
  protocol: Protocol,
  run: Run,
  setting: Setting,
  index: jax.Array,
  loss: jax.Array,
  values: Mapping[str, jax.Array],
) -> Run:
  """Lets the protocol see evaluation `index`: the run may stop, or its learning rate change."""
  value = values[f"validation/{problem.metric}"]
  finite = jnp.isfinite(loss) & jnp.isfinite(value)
  for leaf in jax.tree.leaves(run.params):
    finite &= jnp.isfinite(leaf).all() if jnp.issubdtype(leaf.dtype, jnp.inexact) else True
  rate = setting.trial["learning_rate"]
  return run._replace(watch=judge(protocol, run.watch, index, problem.badness(value), rate, finite))


def _in_dtype_of(new: Any, old: Any) -> Any:
  return new if new.dtype == old.dtype else new.astype(old.dtype)
