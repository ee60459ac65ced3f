import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import optax_ext
from optax_ext.linen import BatchNormLogits as LinenLogits
from optax_ext.nnx import BatchNormLogits as NNXLogits

LOGITS = np.random.default_rng(0).normal(3, 2, (16, 5)).astype(np.float32)


def bn_softmax(z, scale, shift=0.0, eps=1e-3):
  return scale * (z - z.mean(0)) / np.sqrt(z.var(0) + eps) + shift


def test_l2_logits():
  want = 1e-3 / 2 * np.mean([sum(z**2) for z in LOGITS])
  assert float(optax_ext.l2_logits(LOGITS)) == pytest.approx(want, rel=1e-6)
  assert float(optax_ext.l2_logits(LOGITS.reshape(4, 4, 5), 0.1)) == pytest.approx(100 * want, rel=1e-6)
  np.testing.assert_allclose(jax.grad(optax_ext.l2_logits)(LOGITS), 1e-3 * LOGITS / 16, rtol=1e-5)
  assert optax_ext.l2_logits(jnp.full((2, 3), 300, jnp.float16)) == pytest.approx(
    135, rel=1e-3
  )  # 300² overflows float16


def test_l2_logits_errors():
  with pytest.raises(ValueError, match="weight must be a number"):
    optax_ext.l2_logits(LOGITS, -1.0)
  with pytest.raises(ValueError, match="axis of classes"):
    optax_ext.l2_logits(jnp.float32(1))
  for logits, says in ((jnp.array([[1, 2]]), "int32"), (np.array([[True]]), "bool"), ([[1.0, 2.0]], "list")):
    with pytest.raises(TypeError, match=f"logits must be an array of floating or complex numbers, but was of .*{says}"):
      optax_ext.l2_logits(logits)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_linen(scale):
  layer = LinenLogits(scale=scale)
  variables = layer.init(jax.random.key(0), LOGITS, use_running_average=False)
  assert jax.tree.map(jnp.shape, variables["params"]) == {"bias": (5,)}
  shifted = {**variables, "params": {"bias": jnp.arange(5.0)}}
  z, new = layer.apply(shifted, LOGITS, use_running_average=False, mutable=["batch_stats"])
  np.testing.assert_allclose(z, bn_softmax(LOGITS, scale, np.arange(5)), rtol=1e-4, atol=1e-4)
  stats = jax.tree.leaves(new["batch_stats"])
  assert any(np.allclose(s, 0.1 * LOGITS.mean(0), atol=1e-5) for s in stats)
  evaluated = layer.apply({**shifted, **new}, LOGITS, use_running_average=True)
  mean, var = 0.1 * LOGITS.mean(0), 0.9 + 0.1 * LOGITS.var(0)
  np.testing.assert_allclose(
    evaluated, scale * (LOGITS - mean) / np.sqrt(var + 1e-3) + np.arange(5), rtol=1e-4, atol=1e-4
  )
  assert isinstance(layer, linen.Module)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_are_rounded_once_at_the_end(dtype):
  logits, shift = jnp.asarray(LOGITS, dtype), jnp.linspace(-1, 1, 5)
  wide = np.asarray(logits, np.float64)
  want = jnp.asarray(bn_softmax(wide, 2.5, np.asarray(shift, np.float64)), dtype)
  linen_layer, nnx_layer = LinenLogits(), NNXLogits(5, rngs=nnx.Rngs(0))
  nnx_layer.bias[...] = shift
  variables = linen_layer.init(jax.random.key(0), logits, use_running_average=False)
  shifted = {**variables, "params": {"bias": shift}}
  of_linen = linen_layer.apply(shifted, logits, use_running_average=False, mutable=["batch_stats"])[0]
  for found in (of_linen, nnx_layer(logits)):
    assert found.dtype == dtype
    assert np.mean(np.asarray(found) != np.asarray(want)) < 0.02


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_nnx(scale):
  layer = NNXLogits(5, scale=scale, rngs=nnx.Rngs(0))
  assert jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(layer, nnx.Param))) == {"bias": (5,)}
  layer.bias[...] = jnp.arange(5.0)
  np.testing.assert_allclose(layer(LOGITS), bn_softmax(LOGITS, scale, np.arange(5)), rtol=1e-4, atol=1e-4)
  layer.eval()
  mean, var = 0.1 * LOGITS.mean(0), 0.9 + 0.1 * LOGITS.var(0)
  np.testing.assert_allclose(
    layer(LOGITS), scale * (LOGITS - mean) / np.sqrt(var + 1e-3) + np.arange(5), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize(
  ("dtype", "given", "want"),
  [
    (jnp.bfloat16, None, jnp.bfloat16),
    (jnp.bfloat16, jnp.float32, jnp.float32),
    (jnp.float32, jnp.bfloat16, jnp.bfloat16),
    (jnp.int32, None, jnp.float32),
  ],
)
def test_dtypes_of_results(dtype, given, want):
  logits = jnp.asarray(LOGITS, dtype)
  layer = LinenLogits(dtype=given)
  results = [
    layer.init_with_output(jax.random.key(0), logits, use_running_average=False)[0],
    NNXLogits(5, dtype=given, rngs=nnx.Rngs(0))(logits),
  ]
  for z in results:
    assert z.dtype == want
    np.testing.assert_allclose(z.astype(float), bn_softmax(np.asarray(logits, float), 2.5), rtol=0.01, atol=0.02)
