"""Rules: from facts about the network to a step scale for every leaf."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from optax_ext._common.arguments import check_expression, check_number, shown
from optax_ext._common.paths import warn_unmatched
from optax_ext._network.facts import LeafFacts
from optax_ext._network.scales import is_rule
from optax_ext._network.structure import Structure, check_is_structure


class Rule(Protocol):
  """Turns a `Structure` into a tree of step scales. Not callable: callables look like schedules."""

  def scales(self, structure: Structure) -> Any:
    """A tree like the parameters, of numbers or of arrays that broadcast against the leaf."""
    ...


class Multipliable:
  """Rules that compare layers. They multiply: `ByDepth() * Multiplicative()` scales by both."""

  def __mul__(self, other: Any) -> "Product":
    return Product(self, other) if is_rule(other) else NotImplemented

  def __rmul__(self, other: Any) -> "Product":
    return Product(other, self) if is_rule(other) else NotImplemented


@dataclasses.dataclass(frozen=True)
class Product(Multipliable):
  """The product of two rules: what `first * second` gives.

      S = S₁ · S₂

  Args:
    first: A rule, which gives S₁: `Additive`, `Multiplicative`, `ByDepth`, a product, or your own object.
    second: A rule, which gives S₂. Two rules of your own do not multiply with `*`; `Product` multiplies them.

  Raises:
    TypeError: one of them is no rule.

  Example:
    >>> import jax.numpy as jnp
    >>> from optax_ext import Additive, ByDepth, structure_from_params
    >>> shapes = {"a": (8, 64), "b": (64, 32), "c": (32, 1)}
    >>> structure = structure_from_params({name: {"kernel": jnp.ones(shape)} for name, shape in shapes.items()})
    >>> rule = ByDepth() * Additive()
    >>> print(rule)
    Product(first=ByDepth(gamma=1.0), second=Additive(gamma=0.95))
    >>> for rule in (ByDepth(), Additive(), rule):
    ...   scales = rule.scales(structure)
    ...   print([round(scales[layer]["kernel"], 3) for layer in "abc"])
    [1.587, 1.26, 1.0]
    [1.0, 0.05, 1.95]
    [1.587, 0.063, 1.95]
  """

  first: Any
  second: Any

  def __post_init__(self) -> None:
    for name in ("first", "second"):
      if not is_rule(rule := getattr(self, name)):
        raise TypeError(f"{name} must be a rule, as Additive() or ByDepth(), but was {shown(rule)}.")

  def scales(self, structure: Structure) -> Any:
    """S₁·S₂ of every leaf."""
    return jax.tree.map(lambda a, b: a * b, self.first.scales(structure), self.second.scales(structure))

  def reasons(self, structure: Structure) -> dict[str, str]:
    """Those of both rules, as far as they give any."""
    both = [rule.reasons(structure) for rule in (self.first, self.second) if hasattr(rule, "reasons")]
    paths = [facts.path for facts in structure.leaves()] if both else []
    return {path: "; ".join(filter(None, (of.get(path) for of in both))) for path in paths}


@dataclasses.dataclass(frozen=True)
class Additive(Multipliable):
  """CaAdam's additive rule: layers with few connections take larger steps, layers with many take smaller ones.

      S = 1 + γ·(c̃−c)/(c̃−c_min)  if c ≤ c̃,     1 − γ·(c−c̃)/(c_max−c̃)  otherwise

  c is the number of connections of the leaf's layer; c̃, c_min and c_max are their median, minimum and maximum over the
  layers. Where a numerator is 0, S = 1. A leaf of no layer has S = 1.

  Args:
    gamma: γ in [0, 1]; S lies in [1−γ, 1+γ].

  Raises:
    TypeError, ValueError: `gamma` is not a number in [0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> from optax_ext import structure_from_params
    >>> shapes = {"a": (8, 64), "b": (64, 32), "c": (32, 1)}
    >>> params = {name: {"kernel": jnp.ones(shape)} for name, shape in shapes.items()}
    >>> scales = Additive().scales(structure_from_params(params))
    >>> [round(scales[layer]["kernel"], 2) for layer in "abc"]
    [1.0, 0.05, 1.95]

  References:
    Genet and Inzirillo, `CaAdam <https://arxiv.org/abs/2410.24216>`_, 2024, Equation 15; γ = 0.95 from its code
  """

  gamma: Any = 0.95

  def __post_init__(self) -> None:
    check_number("gamma", self.gamma, "[0, 1]")

  def scales(self, structure: Structure) -> Any:
    """1 + γσ, see `_positions`."""
    return jax.tree.map(lambda sigma: 1 + self.gamma * sigma, _positions(structure))


@dataclasses.dataclass(frozen=True)
class Multiplicative(Multipliable):
  """CaAdam's multiplicative rule.

      S = γ^σ,     σ = (c̃−c)/(c̃−c_min)  if c ≤ c̃,     (c−c̃)/(c_max−c̃)  otherwise

  with the connections c of the leaf's layer and their median c̃, minimum and maximum over the layers. As printed, σ is
  never negative and every layer but the median one is sped up. `signed=True` makes σ negative for c > c̃, the range
  −1..1 that a comment in the authors' code promises. Where a numerator is 0, S = 1. A leaf of no layer has S = 1.

  Args:
    gamma: γ > 0; S lies in [1, γ], or in [1/γ, γ] if signed (for γ ≥ 1).
    signed: Whether layers of more than median size are slowed down.

  Raises:
    TypeError, ValueError: `gamma` is not a number in (0, ∞).

  Example:
    >>> import jax.numpy as jnp
    >>> from optax_ext import structure_from_params
    >>> shapes = {"a": (8, 64), "b": (64, 32), "c": (32, 1)}
    >>> params = {name: {"kernel": jnp.ones(shape)} for name, shape in shapes.items()}
    >>> for rule in Multiplicative(), Multiplicative(signed=True):
    ...   scales = rule.scales(structure_from_params(params))
    ...   print([round(scales[layer]["kernel"], 2) for layer in "abc"])
    [1.0, 5.0, 5.0]
    [1.0, 0.2, 5.0]

  References:
    Genet and Inzirillo, `CaAdam <https://arxiv.org/abs/2410.24216>`_, 2024, Equations 16 and 17; γ = 5 from its code
  """

  gamma: Any = 5.0
  signed: bool = False

  def __post_init__(self) -> None:
    check_number("gamma", self.gamma, "(0, inf)")

  def scales(self, structure: Structure) -> Any:
    """γ^σ or γ^|σ|, see `_positions`."""
    return jax.tree.map(lambda sigma: self.gamma ** (sigma if self.signed else abs(sigma)), _positions(structure))


@dataclasses.dataclass(frozen=True)
class ByDepth(Multipliable):
  """CaAdam's depth rule: the first layer takes the largest steps, the last takes unscaled steps.

      S = (1 + γ)^{(d_m − (1+d))/d_m}

  with the depth d of the leaf's layer, from 0, and the number of layers d_m. A leaf of no layer is scaled by its depth
  too.

  Args:
    gamma: γ > −1; negative values reverse the order.

  Raises:
    TypeError, ValueError: `gamma` is not a number in (−1, ∞).

  Example:
    >>> import jax.numpy as jnp
    >>> from optax_ext import structure_from_params
    >>> shapes = {"a": (8, 64), "b": (64, 32), "c": (32, 1)}
    >>> params = {name: {"kernel": jnp.ones(shape)} for name, shape in shapes.items()}
    >>> scales = ByDepth().scales(structure_from_params(params))
    >>> [round(scales[layer]["kernel"], 3) for layer in "abc"]
    [1.587, 1.26, 1.0]

  References:
    Genet and Inzirillo, `CaAdam <https://arxiv.org/abs/2410.24216>`_, 2024, Equation 18; γ = 1 from its code
  """

  gamma: Any = 1.0

  def __post_init__(self) -> None:
    check_number("gamma", self.gamma, "(-1, inf)")

  def scales(self, structure: Structure) -> Any:
    """Numbers, and arrays along the scanned axes of stacked layers."""
    check_is_structure("structure", structure)
    deepest = max(1, structure.num_layers)

    def scale(facts: LeafFacts) -> Any:
      depth = facts.depth
      if isinstance(depth, np.ndarray):
        depth = depth.reshape([n if axis in facts.scanned_axes else 1 for axis, n in enumerate(facts.shape)])
      return (1 + self.gamma) ** ((deepest - (1 + depth)) / deepest) if structure.num_layers else 1.0

    return jax.tree.map(scale, structure.facts)


@dataclasses.dataclass(frozen=True)
class ByPath(Multipliable):
  """Step scales by regular expressions of paths; 1 for all other leaves.

      S = the factor of the first expression that is found in the leaf's path

  With `LayerDecay` it gives a new head larger steps: `LayerDecay(0.75) * ByPath({"head": 10.0})`. A factor of 0 stops a
  leaf's steps, not its weight decay. To freeze leaves use `optax.partition`, which also saves the memory of their
  state.

  Args:
    factors: Regular expression -> factor, a number ≥ 0.

  Raises:
    TypeError, ValueError: `factors` is no such dict.

  Warns:
    UserWarning: in use, when an expression is found in no path.

  Example:
    >>> import jax.numpy as jnp
    >>> from optax_ext import structure_from_params
    >>> params = {name: {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)} for name in ("body", "head")}
    >>> ByPath({"head": 10.0, "bias": 2.0}).scales(structure_from_params(params))
    {'body': {'bias': 2.0, 'kernel': 1.0}, 'head': {'bias': 10.0, 'kernel': 10.0}}
  """

  factors: Mapping[str, Any]

  def __post_init__(self) -> None:
    if not isinstance(self.factors, Mapping) or not all(isinstance(expression, str) for expression in self.factors):
      raise TypeError(f"factors must be a dict from regular expressions to numbers, but was {shown(self.factors)}.")
    for expression, factor in self.factors.items():
      check_number(f"factors[{expression!r}]", factor, "[0, inf)")
      check_expression("factors", expression)

  def scales(self, structure: Structure) -> Any:
    """The factor of every leaf."""
    check_is_structure("structure", structure)
    for expression in self.factors:
      warn_unmatched(re.compile(expression), structure.facts)
    return jax.tree.map(lambda facts: self._found(facts.path)[1], structure.facts)

  def reasons(self, structure: Structure) -> dict[str, str]:
    """The expression that is found in each path."""
    return {facts.path: self._found(facts.path)[0] for facts in structure.leaves()}

  def _found(self, path: str) -> tuple[str, Any]:
    found = ((expression, factor) for expression, factor in self.factors.items() if re.search(expression, path))
    return next(found, ("", 1.0))


def _positions(structure: Structure) -> Any:
  """σ of every leaf: where its layer's connections stand among all layers', from 1 (fewest) over 0 (median) to −1
  (most).

  Layers stacked by a scan count one by one, copies of a layer as one.
  """
  check_is_structure("structure", structure)
  counts = [
    facts.connections for facts in structure.leaves() if facts.layer == facts.path for _ in range(np.size(facts.depth))
  ]
  if not counts:
    return jax.tree.map(lambda facts: 0.0, structure.facts)
  low, middle, high = min(counts), float(np.median(counts)), max(counts)

  def position(facts: LeafFacts) -> float:
    above_low = facts.connections - middle
    if facts.layer is None or above_low == 0:
      return 0.0
    return above_low / (low - middle) if above_low < 0 else above_low / (middle - high)

  return jax.tree.map(position, structure.facts)
