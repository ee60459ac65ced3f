"""Flax NNX layer of ND-Adam's regularised softmax. Needs Flax."""

# pyright: reportUnknownMemberType=false
# Some functions of jax and Flax have no complete types.

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from optax_ext._sphere.logits import scale_and_shift


class BatchNormLogits(nnx.Module):
  """Batch-normalises logits, with one constant scale for all classes (BN-softmax).

      z ← γ_C·(z − mean)/√(variance + ε) + shift

  Statistics run over all axes but the last. The shift is learned; the scale is constant, so that the optimizer cannot
  make logits grow. The layer follows the module's `train()` and `eval()` as `flax.nnx.BatchNorm` does.

  Args:
    num_classes: Size of the logits' last axis.
    scale: γ_C; the authors take 2.5 for 10 classes and 1 for 100.
    momentum: Decay rate of the running statistics.
    epsilon: ε.
    dtype: The result's dtype; by default the logits'. Arithmetic is float32 at least.
    param_dtype: The shift's dtype.
    axis_name: Name of a mapped axis over which to take statistics too.
    rngs: Random keys, as all NNX layers take them.

  Example:
    >>> layer = BatchNormLogits(2, rngs=nnx.Rngs(0))
    >>> print(layer(jnp.array([[1.0, 5.0], [3.0, 5.0]])).round(2))
    [[-2.5  0. ]
     [ 2.5  0. ]]

  References:
    Zhang et al., `Normalized Direction-preserving Adam <https://arxiv.org/abs/1709.04546>`_, 2017, BN-softmax
  """

  def __init__(
    self,
    num_classes: int,
    *,
    scale: float = 2.5,
    momentum: float = 0.9,
    epsilon: float = 1e-3,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
  ):
    self.scale = scale
    self.dtype = dtype
    self.norm = nnx.BatchNorm(
      num_classes,
      momentum=momentum,
      epsilon=epsilon,
      param_dtype=param_dtype,
      axis_name=axis_name,
      use_scale=False,
      use_bias=False,
      rngs=rngs,
    )
    self.bias = nnx.Param(jnp.zeros((num_classes,), param_dtype))

  def __call__(self, logits: jax.Array, use_running_average: bool | None = None) -> jax.Array:
    """Normalised logits; by default with the batch's statistics in training and the running ones in evaluation."""
    wide = jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32))  # as Flax gives it back
    normalized = self.norm(wide, use_running_average=use_running_average)
    return scale_and_shift(normalized, self.scale, self.bias[...], logits, self.dtype)
