"""Facts read from the traced computation of a model."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_ext._common.arguments import module_of_flax, shown
from optax_ext._common.dtypes import is_array
from optax_ext._common.paths import by_path, map_with_paths
from optax_ext._network.by_name import guess
from optax_ext._network.facts import LeafFacts
from optax_ext._network.structure import Structure


def structure_from_model(apply_fn: Callable[..., Any], params: Any, *inputs: Any) -> Structure:
  """Reads facts about a network from its traced computation: the layer of each leaf, its depth, the axes summed over.

  Traces `apply_fn(params, *inputs)`, as `jax.make_jaxpr` does, and computes nothing. For a Flax linen module that is
  `structure_from_model(model.apply, variables, x)`, for an NNX module `structure_from_model(Model.__call__, model, x)`.

  - A *product* of a value computed from parameters alone with a value that depends on an input is a layer: a matrix
    product, a convolution, or a multiplication element by element with a sum over an axis that both share. A leaf added
    to the result is the layer's bias. A factor that contracts nothing, such as a norm's scale, is no layer.
  - Depth is the number of products on the longest path from the inputs. A leaf that is no weight (a norm's scale, an
    embedding) has the depth of the product that it follows. A leaf that is used several times has its least depth.
  - Derivatives inside the model (forces) have no layers of their own: the facts are those of the forward computation.
  - Running averages of batch norms belong in `params`, as in linen's `variables`, or in a closure. A model that is
    traced as in training does not use them. Among the inputs they are data: a scale that meets them first has depth 0.
  - The layers of a `scan` are stacked along the axis that the scan runs over. So are layers that a loop or the program
    indexes one by one. Copies that `vmap` makes, and experts, are stacked too, but count as one layer.
  - Random numbers are no input, so that dropout on weights hides nothing.

  Args:
    apply_fn: The model, or its loss: anything that `jax.make_jaxpr` can trace.
    params: Its first argument; a tree of arrays or of `jax.ShapeDtypeStruct`. Other leaves are passed on as they are.
    *inputs: Its other arguments: arrays or `jax.ShapeDtypeStruct` in any trees, or anything else that the function
      takes.

  Returns:
    A `Structure`, whose facts are a tree like `params`; `None` for leaves that are no arrays.

  Raises:
    TypeError: `apply_fn` is no function, or a module of Flax.
    ValueError: `params` has no array; `apply_fn` returns a tree like `params`, so that it computes a gradient or a
      training step.

  Warns:
    UserWarning: a parameter that cannot be followed (because it enters a Pallas kernel, say, or is never used) falls
      back to `structure_from_params`. A layer whose axes cannot be followed keeps its depth and bias, and has no
      contracting axes. The paths and the reasons are named, and shown in the table.

  Example:
    >>> from optax_ext import ByDepth
    >>> params = {"first": jnp.ones((8, 64)), "scale": jnp.ones(64), "last": jnp.ones((1, 64))}
    >>> net = lambda p, x: (jnp.tanh(x @ p["first"]) * p["scale"]) @ p["last"].T
    >>> print(structure_from_model(net, params, jax.ShapeDtypeStruct((32, 8), jnp.float32)).table(ByDepth()))
    path   shape    layer   depth  connections  contracting  stacked  macs   uses           scale
    first  (8, 64)  itself  0      512          (0,)         ()       16384  product@0      1.414
    last   (1, 64)  itself  1      64           (1,)         ()       2048   product@1      1
    scale  (64,)    -       0      0            None         ()       0      elementwise@0  1.414
    2 layers deep
  """
  from optax_ext._network.jaxpr.model import read_model  # here, for the time of `import optax_ext`

  if not callable(apply_fn):
    raise TypeError(f"apply_fn must be a function of the parameters and the inputs, but was {shown(apply_fn)}.")
  if package := module_of_flax(apply_fn):
    call = {"linen": "model.apply, variables"}.get(package, f"{type(apply_fn).__name__}.__call__, model")
    raise TypeError(
      "apply_fn must be a function of the parameters and the inputs, but was a model: call "
      f"structure_from_model({call}, *inputs)."
    )
  arrays = {path: leaf for path, leaf in by_path(params).items() if is_array(leaf)}
  if not arrays:
    raise ValueError(
      "structure_from_model was given a tree without any array as params: give it the parameters of the network, which "
      "apply_fn takes first."
    )
  findings, num_layers = read_model(apply_fn, params, inputs, list(arrays))
  found = dict(zip(arrays, findings, strict=True))
  shapes = {path: jax.ShapeDtypeStruct(tuple(leaf.shape), jnp.float32) for path, leaf in arrays.items()}
  by_name = guess(shapes)
  if not num_layers and not all(what.seen for what in findings):  # all that is known of layers is guessed
    num_layers = by_name.num_layers
  guessed = by_name.by_path()

  def facts(path: str, leaf: Any) -> LeafFacts | None:
    if path not in found:
      return None
    what = found[path]
    if not what.seen:
      depth = min(guessed[path].depth, max(0, num_layers - 1))
      return dataclasses.replace(guessed[path], depth=depth, uses=what.uses, note=f"{what.note}: guessed from its path")
    named = {name: value for name, value in what._asdict().items() if name != "seen"}
    return LeafFacts(path, tuple(leaf.shape), **named)

  structure = Structure(map_with_paths(facts, params), num_layers)
  trainable = [facts for facts in structure.leaves() if jnp.issubdtype(arrays[facts.path].dtype, jnp.inexact)]
  told = [f"{facts.path!r} ({facts.note})" for facts in trainable if facts.note]
  if told:
    warnings.warn(f"structure_from_model could not see all of these parameters: {', '.join(told)}.", stacklevel=2)
  return structure
