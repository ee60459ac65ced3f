"""`compare`: tune every optimizer alike, then report all of them on fresh seeds."""

import dataclasses
import math
import numbers
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import optax

from optax_ext.compare import grid
from optax_ext.compare.behaviour import opened
from optax_ext.compare.grid import Range
from optax_ext.compare.optimizers import Optimizer, check_optimizers
from optax_ext.compare.problem import Problem, check_problem, keys
from optax_ext.compare.progress import Progress
from optax_ext.compare.protocol import Protocol, check_whole
from optax_ext.compare.report import save, summary
from optax_ext.compare.result import Arm, Outcome
from optax_ext.compare.run import Result, Runner, Task
from optax_ext.compare.statistics import Difference, adjust, paired
from optax_ext.compare.store import Store
from optax_ext.compare.tuning import Trial, Tuner

FIRST_REPORTING_SEED = 1000  # tuning seeds count from 0


@dataclasses.dataclass
class Comparison(Outcome):
  """The outcome of `compare`, which can be printed and saved.

  Its attributes are those of `Outcome`.
  """

  def summary(self) -> str:
    """The comparison in Markdown."""
    return summary(self)

  def save(self, folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Writes the table of all runs (CSV and JSON), the summary and, where matplotlib is installed, the pictures."""
    return save(self, pathlib.Path(folder))


def compare(
  problem: Problem,
  optimizers: Sequence[str | Optimizer] | Mapping[str, Callable[..., optax.GradientTransformation]],
  protocol: Protocol,
  *,
  learning_rates: Sequence[float] | None = None,
  points: int = 7,
  ratio: float = grid.HALF_DECADE,
  seeds: int | Sequence[int] = 8,
  tuning_seeds: int | Sequence[int] = 3,
  track: str = "A",
  trials: int = 16,
  single_rate: float | None = None,
  margin: float = 0.005,
  add_baselines: bool = True,
  batching: str = "auto",
  devices: Sequence[Any] | None = None,
  out: str | pathlib.Path | None = None,
  curve_points: int | None = None,
  progress: bool = True,
) -> Comparison:
  """Compares optimizers on a problem, each at its own best learning rate.

  Every optimizer tries the same number of trials on the tuning seeds; the trial with the best mean validation metric is
  trained again with fresh seeds, and the test metrics of these runs are compared, seed by seed. A seed fixes the
  initialisation, the order of the data and dropout for every optimizer and learning rate.

  Args:
    problem: What is trained.
    optimizers: Names (see `optax_ext.compare.names`), `Optimizer`s, or a dict of constructors of the learning rate.
    protocol: How long.
    learning_rates: A grid for all; without it each optimizer has its own, around its centre.
    points: In a grid of one's own.
    ratio: Of neighbours in such a grid. A grid of which an edge is as good as its best is extended there, by at most 3
      points a side, each as far from the last as that from its neighbour; then it is refined once around its best, at
      the root of the ratio to each neighbour.
    seeds: Reporting seeds: how many (then from 1000), or which.
    tuning_seeds: How many (then from 0), or which.
    track: "A" tunes the learning rate; "B" draws `trials` quasi-random trials from each optimizer's whole space.
    trials: Of track B.
    single_rate: The rate of the comparison at one rate, other settings being the defaults; by default the centre of the
      first baseline. 0 for none.
    margin: What counts as equal, relative to the baseline's mean.
    add_baselines: Whether to add the matched baselines of named optimizers where they are missing.
    batching: "map" (one run after the other on each device), "vmap" (all at once), "step" (as map, each step a program
      of its own: for convolutions on a CPU), or "auto", which times all three and keeps the fastest.
    devices: That share the runs; by default all local ones.
    out: A folder for the results; an interrupted comparison continues from what is in it. Changed data, protocols and
      versions are refused, and so are models and optimizers whose first two steps are others; what changes neither, a
      late effect of a setting, is not noticed.
    curve_points: How many evaluations of each run are kept for curves and files, at least, the best and the last among
      them; `None` for all. Steps to target are told from all evaluations alone.
    progress: Whether to show a live line.

  Returns:
    A `Comparison`.

  Raises:
    TypeError, ValueError: bad input, in one sentence, before any training.

  Example:
    >>> from optax_ext.compare.problems.bundled import digits
    >>> found = compare(digits(), ["adam", "exadam"], Protocol(steps=360, evaluate_every=18))  # doctest: +SKIP
    >>> print(found.summary())  # doctest: +SKIP
  """
  for name, value, kind in [("problem", problem, Problem), ("protocol", protocol, Protocol)]:
    if not isinstance(value, kind):
      raise TypeError(f"{name} must be an optax_ext.compare.{kind.__name__}, but was {value!r}.")
  all_arms = resolve(optimizers, problem, add_baselines)
  given = _rates(learning_rates)
  _check_options(given, points, ratio, track, trials, single_rate, margin, batching, curve_points)
  tuning, reporting = _seeds(tuning_seeds, 0, "tuning_seeds"), _seeds(seeds, FIRST_REPORTING_SEED, "seeds")
  if both := set(tuning) & set(reporting):
    raise ValueError(f"Reporting seeds must be fresh, but {sorted(both)} are among the tuning seeds too.")
  check_problem(problem)
  params, _ = jax.eval_shape(problem.start, keys(0)[0])
  check_optimizers(all_arms.values(), params, protocol.shape())
  if single_rate is None:
    single_rate = next(all_arms[b].centre for b in [*_baseline_names(all_arms), *all_arms])
  single_rate = float(single_rate)

  ratio = float(ratio)
  rates = {name: given or grid.grid(o.centre, points, ratio) for name, o in all_arms.items()}
  if len(given) > 1:  # on average
    ratio = (given[-1] / given[0]) ** (1 / (len(given) - 1))
  in_grid = trials if track == "B" else 2 + max(len(of) for of in rates.values())
  runs = len(all_arms) * (in_grid * len(tuning) + (2 if single_rate else 1) * len(reporting))
  with Progress(progress, len(all_arms), runs * protocol.steps) as shown:
    store = opened(pathlib.Path(out) if out else None, problem, protocol, all_arms.values(), curve_points)
    laboratory = Laboratory(problem, protocol, all_arms, batching, devices, store, shown)
    tune = lambda name: laboratory.on(name, tuning, "tuning", planned=in_grid)
    tuners = {name: Tuner(problem, protocol, tune(name)) for name in all_arms}
    for name, tuner in tuners.items():
      if track == "B":
        centre = all_arms[name].centre
        space = {"learning_rate": Range(centre / 10**1.5, centre * 10**1.5), **all_arms[name].space}
        tuner.try_all(grid.quasi_random(space, trials))
      else:
        tuner.on_grid(rates[name], ratio)
    if track == "A":
      most = max(len(tuner.search.trials) for tuner in tuners.values())
      for tuner in tuners.values():
        tuner.top_up(most, ratio)
    arms = {name: Arm(all_arms[name], tuner.search) for name, tuner in tuners.items()}
    for name, arm in arms.items():
      report = laboratory.on(name, reporting, "reporting", with_test=True)
      if arm.search.best is not None:
        arm.reported = report([arm.search.best])[0]
      if single_rate:
        arm.single = report([{"learning_rate": single_rate}])[0]

  of_arms = (problem, protocol, arms, reporting, tuning)
  comparison = Comparison(*of_arms, single_rate or None, margin, laboratory.batching)
  comparison.tuned = differences(comparison, single=False)
  comparison.at_one_rate = differences(comparison, single=True) if single_rate else {}
  if out:
    comparison.save(out)
  return comparison


class Laboratory:
  """Does the runs of a comparison that are not in the store yet."""

  def __init__(
    self,
    problem: Problem,
    protocol: Protocol,
    optimizers: Mapping[str, Optimizer],
    batching: str,
    devices: Sequence[Any] | None,
    store: Store,
    progress: Progress,
  ):
    self.optimizers, self.protocol, self.store, self.batching = optimizers, protocol, store, batching
    self.problem, self.devices, self.progress = problem, devices, progress
    self.runners: dict[str, Runner] = {}

  def on(
    self, name: str, seeds: Sequence[int], what: str, with_test: bool = False, planned: float = math.inf
  ) -> Callable[[Sequence[Trial]], list[list[Result]]]:
    """A function that does trials of one optimizer, each on all of `seeds`; `progress` expects `planned` of them."""
    left = planned

    def run(trials: Sequence[Trial]) -> list[list[Result]]:
      nonlocal left
      self.progress.more(self.protocol.steps * len(seeds) * int(max(0, len(trials) - left)))
      left = max(0, left - len(trials))
      self.progress.phase(list(self.optimizers).index(name), name, what)
      tasks = [Task(trial, seed) for trial in trials for seed in seeds]
      missing = [task for task in tasks if self.store.get(name, task, with_test) is None]
      if missing:
        runner = self._runner(name)

        def keep(finished: Sequence[Result]) -> None:
          self.store.add(name, finished, with_test)
          self.progress.more(sum(result.steps[-1] - self.protocol.steps for result in finished))  # stopped early

        runner.run(missing, with_test, self.progress.add, keep)
        self.batching = runner.batching  # what "auto" chose serves all
      self.progress.more(-self.protocol.steps * (len(tasks) - len(missing)))
      results = [self.store.get(name, task, with_test) for task in tasks]
      results = [result for result in results if result is not None]
      return [results[first : first + len(seeds)] for first in range(0, len(results), len(seeds))]

    return run

  def _runner(self, name: str) -> Runner:
    like = next(iter(self.runners.values()), None)
    if name not in self.runners:
      optimizer = self.optimizers[name]
      self.runners[name] = Runner(self.problem, self.protocol, optimizer, self.batching, self.devices, like)
    self.runners[name].batching = self.batching
    return self.runners[name]


def resolve(optimizers: Any, problem: Problem, add_baselines: bool) -> dict[str, Optimizer]:
  """The optimizers by name, with the matched baselines of the named ones."""
  if isinstance(optimizers, Mapping):
    named_as = lambda name, o: dataclasses.replace(o, name=name) if isinstance(o, Optimizer) else Optimizer(name, o)
    optimizers = [named_as(name, of) for name, of in optimizers.items()]
  resolved: dict[str, Optimizer] = {}
  if isinstance(optimizers, str) or not isinstance(optimizers, Sequence) or not optimizers:
    raise ValueError(f"optimizers must be a list of at least one name or Optimizer, but was {optimizers!r}.")
  for optimizer in optimizers:
    if isinstance(optimizer, str):
      from optax_ext.compare.names import named

      optimizer = named(optimizer, problem)
    elif not isinstance(optimizer, Optimizer):
      raise TypeError(f"An optimizer must be a name or an Optimizer, but one was {optimizer!r}; give a dict otherwise.")
    if optimizer.name in resolved:
      raise ValueError(f"Two optimizers have the name {optimizer.name!r}; give each its own.")
    resolved[optimizer.name] = optimizer
  if add_baselines:
    from optax_ext.compare.names import NAMES, named

    missing = [b for o in resolved.values() for b in o.baselines if b not in resolved and b in NAMES]
    resolved |= {name: named(name, problem) for name in missing}
    if unknown := {b for o in resolved.values() for b in o.baselines} - resolved.keys():
      raise ValueError(f"Baselines must be among the optimizers, or known by name, but {sorted(unknown)} are neither.")
  return resolved


def _baseline_names(optimizers: Mapping[str, Optimizer]) -> list[str]:
  return [b for o in optimizers.values() for b in o.baselines if b in optimizers]


def differences(comparison: Comparison, single: bool) -> dict[tuple[str, str], Difference]:
  """Each optimizer against its baselines where both have runs, with p-values adjusted for all of them."""
  ran = [name for name, arm in comparison.arms.items() if single or arm.search.best is not None]
  pairs = [(name, baseline) for name in ran for baseline in comparison.baselines(name) if baseline in ran]
  badness = lambda name: [comparison.problem.badness(v) for v in comparison.values(name, single=single)]
  differences = [paired(badness(name), badness(baseline), comparison.margin) for name, baseline in pairs]
  return dict(zip(pairs, adjust(differences), strict=True))


def _seeds(seeds: int | Sequence[int], first: int, name: str) -> list[int]:
  whole = lambda number: isinstance(number, numbers.Integral) and not isinstance(number, bool) and int(number) >= 0
  counted = [first + i for i in range(int(seeds))] if whole(seeds) else []  # type: ignore
  listed: list[Any] = list(seeds) if isinstance(seeds, Iterable) else counted
  chosen = [int(seed) if whole(seed) else -1 for seed in listed]
  if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
    raise ValueError(
      f"{name} must be a number of at least 1, or different whole numbers of at least 0, but was {seeds!r}."
    )
  return chosen


def _rates(learning_rates: Sequence[float] | None) -> list[float]:
  """The grid for all in ascending order; empty where each optimizer has its own."""
  if learning_rates is None:
    return []
  try:
    rates = sorted(float(rate) for rate in learning_rates)
    listed = not isinstance(learning_rates, str)
  except (TypeError, ValueError):
    rates, listed = [], False
  if not listed:
    raise ValueError(f"learning_rates must be a list of rates, but was {learning_rates!r}; for one rate give a list.")
  if not rates:
    raise ValueError("learning_rates is an empty grid: give at least one rate, or None for a grid around the centre.")
  if not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
    raise ValueError(f"learning_rates must be different finite numbers above 0, but were {rates}.")
  return rates


def _check_options(
  learning_rates: Sequence[float],
  points: int,
  ratio: float,
  track: str,
  trials: int,
  single_rate: float | None,
  margin: float,
  batching: str,
  curve_points: int | None,
) -> None:
  grid.grid(1.0, points, ratio)
  if track not in ("A", "B"):
    raise ValueError(f"track must be 'A' (learning rate alone) or 'B' (all settings), but was {track!r}.")
  if track == "B" and learning_rates:
    raise ValueError(
      "Track B draws learning rates from ranges around the centres: leave learning_rates out, or track A."
    )
  check_whole("trials", trials, 1)
  if single_rate is not None and not 0 <= single_rate < math.inf:
    raise ValueError(f"single_rate must be a finite number above 0, 0 for none or None, but was {single_rate}.")
  if not 0 <= margin < math.inf:
    raise ValueError(f"margin must be a finite number of at least 0, but was {margin}.")
  if batching not in ("auto", "map", "vmap", "step"):
    raise ValueError(f"batching must be 'auto', 'map', 'vmap' or 'step', but was {batching!r}.")
  if curve_points is not None and not (isinstance(curve_points, int) and curve_points >= 1):
    raise ValueError(f"curve_points must be a whole number of at least 1, or None for all, but was {curve_points}.")
