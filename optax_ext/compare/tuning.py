"""The search for one optimizer's best trial, on tuning seeds and validation data alone."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from optax_ext.compare.grid import MOST_EXTENSIONS, edges, gap
from optax_ext.compare.problem import Problem
from optax_ext.compare.protocol import Protocol
from optax_ext.compare.run import Result

Trial = Mapping[str, float]
RunTrials = Callable[[Sequence[Trial]], list[list[Result]]]  # for each trial its runs, one a tuning seed
Choose = Callable[[list[list[Result]]], list[int]]  # of trials with what their runs measured so far: which go on
# Trials to some numbers of evaluations, after each of which the chosen go on: their runs, and which came to the end.
Race = Callable[[Sequence[Trial], Sequence[int], Choose], tuple[list[list[Result]], set[int]]]
RUNGS = (0.125, 0.25, 0.5)  # parts of a run after which half of the trials end


@dataclasses.dataclass
class Search:
  """What was tried and what came of it.

  Attributes:
    trials: In the order in which they were tried.
    results: Of each trial, one run a tuning seed.
    badness: Of each trial, the mean over tuning seeds of the deciding metric, signed so that less is better; infinite
      where a run diverged: such a trial is not eligible.
    extensions: Points added to the grid below and above.
    dropped: Of each trial, whether its runs ended before the others', being worse: such a trial is not eligible.
  """

  trials: list[dict[str, float]] = dataclasses.field(default_factory=list)
  results: list[list[Result]] = dataclasses.field(default_factory=list)
  badness: list[float] = dataclasses.field(default_factory=list)
  extensions: dict[int, int] = dataclasses.field(default_factory=lambda: {-1: 0, 1: 0})
  dropped: list[bool] = dataclasses.field(default_factory=list)

  @property
  def best(self) -> dict[str, float] | None:
    """The eligible trial of the least badness; of equal ones the middle one in order of their learning rates."""
    dropped = self.dropped or [False] * len(self.trials)
    eligible = [(b, trial) for b, trial, out in zip(self.badness, self.trials, dropped, strict=True) if not out]
    least = min((badness for badness, _ in eligible), default=math.inf)
    if not math.isfinite(least):
      return None
    equal = [trial for badness, trial in eligible if badness == least]
    return sorted(equal, key=lambda trial: trial["learning_rate"])[(len(equal) - 1) // 2]

  @property
  def at_edge(self) -> bool:
    """Whether the highest or the lowest learning rate that was tried is as good as any, where it alone was tuned."""
    return self.best is not None and len(self.best) == 1 and bool(edges(self.by_rate))

  @property
  def by_rate(self) -> dict[float, float]:
    """Learning rate -> badness."""
    return {trial["learning_rate"]: badness for trial, badness in zip(self.trials, self.badness, strict=True)}


class Tuner:
  """Tries trials and notes them in a `Search`.

  Args:
    problem: Names the deciding metric.
    protocol: Says whether the best checkpoint or the last value counts.
    run: Does the runs.
    race: Does them side by side, for `halve`.
  """

  def __init__(self, problem: Problem, protocol: Protocol, run: RunTrials, race: Race | None = None):
    self.problem, self.protocol, self.run, self.race = problem, protocol, run, race
    self.search = Search()

  def try_all(self, trials: Sequence[Trial]) -> None:
    """Tries those that were not tried before."""
    new = [dict(trial) for trial in trials if trial not in self.search.trials]
    if not new:
      return
    for trial, results in zip(new, self.run(new), strict=True):
      self._note(trial, results, dropped=False)

  def _note(self, trial: dict[str, float], results: list[Result], dropped: bool) -> None:
    self.search.trials.append(trial)
    self.search.results.append(results)
    self.search.badness.append(self._badness(results))
    self.search.dropped.append(dropped)

  def _badness(self, results: list[Result]) -> float:
    values = [value_of(self.problem, self.protocol, result, "validation") for result in results]
    badness = [self.problem.badness(value) if math.isfinite(value) else math.inf for value in values]
    return sum(badness) / len(badness)

  def halve(self, rates: Sequence[float], ratio: float) -> None:
    """Successive halving: all rates train for an eighth of the steps, the better half for a quarter, half of those for
    a half, half of these to the end. Then the grid is extended as `on_grid` extends it, and not refined.
    """
    assert self.race is not None

    def better_half(so_far: list[list[Result]]) -> list[int]:
      order = sorted(range(len(so_far)), key=lambda i: self._badness(so_far[i]))
      return order[: math.ceil(len(so_far) / 2)]

    rates = sorted(map(float, rates))
    trials = [{"learning_rate": rate} for rate in rates]
    results, whole = self.race(trials, rungs(self.protocol), better_half)
    for i, trial in enumerate(trials):
      self._note(trial, results[i], dropped=i not in whole)
    self._extend(rates, ratio)

  def on_grid(self, rates: Sequence[float], ratio: float) -> None:
    """Tries a grid, extends it while an edge is as good as any, then refines once around the best.

    It is extended by the ratio of the last two rates at that edge, by `ratio` where there is one rate alone, and
    refined at the root of the ratios to the neighbours: at 10^¼ above and below for half decades. Where nothing is
    eligible the grid extends down.
    """
    rates = sorted(map(float, rates))
    self.try_all([{"learning_rate": rate} for rate in rates])
    rates = self._extend(rates, ratio)
    if self.search.best:
      best = self.search.best["learning_rate"]
      above, below = (gap(rates, best, side, ratio) ** 0.5 for side in (1, -1))
      self.try_all([{"learning_rate": best * above}, {"learning_rate": best / below}])

  def _extend(self, rates: list[float], ratio: float) -> list[float]:
    """Extends an ascending grid while one of its edges is as good as any; gives all rates."""
    extensions = self.search.extensions
    while True:
      sides = edges(self.search.by_rate) if self.search.best else [-1]
      side = next((side for side in sides if extensions[side] < MOST_EXTENSIONS), 0)
      if not side:
        break
      extensions[side] += 1
      last = rates[-1 if side > 0 else 0]
      step = gap(rates, last, side, ratio)
      rates = sorted([*rates, last * step if side > 0 else last / step])
      self.try_all([{"learning_rate": rates[-1 if side > 0 else 0]}])
    return rates

  def top_up(self, trials: int, ratio: float) -> None:
    """Spends on ever finer steps around the best what others spent on extending their grids: one budget for all."""
    step = ratio**0.25
    while self.search.best and (left := trials - len(self.search.trials)) > 0 and step > 1.001:
      rate = self.search.best["learning_rate"]
      self.try_all([{**self.search.best, "learning_rate": new} for new in (rate * step, rate / step)[:left]])
      step **= 0.5


def rungs(protocol: Protocol) -> list[int]:
  """Evaluations after which a race drops half of its trials, and those of whole runs."""
  early = {max(1, math.ceil(part * protocol.evaluations)) for part in RUNGS}
  return [*sorted(early - {protocol.evaluations}), protocol.evaluations]


def race_steps(protocol: Protocol, trials: int) -> int:
  """Training steps of a race of so many trials, of one run each."""
  steps, before = 0, 0
  for rung in rungs(protocol):
    steps, before, trials = steps + trials * (rung - before) * protocol.evaluate_every, rung, math.ceil(trials / 2)
  return steps


def value_of(problem: Problem, protocol: Protocol, result: Result, split: str, name: str = "") -> float:
  """A metric (by default the deciding one) where the protocol reports it; NaN where the run diverged."""
  if result.diverged:
    return math.nan
  return result.curves[f"{split}/{name or problem.metric}"][result.best if protocol.report == "best" else -1]
