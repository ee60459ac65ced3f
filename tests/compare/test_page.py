"""The page of a comparison: all in one file; in a browser its tables sort and its pictures show every optimizer."""

import html.parser
import math
import sys

import optax
import pytest

from optax_ext.compare import Arm, Comparison, Optimizer, Problem, Protocol
from optax_ext.compare import page as pages
from optax_ext.compare.experiment import differences
from optax_ext.compare.report import save
from optax_ext.compare.run import Result
from optax_ext.compare.tuning import Search

RATES = (0.01, 0.1, 1.0)
VOID = {"meta", "link", "br"}


def result(rate, seed, values, diverged=False):
  curves = {f"{split}/loss": values for split in ("train", "validation", "test")}
  return Result({"learning_rate": rate}, seed, [2, 4, 6][: len(values)], curves, len(values) - 1, diverged, False)


def comparison(seeds=5, names=("adam", "sgd", "<b>mine</b>")):
  """Without training. Optimizer k has a best loss near k + 1 at the rate 0.1; at 1.0 it diverges."""
  arms = {}
  for k, name in enumerate(names):
    tried = [[result(rate, seed, [9.0, 5.0, k + 1 + 0.1 * seed + rate]) for seed in range(2)] for rate in RATES[1::-1]]
    tried.append([result(1.0, seed, [math.nan], diverged=True) for seed in range(2)])
    trials = [{"learning_rate": rate} for rate in (0.1, 0.01, 1.0)]
    search = Search(trials, tried, [k + 1.0, k + 2.0, math.inf], dropped=[False, True, False])
    reported = [result(0.1, 1000 + seed, [9.0, 5.0 + seed, k + 1 + 0.01 * seed**2]) for seed in range(seeds)]
    arms[name] = Arm(Optimizer(name, optax.adam, baselines=("adam",) if k else ()), search, reported)
  problem = Problem("toy & co", *[lambda *args: {}] * 3, *[{"x": [0.0] * 30}] * 3, 10)
  found = Comparison(problem, Protocol(6, 2), arms, list(range(1000, 1000 + seeds)), [0, 1], None, 0.005, "map")
  found.tuned = differences(found, single=False)
  return found


class Elements(html.parser.HTMLParser):
  """Every element with its attributes and its text, and the names of those that were not closed."""

  def __init__(self, text):
    super().__init__()
    self.found, self.open = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found.append([tag, dict(attrs), ""])
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.found:
      self.found[-1][2] += data


@pytest.fixture(scope="module")
def elements():
  return Elements(pages.page(comparison()))


def test_the_page_is_one_file(elements):
  """Nothing is loaded: no address but that of an empty icon. The library that draws is inside."""
  addresses = {at[name] for _, at, _ in elements.found for name in ("src", "href", "srcset", "data") if name in at}
  assert addresses == {"data:,"}
  assert max(len(text) for tag, _, text in elements.found if tag == "script") > 10**6
  styles = " ".join(text for tag, _, text in elements.found if tag == "style")
  assert "url(" not in styles
  assert "@import" not in styles
  assert elements.open == []


def test_every_optimizer_is_in_every_table_and_picture(elements):
  cells = [text.strip() for tag, _, text in elements.found if tag == "td"]
  # in three trials, in what it reached, and but for the baseline in the effects
  assert [cells.count(name) for name in ("adam", "sgd", "<b>mine</b>")] == [4, 5, 5]
  found = comparison()
  for picture in (pages.learning_rates(found), pages.curves(found, "validation/loss")):
    assert [line.name for line in picture.data if line.name] == ["adam", "sgd", "&lt;b&gt;mine&lt;/b&gt;"]
  assert "ended early, being worse" in cells
  assert "2 of 2 diverged" in cells


def test_pictures_show_what_was_measured():
  """Means at finite rates in order, the ring at the best; medians; each seed with its number."""
  found = comparison(names=("adam",))
  figure = pages.learning_rates(found)
  line, dots, ring = figure.data
  assert figure.layout.yaxis.title.text == "mean validation loss over tuning seeds; 1 of 2 means outside"
  assert (list(line.x), list(line.y)) == ([0.01, 0.1], [2.0, 1.0])
  assert (list(ring.x), list(ring.y)) == ([0.1], [1.0])
  assert list(dots.x) == [0.1, 0.1, 0.01, 0.01, 1.0, 1.0]
  assert list(dots.customdata)[1] == "seed 1, 6 steps"
  band, median = pages.curves(found, "validation/loss").data
  assert (list(median.x), list(median.y)) == ([2, 4, 6], [9.0, 7.0, 1.04])
  assert list(band.y) == [9.0, 5.0, 1.0, 1.16, 9.0, 9.0]
  assert len(pages.curves(comparison(3, ("adam",)), "validation/loss").data) == 4  # a line a seed, and the median
  (runs,) = pages.seeds(found).data
  assert list(runs.y) == pytest.approx([1.0, 1.01, 1.04, 1.09, 1.16])
  assert list(runs.customdata)[2] == "seed 1002, best at step 6 of 6"


@pytest.mark.parametrize(
  ("text", "number"),
  [
    ("0.1 (edge)", "0.1"),
    ("29% less loss than adam", "-29"),
    ("3.5% more loss than adam", "3.5"),
    ("≥ 0.50", "0.5"),
    ("-51% to +4.2%", "-51"),
    ("1.2e-05", "1.2e-05"),
    ("never in 2 of 3", None),
    ("–", None),
  ],
)
def test_what_a_cell_is_sorted_by(text, number):
  [(_, attributes, said)] = Elements(pages._cell(text)).found
  assert (attributes.get("data-number"), said) == (number, text)


def test_the_page_is_written_once_and_left_out_without_plotly(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "optax_ext.compare.pictures", None)  # as if matplotlib were missing
  found, path = comparison(), tmp_path / "report.html"
  names = ["runs.csv", "runs.json", "comparisons.json", "summary.md"]
  assert [of.name for of in save(found, tmp_path)] == [*names, "report.html"]
  path.write_text("as it was")
  save(found, tmp_path)
  assert path.read_text() == "as it was"
  save(comparison(4), tmp_path)
  assert path.read_text().startswith("<!doctype html>")
  monkeypatch.setitem(sys.modules, "optax_ext.compare.page", None)
  assert [of.name for of in save(found, tmp_path)] == names


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_chromium(width, tmp_path):
  from browser import chromium, complaints, serve

  found = comparison()
  assert tmp_path / "report.html" in save(found, tmp_path)
  with serve(tmp_path) as address, chromium(width) as driver:
    run = driver.execute_script
    driver.get(f"{address}/report.html")
    lines = "return document.querySelectorAll(`#${arguments[0]} .scatterlayer .js-line`).length"
    assert [run(lines, name) for name in ("learning_rates", "train", "validation")] == [3, 3, 3]
    points = "return document.querySelectorAll('#seeds .scatterlayer .point').length"
    assert run(points) == 3 * 5

    column = (
      "return [...document.querySelectorAll(`#optimizers td:nth-child(${arguments[0]})`)].map(c => c.textContent)"
    )
    click = "document.querySelectorAll('#optimizers th button')[arguments[0]].click()"
    assert run(column, 1) == ["adam", "sgd", "<b>mine</b>"]
    run(click, 3)
    losses = run(column, 4)
    assert losses == sorted(losses, key=float)
    run(click, 3)
    assert run(column, 4) == losses[::-1]
    assert run(column, 1) == ["<b>mine</b>", "sgd", "adam"]
    run(click, 0)
    assert run(column, 1) == ["<b>mine</b>", "adam", "sgd"]

    assert run("return document.documentElement.scrollWidth") <= width  # wide tables scroll alone
    assert run("return performance.getEntriesByType('resource').map(r => r.name)") == []
    assert complaints(driver) == []
