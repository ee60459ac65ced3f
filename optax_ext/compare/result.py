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
