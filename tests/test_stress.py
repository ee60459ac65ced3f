"""Numbers at the ends of their ranges, very long runs, narrow dtypes, random combinations."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import enable_x64, jitted

import optax_ext

pytestmark = [
  pytest.mark.filterwarnings("ignore:(scale_by_structure|nd_adam) sees"),  # one leaf at a time
  pytest.mark.filterwarnings("ignore:The regular expression"),  # of masks, in trees of any names
]

MAKE = {
  "exadam": optax_ext.exadam,
  "adamnx": optax_ext.adamnx,
  "caadam": functools.partial(optax_ext.caadam, rule=optax_ext.ByDepth() * optax_ext.Additive()),
  "nd_adam": optax_ext.nd_adam,
}
each_optimizer = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
DTYPES = {"float16": jnp.float16, "bfloat16": jnp.bfloat16, "float32": jnp.float32, "complex64": jnp.complex64}


# any shape, any dtype, any magnitude

SHAPES = [(), (1,), (4,), (1, 1), (3, 2), (0, 2), (2, 1, 3), (1, 2, 1, 2)]
magnitudes = st.one_of(st.just(0.0), st.floats(-45, 38).map(lambda exponent: 10.0**exponent))
sizes = st.tuples(magnitudes, magnitudes.map(lambda size: min(size, 1e3)))  # of gradients, of parameters


@st.composite
def trees(draw):
  """All shapes, in dtypes that only four trees have, as each is compiled: every shape in every dtype."""
  first, dtypes = draw(st.integers(0, 3)), list(DTYPES)
  return [(shape, dtypes[(i + first) % 4], *draw(sizes)) for i, shape in enumerate(SHAPES)]


def array(shape, dtype, size, seed):
  """Of about that size, finite in its dtype; denormals stay denormal."""
  rng = np.random.default_rng(seed)
  raw = rng.uniform(-1, 1, shape) * size
  raw = raw + 1j * rng.uniform(-1, 1, shape) * size if dtype == "complex64" else raw
  largest = float(jnp.finfo(DTYPES[dtype]).max)
  return jnp.asarray(raw if dtype == "complex64" else np.clip(raw, -largest, largest), DTYPES[dtype])


def build(tree, seed):
  """Parameters and gradients."""
  params, grads = {}, {}
  for i, (shape, dtype, of_grads, of_params) in enumerate(tree):
    name = f"layer_{i}/{'kernel' if i % 2 else 'bias'}"
    params[name], grads[name] = array(shape, dtype, of_params, seed + i), array(shape, dtype, of_grads, seed - i)
  return params, grads


def types(tree):
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@functools.cache
def step_of(make, eps=1e-8):
  return jitted(make(1e-3, eps=eps).update)


@pytest.mark.heavy
@pytest.mark.parametrize("eps", [1e-8, 0.0])
@each_optimizer
@given(tree=trees(), seed=st.integers(10, 2**20))
@example(tree=[((), "bfloat16", 1e38, 0.0)], seed=10)  # g² is infinite, and so is EXAdam's g/c₁
@example(tree=[((), "float16", 0.0, 0.0), ((1, 1), "bfloat16", 1e36, 1e3)], seed=10)  # g·w is infinite
@example(tree=[((1, 1), "bfloat16", 1e31, 1e-8)], seed=10)  # and here g·w/w·w
@settings(deadline=None, max_examples=12)
def test_finite_gradients_give_finite_updates(make, eps, tree, seed):
  """Two steps there, one back, one of zeros: nothing is ever NaN, updates are finite, types stay."""
  params, grads = build(tree, seed)
  tx = make(1e-3, eps=eps)
  state, update = tx.init(params), step_of(make, eps)
  for scale in (1, -0.5, 0):
    updates, new = update(jax.tree.map(lambda g, scale=scale: (scale * g).astype(g.dtype), grads), state, params)
    assert types(updates) == types(params)
    assert types(new) == types(state)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(updates))
    assert not any(np.isnan(np.asarray(leaf)).any() for leaf in jax.tree.leaves(new))
    state = new


@pytest.mark.heavy
@each_optimizer
@given(tree=trees(), which=st.integers(0, 7), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
@settings(deadline=None, max_examples=20)
def test_a_bad_leaf_changes_no_other(make, tree, which, bad):
  params, grads = build(tree, 7)
  spoiled = list(grads)[which % len(grads)]
  tx = make(1e-3)
  one, update = tx.init(params), step_of(make)
  two = one
  moments = lambda state: [optax.tree.get(state, name) for name in ("mu", "nu")]
  for _ in range(2):
    want, one = update(grads, one, params)
    got, two = update(grads | {spoiled: jnp.full_like(grads[spoiled], bad)}, two, params)
    for a, b in zip([got, *moments(two)], [want, *moments(one)], strict=True):
      for name in set(grads) - {spoiled}:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.slow
@each_optimizer
def test_zero_gradients_and_no_eps_in_a_compiled_step(make):
  """XLA turns m/c₁/floor into m/(c₁·floor), and flushes denormals: 0/0 unless the floor is well above the smallest."""
  params = {"kernel": jnp.ones((2, 2)) / 2**0.5, "bias": jnp.zeros(3, jnp.bfloat16)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  tx = make(1e-2, eps=0.0) if make is optax_ext.nd_adam else make(1e-2, eps=0.0, weight_decay=0.0)
  state = tx.init(params)
  for _ in range(3):
    updates, state = jax.jit(tx.update)(zeros, state, params)
    for leaf in jax.tree.leaves(updates):
      np.testing.assert_allclose(np.asarray(leaf, np.float32), 0, atol=1e-7)


@pytest.mark.slow
@each_optimizer
def test_a_mean_stored_in_float16_ends_at_its_largest_number(make):
  """optax.adam's becomes infinite here, and its updates NaN."""
  params, tx = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(3)}, make(1e-2, mu_dtype=jnp.float16)
  state = tx.init(params)
  for size in (1e20, 1e10, 1.0):
    updates, state = tx.update(jax.tree.map(lambda p, size=size: size * p, params), state, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, optax.tree.get(state, "mu"))))


# long runs


NOISE = np.random.default_rng(0).normal(size=(997, 3, 2)).astype(np.float32)


def long_run(make, dtype, steps):
  """On a noisy quadratic whose minimum is made of unit vectors: the parameters and the moments at the end."""
  target = jnp.asarray([[0.6, 0.0], [0.8, 0.6], [0.0, 0.8]], dtype)
  noise, params = jnp.asarray(NOISE, dtype), jnp.eye(3, 2, dtype=dtype)
  tx = make(1e-5 if make is optax_ext.nd_adam else 1e-3)

  def step(carry, t):
    params, state = carry
    updates, state = tx.update(params - target + noise[t % 997], state, params)
    return (optax.apply_updates(params, updates), state), None

  (params, state), _ = jitted(lambda: jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps)))()
  moments = next(part for part in state if isinstance(part, optax.ScaleByAdamState))
  assert int(moments.count) == steps
  return params, moments.mu, moments.nu


@pytest.mark.heavy
@each_optimizer
def test_a_million_steps_in_float32_against_float64(make):
  """Relative to the largest element: measured 9e-5 for parameters and mean, 2e-4 for AdamNX's square.

  The squares are near 1, the noise's variance: neither frozen at the start's nor lost.
  """
  narrow = long_run(make, jnp.float32, 1_000_000)
  with enable_x64(True):
    wide = long_run(make, jnp.float64, 1_000_000)
  wide = [np.asarray(leaf) for leaf in wide]
  for a, b, bound in zip(narrow, wide, (5e-4, 1e-3, 1e-3), strict=True):
    assert b.dtype == np.float64
    assert np.max(np.abs(np.asarray(a, np.float64) - b)) <= bound * np.max(np.abs(b))
  of_vector = 3 if make is optax_ext.nd_adam else 1
  assert np.all(np.abs(wide[2] / of_vector - 1) < 0.5)


@each_optimizer
def test_the_step_counter_stops_at_its_largest_value(make):
  """int32, 2³¹ − 1: no overflow, no NaN, and the direction of a constant gradient is as it was before."""
  params = {"kernel": jnp.eye(3, 2), "bias": jnp.ones(2)}
  grads = jax.tree.map(jnp.ones_like, params)
  tx = make(1e-3)
  late = jax.tree.map(
    lambda leaf: jnp.int32(2**31 - 3) if leaf.dtype == jnp.int32 else jnp.ones_like(leaf), tx.init(params)
  )
  steps = []
  for _ in range(5):
    updates, late = jax.jit(tx.update)(grads, late, params)
    steps.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)]))
  assert all(int(leaf) == 2**31 - 1 for leaf in jax.tree.leaves(late) if leaf.dtype == jnp.int32)
  assert np.isfinite(steps).all()
  assert np.any(steps[0])
  np.testing.assert_allclose(steps, [steps[0]] * 5, rtol=0.1, atol=1e-7)
  if make is optax_ext.exadam:  # α·½·ln(2(t+1))·2·g/√v
    np.testing.assert_allclose(steps[-1], -1e-3 * np.log(2.0**32), rtol=1e-5)


# narrow dtypes


@pytest.mark.heavy
@each_optimizer
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("moments", ["default", "same"])
def test_training_in_a_narrow_dtype_throughout(make, dtype, moments):
  """Parameters, gradients and, if asked, both moments: a regression is learnt almost as in float32."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(64, 4))
  unit = lambda w: w / np.linalg.norm(w, axis=0)
  y = x @ unit(rng.normal(size=(4, 3))) + 0.5

  def final(dtype, **kwargs):
    tx = make({"exadam": 2e-3, "nd_adam": 1e-3}.get(make.__name__ if hasattr(make, "__name__") else "", 1e-2), **kwargs)
    params = {
      "kernel": jnp.asarray(unit(np.random.default_rng(1).normal(size=(4, 3))), dtype),
      "bias": jnp.zeros(3, dtype),
    }
    loss = lambda params: jnp.mean(
      (jnp.asarray(x, dtype) @ params["kernel"] + params["bias"] - jnp.asarray(y, dtype)) ** 2
    )

    def step(carry, _):
      params, state = carry
      value, grads = jax.value_and_grad(loss)(params)
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), value

    (params, state), losses = jitted(lambda: jax.lax.scan(step, (params, tx.init(params)), length=400))()
    assert params["kernel"].dtype == dtype
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves((params, state)))
    return float(losses[0]), float(jnp.mean(losses[-20:]))

  first, last = final(dtype, **({} if moments == "default" else {"mu_dtype": dtype, "nu_dtype": dtype}))
  assert last < 0.02 * first


# random combinations


def fuzz():
  path = pathlib.Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
  spec = importlib.util.spec_from_file_location("fuzz", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.heavy
def test_random_combinations():
  """A slice of benchmarks/fuzz.py, which runs 10,000."""
  kinds, found = fuzz().fuzz(24, seed=1)
  assert found == []
  assert kinds.total() == 24


EXTREMES = np.float32([0, 1e-45, 1.2e-38, 1e-30, 1e-19, 1e-8, 1, 1e8, 1.8e19, 2e19, 1e30, 3.3e37, 1.7e38])
TWICE = {
  **MAKE,
  "in bfloat16": functools.partial(
    optax_ext.exadam, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16, rounding=optax_ext.stochastic(0)
  ),
  "in float16": functools.partial(optax_ext.adamnx, mu_dtype=jnp.float16, nu_dtype=jnp.float16),
}


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1000, 10**6])
@pytest.mark.parametrize("make", TWICE.values(), ids=TWICE)
def test_every_pair_of_extremes_compiled_and_not(make, count):
  """Compiled or not, what is written is computed: all updates are finite, and the same to rounding."""
  signed = np.concatenate([EXTREMES, -EXTREMES])
  grads = jnp.asarray(np.stack(np.meshgrid(signed, signed)))  # two steps
  tx, params = make(1e-3), {"kernel": jnp.ones_like(grads[0])}

  def steps(grads):
    state, updates = optax.tree.set(tx.init(params), count=jnp.int32(count)), []
    for g in grads:
      update, state = tx.update({"kernel": g}, state, params)
      updates.append(update["kernel"])
    return jnp.stack(updates)

  as_written, compiled = np.asarray(steps(grads)), np.asarray(jax.jit(steps)(grads))
  assert np.isfinite(as_written).all()
  np.testing.assert_allclose(compiled, as_written, rtol=2e-6, atol=1e-9)
