"""Weights in two parts: against float32's own bits, in every surrounding, and their training against float32's."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import enable_x64, in_full, jitted

import optax_ext
from optax_ext import join_weights, quantize_state, split_weights, stochastic, update_and_apply
from optax_ext._common import tpu
from optax_ext._memory.hashes import hashes, places_of
from optax_ext._memory.residuals import SplitWeightsState
from optax_ext._memory.two_parts import RESIDUALS, joined, parted

BF16, F16 = jnp.bfloat16, jnp.float16


@functools.partial(jitted, static_argnums=(2, 3, 4))
def round_trip(x, words, dtype, bits, by_chance):
  nearest, residual_of = parted(x, dtype, bits, words if by_chance else None)
  narrow = nearest.astype(dtype)
  rest = residual_of(narrow)
  return narrow, rest, joined(narrow, rest)


def numbers(dtype, low, high, count=20_000):
  """Of every exponent, powers of two, their neighbours, and what lies halfway between two narrow numbers."""
  rng = np.random.default_rng(0)
  x = (2.0 ** rng.uniform(low, high, count) * rng.choice([-1, 1], count)).astype(np.float32)
  powers = (2.0 ** np.arange(low, high)).astype(np.float32)
  near = [np.nextafter(powers, np.float32(0)), np.nextafter(powers, np.float32(1e38))]
  half = 2.0 ** -(1 + jnp.finfo(dtype).nmant)
  between = [powers * np.float32(1 + half), powers * np.float32(1 - half / 2), powers * np.float32(1 + 3 * half)]
  return np.concatenate([x, powers, -powers, *near, *between, *[-b for b in between]])


def words_like(x, seed=1):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 2**32, np.shape(x), np.uint32))


def of_24_bits(x):
  """A float32's upper 24 bits, to the nearest: the oracle, by integers."""
  return ((np.abs(x).view(np.int32) + 127 + (np.abs(x).view(np.int32) >> 8 & 1)) >> 8 << 8).view(np.float32)


def test_32_bits_with_bfloat16_are_float32():
  x = numbers(BF16, -100, 126)
  for by_chance in (False, True):
    np.testing.assert_array_equal(round_trip(x, words_like(x), BF16, 32, by_chance)[2], x)


def test_24_bits_are_float32_without_its_last_8():
  x = numbers(BF16, -100, 126)
  narrow, rest, back = round_trip(x, words_like(x), BF16, 24, False)
  np.testing.assert_array_equal(np.abs(back), of_24_bits(x))
  assert rest.dtype == jnp.int8
  far = lambda narrow: np.abs(np.asarray(narrow, np.float64) - np.asarray(back, np.float64))
  np.testing.assert_array_equal(far(narrow), far(back.astype(BF16)))  # no bfloat16 is nearer


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_what_needs_no_rounding_stays(dtype):
  """Whatever the random bits are, so that a weight without an update does not move."""
  x = numbers(dtype, -24 if dtype == F16 else -100, 15)
  for bits in (24, 32):
    once = round_trip(x, words_like(x), dtype, bits, True)
    again = round_trip(once[2], words_like(x, 2), dtype, bits, True)
    for a, b in zip(once, again, strict=True):
      np.testing.assert_array_equal(a, b)


def test_float16_and_its_subnormal_numbers():
  """In units of 2⁻³² and 2⁻⁴⁰ below its smallest normal number, 2⁻¹⁴."""
  x = numbers(F16, -24, 15)
  for bits, unit in ((24, 2.0**-32), (32, 2.0**-40)):
    back = np.asarray(round_trip(x, words_like(x), F16, bits, False)[2], np.float64)
    in_binade = 2.0 ** np.floor(np.log2(np.abs(x))) * 2.0 ** -(bits - 6)
    assert np.all(np.abs(back - x) <= np.maximum(in_binade, unit) / 2)


@pytest.mark.parametrize(("bits", "dtype"), [(24, BF16), (24, F16)])
def test_by_chance_the_mean_is_exact(bits, dtype):
  """In the middle of a binade, at the upper end of the residual, and below a power of two."""
  for value in (1.2345678, 1.00390608, 0.99999994, -3.0000002):
    x = np.full(100_000, value, np.float32)
    back = np.asarray(round_trip(x, words_like(x), dtype, bits, True)[2], np.float64)
    near = np.unique(back)
    assert len(near) <= 2
    step = 2.0**-16 * 4
    assert abs(back.mean() - x[0]) < 4 * step / 2 / len(x) ** 0.5, value


def test_what_is_not_finite_and_the_largest():
  x = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 3.4028235e38, -3.4028235e38, 0.0, -0.0])
  for dtype, largest in ((BF16, float(jnp.finfo(BF16).max)), (F16, 65504.0)):
    narrow, _, back = round_trip(x, words_like(x), dtype, 24, True)
    np.testing.assert_array_equal(np.asarray(narrow, np.float32), [np.inf, -np.inf, np.nan, largest, -largest, 0, 0])
    np.testing.assert_array_equal(np.isfinite(back), np.isfinite(x))


def test_hashes_are_random():
  """Each bit is 1 in half of the words; bits, places, keys and steps are not correlated. (4 standard errors.)"""
  shape = (64, 512)
  keys = stochastic(0).keys_at
  words = np.stack([np.asarray(hashes(keys(t)("w", jnp.zeros(shape)), places_of(shape))) for t in range(1, 9)])
  bits = np.unpackbits(words.view(np.uint8).reshape(8, -1), axis=1).astype(np.float64) * 2 - 1
  assert np.abs(bits.reshape(-1, 32).mean(0)).max() < 4 / (8 * 64 * 512) ** 0.5
  low = (words & 255) / 127.5 - 1
  low /= low.std()
  for axis in range(3):
    n = low.shape[axis]
    for shift in (1, 2):
      pair = np.take(low, range(shift, n), axis) * np.take(low, range(n - shift), axis)
      assert abs(pair.mean()) < 4 / pair.size**0.5
  assert len(np.unique(words)) > 0.999 * words.size
  other = np.asarray(hashes(keys(1)("v", jnp.zeros(shape)), places_of(shape)))
  assert np.mean(other == words[0]) < 1e-3


PARAMS = {"kernel": jnp.linspace(-1, 1, 8192).reshape(64, 128).astype(BF16), "bias": jnp.ones(128), "hidden": None}
OPTIMIZERS = {
  "adamw": optax.adamw(1e-2, weight_decay=0.1),
  "exadam": optax_ext.exadam(1e-3),
  "nd_adam": optax_ext.nd_adam(1e-3),
  "momentum": optax.sgd(1e-2, momentum=0.9),
}


def gradients(step, dtype=BF16):
  noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (64, 128)) + 0.3
  return {"kernel": noise.astype(dtype), "bias": noise[0], "hidden": None}


def trained(tx, params, steps=5, dtype=BF16, step=None):
  state = jitted(tx.init)(params)

  def plain(grads, state, params):
    updates, state = tx.update(grads, state, params)
    return jax.tree.map(lambda p, u: optax.apply_updates(p, u), params, updates), state

  one = jitted(step or plain)
  for i in range(steps):
    params, state = one(gradients(i, dtype), state, params)
  return params, state


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:nd_adam sees")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_sees_float32(name):
  """With 32 bits the weights are those of an optimizer of float32 weights; with 24 they are near them."""
  tx = OPTIMIZERS[name]
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
  grads = lambda i: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients(i))
  want, state = wide, jitted(tx.init)(wide)
  update = jitted(lambda grads, state, params: tx.update(grads, state, params))
  for i in range(5):
    updates, state = update(grads(i), state, want)
    want = optax.apply_updates(want, updates)
  for bits, tolerance in ((32, 3e-7), (24, 5 * 2.0**-16)):
    params, state = trained(split_weights(tx, bits), PARAMS)
    assert params["kernel"].dtype == BF16
    got = join_weights(params, state)
    np.testing.assert_allclose(got["kernel"], want["kernel"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(got["bias"], want["bias"], rtol=1e-6)
    np.testing.assert_allclose(params["kernel"].astype(jnp.float32), got["kernel"], rtol=2**-8)


def test_update_and_apply_is_update_then_apply():
  tx = split_weights(optax.adamw(1e-2))
  plain, fast = trained(tx, PARAMS), trained(tx, PARAMS, step=functools.partial(update_and_apply, tx))
  chex.assert_trees_all_equal(fast, plain)


def decayed(tx, steps=300):
  params = {"w": jnp.full((64, 64), 1.0, BF16)}
  zeros = jax.tree.map(jnp.zeros_like, params)

  def body(carry, _):
    params, state = carry
    updates, state = tx.update(zeros, state, params)
    return (optax.apply_updates(params, updates), state), None

  return jitted(lambda: jax.lax.scan(body, (params, tx.init(params)), length=steps)[0])()


@pytest.mark.parametrize("bits", [16, 24])
def test_small_steps_count_on_average(bits):
  """A decay of 1e-5 a step, a hundredth of a bfloat16's last place: 300 steps take off 0.3 %."""
  tx = optax.adamw(1e-4, weight_decay=0.1)
  got = join_weights(*decayed(split_weights(tx, bits)))["w"]
  spread = 2.0**-8 if bits == 16 else 2.0**-16
  np.testing.assert_allclose(got.mean(), (1 - 1e-5) ** 300, atol=4 * spread * 300**0.5 / 64)
  assert decayed(tx)[0]["w"].astype(float).mean() == 1  # without split weights nothing moves


def test_to_the_nearest_small_steps_are_lost():
  """Why rounding is by chance: a decay of 1e-6, less than half a unit of 2⁻¹⁶, does nothing at all."""
  tx = optax.adamw(1e-5, weight_decay=0.1)
  np.testing.assert_array_equal(join_weights(*decayed(split_weights(tx, rounding=None)))["w"], 1)
  by_chance = join_weights(*decayed(split_weights(tx)))["w"]
  np.testing.assert_allclose(by_chance.mean(), 1 - 3e-4, atol=4 * 2.0**-16 * 300**0.5 / 64)


def test_float32_weights_are_taken_in():
  """A checkpoint's, to 24 bits, which bfloat16 cannot hold; the rest of the state stays."""
  rng = np.random.default_rng(0)
  weights = {
    "kernel": jnp.asarray(rng.normal(size=(64, 128)), jnp.float32),
    "bias": jnp.arange(128.0),
    "hidden": None,
  }
  tx = optax.chain(optax.clip_by_global_norm(1.0), split_weights(optax.adam(1e-3)))
  state = tx.init(PARAMS)
  params, new = optax_ext.split(weights, PARAMS, state)
  back = join_weights(params, new)
  np.testing.assert_array_equal(np.abs(back["kernel"]), of_24_bits(np.asarray(weights["kernel"])))
  np.testing.assert_array_equal(back["bias"], weights["bias"])
  assert jax.tree.structure(new) == jax.tree.structure(state)
  assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
  again, _ = optax_ext.split(back, params, new)
  chex.assert_trees_all_equal(again, params)


def split_adam(learning_rate=1e-2):
  return split_weights(optax.adam(learning_rate))


LABELS = lambda tree: jax.tree.map(lambda leaf: "large" if jnp.ndim(leaf) == 2 else "small", tree)
WRAPPED = {
  "chain": lambda: optax.chain(optax.clip_by_global_norm(1e6), split_adam()),
  "masked": lambda: optax.masked(split_adam(), lambda tree: jax.tree.map(lambda leaf: jnp.ndim(leaf) == 2, tree)),
  "partition": lambda: optax.partition({"large": split_adam(), "small": optax.sgd(1e-2)}, LABELS),
  "of partition": lambda: split_weights(optax.partition({"large": optax.adam(1e-2), "small": optax.sgd(1e-2)}, LABELS)),
  "inject": lambda: optax.inject_hyperparams(split_adam)(learning_rate=1e-2),
  "of inject": lambda: split_weights(optax.inject_hyperparams(optax.adam)(1e-2)),
  "of MultiSteps": lambda: split_weights(optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation()),
  "of apply_if_finite": lambda: split_weights(optax.apply_if_finite(optax.adam(1e-2), 3)),
  "of quantize_state": lambda: split_weights(quantize_state(optax.adam(1e-2))),
  "of rounded moments": lambda: split_weights(
    optax_ext.caadam(1e-2, mu_dtype=BF16, nu_dtype=BF16, rounding=stochastic(1), rule=optax_ext.ByDepth(0.0))
  ),
}


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:scale_by_structure sees 1 layer")
@pytest.mark.parametrize("name", WRAPPED)
def test_in_every_surrounding(name, tmp_path):
  """Inside and outside of other wrappers: steps of Adam, stored dtypes, map_params, shardings, a checkpoint."""
  tx, every = WRAPPED[name](), 2 if "MultiSteps" in name else 1
  grads = jax.tree.map(jnp.sign, gradients(0))
  body = lambda carry, _: (update_and_apply(tx, grads, carry[1], carry[0]), None)
  params, state = jitted(lambda carry: jax.lax.scan(body, carry, length=3 * every)[0])(
    (PARAMS, jitted(tx.init)(PARAMS))
  )
  want = PARAMS["kernel"].astype(jnp.float32) - 0.03 * grads["kernel"].astype(jnp.float32)
  np.testing.assert_allclose(join_weights(params, state)["kernel"], want, atol=2e-3 if "quantize" in name else 2e-4)
  assert params["kernel"].dtype == BF16
  assert {jnp.dtype(jnp.int8)} <= {leaf.dtype for leaf in jax.tree.leaves(state)}

  mesh = jax.make_mesh((2, 4), ("x", "y"), (AxisType.Auto, AxisType.Auto))
  shardings = {"kernel": NamedSharding(mesh, P("x", "y")), "bias": NamedSharding(mesh, P()), "hidden": None}
  specs = optax_ext.state_shardings(tx, PARAMS, shardings)
  pairs = zip(jax.tree.leaves(state), jax.tree.leaves(specs), strict=True)
  assert {spec.spec for leaf, spec in pairs if leaf.shape == (64, 128)} == {P("x", "y")}
  on_mesh = jax.device_put(state, specs)
  checkpointer = ocp.StandardCheckpointer()
  checkpointer.save(tmp_path / "state", on_mesh)
  checkpointer.wait_until_finished()
  restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
  chex.assert_trees_all_equal(restored, state)


@pytest.mark.slow
@pytest.mark.parametrize("inner", [optax.adamw(1e-2), quantize_state(optax.adamw(1e-2))], ids=["adamw", "8 bits"])
def test_sharded_as_on_one_device(inner):
  """The random bits of a weight do not depend on the mesh."""
  mesh = jax.make_mesh((2, 4), ("x", "y"), (AxisType.Auto, AxisType.Auto))
  shardings = {"kernel": NamedSharding(mesh, P("x", "y")), "bias": NamedSharding(mesh, P()), "hidden": None}
  tx = split_weights(inner)
  step = functools.partial(update_and_apply, tx)
  want = jitted(step)(gradients(0), jitted(tx.init)(PARAMS), PARAMS)
  params = jax.device_put(PARAMS, shardings)
  state = in_full(tx.init, out_shardings=optax_ext.state_shardings(tx, PARAMS, shardings))(params)
  got = in_full(step)(jax.device_put(gradients(0), shardings), state, params)
  weights = join_weights(*got)["kernel"], join_weights(*want)["kernel"]
  np.testing.assert_allclose(*weights, atol=2.0**-16)  # a sum that was rounded otherwise may move one unit
  assert np.mean(weights[0] != weights[1]) < 0.01


@pytest.mark.slow
def test_inside_shard_map_the_axes_are_named():
  mesh = jax.make_mesh((2,), ("x",), (AxisType.Auto,), devices=jax.devices()[:2])
  params = {"w": jnp.ones((4, 128), BF16)}
  tx = lambda **kwargs: split_weights(optax.sgd(1e-5), rounding=stochastic(0, **kwargs))
  spec = SplitWeightsState(P(), {"w": P("x")}, tx().init(params).inner_state)

  def step(tx):
    f = lambda params, state: update_and_apply(tx, params, state, params)
    inside = jax.shard_map(f, mesh=mesh, in_specs=(P("x"), spec), out_specs=(P("x"), spec), check_vma=False)
    return inside(params, tx.init(params))

  with pytest.raises(ValueError, match="give stochastic"):
    step(tx())
  rest = step(tx(axis_name="x"))[1].residual["w"]
  assert np.any(rest[:2] != rest[2:])  # each device has bits of its own


@pytest.mark.slow
def test_exported_with_symbolic_shapes():
  tx = split_weights(optax.adamw(1e-2))
  (n,) = export.symbolic_shape("n")
  abstract = {"w": jax.ShapeDtypeStruct((n, 4), BF16)}
  state = jax.eval_shape(tx.init, abstract)
  program = export.export(jax.jit(tx.update))(abstract, state, abstract)
  for rows in (2, 5):
    params = {"w": jnp.ones((rows, 4), BF16)}
    jax.tree.map(
      np.testing.assert_array_equal,
      program.call(params, tx.init(params), params),
      jax.jit(tx.update)(params, tx.init(params), params),
    )


@pytest.mark.heavy
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_kernel_steps_split_weights(platform, monkeypatch):
  """Where 8-bit moments have a kernel, it reads and writes both parts: the same codes, weights and random bits."""
  params = {"kernel": PARAMS["kernel"], "bias": PARAMS["bias"]}
  gradient = lambda i: {name: leaf for name, leaf in gradients(i).items() if leaf is not None}
  tx = lambda kernel: split_weights(quantize_state(optax_ext.adamnx(1e-2), kernel=kernel))
  states = {}
  for kernel in (None, "pallas"):
    monkeypatch.setattr(tpu, "INTERPRETED", platform)
    one = tx(kernel)
    states[kernel] = jitted(functools.partial(update_and_apply, one))(gradient(0), jitted(one.init)(params), params)
  program = jax.make_jaxpr(functools.partial(update_and_apply, one))(gradient(0), one.init(params), params)
  assert str(program).count("pallas_call") == 1
  got, want = (join_weights(*states[kernel])["kernel"] for kernel in ("pallas", None))
  np.testing.assert_allclose(got, want, atol=2.0**-15)
  assert np.mean(got != want) < 0.01
  chex.assert_trees_all_equal_shapes_and_dtypes(states["pallas"][1], states[None][1])


def test_bytes():
  """Of weights and state: 5 for each weight with 8-bit moments, 4 of them without a residual."""
  params = {"w": jnp.zeros((512, 512), BF16)}
  kept = lambda tx: 2 + optax_ext.state_bytes(tx, params).total / 512**2
  assert kept(split_weights(quantize_state(optax.adam(1e-3)))) == pytest.approx(5, abs=0.02)
  assert kept(split_weights(quantize_state(optax.adam(1e-3)), 16)) == pytest.approx(4, abs=0.02)
  assert kept(split_weights(optax.sgd(1e-3), 32)) == pytest.approx(4, abs=1e-3)


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_one_array_is_a_tree(bits):
  """Its path is empty, as that of a state without residuals."""
  tx = split_weights(optax_ext.adamnx(1e-2), bits)

  def final(array):
    params, state = optax_ext.split(array.astype(jnp.float32), array, tx.init(array))
    for _ in range(2):
      updates, state = tx.update(array, state, params)
      params = optax.apply_updates(params, updates)
    return join_weights(*update_and_apply(tx, array, state, params))

  got = jitted(final)(jnp.ones((2, 3), BF16))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, 0.97, atol=0.012 if bits == 16 else 1e-3)


def test_what_is_refused():
  for kwargs, message in (
    ({"bits": 20}, "bits must be 16, 24 or 32, of a weight and its residual together, but was 20"),
    ({"bits": 24.0}, "but was 24.0"),
    ({"bits": jnp.asarray(24)}, "list 'bits' in static_args"),  # as optax.inject_hyperparams gives it
    ({"bits": 16, "rounding": None}, "bits=16 with rounding=None would lose every step"),
    ({"rounding": 0}, "rounding must be None .* but was 0"),
  ):
    with pytest.raises((TypeError, ValueError), match=message):
      split_weights(optax.adam(1e-3), **kwargs)
  tx = split_weights(optax.adam(1e-3))
  with pytest.raises(TypeError, match=r"'w' has dtype float8_e4m3fn, but split_weights knows bfloat16"):
    tx.init({"w": jnp.ones(3, jnp.float8_e4m3fn)})
  with pytest.raises(TypeError, match="'w' has dtype int32"):
    tx.init({"w": jnp.ones(3, int)})
  with pytest.raises(ValueError, match="same path"):
    tx.init({"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}})
  with pytest.raises(ValueError, match="needs the parameters"):
    tx.update(PARAMS, tx.init(PARAMS))
  with pytest.raises(ValueError, match="holds no SplitWeightsState"):
    join_weights(PARAMS, optax.adam(1e-3).init(PARAMS))
  other = tx.init({"kernel": jnp.ones((3, 4), BF16)})
  with pytest.raises(ValueError, match=r"'kernel' is .*, but the state has a residual of shape \(3, 4\) for it"):
    join_weights(PARAMS, other)
  with pytest.raises(ValueError, match=r"weight 'kernel' has shape \(2,\), but the parameter has shape \(64, 128\)"):
    optax_ext.split({**PARAMS, "kernel": jnp.ones(2)}, PARAMS, tx.init(PARAMS))
  assert set(RESIDUALS) == {16, 24, 32}


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), [(16, 24), (24, 16), (32, 16), (24, 32), (32, 24)])
def test_a_state_of_other_bits_is_refused(old, new):
  """Its residuals mean other weights; `split` takes them in."""
  tx = split_weights(optax.sgd(1e-2), new)
  params, state = trained(split_weights(optax.sgd(1e-2), old), PARAMS, steps=1)
  with pytest.raises(ValueError, match="residual") as error:
    tx.update(PARAMS, state, params)
  assert "take the weights in: split(" in str(error.value) + str(error.value.__cause__)
  weights = join_weights(params, state)
  params, state = optax_ext.split(weights, params, tx.init(params))
  np.testing.assert_allclose(join_weights(params, state)["kernel"], weights["kernel"], rtol=2.0 ** (8 - new))
  update_and_apply(tx, gradients(1), state, params)


@pytest.mark.parametrize("dtype", [jnp.int16, jnp.int32, jnp.float32, BF16])
def test_residuals_that_were_cast_are_refused(dtype):
  """By a cast of the whole state, or a checkpoint that was restored into another dtype."""
  tx = split_weights(optax.sgd(1e-2))
  state = tx.init(PARAMS)
  state = state._replace(residual=optax.tree.cast(state.residual, dtype))
  name = jnp.dtype(dtype).name
  with pytest.raises(ValueError, match=f"of dtype {name}, but with bits=24 it is int8: leave residuals out of a cast"):
    tx.update(PARAMS, state, PARAMS)
  for call in (lambda: join_weights(PARAMS, state), lambda: optax_ext.split(PARAMS, PARAMS, state)):
    if dtype != jnp.int16:
      with pytest.raises(ValueError, match=f"of dtype {name}, but residuals are int8 or int16"):
        call()


def test_parameters_in_other_dtypes_are_refused():
  """The residual would be lost: after `param + update`, which is float32, and of a checkpoint restored as float32."""
  tx, wide = split_weights(optax.sgd(1e-2)), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
  for params, other, dtype in ((PARAMS, wide, "float32"), (wide, PARAMS, "bfloat16")):
    state = tx.init(params)
    for call in (tx.update, lambda grads, state, params: join_weights(params, state)):
      with pytest.raises(ValueError, match=rf"'kernel' is {dtype} of shape \(64, 128\), .* give the parameters"):
        call(other, state, other)


def test_leaves_that_are_no_arrays_stay():
  """Those of an Equinox model, whose arrays alone the optimizer was made for."""
  params = {"kernel": PARAMS["kernel"], "activation": jax.nn.relu}
  tx = split_weights(optax.sgd(1e-2))
  state = tx.init({**params, "activation": None})
  params, state = update_and_apply(tx, {**params, "activation": None}, state, params)
  assert params["activation"] is jax.nn.relu
  weights = join_weights(params, state)
  again, _ = optax_ext.split(weights, params, state)
  assert weights["activation"] is again["activation"] is jax.nn.relu
  np.testing.assert_array_equal(again["kernel"], params["kernel"])


@pytest.mark.slow
@pytest.mark.parametrize("grads", [jnp.float64, BF16])
def test_with_64_bits_narrow_weights_are_float32(grads):
  """Whatever the gradients and the learning rate are: steps of 0.1 from 1, in all stored dtypes."""
  with enable_x64(True):
    tx = split_weights(optax.chain(optax.scale_by_adam(), optax.scale(np.float64(-0.1))), 32)
    params = {"w": jnp.ones(2, BF16)}
    plain, state = params, tx.init(params)
    fast, fast_state = params, state
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, state)
    for _ in range(2):
      updates, state = tx.update({"w": jnp.ones(2, grads)}, state, plain)
      plain = optax.apply_updates(plain, updates)
      fast, fast_state = update_and_apply(tx, {"w": jnp.ones(2, grads)}, fast_state, fast)
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == dtypes
    assert updates["w"].dtype == jnp.float32
    chex.assert_trees_all_equal((fast, fast_state), (plain, state))
    np.testing.assert_allclose(join_weights(plain, state)["w"], 0.8, atol=1e-6)


@pytest.mark.slow
def test_one_trace_and_all_donated():
  params = {str(i): jnp.zeros((256, 256), BF16) for i in range(3)}
  tx = split_weights(optax_ext.exadam(1e-3))

  @functools.partial(jax.jit, donate_argnums=(1, 2))
  @chex.assert_max_traces(1)
  def step(grads, state, params):
    return update_and_apply(tx, grads, state, params)

  abstract = jax.eval_shape(tx.init, params)
  memory = step.lower(params, abstract, params).compile().memory_analysis()
  assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves((params, tx.init(params))))
  state, grads = jitted(tx.init)(params), jax.tree.map(jnp.ones_like, params)
  for _ in range(2):
    params, state = step(grads, state, params)
