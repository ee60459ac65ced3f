"""Warnings at init where ND-Adam's conditions do not hold: unit vectors, and a normaliser after each unit."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from optax_ext._common.dtypes import arithmetic_dtype
from optax_ext._common.paths import by_path, described, listed
from optax_ext._moments.debias import abs_sq
from optax_ext._network.structure import Structure
from optax_ext._sphere.axes import Axes, AxesOfLeaf, resolve_axes

TOLERANCE = 0.01
"""Between a vector's length and 1. In bfloat16 a unit vector's own rounding makes up to 0.004."""


def warn_of_conditions(params: Any, axes: Axes) -> None:
  """Warns where nd_adam would do what its user hardly wants. Inside `jax.jit` it cannot see lengths."""
  leaves, axes_of = by_path(params), resolve_axes(axes)
  along = {path: axes_of(path, leaf) for path, leaf in leaves.items()}
  vectors = [path for path in leaves if along[path] is not None]
  if not leaves:
    return
  messages = [_followed(axes, vectors), _unit_length(leaves, along)] if vectors else [_none(params)]
  for message in filter(None, messages):
    warnings.warn(message, stacklevel=3)


def _none(params: Any) -> str:
  """A word on a tree without vectors."""
  return (
    f"nd_adam sees no weight vector among {described(params)}, so that it steps all of them as Adam does. Either axes "
    "gives None for each, as normalised_axes() does where no normaliser follows a unit: choose vectors by a function "
    "axes(path, leaf). Or wrappers hide the weights: take it out of optax.flatten, and let optax.masked or "
    "optax.partition show it weights."
  )


def _followed(axes: Axes, vectors: list[str]) -> str | None:
  """A word on units without a normaliser, if a structure chose their vectors; not if a user's function did."""
  if not isinstance(axes, Structure):
    return None
  known, traced = axes.by_path(), axes.traced()
  loose = [path for path in vectors if not known[path].normalised]
  if traced and loose:
    return (
      f"nd_adam keeps unit vectors in {listed(loose)}, where the trace shows no normaliser after each unit: give it "
      "axes=structure.normalised_axes(), which leaves these to Adam, or a function axes(path, leaf)."
    )
  if not traced and len(vectors) > 1:
    return (
      f"nd_adam keeps unit vectors in all of {listed(vectors)}, the output layer among them, since names do not tell "
      "which units a normaliser follows: give it axes=structure_from_model(...).normalised_axes(), or a function "
      "axes(path, leaf)."
    )
  return None


def _unit_length(leaves: dict[str, Any], along: dict[str, AxesOfLeaf]) -> str | None:
  """A word on vectors that are not of length 1."""
  with jax.ensure_compile_time_eval():  # inside jax.jit, too, of arrays that are constants there
    found = {path: _lengths(leaf, along[path]) for path, leaf in leaves.items() if along[path] and _is_at_hand(leaf)}
  lengths = {path: tuple(map(float, of)) for path, of in found.items()}
  wrong = [path for path, (_, low, high) in lengths.items() if not 1 - TOLERANCE <= low <= high <= 1 + TOLERANCE]
  zero = [path for path, (least, _, _) in lengths.items() if least == 0]
  parts = []
  if wrong:
    _, low, high = lengths[wrong[0]]
    parts.append(
      f"nd_adam starts from vectors whose length is not 1, in {listed(wrong)} ({wrong[0]!r} has lengths from {low:.3g} "
      f"to {high:.3g}), and its first step makes it 1: start from normalize_vectors(params, axes)."
    )
  if zero:
    parts.append(
      f"nd_adam starts from vectors of length 0, in {listed(zero)}, which jump to 1 with their first gradient: give "
      "them the axes None."
    )
  return " ".join(parts) or None


def _is_at_hand(leaf: Any) -> bool:
  """Whether a leaf has numbers, and this process holds them."""
  elsewhere = isinstance(leaf, Tracer | jax.ShapeDtypeStruct) or not getattr(leaf, "is_fully_addressable", True)
  return not elsewhere and leaf.size > 0


@functools.partial(jax.jit, static_argnums=1)
def _lengths(leaf: Any, along: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The shortest length, and the shortest and the longest of those that are not 0, or 1 where all are."""
  lengths = jnp.sqrt(jnp.sum(abs_sq(jnp.asarray(leaf, arithmetic_dtype(leaf))), along))
  others = jnp.where(lengths == 0, jnp.where(jnp.any(lengths > 0), jnp.nan, 1), lengths)
  return jnp.min(lengths), jnp.nanmin(others), jnp.nanmax(others)
