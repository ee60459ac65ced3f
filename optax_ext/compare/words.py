"""What a comparison says in sentences: how it was done, what makes it doubtful, how its tables are read."""

from optax_ext.compare.progress import counted
from optax_ext.compare.protocol import Protocol
from optax_ext.compare.result import Outcome
from optax_ext.compare.statistics import ENOUGH
from optax_ext.compare.tables import WIDTH_MARGIN


def about(comparison: Outcome) -> str:
  """What was measured, how long runs were, and how each optimizer was tuned."""
  problem, protocol = comparison.problem, comparison.protocol
  schedule = protocol.schedule if isinstance(protocol.schedule, str) else "given"
  where = "at the best validation value" if protocol.report == "best" else "after the last step"
  better = "more" if problem.maximize else "less"
  return (
    f"Test {problem.metric} ({better} is better) {where}; at most {protocol.steps} steps of {problem.batch_size} "
    f"examples, evaluated every {protocol.evaluate_every}, {schedule} learning rate{_stopping(protocol)}. Each "
    f"optimizer was tuned{_tried(comparison)}{_halved(comparison)} on the validation data with "
    f"{counted(len(comparison.tuning_seeds), 'seed')}, and reported with "
    f"{counted(len(comparison.seeds), 'fresh seed')}."
  )


def at_best(comparison: Outcome) -> str:
  """The heading of the tuned comparison."""
  return f"Each at its best {'learning rate' if rates_alone(comparison) else 'settings'}"


def at_one_rate(comparison: Outcome) -> str:
  """The heading of the comparison at one rate."""
  defaults = "" if rates_alone(comparison) else ", other settings at their defaults"
  return f"All at the learning rate {comparison.single_rate:.3g}{defaults}"


ONE_RATE = "The comparison that papers make. It mixes what an optimizer does with how long its steps are."


def how_to_read(comparison: Outcome) -> list[str]:
  """What the words and columns of the tables mean, and remarks on optimizers."""
  notes = [f"{name}: {arm.optimizer.note}." for name, arm in comparison.arms.items() if arm.optimizer.note]
  return [
    "An effect is the mean over seeds of the optimizer's value less its baseline's on the same seed, in percent of "
    "the baseline's mean, with a 95% bootstrap interval over seeds. p is of the paired t test, adjusted by Holm over "
    "this table; Welch's is beside it for comparison with "
    f"papers. Below {ENOUGH} seeds there is no p. The interval is too narrow for few seeds: of normal values it holds "
    "the mean in 93% of cases with 30 seeds, in 88% with 8, in 84% with 5, and in 72% with 3.",
    f"equal: two one-sided tests and the interval put the difference inside ±{comparison.margin:.2%} of the "
    "baseline, each at 5% and not adjusted. undecided: neither that nor a difference could be shown. identical: every "
    "seed gave the same value.",
    "A diverged run (loss or metric not finite) counts as worst in ranks and in steps to target; a mean beside `k of "
    "n diverged` is of the survivors alone.",
    "steps to target: the median over seeds of the steps to the best validation value of the optimizer's own tuned "
    "baseline (the first, if it has two) on that seed (of a baseline: to its own); never: censored at the run's end, "
    "which may be early. – where "
    "only some evaluations of each run were kept.",
    f"width: decades of learning rate within {WIDTH_MARGIN:.0%} of the best mean validation value; ≥ where that "
    "holds at an end of the grid. edge: the best rate is the last one tried on its side, so that a better one may lie "
    "beyond.",
    *notes,
  ]


def warnings(comparison: Outcome) -> list[str]:
  """What makes a comparison incomplete or its numbers doubtful."""
  found = [f"{reason}; it is in no table." for reason in comparison.failed.values()]
  for name, arm in comparison.arms.items():
    runs = [result for of in arm.search.results for result in of]
    if all(result.diverged for result in runs):
      found.append(f"{name}: every run diverged, at learning rates down to {min(arm.search.by_rate):.2g}.")
    elif comparison.protocol.evaluations > 1 and all(result.best == 0 or result.diverged for result in runs):
      found.append(
        f"{name}: in no run did validation {comparison.problem.metric} become better after the first evaluation, at "
        "any rate. Look at the loss, at the rates, and at whether more or less of the metric is better."
      )
  return found


def rates_alone(comparison: Outcome) -> bool:
  """Whether nothing but learning rates was tuned: track A."""
  return all(len(trial) == 1 for arm in comparison.arms.values() for trial in arm.search.trials)


def _tried(comparison: Outcome) -> str:
  """The settings that track B drew, with the least and the most of each."""
  if rates_alone(comparison):
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
  ended = "the worse half of the rates ended after an eighth of the steps, then after a quarter, then after a half"
  return f" by successive halving ({ended})"


def _stopping(protocol: Protocol) -> str:
  """What may end a run early, or lower its learning rate."""
  early, plateau = protocol.early_stopping, protocol.plateau
  stopping = f", stopped after {early.patience} evaluations without improvement" if early else ""
  return stopping + (f", rate × {plateau.factor} after {plateau.patience} without one" if plateau else "")
