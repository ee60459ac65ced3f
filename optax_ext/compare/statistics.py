"""Statistics of two optimizers on the same seeds. All values are signed so that less is better."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from optax_ext.compare.progress import counted

ENOUGH = 5  # reporting seeds; below, an interval and no p-value


@dataclasses.dataclass(frozen=True)
class Difference:
  """An optimizer's values less its baseline's, seed by seed.

  Attributes:
    mean: Of the differences of the pairs in which neither run diverged; NaN where there is none.
    low: 95% bootstrap interval over seeds,
    high: its upper end.
    p: Of the paired t test that the mean difference is 0; `None` below 5 seeds, for identical runs, and where a run
      diverged.
    welch_p: Of Welch's t test of the same values, which ignores the pairing, as papers do.
    equal_p: Of two one-sided paired t tests that the mean difference is inside ± `margin`; the larger of their p.
    margin: What counts as equal, in units of the values.
    baseline_mean: Of the baseline's values in these pairs.
    pairs: In which neither diverged.
    diverged: Of the optimizer's runs.
    baseline_diverged: Of the baseline's runs.
    seeds: Runs of each.
    identical: Whether all values are the same.
    adjusted_p: `p` after Holm's adjustment within the experiment; of a comparison by itself `p`.
    maximize: Whether more is better; else less.
    agreeing: Pairs whose difference has the sign of the mean.
  """

  mean: float
  low: float
  high: float
  p: float | None
  welch_p: float | None
  equal_p: float | None
  margin: float
  baseline_mean: float
  pairs: int
  diverged: int
  baseline_diverged: int
  seeds: int
  identical: bool
  adjusted_p: float | None = None
  maximize: bool = False
  agreeing: int = 0

  def as_measured(self, maximize: bool) -> "Difference":
    """The difference with the metric's own signs, where more is better."""
    if not maximize:
      return self
    signs = {"mean": -self.mean, "low": -self.high, "high": -self.low, "baseline_mean": -self.baseline_mean}
    return dataclasses.replace(self, **signs, maximize=not self.maximize)

  def effect(self, metric: str, baseline: str) -> str:
    """The difference in words: "1.7% less loss than adam, on 4 of 5 seeds"."""
    if not self.pairs:
      return "–"
    if self.mean == 0:
      return f"the same {metric} as {baseline}"
    seeds = "all seeds" if self.agreeing == self.seeds > 1 else f"{self.agreeing} of {self.seeds} seeds"
    more = "more" if self.mean > 0 else "less"
    return f"{self.relative(self.mean).lstrip('+-')} {more} {metric} than {baseline}, on {seeds}"

  def relative(self, value: float) -> str:
    """A difference in percent of the baseline's mean, with its sign; the plain difference where that mean is 0."""
    if not self.baseline_mean or not math.isfinite(value):
      return f"{value:+.3g}" if math.isfinite(value) else "–"
    percent = 100 * value / abs(self.baseline_mean)
    return f"{percent:+.0f}%" if abs(percent) >= 20 else f"{percent:+.1f}%" if abs(percent) >= 1 else f"{percent:+.2f}%"

  @property
  def reason(self) -> str:
    """The verdict, with a remark where too few seeds could decide nothing."""
    few = self.verdict == "undecided" and self.seeds < ENOUGH
    return f"undecided: {counted(self.seeds, 'seed')}, {ENOUGH} are needed" if few else self.verdict

  @property
  def verdict(self) -> str:
    """What can be said: "identical", "equal", "better", "worse", "undecided", or how many runs diverged.

    "equal" needs both one-sided tests at 5% and the interval inside the margin; "better" and "worse" need an adjusted
    p below 5% and an interval that excludes 0. A difference may be real and inside the margin: then it is "equal".
    """
    if self.identical:
      return "identical"
    if self.diverged or self.baseline_diverged:
      return f"{self.diverged} of {self.seeds} diverged (baseline {self.baseline_diverged})"
    if self.equal_p is not None and self.equal_p < 0.05 and -self.margin < self.low and self.high < self.margin:
      return "equal"
    if self.adjusted_p is not None and self.adjusted_p < 0.05 and not self.low <= 0 <= self.high:
      return "better" if (self.mean > 0) == self.maximize else "worse"
    return "undecided"


def paired(values: Sequence[float], baseline: Sequence[float], relative_margin: float = 0.005) -> Difference:
  """Compares two optimizers on the same seeds. A value that is not finite counts as a diverged run.

  Args:
    values: One of each seed.
    baseline: One of each seed, in the same order.
    relative_margin: What counts as equal, relative to the size of the baseline's mean.
  """
  a, b = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
  if a.shape != b.shape or a.ndim != 1 or not len(a):
    raise ValueError(f"Paired values must be two lists of the same length, but are of shapes {a.shape} and {b.shape}.")
  both = np.isfinite(a) & np.isfinite(b)
  difference = (a - b)[both]
  all_finite = bool(both.all())
  identical = all_finite and not difference.any()
  baseline_mean = float(np.mean(b[both])) if both.any() else math.nan
  margin = relative_margin * abs(baseline_mean)
  low, high = bootstrap_interval(difference)
  p = welch_p = equal_p = None
  if all_finite and len(a) >= ENOUGH and not identical:
    p = _t_test(difference, "two-sided")
    welch_p = _welch(a, b)
    equal_p = max(_t_test(difference + margin, "greater"), _t_test(difference - margin, "less"))
  return Difference(
    mean=float(difference.mean()) if len(difference) else math.nan,
    low=low,
    high=high,
    p=p,
    welch_p=welch_p,
    equal_p=equal_p,
    margin=margin,
    baseline_mean=baseline_mean,
    pairs=int(both.sum()),
    diverged=int((~np.isfinite(a)).sum()),
    baseline_diverged=int((~np.isfinite(b)).sum()),
    seeds=len(a),
    identical=identical,
    adjusted_p=p,
    agreeing=int(np.sum(np.sign(difference) == np.sign(difference.mean()))) if len(difference) else 0,
  )


def bootstrap_interval(values: Sequence[float] | np.ndarray, resamples: int = 9999) -> tuple[float, float]:
  """95% interval of the mean over seeds, bias-corrected and accelerated; NaN for fewer than 2 values."""
  values = np.asarray(values, np.float64)
  if len(values) < 2:
    return math.nan, math.nan
  if np.ptp(values) == 0:
    return float(values[0]), float(values[0])
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # BCa fails where values differ by rounding alone
    for method in ("BCa", "percentile"):
      interval = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, method=method, rng=np.random.default_rng(0)
      ).confidence_interval
      if math.isfinite(interval.low + interval.high):
        break
  return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
  """Holm's step-down adjustment: p₍ᵢ₎ ← max over j ≤ i of min(1, (n − j + 1)·p₍ⱼ₎), for p₍₁₎ ≤ … ≤ p₍ₙ₎."""
  order = np.argsort(p_values, kind="stable")
  adjusted = np.empty(len(p_values))
  adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1)))
  return adjusted.tolist()


def adjust(differences: Sequence[Difference]) -> list[Difference]:
  """The differences of one experiment with Holm-adjusted p-values; those without a p-value are no hypotheses."""
  tested = [i for i, difference in enumerate(differences) if difference.p is not None]
  adjusted = dict(zip(tested, holm([differences[i].p or 0.0 for i in tested]), strict=True))
  return [dataclasses.replace(d, adjusted_p=adjusted.get(i)) for i, d in enumerate(differences)]


def mean_ranks(values: Sequence[Sequence[float]]) -> list[float]:
  """Each optimizer's rank (1 is best), averaged over seeds; equal values share a rank, diverged runs share the worst.

  Args:
    values: One row an optimizer, one column a seed.
  """
  table = np.asarray(values, np.float64)
  table = np.where(np.isfinite(table), table, np.inf)
  return scipy.stats.rankdata(table, axis=0).mean(axis=1).tolist()


def steps_to(steps: Sequence[int], values: Sequence[float], target: float) -> int | None:
  """The first of `steps` at which the value is at most `target`; `None` where it never is (censored)."""
  return next((step for step, value in zip(steps, values, strict=True) if value <= target), None)


def _t_test(values: np.ndarray, alternative: str) -> float:
  """One-sample t test of mean 0. Values without spread are certain: p is 0 on the side of the alternative, else 1."""
  if np.ptp(values) == 0:
    agrees = {"two-sided": values[0] != 0, "greater": values[0] > 0, "less": values[0] < 0}[alternative]
    return 0.0 if agrees else 1.0
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # nearly equal values lose digits of an already tiny p
    test: Any = scipy.stats.ttest_1samp(values, 0, alternative=alternative)
  return float(test.pvalue)


def _welch(a: np.ndarray, b: np.ndarray) -> float:
  if np.ptp(a) == 0 and np.ptp(b) == 0:
    return float(a[0] == b[0])
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)
    test: Any = scipy.stats.ttest_ind(a, b, equal_var=False)
  return float(test.pvalue)
