"""Problems made of Flax NNX, Flax linen and Equinox models train as these models train in plain loops."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from optax_ext.compare import Optimizer, Problem, Protocol, batches, compare, keys
from optax_ext.compare.checks import check_problem
from optax_ext.compare.names import named
from optax_ext.compare.optimizers import check_optimizers
from optax_ext.compare.programs import Common
from optax_ext.compare.run import Runner, Task

eqx = pytest.importorskip("equinox")

ONE = jax.devices()[:1]
PROTOCOL = Protocol(6, 3)
RATE = 0.05
X = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
DATA = {"x": X, "y": (X @ np.array([[1.0], [-2.0], [0.5], [0.0]], np.float32)).astype(np.float32)}
PARTS = [{name: a[rows] for name, a in DATA.items()} for rows in (slice(0, 48), slice(48, 64), slice(64, 80))]


def square(outputs, batch):
  return jnp.mean((outputs - batch["y"]) ** 2)


class Nnx(nnx.Module):
  """A batch norm and dropout between two layers."""

  def __init__(self, rngs):
    self.first = nnx.Linear(4, 8, use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
    self.dropout = nnx.Dropout(0.25, rngs=rngs)
    self.last = nnx.Linear(8, 1, rngs=rngs)

  def __call__(self, x):
    return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x, training):
    x = nn.Dense(8, use_bias=False)(x)
    x = nn.relu(nn.BatchNorm(not training, momentum=0.5)(x))
    return nn.Dense(1)(nn.Dropout(0.25, deterministic=not training)(x))


class Equinox(eqx.Module):
  first: Any
  norm: Any
  dropout: Any
  last: Any

  def __init__(self, key):
    one, other = jax.random.split(key)
    self.first = eqx.nn.Linear(4, 8, use_bias=False, key=one)
    self.norm = eqx.nn.BatchNorm(8, "batch", momentum=0.5, mode="batch")
    self.dropout = eqx.nn.Dropout(0.25)
    self.last = eqx.nn.Linear(8, 1, key=other)

  def __call__(self, x, state, key):
    x, state = self.norm(self.first(x), state)
    return self.last(self.dropout(jax.nn.relu(x), key=key)), state


def eqx_outputs(model, state, x, key):
  each = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
  return each(x, state, jax.random.split(key, len(x)))


def eqx_loss(model, state, batch, key):
  outputs, state = eqx_outputs(model, state, batch["x"], key)
  return square(outputs, batch), state


def eqx_metrics(model, state, data):
  return {"loss": square(eqx_outputs(model, state, data["x"], jax.random.key(0))[0], data)}


def of_nnx(**options):
  loss = lambda model, batch: square(model(batch["x"]), batch)
  return Problem.from_nnx("nnx", Nnx, loss, lambda model, data: {"loss": loss(model, data)}, *PARTS, 16, **options)


def of_linen():
  metrics = lambda outputs, data: {"loss": square(outputs, data)}
  modes = {"training": {"training": True}, "evaluation": {"training": False}}
  return Problem.from_linen("linen", Linen(), lambda batch: batch["x"], square, metrics, *PARTS, 16, **modes)


def of_equinox():
  build = eqx.nn.make_with_state(Equinox)
  return Problem.from_equinox("equinox", build, eqx_loss, eqx_metrics, *PARTS, 16)


def curve_of(problem):
  """What the comparison's runner measures of a run of seed 3."""
  runner = Runner(Common(problem, PROTOCOL, ONE), Optimizer("sgd", optax.sgd), "map")
  return runner.run([Task({"learning_rate": RATE}, 3)])[0].curves["validation/loss"]


def batches_of(problem):
  for rows in batches(problem, 3, 0, PROTOCOL.steps):
    yield {name: array[rows] for name, array in PARTS[0].items()}


@pytest.mark.heavy
def test_nnx_trains_as_nnx_does():
  problem = of_nnx()
  model = Nnx(nnx.Rngs(keys(3)[0]))
  optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer, batch):
    optimizer.update(model, nnx.grad(lambda model: square(model(batch["x"]), batch))(model))

  expected = []
  for i, batch in enumerate(batches_of(problem)):
    model.train()
    step(model, optimizer, batch)
    if (i + 1) % 3 == 0:
      model.eval()
      expected.append(square(model(PARTS[1]["x"]), PARTS[1]))
  np.testing.assert_allclose(curve_of(problem), expected, rtol=1e-5)


@pytest.mark.heavy
def test_linen_trains_as_linen_does():
  problem, model = of_linen(), Linen()
  init_key, dropout_key = keys(3)
  variables = model.init({"params": init_key}, PARTS[0]["x"][:1], training=False)
  tx, expected = optax.sgd(RATE), []
  opt_state = tx.init(variables["params"])

  @jax.jit
  def step(variables, opt_state, batch, key):
    def loss_of(params):
      variables_now = {"params": params, "batch_stats": variables["batch_stats"]}
      rngs = {"dropout": jax.random.split(key, 1)[0]}
      outputs, changed = model.apply(variables_now, batch["x"], training=True, mutable=["batch_stats"], rngs=rngs)
      return square(outputs, batch), changed

    grads, changed = jax.grad(loss_of, has_aux=True)(variables["params"])
    updates, opt_state = tx.update(grads, opt_state)
    return {"params": optax.apply_updates(variables["params"], updates), **changed}, opt_state

  for i, batch in enumerate(batches_of(problem)):
    variables, opt_state = step(variables, opt_state, batch, jax.random.fold_in(dropout_key, i))
    if (i + 1) % 3 == 0:
      expected.append(square(model.apply(variables, PARTS[1]["x"], training=False), PARTS[1]))
  np.testing.assert_allclose(curve_of(problem), expected, rtol=1e-5)


@pytest.mark.heavy
def test_equinox_trains_as_equinox_does():
  problem = of_equinox()
  init_key, dropout_key = keys(3)
  model, state = eqx.nn.make_with_state(Equinox)(init_key)
  tx, expected = optax.sgd(RATE), []
  opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

  @eqx.filter_jit
  def step(model, state, opt_state, batch, key):
    grads, state = eqx.filter_grad(lambda model: eqx_loss(model, state, batch, key), has_aux=True)(model)
    updates, opt_state = tx.update(grads, opt_state)
    return eqx.apply_updates(model, updates), state, opt_state

  for i, batch in enumerate(batches_of(problem)):
    model, state, opt_state = step(model, state, opt_state, batch, jax.random.fold_in(dropout_key, i))
    if (i + 1) % 3 == 0:
      expected.append(eqx_metrics(eqx.nn.inference_mode(model), state, PARTS[1])["loss"])
  np.testing.assert_allclose(curve_of(problem), expected, rtol=1e-5)


@pytest.mark.slow
def test_equinox_without_a_state():
  build = lambda key: eqx.nn.MLP(4, 1, 8, 1, key=key)
  loss = lambda model, batch, key: square(jax.vmap(model)(batch["x"]), batch)
  metrics = lambda model, data: {"loss": loss(model, data, None)}
  problem = Problem.from_equinox("mlp", build, loss, metrics, *PARTS, batch_size=16)
  first = float(metrics(build(keys(3)[0]), PARTS[1])["loss"])
  assert curve_of(problem)[-1] < first
  assert problem.structure.num_layers == 2


@pytest.mark.slow
@pytest.mark.parametrize(
  ("make", "normalised"),
  [
    (of_nnx, ["first/kernel"]),
    (of_linen, ["Dense_0/kernel"]),
    (of_equinox, []),  # its norm averages over a mapped axis, which the trace does not follow
  ],
)
def test_the_structure_is_traced_where_it_is_wanted(make, normalised):
  """Two layers; where the first one's units are seen to be normalised, nd_adam normalises its vectors alone."""
  problem = make()
  assert "structure" not in vars(problem)
  assert problem.structure.num_layers == 2
  assert [facts.path for facts in problem.structure.leaves() if facts.normalised] == normalised
  arms = [named(name, problem) for name in ("nd_adam", "caadam_depth")]
  assert (arms[0].note == "") == bool(normalised)
  _, params = check_problem(problem)
  check_optimizers(arms[not normalised :], params)


def test_what_is_trained_can_be_chosen():
  class Frozen(nnx.Variable):
    pass

  def build(rngs):
    model = Nnx(rngs)
    model.first.kernel = Frozen(model.first.kernel[...])
    return model

  loss = lambda model, batch: square(model(batch["x"]), batch)
  problem = Problem.from_nnx("nnx", build, loss, lambda model, data: {"loss": loss(model, data)}, *PARTS, 16)
  params = check_problem(problem)[1]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2 * 8 + 8 + 1


@pytest.mark.heavy
def test_a_model_of_ones_own_in_ten_lines():
  options = {"progress": False, "devices": ONE, "learning_rates": [0.1], "seeds": 2, "tuning_seeds": 1}
  found = compare(of_nnx(), ["adam", "nd_adam"], PROTOCOL, single_rate=0, **options)
  assert all(np.isfinite(found.values(name)).all() for name in found.arms)
