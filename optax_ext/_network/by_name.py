"""Facts guessed from the names and shapes of parameters."""

import bisect
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optax_ext._common.dtypes import is_array, is_numeric
from optax_ext._common.paths import by_path, map_with_paths, natural_key
from optax_ext._network.facts import LeafFacts
from optax_ext._network.names import Name, read_name
from optax_ext._network.structure import Structure


def structure_from_params(params: Any) -> Structure:
  """Facts guessed from the paths and shapes of the parameters, by fixed conventions.

  If you have the model, `structure_from_model` reads the same facts from its computation and guesses nothing. The
  conventions look at the last name of a path that means something. A dot separates names as a slash does. Wrappers
  below a name mean nothing: `weight/0`, `bias/value`, `weight/args/1`, `bias/value/data_array`.

  ============================================  ====================================================================
  the name has the word                         the leaf is
  ============================================  ====================================================================
  `weight` (torch, Equinox)                     a layer (out, in, …), contracted over all axes but the first
  `kernel`, `weights`, or `w` (Flax, haiku)     a layer (…, in, out), contracted over all axes but the last
  none of this table                            a layer (…, in, out) too
  `bias`, or `b`                                a bias of the weight beside it if their widths agree; of several, of
                                                the one with the same marks (`b1` of `w1`, `q_bias` of `q_weight`)
  a number, in a list                           the bias of the weight before it, if its shape is that weight's last
                                                axis (last two axes of three, in attention); else as any other name
  `scale`, `gamma`, `beta`, `offset`            a norm's: no layer
  `mean`, `var`, `variance`, `average`          a running average: no layer
  `embed`, `embedding`, `encoding`, `wte`, …    a table: no layer; `weight` in a module of such a name, too
  `token`                                       a learned token: no layer
  ============================================  ====================================================================

  Of several such words the last decides (`kernel_scale`). Marks may stand beside a word (`bias_ih`, `w1`, `pos_embed`).
  `w` and `b` count only at the start of a name.

  - A leaf of fewer than two axes is no layer, whatever its name.
  - Integers, booleans and random keys are no layers, and get a note. Leaves that are no arrays (an activation function
    in an Equinox module) have no facts.
  - Depth counts the weights in natural order of their paths: `Dense_2` comes before `Dense_10`. A leaf of no layer has
    the depth of the last weight before it in that order, 0 before the first.
  - Nothing is taken to be stacked.

  Args:
    params: A tree of arrays, or of `jax.ShapeDtypeStruct`; `None` leaves and masked nodes are left out.

  Returns:
    A `Structure`.

  Raises:
    ValueError: `params` has no array; two leaves have the same path.

  Example:
    >>> from optax_ext import ByDepth
    >>> layer = lambda a, b: {"kernel": jnp.ones((a, b)), "bias": jnp.ones(b)}
    >>> params = {"Dense_0": layer(8, 64), "Dense_1": layer(64, 1)}
    >>> print(structure_from_params(params).table(ByDepth()))
    path            shape    layer           depth  connections  contracting  stacked  scale
    Dense_0/bias    (64,)    Dense_0/kernel  0      512          None         ()       1.414
    Dense_0/kernel  (8, 64)  itself          0      512          (0,)         ()       1.414
    Dense_1/bias    (1,)     Dense_1/kernel  1      64           None         ()       1
    Dense_1/kernel  (64, 1)  itself          1      64           (0,)         ()       1
    2 layers deep

  References:
    Genet and Inzirillo, `CaAdam <https://arxiv.org/abs/2410.24216>`_, 2024, for depth and connections
  """
  if not any(map(is_numeric, jax.tree.leaves(params))):
    raise ValueError("structure_from_params was given a tree without any array: give it the parameters of the network.")
  return guess(params)


def guess(params: Any) -> Structure:
  """`structure_from_params`, also of trees without arrays, which optax gives to optimizers."""
  params = jax.tree.map(lambda leaf: leaf if is_numeric(leaf) else None, params)
  leaves = by_path(params)
  shapes = {path: tuple(jnp.shape(leaf)) for path, leaf in leaves.items()}
  names = {path: read_name(path) for path in leaves}
  notes = {path: _no_layer(leaf) for path, leaf in leaves.items()}
  order = sorted(leaves, key=natural_key)
  weights = [path for path in order if _may_be_weight(names[path], shapes[path]) and not notes[path]]
  layers = {path: path for path in weights}
  for before, path in itertools.pairwise(order):
    if layers.get(before) == before and _follows(names[path], names[before], shapes[path], shapes[before]):
      layers[path] = before
  weights = [path for path in weights if layers[path] == path]
  beside: dict[str, list[str]] = {}
  for path in weights:
    beside.setdefault(names[path].module, []).append(path)
  for path in order:
    if names[path].kind == "bias" and not notes[path]:
      weight = _weight_of(names[path], {other: names[other] for other in beside.get(names[path].module, [])})
      if weight and _fits(shapes[path], shapes[weight]):
        layers[path] = weight
  depths = {path: depth for depth, path in enumerate(weights)}
  keys = [natural_key(path) for path in weights]

  def facts(path: str, leaf: Any) -> LeafFacts:
    del leaf
    layer, shape = layers.get(path), shapes[path]
    depth = max(0, bisect.bisect(keys, natural_key(path)) - 1) if layer is None else depths[layer]
    connections = 0 if layer is None else math.prod(shapes[layer])
    axes = _contracted(names[path], shape) if layer == path else None
    return LeafFacts(path, shape, layer, depth, connections, axes, note=notes[path])

  return Structure(map_with_paths(facts, params), num_layers=len(weights))


def _no_layer(leaf: Any) -> str:
  """Why the dtype of a leaf says that it is no layer; mostly empty."""
  dtype = jnp.asarray(leaf).dtype if not is_array(leaf) else leaf.dtype
  if jnp.issubdtype(dtype, jnp.inexact):
    return ""
  return "random key: no layer" if jnp.issubdtype(dtype, jax.dtypes.prng_key) else f"{dtype}, not trained: no layer"


def _may_be_weight(name: Name, shape: tuple[int, ...]) -> bool:
  return name.kind in ("weight", None) and len(shape) > 1 and 0 not in shape


def _contracted(name: Name, shape: tuple[int, ...]) -> tuple[int, ...]:
  axes = tuple(range(len(shape)))
  return axes[1:] if name.word == "weight" else axes[:-1]


def _follows(name: Name, weight: Name, shape: tuple[int, ...], of_weight: tuple[int, ...]) -> bool:
  """Whether a leaf in a list is the bias of the weight before it: `[k0, b0, k1, b1]`, (heads, dim) in attention too."""
  listed = name.word.isdecimal() and weight.word.isdecimal() and name.module == weight.module
  fits = shape == of_weight[len(of_weight) - len(shape) :]
  return listed and fits and (len(shape), len(of_weight)) in {(1, len(of_weight)), (2, 3)}


def _weight_of(bias: Name, beside: Mapping[str, Name]) -> str | None:
  """The weight, of those in the same module, that a bias belongs to: of several the one with the same marks."""
  for same in ("marks", "wrapped"):
    if len(beside) > 1:
      beside = {path: name for path, name in beside.items() if getattr(name, same) == getattr(bias, same)}
  return next(iter(beside)) if len(beside) == 1 else None


def _fits(bias: tuple[int, ...], weight: tuple[int, ...]) -> bool:
  """Whether the last axis of a bias, those of size 1 aside, is an axis of the weight; a table of positions has none."""
  return not (wide := [size for size in bias if size != 1]) or wide[-1] in weight
