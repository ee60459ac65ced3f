"""Many runs of one optimizer in few compiled programs.

Runs go in groups: of one run a device ("map", "step") or of many ("vmap", vmapped and shared among the devices). All
runs of a group take the steps up to an evaluation, in one program or with "step" in one each; then they are measured
and judged. These ways differ in speed and rounding, and in nothing else.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_ext.compare.checks import check_start
from optax_ext.compare.frameworks import KEYS
from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.problem import batches
from optax_ext.compare.programs import Common, Programs, stacked, take
from optax_ext.compare.protocol import Watch, watch
from optax_ext.compare.streams import Feed, is_stream, one_pass, opened
from optax_ext.compare.train import Run, Setting


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


@dataclasses.dataclass
class Group:
  """Runs that go together. Copies of the first ones fill its places up, and are not looked at."""

  tasks: Sequence[Task]
  places: np.ndarray  # which task each place works on; -1 for a copy
  settings: Setting
  runs: Run
  watch: Watch
  records: list[list[dict[str, float]]]  # of each task
  feeds: dict[int, Feed]  # of each seed, where batches come from a loader
  ended: dict[int, bool] = dataclasses.field(default_factory=dict)  # task -> whether it diverged

  @property
  def working(self) -> list[int]:
    """The places of tasks that have not ended."""
    return [place for place, task in enumerate(self.places.tolist()) if task >= 0 and task not in self.ended]


class Runner:
  """Does runs of one optimizer on one problem under one protocol.

  Args:
    common: What the optimizers share.
    optimizer: With what.
    batching: "map", "vmap" or "step".
    lanes: Most runs at once on a device, with "vmap".
  """

  def __init__(self, common: Common, optimizer: Optimizer, batching: str, lanes: int = 32):
    self.common, self.optimizer, self.batching, self.lanes = common, optimizer, batching, lanes
    self.problem, self.protocol = common.problem, common.protocol
    every = self.protocol.evaluate_every
    self.programs = Programs(common, optimizer, 1 if batching == "step" or self.problem.streams else every)
    self.seconds: dict[int, tuple[float, float]] = {}  # width -> of its first evaluation, of the fastest

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
    width, results = self._width(len(tasks)), []
    for first in range(0, len(tasks), width):
      group = self.begin(tasks[first : first + width], width)
      self.advance(group, range(self.protocol.evaluations), with_test, on_steps)
      of_group = self.results(group)
      on_results(of_group)
      results += of_group
    return results

  def race(
    self,
    tasks: Sequence[Task],
    ends: Sequence[int],
    go_on: Callable[[list[Result]], set[int]],
    on_steps: Callable[[int], None] = lambda steps: None,
  ) -> list[Result]:
    """Takes all tasks up to each number of evaluations in `ends`, and there ends those that do not `go_on`.

    All runs are in memory at the same time.
    """
    width, before = self._width(len(tasks)), 0
    groups = [self.begin(tasks[first : first + width], width) for first in range(0, len(tasks), width)]
    for end in ends:
      for group in groups:
        self.advance(group, range(before, end), False, on_steps)
      results, before = [result for group in groups for result in self.results(group)], end
      if end < ends[-1]:
        chosen = go_on(results)
        for task in set(range(len(tasks))) - chosen:
          groups[task // width].ended.setdefault(task % width, False)
    return [result for group in groups for result in self.results(group)]

  def begin(self, tasks: Sequence[Task], width: int) -> Group:
    """A group before its first step."""
    if not self.common.checked:
      self._check_start(width)
    places = [place % len(tasks) for place in range(width)]
    dtype = jnp.result_type(float)
    trial = {name: np.array([tasks[i].trial[name] for i in places], dtype) for name in tasks[0].trial}
    dropout = np.stack([self.common.dropout(tasks[i].seed) for i in places])
    dropout = jax.random.wrap_key_data(jnp.asarray(dropout), impl=KEYS)
    settings = Setting(*jax.device_put((trial, dropout), self.common.split))
    initial = stacked([self.common.initial(tasks[i].seed) for i in places])
    runs = self.programs.start(*jax.device_put(initial, self.common.split), settings.trial)
    watches = jax.device_put(stacked([jax.tree.map(np.asarray, watch())] * width), self.common.split)
    counted = np.where(np.arange(width) < len(tasks), places, -1)  # the others are copies
    seeds = {task.seed for task in tasks} if self.problem.streams else ()
    feeds = {seed: Feed(self.problem.train, seed, self.problem.example) for seed in seeds}
    return Group(tasks, counted, settings, runs, watches, [[] for _ in tasks], feeds)

  def advance(
    self, group: Group, evaluations: range, with_test: bool, on_steps: Callable[[int], None] = lambda steps: None
  ) -> None:
    """Takes a group through some evaluations, each after its steps, until all of its runs have ended."""
    every = self.protocol.evaluate_every
    for index in evaluations:
      working = group.working
      if not working:
        break
      self._narrow(group, working, evaluations.stop - index)
      width, begin = len(group.places), time.perf_counter()
      self._evaluate(group, index, with_test)
      seconds = time.perf_counter() - begin
      first, least = self.seconds.get(width, (seconds, math.inf))
      self.seconds[width] = first, min(least, seconds)
      on_steps(every * len(working))

  def results(self, group: Group) -> list[Result]:
    """What the runs of a group have measured so far."""
    every, found = self.protocol.evaluate_every, []
    for i, task in enumerate(group.tasks):
      records, diverged = group.records[i], group.ended.get(i)
      curves = {name: [record[name] for record in records] for name in records[0]}
      best = self.protocol.best([self.problem.badness(v) for v in curves[f"validation/{self.problem.metric}"]])
      early = diverged is False and len(records) < self.protocol.evaluations
      steps = [(number + 1) * every for number in range(len(records))]
      found.append(Result(dict(task.trial), task.seed, steps, curves, best, bool(diverged), early))
    return found

  def measured(self, params: Any, state: Any, with_test: bool) -> dict[str, Any]:
    """Metrics of the validation data, and in reporting runs of the test data, as "validation/name" and "test/name"."""
    splits = {"validation": self.common.validation} | ({"test": self.common.test} if with_test else {})
    of_splits = {split: self._metrics(params, state, split, data) for split, data in splits.items()}
    return {f"{split}/{name}": value for split, values in of_splits.items() for name, value in values.items()}

  def _metrics(self, params: Any, state: Any, split: str, data: Any) -> dict[str, Any]:
    """Of arrays, or of all batches of a loader: means that are weighted by the batches' sizes."""
    if not is_stream(data):
      return self.common.measure(params, state, data)
    total, examples = None, 0
    for size, batch in one_pass(opened(data, 0, split), self.problem.example, split):
      values = self.common.measure(params, state, jax.device_put(batch, self.common.shared))
      weighted = {name: size * value for name, value in values.items()}
      total = {name: total[name] + value for name, value in weighted.items()} if total else weighted
      examples += size
    return {name: value / examples for name, value in (total or {}).items()}

  def _evaluate(self, group: Group, index: int, with_test: bool) -> None:
    """The steps up to evaluation `index`, and that evaluation; notes what it measured of the runs that go on."""
    every = self.protocol.evaluate_every
    losses: Any = 0.0
    for at, (rows, place, data) in enumerate(self._batches(group, index)):
      first = np.int32(index * every + at * self.programs.number)
      group.runs, loss = self.programs.steps(
        group.runs, group.settings, group.watch.scale, rows, np.int32(place), first, data
      )
      losses = losses + loss if at else loss
    params, state, opt_state = group.runs
    if self.programs.evaluated:
      params = self.programs.evaluated(opt_state, params)
    loss, scale = losses / every, group.watch.scale
    values = self.measured(params, state, with_test)
    rate, value = group.settings.trial["learning_rate"], values[f"validation/{self.problem.metric}"]
    group.watch = self.common.conclude(group.runs.params, group.watch, rate, np.int32(index), loss, value)
    record, seen = jax.device_get(({"train/loss": loss, "scale": scale, **values}, group.watch))
    for at in group.working:
      task = int(group.places[at])
      group.records[task].append({name: float(of[at]) for name, of in record.items()})
      if seen.stopped[at]:
        group.ended[task] = bool(seen.diverged[at])

  def _check_start(self, width: int) -> None:
    """Raises unless the deciding metric is finite before any step, with the programs that the runs use."""
    initial = jax.device_put(stacked([self.common.initial(0)] * width), self.common.split)
    values = self.measured(*initial, with_test=True)
    check_start(self.problem, {split: values[f"{split}/{self.problem.metric}"][0] for split in ("validation", "test")})
    self.common.checked = True

  def _batches(self, group: Group, index: int) -> Iterator[tuple[Any, int, Any]]:
    """For each program of steps up to evaluation `index`: which examples the runs' batches hold, from which place on,
    and the data that these are in.

    Of arrays that is all of the data; of a loader one batch of each seed, which takes the place of an example.
    """
    every = self.protocol.evaluate_every
    seeds = [group.tasks[task].seed for task in group.places]
    if not group.feeds:
      of_seed = {seed: batches(self.problem, seed, index * every, every) for seed in set(seeds)}
      rows = jax.device_put(np.stack([of_seed[seed] for seed in seeds]), self.common.split)
      for place in range(0, every, self.programs.number):
        yield rows, place, self.common.train
      return
    places = {seed: place for place, seed in enumerate(dict.fromkeys(seeds))}
    rows = jax.device_put(np.array([[places[seed]] for seed in seeds], np.int32), self.common.split)
    for _ in range(every):
      yield rows, 0, jax.device_put(stacked([next(group.feeds[seed]) for seed in places]), self.common.shared)

  def _width(self, tasks: int) -> int:
    """Places of a group: as many as there are tasks, or those of an earlier group where compiling anew takes longer."""
    size = self.common.mesh.size
    if self.batching != "vmap":
      return size
    lanes = -(-tasks // size)
    fits = -(-lanes // -(-lanes // self.lanes)) * size
    for width, (first, least) in sorted(self.seconds.items()):
      groups = -(-tasks // width)
      wasted = least * self.protocol.evaluations * (groups - tasks / width)
      if wasted < first - least:
        return width
    return fits

  def _narrow(self, group: Group, working: list[int], evaluations: int) -> None:
    """Removes runs that have ended, once these are half and what is left would take longer than compiling anew."""
    width, size = len(group.places), self.common.mesh.size
    fewer = -(-len(working) // size) * size
    first, least = self.seconds.get(width, (math.inf, math.inf))
    if fewer <= width // 2 and least * evaluations * (1 - fewer / width) > first - least:
      others = [place for place in range(width) if place not in working]
      kept = np.array([*working, *others[: fewer - len(working)]])
      group.places = group.places[kept]
      group.settings, group.runs, group.watch = take((group.settings, group.runs, group.watch), kept, self.common.split)
