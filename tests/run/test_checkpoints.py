"""State that outlives a process: its layout, orbax, crashes, and the move from one optimizer to another."""

import functools
import importlib.util
import itertools
import os
import pathlib
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx
from flax.training import train_state
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import ROOT, cache_programs, enable_x64, jitted

import optax_ext
from optax_ext import convert_moments, state_shardings

sys.path.insert(0, str(ROOT / "benchmarks"))
import kill_test

pytestmark = pytest.mark.filterwarnings("ignore:scale_by_structure sees")  # moments matter here, layers do not

RATE = optax.linear_schedule(1e-2, 1e-3, 20)
OPTIMIZERS = {
  "exadam": lambda: optax_ext.exadam(RATE, weight_decay=0.01),
  "adamnx": lambda: optax_ext.adamnx(RATE),
  "caadam": lambda: optax_ext.caadam(RATE, mu_dtype=jnp.bfloat16),
  "nd_adam": lambda: optax_ext.nd_adam(RATE),
}


def describe(tree):
  """A state as text: the types of its nodes with their fields, the dtypes and shapes of its leaves."""
  if isinstance(tree, dict):
    return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in sorted(tree.items())) + "}"
  if hasattr(tree, "_fields"):
    fields = ", ".join(f"{name}={describe(value)}" for name, value in zip(tree._fields, tree, strict=True))
    return f"{type(tree).__name__}({fields})"
  if isinstance(tree, tuple):
    return "(" + ", ".join(map(describe, tree)) + ")"
  return "None" if tree is None else f"{tree.dtype.name}{list(tree.shape)}"


LAYOUT_PARAMS = {"a": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "half": jnp.ones((4, 5), jnp.bfloat16)}
MU = "{a: {bias: float32[2], kernel: float32[3, 2]}, half: bfloat16[4, 5]}"
NU = "{a: {bias: float32[2], kernel: float32[3, 2]}, half: float32[4, 5]}"
MOMENTS = f"ScaleByAdamState(count=int32[], mu={MU}, nu={NU})"
NU_OF_VECTORS = "{a: {bias: float32[2], kernel: float32[1, 2]}, half: float32[1, 5]}"
VECTORS = f"ScaleByAdamState(count=int32[], mu={MU}, nu={NU_OF_VECTORS})"
NARROW = MOMENTS.replace("float32", "bfloat16").replace("bbfloat16", "bfloat16")
EMPTY, SCHEDULE, MASKED = "EmptyState()", "ScaleByScheduleState(count=int32[])", "MaskedState(inner_state={})"
NARROW_DTYPES = {"mu_dtype": jnp.bfloat16, "nu_dtype": jnp.bfloat16}
MASK = {"mask": {"a": True, "half": False}}
LAYOUT = [
  (optax_ext.exadam, (1e-3,), {}, (MOMENTS, SCHEDULE, EMPTY, EMPTY)),
  (optax_ext.exadam, (1e-3,), {"log_step": False}, (MOMENTS, EMPTY, EMPTY, EMPTY)),
  (optax_ext.exadam, (RATE,), {"weight_decay": 0.1}, (MOMENTS, SCHEDULE, EMPTY, SCHEDULE)),
  (optax_ext.adamnx, (1e-3,), {}, (MOMENTS, EMPTY, EMPTY)),
  (optax_ext.adamnx, (1e-3,), {"weight_decay": RATE}, (MOMENTS, "WeightDecaySchedule(count=int32[])", EMPTY)),
  (optax_ext.adamnx, (RATE,), MASK, (MOMENTS, MASKED.format(EMPTY), SCHEDULE)),
  (optax_ext.adamnx, (1e-3,), NARROW_DTYPES, (NARROW, EMPTY, EMPTY)),
  (optax_ext.caadam, (1e-3,), {}, (MOMENTS, EMPTY, EMPTY, EMPTY)),
  (optax_ext.caadam, (RATE,), {"rule": optax_ext.ByDepth()}, (MOMENTS, EMPTY, EMPTY, SCHEDULE)),
  (optax_ext.nd_adam, (1e-3,), {}, (EMPTY, VECTORS, MASKED.format(EMPTY), MASKED.format(EMPTY), EMPTY)),
  (optax_ext.nd_adam, (RATE,), {}, (EMPTY, VECTORS, MASKED.format(SCHEDULE), MASKED.format(SCHEDULE), EMPTY)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("factory", "args", "options", "expected"), LAYOUT)
def test_layout_is_frozen(factory, args, options, expected):
  """Names, dtypes, shapes and nesting of the state: whoever changes this breaks the checkpoints of all users."""
  tx = factory(*args, **options)
  state = tx.init(LAYOUT_PARAMS)
  assert describe(state) == "(" + ", ".join(expected) + ")"
  _, after = tx.update(LAYOUT_PARAMS, state, LAYOUT_PARAMS)
  assert describe(after) == describe(state)
  assert jax.tree.structure(after) == jax.tree.structure(state)


def identical(a, b):
  """Whether two trees hold the same bits; arrays may live on different devices."""

  def bits(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf.dtype, np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

  return [*map(bits, jax.tree.leaves(a))] == [*map(bits, jax.tree.leaves(b))]


def abstract_leaf(leaf):
  sharding = getattr(leaf, "sharding", jax.sharding.SingleDeviceSharding(jax.devices()[0]))
  return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)


X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), jnp.float32)


class Network(nnx.Module):
  def __init__(self, seed):
    rngs = nnx.Rngs(seed)
    self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)

  def __call__(self, x):
    return self.layers[1](self.dropout(nnx.relu(self.norm(self.layers[0](x)))))


@pytest.mark.heavy
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nnx_training_goes_on_to_the_bit(name, tmp_path):
  """Model, batch statistics, random state and optimizer, restored into abstract state of a new process's objects."""

  def create(seed):
    model = Network(seed)
    return model, nnx.Optimizer(model, OPTIMIZERS[name](), wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer):
    optimizer.update(model, nnx.grad(lambda model: ((model(X) - X) ** 2).mean())(model))

  def train(pair):
    for _ in range(3):
      step(*pair)

  pair = create(0)
  train(pair)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", nnx.to_pure_dict(nnx.state(pair)))
    checkpointer.wait_until_finished()
    train(pair)
    other = create(1)
    state = nnx.state(other)
    abstract = jax.tree.map(abstract_leaf, nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, checkpointer.restore(tmp_path / "state", abstract))
  nnx.update(other, state)
  assert not identical(nnx.state(other), nnx.state(pair))
  train(other)
  assert identical(nnx.state(other), nnx.state(pair))


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return nn.tanh(nn.Dense(8)(x)), None


class Scanned(nn.Module):
  @nn.compact
  def __call__(self, x):
    stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    return nn.Dense(8)(stack(x, None)[0])


@pytest.mark.heavy
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_linen_training_goes_on_to_the_bit(name, tmp_path):
  """A `TrainState`, restored into the shapes, dtypes and shardings of a new one."""
  network = Scanned()

  def create(seed):
    variables = network.init(jax.random.key(seed), X)
    return train_state.TrainState.create(apply_fn=network.apply, params=variables["params"], tx=OPTIMIZERS[name]())

  @jitted
  def step(state):
    loss = lambda params: ((state.apply_fn({"params": params}, X) - X) ** 2).mean()
    return state.apply_gradients(grads=jax.grad(loss)(state.params))

  def train(state):
    for _ in range(3):
      state = step(state)
    return state

  state = train(create(0))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", jax.tree.map(abstract_leaf, create(1)))
  assert jax.tree.structure(restored.opt_state) == jax.tree.structure(state.opt_state)
  assert identical(train(restored), train(state))


@pytest.mark.heavy
def test_restore_onto_another_mesh(tmp_path):
  """Saved from 8 devices that split inputs, restored onto 2×4 that split inputs and outputs: the same bits."""
  params = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(8, 16)), jnp.float32), "bias": jnp.ones(16)}
  txs = {name: make() for name, make in OPTIMIZERS.items()}

  def everything(mesh, kernel, bias):
    """Shardings of parameters and state, for each optimizer."""
    of_params = {"kernel": NamedSharding(mesh, kernel), "bias": NamedSharding(mesh, bias)}
    return {name: (of_params, state_shardings(tx, params, of_params)) for name, tx in txs.items()}

  def step(all_states):
    new = {}
    for name, (params, state) in all_states.items():
      updates, state = txs[name].update(jax.tree.map(jnp.sin, params), state, params)
      new[name] = optax.apply_updates(params, updates), state
    return new

  mesh = lambda *shape: jax.make_mesh(shape, ("data", "model"), (AxisType.Auto,) * 2)
  first, second = everything(mesh(8, 1), P("data"), P("data")), everything(mesh(2, 4), P("model", "data"), P("model"))
  states = jax.jit(lambda: {name: (params, tx.init(params)) for name, tx in txs.items()}, out_shardings=first)()
  on_first, on_second = jax.jit(step, out_shardings=first), jax.jit(step, out_shardings=second)
  for _ in range(3):
    states = on_first(states)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", states)
    checkpointer.wait_until_finished()
    describe = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    restored = checkpointer.restore(tmp_path / "state", jax.tree.map(describe, states, second))
  assert identical(restored, states)
  assert jax.tree.all(jax.tree.map(lambda leaf, s: leaf.sharding.is_equivalent_to(s, leaf.ndim), restored, second))
  close = lambda a, b: np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-5, atol=1e-6)
  jax.tree.map(close, on_second(restored), on_first(states))


DIGITS = """
import numpy as np

def load_digits(return_X_y):
  table = np.loadtxt({path!r}, delimiter=",")
  return table[:, :-1], table[:, -1].astype(int)
"""


@pytest.mark.heavy
def test_killed_runs_end_as_if_never_killed(tmp_path, monkeypatch):
  """SIGKILL at random moments, saving in the background all the time; benchmarks/kill_test.py does it 20 times.

  The run that is never killed is one process. Those that are killed are one process and two; each has two devices in
  all. They read scikit-learn's digits without importing it, which takes as long as all else that they import.
  """
  folder = pathlib.Path(importlib.util.find_spec("sklearn").origin).parent
  (tmp_path / "sklearn").mkdir()
  (tmp_path / "sklearn" / "__init__.py").touch()
  (tmp_path / "sklearn" / "datasets.py").write_text(DIGITS.format(path=str(folder / "datasets/data/digits.csv.gz")))
  monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
  cache_programs(monkeypatch, tmp_path / "programs")
  steps, devices = 8, 2
  expected = kill_test.whole_run(tmp_path / "whole", steps, 1, devices)
  for processes, kills in ((1, 2), (2, 1)):
    end, lives = kill_test.killed_run(tmp_path / f"killed {processes}", steps, kills, 0, processes, devices)
    assert end == expected
    assert len(lives) == kills
    resumed = [life.resumed for life in lives if life.resumed is not None]
    assert resumed == sorted(resumed)  # no checkpoint that was complete is ever lost
    for life, following in itertools.pairwise(lives):
      assert following.resumed is None or following.resumed <= life.reached + 1  # saved before it is said


GRADS = [{"w": jnp.asarray(np.random.default_rng(t).normal(size=(4, 3)), jnp.float32), "b": None} for t in range(30)]
PARAMS = {"w": jnp.ones((4, 3)), "b": None}
BIASED = {
  "adamw": lambda rate: optax.adamw(rate),
  "exadam": lambda rate: optax_ext.exadam(rate),
  "caadam": lambda rate: optax_ext.caadam(rate),
}
DECAYS = (0.9, 0.999)


def moments_of(state):
  return optax.tree.get(state, "ScaleByAdamState")


def after(tx, steps=GRADS, state=None, params=PARAMS):
  """The state after these gradients."""
  state = tx.init(params) if state is None else state
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)
  return jax.lax.scan(lambda state, grads: (tx.update(grads, state, params)[1], None), state, stacked)[0]


@pytest.mark.parametrize("new", ["exadam", "caadam", "adamw"])
@pytest.mark.parametrize("old", ["exadam", "caadam", "adamw"])
def test_biased_averages_are_copied(old, new):
  """The new optimizer's state is, to the bit, the one that it would have had from the same gradients (to rounding)."""
  state = after(BIASED[old](1e-3))
  got = convert_moments(state, BIASED[new](1e-3).init(PARAMS), decays=DECAYS, new_decays=DECAYS)
  assert identical(moments_of(got), moments_of(state))
  own = after(BIASED[new](1e-3))
  assert jax.tree.structure(got) == jax.tree.structure(own)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)
  jax.tree.map(close, got, own)


def test_a_converted_state_and_the_old_one_can_both_be_donated():
  """Every count, of moments, log step and schedule, has a buffer of its own."""
  old, new = optax.adamw(1e-3), optax_ext.exadam(optax.linear_schedule(1e-3, 0, 10))
  state = after(old)
  got = convert_moments(state, new.init(PARAMS), decays=DECAYS, new_decays=DECAYS)
  for tx, given in ((new, got), (old, state)):
    step = jax.jit(lambda state, tx=tx: tx.update(GRADS[0], state, PARAMS)[1], donate_argnums=0)
    assert moments_of(step(given)).count == 31


@pytest.mark.slow
@pytest.mark.parametrize("old", BIASED)
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_to_adamnx_and_back(old, steps):
  """AdamNX's mean of the same gradients *is* the converted one; its square is Adam's debiased; and back is the way."""
  with enable_x64(True):
    grads = jax.tree.map(lambda g: g.astype(jnp.float64), GRADS[:steps])
    params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
    state, tx = after(BIASED[old](1e-3), grads, params=params), optax_ext.adamnx(1e-3)
    there = convert_moments(state, tx.init(params), decays=DECAYS, new_decays=(0, 0))
    own = after(tx, grads, params=params)
    np.testing.assert_allclose(moments_of(there).mu["w"], moments_of(own).mu["w"], rtol=1e-12)
    debiased = sum(0.999 ** (steps - 1 - t) * 0.001 * g["w"] ** 2 for t, g in enumerate(grads)) / (1 - 0.999**steps)
    np.testing.assert_allclose(moments_of(there).nu["w"], debiased, rtol=1e-11)
    assert moments_of(there).count == steps
    back = convert_moments(there, BIASED[old](1e-3).init(params), decays=(0, 0), new_decays=DECAYS)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13)
    jax.tree.map(close, moments_of(back), moments_of(state))
    # and the run goes on: the next average is AdamNX's own, at its own step
    gain = optax_ext.adamnx_gain(0.99)(steps + 1)
    following = after(tx, grads[:1], there, params)
    expected = debiased + gain * (grads[0]["w"] ** 2 - debiased)
    np.testing.assert_allclose(moments_of(following).nu["w"], expected, rtol=1e-11)


def test_other_decays():
  """From b2 = 0.95 to 0.999: what the moments stand for, their debiased values, stays."""
  state = after(optax.adamw(1e-3, b2=0.95))
  got = convert_moments(state, optax_ext.exadam(1e-3).init(PARAMS), decays=(0.9, 0.95), new_decays=DECAYS)
  debiased = lambda state, b: moments_of(state).nu["w"] / (1 - b**30)
  np.testing.assert_allclose(debiased(got, 0.999), debiased(state, 0.95), rtol=1e-5)
  assert identical(moments_of(got).mu, moments_of(state).mu)


def test_before_the_first_step_and_under_jit():
  state, new = optax.adamw(1e-3).init(PARAMS), optax_ext.adamnx(1e-3)
  convert = jax.jit(lambda state: convert_moments(state, new.init(PARAMS), decays=DECAYS, new_decays=(0.0, 0.0)))
  assert identical(convert(state), new.init(PARAMS))
  state = after(optax.adamw(1e-3))
  outside = convert_moments(state, new.init(PARAMS), decays=DECAYS, new_decays=(0.0, 0.0))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
  jax.tree.map(close, convert(state), outside)


def test_schedules_go_on():
  old, new = optax.adamw(RATE), optax_ext.exadam(RATE, weight_decay=RATE)
  got = convert_moments(after(old), new.init(PARAMS), decays=DECAYS, new_decays=DECAYS)
  assert describe(got) == describe(new.init(PARAMS))
  counts = [
    leaf for path, leaf in jax.tree_util.tree_flatten_with_path(got)[0] if "count" in jax.tree_util.keystr(path)
  ]
  assert [int(count) for count in counts] == [30] * 4


WRAPPERS = {
  "masked": lambda make: optax.masked(make(1e-3), {"w": True, "b": False}),
  "partition": lambda make: optax.partition({"x": make(1e-3), "y": optax.sgd(1e-3)}, {"w": "x", "b": "y"}),
  "MultiSteps": lambda make: optax.MultiSteps(make(1e-3), 2),
  "inject_hyperparams": lambda make: optax.inject_hyperparams(make)(1e-3),
  "apply_if_finite": lambda make: optax.apply_if_finite(make(1e-3), 2),
  "chain": lambda make: optax.chain(optax.clip_by_global_norm(1.0), make(1e-3)),
}


def test_schedules_go_on_at_the_count_of_their_own_group():
  """Beside a group whose steps MultiSteps counts in pairs."""
  params, schedule = {"a": jnp.ones(2), "b": jnp.ones(2)}, optax.linear_schedule(1.0, 0.0, 100)

  def groups(make):
    pairs = optax.MultiSteps(make(schedule), 2).gradient_transformation()
    return optax.partition({"x": pairs, "y": make(schedule)}, {"a": "x", "b": "y"})

  state = after(groups(optax.adam), [params] * 10, params=params)
  got = convert_moments(state, groups(optax_ext.adamnx).init(params), decays=DECAYS, new_decays=(0, 0))
  counts = {
    group: {int(count) for _, count in optax.tree.get_all_with_path(of, "count")}
    for group, of in got.inner_states.items()
  }
  assert counts == {"x": {5}, "y": {10}}


def test_complex_squares_become_real():
  params = {"w": jnp.full(2, 1 + 1j)}
  state = after(optax.adam(1e-3), [params] * 3, params=params)
  with warnings.catch_warnings(action="error"):
    got = convert_moments(state, optax_ext.adamnx(1e-3).init(params), decays=DECAYS, new_decays=(0, 0))
  assert moments_of(got).nu["w"].dtype == jnp.float32
  np.testing.assert_allclose(moments_of(got).nu["w"], 2, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_alike(wrapper):
  params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
  steps = [{"w": grads["w"], "b": grads["w"][0]} for grads in GRADS]
  wrap = WRAPPERS[wrapper]

  def adamnx(learning_rate):
    return optax_ext.adamnx(learning_rate)

  def adamw(learning_rate):
    return optax.adamw(learning_rate)

  state, new = after(wrap(adamw), steps, params=params), wrap(adamnx)
  got = convert_moments(state, new.init(params), decays=DECAYS, new_decays=(0, 0))
  own = after(new, steps, params=params)
  assert describe(got) == describe(own)
  np.testing.assert_allclose(moments_of(got).mu["w"], moments_of(own).mu["w"], rtol=1e-5, atol=1e-7)
  assert moments_of(got).count == moments_of(own).count
  after(new, steps, got, params)


def test_dtypes_are_the_new_optimizers():
  """optax keeps a bfloat16 parameter's square in bfloat16; here it is float32."""
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
  steps = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), GRADS)
  state, new = after(optax.adamw(1e-3), steps, params=params), optax_ext.adamnx(1e-3)
  got = convert_moments(state, new.init(params), decays=DECAYS, new_decays=(0, 0))
  assert describe(got) == describe(new.init(params))
  expected = np.asarray(moments_of(state).nu["w"], np.float64) / (1 - 0.999**30)
  np.testing.assert_allclose(moments_of(got).nu["w"], expected, rtol=1e-5)


@pytest.mark.heavy
def test_nnx_optimizers():
  model = Network(0)
  old, new = (nnx.Optimizer(model, tx(1e-3), wrt=nnx.Param) for tx in (optax.adamw, optax_ext.adamnx))
  loss = lambda model: ((model(X) - X) ** 2).mean()
  for _ in range(2):
    old.update(model, nnx.grad(loss)(model))
  structure = jax.tree.structure(new.opt_state)
  new.opt_state = nnx.data(convert_moments(old.opt_state, new.opt_state, decays=DECAYS, new_decays=(0, 0)))
  assert jax.tree.structure(new.opt_state) == structure
  mean = lambda optimizer: moments_of(optimizer.opt_state).mu["layers"][0]["kernel"][...]
  np.testing.assert_allclose(mean(new), mean(old) / (1 - 0.9**2), rtol=1e-6)
  new.update(model, nnx.grad(loss)(model))
  assert int(jax.tree.leaves(moments_of(new.opt_state).count)[0]) == 3


@pytest.mark.slow
def test_residuals_of_split_weights_go_on():
  """They are a part of the weights. A state that has no place for them, or one of other bits, is refused."""
  narrow = {"w": PARAMS["w"].astype(jnp.bfloat16)}
  split = lambda make, **options: optax_ext.split_weights(make(1e-3), **options)
  old, new = split(optax.adam), split(optax_ext.adamnx)
  grads, state = {"w": jnp.ones_like(narrow["w"])}, old.init(narrow)
  for _ in range(2):
    updates, state = old.update(grads, state, narrow)
    narrow = optax.apply_updates(narrow, updates)
  assert np.any(state.residual["w"] != 0)
  convert = functools.partial(convert_moments, state, decays=(0.9, 0.999), new_decays=(0, 0))
  converted = convert(new.init(narrow))
  for weights, other in zip(
    *(jax.tree.leaves(optax_ext.join_weights(narrow, s)) for s in (state, converted)), strict=True
  ):
    np.testing.assert_array_equal(weights, other)
  assert converted.count == converted.inner_state[0].count == 2
  for other, says in (
    (optax_ext.adamnx(1e-3), "has no place"),
    (split(optax_ext.adamnx, bits=32), "differ in paths or bits"),
  ):
    with pytest.raises(ValueError, match=says):
      convert(other.init(narrow))
  taken_in = convert_moments(optax.adam(1e-3).init(PARAMS), old.init(narrow), decays=(0, 0), new_decays=(0, 0))
  assert not np.any(taken_in.residual["w"])


def test_conversion_errors():
  state = after(optax.adamw(1e-3))
  new = optax_ext.adamnx(1e-3).init(PARAMS)
  convert = lambda state, new, decays=DECAYS, new_decays=(0, 0): convert_moments(
    state, new, decays=decays, new_decays=new_decays
  )
  with pytest.raises(
    ValueError, match=r"nu of 'w' has shape \(4, 3\) in state and \(1, 3\) .* one second moment for each"
  ):
    convert(state, optax_ext.nd_adam(1e-3).init(PARAMS), new_decays=DECAYS)
  codes = optax_ext.quantize_state(optax_ext.adamnx(1e-3), min_size=1).init(PARAMS)
  with pytest.raises(ValueError, match=r"mu of 'w' is codes of quantize_state in new_state \(int8\)"):
    convert(state, codes)
  with pytest.raises(ValueError, match=r"mu of 'w' is codes of quantize_state in state \(int8\)"):
    convert(codes, state, new_decays=DECAYS)
  with pytest.raises(ValueError, match="of 1 transformations and new_state of 0, but there must be as many in both"):
    convert(state, optax.sgd(1e-3).init(PARAMS))
  with pytest.raises(ValueError, match=r"does not match the parameters: it has nothing for 'v' and it names 'w'"):
    convert(state, optax_ext.adamnx(1e-3).init({"v": PARAMS["w"]}))
  with pytest.raises(ValueError, match=r"decays\[1\] must be a number in \[0, 1\), but was 1"):
    convert(state, new, decays=(0.9, 1.0))
  with pytest.raises(TypeError, match=r"new_decays must be a tuple of two numbers \(b1, b2\), but was None"):
    convert(state, new, new_decays=None)
  with pytest.raises(ValueError, match='schedules must be "keep" or "restart", but was True'):
    convert_moments(state, new, decays=DECAYS, new_decays=(0, 0), schedules=True)


def test_schedules_may_start_again():
  """A second cosine: moments and their bias corrections go on, learning rate and decay are those of a new run."""
  old, new = optax.adamw(RATE), optax_ext.exadam(RATE, weight_decay=RATE, log_step=False)
  got = convert_moments(after(old), new.init(PARAMS), decays=DECAYS, new_decays=DECAYS, schedules="restart")
  kept = convert_moments(after(old), new.init(PARAMS), decays=DECAYS, new_decays=DECAYS)
  has_count = lambda node: "count" in getattr(node, "_fields", ())
  counts = lambda state: [int(node.count) for node in jax.tree.leaves(state, is_leaf=has_count)]
  assert counts(got) == [30, 0, 0]
  assert counts(kept) == [30, 30, 30]
  assert identical(moments_of(got), moments_of(kept))
  with pytest.raises(AssertionError):
    jax.tree.map(
      np.testing.assert_array_equal,
      *(new.update(PARAMS, state, PARAMS)[0] for state in (got, kept)),
    )


MASK = {name: True for name in PARAMS}
LAYOUTS = {
  "mask": (
    optax_ext.exadam(1e-3),
    optax_ext.exadam(1e-3, weight_decay=0.1, mask=MASK),
    r"state\[2\] is of type EmptyState, where the optimizer has MaskedState",
  ),
  "schedule of decay": (
    optax_ext.adamnx(1e-3),
    optax_ext.adamnx(1e-3, weight_decay=RATE),
    r"state\[1\] is of type EmptyState, where the optimizer has WeightDecaySchedule",
  ),
  "one link more": (
    optax_ext.exadam(1e-3),
    optax_ext.exadam(1e-3, rule=optax_ext.ByDepth()),
    r"state has 4 parts \(.*\), where the optimizer has 5 \(ScaleByAdamState, .*\)",
  ),
  "nd_adam": (
    optax.adamw(1e-3),
    optax_ext.nd_adam(1e-3, axes=(0,)),
    r"state has 3 parts \(.*\), where the optimizer has 5 \(EmptyState, ScaleByAdamState, .*\)",
  ),
  "8 bits": (
    optax.adam(1e-3),
    optax_ext.quantize_state(optax.adam(1e-3), min_size=1),
    "state is of type tuple, where the optimizer has QuantizedState",
  ),
}


@pytest.mark.parametrize(("old", "new", "says"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_state_of_another_layout(old, new, says):
  """The difference is named; with a state of its own the same step raises nothing, or its own error."""
  step = lambda state, params: jax.eval_shape(new.update, PARAMS, state, params)
  with pytest.raises(ValueError, match=f"^The state is none of this optimizer: {says}. Another optimizer has made it"):
    step(old.init(PARAMS), PARAMS)
  step(jax.eval_shape(new.init, PARAMS), PARAMS)
  if says.startswith("state has 3"):
    with pytest.raises(ValueError, match=r"^project_out_params needs the current value of the parameters, but "):
      step(jax.eval_shape(new.init, PARAMS), None)
