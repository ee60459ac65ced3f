"""What a person derives about one leaf of a package's model, to compare with what `structure_from_model` says."""

from typing import Any, NamedTuple


class Expected(NamedTuple):
  """Facts about one leaf, derived by hand; `...` where the definitions leave a fact open, which is then not asked.

  Attributes:
    layer: Path of the weight whose layer the leaf belongs to; `None` for a leaf of no layer.
    depth: Number of layers before it; a (nested) list of them along the scanned axes.
    connections: Weights in its layer, biases left out.
    contracting: Axes that the layer sums over; `None` for a leaf that is no weight.
    stacked: Axes that count layers or copies.
  """

  layer: Any
  depth: Any
  connections: Any
  contracting: Any
  stacked: Any = ()


ITSELF = "itself"


def weight(depth: Any, connections: Any, contracting: Any, stacked: Any = (), layer: Any = ITSELF) -> Expected:
  """A leaf that a product contracts."""
  return Expected(layer, depth, connections, contracting, stacked)


def bias(layer: Any, depth: Any, connections: Any, stacked: Any = ()) -> Expected:
  """A leaf that is added to the product of `layer`."""
  return Expected(layer, depth, connections, None, stacked)


def other(depth: Any, stacked: Any = ()) -> Expected:
  """A leaf of no layer: a norm's scale, an embedding that is looked up."""
  return Expected(None, depth, 0, None, stacked)


def mistakes(path: str, expected: Expected, said: dict[str, Any] | None) -> list[str]:
  """What is said wrongly of a leaf, one sentence a fact."""
  if said is None:
    return [f"no leaf has the path {path!r}"]
  wanted = expected._replace(layer=path) if expected.layer == ITSELF else expected
  found = Expected(
    said["layer"],
    said["depth"],
    said["connections"],
    None if said["contracting_axes"] is None else tuple(said["contracting_axes"]),
    tuple(said["stacked_axes"]),
  )
  return [
    f"{name}: expected {want!r}, said {have!r}"
    for name, want, have in zip(Expected._fields, wanted, found, strict=True)
    if want is not ... and want != have
  ]
