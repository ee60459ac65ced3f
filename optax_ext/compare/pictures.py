"""Three pictures of a comparison: curves, the metric against the learning rate, and intervals. They need no display."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from optax_ext.compare.result import Outcome, curve_of, limits_of_means, means_by_rate
from optax_ext.compare.statistics import ENOUGH
from optax_ext.compare.tuning import value_of

COLORS = ["black", *[f"C{i}" for i in range(10)]]


def save_pictures(comparison: Outcome, folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the pictures as PNG files."""
  paths = []
  for name, draw in [("curves", curves), ("learning_rates", learning_rates), ("intervals", intervals)]:
    paths.append(folder / f"{name}.png")
    draw(comparison).savefig(paths[-1], dpi=120)
  return paths


def curves(comparison: Outcome) -> Figure:
  """Training loss and the deciding validation metric over steps: median over seeds, in a band from least to most.

  Below 5 seeds a band would say more than is known: there each seed has a thin line.
  """
  metric = comparison.problem.metric
  figure, panels = _figure(2)
  for panel, curve in zip(panels, ["train/loss", f"validation/{metric}"], strict=True):
    for (color, line), (name, arm) in zip(_lines(comparison), comparison.arms.items(), strict=True):
      steps, values = curve_of(arm.reported, curve)
      lost = sum(result.diverged for result in arm.reported)
      label = name + (f" ({lost} of {len(arm.reported)} diverged)" if lost else "")
      if len(values):
        marker = "o" if len(steps) == 1 else None
        panel.plot(steps, np.median(values, axis=0), line, color=color, label=label, marker=marker)
        if len(values) >= ENOUGH:
          panel.fill_between(steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
        else:
          panel.plot(steps, values.T, line, color=color, alpha=0.35, linewidth=0.7)
    _style(panel, curve.replace("/", " "), "step")
  return _legend(figure, panels[0])


def learning_rates(comparison: Outcome) -> Figure:
  """The picture that decides: the tuning runs' validation metric against the learning rate; the best is circled.

  Far too large rates may lie outside (`limits_of_means`).
  """
  metric = comparison.problem.metric
  figure, (panel,) = _figure(1)
  for (color, line), (name, arm) in zip(_lines(comparison), comparison.arms.items(), strict=True):
    search = arm.search
    points = means_by_rate(comparison, name)
    if not points:
      continue
    alone = all(len(trial) == 1 for trial in search.trials)  # in track B other settings differ too: no line
    width = 1.5 if alone else 0
    panel.plot(
      list(points), list(points.values()), line, color=color, label=name, marker="o", markersize=3, linewidth=width
    )
    for trial, results in zip(search.trials, search.results, strict=True):
      values = [value_of(comparison.problem, comparison.protocol, result, "validation") for result in results]
      panel.plot([trial["learning_rate"]] * len(values), values, ".", color=color, alpha=0.3, markersize=3)
    if search.best:
      best = search.best["learning_rate"]
      panel.plot(best, points[best], "o", color=color, markersize=10, fillstyle="none")
  log, limits, rest = limits_of_means(comparison)
  _style(panel, f"mean validation {metric} over tuning seeds{rest}", "learning rate")
  panel.set_xscale("log")
  _scale(panel, log)
  if limits:
    panel.set_ylim(*limits)
  return _legend(figure, panel)


def intervals(comparison: Outcome) -> Figure:
  """Differences from the baselines with their intervals, tuned and at one rate; the margin of equality in grey."""
  kinds = [("each at its best learning rate", comparison.tuned)]
  if comparison.at_one_rate and comparison.single_rate:
    kinds.append((f"all at {comparison.single_rate:.3g}", comparison.at_one_rate))
  figure, panels = _figure(len(kinds))
  for panel, (title, differences) in zip(panels, kinds, strict=True):
    for place, difference in enumerate(differences.values()):
      d = difference.as_measured(comparison.problem.maximize)
      panel.plot([d.low, d.high], [place, place], color="C0", linewidth=2)
      panel.plot([d.mean], [place], "o", color="C0")
      panel.fill_betweenx([place - 0.3, place + 0.3], -d.margin, d.margin, color="0.85", zorder=0)
      panel.annotate(difference.reason, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    panel.axvline(0, color="0.5", linewidth=1)
    panel.set_yticks(range(len(differences)), [f"{name} − {baseline}" for name, baseline in differences])
    panel.set(
      title=title, xlabel=f"difference of test {comparison.problem.metric}", ylim=(len(differences) - 0.4, -0.6)
    )
    panel.locator_params(axis="x", nbins=6)
    panel.spines[["top", "right"]].set_visible(False)
  return figure


def _figure(panels: int) -> tuple[Figure, list[Any]]:
  figure = Figure(figsize=(6 * panels + 2, 4.5), layout="constrained")
  return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _lines(comparison: Outcome) -> list[tuple[str, str]]:
  """A color and a style of line for each optimizer."""
  return [(COLORS[i % len(COLORS)], "-" if i < len(COLORS) else "--") for i in range(len(comparison.arms))]


def _style(panel: Any, title: str, xlabel: str) -> None:
  values = np.concatenate([np.ravel(line.get_ydata()).astype(float) for line in panel.get_lines()] or [np.zeros(1)])
  values = values[np.isfinite(values)]
  panel.set(title=title, xlabel=xlabel)
  _scale(panel, log=bool(len(values) and values.min() > 0))
  panel.grid(alpha=0.3, which="both", linewidth=0.5)
  panel.spines[["top", "right"]].set_visible(False)


def _scale(panel: Any, log: bool) -> None:
  """A linear or logarithmic axis of values, with plain numbers: 0.6, not 6×10⁻¹."""
  panel.set_yscale("log" if log else "linear")
  if log:
    panel.yaxis.set_major_formatter(FuncFormatter(_plain))
    panel.yaxis.set_minor_formatter(FuncFormatter(_plain))


def _plain(value: float, place: int | None = None) -> str:
  """A tick's number, where its first digit is 1, 2, 4 or 6; between others there is no room."""
  return f"{value:g}" if f"{value:.0e}"[0] in "1246" else ""


def _legend(figure: Figure, panel: Any) -> Figure:
  if panel.get_lines():
    figure.legend(loc="outside right center", frameon=False, handles=panel.get_legend_handles_labels()[0])
  return figure
