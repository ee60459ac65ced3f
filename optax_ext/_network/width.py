"""Learning rates that transfer across width: the maximal update parametrisation, read from two traces."""

import dataclasses
import math
from typing import Any

import jax

from optax_ext._common.paths import check_paths, listed, map_with_paths
from optax_ext._network.facts import LeafFacts, check_shape
from optax_ext._network.rules import Multipliable
from optax_ext._network.structure import Structure, check_is_structure

OPTIMIZERS = ("adam", "sgd")


@dataclasses.dataclass(frozen=True)
class MaximalUpdate(Multipliable):
  """The maximal update parametrisation (µP): a learning rate tuned on a narrow model is right for a wide one.

      S = 1/r_in   for a weight that sums over more inputs than in the base model (hidden, output)
      S = 1        for all others: input weights, biases, norms, embeddings that are looked up

  r_in is the product of a weight's sizes along its contracting axes, divided by the same product in the base model.
  Nothing has to be declared: the widths that differ between two structures of one model are the widths that scale. The
  rule serves Adam and its successors here, because the size of their steps does not depend on the gradient's size. Look
  at the scales before training: `print(structure.table(rule))` tells the reason for each.

  The rule is one half of the parametrisation. The other half is the initialisation of the output layer, which
  `rescale_init` does once, for weights whose standard initialisation has the variance 1/fan-in. The rest is up to the
  model:

  - Where the width of a head grows, attention logits need the factor 1/d instead of 1/√d.
  - A weight that is used a second time, transposed, has the S of its first use. Divide the second product, such as a
    tied embedding's logits, by r_in.
  - A factor before a product (equalised learning rates) has no influence on S.

  `coordinate_check` shows whether the parametrisation is right.

  Weight decay stays α·λ for every leaf, so that the decay in a step is independent of width. `nd_adam` needs no rule:
  it turns its unit vectors by an angle that is independent of width.

  Args:
    base: The structure of the same model at a smaller width. `structure_from_model` reads it from shapes alone, without
      making the small model.
    optimizer: `"adam"` for all optimizers whose steps do not depend on the gradient's scale; `"sgd"` for SGD with
      momentum. Then S is 1 for hidden weights, 1/r_in for output weights, and r_out for input weights and biases, where
      r_out says how much wider their output is.

  Raises:
    TypeError, ValueError: `base` is no structure; `optimizer` is neither; in use, when the two structures do not have
      the same leaves, axes or number of layers, or a leaf is smaller than in the base.

  Example:
    >>> import jax.numpy as jnp
    >>> from optax_ext import structure_from_model
    >>> def net(p, x):
    ...   return jnp.tanh(jnp.tanh(x @ p["in"] + p["bias"]) @ p["hidden"]) @ p["out"]
    >>> def shapes(width):
    ...   sizes = {"in": (8, width), "bias": (width,), "hidden": (width, width), "out": (width, 3)}
    ...   return {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()}
    >>> x = jax.ShapeDtypeStruct((1, 8), jnp.float32)
    >>> small, large = (structure_from_model(net, shapes(width), x) for width in (32, 256))
    >>> MaximalUpdate(small).scales(large)
    {'bias': 1.0, 'hidden': 0.125, 'in': 1.0, 'out': 0.125}
    >>> MaximalUpdate(small).reasons(large)["hidden"]
    'hidden: fan-in × 8'

  References:
    Yang et al., `Tensor Programs V <https://arxiv.org/abs/2203.03466>`_, 2022, Table 3; on weight decay Wang and
    Aitchison, `How to set AdamW's weight decay <https://arxiv.org/abs/2405.13698>`_, 2024
  """

  base: Structure
  optimizer: str = "adam"

  def __post_init__(self) -> None:
    if not isinstance(self.base, Structure):
      raise TypeError(
        "base must be the structure of the same model at a smaller width, as structure_from_model returns it, but was "
        f"a {type(self.base).__name__}."
      )
    if self.optimizer not in OPTIMIZERS:
      raise ValueError(f"optimizer must be 'adam' or 'sgd', but was {self.optimizer!r}.")

  def scales(self, structure: Structure) -> Any:
    """S of every leaf, a number."""
    growth = growths(structure, self.base)

    def scale(facts: LeafFacts) -> float:
      of = growth[facts.path]
      if self.optimizer == "sgd":
        return {"hidden": 1.0, "output": 1 / of.fan_in}.get(of.role, of.fan_out)
      return 1 / of.fan_in if of.role in ("hidden", "output") else 1.0

    return jax.tree.map(scale, structure.facts)

  def reasons(self, structure: Structure) -> dict[str, str]:
    """Path of a leaf -> why it has its S, in a few words."""
    return {path: of.words() for path, of in growths(structure, self.base).items()}


def rescale_init(params: Any, structure: Structure, base: Structure) -> Any:
  """Divides the output layer's initial weights by √r_in: the initialisation of the maximal update parametrisation.

      W ← W/√r_in   for a weight that sums over more inputs than in the base model, to as many outputs

  A standard initialisation has the variance 1/fan-in. The variance of output weights must fall with the square of
  fan-in. All other leaves stay unchanged. Use `rescale_init` once, on new parameters.

  Args:
    params: The parameters, just initialised.
    structure: Of the model.
    base: Of the same model at a smaller width.

  Returns:
    A tree like `params`, in the same dtypes.

  Raises:
    TypeError: `structure` or `base` is no `Structure`.
    ValueError: the structures do not match each other, or the parameters.

  Example:
    >>> import jax.numpy as jnp
    >>> from optax_ext import structure_from_model
    >>> net = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
    >>> new = lambda width: {"in": jnp.ones((8, width)), "out": jnp.ones((width, 3))}
    >>> small, large = (structure_from_model(net, new(width), jnp.ones((1, 8))) for width in (32, 128))
    >>> params = rescale_init(new(128), large, small)
    >>> print(params["in"][0, 0], params["out"][0, 0])
    1.0 0.5

  References:
    Yang et al., `Tensor Programs V <https://arxiv.org/abs/2203.03466>`_, 2022, Table 3
  """
  growth, known = growths(structure, base), structure.by_path()
  check_paths("The structure", known, params, more=True)

  def rescaled(path: str, leaf: Any) -> Any:
    check_shape(known[path], leaf)
    of = growth[path]
    return leaf if of.role != "output" else (leaf / math.sqrt(of.fan_in)).astype(leaf.dtype)

  return map_with_paths(rescaled, params)


@dataclasses.dataclass(frozen=True)
class Growth:
  """How much wider a leaf is than in the base model.

  Attributes:
    role: `"hidden"` for a weight that grows along inputs and outputs, `"output"` along inputs alone, `"input"` not
      along inputs; `"lookup"` for an embedding, `"tied"` for one that is the output's weight, too; `"other"` for a bias
      or a norm; `"unknown"` for a weight whose axes could not be read.
    fan_in: r_in; 1 for what is no weight.
    fan_out: r_out, of all axes that are not contracted (stacked ones have not grown); of an embedding, of all its axes.
  """

  role: str
  fan_in: float
  fan_out: float

  def words(self) -> str:
    """What a table says of it."""
    if self.role in ("hidden", "output"):
      return f"{self.role}: fan-in × {self.fan_in:.4g}"
    if self.role == "tied":
      return f"tied: divide the logits by {self.fan_in:.4g}"
    if self.role == "unknown":
      return "its axes are not known: not scaled"
    return self.role


def growths(structure: Structure, base: Structure) -> dict[str, Growth]:
  """Path of a leaf -> how it grows from the base model to this one.

  Raises:
    TypeError: one of them is no `Structure`.
    ValueError: the two are not the same model at two widths.
  """
  for name, given in ("structure", structure), ("base", base):
    check_is_structure(name, given)
  mine, theirs = structure.by_path(), base.by_path()
  _check_same_model(structure, base, mine, theirs)
  return {path: _growth(facts, theirs[path]) for path, facts in mine.items()}


def _check_same_model(
  structure: Structure, base: Structure, mine: dict[str, LeafFacts], theirs: dict[str, LeafFacts]
) -> None:
  if mine.keys() != theirs.keys():
    more, less = mine.keys() - theirs.keys(), theirs.keys() - mine.keys()
    parts = [f"{listed(paths)} only in the {name}" for paths, name in ((more, "model"), (less, "base")) if paths]
    raise ValueError(
      f"base is the structure of another model, with {' and '.join(parts)}: change nothing but the width."
    )
  if structure.num_layers != base.num_layers:
    raise ValueError(
      f"base is {base.num_layers} layers deep and the model {structure.num_layers}: change the width alone."
    )
  for path, facts in mine.items():
    other = theirs[path]
    if len(facts.shape) != len(other.shape) or facts.contracting_axes != other.contracting_axes:
      raise ValueError(
        f"base has leaf {path!r} with shape {other.shape} and contracting axes {other.contracting_axes}, the model "
        f"with {facts.shape} and {facts.contracting_axes}: change the width alone."
      )
    if any(facts.shape[axis] != other.shape[axis] for axis in facts.stacked_axes):
      raise ValueError(
        f"base has leaf {path!r} with shape {other.shape}, the model with {facts.shape}, and axes {facts.stacked_axes} "
        "count its layers or copies: change the width alone."
      )
    if any(size < small for size, small in zip(facts.shape, other.shape, strict=True)):
      raise ValueError(
        f"Leaf {path!r} has shape {facts.shape} in the model and {other.shape} in base: base must be the smaller one."
      )


def _growth(facts: LeafFacts, base: LeafFacts) -> Growth:
  ratio = [size / small if small else 1.0 for size, small in zip(facts.shape, base.shape, strict=True)]
  along = facts.contracting_axes or ()
  fan_in = math.prod(ratio[axis] for axis in along)
  fan_out = math.prod(r for axis, r in enumerate(ratio) if axis not in along)
  if "lookup" in facts.ways():
    return Growth("tied" if along else "lookup", fan_in, math.prod(ratio))
  if not along:
    return Growth("unknown" if facts.layer == facts.path else "other", 1.0, fan_out)
  if fan_in == 1:
    return Growth("input", 1.0, fan_out)
  return Growth("output" if fan_out == 1 else "hidden", fan_in, fan_out)
