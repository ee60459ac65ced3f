"""The kernel for NVIDIA GPUs, interpreted on this machine, against the same step by XLA; how arrays are stored."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stored_weights
from support import jitted
from test_quantize_kernel import COSINE, assert_same, trained

import optax_ext
from optax_ext._common import tpu
from optax_ext._memory.elementwise import NotServedError, Program
from optax_ext._memory.gpu_kernel import evaluated_in_triton
from optax_ext._memory.quantize import quantize_state
from optax_ext._memory.step import kernel_of, step_in_xla, tile_of
from optax_ext._run.apply import update_and_apply


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
  monkeypatch.setattr(tpu, "INTERPRETED", "cuda")


def leaf(*shape, dtype=jnp.float32):
  return {"kernel": jnp.linspace(-1, 1, int(np.prod(shape)), dtype=dtype).reshape(shape)}


CASES = {
  "blocks": (leaf(10, 256), 128, optax_ext.exadam(COSINE, weight_decay=0.1)),
  "rows": (leaf(3, 5, 200), None, optax.chain(optax.clip(0.3), optax.inject_hyperparams(optax.lion)(COSINE))),
  "narrow": (leaf(8, 256, dtype=jnp.bfloat16), 256, optax_ext.adamnx(1e-2)),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_takes_the_same_steps(name):
  """Its blocks end beyond the last row, and beyond the last column of rows of 200: nothing is read or written there."""
  params, block, tx = CASES[name]
  make = lambda kernel: quantize_state(tx, block=block, axis=-1, min_size=1, kernel=kernel)
  state = jax.eval_shape(make(None).init, params)
  program = str(jax.make_jaxpr(functools.partial(update_and_apply, make("pallas")))(params, state, params))
  assert program.count("pallas_call") == 1
  tolerance = 2**-7 if name == "narrow" else 3e-6
  assert_same(trained(make("pallas"), params, 2), trained(make(None), params, 2), tolerance)


def test_a_broken_block_stays_one_block():
  """Though a GPU's maximum of NaN and 1 is 1; also where the optimizer clips."""
  params = {"kernel": jnp.ones((4, 200))}
  grads = {"kernel": jnp.ones((4, 200)).at[2, 105].set(jnp.nan)}
  tx = optax.chain(optax.clip(0.5), optax_ext.adamnx(1e-2))
  tx = quantize_state(tx, block=100, axis=-1, min_size=1, kernel="pallas")
  params, state = jitted(functools.partial(update_and_apply, tx))(grads, jitted(tx.init)(params), params)
  for scales in state.scale:
    assert np.argwhere(np.isnan(scales["kernel"])).tolist() == [[2, 1]]
  assert np.argwhere(np.isnan(params["kernel"])).tolist() == [[2, 105]]


def test_operations_that_triton_has_not_or_has_otherwise():
  """Written out, they are jax's own: NaN in either place stays, halves are rounded as asked for."""
  x = jnp.array([jnp.nan, 1, 3, -2.5, 2.5, 0.5, -0.5, 1.2, -jnp.inf])
  y = jnp.array([1, jnp.nan, 2, 4, -3, 0.25, 0.5, -1, 1])
  even = functools.partial(jax.lax.round, rounding_method=jax.lax.RoundingMethod.TO_NEAREST_EVEN)

  def every(x, y):
    bounded = jax.lax.clamp(-jnp.ones_like(x), x, jnp.ones_like(x))
    return jax.lax.max(x, y), jax.lax.min(x, y), bounded, jax.lax.round(x), even(x)

  program, results = Program.of(every, (x, y))
  step = dataclasses.replace(program.elementwise(program.inputs, results), evaluate=evaluated_in_triton)
  for got, want in zip(step([], x, y), every(x, y), strict=True):
    np.testing.assert_array_equal(got, want)


@pytest.mark.heavy
def test_all_is_rounded_by_the_same_bits(monkeypatch):
  """By each kernel as by XLA, in all of its blocks. Other keys move weights by one unit of their 24 bits at most, and
  codes by one.
  """
  shape = (96, 128)
  step, parts = stored_weights.adam(shape), stored_weights.parts_of(shape, (96, 1))
  grad = jax.random.normal(jax.random.key(9), shape, jnp.bfloat16)
  keys = jnp.array([7, 2**32 - 3, 8, 2**31 + 1], jnp.uint32)
  by_xla = jitted(functools.partial(step_in_xla, step, stored_weights.KINDS))
  want = by_xla([], keys, grad, parts)
  for platform in ("tpu", "cuda"):
    monkeypatch.setattr(tpu, "INTERPRETED", platform)
    new = jitted(kernel_of(step, stored_weights.KINDS, grad, parts))([], keys, grad, parts)
    for part, wanted in zip(jax.tree.leaves(new), jax.tree.leaves(want), strict=True):
      assert part.dtype == wanted.dtype
      differ = ~np.isclose(part, wanted, rtol=3e-6) if part.dtype == jnp.float32 else part != wanted
      assert np.mean(differ) < 0.005  # where a sum was rounded otherwise
  read = stored_weights.IN_TWO_PARTS.read
  other = by_xla([], keys + 1, grad, parts)
  weights = [np.asarray(read(*parts[0])).view(np.int32) for parts in (want, other)]
  assert set(np.unique(weights[1] - weights[0])) == {-256, 0, 256}
  for (codes, _), (others, _) in zip(want[1:], other[1:], strict=True):
    assert set(np.unique(np.asarray(codes, int) - np.asarray(others, int))) == {-1, 0, 1}


def test_blocks_have_a_power_of_two_of_elements():
  describe = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  tile = lambda shape, scale, dtype=jnp.float32: tile_of(*[describe(shape, dtype)] * 2, describe(scale))
  assert tile((4096, 4096), (4096, 32)) == (8, 128, 128)
  assert tile((50257, 768), (50257, 1)) == (1, 768, 1024)
  assert tile((5, 6, 40), (5, 6, 4)) == (64, 10, 16)
  assert tile((3, 8192), (3, 1)) == (1, 8192, 8192)
  for shape, scale, dtype, reason in (
    ((4096, 4096), (32, 4096), jnp.float32, "not for blocks or rows of the last axis"),
    ((32, 8193), (32, 1), jnp.float32, "rows of 8193 elements do not fit in registers: set block"),
    ((32, 128), (32, 1), jnp.float16, "its dtypes are float16"),
  ):
    with pytest.raises(NotServedError, match=reason):
      tile(shape, scale, dtype)


def test_a_gpu_must_be_known(monkeypatch):
  """A program that is made where no GPU is has none of its kernels, as jax would refuse to compile them."""
  monkeypatch.setattr(tpu, "INTERPRETED", "")
  assert tpu.platform_of_kernels() == "tpu"
  if hasattr(jax.sharding, "AbstractDevice"):  # since jax 0.8
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "cuda")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
      assert tpu.platform_of_kernels() == "cuda"
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert tpu.platform_of_kernels() == "cuda"
