"""The TPU kernel for stored moments with one scale for each row of the last axis: its blocks."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from optax_ext._common.tpu import compiler_params
from optax_ext._memory.elementwise import Elementwise
from optax_ext._memory.kernel import Blocks, step_in_kernel
from optax_ext._memory.stored import Parts, Storage


def step_on_tpu(
  step: Elementwise, kinds: Sequence[Storage], rows: int, numbers: Any, keys: Any, grad: Any, parts: Sequence[Parts]
) -> list[Parts]:
  """A step in one pass, in blocks of so many rows."""
  columns = grad.shape[-1]
  return step_in_kernel(step, kinds, TpuBlocks(rows, columns, columns), numbers, keys, grad, parts)


class TpuBlocks(Blocks):
  """Rows of the last axis. One number for each row lies along a row: a column would take as much as 128 columns."""

  @property
  def scalars(self) -> pl.BlockSpec:
    return pl.BlockSpec(memory_space=pltpu.SMEM)

  @property
  def compiler_params(self) -> Any:
    return compiler_params()

  def of_rows(self, x: jax.Array) -> tuple[jax.Array, pl.BlockSpec]:
    return x.reshape(-1, 1, self.rows), pl.BlockSpec((1, 1, self.rows), lambda i: (i, 0, 0))

  def load(self, ref: Any) -> jax.Array:
    return self._turned(ref[0]) if len(ref.shape) == 3 else ref[...]

  def store(self, ref: Any, x: jax.Array) -> None:
    if len(ref.shape) == 3:
      ref[0] = self._turned(x)
    else:
      ref[...] = x

  def _turned(self, x: jax.Array) -> jax.Array:
    """A row as a column, or a column as a row."""
    i, j = (jax.lax.broadcasted_iota(jnp.int32, (self.rows, self.rows), axis) for axis in (0, 1))
    return jnp.sum(jnp.where(i == j, x, 0), 0 if x.shape[1] == 1 else 1, keepdims=True)
