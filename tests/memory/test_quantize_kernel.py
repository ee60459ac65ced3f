"""The kernel that steps 8-bit moments, interpreted on this machine, against the same step by XLA."""

import functools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import jitted

import optax_ext
from optax_ext._common import tpu
from optax_ext._common.applied import Applied
from optax_ext._memory.elementwise import NotServedError, Program
from optax_ext._memory.quantize import quantize_state
from optax_ext._memory.step import rows_of
from optax_ext._run.apply import update_and_apply

PARAMS = {"three": jnp.linspace(-1, 1, 8192).reshape(2, 32, 128), "bias": jnp.ones(128)}
COSINE = optax.cosine_decay_schedule(1e-2, 10)
TX = {
  "exadam": optax_ext.exadam(COSINE, weight_decay=0.1, mask={"three": True, "bias": False}),
  "adamnx": optax_ext.adamnx(1e-2, nu_dtype=jnp.bfloat16),
  "caadam": optax_ext.caadam(COSINE, weight_decay=0.1),
  "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.inject_hyperparams(optax.lion)(COSINE)),
}

pytestmark = pytest.mark.usefixtures("interpreted_kernels")


def trained(tx, params, steps=4):
  """In calls of `update_and_apply`, on gradients that differ by 1,000 within a row."""
  rng, state = np.random.default_rng(0), jitted(tx.init)(params)
  step = jitted(functools.partial(update_and_apply, tx))
  size = jax.tree.map(lambda p: 10 ** rng.uniform(-3, 0, p.shape), params)
  for _ in range(steps):
    grads = jax.tree.map(lambda p, s: jnp.asarray(s * (rng.normal(size=p.shape) + 0.3), p.dtype), params, size)
    params, state = step(grads, state, params)
  return params, state


def assert_same(got, want, tolerance):
  """Equal but for rounding, which may move a number in a thousand to the next code."""
  chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    if a.dtype in (jnp.int8, jnp.uint8):
      other = np.abs(np.asarray(a, int) - np.asarray(b, int))
      assert other.max() <= 1
      assert np.mean(other) < 1e-3
    else:
      np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=tolerance, atol=tolerance)


@pytest.mark.heavy
@pytest.mark.parametrize("name", TX)
@pytest.mark.filterwarnings("ignore:scale_by_structure sees 1 layer")  # one kernel is enough here
def test_the_kernel_takes_the_same_steps(name):
  """With decay, masks, schedules and numbers that depend on all leaves; the state is the same, and so a checkpoint."""
  fused = quantize_state(TX[name], kernel="pallas")
  state = jax.eval_shape(fused.init, PARAMS)
  program = jax.make_jaxpr(lambda *args: update_and_apply(fused, *args))(PARAMS, state, PARAMS)
  assert str(program).count("pallas_call") == 1
  assert_same(trained(fused, PARAMS), trained(quantize_state(TX[name]), PARAMS), 3e-6)


@pytest.mark.heavy
def test_blocks_are_stepped_in_their_shape():
  """With `kernel="xla"`: the same numbers, and no other layout of the state."""
  make = lambda kernel: quantize_state(TX["exadam"], block=16, axis=-2, kernel=kernel)
  assert_same(trained(make("xla"), PARAMS, 2), trained(make(None), PARAMS, 2), 3e-6)


@pytest.mark.heavy
def test_narrow_parameters():
  params = {"kernel": PARAMS["three"].astype(jnp.bfloat16)}
  tx = optax_ext.exadam(1e-2)
  got, want = (trained(quantize_state(tx, kernel=kernel), params, 2) for kernel in ("pallas", None))
  assert_same(got, want, 2**-7)


@pytest.mark.slow
def test_only_where_it_is_asked_for(monkeypatch):
  """`tx.update` gives updates, and a program for another machine than a TPU has no kernel, but the same numbers."""
  monkeypatch.setattr(tpu, "INTERPRETED", False)
  tx = quantize_state(optax_ext.adamnx(1e-2), kernel="pallas")
  updates, _ = jax.eval_shape(tx.update, PARAMS, jax.eval_shape(tx.init, PARAMS), PARAMS)
  assert not any(isinstance(leaf, Applied) for leaf in jax.tree.leaves(updates))
  with warnings.catch_warnings(action="error"):
    got = trained(tx, PARAMS, 2)
  assert_same(got, trained(quantize_state(optax_ext.adamnx(1e-2)), PARAMS, 2), 3e-6)


@pytest.mark.slow
def test_a_broken_row_stays_one_row():
  """Scales are turned from a row into a column and back: each must come back to where it was."""
  params = {"kernel": jnp.ones((96, 128))}
  grads = {"kernel": jnp.arange(1.0, 97)[:, None] * jnp.ones(128)}
  grads["kernel"] = grads["kernel"].at[37, 5].set(jnp.nan)
  tx = quantize_state(optax_ext.adamnx(1e-2), kernel="pallas")
  params, state = jitted(functools.partial(update_and_apply, tx))(grads, jitted(tx.init)(params), params)
  for power, scales in zip((1, 2), state.scale, strict=True):
    scale = np.asarray(scales["kernel"])[:, 0]
    np.testing.assert_array_equal(np.isnan(scale), np.arange(96) == 37)
    np.testing.assert_allclose(np.delete(scale / scale[0], 37), np.delete(np.arange(1.0, 97), 37) ** power, rtol=1e-6)
  assert np.isnan(params["kernel"]).sum() == 1


@pytest.mark.heavy
@pytest.mark.parametrize("kernel", ["pallas", "xla"])
def test_a_huge_gradient_stops_one_element(kernel):
  params, ones = {"kernel": jnp.ones((32, 128))}, jnp.ones((32, 128))
  tx = quantize_state(optax_ext.exadam(1e-2), kernel=kernel)
  step, state, path = jitted(functools.partial(update_and_apply, tx)), jitted(tx.init)(params), []
  for huge in (1.0, 1e25, 1.0):
    params, state = step({"kernel": ones.at[7, 5].set(huge)}, state, params)
    path.append(np.asarray(params["kernel"]))
  np.testing.assert_array_equal(np.argwhere(np.asarray(state.codes[0].nu["kernel"]) == 255), [[7, 5]])
  assert all(np.isfinite(scales["kernel"]).all() for scales in state.scale)
  others = np.arange(32 * 128).reshape(32, 128) != 7 * 128 + 5
  for params in path:
    np.testing.assert_allclose(params[others], params[0, 0], rtol=1e-6)
  assert path[0][7, 5] == path[1][7, 5] == path[2][7, 5]
  assert path[0][0, 0] > path[1][0, 0] > path[2][0, 0]


@pytest.mark.heavy
def test_inside_shard_map_each_device_steps_its_rows():
  mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
  params = {"kernel": PARAMS["three"].reshape(128, 64).T.reshape(64, 128)}
  tx = quantize_state(optax_ext.exadam(COSINE), kernel="pallas")
  state = jitted(tx.init)(params)
  specs = optax_ext.state_shardings(tx, params, NamedSharding(mesh, P("rows")))
  specs = P("rows"), jax.tree.map(lambda sharding: sharding.spec, specs), P("rows")
  step = functools.partial(update_and_apply, tx)
  inside = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(specs[0], specs[1]), check_vma=False))
  grads = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(64, 128)), jnp.float32)}
  assert_same(inside(grads, state, params), jitted(step)(grads, state, params), 3e-6)


@pytest.mark.heavy
def test_inside_shard_map_the_layout_is_that_of_the_whole():
  """Of a part of 2,048 elements of 4,096, and of a bias of 3,000 that each device has; its state is stepped there."""
  mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
  params = {"kernel": jnp.linspace(-1, 1, 4096).reshape(64, 64), "bias": jnp.ones(3000)}
  specs = {"kernel": P("rows"), "bias": P()}
  tx = quantize_state(optax.adam(1e-2))
  want = jitted(tx.init)(params)
  of_state = optax_ext.state_shardings(tx, params, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
  of_state = jax.tree.map(lambda sharding: sharding.spec, of_state)
  inside = lambda f, args, results, check=True: jax.jit(
    jax.shard_map(f, mesh=mesh, in_specs=args, out_specs=results, check_vma=check)
  )
  chex.assert_trees_all_equal(inside(tx.init, (specs,), of_state)(params), want)
  with pytest.raises(ValueError, match=r"a part of shape \(3000,\) .* make the state outside, by jax.jit\(tx.init"):
    inside(tx.init, (specs,), of_state, False)(params)
  step = lambda grads, state, params: update_and_apply(tx, grads, state, params)
  got = inside(step, (specs, of_state, specs), (specs, of_state), False)(params, want, params)
  assert_same(got, jitted(step)(params, want, params), 3e-6)


@pytest.mark.heavy
def test_leaves_that_it_does_not_serve():
  """A warning names each and says why, and XLA steps them; small leaves, which have no codes, are not named."""
  params = {"odd": jnp.ones((5, 1000)), "good": jnp.ones((32, 128)), "small": jnp.ones(3)}
  tx = optax_ext.adamnx(1e-2)
  with pytest.warns(UserWarning, match=r"'odd': the last two axes of its shape \(5, 1000\)") as caught:
    got = trained(quantize_state(tx, kernel="pallas"), params, 1)
  assert len(caught) == 1
  assert not any(name in str(caught[0].message) for name in ("'good'", "'small'"))
  assert_same(got, trained(quantize_state(tx), params, 1), 3e-6)
  for tx, kwargs, reason in (
    (optax.chain(optax.centralize(), optax.adam(1e-2)), {}, "not elementwise, or more than the kernel knows"),
    (optax_ext.adamnx(1e-2), {"block": 64}, "it has not one scale for each row of the last axis"),
    (optax_ext.nd_adam(1e-2), {}, "not all of its moments have codes, in one layout"),
  ):
    tx = quantize_state(tx, kernel="pallas", **kwargs)
    one = {"good": params["good"]}
    state = jax.eval_shape(tx.init, one)
    with pytest.warns(UserWarning, match=f"'good': .*{reason}"):
      jax.eval_shape(functools.partial(update_and_apply, tx), one, state, one)


def test_programs_are_taken_apart_at_numbers():
  """What touches no array is evaluated outside, once; an array that is neither input nor elementwise is refused."""

  def function(x, y, count):
    rate = jnp.where(count > 3, jnp.exp(-count.astype(float)), 0.5)
    return jnp.where(x > rate, x * y, jnp.zeros_like(x)) + 1, jnp.cumsum(x, 1) + y, x + jnp.arange(4.0), x * count

  x, y, count = jnp.arange(8.0).reshape(2, 4), jnp.full((2, 4), 3.0), jnp.int32(2)
  program, (sure, summed, plus, times) = Program.of(function, (x, y, count))
  part = program.elementwise(program.inputs[:2], (sure,))
  np.testing.assert_allclose(part(program.values(part.numbers), x, y)[0], np.where(x > 0.5, 3 * x, 0) + 1)
  assert part(program.values(part.numbers), x[:, :2], y[:, :2])[0].shape == (2, 2)
  for result, reason in ((summed, "'cumsum'"), (plus, "elementwise|besides its gradient")):
    with pytest.raises(NotServedError, match=reason):
      program.elementwise(program.inputs[:2], (result,))
  assert program.elementwise(program.inputs[:2], (times,)).numbers[0].aval.dtype == jnp.float32


def test_blocks_hold_whole_rows():
  leaf = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  rows = lambda shape, dtype=jnp.float32: rows_of(*[leaf(shape, dtype)] * 2, leaf((*shape[:-1], 1)))
  assert rows((4096, 4096)) == 128
  assert rows((3, 32, 128)) == 32
  assert rows((64, 8192)) == 64
  assert rows((64, 16384)) == 32
  for shape, dtype, reason in (
    ((32, 2**15), jnp.float32, "rows of 32768 elements do not fit"),
    ((48, 128), jnp.float32, "not multiples of 32 and 128"),
    ((32, 128), jnp.float16, "its dtypes are float16"),
  ):
    with pytest.raises(NotServedError, match=reason):
      rows(shape, dtype)


def test_unknown_kernel():
  with pytest.raises(ValueError, match='kernel must be None, "xla" or "pallas", but was \'triton\''):
    quantize_state(optax.adam(1e-3), kernel="triton")
