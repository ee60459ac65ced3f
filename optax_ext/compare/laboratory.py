"""The runs of a comparison: checked before the first one, done optimizer by optimizer, kept in a folder."""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from optax_ext.compare.batching import chosen, most_lanes
from optax_ext.compare.checks import check_first_step, check_problem
from optax_ext.compare.fingerprint import check_programs, digest, note_programs
from optax_ext.compare.optimizers import Optimizer, check_optimizers
from optax_ext.compare.problem import Problem
from optax_ext.compare.processes import absent, parts
from optax_ext.compare.programs import Common
from optax_ext.compare.progress import Progress
from optax_ext.compare.protocol import Protocol
from optax_ext.compare.run import Result, Runner, Task
from optax_ext.compare.store import Store, fingerprint, optimizer_of, read
from optax_ext.compare.tuning import Choose, Race, RunTrials, Trial, race_steps


class OptimizerError(Exception):
  """An optimizer whose programs cannot be compiled or run, and why."""


class Laboratory:
  """Does the runs of a comparison that its folder does not hold yet.

  Args:
    problem: What is trained.
    protocol: How long.
    optimizers: By name.
    batching: "map", "vmap", "step" or "auto".
    devices: That share the runs; by default all local ones.
    folder: Of the finished runs; `None` keeps them in memory alone.
    points: How many evaluations of each run are kept, at least; `None` for all.
    settings: Whether settings beside the learning rate are drawn.
    progress: Hears what is going on.

  Raises:
    TypeError, ValueError: the problem, an optimizer or the folder does not fit, in one sentence.
  """

  def __init__(
    self,
    problem: Problem,
    protocol: Protocol,
    optimizers: Mapping[str, Optimizer],
    batching: str,
    devices: Sequence[Any] | None = None,
    folder: pathlib.Path | None = None,
    points: int | None = None,
    settings: bool = False,
    progress: Progress | None = None,
  ):
    traced, params = check_problem(problem)
    programs = check_optimizers(optimizers.values(), params, protocol.shape(), settings)
    experiment = fingerprint(problem, protocol)
    of_processes = [(part, read(part, experiment)) for part in parts(folder)] if folder else []
    self.store = Store(folder, experiment, points)
    self.progress = progress or Progress(False, len(optimizers), 0)
    if folder:
      of_both = {name: digest(traced.digest, of) for name, of in programs.items()}
      check_programs(folder, of_both, self.store.optimizers())
      for part, found in of_processes:
        check_programs(part, of_both, set(map(optimizer_of, found)))
      note_programs(folder, of_both, self.store.optimizers())
      for _, found in of_processes:
        self.store.absorb(found, optimizers)
      for name in absent([part for part, _ in of_processes]):
        self.progress.say(f"{name} is not in {folder}: what its process was to run, and is not here, is run now.")
    self.problem, self.protocol, self.optimizers = problem, protocol, optimizers
    self.batching, self.lanes = chosen(batching, traced, devices), most_lanes(traced)
    self.devices = devices
    self.runners: dict[str, Runner] = {}
    self.explained = False

  def on(
    self, name: str, seeds: Sequence[int], what: str, with_test: bool = False, planned: float = math.inf
  ) -> RunTrials:
    """A function that does trials of one optimizer, each on all of `seeds`; `progress` expects `planned` of them."""
    left, phase = planned, "report" if with_test else "tune"

    def run(trials: Sequence[Trial]) -> list[list[Result]]:
      nonlocal left
      self.progress.more(self.protocol.steps * len(seeds) * int(max(0, len(trials) - left)))
      left = max(0, left - len(trials))
      tasks = [Task(trial, seed) for trial in trials for seed in seeds]
      missing = [task for task in tasks if self.store.get(name, task, phase) is None]
      self._say(name, what, len(tasks), len(missing))
      if missing:
        with _failing(name):
          self.runner(name).run(missing, with_test, self.progress.add, lambda of: self._keep(name, of, phase))
        self.progress.end()
      self.progress.more(-self.protocol.steps * (len(tasks) - len(missing)))
      return _by_trial([self.store.get(name, task, phase) for task in tasks], seeds)

    return run

  def race(self, name: str, seeds: Sequence[int]) -> Race:
    """A function that does trials of one optimizer side by side, and ends those that are not chosen to go on."""

    def run(trials: Sequence[Trial], ends: Sequence[int], choose: Choose) -> tuple[list[list[Result]], set[int]]:
      tasks = [Task(trial, seed) for trial in trials for seed in seeds]
      get = lambda task: self.store.get(name, task, "tune") or self.store.get(name, task, "dropped")
      missing = [task for task in tasks if get(task) is None]
      self._say(name, "racing", len(tasks), len(tasks) if missing else 0)
      if not missing:
        self.progress.more(-race_steps(self.protocol, len(trials)) * len(seeds))
        whole = [i for i, task in enumerate(tasks) if self.store.get(name, task, "tune")]
        return _by_trial(list(map(get, tasks)), seeds), {i // len(seeds) for i in whole}
      going = list(range(len(trials)))

      def go_on(results: list[Result]) -> set[int]:
        """The tasks of the chosen among the trials that are still going."""
        nonlocal going
        self._explain(results)
        by_trial = _by_trial(results, seeds)
        going = [going[i] for i in choose([by_trial[trial] for trial in going])]
        return {trial * len(seeds) + i for trial in going for i in range(len(seeds))}

      with _failing(name):
        results = self.runner(name).race(tasks, ends, go_on, self.progress.add)
      self.progress.end()
      whole = {trial * len(seeds) + i for trial in going for i in range(len(seeds))}
      for phase, of in (
        ("tune", [result for i, result in enumerate(results) if i in whole]),
        ("dropped", [result for i, result in enumerate(results) if i not in whole]),
      ):
        self.store.add(name, of, phase)
      return _by_trial(list(map(get, tasks)), seeds), set(going)

    return run

  def _say(self, name: str, what: str, runs: int, missing: int) -> None:
    self.progress.phase(list(self.optimizers).index(name), name, what, runs, missing)

  def runner(self, name: str) -> Runner:
    """That of an optimizer, which compiles its programs once."""
    if name not in self.runners:
      common = next((runner.common for runner in self.runners.values()), None)
      common = common or Common(self.problem, self.protocol, self.devices, checked=bool(self.store.results))
      self.runners[name] = Runner(common, self.optimizers[name], self.batching, self.lanes)
    return self.runners[name]

  def _keep(self, name: str, finished: Sequence[Result], phase: str) -> None:
    """Notes finished runs."""
    self._explain(finished)
    self.store.add(name, finished, phase)
    self.progress.more(sum(result.steps[-1] - self.protocol.steps for result in finished))  # stopped early

  def _explain(self, results: Sequence[Result]) -> None:
    """Of the first runs that diverged at once, tells whether that is the problem's fault."""
    if not self.explained and any(result.diverged and len(result.steps) == 1 for result in results):
      check_first_step(self.problem)
      self.explained = True


@contextlib.contextmanager
def _failing(name: str) -> Iterator[None]:
  """Makes what goes wrong in compiled programs, or on the way to them, the failure of one optimizer."""
  try:
    yield
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    lines = str(error).strip().splitlines()
    reason = " … ".join(dict.fromkeys([lines[0], lines[-1]])) if lines else "nothing said"
    raise OptimizerError(f"{name} failed with {type(error).__name__}: {reason}") from error


def _by_trial(results: Sequence[Result | None], seeds: Sequence[int]) -> list[list[Result]]:
  """One list a trial, one run a seed."""
  found = [result for result in results if result is not None]
  return [found[first : first + len(seeds)] for first in range(0, len(found), len(seeds))]
