"""Reports of a comparison: a tidy table of every run, and a summary in words."""

import csv
import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from optax_ext.compare.grid import width
from optax_ext.compare.progress import counted
from optax_ext.compare.protocol import Protocol
from optax_ext.compare.result import Outcome
from optax_ext.compare.statistics import ENOUGH, Difference, mean_ranks, steps_to
from optax_ext.compare.store import check_folder, writing
from optax_ext.compare.tuning import value_of

WIDTH_MARGIN = 0.05
PICTURES = ("curves.png", "learning_rates.png", "intervals.png")


def rows(comparison: Outcome, curves: bool = False) -> list[dict[str, Any]]:
  """One row a run: where it belongs, what it was, and every metric at its best checkpoint and at its end."""
  table = []
  for name, arm in comparison.arms.items():
    tuning = [result for results in arm.search.results for result in results]
    for phase, results in [("tuning", tuning), ("reporting", arm.reported), ("one rate", arm.single)]:
      for result in results:
        row = {
          "problem": comparison.problem.name,
          "optimizer": name,
          "phase": phase,
          "seed": result.seed,
          **result.trial,
        }
        row |= {"diverged": result.diverged, "stopped_early": result.stopped_early, "steps": result.steps[-1]}
        row |= {"best_step": result.steps[result.best]}
        for curve, values in result.curves.items():
          row |= {f"{curve} best": values[result.best], f"{curve} last": values[-1]}
        table.append(row | ({"curves": result.curves} if curves else {}))
  return table


def save(comparison: Outcome, folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes runs.csv, runs.json, comparisons.json, summary.md and, where matplotlib is installed, the pictures.

  Pictures of the same summary are not drawn again.
  """
  check_folder(folder)
  with writing(folder):
    return _write(comparison, folder)


def _write(comparison: Outcome, folder: pathlib.Path) -> list[pathlib.Path]:
  table = rows(comparison)
  columns = list(dict.fromkeys(name for row in table for name in row))
  with (folder / "runs.csv").open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(table)
  found = {"tuned": comparison.tuned, "at one rate": comparison.at_one_rate}
  differences = [
    {"comparison": kind, "optimizer": pair[0], "baseline": pair[1], "verdict": d.verdict}
    | dataclasses.asdict(d.as_measured(comparison.problem.maximize))
    for kind, of in found.items()
    for pair, d in of.items()
  ]
  for file_name, content in [("runs.json", rows(comparison, curves=True)), ("comparisons.json", differences)]:
    (folder / file_name).write_text(json.dumps(_without_nan(content), indent=1), "utf-8")
  text, path = summary(comparison), folder / "summary.md"
  unchanged = path.exists() and path.read_text("utf-8") == text
  path.write_text(text, "utf-8")
  paths = [folder / name for name in ("runs.csv", "runs.json", "comparisons.json", "summary.md")]
  pictures = [folder / name for name in PICTURES]
  if unchanged and all(picture.exists() for picture in pictures):
    return paths + pictures
  try:
    from optax_ext.compare.pictures import save_pictures
  except ImportError:  # no matplotlib
    return paths
  return paths + save_pictures(comparison, folder)


def summary(comparison: Outcome) -> str:
  """The tables that answer the question, in Markdown."""
  problem, protocol = comparison.problem, comparison.protocol
  schedule = protocol.schedule if isinstance(protocol.schedule, str) else "given"
  where = "at the best validation value" if protocol.report == "best" else "after the last step"
  better = "more" if problem.maximize else "less"
  lines = [
    f"# {problem.name}: {', '.join(comparison.arms)}",
    "",
    f"Test {problem.metric} ({better} is better) {where}; at most {protocol.steps} steps of {problem.batch_size} "
    f"examples, evaluated every {protocol.evaluate_every}, {schedule} learning rate{_stopping(protocol)}. Each "
    f"optimizer was tuned{_tried(comparison)}{_halved(comparison)} on the validation data with "
    f"{counted(len(comparison.tuning_seeds), 'seed')}, and reported with "
    f"{counted(len(comparison.seeds), 'fresh seed')}.",
    "",
    f"## Each at its best {'learning rate' if _rates_alone(comparison) else 'settings'}",
    "",
    *_table(_difference_rows(comparison, comparison.tuned)),
    "",
    *_table(_optimizer_rows(comparison)),
  ]
  if comparison.at_one_rate:
    lines += [
      "",
      f"## All at the learning rate {comparison.single_rate:.3g}"
      + ("" if _rates_alone(comparison) else ", other settings at their defaults"),
      "",
      "The comparison that papers make. It mixes what an optimizer does with how long its steps are.",
      "",
      *_table(_difference_rows(comparison, comparison.at_one_rate)),
    ]
  notes = [f"- {name}: {arm.optimizer.note}." for name, arm in comparison.arms.items() if arm.optimizer.note]
  if warnings := _warnings(comparison):
    lines += ["", "## Look at this first", "", *warnings]
  lines += [
    "",
    "## How to read this",
    "",
    "- An effect is the mean over seeds of the optimizer's value less its baseline's on the same seed, in percent of "
    "the baseline's mean, with a 95% bootstrap interval over seeds. p is of the paired t test, adjusted by Holm over "
    "this table; Welch's is beside it for comparison with "
    f"papers. Below {ENOUGH} seeds there is no p. The interval is too narrow for few seeds: of normal values it holds "
    "the mean in 93% of cases with 30 seeds, in 88% with 8, in 84% with 5, and in 72% with 3.",
    f"- equal: two one-sided tests and the interval put the difference inside ±{comparison.margin:.2%} of the "
    "baseline, each at 5% and not adjusted. undecided: neither that nor a difference could be shown. identical: every "
    "seed gave the same value.",
    "- A diverged run (loss or metric not finite) counts as worst in ranks and in steps to target; a mean beside `k of "
    "n diverged` is of the survivors alone.",
    "- steps to target: the median over seeds of the steps to the best validation value of the optimizer's own tuned "
    "baseline (the first, if it has two) on that seed (of a baseline: to its own); never: censored at the run's end, "
    "which may be early. – where "
    "only some evaluations of each run were kept.",
    f"- width: decades of learning rate within {WIDTH_MARGIN:.0%} of the best mean validation value; ≥ where that "
    "holds at an end of the grid. edge: the best rate is the last one tried on its side, so that a better one may lie "
    "beyond.",
    *notes,
  ]
  return "\n".join(lines) + "\n"


def _warnings(comparison: Outcome) -> list[str]:
  """What makes a comparison incomplete or its numbers doubtful."""
  found = [f"- {reason}; it is in no table." for reason in comparison.failed.values()]
  for name, arm in comparison.arms.items():
    runs = [result for of in arm.search.results for result in of]
    if all(result.diverged for result in runs):
      found.append(f"- {name}: every run diverged, at learning rates down to {min(arm.search.by_rate):.2g}.")
    elif comparison.protocol.evaluations > 1 and all(result.best == 0 or result.diverged for result in runs):
      found.append(
        f"- {name}: in no run did validation {comparison.problem.metric} become better after the first evaluation, at "
        "any rate. Look at the loss, at the rates, and at whether more or less of the metric is better."
      )
  return found


def _rates_alone(comparison: Outcome) -> bool:
  """Whether nothing but learning rates was tuned: track A."""
  return all(len(trial) == 1 for arm in comparison.arms.values() for trial in arm.search.trials)


def _tried(comparison: Outcome) -> str:
  """The settings that track B drew, with the least and the most of each."""
  if _rates_alone(comparison):
    return ""
  ranges = []
  for name, arm in comparison.arms.items():
    drawn = {key: [trial[key] for trial in arm.search.trials] for key in arm.search.trials[0]}
    ranges.append(f"{name}: " + ", ".join(f"{key} {min(of):.3g} to {max(of):.3g}" for key, of in drawn.items()))
  return f" by quasi-random trials ({'; '.join(ranges)})"


def _halved(comparison: Outcome) -> str:
  """How rates were dropped on the way: quick=True."""
  if not any(any(arm.search.dropped) for arm in comparison.arms.values()):
    return ""
  return " by successive halving (the worse half of the rates ended after a quarter of the steps, then after a half)"


def _stopping(protocol: Protocol) -> str:
  """What may end a run early, or lower its learning rate."""
  early, plateau = protocol.early_stopping, protocol.plateau
  stopping = f", stopped after {early.patience} evaluations without improvement" if early else ""
  return stopping + (f", rate × {plateau.factor} after {plateau.patience} without one" if plateau else "")


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


def _optimizer_rows(comparison: Outcome) -> list[list[str]]:
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


def _difference_rows(comparison: Outcome, differences: dict[tuple[str, str], Difference]) -> list[list[str]]:
  """What each optimizer does to the metric, in words first."""
  table = [["optimizer", "effect", "verdict", "95% interval", "p (Holm)", "p (Welch)", "trials"]]
  for (name, baseline), difference in differences.items():
    d = difference.as_measured(comparison.problem.maximize)
    p = [f"{p:.2g}" if p is not None else "–" for p in (d.adjusted_p, d.welch_p)]
    interval = f"{d.relative(d.low)} to {d.relative(d.high)}" if math.isfinite(d.low) else "–"
    trials = str(len(comparison.arms[name].search.trials)) if differences is comparison.tuned else "1"
    table.append([name, d.effect(comparison.problem.metric, baseline), d.reason, interval, *p, trials])
  return table


def _table(lines: list[list[str]]) -> list[str]:
  header, *body = lines
  return [f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *body]]


def _without_nan(content: Any) -> Any:
  """JSON has no NaN and no infinity: null."""
  if isinstance(content, dict):
    return {key: _without_nan(value) for key, value in content.items()}
  if isinstance(content, list):
    return [_without_nan(value) for value in content]
  return None if isinstance(content, float) and not math.isfinite(content) else content
