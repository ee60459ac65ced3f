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


@dataclasses.dataclass
class Search:
  """What was tried and what came of it.

  Attributes:
    trials: In the order in which they were tried.
    results: Of each trial, one run a tuning seed.
    badness: Of each trial, the mean over tuning seeds of the deciding metric, signed so that less is better; infinite
      where a run diverged: such a trial is not eligible.
    extensions: Points added to the grid below and above.
  """

  trials: list[dict[str, float]] = dataclasses.field(default_factory=list)
  results: list[list[Result]] = dataclasses.field(default_factory=list)
  badness: list[float] = dataclasses.field(default_factory=list)
  extensions: dict[int, int] = dataclasses.field(default_factory=lambda: {-1: 0, 1: 0})

  @property
  def best(self) -> dict[str, float] | None:
    """The eligible trial of the least badness; of equal ones the middle one in order of their learning rates."""
    least = min(self.badness, default=math.inf)
    if not math.isfinite(least):
      return None
    equal = [trial for trial, badness in zip(self.trials, self.badness, strict=True) if badness == least]
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
  """

  def __init__(self, problem: Problem, protocol: Protocol, run: RunTrials):
    self.problem, self.protocol, self.run = problem, protocol, run
    self.search = Search()

  def try_all(self, trials: Sequence[Trial]) -> None:
    """Tries those that were not tried before."""
    new = [dict(trial) for trial in trials if trial not in self.search.trials]
    if not new:
      return
    for trial, results in zip(new, self.run(new), strict=True):
      values = [value_of(self.problem, self.protocol, result, "validation") for result in results]
      badness = [self.problem.badness(value) if math.isfinite(value) else math.inf for value in values]
      self.search.trials.append(trial)
      self.search.results.append(results)
      self.search.badness.append(sum(badness) / len(badness))

  def on_grid(self, rates: Sequence[float], ratio: float) -> None:
    """Tries a grid, extends it while an edge is as good as any, then refines once around the best.

    It is extended by the ratio of the last two rates at that edge, by `ratio` where there is one rate alone, and
    refined at the root of the ratios to the neighbours: at 10^¼ above and below for half decades. Where nothing is
    eligible the grid extends down.
    """
    rates, extensions = sorted(map(float, rates)), self.search.extensions
    self.try_all([{"learning_rate": rate} for rate in rates])
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
    if self.search.best:
      best = self.search.best["learning_rate"]
      above, below = (gap(rates, best, side, ratio) ** 0.5 for side in (1, -1))
      self.try_all([{"learning_rate": best * above}, {"learning_rate": best / below}])

  def top_up(self, trials: int, ratio: float) -> None:
    """Spends on ever finer steps around the best what others spent on extending their grids: one budget for all."""
    step = ratio**0.25
    while self.search.best and (left := trials - len(self.search.trials)) > 0 and step > 1.001:
      rate = self.search.best["learning_rate"]
      self.try_all([{**self.search.best, "learning_rate": new} for new in (rate * step, rate / step)[:left]])
      step **= 0.5


def value_of(problem: Problem, protocol: Protocol, result: Result, split: str, name: str = "") -> float:
  """A metric (by default the deciding one) where the protocol reports it; NaN where the run diverged."""
  if result.diverged:
    return math.nan
  return result.curves[f"{split}/{name or problem.metric}"][result.best if protocol.report == "best" else -1]
