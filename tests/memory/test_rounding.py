"""Stochastic rounding: exact in expectation, independent wherever it must be, the same bits wherever it must be."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import enable_x64, open_loop

import optax_ext
from optax_ext._memory.rounding import round_to_bfloat16, stochastic

BF16 = jnp.bfloat16
LARGEST = float(jnp.finfo(BF16).max)
EVERY_WORD = jnp.arange(2**16, dtype=jnp.uint32)  # all random numbers that an element can draw
BOTH = {"mu_dtype": BF16, "nu_dtype": BF16}


def adam(rounding, b2=0.999, **dtypes):
  return optax_ext.scale_by_moments(
    optax_ext.constant_gain(0.9), optax_ext.constant_gain(b2), rounding=rounding, **(dtypes or BOTH)
  )


def numbers():
  """Float32 numbers of every binade, signs, neighbours of powers of two, and subnormal ones."""
  rng = np.random.default_rng(0)
  words = rng.integers(0, 2**32, 60, dtype=np.uint32)
  subnormal = rng.integers(0, 2**23, 20, dtype=np.uint32)
  powers = np.float32(2.0) ** np.arange(-126, 127, 23, dtype=np.float32)
  near = np.concatenate([np.nextafter(powers, np.float32(0)), np.nextafter(powers, np.float32(np.inf)), -powers, [0]])
  x = np.concatenate([words.view(np.float32), subnormal.view(np.float32), near.astype(np.float32)])
  return x[np.abs(x) <= LARGEST]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_mean_over_all_random_numbers_is_exact(compiled):
  """Not statistics: all 65,536 equally likely results of each number are added up."""
  x = numbers()
  rounded = jax.vmap(round_to_bfloat16, (0, None))
  rounded = (jax.jit(rounded) if compiled else rounded)(jnp.asarray(x), EVERY_WORD)
  results = np.asarray(rounded).astype(np.float64)
  np.testing.assert_array_equal(results.mean(axis=1), x.astype(np.float64))
  low, high = results.min(axis=1), results.max(axis=1)
  assert np.all((results == low[:, None]) | (results == high[:, None]))
  exact = x == x.astype(BF16).astype(np.float32)
  assert np.all((low == high) == exact)
  steps = np.asarray(high, BF16).view(np.int16).astype(int) - np.asarray(low, BF16).view(np.int16).astype(int)
  assert np.all(np.abs(steps) <= 1)  # neighbours


def test_finite_stays_finite_and_the_rest_passes():
  x = jnp.array([np.inf, -np.inf, np.nan, LARGEST * 1.001, -3.4e38], jnp.float32)
  x = x.at[2].set(np.uint32(0x7FFFFFFF).view(np.float32))  # a NaN that a carry would make −0
  rounded = np.asarray(jax.vmap(round_to_bfloat16, (None, 0))(x, EVERY_WORD)).astype(np.float32)
  want = np.array([np.inf, -np.inf, np.nan, LARGEST, -LARGEST], np.float32)
  np.testing.assert_array_equal(rounded, np.broadcast_to(want, rounded.shape))
  with enable_x64(True):
    assert float(round_to_bfloat16(jnp.float64(1e300), jnp.uint32(0xFFFF))) == LARGEST


def rounded_up(tree, t, rounding=stochastic(0)):  # noqa: B008 (frozen)
  """Whether each moment, halfway between two bfloat16 numbers, is rounded up at step t: (2, elements) for each path."""
  middle = 1 + 2.0**-8
  storing = rounding.at(jnp.int32(t))
  x = {path: jnp.full(shape, middle, jnp.float32) for path, shape in tree.items()}
  return {path: np.stack(storing(path, a, a, BF16, BF16)).astype(np.float32) > middle for path, a in x.items()}


def test_elements_leaves_steps_and_moments_are_independent():
  size = 1 << 14
  draws = [
    draw
    for t, seed in ((1, 0), (2, 0), (1, 1))
    for moments in rounded_up({"a": size, "b": size}, t, stochastic(seed)).values()
    for draw in moments
  ]
  draws += [np.roll(draws[0], shift) for shift in (1, 2, 8, 128)]
  signs = 2.0 * np.asarray(draws) - 1
  correlation = signs @ signs.T / size - np.eye(len(signs))
  assert np.abs(correlation).max() < 5 / size**0.5
  assert np.abs(signs.mean(axis=1)).max() < 5 / size**0.5


@pytest.mark.heavy
def test_bits_depend_on_seed_path_index_and_step_alone():
  """Not on sharding, on jit, on the other leaves, or on the program's own generator."""
  want = rounded_up({"a": (16, 8)}, 7)["a"]
  np.testing.assert_array_equal(rounded_up({"z": 5, "a": (16, 8), "0": 3}, 7)["a"], want)
  with jax.default_prng_impl("rbg"):
    np.testing.assert_array_equal(rounded_up({"a": (16, 8)}, 7)["a"], want)
  x = jnp.full((16, 8), 1 + 2.0**-8, jnp.float32)
  for kind, spec in ((AxisType.Auto, P("x", "y")), (AxisType.Auto, P(None, "x")), (AxisType.Explicit, P("x", "y"))):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind))
    sharded = jax.device_put(x, NamedSharding(mesh, spec))
    m, v = jax.jit(lambda x: stochastic(0).at(jnp.int32(7))("a", x, x, BF16, BF16))(sharded)
    np.testing.assert_array_equal(np.stack([m, v]) > x, want)


@pytest.mark.heavy
def test_restart_scan_and_vmap_give_the_same_bits():
  grads = jnp.asarray(open_loop((3, 40), 12), jnp.float32)
  tx = adam(stochastic(3))
  update = jax.jit(lambda state, g: (tx.update(g, state)[1], None))
  start = tx.init({"w": grads[0]})
  whole = jax.lax.scan(update, start, {"w": grads})[0]
  state = start
  for g in grads[:6]:
    state, _ = update(state, {"w": g})
  state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)  # a restart
  state = jax.lax.scan(update, state, {"w": grads[6:]})[0]
  chex.assert_trees_all_equal(whole, state)
  members = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
  members = jax.lax.scan(jax.vmap(update), members, {"w": jnp.stack([grads, grads], axis=1)})[0]
  chex.assert_trees_all_equal(jax.tree.map(lambda member: member[1], members), whole)


@pytest.mark.slow
def test_moments_are_exact_in_expectation():
  """Over 60 steps and 20,000 copies of a few gradients; a rounding that is biased once is biased 60 times."""
  copies = 20_000
  grads = jnp.asarray(open_loop((7, 1), 60, seed=1), jnp.float32)
  state, exact = (
    jax.lax.scan(
      lambda state, g, tx=tx: (tx.update(jnp.broadcast_to(g, (7, copies)), state)[1], None),
      tx.init(jnp.zeros((7, copies))),
      grads,
    )[0]
    for tx in (adam(stochastic(0)), adam(None, mu_dtype=None))
  )
  for got, want in ((state.mu, exact.mu), (state.nu, exact.nu)):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)[:, 0]
    error = got.std(axis=1) / copies**0.5
    assert np.all(np.abs(got.mean(axis=1) - want) <= 5 * error + 1e-6 * np.abs(want))
    assert np.any(error > 0)


def test_a_bfloat16_second_moment_converges():
  """To g² under a constant gradient g, with β₂ = 0.999; to the nearest it stops where a step is half a digit."""
  final = {}
  g = jnp.full(512, 3.0)
  for name, rounding in (("nearest", None), ("stochastic", stochastic(0))):
    tx = adam(rounding)
    state = jax.lax.scan(lambda state, _, tx=tx: (tx.update(g, state)[1], None), tx.init(g), length=8000)[0]
    final[name] = np.asarray(state.nu, np.float64)
  assert final["nearest"].max() < 0.5 * 9
  np.testing.assert_allclose(final["stochastic"].mean(), 9 * (1 - 0.999**8000), rtol=2e-3)
  assert np.abs(final["stochastic"] / 9 - 1).max() < 0.25


@pytest.mark.slow
def test_nd_adams_large_leaves_take_it():
  """They have steps of their own: the mean is a neighbour of what float32 keeps, and no kernel serves them."""
  params = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(256, 256)) / 16, jnp.float32)}
  grads = jax.tree.map(lambda w: w**2 + 1, params)
  make = lambda **kwargs: optax_ext.nd_adam(1e-2, kernel="pallas", **kwargs)
  rounded, exact = make(mu_dtype=BF16, rounding=stochastic(0)), make()
  step = lambda tx: optax.tree.get(jax.jit(tx.update)(grads, tx.init(params), params)[1], "mu")["a"]
  got, want = (np.asarray(step(tx), np.float32) for tx in (rounded, exact))
  assert np.all(np.abs(got - want) < 2.0**-7 * np.abs(want))
  assert np.any(np.abs(got - want) > 2.0**-9 * np.abs(want))  # further than the nearest
  assert abs(np.mean(got - want)) < 5 * np.std(got - want) / 256
  with pytest.warns(UserWarning, match="'a': its moments are rounded stochastically"):
    jax.eval_shape(lambda: optax_ext.update_and_apply(rounded, grads, rounded.init(params), params))


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["exadam", "adamnx", "caadam", "nd_adam"])
@pytest.mark.filterwarnings("ignore:scale_by_structure sees 1 layer")  # one kernel is enough here
def test_optimizers_take_it(name):
  """Within rounding of float32 moments; also under inject_hyperparams, which must not take it for a schedule."""
  make = getattr(optax_ext, name)
  params = {"kernel": jnp.linspace(0.1, 1, 24).reshape(6, 4), "bias": jnp.zeros(4)}
  rounding = pickle.loads(pickle.dumps(stochastic(1)))
  assert rounding == stochastic(1)
  assert hash(rounding) == hash(stochastic(1))
  grads = jax.tree.map(jnp.cos, params)
  plain, injected = (
    jax.jit(tx.update)(grads, tx.init(params), params)
    for tx in (make(1e-2), optax.inject_hyperparams(make, static_args=BOTH)(1e-2, rounding=rounding, **BOTH))
  )
  chex.assert_trees_all_close(plain[0], injected[0], rtol=1e-5, atol=1e-7)
  moments = injected[1].inner_state[1 if name == "nd_adam" else 0]
  assert {leaf.dtype for leaf in jax.tree.leaves((moments.mu, moments.nu))} == {jnp.dtype(BF16)}
  nearest = make(1e-2, **BOTH)
  nearest = jax.jit(nearest.update)(grads, nearest.init(params), params)[1][1 if name == "nd_adam" else 0]
  assert any((a != b).any() for a, b in zip(jax.tree.leaves(moments.mu), jax.tree.leaves(nearest.mu), strict=True))


@pytest.mark.heavy
def test_second_moments_of_vectors_draw_their_own_bits():
  storing = stochastic(0).at(jnp.int32(1))
  m, v = jnp.full((64, 4096), 1 + 2.0**-8), jnp.full((1, 4096), 1 + 2.0**-8)
  m, v = storing("w", m, v, BF16, BF16)
  assert v.shape == (1, 4096)
  signs = 2.0 * (np.concatenate([m, v]).astype(np.float32) > 1 + 2.0**-8) - 1
  assert np.abs(signs[:-1] @ signs[-1] / 4096).max() < 5 / 64
  assert abs(signs[-1].mean()) < 5 / 64


@pytest.mark.heavy
def test_inside_shard_map():
  """Parts of a leaf must not be rounded alike, copies of a leaf must: the caller says which they are."""
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto, AxisType.Auto))
  x = jnp.full((4, 4096), 1 + 2.0**-8)

  def rounded(rounding, spec):
    f = lambda x: rounding.at(jnp.int32(1))("w", x, x, BF16, BF16)[0]
    return np.asarray(jax.jit(jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec))(x)).astype(np.float32) > 1.001

  with pytest.raises(ValueError, match=r"give stochastic\(seed, axis_name=...\) the names of the mesh axes"):
    rounded(stochastic(0), P("x"))
  for axis_name in ("x", lambda path, leaf: {"w": ("x",)}[path]):
    parts = rounded(stochastic(0, axis_name=axis_name), P("x")) * 2.0 - 1
    assert np.abs(parts @ parts.T / 4096 - np.eye(4)).max() < 5 / 64
  np.testing.assert_array_equal(
    rounded(stochastic(0, axis_name=()), P())[0], rounded_up({"w": (4, 4096)}, 1)["w"][0, 0]
  )
  with pytest.raises(ValueError, match="'z', but the mesh of this shard_map has the axes"):
    rounded(stochastic(0, axis_name="z"), P("x"))
  vector = lambda x: stochastic(0, axis_name="x").at(jnp.int32(1))("w", x, x[:, :1], BF16, BF16)[0]
  with pytest.raises(ValueError, match="is one number per vector"):
    jax.jit(jax.shard_map(vector, mesh=mesh, in_specs=P("x"), out_specs=P("x")))(x)


def test_what_is_refused():
  for seed in (1.0, True, -1, 2**32, "1"):
    with pytest.raises(TypeError, match=r"seed must be an int in \[0, 2³²\)"):
      stochastic(seed)
  for rounding in ("stochastic", 0, stochastic):
    with pytest.raises(TypeError, match=r"rounding must be None \(to the nearest\) or stochastic\(seed\)"):
      optax_ext.exadam(1e-3, rounding=rounding)
  for narrow in (jnp.float16, jnp.float8_e4m3fn):
    tx = adam(stochastic(0), nu_dtype=narrow)
    with pytest.raises(ValueError, match=f"a moment of 'w' is stored in {jnp.dtype(narrow)}"):
      tx.update({"w": jnp.ones(3)}, tx.init({"w": jnp.ones(3)}))


def test_wide_moments_draw_no_bits():
  """Rounding asked for where there is nothing to round, complex moments too, costs nothing."""
  for dtype in (jnp.float32, jnp.complex64):
    params = jnp.ones(3, dtype)
    text = [
      str(jax.make_jaxpr(tx.update)(params, tx.init(params)))
      for tx in (adam(r, mu_dtype=None) for r in (None, stochastic(0)))
    ]
    assert "random_bits" not in text[1]
