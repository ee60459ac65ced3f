"""Flax linen layer of ND-Adam's regularised softmax. Needs Flax."""

# pyright: reportUnknownMemberType=false
# Some functions of jax and Flax have no complete types.

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from optax_ext._sphere.logits import scale_and_shift


class BatchNormLogits(nn.Module):
  """Batch-normalises logits, with one constant scale for all classes (BN-softmax).

      z ← γ_C·(z − mean)/√(variance + ε) + shift

  Statistics run over all axes but the last. The shift is learned; the scale is constant, so that the optimizer cannot
  make logits grow. Like `flax.linen.BatchNorm`, the layer keeps running statistics in the collection `batch_stats`,
  which must be mutable in training.

  Attributes:
    scale: γ_C; the authors take 2.5 for 10 classes and 1 for 100.
    momentum: Decay rate of the running statistics.
    epsilon: ε.
    dtype: The result's dtype; by default the logits'. Arithmetic is float32 at least.
    param_dtype: The shift's dtype.
    axis_name: Name of a mapped axis over which to take statistics too.

  Example:
    >>> layer = BatchNormLogits(scale=2.5)
    >>> logits = jnp.array([[1.0, 5.0], [3.0, 5.0]])
    >>> variables = layer.init(jax.random.key(0), logits, use_running_average=False)
    >>> z, _ = layer.apply(variables, logits, use_running_average=False, mutable=["batch_stats"])
    >>> print(z.round(2))
    [[-2.5  0. ]
     [ 2.5  0. ]]

  References:
    Zhang et al., `Normalized Direction-preserving Adam <https://arxiv.org/abs/1709.04546>`_, 2017, BN-softmax
  """

  scale: float = 2.5
  momentum: float = 0.9
  epsilon: float = 1e-3
  dtype: Any = None
  param_dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, logits: jax.Array, use_running_average: bool) -> jax.Array:
    """Normalised logits; `use_running_average` is False in training."""
    normalized = nn.BatchNorm(
      use_running_average=use_running_average,
      momentum=self.momentum,
      epsilon=self.epsilon,
      dtype=jnp.promote_types(logits.dtype, jnp.float32),
      param_dtype=self.param_dtype,
      axis_name=self.axis_name,
      use_scale=False,
      use_bias=False,
    )(logits)
    shift = self.param("bias", nn.initializers.zeros_init(), (logits.shape[-1],), self.param_dtype)
    return scale_and_shift(normalized, self.scale, shift, logits, self.dtype)
