"""The fused step: update_and_apply for every transformation, and ND-Adam's kernel, interpreted on this machine."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_ext
from optax_ext._common import tpu
from optax_ext._run.apply import update_and_apply
from optax_ext._sphere import one_pass
from optax_ext._sphere.pallas import block_of

AXES = {"conv": (0, 1), "out": (1,), "bias": None}
SHAPES = {"conv": (2, 16, 384), "out": (48, 128), "bias": (5,)}  # three blocks each
KERNEL = optax_ext.nd_adam(1e-3, axes=AXES, kernel="pallas")


@pytest.fixture(autouse=True)
def every_leaf_is_large(monkeypatch, interpreted_kernels):
  monkeypatch.setattr(one_pass, "SMALL", 1)


def draw(seed, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


PARAMS = optax_ext.normalize_vectors(draw(0), AXES)


def in_one_call(tx, params, steps, dtype=jnp.float32):
  step = jax.jit(lambda grads, state, params: update_and_apply(tx, grads, state, params))
  state = tx.init(params)
  for t in range(steps):
    params, state = step(draw(t + 1, dtype), state, params)
  return params, state


def in_two_calls(tx, params, steps, dtype=jnp.float32):
  @jax.jit
  def step(grads, state, params):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for t in range(steps):
    params, state = step(draw(t + 1, dtype), state, params)
  return params, state


def assert_close(got, want, tolerance):
  assert jax.tree.structure(got) == jax.tree.structure(want)

  def close(a, b):
    assert a.dtype == b.dtype
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (np.abs(b).max() + 1e-30))

  jax.tree.map(close, got, want)


OPTIMIZERS = {
  "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
  "MultiSteps": optax.MultiSteps(optax.adam(1e-2), 2),
  "apply_if_finite": optax.apply_if_finite(optax.adam(1e-2), 3),
  "without a kernel": optax_ext.nd_adam(1e-3, axes=AXES),
}


@pytest.mark.slow
@pytest.mark.parametrize("tx", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_update_and_apply_is_update_then_apply(tx):
  """To the bit: a program of the same operations."""
  assert_close(in_one_call(tx, PARAMS, 2), in_two_calls(tx, PARAMS, 2), 0)


def test_missing_gradients_and_extra_arguments():
  seen = []

  def update(updates, state, params=None, *, loss, **extra_args):
    seen.append((loss, extra_args))
    return updates, state

  tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
  params, _ = update_and_apply(
    tx, {"a": jnp.ones(2), "b": None}, optax.EmptyState(), {"a": jnp.ones(2), "b": None}, loss=3
  )
  np.testing.assert_array_equal(params["a"], 2)
  assert params["b"] is None
  assert seen == [(3, {"return_applied": True})]


# Both sum the same products, in another order.
@pytest.mark.heavy
@pytest.mark.parametrize(
  ("dtype", "kwargs", "tolerance"),
  [
    (jnp.float32, {}, 3e-6),
    (jnp.float32, {"mu_dtype": jnp.bfloat16, "nu_dtype": jnp.bfloat16}, 2**-7),
    (jnp.bfloat16, {}, 2**-6),
  ],
  ids=["float32", "bfloat16 moments", "bfloat16"],
)
def test_kernel_is_the_chain(dtype, kwargs, tolerance):
  params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
  schedule = optax.linear_schedule(1e-3, 1e-4, 6)
  make = lambda kernel: optax_ext.nd_adam(schedule, axes=AXES, kernel=kernel, **kwargs)
  assert_close(in_one_call(make("pallas"), params, 6, dtype), in_two_calls(make(None), params, 6, dtype), tolerance)


@pytest.mark.heavy
def test_gradients_parallel_to_the_weights():
  """On chip projection and length are computed one after the other, as in the chain, so that nothing cancels."""
  w, tangent = PARAMS["out"], draw(1)["out"]
  tangent -= jnp.sum(tangent * w, 1, keepdims=True) * w
  grads = PARAMS | {"out": w + 1e-5 * tangent}
  params, state = jax.jit(lambda: update_and_apply(KERNEL, grads, KERNEL.init(PARAMS), PARAMS))()
  rest = np.asarray(grads["out"], np.float64)
  rest -= (rest * w).sum(1, keepdims=True) / (np.asarray(w, np.float64) ** 2).sum(1, keepdims=True) * w
  np.testing.assert_allclose(optax.tree.get(state, "nu")["out"][:, 0], 1e-3 * (rest**2).sum(1), rtol=5e-3)
  np.testing.assert_allclose(np.linalg.norm(params["out"], axis=1), 1, atol=5e-7)


WRAPPED = {
  "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
  "masked": lambda tx: optax.masked(tx, {"conv": True, "out": False, "bias": False}),
  "partition": lambda tx: optax.partition(
    {"ours": tx, "theirs": optax.sgd(1e-2)}, {"conv": "ours", "out": "theirs", "bias": "theirs"}
  ),
}


@pytest.mark.heavy
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_kernel_through_wrappers(wrap):
  plain = wrap(optax_ext.nd_adam(1e-3, axes=AXES))
  assert_close(in_one_call(wrap(KERNEL), PARAMS, 2), in_two_calls(plain, PARAMS, 2), 3e-6)


@pytest.mark.heavy
def test_injected_numbers_reach_the_kernel():
  """Numbers that are tracers, ε and the decay rates too, are given to the kernel, which may not close over them."""
  make = lambda kernel: optax.inject_hyperparams(optax_ext.nd_adam, static_args=("axes", "kernel"))(
    1e-3, 0.8, 0.9, eps=0.5, axes=lambda path, leaf: AXES[path], kernel=kernel
  )
  assert_close(in_one_call(make("pallas"), PARAMS, 2), in_two_calls(make(None), PARAMS, 2), 3e-6)


AFTER = {
  "scale": optax.scale(0.5),
  "scale_by_schedule": optax.scale_by_schedule(lambda count: 0.5),
  "ema": optax.ema(0.9),
  "clip": optax.clip(1.0),
  "clip_by_global_norm": optax.clip_by_global_norm(1.0),
  "clip_by_block_rms": optax.clip_by_block_rms(1.0),
  "scale_by_adam": optax.scale_by_adam(),
  "scale_by_sign": optax.scale_by_sign(),
  "add_decayed_weights": optax.add_decayed_weights(0.1),
  "keep_params_nonnegative": optax.keep_params_nonnegative(),
  "set_to_zero": optax.set_to_zero(),
  "exadam": optax_ext.exadam(1e-3),
  "renormalize_params": optax_ext.renormalize_params((1,)),
  "masked by rank": optax.masked(optax.scale(0.5), lambda tree: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, tree)),
}


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", [*AFTER, "apply_if_finite"])
def test_links_after_a_kernel_fail(name, compiled):
  params, tx = {"out": PARAMS["out"]}, optax_ext.nd_adam(1e-3, axes=(1,), kernel="pallas")
  tx = optax.apply_if_finite(tx, 3) if name == "apply_if_finite" else optax.chain(tx, AFTER[name])
  step = lambda grads, state, params: update_and_apply(tx, grads, state, params)
  with pytest.raises(
    TypeError, match=r"^split_weights or a kernel has applied an update .* put the optimizer last in its chain"
  ):
    (jax.jit(step) if compiled else step)(params, tx.init(params), params)


def test_other_errors_of_links_after_a_kernel_stay():
  params = {"out": PARAMS["out"]}
  tx = optax.chain(optax_ext.nd_adam(1e-3, axes=(1,), kernel="pallas"), optax.contrib.reduce_on_plateau())
  with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'value'"):
    update_and_apply(tx, params, tx.init(params), params)


def test_errors_that_speak_of_applied_things_stay():
  def update(updates, state, params=None, **extra_args):
    raise ValueError("Applied Physics' dataset is missing")

  tx = optax.chain(KERNEL, optax.GradientTransformationExtraArgs(optax.init_empty_state, update))
  with pytest.raises(ValueError, match="Applied Physics"):
    jax.eval_shape(lambda *args: update_and_apply(tx, *args), PARAMS, jax.eval_shape(tx.init, PARAMS), PARAMS)


@pytest.mark.heavy
@pytest.mark.parametrize(
  "tx", [KERNEL, optax_ext.quantize_state(optax_ext.adamnx(1e-2), kernel="pallas"), optax.sgd(1)]
)
@pytest.mark.filterwarnings("ignore:quantize_state's kernel")
def test_a_parameter_without_gradient_stays(tx):
  grads, state = draw(1) | {"conv": None}, tx.init(PARAMS)
  updates, want_state = tx.update(grads, state, PARAMS)
  params, new_state = update_and_apply(tx, grads, state, PARAMS)
  np.testing.assert_array_equal(params["conv"], PARAMS["conv"])
  for name in ("out", "bias"):
    np.testing.assert_allclose(params[name], PARAMS[name] + updates[name], atol=1e-6)
  assert jax.tree.structure(new_state) == jax.tree.structure(want_state)


def test_vectors_that_take_the_chain_are_named(monkeypatch):
  monkeypatch.setattr(one_pass, "SMALL", 4096)
  params = {"large": jnp.ones((32, 128)), "small": jnp.ones((31, 128)), "bias": jnp.ones(5000)}
  tx = optax_ext.nd_adam(1e-3, axes={"large": (0,), "small": (0,), "bias": None}, kernel="pallas")
  state = jax.eval_shape(tx.init, params)
  with pytest.warns(UserWarning, match="'small': it has 3968 elements, fewer than 4096") as caught:
    jax.eval_shape(lambda *args: update_and_apply(tx, *args), params, state, params)
  assert not any(name in str(caught[0].message) for name in ("'large'", "'bias'"))


@pytest.mark.heavy
def test_other_leaves_fall_back_and_are_named():
  params = {"a": jnp.ones((32, 128)), "odd": jnp.ones((5, 128)), "wide": jnp.ones((16, 100)), "b": jnp.ones(3)}
  axes = lambda path, leaf: None if path == "b" else (0,)
  params = optax_ext.normalize_vectors(params, axes)
  tx, plain = (optax_ext.nd_adam(1e-3, axes=axes, kernel=kernel) for kernel in ("pallas", None))
  with pytest.warns(
    UserWarning, match=r"'odd': the last two axes of its shape \(5, 128\) are not .*'wide': "
  ) as caught:
    got = update_and_apply(tx, params, tx.init(params), params)
  assert len(caught) == 1
  assert "'a'" not in str(caught[0].message)
  assert "'b'" not in str(caught[0].message)
  assert_close(got, update_and_apply(plain, params, plain.init(params), params), 1e-6)


def test_elsewhere_than_on_a_tpu_the_kernel_is_not_used(monkeypatch):
  monkeypatch.setattr(tpu, "INTERPRETED", False)
  tx = optax_ext.nd_adam(1e-3, axes=AXES, kernel="pallas")
  with warnings.catch_warnings(action="error"):
    got = in_one_call(tx, PARAMS, 2)
  assert_close(got, in_two_calls(optax_ext.nd_adam(1e-3, axes=AXES), PARAMS, 2), 1e-6)


def test_blocks_hold_whole_vectors():
  leaf = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  cut = lambda shape, along, dtype=jnp.float32: block_of(*[leaf(shape, dtype)] * 3, along)
  assert cut((4096, 4096), (0,)) == ((4096, 4096), (4096, 128))
  assert cut((512, 1024), (0,)) == ((512, 1024), (512, 512))
  assert cut((3, 3, 256, 512), (0, 1, 2)) == ((2304, 512), (2304, 128))
  assert cut((4096, 4096), (1,)) == ((4096, 4096), (64, 4096))
  assert cut((64, 8, 128), (2,)) == "the last two axes of its shape (64, 8, 128) are not multiples of 16 and 128"
  for shape, along, reason in (
    ((16384, 128), (0,), "do not fit on the chip"),
    ((32, 16, 128), (0,), "and not along all but the last or the last alone"),
    ((128,), (0,), "and not along all but the last"),
  ):
    assert reason in cut(shape, along)
  assert "float16" in cut((128, 128), (0,), jnp.float16)


def test_blocks_fit_on_a_small_chip(monkeypatch):
  """Of v4, whose memory holds no 128 vectors of 4096; shorter ones it does."""
  leaf = lambda *shape: [jax.ShapeDtypeStruct(shape, jnp.float32)] * 3
  monkeypatch.setattr(tpu, "on_chip", lambda: 12 * 2**20)
  assert "do not fit on the chip" in block_of(*leaf(4096, 4096), (0,))
  assert block_of(*leaf(512, 1024), (0,)) == ((512, 1024), (512, 512))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_outside_of_shard_map_falls_back(kind):
  params = {"out": PARAMS["out"]}
  tx, plain = (optax_ext.nd_adam(1e-3, axes=(1,), kernel=kernel) for kernel in ("pallas", None))
  want = update_and_apply(plain, params, plain.init(params), params)
  mesh = jax.make_mesh((2,), ("model",), axis_types=(kind,), devices=jax.devices()[:2])
  reason = r"'out': .*'model': 2.* splits it, and a kernel sees whole arrays only"
  with jax.set_mesh(mesh), pytest.warns(UserWarning, match=reason):
    got = jax.jit(lambda: update_and_apply(tx, params, tx.init(params), params))()
  assert_close(got, want, 1e-6)


@pytest.mark.heavy
def test_kernel_inside_shard_map():
  """Each device steps the whole vectors that it holds; vectors that the mesh splits fall back."""
  mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
  axes = {"whole": (0,), "split": (0,)}
  specs = {"whole": P(None, "model"), "split": P("model")}
  rng = np.random.default_rng(0)
  params = {name: jnp.asarray(rng.normal(size=(32, 256)), jnp.float32) for name in axes}
  params = optax_ext.normalize_vectors(params, axes)
  names = lambda path, leaf: "model" if path == "split" else None
  tx = optax_ext.nd_adam(1e-3, axes=axes, axis_name=names, kernel="pallas")
  plain = optax_ext.nd_adam(1e-3, axes=axes)
  state = tx.init(params)
  shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
  of_state = jax.tree.map(lambda s: s.spec, optax_ext.state_shardings(tx, params, shardings))
  step = jax.shard_map(
    lambda grads, state, params: update_and_apply(tx, grads, state, params),
    mesh=mesh,
    in_specs=(specs, of_state, specs),
    out_specs=(specs, of_state),
    check_vma=False,  # an interpreted kernel does not pass the check; a compiled one does
  )
  grads = jax.tree.map(lambda p: p**2 + 1, params)
  with pytest.warns(UserWarning, match="'split': the mesh splits its vectors"):
    got = jax.jit(step)(grads, state, params)
  assert_close(got, jax.jit(lambda: update_and_apply(plain, grads, state, params))(), 3e-6)


def test_unknown_kernel():
  with pytest.raises(ValueError, match="kernel must be None or \"pallas\", but was 'triton'"):
    optax_ext.nd_adam(1e-3, kernel="triton")
