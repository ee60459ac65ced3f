"""Reports of a comparison: a tidy table of every run, and a summary in words."""

import contextlib
import csv
import dataclasses
import json
import math
import pathlib
from typing import Any

from optax_ext.compare.result import Outcome
from optax_ext.compare.store import check_folder, writing
from optax_ext.compare.tables import difference_rows, optimizer_rows
from optax_ext.compare.words import ONE_RATE, about, at_best, at_one_rate, how_to_read, warnings

PICTURES, PAGE = ("curves.png", "learning_rates.png", "intervals.png"), "report.html"


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
  """Writes runs.csv, runs.json, comparisons.json, summary.md; with plotly report.html, with matplotlib the pictures.

  The page and the pictures of the same summary are not drawn again.
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
  drawn = [folder / name for name in (PAGE, *PICTURES)]
  if unchanged and all(path.exists() for path in drawn):
    return paths + drawn
  for draw in (_page, _pictures):
    with contextlib.suppress(ImportError):  # no plotly, no matplotlib
      paths += draw(comparison, folder)
  return paths


def _page(comparison: Outcome, folder: pathlib.Path) -> list[pathlib.Path]:
  from optax_ext.compare.page import page

  (folder / PAGE).write_text(page(comparison), "utf-8")
  return [folder / PAGE]


def _pictures(comparison: Outcome, folder: pathlib.Path) -> list[pathlib.Path]:
  from optax_ext.compare.pictures import save_pictures

  return save_pictures(comparison, folder)


def summary(comparison: Outcome) -> str:
  """The tables that answer the question, in Markdown."""
  lines = [f"# {comparison.problem.name}: {', '.join(comparison.arms)}", "", about(comparison), ""]
  lines += [f"## {at_best(comparison)}", "", *_table(difference_rows(comparison, comparison.tuned))]
  lines += ["", *_table(optimizer_rows(comparison))]
  if comparison.at_one_rate:
    lines += ["", f"## {at_one_rate(comparison)}", "", ONE_RATE, ""]
    lines += _table(difference_rows(comparison, comparison.at_one_rate))
  if doubts := warnings(comparison):
    lines += ["", "## Look at this first", "", *_listed(doubts)]
  lines += ["", "## How to read this", "", *_listed(how_to_read(comparison))]
  return "\n".join(lines) + "\n"


def _listed(sentences: list[str]) -> list[str]:
  return [f"- {sentence}" for sentence in sentences]


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
