"""Codes by chance: right in the mean, by the same bits in every form of the step, and counted in the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import in_full, jitted

import optax_ext
from optax_ext import quantize_state, split_weights, stochastic, update_and_apply
from optax_ext._memory import codes

ONE = jnp.ones(1)
EVERY = jnp.arange(0, 2**16, 16, dtype=jnp.uint32)[:, None]  # of 16 bits
PARAMS = {"kernel": jnp.linspace(-1, 1, 8192).reshape(64, 128), "bias": jnp.ones(128)}
GRADS = jax.tree.map(lambda w: jnp.sin(31 * w) ** 3, PARAMS)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "lowest"), [(jnp.int8, 0.0), (jnp.uint8, 0.55e-7)])
def test_the_mean_is_the_number(dtype, lowest):
  """In each decade and where two meet, to 1/4096 of an interval; one of two neighbours, and no third."""
  every = codes.decode(jnp.arange(127 if dtype == jnp.int8 else 254).astype(dtype), ONE)
  inside = 10 ** np.linspace(-7.5, np.log10(float(every[-1])), 300)
  x = jnp.asarray(np.concatenate([inside, (every[1:] + every[:-1]) / 2, every]), jnp.float32)
  x = x[(x >= lowest) & (x <= every[-1])]
  shape = len(EVERY), len(x)
  encode = jitted(lambda x, bits: codes.encode(x, jnp.ones((1, 1)), dtype, bits))
  found = encode(jnp.broadcast_to(x, shape), jnp.broadcast_to(EVERY, shape))
  assert np.ptp(np.asarray(found, int), axis=0).max() == 1
  decoded = np.asarray(codes.decode(found, jnp.ones((1, 1))), np.float64)
  gap = np.diff(np.append(every, every[-1]))[np.asarray(found, int).min(axis=0).clip(0, len(every) - 1)]
  np.testing.assert_array_less(np.abs(decoded.mean(axis=0) - x), gap / 4096 + 3e-5 * np.asarray(x))


def test_no_second_moment_vanishes_and_no_zero_moves():
  x = jnp.array([0.0, 1e-30, 1e-9])
  for bits in (0, 2**16 - 1):
    of = lambda dtype, x=x, bits=bits: codes.encode(x, ONE, dtype, jnp.full(x.shape, bits, jnp.uint32)).tolist()
    assert of(jnp.uint8) == [0, 1, 1]
    assert of(jnp.int8)[0] == 0


@pytest.mark.heavy
def test_second_moments_do_not_drift():
  """From those of float32, in 1,000 steps of noise. The nearest codes swallow what changes a moment by less than half
  a code.
  """
  weights = {"kernel": PARAMS["kernel"]}

  def second_moments(rounding):
    plain, coded = optax.adam(1e-3), quantize_state(optax.adam(1e-3), rounding=rounding)

    def step(states, key):
      noise = {"kernel": jax.random.normal(key, (64, 128))}
      return [tx.update(noise, state, weights)[1] for tx, state in zip((plain, coded), states, strict=True)], None

    (want, got), _ = jax.lax.scan(
      step, [plain.init(weights), coded.init(weights)], jax.random.split(jax.random.key(0), 1000)
    )
    return jnp.mean(codes.decode(got.codes[0].nu["kernel"], got.scale[1]["kernel"])) / jnp.mean(want[0].nu["kernel"])

  ratio = {rounding: float(jitted(second_moments, static_argnums=0)(rounding)) for rounding in (None, stochastic(0))}
  assert abs(ratio[stochastic(0)] - 1) < 0.003
  assert abs(ratio[None] - 1) > 0.009


FORMS = {
  "rows": {},
  "blocks": {"block": 32},
  "xla": {"kernel": "xla", "block": 32},
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_same_bits_in_every_form(form):
  """`update` and `update_and_apply`, inside split weights and alone; another seed and another step have others."""
  make = lambda seed: quantize_state(optax.adam(1e-2), rounding=stochastic(seed), **FORMS[form])
  tx, state = make(0), make(0).init(PARAMS)
  apply = lambda tx: jitted(lambda state: update_and_apply(tx, GRADS, state, PARAMS)[1])
  once = jitted(tx.update)(GRADS, state, PARAMS)[1]
  again = apply(tx)(state)
  assert once.count == again.count == 1
  in_codes = lambda state: np.concatenate([state.codes[0].mu["kernel"], state.codes[0].nu["kernel"]]).astype(int)
  assert np.mean(in_codes(once) != in_codes(again)) < 0.002  # where a sum was rounded otherwise
  assert np.mean(in_codes(apply(make(1))(state)) != in_codes(again)) > 0.1
  later = apply(tx)(state._replace(count=state.count + 1))
  assert np.mean(in_codes(later) != in_codes(again)) > 0.1
  split = split_weights(tx)
  narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), PARAMS)
  inner = jitted(lambda state: update_and_apply(split, GRADS, state, narrow)[1])(split.init(narrow)).inner_state
  assert np.mean(in_codes(inner) != in_codes(again)) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["masked", "partition"])
def test_a_form_inside_a_mask_inside_split_weights(wrap):
  """`optax.masked` and `partition` hide leaves in updates and parameters, and not in what says how weights are kept."""
  inner = quantize_state(optax.adamw(1e-2), rounding=stochastic(0), kernel="xla")
  kinds = {"kernel": "coded", "bias": "still"}
  tx = split_weights(
    optax.masked(inner, {"kernel": True, "bias": False})
    if wrap == "masked"
    else optax.partition({"coded": inner, "still": optax.set_to_zero()}, kinds)
  )
  narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), PARAMS)
  updates, state = jitted(tx.update)(GRADS, tx.init(narrow), narrow)
  want = optax_ext.join_weights(optax.apply_updates(narrow, updates), state)
  got = optax_ext.join_weights(*jitted(lambda state: update_and_apply(tx, GRADS, state, narrow))(tx.init(narrow)))
  assert np.any(got["kernel"] != PARAMS["kernel"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2.0**-15), got, want)


def test_sharded_as_on_one_device():
  mesh = jax.make_mesh((2, 4), ("x", "y"), (AxisType.Auto, AxisType.Auto))
  shardings = {"kernel": NamedSharding(mesh, P("x", "y")), "bias": NamedSharding(mesh, P())}
  tx = quantize_state(optax.adam(1e-2), rounding=stochastic(0))
  of_state = optax_ext.state_shardings(tx, PARAMS, shardings)
  want = jitted(tx.update)(GRADS, jitted(tx.init)(PARAMS), PARAMS)[1]
  state = in_full(tx.init, out_shardings=of_state)(jax.device_put(PARAMS, shardings))
  got = in_full(tx.update)(jax.device_put(GRADS, shardings), state, jax.device_put(PARAMS, shardings))[1]
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.mean(~np.isclose(np.asarray(one, float), np.asarray(other, float), rtol=1e-6)) < 0.002


def test_a_state_without_a_count():
  """It is named, and goes on with one; a count where nothing is rounded by chance does no harm."""
  nearest, by_chance = quantize_state(optax.adam(1e-2)), quantize_state(optax.adam(1e-2), rounding=stochastic(0))
  step = lambda tx, state: jax.eval_shape(tx.update, GRADS, state, PARAMS)
  with pytest.raises(ValueError, match=r"has no count.* goes on as state._replace\(count="):
    step(by_chance, nearest.init(PARAMS))
  step(by_chance, nearest.init(PARAMS)._replace(count=jnp.zeros([], jnp.int32)))
  step(nearest, by_chance.init(PARAMS))
  with pytest.raises(TypeError, match="rounding must be None"):
    quantize_state(optax.adam(1e-2), rounding=0)  # pyright: ignore
