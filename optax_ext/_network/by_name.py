"""Facts guessed from the names and shapes of parameters."""

import bisect
import math
import re
from typing import Any

import jax.numpy as jnp

from optax_ext._common.paths import by_path, map_with_paths, natural_key
from optax_ext._network.facts import LeafFacts
from optax_ext._network.structure import Structure


def structure_from_params(params: Any) -> Structure:
  """Facts guessed from the paths and shapes of the parameters, by fixed conventions.

  Where the model itself is at hand, `structure_from_model` reads the same facts from its computation and guesses
  nothing. The conventions:

  - A leaf of two or more axes is a *weight*, and so a layer, unless its name says otherwise: `bias`, `b`, `beta`,
    `scale`, `gamma`, `mean`, `var`, `embedding` or such a name with a suffix (`bias_ih`, `b1`).
  - A weight named `weight`, or `weight` with a suffix, has torch's layout (out, in, …), which Equinox shares, and is
    contracted over all axes but the first; every other weight has Flax's, (…, in, out), and is contracted over all axes
    but the last.
  - A leaf named `bias` or `b`, with or without a suffix, or one of one axis with a number for a name, belongs to the
    weight beside it; where there are several, to the one with the same suffix.
  - Depth counts the weights in natural order of their paths: `Dense_2` comes before `Dense_10`. A leaf of no layer has
    the depth of the last weight before it in that order, 0 before the first.
  - Nothing is taken to be stacked.

  Args:
    params: A tree of arrays, or of `jax.ShapeDtypeStruct`; `None` leaves and masked nodes are left out.

  Returns:
    A `Structure`.

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
  shapes = {path: tuple(jnp.shape(leaf)) for path, leaf in by_path(params).items()}
  weights = sorted((path for path, shape in shapes.items() if weight_axes(path, shape)), key=natural_key)
  keys = [natural_key(path) for path in weights]
  depths = {path: depth for depth, path in enumerate(weights)}
  modules: dict[str, list[str]] = {}
  for path in weights:
    modules.setdefault(_module(path), []).append(path)

  def facts(path: str, leaf: Any) -> LeafFacts:
    del leaf
    layer = path if path in depths else _weight_of_bias(path, shapes[path], modules.get(_module(path), []))
    depth = max(0, bisect.bisect(keys, natural_key(path)) - 1) if layer is None else depths[layer]
    connections = 0 if layer is None else math.prod(shapes[layer])
    return LeafFacts(path, shapes[path], layer, depth, connections, weight_axes(path, shapes[path]))

  return Structure(map_with_paths(facts, params), num_layers=len(weights))


_NO_WEIGHT = re.compile(r"(bias|b|beta|scale|gamma|mean|var|embeddings?)([_\d].*)?")
_BIAS = re.compile(r"(bias|b)([_\d].*)?")
_WEIGHT = re.compile(r"(weight|kernel|w)([_\d].*)?", re.IGNORECASE)


def weight_axes(path: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
  """The contracting axes of a weight, by the conventions of `structure_from_params`; `None` for a leaf that is none."""
  name = _name(path)
  if len(shape) < 2 or 0 in shape or _NO_WEIGHT.fullmatch(name):
    return None
  axes = tuple(range(len(shape)))
  return axes[1:] if name.startswith("weight") else axes[:-1]


def _weight_of_bias(path: str, shape: tuple[int, ...], beside: list[str]) -> str | None:
  """The weight, of those in the same module, that a bias belongs to; `None` for a leaf that is no bias."""
  bias = _BIAS.fullmatch(_name(path))
  if not bias and not (_name(path).isdigit() and len(shape) == 1):
    return None
  if len(beside) > 1:
    beside = [path for path in beside if bias and (weight := _WEIGHT.fullmatch(_name(path))) and weight[2] == bias[2]]
  return beside[0] if len(beside) == 1 else None


def _module(path: str) -> str:
  return path.rpartition("/")[0]


def _name(path: str) -> str:
  return path.rpartition("/")[2].lower()
