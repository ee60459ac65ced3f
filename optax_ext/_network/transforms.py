"""Pieces of a chain that use facts about the network: step scales, a mask for weight decay."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_ext._common.arguments import count_arrays, shown
from optax_ext._common.dtypes import arithmetic_dtype, is_array, is_numeric, real_dtype
from optax_ext._common.paths import check_no_count, check_paths, described, map_with_paths, mask_paths
from optax_ext._network.by_name import guess
from optax_ext._network.facts import LeafFacts, check_shape
from optax_ext._network.names import read_name
from optax_ext._network.rules import Multipliable
from optax_ext._network.scales import check_rule, scales_by_path
from optax_ext._network.structure import Structure, check_structure


def scale_by_structure(rule: Any, structure: Structure | None = None) -> optax.GradientTransformation:
  """Multiplies every leaf's update by a scale that is constant in time and depends on the leaf's place in the network.

      update ← S · update

  Args:
    rule: `Additive`, `Multiplicative`, `ByDepth`, a product of rules, any object with their method `scales(structure)`;
      or the scales themselves: a tree like the parameters, of numbers or of arrays that broadcast against the leaf.
    structure: The facts; by default `structure_from_params` of the updates. Under `optax.masked` or `optax.partition`
      the default sees the visible leaves alone; a structure that you give sees all.

  Returns:
    A stateless transformation. The scales are computed while tracing and become constants of the program.

  Raises:
    TypeError: `rule` is neither.
    ValueError: at update, when the scales or the structure do not match the updates; the paths are named.

  Warns:
    UserWarning: at init, when `rule` compares layers, no structure is given and the parameters show fewer than two
      layers, so that every scale is 1. This happens inside `optax.flatten`, and mostly inside `optax.masked` or
      `optax.partition`.

  Example:
    >>> from optax_ext import ByDepth
    >>> tx = scale_by_structure(ByDepth())
    >>> grads = {"Dense_0": {"kernel": jnp.ones((2, 2))}, "Dense_1": {"kernel": jnp.ones((2, 1))}}
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> print(updates["Dense_0"]["kernel"][0], updates["Dense_1"]["kernel"][0])
    [1.4142135 1.4142135] [1.]

  References:
    Genet and Inzirillo, `CaAdam <https://arxiv.org/abs/2410.24216>`_, 2024, Equation 22
  """
  check_rule(rule)
  check_structure(structure)

  def init(params: optax.Params) -> optax.EmptyState:
    layers = guess(params).num_layers if structure is None and isinstance(rule, Multipliable) else 2
    if layers < 2 and jax.tree.leaves(params):
      warnings.warn(
        f"scale_by_structure sees {layers} {'layer' if layers == 1 else 'layers'} in {described(params)}, so that all "
        "its scales are 1: give it the structure= of the whole model, and take it out of optax.flatten.",
        stacklevel=2,
      )
    return optax.EmptyState()

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    seen = updates if params is None else params  # what has no gradient now is a layer all the same
    seen = jax.tree.map(lambda leaf: leaf if is_numeric(leaf) else None, seen)
    facts = structure or guess(seen)
    scales, known = scales_by_path(rule, facts), facts.by_path()
    check_paths(
      "The tree of scales" if structure is None else "The structure", scales, seen, more=structure is not None
    )

    def scale(path: str, update: Any) -> Any:
      if path in known:
        check_shape(known[path], update)
      dtype = arithmetic_dtype(update)
      factor = jnp.asarray(scales[path], real_dtype(dtype))
      if not _broadcasts(factor.shape, jnp.shape(update)):
        raise ValueError(
          f"The scale of leaf {path!r} has shape {factor.shape}, which does not broadcast to the leaf's "
          f"{jnp.shape(update)}; give a number or an array with size 1 along the other axes."
        )
      return factor * jnp.asarray(update, dtype)

    return map_with_paths(scale, updates), state

  return optax.GradientTransformation(init, update)


def decay_mask(structure: Structure | None = None) -> Callable[[Any], Any]:
  """A mask for weight decay that shows weights and embeddings, and hides norms, biases and other small leaves.

  The number of axes does not tell them apart: in a scanned stack of layers a bias has two axes, in attention a kernel
  has three. With a traced structure the leaf's use decides. A leaf is shown if it is looked up, if it is a table that
  is added along places (positions, read by an input or by `arange`), or if a product contracts its axes. The scales of
  a weight normalisation multiply a weight and are not contracted; they stay hidden. Without a traced structure the
  leaf's name decides, by the conventions of `structure_from_params`: every leaf of two or more axes is shown that is
  not called bias, scale or the like. Tables of tokens and of positions (`embedding`, `pos_embed`) are shown; learned
  tokens (`cls_token`) are hidden.

  Leaves that are no arrays, as in an unfiltered Equinox module, are hidden.

  Args:
    structure: The facts; by default those of `structure_from_params`.

  Returns:
    A function from a tree to a tree of booleans.

  Raises:
    TypeError: `structure` is neither a `Structure` nor `None`; in use, a step count instead of a tree.
    ValueError: in use, when the structure has nothing for an array, or another shape; the path is named.

  Example:
    >>> layers = {"kernel": jnp.ones((12, 8, 8)), "bias": jnp.ones((12, 8)), "norm": {"scale": jnp.ones((12, 8))}}
    >>> decay_mask()(layers)
    {'bias': False, 'kernel': True, 'norm': {'scale': False}}
    >>> tx = optax.adamw(1e-3, mask=decay_mask())
  """
  if count_arrays(structure):
    raise TypeError(
      f"decay_mask takes a Structure or nothing, but was given {shown(structure)}: a mask is what it returns, "
      "mask=decay_mask() with brackets."
    )
  check_structure(structure)

  def decays(facts: LeafFacts) -> bool:
    ways = facts.ways()
    if facts.layer == facts.path or ways & {"lookup", "positions"}:
      return True
    if "product" in ways:
      return facts.contracting_axes is not None
    return not ways and len(facts.shape) > 1 and read_name(facts.path).kind == "embedding"

  def mask(tree: Any) -> Any:
    check_no_count(tree)
    known = (structure or guess(tree)).by_path()
    arrays = jax.tree.map(lambda leaf: leaf if is_array(leaf) else None, tree)
    check_paths("The structure", known, arrays, more=True)

    def shown(path: str, leaf: Any) -> bool:
      if not is_array(leaf):
        return False
      check_shape(known[path], leaf)
      return decays(known[path])

    return mask_paths(shown, tree)

  return mask


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
  """Whether an array of `shape` broadcasts to one of shape `to`."""
  return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape[::-1], to[::-1], strict=False))
