"""What the report reads of the raw results, and how it shows tables and pictures."""

import collections
import csv
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from optax_ext.compare import paired
from optax_ext.compare.run import Result

PHASES = {"tuned": "reporting", "at one rate": "one rate"}  # comparisons, as runs.csv names their runs

AtRates = Mapping[str, tuple[float, Sequence[float]]]  # optimizer: a learning rate, and a metric of each run at it


class Pages:
  """The folder of raw results, how the report links to it, and what is not in it yet."""

  def __init__(self, folder: pathlib.Path, beside: pathlib.Path):
    self.folder, self.beside = folder, beside
    self.missing: list[str] = []
    self.read: dict[str, dict[tuple[str, str, str], dict[str, Any]]] = {}

  def complete(self, name: str) -> bool:
    """Whether a tuned comparison is: its summary is written last."""
    return (self.folder / name / "summary.md").exists()

  def published(self, name: str, command: str = "") -> dict[str, list[Result]]:
    """Reporting runs at the rates that the facts name; none before all are there, which is noted for a command."""
    facts = self.facts(name)
    runs = self.reporting(name, facts["rates"])
    done, wanted = sum(len(of) for of in runs.values()), facts["seeds"] * len(facts["rates"])
    if done and done == wanted:
      return runs
    if command:
      self.note_missing(command, done, f" of {wanted}")
    return {}

  def note_missing(self, command: str, done: int, of: str = "") -> None:
    """Notes what has not run, or not to its end."""
    how = f"interrupted after {done}{of} runs" if done else "not begun"
    self.missing.append(f"`python benchmarks/papers/{command}`: {how}")

  def facts(self, name: str) -> dict[str, Any]:
    """What the script noted beside the runs: rates and seeds that were fixed beforehand; none where it did not."""
    path = self.folder / name / "facts.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {"seeds": 0, "rates": {}}

  def lines(self, name: str) -> list[dict[str, Any]]:
    """Finished runs, without the line that names the experiment and without one whose writing was interrupted."""
    path = self.folder / name / "finished.jsonl"
    text = path.read_text("utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()[1:]]

  def reporting(self, name: str, rates: Mapping[str, float]) -> dict[str, list[Result]]:
    """Reporting runs of these optimizers at these learning rates, in the order of their seeds."""
    runs: dict[str, list[Result]] = {optimizer: [] for optimizer in rates}
    for line in self.lines(name):
      optimizer, _, _, phase = line["key"].split("|")
      if phase == "report" and line["result"]["trial"]["learning_rate"] == rates.get(optimizer):
        runs[optimizer].append(Result(**line["result"]))
    return {optimizer: sorted(of, key=lambda result: result.seed) for optimizer, of in runs.items()}

  def begun(self, name: str, without: Iterable[str] = ()) -> int:
    """How many runs of a tuned comparison are there, some optimizers' and a published one's in that folder aside."""
    lines = [line for line in self.lines(name) if line["key"].split("|")[0] not in without]
    rates = {optimizer: rate for optimizer, rate in self.facts(name)["rates"].items() if optimizer not in without}
    return len(lines) - sum(len(of) for of in self.reporting(name, rates).values())

  def best(self, name: str) -> dict[str, list[Result]]:
    """Reporting runs of a tuned comparison, each optimizer at its best learning rate."""
    rates = self.values(name, "tuned", "learning_rate")
    return self.reporting(name, {optimizer: of[0] for optimizer, of in rates.items()})

  def tables(self, name: str) -> list[str]:
    """What was compared how, the tables of a tuned comparison, and its picture."""
    text = (self.folder / name / "summary.md").read_text("utf-8")
    how = text.split("\n\n")[1]
    body = text[text.index("\n## ") : text.index("## How to read this")].replace("\n## ", "\n#### ")
    picture = self.link(self.folder / name / "learning_rates.png")
    notes = [line for line in text.splitlines() if "outside the method's conditions" in line]
    return [
      how,
      "",
      *body.strip().splitlines(),
      "",
      *notes,
      "",
      f"![{name}: metric against learning rate]({picture})",
      "",
    ]

  def legend(self) -> list[str]:
    """How to read those tables, as every summary has it."""
    for path in sorted(self.folder.glob("*/*/summary.md")):
      lines = path.read_text("utf-8").partition("## How to read this\n\n")[2].splitlines()
      return [line for line in lines if "outside the method's conditions" not in line]
    return []

  def differences(self, name: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """All differences of a tuned comparison, by optimizer, baseline and comparison ("tuned" or "at one rate").

    None before it is complete. "said" is the verdict, and whether all seeds agree where it is undecided.
    """
    if name not in self.read and self.complete(name):
      column, self.read[name] = self.deciding(name), {}
      values = {comparison: self.values(name, comparison, column) for comparison in PHASES}
      for of in json.loads((self.folder / name / "comparisons.json").read_text("utf-8")):
        pair, compared = (of["optimizer"], of["baseline"]), values[of["comparison"]]
        self.read[name][(*pair, of["comparison"])] = of | {
          "said": said(of["verdict"], *(compared[arm] for arm in pair))
        }
    return self.read.get(name, {})

  def deciding(self, name: str) -> str:
    """The column of runs.csv that decides, as the summary says."""
    text = (self.folder / name / "summary.md").read_text("utf-8")
    metric, where = re.findall(r"^Test (\S+) \(.*\) (after the last step|at the best validation value);", text, re.M)[0]
    return f"test/{metric} {'last' if where == 'after the last step' else 'best'}"

  def values(self, name: str, comparison: str, column: str) -> dict[str, list[float]]:
    """A column of runs.csv by optimizer, in the order of the seeds; NaN where a run diverged."""
    values = collections.defaultdict(list)
    with (self.folder / name / "runs.csv").open(encoding="utf-8", newline="") as file:
      for row in csv.DictReader(file):
        if row["phase"] == PHASES[comparison]:
          values[row["optimizer"]].append(math.nan if row["diverged"] == "True" else float(row[column]))
    return values

  def verdict(self, name: str, optimizer: str, baseline: str, comparison: str) -> str:
    """One of them in a cell of a table, in % of the baseline; `comparison` is "tuned" or "at one rate"."""
    of = self.differences(name).get((optimizer, baseline, comparison))
    if of is None:
      return "not run yet"
    numbers = [of[key] for key in ("mean", "low", "high", "baseline_mean")]
    return of["said"] if None in numbers else f"{percent(*numbers)}, {of['said']}"

  def in_words(self, name: str, optimizers: Iterable[str]) -> list[str]:
    """A sentence for each of these optimizers: what one learning rate shows, and what tuning leaves."""
    found = self.differences(name)
    sentences = []
    for optimizer, baseline in dict.fromkeys(pair[:2] for pair in found if pair[0] in optimizers):
      parts = [
        f"{where} {in_words(found[optimizer, baseline, comparison])}"
        for comparison, where in [("at one rate", "at one learning rate"), ("tuned", "each tuned")]
        if (optimizer, baseline, comparison) in found
      ]
      sentences.append(f"- {optimizer} against {baseline}: {'; '.join(parts)}.")
    return [*sentences, ""]

  def at_rates(self, name: str, comparison: str) -> AtRates:
    """The learning rate and the deciding values of every optimizer."""
    values, rates = (self.values(name, comparison, of) for of in (self.deciding(name), "learning_rate"))
    return {optimizer: (rates[optimizer][0], of) for optimizer, of in values.items()}

  def link(self, path: pathlib.Path) -> str:
    """A path as the report names it."""
    return pathlib.Path(os.path.relpath(path, self.beside)).as_posix()

  def picture(self, name: str, figure: Figure, what: str) -> list[str]:
    """Saves a figure and shows it."""
    path = self.folder / name
    figure.savefig(path, dpi=110)
    return [f"![{what}]({self.link(path)})", ""]

  def tuned(
    self, name: str, title: str, command: str, optimizers: Sequence[str], remarks: Sequence[str] = ()
  ) -> list[str]:
    """The part of the report about one tuned comparison."""
    if not self.complete(name):
      self.note_missing(command, self.begun(name))
      return []
    said = [*self.in_words(name, optimizers), *badly_chosen(*(self.at_rates(name, of) for of in PHASES)), *remarks]
    return [f"### {title}", "", *said, *self.tables(name)]


def badly_chosen(tuned: AtRates, others: AtRates) -> list[str]:
  """A sentence on optimizers that do worse on fresh seeds at the rate that tuning chose than at another one."""
  found = []
  for optimizer in sorted(tuned.keys() & others.keys()):
    (rate, at_rate), (other, at_other) = tuned[optimizer], others[optimizer]
    change = paired(at_rate, at_other)
    if change.mean > change.margin:
      numbers = percent(change.mean, change.low, change.high, change.baseline_mean)
      found.append(f"{optimizer} at {rate:.3g} against {other:.3g}: {numbers}")
  if not found:
    return []
  words = "On fresh seeds the rate that tuning chose has the worse mean (+ is better)"
  return [f"- {words}: {'; '.join(found)}. What others gain on these when tuned may be partly that.", ""]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
  """Markdown; the first row is the header."""
  return [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])] + [""]


def percent(mean: float, low: float, high: float, reference: float) -> str:
  """A difference and its interval as an improvement in % of `reference`, which is positive where the value is lower."""
  middle, least, most = (0 - 100 * value / reference for value in (mean, high, low))
  return f"{middle:+.2f}% [{least:+.2f}, {most:+.2f}]"


def said(verdict: str, values: Sequence[float], baseline: Sequence[float]) -> str:
  """A verdict; where it is undecided though every seed agrees in sign, that they do."""
  lower = sum(value < other for value, other in zip(values, baseline, strict=True))
  higher = sum(value > other for value, other in zip(values, baseline, strict=True))
  if verdict != "undecided" or max(lower, higher) < len(values):
    return verdict
  return f"undecided (all {len(values)} seeds {'lower' if lower else 'higher'})"


def in_words(difference: dict[str, Any]) -> str:
  """A verdict as a reader would say it; less is better."""
  verdict, reference = difference["verdict"], difference["baseline_mean"]
  if verdict not in ("better", "worse", "equal", "undecided"):
    return verdict
  mean, low, high = (100 * difference[key] / reference for key in ("mean", "low", "high"))
  if verdict == "equal":
    return f"equal to within {100 * difference['margin'] / reference:.2g}%"
  least, most = sorted((abs(low), abs(high)))
  if verdict == "undecided":
    if low * high < 0:
      return f"{difference['said']}, from {abs(low):.2g}% lower to {high:.2g}% higher"
    return f"{difference['said']}, {least:.2g}% to {most:.2g}% {'lower' if low < 0 else 'higher'}"
  return f"{verdict} by {abs(mean):.2g}% [{least:.2g}, {most:.2g}]"
