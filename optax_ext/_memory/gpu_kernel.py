"""Blocks of the kernel that steps stored moments on NVIDIA GPUs. Experimental: compiled ahead of time for H100, not yet
run on one.

Pallas compiles it by Triton, which serves Ampere and later. (Mosaic GPU, its successor in Pallas, begins with Hopper.)
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from optax_ext._memory.elementwise import Elementwise, evaluated
from optax_ext._memory.kernel import Blocks, step_in_kernel
from optax_ext._memory.stored import Parts, Storage

ELEMENTS = 8  # of a thread: 16 bytes of bfloat16 in one load
WARP = 32  # threads


def step_on_gpu(
  step: Elementwise,
  kinds: Sequence[Storage],
  tile: tuple[int, int, int],
  numbers: Any,
  keys: Any,
  grad: Any,
  parts: Sequence[Parts],
) -> list[Parts]:
  """A step in one pass, in blocks as `tile_of` says."""
  step = dataclasses.replace(step, evaluate=evaluated_in_triton)
  return step_in_kernel(step, kinds, GpuBlocks(*tile), numbers, keys, grad, parts)


def evaluated_in_triton(equation: Any, operands: Sequence[Any], shape: tuple[int, ...]) -> jax.Array:
  """The result of an elementwise equation, in operations that Pallas' Triton has, and has right.

  Its maximum and minimum lose NaN, it has no rounding, and it divides no bfloat16: narrow floats are float32 here.
  """
  name, dtype = equation.primitive.name, equation.outvars[0].aval.dtype
  if name not in ("broadcast_in_dim", "convert_element_type"):
    operands = [
      x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in map(jnp.asarray, operands)
    ]
  match name:
    case "max":
      result = _first(operator.gt, *operands)
    case "min":
      result = _first(operator.lt, *operands)
    case "clamp":
      low, x, high = operands
      result = _first(operator.lt, _first(operator.gt, x, low), high)
    case "round":
      result = _rounded(*operands, to_even=equation.params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN)
    case _:
      result = evaluated(equation, operands, shape)
  return result.astype(dtype)


def _first(comes_before: Callable[..., jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
  """The larger or smaller of two numbers, or NaN if one of both is."""
  return jnp.where(comes_before(x, y) | (x != x), x, y)


def _rounded(x: jax.Array, *, to_even: bool) -> jax.Array:
  """The nearest integer; of two, the even one or that away from zero."""
  below = jnp.floor(x)
  half = below != 2 * jnp.floor(below / 2) if to_even else x > 0
  return below + jnp.where((x - below > 0.5) | ((x - below == 0.5) & half), 1, 0)


class GpuBlocks(Blocks):
  """Scale blocks of the last axis, or whole rows. Triton's blocks have a power of two of elements in each axis.

  What a block has beyond the leaf is neither read nor written.
  """

  @property
  def scalars(self) -> pl.BlockSpec:
    return pl.BlockSpec()

  @property
  def compiler_params(self) -> Any:
    return triton.CompilerParams(num_warps=self.rows * self.width // (WARP * ELEMENTS))

  def of_rows(self, x: jax.Array) -> tuple[jax.Array, pl.BlockSpec]:
    return x.reshape(-1, 1), pl.BlockSpec((self.rows, 1), lambda i: (i, 0))

  def load(self, ref: Any) -> jax.Array:
    return ref[...]

  def store(self, ref: Any, x: jax.Array) -> None:
    ref[...] = x

  def inside(self, x: jax.Array) -> jax.Array:
    if self.width == self.columns:
      return x
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) < self.columns, x, jnp.zeros_like(x))
