"""The compiled programs of one optimizer's runs: start, steps, measurement, judgement; each for many runs at once.

Learning rates, seeds and data are arguments, so that each is compiled once for each number of runs. What does not
depend on the optimizer is compiled once for all of them. Programs that run rarely are compiled with little optimization
on CPUs, where that takes a third of the time.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optax_ext._common.mesh import whole_leaves
from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.problem import Problem, keys
from optax_ext.compare.protocol import Protocol, Watch
from optax_ext.compare.streams import is_stream
from optax_ext.compare.train import Run, Setting, conclude, start, train

TOGETHER = 8  # runs measured at once at most, since validation data may be large
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # of XLA for CPUs
RUNS, ALL = PartitionSpec("runs"), PartitionSpec()


class Common:
  """What all optimizers of a comparison share: the data on the devices, initial parameters, measurements, judgements.

  Args:
    problem: What is trained.
    protocol: How long.
    devices: That share the runs; by default all local ones.
    checked: Whether the metrics are known to be finite before any step.
  """

  def __init__(self, problem: Problem, protocol: Protocol, devices: Sequence[Any] | None = None, checked: bool = False):
    self.problem, self.protocol, self.checked = problem, protocol, checked
    self.mesh = Mesh(np.array(devices or jax.local_devices()), ("runs",))
    self.shared, self.split = (NamedSharding(self.mesh, spec) for spec in (ALL, RUNS))
    self.quick = QUICK if self.mesh.devices.flat[0].platform == "cpu" else None
    on_devices = lambda part: part if is_stream(part) else jax.device_put(part, self.shared)
    self.train, self.validation, self.test = map(on_devices, problem.data)
    initialise = jax.jit(lambda key: problem.start(key), compiler_options=self.quick)
    self.initial = functools.cache(lambda seed: jax.device_get(initialise(keys(seed)[0])))
    self.dropout = functools.cache(lambda seed: np.asarray(jax.random.key_data(keys(seed)[1])))
    self.measure = self.compiled(self._measure, (RUNS, RUNS, ALL))
    self.conclude = self.compiled(self._conclude, (RUNS, RUNS, RUNS, ALL, RUNS, RUNS), quick=True)

  def compiled(
    self, function: Callable[..., Any], specs: Sequence[Any], quick: bool = False, donate: bool = False
  ) -> Callable[..., Any]:
    """A program of the runs of each device, which is given its part of what `specs` split."""
    if self.mesh.size > 1:
      function = jax.shard_map(
        _with_whole_leaves(function), mesh=self.mesh, in_specs=tuple(specs), out_specs=RUNS, check_vma=False
      )
    return jax.jit(function, donate_argnums=(0,) if donate else (), compiler_options=self.quick if quick else None)

  def _measure(self, params: Any, state: Any, data: Any) -> dict[str, jax.Array]:
    """Metrics of all of `data`; runs follow one another where they are many, as `data` may be large."""
    measure = lambda of: jax.tree.map(jax.numpy.asarray, self.problem.metrics_of(of[0], of[1], data))
    if is_one(params):
      return _alone(measure)((params, state))
    runs = len(jax.tree.leaves(params)[0])  # a remainder would be compiled a second time
    return jax.lax.map(measure, (params, state), batch_size=max(d for d in range(1, TOGETHER + 1) if runs % d == 0))

  def _conclude(
    self, params: Any, watch: Watch, learning_rate: Any, index: jax.Array, loss: jax.Array, value: jax.Array
  ) -> Watch:
    each = lambda params, watch, rate, loss, value: conclude(
      self.problem, self.protocol, params, watch, rate, index, loss, value
    )
    return jax.vmap(each)(params, watch, learning_rate, loss, value)


class Programs:
  """The programs that depend on the optimizer.

  Attributes:
    number: Steps that `steps` takes.
    start: (params, state, trial) -> runs.
    steps: (runs, settings, scale, batches, place, first step, data) -> runs, sums of losses. The batches are those from
      `place` on; the first of them is number `first step` of the run. The runs are donated.
    evaluated: (optimizer's state, params) -> parameters that are measured.
  """

  def __init__(self, common: Common, optimizer: Optimizer, number: int):
    self.number = number
    problem, protocol = common.problem, common.protocol

    def steps(
      runs: Run, settings: Setting, scale: jax.Array, rows: Any, place: jax.Array, first: jax.Array, data: Any
    ) -> tuple[Run, jax.Array]:
      rows = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, place, number, axis=1), rows)
      batch_at = lambda chosen: jax.tree.map(lambda array: array[chosen], data)
      each = lambda run, setting, scale, rows: train(
        problem, protocol, optimizer, run, setting, scale, batch_at, rows, first
      )
      return (_alone if is_one(runs) else jax.vmap)(each)(runs, settings, scale, rows)

    self.start = common.compiled(
      jax.vmap(functools.partial(start, optimizer, protocol)), (RUNS, RUNS, RUNS), quick=True
    )
    self.steps = common.compiled(steps, (RUNS, RUNS, RUNS, RUNS, ALL, ALL, ALL), donate=True)
    evaluated = optimizer.evaluated
    self.evaluated = evaluated and common.compiled(jax.vmap(evaluated), (RUNS, RUNS), quick=True)


def stacked(trees: Sequence[Any]) -> Any:
  """One tree whose leaves have a leading axis, the trees; random keys are stacked by jax."""
  stack = lambda *leaves: np.stack(leaves) if isinstance(leaves[0], np.ndarray) else jax.numpy.stack(leaves)
  return jax.tree.map(stack, *trees)


def take(tree: Any, chosen: np.ndarray, sharding: NamedSharding) -> Any:
  """Some of the runs."""
  return jax.device_put(jax.tree.map(lambda leaf: leaf[jax.numpy.asarray(chosen)], tree), sharding)


def _with_whole_leaves(function: Callable[..., Any]) -> Callable[..., Any]:
  """A function whose optimizers see that a device's runs have whole parameters: devices share runs, not leaves."""

  def of_runs(*args: Any) -> Any:
    with whole_leaves():
      return function(*args)

  return of_runs


def is_one(tree: Any) -> bool:
  """Whether the leading axis has length 1."""
  return len(jax.tree.leaves(tree)[0]) == 1


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
  """`jax.vmap` for a leading axis of length 1, without a batched operation."""

  def of_one(*args: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], function(*jax.tree.map(lambda leaf: leaf[0], args)))

  return of_one
