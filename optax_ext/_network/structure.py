"""`Structure`: facts about every leaf of a network's parameters, and what Muon and ND-Adam need of them."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_ext._common.arguments import check_expression, shown
from optax_ext._common.paths import check_paths, map_with_paths, natural_key, warn_unmatched
from optax_ext._network.facts import LeafFacts, check_shape
from optax_ext._network.scales import check_rule, scales_by_path
from optax_ext._network.show import plot, table


@dataclasses.dataclass(frozen=True)
class Structure:
  """Facts about every leaf of a parameter tree. Printing it shows them as a table.

  Attributes:
    facts: A tree like the parameters, with one `LeafFacts` for each leaf.
    num_layers: d_m, the number of layers along the deepest path.
  """

  facts: Any
  num_layers: int

  def leaves(self) -> list[LeafFacts]:
    """The facts in natural order of their paths."""
    return sorted(jax.tree.leaves(self.facts), key=lambda facts: natural_key(facts.path))

  def by_path(self) -> dict[str, LeafFacts]:
    """The facts by path, in natural order."""
    return {facts.path: facts for facts in self.leaves()}

  def traced(self) -> bool:
    """Whether a model was traced. Only a trace tells uses and normalisers; names and shapes do not."""
    return any(facts.uses for facts in self.leaves())

  def table(self, rule: Any = None) -> str:
    """The facts as an aligned table, with the step scale that `rule` gives each leaf, and why, if the rule says it.

    Raises:
      TypeError, ValueError: `rule` is no rule, or a tree of numbers with other paths.
    """
    if rule is None:
      return table(self.leaves(), self.num_layers)
    scales = self._scales(rule)  # first, as it checks the rule
    reasons = rule.reasons(self) if hasattr(rule, "reasons") else {}
    return table(self.leaves(), self.num_layers, scales, reasons)

  def __str__(self) -> str:
    return self.table()

  def plot(self, path: Any, rule: Any = None) -> None:
    """Draws the layers along depth, with their connections, and their step scales if a rule is given, into a file.

    Stacked layers are drawn one by one. Needs matplotlib.

    Args:
      path: The picture's file, a `.png` or `.svg` say.
      rule: What gives each layer its scale S, shown below.

    Raises:
      TypeError, ValueError: `rule` is no rule, or a tree of numbers with other paths.
    """
    plot(self.leaves(), self.num_layers, None if rule is None else self._scales(rule), path)

  def _scales(self, rule: Any) -> dict[str, Any]:
    check_rule(rule)
    scales = scales_by_path(rule, self)
    check_paths("The tree of scales", scales, self.facts)
    return scales

  def normalised_axes(self) -> Callable[[str, Any], tuple[int, ...] | None]:
    """The axes of ND-Adam's vectors, for layers in which a normaliser follows each unit.

    In these layers the length of a unit's weight vector has no effect, which ND-Adam relies on. All other leaves are
    left to Adam: the output, embeddings, attention, biases, and layers whose weight is computed from several leaves,
    such as a low-rank adapter's. Needs a traced structure: of the model in training mode, or with its running averages
    among the parameters.

    A skip connection around the normaliser is not noticed. With one the length has an effect, and the leaf is included
    all the same. Look at the attribute `normalised` of the facts before training.

    Returns:
      A function `axes(path, leaf)`, for `nd_adam`, `normalize_vectors` and every other function that takes axes.

    Raises:
      ValueError: the structure comes from names and shapes, which say nothing of normalisers; in use, where it has
        nothing for a leaf, or another shape; the path is named.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_ext import nd_adam, normalize_vectors, structure_from_model
      >>> def net(p, x):
      ...   y = x @ p["hidden"]
      ...   return jnp.tanh((y - y.mean(0)) / jnp.sqrt(y.var(0) + 1e-5)) @ p["output"]
      >>> params = {"hidden": jnp.ones((4, 9)), "output": jnp.ones((9, 2))}
      >>> axes = structure_from_model(net, params, jnp.ones((32, 4))).normalised_axes()
      >>> print(axes("hidden", params["hidden"]), axes("output", params["output"]))
      (0,) None
      >>> tx, params = nd_adam(1e-3, axes=axes), normalize_vectors(params, axes)
    """
    if not self.traced():
      raise ValueError(
        "normalised_axes needs a structure from structure_from_model: names and shapes do not say which layers a "
        "normaliser follows."
      )
    known = self.by_path()
    parts = Counter(facts.layer for facts in known.values() if facts.contracting_axes is not None)

    def axes(path: str, leaf: Any) -> tuple[int, ...] | None:
      if path not in known:
        raise ValueError(
          f"The structure has nothing for leaf {path!r}: trace the model with the parameters in use, and take the "
          "optimizer out of optax.flatten."
        )
      facts = known[path]
      check_shape(facts, leaf)
      return facts.contracting_axes if facts.normalised and parts[facts.layer] == 1 else None

    return axes

  def muon_dimension_numbers(self, exclude: str | None = None) -> Callable[[Any], Any]:
    """Dimension numbers for `optax.contrib.muon`: the axes that each weight sums over, and those of its output.

    Stacked axes are in neither, so that Muon treats each layer and each copy by itself. These leaves have `None`, and
    Muon leaves them to Adam:

    - a leaf that is no weight, whose axes are not known, or that has no output axis;
    - an embedding that is looked up, also where a product uses it once more (a tied embedding);
    - a kernel in groups, also a depthwise kernel: it is several matrices, and Muon would take it for one;
    - a leaf that `exclude` names, as Muon's authors do with the last layer.

    Args:
      exclude: A regular expression. A leaf is left to Adam if the expression is found in its path: `"head"`.

    Returns:
      A function from parameters, matched by path, to a tree of `optax.contrib.MuonDimensionNumbers` and `None`.

    Raises:
      TypeError: `exclude` is neither a string nor `None`.
      ValueError: `exclude` is no regular expression; in use, when the structure has nothing for a leaf, or another
        shape.

    Warns:
      UserWarning: `exclude` is found in no path of the structure.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_ext import structure_from_model
      >>> params = {"w": jnp.ones((8, 64)), "b": jnp.ones(64)}
      >>> structure = structure_from_model(lambda p, x: x @ p["w"] + p["b"], params, jnp.ones((1, 8)))
      >>> structure.muon_dimension_numbers()(params)
      {'b': None, 'w': MuonDimensionNumbers(reduction_axis=(0,), output_axis=(1,))}
      >>> tx = optax.contrib.muon(1e-3, muon_weight_dimension_numbers=structure.muon_dimension_numbers())
    """
    if exclude is not None:
      check_expression("exclude", exclude)
    left_out = None if exclude is None else re.compile(exclude)
    if left_out:
      warn_unmatched(left_out, self.facts)

    def numbers(facts: LeafFacts) -> Any:
      summed = facts.contracting_axes or ()
      rest = tuple(axis for axis in range(len(facts.shape)) if axis not in (*summed, *facts.stacked_axes))
      excluded = left_out is not None and left_out.search(facts.path)
      if not summed or not rest or facts.groups > 1 or "lookup" in facts.ways() or excluded:
        return None
      return optax.contrib.MuonDimensionNumbers(reduction_axis=summed, output_axis=rest)

    known = self.by_path()

    def one(path: str, leaf: Any) -> Any:
      check_shape(known[path], leaf)
      return numbers(known[path])

    def of(params: Any) -> Any:
      check_paths("The structure", known, params, more=True)
      return map_with_paths(one, params)

    return of


def check_is_structure(name: str, given: Any) -> None:
  """Raises `TypeError` unless it is a `Structure`."""
  if not isinstance(given, Structure):
    raise TypeError(
      f"{name} must be a Structure, as structure_from_model or structure_from_params returns it, but was "
      f"{shown(given)}."
    )


def check_structure(structure: Any) -> None:
  """Raises `TypeError` unless it is a `Structure` or `None`."""
  if structure is not None and not isinstance(structure, Structure):
    raise TypeError(
      "structure must be a Structure, as structure_from_params or structure_from_model returns it, or None, but was a "
      f"{type(structure).__name__}."
    )
