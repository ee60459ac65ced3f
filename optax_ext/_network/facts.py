"""Facts about one leaf of a network's parameters."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from optax_ext._common.mesh import in_shard_map


@dataclasses.dataclass(frozen=True)
class LeafFacts:
  """Facts about one leaf of the parameters. Not a pytree node: a tree of facts has the parameters' structure.

  Attributes:
    path: Its path, as `"block/3/kernel"`.
    shape: Its shape.
    layer: Path of the weight whose layer it belongs to: its own for a weight, the weight's for a bias, else `None`.
    depth: Number of layers before it, from 0; for layers stacked into one leaf an int array, one axis per scan.
    connections: Weights in its layer, biases left out (a dense layer 8→64 has 512); 0 for a leaf of no layer.
    contracting_axes: The axes that the layer sums over: each vector along them is one unit's input weights. `None` for
      a leaf that is no weight.
    stacked_axes: The axes that count layers or copies of a layer. They are no part of one layer's weights.
    scanned_axes: The stacked axes that count layers, in the order of the axes of `depth`.
    macs: Multiply-accumulates of its layer for the traced input; 0 where no model was traced.
    uses: How it enters the computation, `"product@3"` for a product after three others; empty without a trace. The
      kinds are `product`, `bias`, `elementwise`, `lookup`, `positions` (a table added along places), `backward` (in a
      derivative's way back) and `unseen`.
    note: What could not be read, and why; mostly empty.
    groups: Number of groups that its layer's outputs divide into, each with inputs of its own; as many as the inputs in
      a depthwise convolution. Read from a trace; 1 where no model was traced.
    normalised: Whether the trace shows that a normaliser of its own follows each unit, as batch norm does.
  """

  path: str
  shape: tuple[int, ...]
  layer: str | None
  depth: int | np.ndarray
  connections: int
  contracting_axes: tuple[int, ...] | None
  stacked_axes: tuple[int, ...] = ()
  scanned_axes: tuple[int, ...] = ()
  macs: int = 0
  uses: tuple[str, ...] = ()
  note: str = ""
  groups: int = 1
  normalised: bool = False

  def ways(self) -> set[str]:
    """The kinds of its uses, without depths: `{"lookup", "product"}` for a tied embedding."""
    return {use.partition("@")[0] for use in self.uses}

  def __eq__(self, other: object) -> bool:  # the generated one cannot compare arrays of depths
    if not isinstance(other, LeafFacts):
      return NotImplemented
    mine, theirs = ({**vars(facts), "depth": np.asarray(facts.depth).tolist()} for facts in (self, other))
    return mine == theirs

  def __hash__(self) -> int:
    return hash((self.path, self.shape, self.layer, self.connections))


def check_shape(facts: LeafFacts, leaf: Any) -> None:
  """Raises `ValueError` unless a leaf has the shape that its facts are about.

  Inside `jax.shard_map` a leaf is one device's part, of other sizes. Its number of axes is the same there, and is
  compared. Under `jax.vmap` a leaf is one member's, as in the structure of one model.
  """
  shape = tuple(jnp.shape(leaf))
  if len(shape) != len(facts.shape) or (shape != facts.shape and not in_shard_map()):
    raise ValueError(
      f"The structure is of another model: leaf {facts.path!r} has shape {shape}, but {facts.shape} in the structure; "
      "make the structure from these parameters."
    )
