"""Many runs of one optimizer in few compiled programs.

A program takes a group of runs through a chunk of the protocol: the runs of a group are vmapped and shared among the
devices; groups follow one another. A group is one run a device ("map") or all runs ("vmap"). With "step", which is like
"map", a program takes one step only: XLA's CPU compiler makes convolutions fast outside of loops alone. These ways
differ in speed and rounding, and in nothing else. Learning rates, seeds and data are arguments of the programs, and the
runs are donated.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.problem import Problem, batches, keys
from optax_ext.compare.protocol import Protocol
from optax_ext.compare.train import Run, Setting, conclude, evaluate, start, train

CHUNKS = 8  # of a run: how often finished runs are removed
TOGETHER = 8  # evaluations computed at once, since validation data may be large


@dataclasses.dataclass(frozen=True)
class Task:
  """One run to do: a trial (the learning rate, perhaps more settings) and a seed."""

  trial: Mapping[str, float]
  seed: int


@dataclasses.dataclass
class Result:
  """What one run measured, at each of its evaluations."""

  trial: dict[str, float]
  seed: int
  steps: list[int]
  curves: dict[str, list[float]]  # "train/loss", "validation/name", "test/name", "scale" of the learning rate
  best: int  # index of the evaluation with the best weights
  diverged: bool
  stopped_early: bool

  @property
  def complete(self) -> bool:
    """Whether all of its evaluations are here."""
    return self.steps[-1] == len(self.steps) * self.steps[0]

  def thinned(self, points: int) -> "Result":
    """The same with about `points` of its evaluations, the best and the last among them, and 6 digits of each value."""
    last = len(self.steps) - 1
    kept = sorted({*np.linspace(0, last, points).round().astype(int).tolist(), self.best, last})
    curves = {name: [float(f"{values[i]:.6g}") for i in kept] for name, values in self.curves.items()}
    return dataclasses.replace(self, steps=[self.steps[i] for i in kept], curves=curves, best=kept.index(self.best))


class Runner:
  """Does runs of one optimizer on one problem under one protocol.

  Args:
    problem: What is trained.
    protocol: How long.
    optimizer: With what.
    batching: "map", "vmap", "step", or "auto", which times all three on the first runs that it gets.
    devices: That share the runs.
    like: A runner of another optimizer, whose data on the devices and initial parameters this one shares.
  """

  def __init__(
    self,
    problem: Problem,
    protocol: Protocol,
    optimizer: Optimizer,
    batching: str,
    devices: Sequence[Any] | None = None,
    like: "Runner | None" = None,
  ):
    self.problem, self.protocol, self.optimizer, self.batching = problem, protocol, optimizer, batching
    self.mesh = Mesh(np.array(devices or jax.local_devices()), ("runs",))
    self.shared, self.split = (NamedSharding(self.mesh, spec) for spec in (PartitionSpec(), PartitionSpec("runs")))
    self.data = like.data if like else jax.device_put(problem.data, self.shared)
    self.initial = like.initial if like else initialiser(problem)
    self.chunk = math.ceil(protocol.evaluations / CHUNKS)
    if protocol.early_stopping:  # runs end at any time: look more often
      self.chunk = min(self.chunk, protocol.early_stopping.patience)
    self._start = jax.jit(jax.vmap(functools.partial(start, optimizer, protocol)), out_shardings=self.split)
    of_runs, both = PartitionSpec("runs"), (False, True)
    chunk, end = (lambda t, f=f: functools.partial(f, t) for f in (self._run_chunk, self._end))
    self._chunks = {test: self._compile(chunk(test), 6, (of_runs, PartitionSpec(None, "runs"))) for test in both}
    one_step = self._compile(self._one_step, 6, (of_runs, of_runs))
    self._steps_and_ends = {test: (one_step, self._compile(end(test), 5, (of_runs, of_runs))) for test in both}

  def run(
    self,
    tasks: Sequence[Task],
    with_test: bool = False,
    on_steps: Callable[[int], None] = lambda steps: None,
    on_results: Callable[[list[Result]], None] = lambda results: None,
  ) -> list[Result]:
    """Does `tasks` and gives their results in the same order.

    `on_steps` hears of the steps done, over all runs; `on_results` gets the results of each group when it is finished.
    """
    if self.batching == "auto" and len(tasks) > 1:
      self.batching = self._faster(tasks, with_test)
    width = self.mesh.size * (math.ceil(len(tasks) / self.mesh.size) if self.batching == "vmap" else 1)
    rows = functools.lru_cache(maxsize=self._chunks_to_keep(tasks))(functools.partial(self._rows, _seeds(tasks)))
    groups = [tasks[first : first + width] for first in range(0, len(tasks), width)]
    results = []
    for group in groups:
      of_group = self._run_group(group, width, rows, with_test, on_steps)
      on_results(of_group)
      results += of_group
    return results

  def _run_group(
    self,
    tasks: Sequence[Task],
    width: int,
    rows: Callable[[int], tuple[list[int], jax.Array]],
    with_test: bool,
    on_steps: Callable[[int], None],
  ) -> list[Result]:
    """Takes one group through all chunks.

    Between chunks, once half of the runs have finished, these are removed; a narrower program has to be compiled then,
    so that this happens only where what is left would take longer than the first chunk with its compilation did.
    """
    places = np.arange(width) % len(tasks)  # which task each place of the group works on; copies fill it up
    settings, runs = self._first(tasks, places, rows(0)[0])
    runs = runs._replace(watch=runs.watch._replace(stopped=jax.device_put(np.arange(width) >= len(tasks), self.split)))
    records: list[list[dict[str, float]]] = [[] for _ in tasks]
    finished: dict[int, bool] = {}  # task -> whether it diverged
    first_seconds = 0.0
    for first in range(0, self.protocol.evaluations, self.chunk):
      count = min(self.chunk, self.protocol.evaluations - first)
      already = np.asarray(runs.watch.stopped)
      begin = time.perf_counter()
      runs, record = self._program(with_test)(runs, settings, rows(first)[1], first, count, self.data)
      record = {name: np.asarray(values) for name, values in record.items()}
      made = record.pop("made")
      stopped, diverged = np.asarray(runs.watch.stopped), np.asarray(runs.watch.diverged)
      for place in np.flatnonzero(~already):
        of_run = range(int(made[:, place].sum()))
        records[places[place]] += [{name: float(v[i, place]) for name, v in record.items()} for i in of_run]
        if stopped[place]:
          finished[int(places[place])] = bool(diverged[place])
      on_steps(self.protocol.evaluate_every * int(made.sum()))
      active = np.flatnonzero(~stopped)
      if not len(active):
        break
      seconds = time.perf_counter() - begin
      first_seconds = first_seconds or seconds
      left = seconds * (self.protocol.evaluations - first - count) / count
      fewer = math.ceil(len(active) / self.mesh.size) * self.mesh.size
      if fewer <= len(stopped) // 2 and left > first_seconds:
        kept = np.concatenate([active, np.flatnonzero(stopped)[: fewer - len(active)]])
        places = places[kept]
        settings, runs = _take((settings, runs), kept, self.split)
    return [self._result(tasks[i], records[i], finished.get(i)) for i in range(len(tasks))]

  def _result(self, task: Task, records: list[dict[str, float]], diverged: bool | None) -> Result:
    steps = [(i + 1) * self.protocol.evaluate_every for i in range(len(records))]
    curves = {name: [record[name] for record in records] for name in records[0]}
    best = self.protocol.best([self.problem.badness(v) for v in curves[f"validation/{self.problem.metric}"]])
    early = diverged is not None and not diverged and len(records) < self.protocol.evaluations
    return Result(dict(task.trial), task.seed, steps, curves, best, bool(diverged), early)

  def _first(self, tasks: Sequence[Task], places: np.ndarray, seeds: list[int]) -> tuple[Setting, Run]:
    """The settings of a group, and its runs before the first step."""
    dtype = jnp.result_type(float)
    trial = {name: np.array([tasks[i].trial[name] for i in places], dtype) for name in tasks[0].trial}
    dropout = jnp.stack([keys(seed)[1] for seed in seeds])
    seed = np.array([seeds.index(tasks[i].seed) for i in places], np.int32)
    settings = Setting(*jax.device_put((trial, seed, dropout[seed]), self.split))
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[self.initial(tasks[i].seed) for i in places])
    return settings, self._start(*jax.device_put(starts, self.split), settings.trial)

  def _rows(self, seeds: list[int], first: int) -> tuple[list[int], jax.Array]:
    """Which examples the batches of a chunk hold: (seeds, evaluations, steps, batch_size), on the devices."""
    every = self.protocol.evaluate_every
    rows = [batches(self.problem, seed, first * every, self.chunk * every) for seed in seeds]
    rows = np.stack(rows).reshape(len(seeds), self.chunk, every, self.problem.batch_size)
    return seeds, jax.device_put(rows, self.shared)

  def _chunks_to_keep(self, tasks: Sequence[Task]) -> int:
    size = 4 * len(_seeds(tasks)) * self.chunk * self.protocol.evaluate_every * self.problem.batch_size
    return max(1, min(CHUNKS, 2**28 // size))

  def _program(self, with_test: bool) -> Callable[..., tuple[Run, dict[str, np.ndarray]]]:
    """What takes a group through a chunk."""
    if self.batching == "step":
      return functools.partial(self._run_chunk_by_steps, *self._steps_and_ends[with_test])
    return self._chunks[with_test]

  def _compile(self, function: Callable[..., Any], arguments: int, results: Any) -> Callable[..., Any]:
    """A program whose first two arguments are runs and settings, split among the devices; the others are shared."""
    if self.mesh.size > 1:
      of_runs, shared = PartitionSpec("runs"), PartitionSpec()
      specs = (of_runs, of_runs, *[shared] * (arguments - 2))
      function = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=results, check_vma=False)
    return jax.jit(function, donate_argnums=0)

  def _train(
    self, runs: Run, settings: Setting, rows: jax.Array, first_step: jax.Array, data: Any
  ) -> tuple[Run, jax.Array]:
    """Steps on batches `rows` (seeds, steps, batch_size) of the runs of one device that have not stopped."""
    each = _alone if len(settings.seed) == 1 else jax.vmap
    steps = functools.partial(train, self.problem, self.protocol, self.optimizer)
    trained, loss = each(lambda run, setting: steps(run, setting, rows[setting.seed], first_step, data[0]))(
      runs, settings
    )
    return _where(runs.watch.stopped, runs, trained), loss

  def _end(
    self, with_test: bool, runs: Run, settings: Setting, loss: jax.Array, index: jax.Array, data: Any
  ) -> tuple[Run, dict[str, jax.Array]]:
    """Evaluation `index` after steps of mean loss `loss`."""
    alone = len(settings.seed) == 1
    measure = lambda run: evaluate(self.problem, self.optimizer, run, data, with_test)
    values = _alone(measure)(runs) if alone else jax.lax.map(measure, runs, batch_size=TOGETHER)
    ends = lambda run, setting, loss, values: conclude(self.problem, self.protocol, run, setting, index, loss, values)
    ended = (_alone if alone else jax.vmap)(ends)(runs, settings, loss, values)
    record = {"made": ~runs.watch.stopped, "train/loss": loss, "scale": runs.watch.scale, **values}
    return _where(runs.watch.stopped, runs, ended), record

  def _run_chunk(
    self, with_test: bool, runs: Run, settings: Setting, rows: jax.Array, first: jax.Array, count: jax.Array, data: Any
  ) -> tuple[Run, dict[str, jax.Array]]:
    """Evaluations `first` to `first + count`, each after its steps, of the runs of one device."""

    def period(runs: Run, chosen: jax.Array, index: jax.Array) -> tuple[Run, dict[str, jax.Array]]:
      runs, loss = self._train(runs, settings, chosen, index * self.protocol.evaluate_every, data)
      return self._end(with_test, runs, settings, loss, index, data)

    record_shapes = jax.eval_shape(period, runs, rows[:, 0], first)[1]

    def step(i: jax.Array, carry: tuple[Run, dict[str, jax.Array]]) -> tuple[Run, dict[str, jax.Array]]:
      runs, records = carry
      nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), record_shapes)
      runs, record = jax.lax.cond(
        runs.watch.stopped.all(), lambda runs: (runs, nothing), lambda runs: period(runs, rows[:, i], first + i), runs
      )
      return runs, jax.tree.map(lambda all_of, now: all_of.at[i].set(now), records, record)

    records = jax.tree.map(lambda leaf: jnp.zeros((self.chunk, *leaf.shape), leaf.dtype), record_shapes)
    return jax.lax.fori_loop(0, count, step, (runs, records))

  def _one_step(
    self, runs: Run, settings: Setting, rows: jax.Array, place: jax.Array, step: jax.Array, data: Any
  ) -> tuple[Run, jax.Array]:
    """Step number `step` of the runs of one device, which is at `place` (period, step) of the chunk."""
    return self._train(runs, settings, rows[:, place[0], place[1]][:, None], step, data)

  def _run_chunk_by_steps(
    self,
    one_step: Callable[..., tuple[Run, jax.Array]],
    end: Callable[..., tuple[Run, dict[str, jax.Array]]],
    runs: Run,
    settings: Setting,
    rows: jax.Array,
    first: int,
    count: int,
    data: Any,
  ) -> tuple[Run, dict[str, np.ndarray]]:
    """What `_run_chunk` does, with a program for a step and one for an evaluation."""
    every, records = self.protocol.evaluate_every, []
    for i in range(count):
      losses = []
      for j in range(every):
        runs, loss = one_step(runs, settings, rows, np.array([i, j], np.int32), np.int32((first + i) * every + j), data)
        losses.append(loss)
      runs, record = end(runs, settings, sum(losses) / every, np.int32(first + i), data)
      records.append(record)
      if np.asarray(runs.watch.stopped).all():
        break
    return runs, {name: np.stack([np.asarray(record[name]) for record in records]) for name in records[0]}

  def _faster(self, tasks: Sequence[Task], with_test: bool) -> str:
    """Which way takes the least time for one evaluation and the steps before it, once compiled."""
    seconds = {}
    widest = math.ceil(len(tasks) / self.mesh.size) * self.mesh.size
    for name, width in [("map", self.mesh.size), ("vmap", widest), ("step", self.mesh.size)]:
      self.batching = name
      rows = self._rows(_seeds(tasks), 0)
      settings, runs = self._first(tasks, np.arange(width) % len(tasks), rows[0])
      best = math.inf
      for _ in range(3):  # the first compiles
        begin = time.perf_counter()
        runs, _ = jax.block_until_ready(self._program(with_test)(runs, settings, rows[1], 0, 1, self.data))
        best = min(best, time.perf_counter() - begin)
      seconds[name] = best * math.ceil(len(tasks) / width)
    return min(seconds, key=lambda name: seconds[name])


def initialiser(problem: Problem) -> Callable[[int], Any]:
  """Seed -> initial parameters and state. One initialisation at a time: the same numbers whatever the batching."""
  initialise = jax.jit(lambda key: problem.start(key))
  return functools.cache(lambda seed: jax.device_get(initialise(keys(seed)[0])))


def _seeds(tasks: Sequence[Task]) -> list[int]:
  return sorted({task.seed for task in tasks})


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
  """`jax.vmap` for a leading axis of length 1, without a batched operation."""

  def of_one(*args: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], function(*jax.tree.map(lambda leaf: leaf[0], args)))

  return of_one


def _where(condition: jax.Array, if_true: Any, if_false: Any) -> Any:
  """Selects along the leading axis of every leaf."""
  select = lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)
  return jax.tree.map(select, if_true, if_false)


def _take(tree: Any, chosen: np.ndarray, sharding: NamedSharding) -> Any:
  return jax.device_put(jax.tree.map(lambda leaf: leaf[jnp.asarray(chosen)], tree), sharding)
