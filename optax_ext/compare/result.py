"""The result of a comparison: the runs of each optimizer, and their differences."""

import dataclasses
import math

import numpy as np

from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.problem import Problem
from optax_ext.compare.protocol import Protocol
from optax_ext.compare.run import Result
from optax_ext.compare.statistics import Difference
from optax_ext.compare.tuning import Search, value_of


@dataclasses.dataclass
class Arm:
  """One optimizer of a comparison.

  Attributes:
    optimizer: Which.
    search: How it was tuned.
    reported: Its runs at the best trial on the reporting seeds; none where no trial was eligible.
    single: Its runs at the one learning rate that all share, on the same seeds.
  """

  optimizer: Optimizer
  search: Search
  reported: list[Result] = dataclasses.field(default_factory=list)
  single: list[Result] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Outcome:
  """What a comparison found, as reports and pictures read it.

  Attributes:
    problem: What was trained.
    protocol: How.
    arms: One an optimizer, in the order given.
    seeds: The reporting seeds.
    tuning_seeds: The tuning seeds.
    single_rate: The learning rate of the single-rate comparison; `None` where there was none.
    margin: What counts as equal, relative.
    batching: "map", "vmap" or "step"; what was asked for where all runs were there already.
    tuned: (optimizer, baseline) -> their difference on the reporting seeds, each at its best trial.
    at_one_rate: The same, both at `single_rate`.
    failed: Optimizers that could not be compiled or run, with the reason; they have no arm.
  """

  problem: Problem
  protocol: Protocol
  arms: dict[str, Arm]
  seeds: list[int]
  tuning_seeds: list[int]
  single_rate: float | None
  margin: float
  batching: str
  tuned: dict[tuple[str, str], Difference] = dataclasses.field(default_factory=dict)
  at_one_rate: dict[tuple[str, str], Difference] = dataclasses.field(default_factory=dict)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)

  def values(self, name: str, split: str = "test", single: bool = False) -> list[float]:
    """The deciding metric of an optimizer's reporting runs, one a seed; NaN where the run diverged or is missing."""
    arm = self.arms[name]
    results = arm.single if single else arm.reported
    return [value_of(self.problem, self.protocol, r, split) for r in results] or [math.nan] * len(self.seeds)

  def baselines(self, name: str) -> list[str]:
    """The optimizers that this one is compared with: its matched baselines, else the first baseline of others."""
    declared = [b for b in self.arms[name].optimizer.baselines if b in self.arms]
    first = next(filter(self.is_baseline, self.arms), next(iter(self.arms)))
    return declared or ([] if name == first or self.is_baseline(name) else [first])

  def is_baseline(self, name: str) -> bool:
    """Whether another optimizer names this one as its baseline."""
    return any(name in arm.optimizer.baselines for arm in self.arms.values())


def curve_of(results: list[Result], curve: str) -> tuple[list[int], np.ndarray]:
  """Steps, and a curve of each run that did not diverge; runs that stopped early keep their last value."""
  alive = [result for result in results if not result.diverged]
  steps = sorted({step for result in alive for step in result.steps})
  # Runs of which only some evaluations were kept have steps of their own: between two of them the curve is a line.
  return steps, np.array([np.interp(steps, result.steps, result.curves[curve]) for result in alive])


def means_by_rate(comparison: Outcome, name: str) -> dict[float, float]:
  """Learning rates in ascending order, with the mean of the deciding metric over tuning seeds where it is finite."""
  found = sorted(comparison.arms[name].search.by_rate.items())
  return {rate: comparison.problem.badness(badness) for rate, badness in found if math.isfinite(badness)}


def limits_of_means(comparison: Outcome) -> tuple[bool, tuple[float, float] | None, str]:
  """Whether the axis of the means in a picture is logarithmic, the limits that are to be seen, and words for the rest.

  The worst tenth of the means lies outside, but no optimizer's best: a rate that is far too large would press all
  others into one line. The limits are `None` where there is nothing between them.
  """
  of_arms = {name: means_by_rate(comparison, name) for name in comparison.arms}
  means = [mean for of in of_arms.values() for mean in of.values()]
  if not means:
    return False, None, ""
  chosen = {name: arm.search.best for name, arm in comparison.arms.items()}
  bests = [of_arms[name][best["learning_rate"]] for name, best in chosen.items() if best]
  best, cut = (float(x) for x in np.quantile(means, [1, 0.1] if comparison.problem.maximize else [0, 0.9]))
  worst = (min if comparison.problem.maximize else max)(bests, default=best)
  cut = best + max(cut - best, 1.05 * (worst - best), key=abs)
  if best == cut:
    return False, None, ""
  log = 0 < 10 * best < cut
  low, high = sorted((best / 1.2 if log else best - 0.1 * (cut - best), cut))
  outside = sum(not low <= mean <= high for mean in means)
  return log, (low, high), f"; {outside} of {len(means)} means outside" if outside else ""
