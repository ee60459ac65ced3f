"""The search for one optimizer's best trial, on tuning seeds and validation data alone."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from optax_ext.compare.grid import MOST_EXTENSIONS, choose, edge
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
    """The eligible trial of the least badness; of equal ones that of the smallest learning rate."""
    eligible = [i for i, badness in enumerate(self.badness) if math.isfinite(badness)]
    key = lambda i: (self.badness[i], self.trials[i]["learning_rate"])
    return self.trials[min(eligible, key=key)] if eligible else None

  @property
  def at_edge(self) -> bool:
    """Whether the best learning rate is the highest or the lowest that was tried, where it alone was tuned."""
    return self.best is not None and len(self.best) == 1 and edge(self.best["learning_rate"], [*self.by_rate]) != 0

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
    """Tries a grid, extends it while its best is at an edge, then refines once around the best.

    The refinement is at √ratio above and below, 10^¼ for half decades. Where nothing is eligible the grid extends down.
    """
    rates = sorted(rates)
    self.try_all([{"learning_rate": rate} for rate in rates])
    while True:
      best = choose(self.search.by_rate)
      side = -1 if best is None else edge(best, rates)
      if side == 0 or self.search.extensions[side] == MOST_EXTENSIONS:
        break
      self.search.extensions[side] += 1
      rates = sorted([*rates, max(rates) * ratio if side > 0 else min(rates) / ratio])
      self.try_all([{"learning_rate": rates[-1 if side > 0 else 0]}])
    self._refine(ratio**0.5, 2)

  def top_up(self, trials: int, ratio: float) -> None:
    """Spends on ever finer steps around the best what others spent on extending their grids: one budget for all."""
    step = ratio**0.25
    while len(self.search.trials) < trials and step > 1.001:
      self._refine(step, trials - len(self.search.trials))
      step **= 0.5

  def _refine(self, step: float, most: int) -> None:
    best = self.search.best
    if best is not None:
      rate = best["learning_rate"]
      self.try_all([{**best, "learning_rate": new} for new in (rate * step, rate / step)[:most]])


def value_of(problem: Problem, protocol: Protocol, result: Result, split: str, name: str = "") -> float:
  """A metric (by default the deciding one) where the protocol reports it; NaN where the run diverged."""
  if result.diverged:
    return math.nan
  return result.curves[f"{split}/{name or problem.metric}"][result.best if protocol.report == "best" else -1]
