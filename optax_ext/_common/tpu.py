"""Helpers of kernels for TPUs: which leaves a kernel serves, and how much memory a block may take."""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core

from optax_ext._common.dims import unknown
from optax_ext._common.dtypes import leaf_dtype

INTERPRETED = ""  # tests run the kernels for "tpu" or "cuda" as plain programs, on any platform
LANES, SUBLANES = 128, 16  # a tile of memory; 16 rows for bfloat16, 8 would do for float32


def for_platform(platform: str, kernel: Callable[..., Any], otherwise: Callable[..., Any], *args: Any) -> Any:
  """Calls the kernel in a program for a platform, wherever it is compiled, and the other function in all others."""
  if INTERPRETED:
    return kernel(*args)
  return jax.lax.platform_dependent(*args, **{platform: kernel}, default=otherwise)


def platform_of_kernels() -> str:
  """The platform whose kernels a program gets: "cuda" where a GPU is at hand or an abstract mesh names one, else "tpu".

  A TPU's kernel can be compiled on any machine. A GPU's cannot: lowering asks jax which GPU there is, and fails.
  """
  if INTERPRETED:
    return INTERPRETED
  named = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  return "cuda" if (named.platform if named else jax.default_backend()) in ("gpu", "cuda") else "tpu"


def import_pallas() -> None:
  """Imports Pallas, for an optimizer that will want it.

  Where a traced function imports it, jax 0.12 takes the next call for one in other settings, and traces and compiles
  the function once more.
  """
  for name in ("tpu", "triton"):
    with contextlib.suppress(ImportError):  # not every version of jax has both
      importlib.import_module(f"jax.experimental.pallas.{name}")


def on_chip() -> int:
  """Bytes that a kernel may take: TPU v5e and v6e have 128 MiB a core, v5p and v7x 64, v4 has 16.

  What another machine compiles is taken to be for v5 or later.
  """
  early = jax.default_backend() == "tpu" and any(v in jax.devices()[0].device_kind for v in ("v2", "v3", "v4"))
  return (12 if early else 48) * 2**20


def splitting_mesh() -> Any:
  """The mesh axes and their sizes, if any may split the arrays of this program without our doing."""
  mesh = jax.sharding.get_abstract_mesh()
  splits = any(mesh.shape[name] > 1 for name in mesh.axis_names if name not in mesh.manual_axes)
  return dict(mesh.shape) if splits else None


def unfit(*leaves: Any, sublanes: int) -> str:
  """Why no kernel can serve a leaf, that is its gradient, parameter and what else it reads; nothing where one can."""
  shape, dtypes = leaves[0].shape, {str(leaf_dtype(leaf)) for leaf in leaves}
  if not dtypes <= {"float32", "bfloat16"}:
    return f"its dtypes are {', '.join(sorted(dtypes))}, and the kernel knows float32 and bfloat16"
  if reason := unknown(shape):
    return reason
  if len(shape) < 2 or shape[-2] % sublanes or shape[-1] % LANES:
    return f"the last two axes of its shape {shape} are not multiples of {sublanes} and {LANES}"
  if mesh := splitting_mesh():
    return f"{mesh} splits it, and a kernel sees whole arrays only: run the step inside jax.shard_map"
  return ""


def thickness(sizes: Sequence[int], vectors: int, elements: int, copies: int) -> int | None:
  """How many vectors make a block: the most within 2 MiB, or else the fewest, if so many copies fit on the chip."""
  for size in sizes:
    nbytes = 4 * size * elements
    if copies * nbytes <= on_chip() and (nbytes <= 2**21 or size == sizes[-1]) and vectors % size == 0:
      return size
  return None


def compiler_params() -> Any:
  """Blocks in any order, and as much of the chip's memory as they may take."""
  from jax.experimental.pallas import tpu as pltpu  # takes longer to import than all of optax_ext

  return pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=on_chip() * 7 // 6)


def described(x: jax.Array) -> jax.ShapeDtypeStruct:
  """Shape and dtype and, inside `shard_map`, the mesh axes along which the array varies."""
  known = inspect.signature(jax.ShapeDtypeStruct).parameters
  varying: dict[str, Any] = {
    name: getattr(jax.typeof(x), name)
    for name in ("manual_axis_type", "vma")  # of jax 0.10, and before
    if name in known
  }
  return jax.ShapeDtypeStruct(x.shape, x.dtype, **varying)
