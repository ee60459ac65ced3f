"""Traces a model, and reads from its program how each parameter is used.

The program is run forwards on descriptions of values. A *product* of a value computed from parameters alone with one
that depends on an input is a layer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from optax_ext._common.dtypes import is_array
from optax_ext._network.jaxpr import axes, control, elementwise, indexing, moves, products
from optax_ext._network.jaxpr.constants import UNKNOWN
from optax_ext._network.jaxpr.domain import Active, Value, Weight, unknown_source
from optax_ext._network.jaxpr.reader import Reader, Rule
from optax_ext._network.jaxpr.summarize import Findings, summarize
from optax_ext._network.jaxpr.versions import program_of

RULES: Mapping[str, Rule] = {
  **elementwise.RULES, **moves.RULES, **products.RULES, **indexing.RULES, **control.RULES
}  # fmt: skip


def read_model(
  apply_fn: Callable[..., Any], params: Any, inputs: Sequence[Any], paths: Sequence[str]
) -> tuple[list[Findings], int]:
  """The findings about each array in `params`, in order, and the number of layers along the deepest path.

  Raises:
    ValueError: `apply_fn` computes gradients.
  """
  closed, reader = _read(apply_fn, params, inputs)
  last = max((node.depth for node in reader.nodes), default=-1)
  variables = closed.jaxpr.invars[: len(reader.shapes)]
  trained = [jax.numpy.issubdtype(var.aval.dtype, np.inexact) for var in variables]
  return summarize(paths, reader.shapes, trained, reader.uses), last + 1


def read_products(
  apply_fn: Callable[..., Any], params: Any, inputs: Sequence[Any], paths: Sequence[str]
) -> tuple[Any, dict[tuple[int, ...], list[str]]]:
  """The jaxpr of a model, and the equations in it that are products with parameters: where they are -> the paths.

  Where an equation is: the `id` of the calls and loops around it, and its own.
  """
  closed, reader = _read(apply_fn, params, inputs)
  found: dict[tuple[int, ...], list[str]] = {}
  for use in reader.uses:
    if use.kind == "product" and paths[use.leaf] not in found.setdefault(use.site, []):
      found[use.site].append(paths[use.leaf])
  return closed, found


def _read(apply_fn: Callable[..., Any], params: Any, inputs: Sequence[Any]) -> tuple[Any, Reader]:
  """The jaxpr of a model, and a reader that has read it."""
  closed, shapes = _trace(apply_fn, params, inputs)
  reader = Reader(RULES, shapes)
  arguments: list[Value] = [
    UNKNOWN if _is_key(var) else Weight(((leaf, axes.identity(shape)),))
    for leaf, (shape, var) in enumerate(zip(shapes, closed.jaxpr.invars, strict=False))
  ]
  for var in closed.jaxpr.invars[len(shapes) :]:
    arguments.append(UNKNOWN if _is_key(var) else Active(0, unknown_source(var.aval.shape)))
  reader.read(program_of(closed), arguments)
  return closed, reader


def _trace(apply_fn: Callable[..., Any], params: Any, inputs: Sequence[Any]) -> tuple[Any, list[tuple[int, ...]]]:
  """The jaxpr of `apply_fn`, whose first arguments are the arrays in `params`, and their shapes.

  Whatever is no array or number (a flag, a name, a function) stays as it is. So do integers where the program will not
  have them traced: they are sizes then.
  """
  leaves, treedef = jax.tree.flatten((params, tuple(inputs)))
  mine = len(jax.tree.leaves(params))

  def attempt(integers: bool) -> tuple[Any, list[int]]:
    traced = [i for i, leaf in enumerate(leaves) if is_array(leaf) or (i >= mine and _is_number(leaf, integers))]

    def flat(*arrays: Any) -> Any:
      full = list(leaves)
      for i, array in zip(traced, arrays, strict=True):
        full[i] = array
      args = jax.tree.unflatten(treedef, full)
      out = apply_fn(args[0], *args[1])
      _check_no_gradient(out, args[0])
      return [leaf for leaf in jax.tree.leaves(out) if is_array(leaf)]

    return jax.make_jaxpr(flat)(*[leaves[i] for i in traced]), traced

  try:
    closed, traced = attempt(integers=True)
  except (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError):
    if not any(_is_number(leaf, True) and not _is_number(leaf, False) for leaf in leaves[mine:]):
      raise
    closed, traced = attempt(integers=False)
  return closed, [tuple(leaves[i].shape) for i in traced if i < mine]


def _is_number(leaf: Any, integers: bool) -> bool:
  return isinstance(leaf, float | complex) or (integers and isinstance(leaf, int) and not isinstance(leaf, bool))


def _is_key(var: Any) -> bool:
  return jax.numpy.issubdtype(var.aval.dtype, jax.dtypes.prng_key)


def _check_no_gradient(out: Any, params: Any) -> None:
  """Raises if part of the output is a tree like the parameters: a gradient, or updated parameters."""
  structure, shapes = jax.tree.structure(params), [np.shape(leaf) for leaf in jax.tree.leaves(params) if is_array(leaf)]
  if len(shapes) < 2:
    return
  alike = lambda node: jax.tree.structure(node) == structure
  for node in jax.tree.leaves(out, is_leaf=alike):
    if alike(node) and [np.shape(leaf) for leaf in jax.tree.leaves(node) if is_array(leaf)] == shapes:
      raise ValueError(
        "apply_fn must compute the model's output or its loss, but it returns a tree like the parameters, as a gradient"
        " or a training step does; the backward pass has no layers of its own, so give the forward function."
      )
