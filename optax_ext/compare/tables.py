"""The rows of a comparison's tables: the effect of each optimizer, and what each reached."""

import dataclasses
import math

import numpy as np

from optax_ext.compare.grid import width
from optax_ext.compare.result import Outcome
from optax_ext.compare.statistics import Difference, mean_ranks, steps_to
from optax_ext.compare.tuning import value_of

WIDTH_MARGIN = 0.05


def steps_to_target(comparison: Outcome, name: str) -> tuple[float, int]:
  """The median over seeds of the steps to the baseline's best validation value, and how many were censored.

  NaN where only some evaluations were kept: the baseline's best is among them, a rival's first that is as good is not.
  """
  baseline = next(iter(comparison.baselines(name)), name)
  of_baseline = comparison.arms[baseline].reported
  if not all(result.complete for result in [*comparison.arms[name].reported, *of_baseline]):
    return math.nan, 0
  curve = lambda result: [
    comparison.problem.badness(v) for v in result.curves[f"validation/{comparison.problem.metric}"]
  ]
  steps = []
  for result, rival in zip(comparison.arms[name].reported, of_baseline, strict=False):
    reached = None
    if not result.diverged and not rival.diverged:
      reached = steps_to(result.steps, curve(result), min(curve(rival)))
    elif not result.diverged:
      reached = result.steps[0]  # the baseline diverged: whatever this one has is better
    steps.append(math.inf if reached is None else reached)
  return (float(np.median(steps)), sum(map(math.isinf, steps))) if steps else (math.nan, 0)


def optimizer_rows(comparison: Outcome) -> list[list[str]]:
  """What each optimizer reached, and at which rate."""
  metric = comparison.problem.metric
  header = ["optimizer", "learning rate", "trials", f"{metric} at best checkpoint", f"{metric} at end", "mean rank"]
  header += ["steps to target", "width"]
  signed = [[comparison.problem.badness(v) for v in comparison.values(name)] for name in comparison.arms]
  ranks = mean_ranks(signed)
  table = [header]
  best_protocol, last_protocol = (dataclasses.replace(comparison.protocol, report=at) for at in ("best", "last"))
  for (name, arm), rank in zip(comparison.arms.items(), ranks, strict=True):
    best = arm.search.best
    if best is None:
      table.append([name, "none eligible", str(len(arm.search.trials)), *["–"] * 2, f"{rank:.1f}", "–", "–"])
      continue
    of = lambda protocol, arm=arm: [value_of(comparison.problem, protocol, r, "test") for r in arm.reported]
    rate = f"{best['learning_rate']:.3g}" + (" (edge)" if arm.search.at_edge else "")
    rate += "".join(f", {key} {value:.4g}" for key, value in best.items() if key != "learning_rate")
    median, censored = steps_to_target(comparison, name)
    never = f"never in {censored} of {len(arm.reported)}"
    target = "–" if math.isnan(median) else never if math.isinf(median) else f"{median:.0f}"
    target += f" ({never})" if censored and math.isfinite(median) else ""
    tuned_rate_alone = len(best) == 1
    span = "–"
    if tuned_rate_alone and not any(arm.search.dropped):  # whose rates were not trained to the end
      decades, open_ended = width(arm.search.by_rate, best["learning_rate"], WIDTH_MARGIN)
      span = ("≥ " if open_ended else "") + f"{decades:.2f}"
    values = [mean_of_survivors(values) for values in (of(best_protocol), of(last_protocol))]
    table.append([name, rate, str(len(arm.search.trials)), *values, f"{rank:.1f}", target, span])
  return table


def mean_of_survivors(values: list[float]) -> str:
  """The mean, which is never shown without the number of diverged runs where there are any."""
  alive = [value for value in values if math.isfinite(value)]
  mean = f"{np.mean(alive):.4g}" if alive else "–"
  lost = len(values) - len(alive)
  return mean + (f" ({lost} of {len(values)} diverged)" if lost else "")


def difference_rows(comparison: Outcome, differences: dict[tuple[str, str], Difference]) -> list[list[str]]:
  """What each optimizer does to the metric, in words first."""
  table = [["optimizer", "effect", "verdict", "95% interval", "p (Holm)", "p (Welch)", "trials"]]
  for (name, baseline), difference in differences.items():
    d = difference.as_measured(comparison.problem.maximize)
    p = [f"{p:.2g}" if p is not None else "–" for p in (d.adjusted_p, d.welch_p)]
    interval = f"{d.relative(d.low)} to {d.relative(d.high)}" if math.isfinite(d.low) else "–"
    trials = str(len(comparison.arms[name].search.trials)) if differences is comparison.tuned else "1"
    table.append([name, d.effect(comparison.problem.metric, baseline), d.reason, interval, *p, trials])
  return table
