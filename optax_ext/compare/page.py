"""A page to look at, in one file: tables that sort, pictures with the numbers under the pointer, settings, versions."""

import functools
import html
import importlib.metadata
import platform
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
import plotly.colors
import plotly.graph_objects as go
import plotly.io
import plotly.offline

import optax_ext
from optax_ext.compare.result import Outcome, curve_of, limits_of_means, means_by_rate
from optax_ext.compare.statistics import ENOUGH
from optax_ext.compare.tables import difference_rows, optimizer_rows
from optax_ext.compare.tuning import value_of
from optax_ext.compare.words import ONE_RATE, about, at_best, at_one_rate, how_to_read, rates_alone, warnings

COLORS = ["black", *plotly.colors.qualitative.D3]
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 0 auto; padding: 0 1rem 3rem; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; } h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; } .plot { height: 28rem; }
table { border-collapse: collapse; font-size: 0.9rem; } .wide + .wide { margin-top: 1.5rem; }
th, td { padding: 0.35rem 0.8rem 0.35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
thead th, tbody td { white-space: nowrap; } #settings td { white-space: normal; } summary { cursor: pointer; }
th button { font: inherit; font-weight: bold; color: inherit; background: none; border: 0; padding: 0; }
th button { cursor: pointer; }
th button::after { content: " \\2195"; color: #999; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: inherit; }
th[aria-sort=descending] button::after { content: " \\2193"; color: inherit; }
.doubts { border-left: 4px solid #d62728; padding-left: 1rem; }
"""
# Numbers before words; a cell's number is in data-number. Rows that are equal keep their order.
SORT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const compared = (a, b) => {
    const [x, y] = [a, b].map(row => row.cells[head.cellIndex]);
    const [m, n] = [x, y].map(cell => "number" in cell.dataset ? +cell.dataset.number : NaN);
    if (isNaN(m) || isNaN(n)) return isNaN(m) - isNaN(n) || x.textContent.localeCompare(y.textContent) * (up ? 1 : -1);
    return up ? m - n : n - m;
  };
  body.append(...[...body.rows].sort(compared));
});
"""


def page(comparison: Outcome) -> str:
  """The page as HTML, which loads nothing from anywhere: plotly.js is in it, 5 MB."""
  title = f"{comparison.problem.name}: {', '.join(comparison.arms)}"
  parts = [f"<h1>{_text(title)}</h1>", f"<p>{_text(about(comparison))}</p>"]
  if doubts := warnings(comparison):
    parts.append(f"<div class=doubts><h2>Look at this first</h2>{_listed(doubts)}</div>")
  parts += [f"<h2>{_text(at_best(comparison))}</h2>", _table("effects", difference_rows(comparison, comparison.tuned))]
  parts.append(_table("optimizers", optimizer_rows(comparison)))
  parts += ["<h2>Which learning rate</h2>", _plot("learning_rates", learning_rates(comparison))]
  metric = comparison.problem.metric
  for name, title, curve in (
    ("train", "Training loss", "train/loss"),
    ("validation", f"Validation {metric}", f"validation/{metric}"),
  ):
    parts += [f"<h2>{_text(title)}</h2>", _plot(name, curves(comparison, curve))]
  parts += [f"<h2>Each seed's test {_text(metric)}</h2>", _plot("seeds", seeds(comparison))]
  if comparison.at_one_rate:
    parts += [f"<h2>{_text(at_one_rate(comparison))}</h2>", f"<p>{ONE_RATE}</p>"]
    parts.append(_table("one_rate", difference_rows(comparison, comparison.at_one_rate)))
  parts += [
    "<h2>Every trial</h2>",
    f"<details><summary>Show</summary>{_table('trials', _trials(comparison))}</details>",
  ]
  parts += ["<h2>Settings and versions</h2>", _facts(_settings(comparison))]
  parts += ["<h2>How to read this</h2>", _listed(how_to_read(comparison))]
  head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
  head += f'<link rel="icon" href="data:,"><title>{_text(title)}</title><style>{STYLE}</style>'
  head += f"<script>{plotly.offline.get_plotlyjs()}</script>"
  body = "\n".join([*parts, f"<script>{SORT}</script>"])
  return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def learning_rates(comparison: Outcome) -> go.Figure:
  """The picture that decides: of each optimizer the means over tuning seeds, the best circled, and the runs as dots."""
  figure = go.Figure()
  for i, (name, arm) in enumerate(comparison.arms.items()):
    search, points = arm.search, means_by_rate(comparison, name)
    alone = all(len(trial) == 1 for trial in search.trials)  # in track B other settings differ too: no line
    mean = "%{x:.3g}: mean %{y:.4g}<extra>" + _text(name) + "</extra>"
    look = {"mode": "lines+markers" if alone else "markers", "hovertemplate": mean, **_look(i, name)}
    figure.add_scatter(x=list(points), y=list(points.values()), **look)
    runs = [
      (trial["learning_rate"], run) for trial, of in zip(search.trials, search.results, strict=True) for run in of
    ]
    values = [value_of(comparison.problem, comparison.protocol, run, "validation") for _, run in runs]
    said = [f"seed {run.seed}, {run.steps[-1]} steps" for _, run in runs]
    _dots(figure, i, name, [rate for rate, _ in runs], values, said)
    if search.best:
      rate = search.best["learning_rate"]
      ring = {"size": 16, "symbol": "circle-open", "color": _color(i), "line": {"width": 2}}
      figure.add_scatter(x=[rate], y=[points[rate]], mode="markers", marker=ring, hoverinfo="skip", **_along(name))
  log, limits, rest = limits_of_means(comparison)
  title = f"mean validation {comparison.problem.metric} over tuning seeds{rest}"
  _axes(figure, "learning rate", title, limits if log else None)
  figure.update_xaxes(type="log", dtick=1, tickformat="~g", minor={"dtick": "D1", "ticks": "outside"})
  if limits:
    figure.update_yaxes(range=np.log10(limits).tolist() if log else limits)
  return figure


def curves(comparison: Outcome, curve: str) -> go.Figure:
  """A line of each optimizer's median over reporting seeds, in a band from least to most.

  Below 5 seeds a band would say more than is known: there each seed has a thin line.
  """
  figure, seen = go.Figure(), []
  for i, (name, arm) in enumerate(comparison.arms.items()):
    steps, values = curve_of(arm.reported, curve)
    if not len(values):
      continue
    seen += values[np.isfinite(values)].tolist()
    if len(values) >= ENOUGH:
      band = {"x": [*steps, *steps[::-1]], "y": [*values.min(axis=0), *values.max(axis=0)[::-1]], "fill": "toself"}
      figure.add_scatter(**band, mode="none", fillcolor=_color(i), opacity=0.15, hoverinfo="skip", **_along(name))
    else:
      for run in values:
        thin = {"line": {"color": _color(i), "width": 1}, "opacity": 0.4, "mode": "lines", "hoverinfo": "skip"}
        figure.add_scatter(x=steps, y=run, **thin, **_along(name))
    median = "step %{x}: median %{y:.4g}<extra>" + _text(name) + "</extra>"
    mode = "lines" if len(steps) > 1 else "markers"
    figure.add_scatter(x=steps, y=np.median(values, axis=0), mode=mode, hovertemplate=median, **_look(i, name))
  positive = seen and min(seen) > 0
  _axes(figure, "step", curve.replace("/", " "), (min(seen), max(seen)) if positive else None)
  return figure


def seeds(comparison: Outcome) -> go.Figure:
  """Each reporting run as a dot, with its seed and its best step under the pointer."""
  figure = go.Figure()
  for i, (name, arm) in enumerate(comparison.arms.items()):
    values = comparison.values(name)
    said = [f"seed {run.seed}, best at step {run.steps[run.best]} of {run.steps[-1]}" for run in arm.reported]
    shift = np.linspace(-0.2, 0.2, len(arm.reported)) if len(arm.reported) > 1 else np.zeros(len(arm.reported))
    _dots(figure, i, name, (i + shift).tolist(), values[: len(arm.reported)], said, size=9)
  _axes(figure, "", f"test {comparison.problem.metric}", None)
  figure.update_xaxes(tickvals=list(range(len(comparison.arms))), ticktext=list(map(_text, comparison.arms)))
  return figure


def _dots(
  figure: go.Figure, i: int, name: str, x: Sequence[float], y: Sequence[float], said: Sequence[str], size: int = 5
) -> None:
  """Runs; those that diverged have no value and are left out."""
  hover = "%{customdata}: %{y:.4g}<extra>" + _text(name) + "</extra>"
  marker = {"color": _color(i), "size": size, "opacity": 0.5}
  figure.add_scatter(x=x, y=y, customdata=said, mode="markers", marker=marker, hovertemplate=hover, **_along(name))


def _color(i: int) -> str:
  return COLORS[i % len(COLORS)]


def _look(i: int, name: str) -> dict[str, Any]:
  line = {"color": _color(i), "dash": "solid" if i < len(COLORS) else "dash"}
  return {"name": _text(name), "legendgroup": name, "line": line, "marker": {"color": _color(i)}}


def _along(name: str) -> dict[str, Any]:
  """Of what a click in the legend hides with the optimizer."""
  return {"legendgroup": name, "showlegend": False}


def _axes(figure: go.Figure, x: str, y: str, span: tuple[float, float] | None) -> None:
  """Titles, and a logarithmic axis of values where they `span` from one positive number to another."""
  legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
  figure.update_layout(template="plotly_white", legend=legend, margin={"l": 70, "r": 10, "t": 30, "b": 50})
  figure.update_xaxes(title=x)
  figure.update_yaxes(title=_text(y))
  if span:
    ticks = "D2" if span[1] < 1e4 * span[0] else 1  # 1, 2, 5, 10, or decades alone
    figure.update_yaxes(type="log", tickformat="~g", dtick=ticks)


def _plot(name: str, figure: go.Figure) -> str:
  config = {"responsive": True, "displayModeBar": False}
  inside = plotly.io.to_html(
    figure, config, include_plotlyjs=False, full_html=False, div_id=name, default_height="100%"
  )
  return f'<div class="plot">{inside}</div>'


def _table(name: str, lines: Sequence[Sequence[str]]) -> str:
  """A table of which a click on a heading sorts the rows."""
  header, *body = lines
  heads = "".join(f"<th><button>{_text(cell)}</button></th>" for cell in header)
  rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in body)
  return f'<div class="wide"><table id="{name}"><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>'


def _cell(text: str) -> str:
  """With the number that it begins with; "5% less" is below 0."""
  number = re.match(r"(?:≥ )?([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
  if not number:
    return f"<td>{_text(text)}</td>"
  value = -float(number[1]) if " less " in text else float(number[1])
  return f'<td data-number="{value:g}">{_text(text)}</td>'


def _facts(rows: Sequence[Sequence[str]]) -> str:
  lines = [f"<tr><th>{_text(what)}</th><td>{_text(value)}</td></tr>" for what, value in rows]
  return f'<div class="wide"><table id="settings">{"".join(lines)}</table></div>'


def _trials(comparison: Outcome) -> list[list[str]]:
  """Every trial of the tuning, and what came of it."""
  metric = comparison.problem.metric
  table = [["optimizer", "learning rate", f"mean validation {metric}", "steps", "what came of it", "other settings"]]
  for name, arm in comparison.arms.items():
    search = arm.search
    dropped = search.dropped or [False] * len(search.trials)
    for trial, results, badness, out in zip(search.trials, search.results, search.badness, dropped, strict=True):
      lost = sum(result.diverged for result in results)
      came = f"{lost} of {len(results)} diverged" if lost else "ended early, being worse" if out else "trained"
      came = "the best" if trial == search.best else came
      others = ", ".join(f"{key} {value:.4g}" for key, value in trial.items() if key != "learning_rate")
      mean = f"{comparison.problem.badness(badness):.4g}" if np.isfinite(badness) else "–"
      steps = str(max(result.steps[-1] for result in results))
      table.append([name, f"{trial['learning_rate']:.4g}", mean, steps, came, others])
  return [row[:-1] for row in table] if rates_alone(comparison) else table


def _settings(comparison: Outcome) -> list[list[str]]:
  protocol, problem, listed = comparison.protocol, comparison.problem, lambda of: ", ".join(map(str, of))
  schedule = protocol.schedule if isinstance(protocol.schedule, str) else "a function of the count"
  warmup = f", warm-up {protocol.warmup:g} of the steps" if schedule == "cosine" else ""
  devices = jax.local_devices()
  return [
    ["steps of a run, at most", f"{protocol.steps}"],
    ["steps between evaluations", f"{protocol.evaluate_every}"],
    ["examples in a batch", f"{problem.batch_size}"],
    ["schedule of the learning rate", schedule + warmup],
    ["early stopping", f"{protocol.early_stopping or 'none'}"],
    ["plateau", f"{protocol.plateau or 'none'}"],
    ["reported", f"{protocol.report} value of each run"],
    ["deciding metric", f"{problem.metric}, {'more' if problem.maximize else 'less'} is better"],
    ["tuning seeds", listed(comparison.tuning_seeds)],
    ["reporting seeds", listed(comparison.seeds)],
    ["equal", f"within {comparison.margin:.2%} of the baseline's mean"],
    ["batching", comparison.batching],
    ["devices", f"{len(devices)} × {devices[0].device_kind}"],
    ["optax_ext", optax_ext.__version__],
    ["optax", optax.__version__],
    ["jax, jaxlib", f"{jax.__version__}, {importlib.metadata.version('jaxlib')}"],
    ["Python", platform.python_version()],
  ]


def _listed(sentences: Sequence[str]) -> str:
  items = "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)
  return "<ul>" + re.sub("`(.*?)`", r"<code>\1</code>", items) + "</ul>"


_text = functools.partial(html.escape, quote=True)
