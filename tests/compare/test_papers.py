"""The papers' experiments: data, protocols and optimizers are the papers' own, and the report says what runs say."""

import csv
import json
import math
import sys

import jax
import jax.numpy as jnp
import made_up_data
import numpy as np
import optax
import pytest
import scipy.stats
from support import ROOT

from optax_ext import adamnx_gain, adax_gain
from optax_ext._common.paths import by_path
from optax_ext.compare import Optimizer, Protocol, batches, keys
from optax_ext.compare.problems import data
from optax_ext.compare.problems.named import load
from optax_ext.compare.problems.papers import GPT, california, cifar_10, shakespeare
from optax_ext.compare.programs import Common
from optax_ext.compare.run import Result, Runner, Task

sys.path.insert(0, str(ROOT / "benchmarks" / "papers"))
import adamnx
import caadam
import keras_optimizers
import nd_adam
import pages
import report
import thin


@pytest.fixture
def folder(tmp_path, monkeypatch):
  made_up_data.write(tmp_path)
  monkeypatch.setenv(data.VARIABLE, str(tmp_path))
  return tmp_path


class TestData:
  def test_from_a_folder(self, folder):
    train, test = data.fashion_mnist()
    assert (train.pixels.shape, test.pixels.shape) == ((600, 28, 28, 1), (200, 28, 28, 1))
    assert train.labels.tolist() == [*range(10)] * 60
    np.testing.assert_allclose(train.pixels[0, 1, :3, 0], np.array([28, 29, 30]) / 255, rtol=1e-6)
    codes = data.tiny_shakespeare()  # " ,.benort": 0 to 8
    assert codes.tolist()[:6] == [8, 6, 0, 3, 4, 1]
    assert data.california_housing()[0].shape == (20640, 8)
    train, test = data.cifar_10()
    assert (train.pixels.shape, test.pixels.shape) == ((100, 32, 32, 3), (20, 32, 32, 3))
    assert train.labels.tolist() == [*range(10)] * 10
    np.testing.assert_allclose(train.pixels[3, 0, :2, 1] * 255, [1024 % 251 + 3, 1025 % 251 + 3], rtol=1e-6)

  def test_what_is_missing_is_said_in_a_sentence(self, folder, monkeypatch):
    (folder / "tinyshakespeare.txt").unlink()
    with pytest.raises(ValueError, match=r"there is no tinyshakespeare.txt in it: add it, or unset OPTAX_EXT_DATA\."):
      data.tiny_shakespeare()
    monkeypatch.delenv(data.VARIABLE)
    datasets = pytest.importorskip("sklearn.datasets")
    for function in ("fetch_california_housing", "fetch_openml", "fetch_file"):
      monkeypatch.setattr(datasets, function, lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
    for read, name in [
      (data.california_housing, "california_housing.npz"),
      (data.fashion_mnist, "fashion-mnist/train-images-idx3-ubyte.gz"),
      (data.cifar_10, "cifar-10-binary.tar.gz"),
      (data.tiny_shakespeare, "tinyshakespeare.txt"),
    ]:
      with pytest.raises(ValueError, match=f"OSError: no network.: let OPTAX_EXT_DATA name a folder that holds {name}"):
        read()

  def test_raw_columns_are_rebuilt_from_averages(self, monkeypatch):
    """A district of 880 rooms, 129 bedrooms, 322 people and 126 households, as scikit-learn describes it."""
    row = [8.3252, 41.0, 880 / 126, 129 / 126, 322.0, 322 / 126, 37.88, -122.23]
    datasets = pytest.importorskip("sklearn.datasets")
    monkeypatch.setattr(datasets, "fetch_california_housing", lambda return_X_y: (np.array([row]), np.array([4.526])))  # noqa: N803
    monkeypatch.delenv(data.VARIABLE, raising=False)
    x, y = data.california_housing()
    np.testing.assert_allclose(x, [[-122.23, 37.88, 41, 880, 129, 322, 126, 8.3252]], rtol=1e-6)
    assert y.tolist() == [452600]


@pytest.mark.heavy
def test_california_is_split_as_keras_does(folder):
  problem = california()
  assert (problem.examples, problem.steps_per_epoch, problem.batch_size) == (13209, 104, 128)
  assert [len(part["y"]) for part in problem.data] == [13210, 3303, 4128]
  assert problem.train["weight"].sum() == 13209
  assert problem.train["weight"][-1] == 0
  raw = np.load(folder / "california_housing.npz")
  order = np.arange(20640)
  np.random.RandomState(113).shuffle(order)
  seen = raw["y"][order[:16512]]
  np.testing.assert_allclose(
    problem.test["y"], (raw["y"][order[16512:]] - seen.mean()) / seen.std(), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(problem.train["x"][:-1].mean(axis=0), 0, atol=0.03)
  assert problem.structure.num_layers == 3
  one, other = (california(shared_init=True).init(keys(seed)[0]) for seed in (0, 1))
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), one, other))


def test_resnet_20(folder):
  """He et al.'s 19 convolutions and a linear layer, of 0.27M parameters, and two projections."""
  problem = cifar_10(examples=(80, 20, 20))
  params, _ = jax.eval_shape(problem.init, keys(0)[0])
  sizes = {path: leaf.size for path, leaf in by_path(params).items()}
  kernels = 3 * 16 * 9 + 6 * 16 * 16 * 9 + (16 + 5 * 32) * 32 * 9 + (32 + 5 * 64) * 64 * 9
  norms, output = 2 * (7 * 16 + 6 * 32 + 6 * 64), 650
  assert sum(size for path, size in sizes.items() if "shortcut" not in path) == kernels + norms + output == 269_722
  assert sum("conv" in path for path in sizes) == 19 + 2
  structure = problem.structure
  assert structure.num_layers == 20
  depths = {facts.path: facts.depth for facts in structure.leaves()}
  of_norms = [path for path in depths if "_norm" in path]
  assert len(of_norms) == 2 * (19 + 2)
  assert all(depths[path] == depths[path.partition("_norm")[0] + "_conv/kernel"] for path in of_norms)
  assert (
    jax.eval_shape(problem.metrics, *jax.eval_shape(problem.init, keys(0)[0]), problem.validation)["error"].shape == ()
  )


def test_held_out_windows_do_not_overlap(monkeypatch):
  """The text is its own places; of the default size nothing changes where more windows would fit."""
  length = 1_115_394
  monkeypatch.setattr(data, "tiny_shakespeare", lambda: np.arange(length))
  for problem, count, characters in [(shakespeare(), 256, 65), (shakespeare(GPT(block=256), part=0.002), 217, 257)]:
    starts = np.linspace(1_003_854, length - characters, 2 * count).astype(int)
    assert np.diff(starts).min() >= characters
    for part, expected in [(problem.validation, starts[::2]), (problem.test, starts[1::2])]:
      np.testing.assert_array_equal(part["codes"], expected[:, None] + np.arange(characters))
  assert 2 * 217 * 257 <= length - 1_003_854 < 2 * 218 * 257


def test_published_factors_are_those_that_were_recorded(folder):
  """Of the authors' program on 8→64→32→1, kernel and bias of each layer in turn."""
  params = jax.eval_shape(california().init, keys(0)[0])
  recorded = {
    "additive": [1.95, 2.013] * 3,
    "multiplicative": [5.0, 5.566] * 3,
    "depth": [1.782, 1.587, 1.414, 1.260, 1.122, 1.0],
  }
  for rule, expected in recorded.items():
    layers = caadam.published_factors(rule, params)["params"]
    found = [layers[f"Dense_{i}"][kind] for i in range(3) for kind in ("kernel", "bias")]
    np.testing.assert_allclose(found, expected, atol=6e-4)
  _, rates = caadam.arms(california())
  assert rates["adam at the scale of additive"] == pytest.approx(1.95e-3)
  assert rates["adam at the scale of depth"] == pytest.approx(1e-3 * (1.782 * 1.414 * 1.122) ** (1 / 3), rel=1e-3)


class Oracle:
  """Keras' optimizers as their pages describe them, in double precision: `step(g)` gives what θ falls by, over α."""

  def __init__(self, name, shape):
    self.name, self.t, self.product = name, 0, 1.0
    self.m, self.v = np.zeros(shape), np.zeros(shape)

  def step(self, g, params):
    self.t += 1
    self.m = 0.9 * self.m + 0.1 * g
    if self.name == "adamax":
      self.v = np.maximum(0.999 * self.v, np.abs(g))
      return self.m / ((1 - 0.9**self.t) * (self.v + 1e-7))
    self.v = 0.999 * self.v + 0.001 * g**2
    c1, c2 = 1 - 0.9**self.t, 1 - 0.999**self.t
    if self.name == "nadam":
      now, later = (0.9 * (1 - 0.5 * 0.96**t) for t in (self.t, self.t + 1))
      self.product *= now
      numerator = later * self.m / (1 - self.product * later) + (1 - now) * g / (1 - self.product)
      return numerator / (np.sqrt(self.v / c2) + 1e-7)
    decay = 0.004 if self.name == "adamw" else 0.0
    return math.sqrt(c2) / c1 * self.m / (np.sqrt(self.v) + 1e-7) + decay * params


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "adamw", "adamax", "nadam"])
def test_keras_optimizers(name):
  """1,200 steps, gradients from 1e-8 (where it matters where ε stands) to 1."""
  grads = np.random.default_rng(0).normal(size=(1200, 9)) * np.logspace(-8, 0, 9)
  oracle, expected = Oracle(name, 9), np.ones(9)
  tx = getattr(keras_optimizers, name)(1e-3)
  found, state = jnp.ones(9), tx.init(jnp.ones(9))

  def step(carry, g):
    params, state = carry
    updates, state = tx.update(g, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), params

  _, path = jax.lax.scan(step, (found, state), jnp.asarray(grads, jnp.float32))
  for t, g in enumerate(grads):
    expected = expected - 1e-3 * oracle.step(g, expected)
    np.testing.assert_allclose(path[t], expected, atol=3e-5)
  assert np.abs(expected - 1).max() > 0.01


@pytest.mark.heavy
def test_a_run_equals_the_same_training_in_numpy(folder):
  """Two epochs of California Housing with Keras' Nadam; 371 districts, 13 short of three full batches."""
  problem = california(shared_init=True, examples=580)
  every = problem.steps_per_epoch
  common = Common(problem, Protocol(2 * every, every), jax.devices()[:1])
  runner = Runner(common, Optimizer("nadam", keras_optimizers.nadam), "map")
  found = runner.run([Task({"learning_rate": 1e-3}, 5)])[0].curves["validation/loss"]

  layers = problem.init(keys(5)[0])["params"]
  theta = [np.asarray(layers[f"Dense_{i}"][kind], np.float64) for i in range(3) for kind in ("kernel", "bias")]
  oracles = [Oracle("nadam", array.shape) for array in theta]

  def forward(x):
    hidden = [x]
    for i in range(3):
      z = hidden[-1] @ theta[2 * i] + theta[2 * i + 1]
      hidden.append(np.maximum(z, 0) if i < 2 else z)
    return hidden

  expected = []
  for step, rows in enumerate(batches(problem, 5, 0, 2 * every)):
    rows = rows[rows < problem.examples]
    hidden = forward(problem.train["x"][rows].astype(np.float64))
    back, grads = 2 * (hidden[-1] - problem.train["y"][rows][:, None]) / len(rows), []
    for i in (2, 1, 0):
      grads = [hidden[i].T @ back, back.sum(axis=0), *grads]
      back = (back @ theta[2 * i].T) * (hidden[i] > 0)
    theta = [p - 1e-3 * o.step(g, p) for p, o, g in zip(theta, oracles, grads, strict=True)]
    if (step + 1) % every == 0:
      error = forward(problem.validation["x"])[-1][:, 0] - problem.validation["y"]
      expected.append(np.mean(error**2))
  assert every == 3
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_papers_problems_have_names():
  with pytest.raises(
    ValueError, match=r"breast_cancer, california-64-32, .* fashion-mnist, cifar-10, shakespeare, or give"
  ):
    load("mars")


def test_adax_as_adamnx_is_the_same_rule():
  """So that their difference in the ablation is noise."""
  b2 = 0.945
  t = jnp.arange(1, 2001)
  np.testing.assert_allclose(adax_gain(b2 ** -(1 - b2) - 1)(t), adamnx_gain(b2)(t), rtol=1e-5)
  assert 2000 * (1 - b2) * abs(math.log(b2)) == pytest.approx(6.3, abs=0.1)
  baselines = {name: adamnx.arm(name, gain).baselines for name, gain in adamnx.GAINS.items()}
  assert baselines.pop("adam") == ()
  assert baselines.pop("adax as adamnx, matched") == ("adam", "adamnx, matched")
  assert set(baselines.values()) == {("adam",)}


def test_the_angle_of_a_step():
  """Of two units; one turns by 0.3 and doubles, the other stays."""
  before = jnp.zeros((1, 1, 2, 2)).at[0, 0, 0].set(1.0)
  after = jnp.array([[2 * math.cos(0.3), 1.0], [2 * math.sin(0.3), 0.0]]).reshape(1, 1, 2, 2)
  np.testing.assert_allclose(nd_adam.turn(before, after), [0.15, 1.5], rtol=1e-5)


def difference(optimizer, baseline, comparison, verdict, mean, low, high):
  """As in comparisons.json, relative to a baseline of 0.5; the margin is 0.5% of it."""
  numbers = {"mean": mean, "low": low, "high": high, "baseline_mean": 0.5, "margin": 0.0025}
  return {"optimizer": optimizer, "baseline": baseline, "comparison": comparison, "verdict": verdict} | numbers


def write_runs(folder, runs, facts=None):
  """What is left of runs. They are (optimizer, rate, seed, phase, curves); the second of three evaluations is best."""
  folder.mkdir(parents=True, exist_ok=True)
  lines = []
  for optimizer, rate, seed, phase, curves in runs:
    diverged = any(math.isnan(value) for values in curves.values() for value in values)
    result = Result({"learning_rate": rate}, seed, [1, 2, 3], curves, 1, diverged, stopped_early=False)
    lines.append({"key": f"{optimizer}|{rate}|{seed}|{phase}", "result": vars(result)})
  (folder / "finished.jsonl").write_text("\n".join(["{}", *map(json.dumps, lines), ""]), "utf-8")
  if facts:
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


def write_comparison(folder, metric, where, rows=(), differences=(), runs=()):
  """What `compare` leaves of a tuned comparison. `rows` are (optimizer, phase, learning rate, values of a run)."""
  write_runs(folder, runs)
  sentence = f"Test {metric} (less is better) {where}; at most 20 steps of 16 examples, evaluated every 10."
  text = f"# problem: a, b\n\n{sentence}\n\n## Each at its best learning rate\n\n## How to read this\n"
  (folder / "summary.md").write_text(text, "utf-8")
  (folder / "comparisons.json").write_text(json.dumps(list(differences)), "utf-8")
  table = [
    {"optimizer": optimizer, "phase": phase, "learning_rate": rate, "diverged": math.nan in values.values()} | values
    for optimizer, phase, rate, values in rows
  ]
  with (folder / "runs.csv").open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, list(table[0]) if table else ["phase"])
    writer.writeheader()
    writer.writerows(table)


def test_verdicts_in_words(tmp_path):
  """The error after the last step decides; "e" has a higher one than "b" on every seed, "c" on one of two."""
  found = [
    difference("a", "b", "at one rate", "better", -0.01, -0.015, -0.005),
    difference("a", "b", "tuned", "equal", 0.001, 0.0, 0.002),
    difference("c", "b", "at one rate", "worse", 0.01, 0.005, 0.02),
    difference("c", "b", "tuned", "undecided", 0.01, -0.001, 0.02),
    difference("d", "b", "tuned", "2 of 5 diverged (baseline 0)", None, None, None),
    difference("e", "b", "tuned", "undecided", 0.01, 0.001, 0.02),
  ]
  last = {"a": (0.5, 0.5), "b": (0.5, 0.5), "c": (0.499, 0.52), "d": (math.nan, 0.5), "e": (0.501, 0.52)}
  rows = [
    (name, phase, 1e-3, {"test/error best": 0.1, "test/error last": value})
    for phase in ("tuning", "reporting", "one rate")
    for name, of in last.items()
    for value in of
  ]
  write_comparison(tmp_path / "x", "error", "after the last step", rows, found)
  page = pages.Pages(tmp_path, tmp_path)
  assert page.in_words("x", ["a", "c", "d", "e"]) == [
    "- a against b: at one learning rate better by 2% [1, 3]; each tuned equal to within 0.5%.",
    "- c against b: at one learning rate worse by 2% [1, 4]; each tuned undecided, from 0.2% lower to 4% higher.",
    "- d against b: each tuned 2 of 5 diverged (baseline 0).",
    "- e against b: each tuned undecided (all 2 seeds higher), 0.2% to 4% higher.",
    "",
  ]
  assert page.verdict("x", "e", "b", "tuned") == "-2.00% [-4.00, -0.20], undecided (all 2 seeds higher)"
  assert page.deciding("x") == "test/error last"
  write_comparison(tmp_path / "y", "loss", "at the best validation value")
  assert page.deciding("y") == "test/loss best"


def test_rates_that_tuning_chose_badly(tmp_path):
  """On fresh seeds "a" has 4% more error at its tuned rate, "b" less, "c" less than the margin more, "d" one rate."""
  tuned = {"a": (0.52, 0.52), "b": (0.4, 0.4), "c": (0.501, 0.501), "d": (0.9, 0.9)}
  rows = [(name, "reporting", 0.03, {"test/error last": value}) for name, of in tuned.items() for value in of]
  rows += [(name, "one rate", 1e-3, {"test/error last": 0.5}) for name in "abc" for _ in range(2)]
  write_comparison(tmp_path / "x", "error", "after the last step", rows)
  chosen = lambda name: pages.badly_chosen(*(pages.Pages(tmp_path, tmp_path).at_rates(name, of) for of in pages.PHASES))
  first, blank = chosen("x")
  assert "(+ is better): a at 0.03 against 0.001: -4.00% [-4.00, -4.00]. What" in first
  assert not blank
  write_comparison(tmp_path / "y", "error", "after the last step", rows[2:])
  assert chosen("y") == []


def test_runs_at_the_rates_of_the_facts(tmp_path):
  """Where a comparison was continued with another best rate, runs at the one before are still in the file."""
  runs = [("a", rate, seed, phase, {}) for phase in ("report", "tune") for rate in (1, 2) for seed in (1, 0)]
  facts = {"seeds": 2, "rates": {"a": 2}}
  page = pages.Pages(tmp_path, tmp_path)
  write_runs(tmp_path / "x", runs, facts)
  assert [(r.trial["learning_rate"], r.seed) for r in page.published("x", "x.py")["a"]] == [(2, 0), (2, 1)]
  assert page.missing == []
  write_runs(tmp_path / "x", runs[:3], facts)
  assert page.published("x", "x.py") == page.published("y", "y.py") == page.published("z") == {}
  assert page.missing == [
    "`python benchmarks/papers/x.py`: interrupted after 1 of 2 runs",
    "`python benchmarks/papers/y.py`: not begun",
  ]


def test_papers_rates_stand_beside_the_tuned_ones(tmp_path):
  """EXAdam at 1e-4 errs by a tenth less at its best, a fifth more at the end; ND-Adam at the end by half of SGD's."""
  errors = lambda best, last: {"test/error": [0.9, best, last]}
  runs = [("exadam", 1e-4, seed, "report", errors(0.18, 0.3)) for seed in (0, 1)]
  runs += [("adam", 1e-4, seed, "report", errors(0.2, 0.25)) for seed in (0, 1)]
  images = tmp_path / "images" / "cosine"
  rows = [(name, "reporting", 1e-3, {"test/error best": 0.2}) for name in ("adam", "exadam")]
  found = [difference("exadam", "adam", "tuned", "better", -0.01, -0.015, -0.005)]
  write_comparison(images, "error", "at the best validation value", rows, found)
  write_runs(images, runs, {"seeds": 2, "rates": {"exadam": 1e-4, "adam": 1e-4}})
  logits = tmp_path / "nd_adam" / "l2-published"
  last = {"nd_adam": 0.1, "sgd_l2": 0.2, "adam": 0.1}
  runs = [(name, 1e-3, seed, "report", errors(0.9, of)) for name, of in last.items() for seed in (0, 1)]
  write_runs(logits, runs, {"seeds": 2, "rates": dict.fromkeys(last, 1e-3)})
  rows = [(name, "reporting", 0.03, {"test/error last": 0.11}) for name in last for _ in range(2)]
  write_comparison(tmp_path / "nd_adam" / "l2", "error", "after the last step", rows)
  page = pages.Pages(tmp_path, tmp_path)
  (remark,) = [line for line in report.images(page) if "1e-4 of its paper" in line]
  assert "(+ is better): +10.00% [+10.00, +10.00], undecided (all 2 seeds lower). Test errors: exadam 18.00%" in remark
  lines = report.nd_adam(page)
  assert "| optimizer | l2 |" in lines
  assert "| sgd_l2 | 20.00% (SD 0.00) |" in lines
  gap = "+50.00% [+50.00, +50.00], undecided (all 2 seeds lower)"
  assert f"- l2 logits: against sgd_l2 {gap}; against adam +0.00% [+0.00, +0.00], identical." in lines
  assert "`python benchmarks/papers/nd_adam.py published --logits plain`: not begun" in page.missing
  (unlucky,) = [line for line in lines if line.startswith("- On fresh seeds the rate that tuning chose")]
  assert ": adam at 0.03 against 0.001: -10.00% [-10.00, -10.00]; nd_adam at 0.03 against 0.001: -10.00%" in unlucky
  assert "sgd_l2" not in unlucky
  short = report.in_short(page)
  images_row, nd_adam_row, missing = (
    next(line for line in short if line.startswith(start))
    for start in (
      "| EXAdam, images, cosine",
      "| ND-Adam, against SGD with L2, images, l2",
      "| ND-Adam, images, plain",
    )
  )
  gain = "+2.00% [+1.00, +3.00], better"
  assert images_row.endswith(f"| +10.00% [+10.00, +10.00], undecided (all 2 seeds lower) | {gain} |")
  assert not any("CaAdam additive as written, images, cosine" in line for line in short)  # not among its optimizers
  assert f"| {gap} |" in nd_adam_row
  assert missing.endswith("| not run yet | not run yet |")


def test_verdicts_are_counted(tmp_path):
  """Over the comparisons in which a pair is; ND-Adam outside its conditions is not one."""
  found = [
    [("exadam", "at one rate", "better"), ("exadam", "tuned", "equal"), ("nd_adam", "tuned", "worse")],
    [("exadam", "at one rate", "better"), ("exadam", "tuned", "worse"), ("caadam_depth", "tuned", "better")],
  ]
  for network, verdicts in zip(("64-32", "128-64-32"), found, strict=True):
    differences = [difference(arm, "adam", comparison, verdict, 0.01, 0, 0.02) for arm, comparison, verdict in verdicts]
    arms = ("exadam", "nd_adam", "caadam_depth", "adam")
    rows = [(arm, phase, 1e-3, {"test/rmse best": 0.5}) for arm in arms for phase in ("one rate", "reporting")]
    folder = tmp_path / "caadam" / f"{network}-fair"
    write_comparison(folder, "rmse", "at the best validation value", rows, differences)
  assert report.counted(pages.Pages(tmp_path, tmp_path)) == [
    "- EXAdam against Adam (2 comparisons): at one learning rate better in 2; each tuned equal in 1, worse in 1.",
    "- CaAdam depth as written against Adam (1 comparison): each tuned better in 1.",
  ]


def test_angles_beside_the_schedule(tmp_path):
  """Adam's angle is twice the schedule in the first tenth and its vectors double there; ND-Adam's is the schedule."""
  (tmp_path / "nd_adam").mkdir()
  schedule = 0.5 * (1 + np.cos(np.pi * np.arange(100) / 100))
  length, angle = np.where(np.arange(100) < 10, 1.0, 2.0), np.where(np.arange(100) < 10, 2.0, 1.0) * schedule
  layers = {"adam": {"conv": {"angle": angle, "length": length}}}
  layers["nd_adam"] = {"conv": {"angle": schedule, "length": np.ones(100)}}
  lines = report.angle_lines(pages.Pages(tmp_path, tmp_path), layers)
  assert "| adam | × 2.00 | × 2.00 | × 0.50 | × 1.00 |" in lines
  assert "| nd_adam | × 1.00 | × 1.00 | × 1.00 | × 1.00 |" in lines
  assert "grow × 2.00. Relative to the schedule Adam's angle changes by × 0.50 there, ND-Adam's by × 1.00 (" in lines[2]


def test_angles_of_a_slice_of_two_steps(tmp_path):
  """A tenth of so few steps is one step, a fifth is none."""
  (tmp_path / "nd_adam").mkdir()
  of = {"conv": {"angle": [1.0, 0.5], "length": [1.0, 3.0]}}  # the schedule, as the cosine is 1 and then a half
  lines = report.angle_lines(pages.Pages(tmp_path, tmp_path), {"adam": of, "nd_adam": of})
  assert "| adam | × 3.00 | × 3.00 | × 1.00 | × 1.00 |" in lines


def test_losses_of_exadams_table(tmp_path):
  """Means of two seeds at 1e-4, before and after anything is tuned; a diverged run is counted."""
  curves = lambda factor: {
    "train/loss": [9.0, 9.0, 1.0 * factor],
    "validation/loss": [9.0, 1.5 * factor, 1.7 * factor],
    "test/loss": [9.0, 1.6 * factor, 1.8 * factor],
  }
  runs = [("exadam", 1e-4, 0, "report", curves(1)), ("exadam", 1e-4, 1, "report", curves(3))]
  runs += [("adam", 1e-4, seed, "report", curves(4)) for seed in (0, 1)]
  runs += [("sgd", 1e-4, seed, "report", curves(factor)) for seed, factor in enumerate([2, math.nan])]
  more = [("exadam", 1e-3, 0, "tune", curves(100)), ("exadam", 1e-3, 0, "report", curves(5))]
  more += [("exadam", 1e-3, 1, "report", curves(5))]
  facts = {"seeds": 2, "rates": dict.fromkeys(["exadam", "adam", "sgd"], 1e-4)}
  for all_runs, how in ((runs, "not begun"), (runs + more, "interrupted after 3 runs")):
    write_runs(tmp_path / "exadam/small", all_runs, facts)
    page = pages.Pages(tmp_path, tmp_path)
    lines = report.exadam(page)
    gap = "+50.00% [+25.00, +75.00], undecided (all 2 seeds lower)"
    assert f"| exadam | 2 | 3 | 3.4 | 3.2 | 3.6 | {gap} | 0.611, 1.794 |" in lines
    assert "| adam | 4 | 6 | 6.8 | 6.4 | 7.2 | – | 1.322, 1.567 |" in lines
    row = next(line for line in lines if line.startswith("| sgd |"))
    assert "| 2 (1 of 2 diverged) | 3 (1 of 2 diverged) |" in row
    assert "| 1 of 2 diverged (baseline 0) | 2.744, 2.766 |" in row
    for part in ("tuned", "rivals"):
      assert f"`python benchmarks/papers/exadam.py {part}`: {how}" in page.missing
  rows = [(name, "reporting", rate, {"test/loss best": 1.0}) for name, rate in (("exadam", 1e-3), ("adam", 1e-4))]
  write_comparison(tmp_path / "exadam/small", "loss", "at the best validation value", rows, runs=runs + more)
  page = pages.Pages(tmp_path, tmp_path)
  lines = report.exadam(page)
  assert "`python benchmarks/papers/exadam.py rivals`: not begun" in page.missing
  assert not any("exadam.py tuned`" in line for line in page.missing)
  assert "| exadam | 5 | 7.5 | 8.5 | 8 | 9 | -25.00% [-25.00, -25.00], undecided (all 2 seeds higher) |" in lines


def test_the_same_rule_differs_by_noise(tmp_path):
  page = pages.Pages(tmp_path, tmp_path)
  control = [
    difference(*report.SAME_RULE, "at one rate", "equal", 0.001, 0.0, 0.002),
    difference(*report.SAME_RULE, "tuned", "better", -0.01, -0.015, -0.005),
  ]
  other = difference(report.SAME_RULE[0], "adam", "tuned", "better", -0.01, -0.015, -0.005)
  write_comparison(tmp_path / "alone", "error", "after the last step", differences=[other])
  errors = {"adamnx": {"one rate": [0.1] * 5, "reporting": [0.2] * 5}}
  errors["adax"] = {"one rate": [0.099] * 5, "reporting": [0.18] * 5}
  rates = {("adax", "reporting"): 0.0178, ("adamnx", "reporting"): 0.0042}
  rows = [
    (name, phase, rates.get((name, phase), 1e-3), {"test/error last": error})
    for name, phases in errors.items()
    for phase, of in phases.items()
    for error in of
  ]
  write_comparison(tmp_path / "both", "error", "after the last step", rows, [other, *control])
  assert report.noise(page, "missing") == report.noise(page, "alone") == []
  words = report.noise(page, "both")[0]
  assert words.startswith('"adax as adamnx, matched" and "adamnx, matched" are the same rule')
  assert "at one learning rate -0.20% [-0.40, +0.00], equal; each tuned, +2.00% [+1.00, +3.00], better." in words
  assert "better by +1.00% [+1.00, +1.00] at one learning rate." in words
  assert "Each tuned, the first is better by +10.00% [+10.00, +10.00]:" in words
  assert "tuning seed took the rates 0.0178 and 0.0042." in words


def test_logits_are_compared_on_the_same_seeds(tmp_path):
  """With batch norm ND-Adam errs by 1 to 2 points less on each of 5 seeds, a tenth and more; one run of Adam fails."""
  page = pages.Pages(tmp_path, tmp_path)
  errors = {
    "plain": {"adam": [0.11, 0.13], "nd_adam": [0.10, 0.11, 0.12, 0.13, 0.14]},
    "batch_norm": {"adam": [0.11, 0.13, math.nan], "nd_adam": [0.09, 0.095, 0.11, 0.112, 0.125]},
  }
  for logits, of in errors.items():
    assert report.logits_compared(page) == []
    rows = [(name, "reporting", 1e-3, {"test/error last": e}) for name, values in of.items() for e in values]
    write_comparison(tmp_path / "nd_adam" / logits, "error", "after the last step", rows)
  lines = report.logits_compared(page)
  assert "| optimizer | plain | batch norm |" in lines
  assert "| adam | 12.00% (SD 1.41) | 12.00% (SD 1.41, 1 of 3 diverged) |" in lines
  assert "| nd_adam | 12.00% (SD 1.58) | 10.64% (SD 1.40) |" in lines
  (sentence,) = [line for line in lines if line.startswith("- nd_adam")]
  assert sentence.startswith("- nd_adam, batch norm logits against plain ones on the same seeds: better by 11% [")
  noisy = {"plain": [0.10, 0.11, 0.12], "l2": [0.11, 0.115, 0.14]}
  (words,) = report.against_plain(noisy)
  assert "l2 logits against plain ones on the same seeds: undecided (all 3 seeds higher), 6.1% to 18% higher." in words


def test_error_at_equal_training_loss():
  """The bar is 0.3, which "slow" reaches at its end and "fast" one evaluation earlier; a diverged run is counted."""
  run = lambda seed, losses, errors, diverged=False: Result(
    {"learning_rate": 1.0}, seed, [10, 20, 30], {"train/loss": losses, "test/error": errors}, 2, diverged, False
  )
  fast = [run(seed, [0.9, 0.3, 0.1], [0.5, 0.2 + 0.1 * seed, 0.9]) for seed in (0, 1)]
  slow = [run(seed, [0.9, 0.5, 0.3 - 0.1 * seed], [0.5, 0.4, 0.1]) for seed in (0, 1)]
  lines = report.equal_training_loss({"fast": [*fast, run(2, [9.0, 9.0, 9.0], [1, 1, 1], True)], "slow": slow})
  assert "first at most 0.300. slow ends with the highest training loss, and so sets this bar." in lines[2]
  assert "| fast | 25.00% (SD 7.07, 1 of 3 diverged) | 20 |" in lines
  assert "| slow | 10.00% (SD 0.00) | 30 |" in lines


def test_the_report_says_what_the_runs_say(tmp_path):
  """Multiplicative CaAdam as published and Adam at its scale are both 2% better than Adam: one adds 0% to the other."""
  arms = ["adam", "adamw", "adamax", "nadam"]
  arms += [f"{rule}, as {how}" for rule in report.RULES for how in ("written", "published")]
  arms += [f"adam at the scale of {rule}" for rule in report.RULES]
  better = {"multiplicative, as published": 0.98, "adam at the scale of multiplicative": 0.98, "adamax": 1.05}
  lines = [json.dumps({"experiment": "0"})]
  for arm in arms:
    for seed in range(30):
      value = (0.5 + 0.001 * (-1) ** seed) * better.get(arm, 1)
      value += (-0.03 if seed < 5 else 0) * (arm == "depth, as published")  # 30/6 = 5 thousandths less, 1% of Adam's
      curves = {"scale": [1.0] * 3, "test/loss": [8.0] * 3, "test/rmse": [value, 5.0, 9.0]}
      result = Result({"learning_rate": 1e-3}, seed, [104, 156, 208], curves, 0, False, True)
      lines.append(json.dumps({"key": f"{arm}|learning_rate=0.001|seed={seed}|report", "result": vars(result)}))
  folder = tmp_path / "papers" / "caadam" / "64-32-published"
  folder.mkdir(parents=True)
  (folder / "facts.json").write_text(json.dumps({"seeds": 30, "rates": dict.fromkeys(arms, 1e-3)}), "utf-8")
  (folder / "finished.jsonl").write_text("\n".join(lines) + "\n" + lines[-1][:50], "utf-8")  # interrupted while writing
  other = tmp_path / "papers" / "nd_adam" / "plain"
  other.mkdir(parents=True)
  (other / "finished.jsonl").write_text("\n".join(lines[:4]) + "\n", "utf-8")

  report.main(["--results", str(tmp_path / "papers"), "--report", str(tmp_path / "REPORT.md")])
  text = (tmp_path / "REPORT.md").read_text("utf-8")
  variance = 0.001**2 * 30 / 29  # of Adam's 30 runs; 0.98² of it for the other
  p = 2 * scipy.stats.t.sf(0.01 / math.sqrt((1 + 0.98**2) * variance / 30), 58)
  assert (
    f"| multiplicative, as published | 0.4900 | 0.0010 | 2 | +2.00% [+2.00, +2.00] | {p:.1g} | 0.446, 112, +2.07% |"
    in text
  )
  assert "| adamax | 0.5250 | 0.0011 | 2 | -5.00% [-5.00, -5.00] |" in text
  assert "- multiplicative, as published, against Adam at the same scale: +0.00% [+0.00, +0.00], identical" in text
  assert "- additive, as published, against Adam at the same scale: +0.00%" in text
  of_rule = "- CaAdam {} as published against Adam at the same scale (1 comparison, one initialisation): {} in 1."
  for rule, verdict in (("multiplicative", "identical"), ("depth", "better")):
    assert of_rule.format(rule, verdict) in text
  assert "+2.00% [+2.00, +2.00]; against Adam at the same scale +0.00% [+0.00, +0.00], identical |" in text
  depth = next(line for line in text.splitlines() if line.startswith("| depth, as published |"))
  low, high = map(float, depth[depth.index("[") + 1 : depth.index("]")].split(", "))
  assert "| +1.00% [" in depth
  assert 0 < low < 1 < high < 3
  assert "(papers/caadam/scale.png)" in text
  claims = ["best +4.5%, last -14.5% (validation", "+23.6% (CIFAR-10", "+13.1% (CIFAR-100", "+2.6% (CIFAR-10"]
  claims += ["+3.7% (Fashion-MNIST", "-0.2% (Fashion-MNIST", "+4.7% (Fashion-MNIST"]
  assert all(claim in text for claim in claims)
  missing = text[text.index("## Not run yet") :]
  assert "nd_adam.py tuned --logits plain`: interrupted after 3 runs" in missing
  assert "caadam.py published --network 128-64-32`: not begun" in missing
  assert "published --network 64-32`" not in missing

  thin.main(["--results", str(tmp_path / "papers")])
  report.main(["--results", str(tmp_path / "papers"), "--report", str(tmp_path / "REPORT.md")])
  assert (tmp_path / "REPORT.md").read_text("utf-8") == text
  left = json.loads((folder / "finished.jsonl").read_text("utf-8").splitlines()[1])["result"]
  assert (left["steps"], left["curves"]) == ([104, 208], {"test/rmse": [pytest.approx(0.501), 9.0]})
  assert (other / "finished.jsonl").read_text("utf-8").splitlines() == lines[:4]  # not complete: as it was
