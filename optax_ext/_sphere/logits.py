"""ND-Adam's regularised softmax: two ways to keep logits from growing.

The L2 penalty is here. Batch-normalised logits are a Flax layer, `BatchNormLogits`, in `optax_ext.linen` and in
`optax_ext.nnx`, which need Flax.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optax_ext._common.arguments import Scalar, check_number
from optax_ext._common.dtypes import arithmetic_dtype
from optax_ext._moments.debias import abs_sq


def l2_logits(logits: jax.Array, weight: Scalar = 1e-3) -> jax.Array:
  """An L2 penalty on the logits of a classifier, to be added to its loss.

      λ/2 · mean over the batch of Σ_c z_c²

  Args:
    logits: z, of shape (..., classes); all leading axes are batch axes. Sums are taken in float32 at least.
    weight: λ ≥ 0.

  Returns:
    A scalar, float32 or wider.

  Raises:
    TypeError, ValueError: `weight` is not a number, or negative; `logits` is a scalar, or not of floating or complex
      numbers.

  Example:
    >>> print(l2_logits(jnp.array([[3.0, 4.0], [0.0, 0.0]]), weight=0.1))
    0.625

  References:
    Zhang et al., `Normalized Direction-preserving Adam <https://arxiv.org/abs/1709.04546>`_, 2017, on L2-regularised
    softmax; λ = 1e-3 from its experiments
  """
  check_number("weight", weight)
  dtype = getattr(logits, "dtype", type(logits))
  if not jnp.issubdtype(dtype, jnp.inexact):
    raise TypeError(f"logits must be an array of floating or complex numbers, but was of {dtype}.")
  if jnp.ndim(logits) == 0:
    raise ValueError("logits must have an axis of classes, but was a scalar.")
  z = jnp.asarray(logits, arithmetic_dtype(logits))
  return weight / 2 * jnp.mean(jnp.sum(abs_sq(z), axis=-1))


def scale_and_shift(normalized: jax.Array, scale: float, shift: jax.Array, logits: jax.Array, dtype: Any) -> jax.Array:
  """γ_C·z + shift of normalised logits z, rounded once: to `dtype`, or with `None` to the dtype of `logits`."""
  shifted = scale * normalized + jnp.asarray(shift, normalized.dtype)
  own = logits.dtype if jnp.issubdtype(logits.dtype, jnp.inexact) else shifted.dtype
  return shifted.astype(own if dtype is None else dtype)
