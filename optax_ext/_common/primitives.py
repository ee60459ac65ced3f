"""A table of jax's primitives by what they do, for the reader of networks and the 8-bit kernel.

A primitive that neither a class here nor a rule of the reader names is reported as unread where a parameter enters it.
`tests/common/test_primitives.py` lists the primitives of the installed jax, so that somebody classifies a new one.
"""

from typing import Any


def _names(text: str) -> frozenset[str]:
  return frozenset(text.split())


# Results that keep the operand's numbers, or their sum: a bias that is added after one still belongs to the product
# before it.
TRANSPARENT = _names(
  """
  add add_any convert_element_type copy device_put layout_constraint mesh_cast name neg optimization_barrier
  pcast pvary real reduce_precision relayout reshard sharding_constraint stop_gradient with_memory_space_constraint
  """
)
# Results whose every number comes from the operands' numbers at the same place.
POINTWISE = TRANSPARENT | _names(
  """
  abs acos acosh and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil clamp clz complex
  conj cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag
  integer_pow is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min mul mulhi ne nextafter not
  one_minus_square or polygamma polynomial population_count pow random_gamma_grad regularized_incomplete_beta rem round
  rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh xor zeta
  """
)
# Results of the operand's shape, whose axes stay in place though places, or devices, are mixed.
ELEMENTWISE = POINTWISE | _names(
  """
  cumlogsumexp cummax cummin cumprod cumsum pmax pmin psum psum_invariant unreduced_pmax unreduced_pmin unreduced_psum
  """
)
# The pointwise ones that a TPU's kernel can compute on blocks in memory on chip; `tests/test_aot.py` compiles each.
# Mosaic compiles atan2, erf, log1p and pow, too, but nobody has seen their accuracy on a TPU. It compiles no acos,
# asinh, cbrt, cosh, erfc, expm1 or sinh.
IN_KERNELS = _names(
  """
  abs add and ceil clamp convert_element_type copy div eq exp exp2 floor ge gt integer_pow is_finite le log
  logistic lt max min mul ne neg not or round rsqrt select_n sign sqrt square stop_gradient sub tanh xor
  """
)
# Functions f for which f(2x) is no multiple of f(x).
CURVED = _names(
  """
  acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e ceil clamp cos cosh cumlogsumexp digamma erf erf_inv erfc
  exp exp2 expm1 floor lgamma log log1p log2 logistic one_minus_square polynomial round sin sinh tan tanh
  """
)
# Noise, which is no input of a network.
RANDOM = _names(
  """
  iota_2x32_shape philox2x32 philox4x32 random_bits random_clone random_fold_in random_gamma random_seed random_split
  random_unwrap random_wrap rng_bit_generator rng_uniform threefry2x32 threefry4x32
  """
)


def is_literal(operand: Any) -> bool:
  """Whether an operand of an equation is a number that stands in the program, and no variable.

  By what it has, since `jax.extend.core`, which has the class, imports much that is slow.
  """
  return hasattr(operand, "val")
