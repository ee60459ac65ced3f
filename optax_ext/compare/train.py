"""One run as pure functions: start, some steps, a measurement, a judgement. Nothing here knows of other runs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.problem import Problem
from optax_ext.compare.protocol import Protocol, Watch, judge


class Run(NamedTuple):
  """What changes while one run trains."""

  params: Any
  state: Any  # of the model
  opt_state: Any


class Setting(NamedTuple):
  """What makes one run different from another, and does not change."""

  trial: Mapping[str, jax.Array]  # the learning rate, and in track B other settings
  dropout: jax.Array  # key


def start(optimizer: Optimizer, protocol: Protocol, params: Any, state: Any, trial: Mapping[str, jax.Array]) -> Run:
  """A run before its first step."""
  params = optimizer.prepare(params) if optimizer.prepare else params
  return Run(params, state, optimizer.build(trial, 1.0, protocol.shape()).init(params))


def train(
  problem: Problem,
  protocol: Protocol,
  optimizer: Optimizer,
  run: Run,
  setting: Setting,
  scale: jax.Array,
  batch_at: Callable[[Any], Any],
  batches: Any,
  first_step: jax.Array,
) -> tuple[Run, jax.Array]:
  """Takes a step on each of some batches, from number `first_step` on. Gives the sum of their losses too.

  Args:
    problem: What is trained.
    protocol: Its schedule of the learning rate.
    optimizer: With what.
    run: Before the steps.
    setting: Of the run.
    scale: Of the learning rate, by its plateau.
    batch_at: `batch_at(one of batches)` is a batch.
    batches: A tree with a leading axis, the steps.
    first_step: From 0.
  """
  tx = optimizer.build(setting.trial, scale.astype(setting.trial["learning_rate"].dtype), protocol.shape())

  def step(run: Run, index_and_batch: tuple[jax.Array, Any]) -> tuple[Run, jax.Array]:
    index, chosen = index_and_batch
    batch, key = batch_at(chosen), jax.random.fold_in(setting.dropout, index)
    loss_of = lambda params: problem.loss_of(params, run.state, batch, key)
    (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(run.params)
    extra = {"value": loss, "grad": grads, "value_fn": lambda params: loss_of(params)[0]}  # for those that want them
    updates, opt_state = tx.update(grads, run.opt_state, run.params, **extra)
    opt_state = jax.tree.map(_in_dtype_of, opt_state, run.opt_state)  # a float32 setting may have widened it
    state = jax.tree.map(_in_dtype_of, state, run.state)  # of bfloat16 weights it may be narrower
    return Run(optax.apply_updates(run.params, updates), state, opt_state), loss

  steps = len(jax.tree.leaves(batches)[0])
  if steps == 1:  # without a loop
    return step(run, (first_step, jax.tree.map(lambda leaf: leaf[0], batches)))
  run, losses = jax.lax.scan(step, run, (first_step + jnp.arange(steps), batches))
  return run, losses.sum()


def conclude(
  problem: Problem,
  protocol: Protocol,
  params: Any,
  watch: Watch,
  learning_rate: jax.Array,
  index: jax.Array,
  loss: jax.Array,
  value: jax.Array,
) -> Watch:
  """Lets the protocol see evaluation `index`: the run may stop, or its learning rate change.

  `loss` is of the steps before, `value` the deciding metric of the validation data.
  """
  finite = jnp.isfinite(loss) & jnp.isfinite(value)
  for leaf in jax.tree.leaves(params):
    finite &= jnp.isfinite(leaf).all() if jnp.issubdtype(leaf.dtype, jnp.inexact) else True
  return judge(protocol, watch, index, problem.badness(value), learning_rate, finite)


def _in_dtype_of(new: Any, old: Any) -> Any:
  return new if new.dtype == old.dtype else new.astype(old.dtype)
