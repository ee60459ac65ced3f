"""8-bit moments: the codes against a table, the wrapper in every surrounding, training against float32."""

import functools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import enable_x64, in_full, jitted

import optax_ext
from optax_ext._memory import codes
from optax_ext._memory.codes import scale_shape
from optax_ext._memory.quantize import QuantizedState, quantize_state

decode = jitted(codes.decode)
encode = jitted(codes.encode, static_argnums=2)
scale_for = jitted(codes.scale_for, static_argnums=(1, 2))
BITS = {jnp.int8: 7, jnp.uint8: 8}  # without sign
ONE = jnp.ones(1)
GAIN = optax_ext.adam_gain(0.9)


def table(bits):
  """Dettmers' dynamic numbers, by his construction: means of neighbours in linear fractions of each decade."""
  numbers = [0.0]
  for e in range(bits):
    bounds = np.linspace(0.1, 1, 2**e + 1)
    numbers += list((bounds[:-1] + bounds[1:]) / 2 * 10.0 ** (e - bits + 1))
  return np.array(numbers)


@pytest.mark.parametrize("dtype", BITS)
def test_numbers_are_those_of_the_table(dtype):
  numbers = table(BITS[dtype])
  assert np.all(np.diff(numbers) > 0)
  if dtype == jnp.uint8:
    numbers[-1] = np.inf
  every = jnp.arange(len(numbers)).astype(dtype)
  np.testing.assert_allclose(decode(every, ONE), numbers, rtol=2e-6, atol=0)
  if dtype == jnp.int8:
    np.testing.assert_allclose(decode(-every, ONE), -numbers, rtol=2e-6, atol=0)
  np.testing.assert_array_equal(encode(decode(every, ONE), ONE, dtype), every)  # storing again changes nothing


@pytest.mark.parametrize("dtype", BITS)
def test_codes_are_the_nearest(dtype):
  """By search in the table, between all neighbours; at 0 a second moment takes the lowest number instead."""
  numbers = table(BITS[dtype])[: 128 if dtype == jnp.int8 else 255]
  middles = (numbers[1:] + numbers[:-1]) / 2
  x = np.concatenate([middles * (1 - 3e-5), middles * (1 + 3e-5), numbers, 10 ** np.linspace(-9, 0, 2000)])
  x = np.sort(x[(x > 0.29 * numbers[1] / 0.55) & (x <= numbers[-1])]).astype(np.float32)
  want = np.searchsorted(middles, x.astype(np.float64))
  got = np.asarray(encode(x, ONE, dtype)).astype(int)
  np.testing.assert_array_equal(got, want)
  tiny = np.asarray(encode(jnp.array([0.0, 1e-30, 0.25 * numbers[1]]), ONE, dtype))
  np.testing.assert_array_equal(tiny, [0, 1, 1] if dtype == jnp.uint8 else [0, 0, 0])
  if dtype == jnp.int8:
    np.testing.assert_array_equal(encode(-x, ONE, dtype), -want)


@pytest.mark.parametrize("dtype", BITS)
def test_the_largest_number_of_a_block_is_kept(dtype):
  rng = np.random.default_rng(0)
  for size, shape in ((1e-20, (8, 1)), (1.0, (8, 4)), (1e17 if dtype == jnp.int8 else 8e37, (2, 64))):
    x = (size * rng.uniform(0.2, 1, (8, 64))).astype(np.float32)
    scale = scale_for(jnp.asarray(x), shape, dtype)
    back = np.asarray(decode(encode(jnp.asarray(x), scale, dtype), scale))
    blocks = lambda a, s=shape: a.reshape(s[0], 8 // s[0], s[1], 64 // s[1])
    largest = blocks(x).max(axis=(1, 3), keepdims=True) == blocks(x)
    np.testing.assert_allclose(blocks(back)[largest], blocks(x)[largest], rtol=2e-6)
    np.testing.assert_allclose(back, x, rtol=0.04)


def test_tiny_blocks_do_not_vanish():
  """Below the smallest scale, 2⁻¹⁰⁰, a block keeps less and less, but no normal number becomes 0."""
  x = jnp.array([[1e-32, 1e-36, 2e-38, 0.0]])
  scale = scale_for(x, (1, 1), jnp.uint8)
  back = np.asarray(decode(encode(x, scale, jnp.uint8), scale))[0]
  np.testing.assert_allclose(back[:2], x[0, :2], rtol=0.4)
  assert back[2] > 0 == back[3]


def test_what_is_finite_stays_finite():
  """Outliers are stored as smaller numbers, as far as that spares the others of their block."""
  x = np.full((5, 256), 1e-3, np.float32)
  x[0, 7], x[1, 7], x[2, 7], x[3] = 3.4e38, 1e25, 1e17, np.float32(3.4e38)
  x[4, 7] = 2.0**60
  for dtype in BITS:
    scale = scale_for(jnp.asarray(x), (5, 1), dtype)
    assert np.isfinite(scale).all()
    back = np.asarray(decode(encode(jnp.asarray(x), scale, dtype), scale))
    assert np.isfinite(back).all()
    outliers = [1e-3, 1e-3, 1e17, 0, 1e-3] if dtype == jnp.int8 else [2.0**126, 1e25, 1e17, 2.0**126, 2.0**60]
    np.testing.assert_allclose(back[:, 7], outliers, rtol=0.011, atol=1e-29)
    if dtype == jnp.int8:
      np.testing.assert_allclose(back[[0, 1, 4]], 1e-3, rtol=1e-6)


def test_what_is_not_finite_shows():
  """∞ as itself, alone, where numbers are not negative; NaN, and what has no code, in all its row."""
  x = np.ones((8, 256), np.float32)
  x[0, 0], x[1, 77], x[2, 255] = np.nan, np.inf, -np.inf
  for dtype in BITS:
    scale = scale_for(jnp.asarray(x), (8, 1), dtype)
    back = np.asarray(decode(encode(jnp.asarray(x), scale, dtype), scale))
    assert np.isnan(back[[0, 2]]).all()
    if dtype == jnp.int8:
      assert np.isnan(back[1]).all()
    else:
      np.testing.assert_allclose(back[1], x[1], rtol=1e-6)
    np.testing.assert_allclose(back[3:], 1, rtol=1e-6)
    zero = jnp.zeros((8, 256))
    np.testing.assert_array_equal(decode(encode(zero, scale_for(zero, (8, 1), dtype), dtype), scale[3:4]), 0)
  x[4, 100] = -1e-9
  broken = np.isnan(scale_for(jnp.asarray(x), (8, 1), jnp.uint8))[:, 0]
  np.testing.assert_array_equal(broken, [True, False, True, False, True, False, False, False])


def test_a_nan_shows_in_a_compiled_step():
  """There XLA knows that a size or a square is not negative, and must not conclude that it is no NaN."""
  x = jnp.ones((96, 128)).at[37, 5].set(jnp.nan)
  for moment, dtype in ((lambda x: x, jnp.int8), (lambda x: x * x, jnp.uint8)):
    scale = jax.jit(lambda x, f=moment, dtype=dtype: codes.scale_for(f(x), (96, 1), dtype))(x)
    np.testing.assert_array_equal(np.isnan(scale)[:, 0], np.arange(96) == 37)


def test_layouts():
  assert scale_shape((64, 512), -1, None) == (64, 1)
  assert scale_shape((64, 512), -1, 128) == (64, 4)
  assert scale_shape((64, 512), -2, 32) == (2, 512)
  assert scale_shape((64, 500), -1, 128) == (64, 1)  # does not divide
  assert scale_shape((512,), -2, 128) == (4,)
  assert scale_shape((3, 512, 1), -1, None) == (3, 1, 1)
  assert scale_shape((1, 1), -1, None) == (1, 1)


PARAMS = {"kernel": jnp.linspace(-1, 1, 8192).reshape(64, 128), "bias": jnp.ones(128), "hidden": None}
TX = {
  "adam": optax.adam(1e-2),
  "nadam": optax.nadam(1e-2),
  "lion": optax.lion(1e-3),
  "momentum": optax.sgd(1e-2, momentum=0.9),
  "exadam": optax_ext.exadam(1e-3),
  "adamnx": optax_ext.adamnx(1e-2),
  "nd_adam": optax_ext.nd_adam(1e-3),
}


def gradients(steps):
  rng = np.random.default_rng(0)
  scale = 10.0 ** rng.uniform(-3, 0, (64, 128))
  for _ in range(steps):
    noise = rng.normal(size=(64, 128)) + 0.3
    yield {
      "kernel": jnp.asarray(scale * noise, jnp.float32),
      "bias": jnp.asarray(noise[0], jnp.float32),
      "hidden": None,
    }


def trained(tx, steps=10):
  params, state = PARAMS, jitted(tx.init)(PARAMS)
  update = jitted(tx.update)
  for grads in gradients(steps):
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def coded(state):
  """Path → dtype of the 8-bit leaves of a state."""
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  return {jax.tree_util.keystr(path): str(leaf.dtype) for path, leaf in leaves if leaf.dtype in (jnp.int8, jnp.uint8)}


@pytest.mark.slow
@pytest.mark.parametrize("name", TX)
def test_any_optimizer(name):
  """Large moments are coded, by sign; small leaves have float32's path to the bit, large ones stay near it."""
  tx = quantize_state(TX[name])
  (params, state), (want, plain) = trained(tx), trained(TX[name])
  kinds = sorted(coded(state).values())
  assert kinds == (["int8"] if name in ("lion", "momentum", "nd_adam") else ["int8", "uint8"])
  start = jax.eval_shape(tx.init, PARAMS)
  assert jax.tree.map(lambda a: (a.shape, a.dtype), start) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
  np.testing.assert_array_equal(params["bias"], want["bias"])
  moved, error = want["kernel"] - PARAMS["kernel"], params["kernel"] - want["kernel"]
  assert 0 < np.abs(error).mean() < 0.1 * np.abs(moved).mean()
  assert jax.tree.structure(state.codes) == jax.tree.structure(plain)


@pytest.mark.heavy
@pytest.mark.parametrize("name", TX)
def test_a_huge_gradient_stops_one_element(name):
  """Its square overflows: in float32 its element (ND-Adam's vector) takes no step from then on, and all others do."""
  quantized, huge, ends = quantize_state(TX[name]), jnp.zeros((64, 128)).at[37, 5].set(1e25), {}
  for kind, tx in (("plain", TX[name]), ("coded", quantized)):
    params, state = PARAMS, jitted(tx.init)(PARAMS)
    update = jitted(tx.update)
    for t, grads in enumerate(gradients(4)):
      grads["kernel"] += huge * (t == 1)
      updates, state = update(grads, state, params)
      params = optax.apply_updates(params, updates)
    ends[kind], states = params["kernel"], state
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states.scale))
  if name == "momentum":  # 1e25 counts once, and is not kept
    np.testing.assert_allclose(ends["coded"][37, 5], -1e23, rtol=1e-6)
  else:
    np.testing.assert_allclose(ends["coded"][37, 5], ends["plain"][37, 5], rtol=1e-3)
  in_row = np.arange(128) != 5
  moved = np.abs(ends["plain"] - PARAMS["kernel"])[37, in_row]
  error = np.abs(ends["coded"] - ends["plain"])[37, in_row]
  assert error.mean() < 0.1 * moved.mean()


@pytest.mark.heavy
def test_a_gradient_that_is_not_finite_shows():
  for bad in (jnp.nan, jnp.inf):
    for name in ("adam", "adamnx", "momentum"):
      tx, grads = quantize_state(TX[name]), next(gradients(1))
      grads["kernel"] = grads["kernel"].at[37, 5].set(bad)
      updates, state = jitted(tx.update)(grads, jitted(tx.init)(PARAMS), PARAMS)
      np.testing.assert_array_equal(np.argwhere(~np.isfinite(updates["kernel"])), [[37, 5]])
      np.testing.assert_array_equal(np.argwhere(np.isnan(state.scale[0]["kernel"]))[:, 0], [37])


@pytest.mark.filterwarnings("ignore:quantize_state stores no moment")
def test_state_in_bytes():
  params = {"w": jnp.zeros((256, 256))}
  stored = lambda **kwargs: sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(jax.eval_shape(quantize_state(optax.adam(1e-3), **kwargs).init, params))
  )
  assert stored() == 2 * 256 * 256 + 2 * 4 * 256 + 4
  assert stored(block=128) == 2 * 256 * 256 + 2 * 4 * 512 + 4
  assert stored(min_size=65537) == 8 * 256 * 256 + 2 * 4 + 4


@pytest.mark.heavy
def test_scalars_are_kept_as_they_are():
  params, tx = {"s": jnp.ones(()), "w": jnp.ones(4)}, quantize_state(optax.adam(1e-2), min_size=1)
  state = tx.init(params)
  assert set(coded(state)) == {".codes[0].mu['w']", ".codes[0].nu['w']"}
  updates, state = tx.update(params, state, params)
  np.testing.assert_allclose(updates["s"], -1e-2, rtol=1e-5)
  assert state.codes[0].mu["s"].dtype == jnp.float32


def test_linear_codes_diverge():
  """Why codes of v are dynamic: in 255 equal steps, where gradients differ by 1,000, small second moments become 0."""
  top = lambda dtype: 127 if dtype == jnp.int8 else 255
  linear = {
    "encode": lambda x, scale, dtype, bits=None: jnp.round(x / scale * top(dtype)).astype(dtype),
    "decode": lambda codes, scale: codes * scale / top(codes.dtype),
  }
  size = {}
  for name in ("dynamic", "linear"):
    with pytest.MonkeyPatch.context() as patch:
      if name == "linear":
        for function, replacement in linear.items():
          patch.setattr(f"optax_ext._memory.quantize.{function}", replacement)
      params, _ = trained(quantize_state(optax.adam(1e-2)))
    size[name] = np.abs(params["kernel"] - PARAMS["kernel"]).max()
  assert size["dynamic"] < 0.2  # 10 steps of a hundredth
  assert size["linear"] > 100


def wrap(name):
  adam = lambda learning_rate=1e-2: quantize_state(optax.adam(learning_rate))
  labels = lambda tree: jax.tree.map(lambda leaf: "large" if jnp.ndim(leaf) == 2 else "small", tree)
  return {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(10.0), adam()),
    "partition": lambda: optax.partition({"large": adam(), "small": optax.sgd(0.1)}, labels),
    "of partition": lambda: quantize_state(
      optax.partition({"large": optax.adam(1e-2), "small": optax.sgd(0.1)}, labels)
    ),
    "inject": lambda: optax.inject_hyperparams(adam)(learning_rate=1e-2),
    "of inject": lambda: quantize_state(optax.inject_hyperparams(optax.adam)(1e-2)),
    "MultiSteps": lambda: optax.MultiSteps(adam(), 2).gradient_transformation(),
    "of MultiSteps": lambda: quantize_state(optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation()),
    "apply_if_finite": lambda: optax.apply_if_finite(adam(), 3),
  }[name]()


WRAPPED = [
  "chain",
  "partition",
  "of partition",
  "inject",
  "of inject",
  "MultiSteps",
  "of MultiSteps",
  "apply_if_finite",
]


@pytest.mark.heavy
@pytest.mark.parametrize("name", WRAPPED)
def test_in_every_surrounding(name, tmp_path):
  """Inside and outside of other wrappers (`partition` masks): codes as alone, map_params, shardings, a checkpoint."""
  tx = wrap(name)
  every = 2 if "MultiSteps" in name else 1
  grads = jax.tree.map(jnp.sign, next(gradients(1)))
  scan = jitted(lambda carry: jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=3 * every)[0])

  def step(carry):
    params, state = carry
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  params, state = scan((PARAMS, jitted(tx.init)(PARAMS)))
  want = PARAMS["kernel"] - 0.03 * np.sign(grads["kernel"])  # Adam's three steps with one gradient
  np.testing.assert_allclose(params["kernel"], want, atol=1e-3)
  assert sorted(coded(state).values()) == ["int8", "uint8"]

  like = optax.tree.map_params(
    tx,
    lambda leaf, param: leaf if isinstance(leaf, optax.MaskedNode) else leaf.ndim == param.ndim,
    state,
    PARAMS,
    is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    transform_non_params=lambda leaf: True,
  )
  assert all(jax.tree.leaves(like))
  mesh = jax.make_mesh((2, 4), ("x", "y"), (AxisType.Auto, AxisType.Auto))
  shardings = {"kernel": NamedSharding(mesh, P("x", "y")), "bias": NamedSharding(mesh, P()), "hidden": None}
  specs = optax_ext.state_shardings(tx, PARAMS, shardings)
  found = {
    str(leaf.dtype): spec.spec for leaf, spec in zip(jax.tree.leaves(state), jax.tree.leaves(specs), strict=True)
  }
  assert found["int8"] == found["uint8"] == P("x", "y")
  rows = [
    spec.spec
    for leaf, spec in zip(jax.tree.leaves(state), jax.tree.leaves(specs), strict=True)
    if leaf.shape == (64, 1)
  ]
  assert rows == [P("x", None)] * 2
  on_mesh = jax.device_put(state, specs)
  checkpointer = ocp.StandardCheckpointer()
  checkpointer.save(tmp_path / "state", on_mesh)
  checkpointer.wait_until_finished()
  restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
  chex.assert_trees_all_equal(restored, state)


def test_a_layout_stays_with_its_state():
  """Rows or blocks are read from the scales' shape: a state goes on as it began, whatever the wrapper's arguments."""
  blocks, rows = quantize_state(optax.adam(1e-2), block=32, axis=-2), quantize_state(optax.adam(1e-2))
  grads, state = next(gradients(1)), jitted(blocks.init)(PARAMS)
  assert state.scale[0]["kernel"].shape == (2, 128)
  chex.assert_trees_all_equal(*(jitted(tx.update)(grads, state) for tx in (blocks, rows)))


def test_blocks_lie_as_the_device_at_init_reads_them_fastest(monkeypatch):
  shape = lambda: jax.eval_shape(quantize_state(optax.adam(1e-2), block=32).init, PARAMS).scale[0]["kernel"].shape
  assert shape() == (64, 4)
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert shape() == (2, 128)


@pytest.mark.slow
@pytest.mark.parametrize(("block", "axis", "of_scale"), [(32, -2, P("x", "y")), (8, -1, P("x", "y")), (64, -1, P("x"))])
def test_scales_of_blocks_live_with_their_blocks(block, axis, of_scale):
  """Where no device's part ends within a block, a device has the scales of its part, as one device would have them."""
  mesh = jax.make_mesh((2, 4), ("x", "y"), (AxisType.Auto, AxisType.Auto))
  shardings = {"kernel": NamedSharding(mesh, P("x", "y")), "bias": NamedSharding(mesh, P()), "hidden": None}
  tx = quantize_state(optax.adam(1e-2), block=block, axis=axis)
  of_state = optax_ext.state_shardings(tx, PARAMS, shardings)
  assert of_state.scale[0]["kernel"].is_equivalent_to(NamedSharding(mesh, of_scale), 2)
  grads = next(gradients(1))
  want = jitted(tx.update)(grads, jitted(tx.init)(PARAMS), PARAMS)
  state = in_full(tx.init, out_shardings=of_state)(jax.device_put(PARAMS, shardings))
  got = in_full(tx.update)(jax.device_put(grads, shardings), state, jax.device_put(PARAMS, shardings))
  chex.assert_trees_all_close(got, want, rtol=1e-6)


def test_sharded_as_on_one_device():
  mesh = jax.make_mesh((2, 4), ("x", "y"), (AxisType.Auto, AxisType.Auto))
  shardings = {"kernel": NamedSharding(mesh, P("x", "y")), "bias": NamedSharding(mesh, P()), "hidden": None}
  tx = quantize_state(optax.adam(1e-2))
  of_state = optax_ext.state_shardings(tx, PARAMS, shardings)
  grads = next(gradients(1))
  want = jitted(tx.update)(grads, jitted(tx.init)(PARAMS), PARAMS)
  state = in_full(tx.init, out_shardings=of_state)(jax.device_put(PARAMS, shardings))
  got = in_full(tx.update)(jax.device_put(grads, shardings), state, jax.device_put(PARAMS, shardings))
  assert got[1].codes[0].mu["kernel"].sharding.spec == P("x", "y")
  chex.assert_trees_all_close(got, want, rtol=1e-6)


@pytest.mark.slow
def test_one_second_moment_of_a_whole_vector_is_no_code():
  """It has one number, as the scale of a leaf without codes has."""
  square = optax_ext.per_vector(lambda path, leaf: (0,))
  pieces = optax.chain(optax_ext.scale_by_moments(GAIN, GAIN, square=square), optax.scale(-0.1))
  tx, params = quantize_state(pieces, min_size=1), {"w": jnp.ones(3)}
  state = tx.init(params)
  assert state.codes[0].nu["w"].shape == (1,)
  updates, state = tx.update(params, state, params)
  np.testing.assert_allclose(updates["w"], -0.1 * 3**-0.5, rtol=1e-5)
  assert state.codes[0].nu["w"].dtype == jnp.float32


@pytest.mark.slow
def test_narrow_parameters_and_half_a_tree():
  params = {"a": jnp.ones((64, 64), jnp.bfloat16), "b": jnp.ones((64, 64), jnp.complex64), "c": jnp.ones((64, 64))}
  tx = quantize_state(optax_ext.adamnx(1e-2))
  state = jitted(tx.init)(params)
  updates, new = jitted(tx.update)(params, state, params)
  assert jax.tree.map(lambda a: a.dtype, updates) == jax.tree.map(lambda a: a.dtype, params)
  assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(new.codes[0].mu)} == {"int8", "complex64"}


@pytest.mark.heavy
@pytest.mark.parametrize(
  "tx", [*TX.values(), optax.adabelief(1e-2), optax.amsgrad(1e-2)], ids=[*TX, "belief", "amsgrad"]
)
def test_float32_gradients_change_no_stored_dtype(tx):
  """Of bfloat16 parameters. Some optimizers leave the moments of small leaves, that are not coded, in float32."""
  params, tx = {"a": jnp.ones((64, 64), jnp.bfloat16), "b": jnp.ones(8, jnp.bfloat16)}, quantize_state(tx)

  def step(carry, t):
    params, state = carry
    grads = jax.tree.map(lambda leaf: t + jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape), params)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  start = jax.eval_shape(tx.init, params)
  _, state = jitted(lambda: jax.lax.scan(step, (params, tx.init(params)), jnp.arange(3.0))[0])()
  assert jax.tree.map(lambda a: a.dtype, state) == jax.tree.map(lambda a: a.dtype, start)
  assert all(np.any(leaf.astype(float)) for leaf in jax.tree.leaves(state))


def test_updates_have_the_dtypes_of_their_parameters():
  """Those of moments in float32 would be float32: `apply_if_finite` compares them with zeros like the gradients."""
  params = {"a": jnp.ones((64, 64), jnp.bfloat16)}
  tx = optax.apply_if_finite(quantize_state(optax.adam(1e-2)), 3)
  updates, _ = jitted(tx.update)(params, jitted(tx.init)(params), params)
  assert updates["a"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_float64():
  """Of moments in float64 the codes are those of float32."""
  with enable_x64(True):
    tx, grads = quantize_state(optax.adam(1e-2)), {"a": np.random.default_rng(0).normal(size=(64, 64))}
    of = lambda dtype: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), grads)
    (wide, state), (_, narrow) = (jitted(tx.update)(of(t), jitted(tx.init)(of(t))) for t in (jnp.float64, jnp.float32))
    assert wide["a"].dtype == jnp.float64
    for a, b in zip(*(jax.tree.leaves(s.codes[0].mu) for s in (state, narrow)), strict=True):
      assert np.mean(np.asarray(a) != np.asarray(b)) < 1e-2


def test_numbers_of_numpy_make_the_same_layout():
  layouts = [
    jax.eval_shape(quantize_state(optax.adam(1e-3), min_size=of(64), block=of(16), axis=of(-1)).init, PARAMS)
    for of in (int, np.int64)
  ]
  chex.assert_trees_all_equal_shapes_and_dtypes(*layouts)


def test_what_is_refused():
  for kwargs, message in (
    ({"min_size": 0}, "min_size must be a whole number of at least 1, but was 0"),
    ({"block": 1.5}, "block must be a whole number of at least 1, but was 1.5"),
    ({"axis": 0}, "axis must be an int that counts from the last axis"),
    ({"signed": "mu"}, "signed must be a list or tuple of names of fields, but was 'mu'"),
    ({"signed": ["mu", "nu"]}, "'nu' is named both in signed and in unsigned"),
  ):
    with pytest.raises((TypeError, ValueError), match=message):
      quantize_state(optax.adam(1e-3), **kwargs)
  with pytest.raises(ValueError, match=r"min_size must be .* Array.*: in .*inject_.* 'min_size' in static_args"):
    optax.inject_hyperparams(quantize_state)(optax.adam(1e-3), min_size=4).init(PARAMS)
  with pytest.raises(ValueError, match=r"no field named mu, trace, nu .* are named sum_of_squares"):
    quantize_state(optax.adagrad(1e-3)).init(PARAMS)
  with pytest.raises(ValueError, match="has dtype int8 already"):
    jax.eval_shape(quantize_state(quantize_state(optax.adam(1e-3))).init, PARAMS)
  with pytest.raises(ValueError, match="in its field 'mu' a tree unlike the parameters"):
    jax.eval_shape(quantize_state(optax.sm3(1e-3)).init, PARAMS)
  found = jax.eval_shape(quantize_state(optax.adagrad(1e-3), unsigned=["sum_of_squares"]).init, PARAMS)
  assert isinstance(found, QuantizedState)
  assert list(coded(found).values()) == ["uint8"]
  wrong = quantize_state(optax.adam(1e-3), signed=(), unsigned=["mu", "nu"])
  update, grads = jitted(wrong.update), next(gradients(1))
  updates, _ = update(grads, update(grads, jitted(wrong.init)(PARAMS))[1])
  assert np.isnan(updates["kernel"]).all()


@pytest.mark.parametrize("params", [PARAMS, {"row": jnp.ones(4096)}], ids=["rows", "one row"])
def test_codes_that_were_cast_are_refused(params):
  tx = quantize_state(optax.adam(1e-3))
  state = jax.eval_shape(tx.init, params)
  for dtype in (jnp.float32, jnp.bfloat16, jnp.int32):
    cast = jax.eval_shape(lambda state, dtype=dtype: optax.tree.cast(state, dtype), state)
    with pytest.raises(
      ValueError, match=r"with codes in \w+ .* Restore the state with jax.eval_shape\(tx.init, params\)"
    ):
      jax.eval_shape(tx.update, params, cast, params)
  narrow = state._replace(scale=jax.tree.map(lambda leaf: leaf.update(dtype=jnp.bfloat16), state.scale))
  with pytest.raises(ValueError, match="scales in bfloat16, but"):
    jax.eval_shape(tx.update, params, narrow, params)


def test_a_word_where_nothing_is_coded():
  small, tx = {"conv": jnp.ones((3, 3, 16)), "bias": jnp.ones(16)}, quantize_state(optax.adam(1e-3))
  says = "no moment in 8 bits: the largest of these 4 has 144 elements, and min_size=4096"
  with pytest.warns(UserWarning, match=says) as caught:
    jax.eval_shape(tx.init, small)
  assert len(caught) == 1
  with warnings.catch_warnings(action="error"):
    jax.eval_shape(quantize_state(optax.adam(1e-3), min_size=144).init, small)
    jax.eval_shape(tx.init, PARAMS | small)
    tx.init({})


@pytest.mark.slow
def test_one_trace_all_donated_and_no_temporaries():
  params = {str(i): jnp.zeros((256, 256)) for i in range(4)}
  tx = quantize_state(optax_ext.exadam(1e-3))

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  @chex.assert_max_traces(1)
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  abstract = jax.eval_shape(tx.init, params)
  memory = step.lower(params, abstract, params).compile().memory_analysis()
  stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, abstract)))
  assert memory.alias_size_in_bytes == stored
  state, grads = jitted(tx.init)(params), jax.tree.map(jnp.ones_like, params)
  for _ in range(2):
    params, state = step(params, state, grads)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 3e4])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_squares_of_narrow_gradients_are_taken_in_float32(dtype, size):
  """In float16 they would be 0 or ∞, and a step too long by 10⁴, or none."""
  tx, params = quantize_state(optax.adam(1e-2), min_size=1), jnp.ones((4, 64), dtype)
  updates, _ = tx.update(jnp.full_like(params, size), tx.init(params), params)
  assert updates.dtype == dtype
  np.testing.assert_allclose(updates.astype(jnp.float32), -1e-2, rtol=0.02)
  np.testing.assert_array_equal(updates, tx.update(jnp.full_like(params, size), tx.init(params))[0])
