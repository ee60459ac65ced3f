"""What an optimizer may know of the network: facts about each leaf, rules that turn facts into step scales."""

import bisect
import dataclasses
import math
import re
import statistics
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_ext.checks import check_number
from optax_ext.paths import by_path, check_no_count, check_paths, map_with_paths, mask_paths, natural_key
from optax_ext.storage import arithmetic_dtype, real_dtype
from optax_ext.tracing import Findings, is_array, read_model


@dataclasses.dataclass(frozen=True)
class LeafFacts:
  """What is known of one leaf of the parameters. Not a pytree node: a tree of facts has the parameters' structure.

  Attributes:
    path: Its path, as `"block/3/kernel"`.
    shape: Its shape.
    layer: Path of the weight whose layer it belongs to: its own for a weight, the weight's for a bias, else `None`.
    depth: Number of layers before it, from 0; for layers stacked into one leaf an int array, one axis per scan.
    connections: Weights in its layer, biases left out (a dense layer 8→64 has 512); 0 for a leaf of no layer.
    contracting_axes: The axes that the layer sums over, so that each vector along them is one unit's input weights;
      `None` for a leaf that is no weight.
    stacked_axes: The axes that count layers or copies of a layer, and are no part of one layer's weights.
    scanned_axes: Those of them that count layers, in the order of the axes of `depth`.
    macs: Multiply-accumulates of its layer for the traced input; 0 where no model was traced.
    uses: How it enters the computation, `"product@3"` for a product after three others; empty without a trace.
    note: What could not be told, and why; mostly empty.
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

  def __eq__(self, other: object) -> bool:  # the generated one cannot compare arrays of depths
    if not isinstance(other, LeafFacts):
      return NotImplemented
    mine, theirs = ({**vars(facts), "depth": np.asarray(facts.depth).tolist()} for facts in (self, other))
    return mine == theirs

  def __hash__(self) -> int:
    return hash((self.path, self.shape, self.layer, self.connections))


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

  def table(self, rule: Any = None) -> str:
    """The facts as an aligned table, with the step scale that `rule` gives each leaf.

    Raises:
      TypeError, ValueError: `rule` is no rule, or a tree of numbers with other paths.
    """
    scales = None if rule is None else self._scales(rule)
    leaves = self.leaves()
    traced, noted = any(facts.uses for facts in leaves), any(facts.note for facts in leaves)
    head = ["path", "shape", "layer", "depth", "connections", "contracting", "stacked"]
    rows = [head + ["macs", "uses"] * traced + ["scale"] * (rule is not None) + ["note"] * noted]
    for facts in leaves:
      layer = "itself" if facts.layer == facts.path else facts.layer or "-"
      row = [facts.path, facts.shape, layer, _brief(facts.depth), facts.connections]
      row += [facts.contracting_axes, facts.stacked_axes]
      row += [facts.macs, _brief_uses(facts.uses)] if traced else []
      row += [] if scales is None else [_brief(scales[facts.path])]
      rows.append([str(cell) for cell in row] + [facts.note] * noted)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"{self.num_layers} layers deep"])

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
    from matplotlib.figure import Figure  # without pyplot: no window, and nothing global changes

    scales = None if rule is None else self._scales(rule)
    layers = [facts for facts in self.leaves() if facts.layer == facts.path]
    figure = Figure(figsize=(9, 3.2 if scales is None else 5.6), layout="constrained")
    axes = figure.subplots(1 if scales is None else 2, 1, sharex=True, squeeze=False)[:, 0]
    families: dict[str, list[LeafFacts]] = {}
    for facts in layers:  # one colour for all layers whose names differ in numbers alone
      families.setdefault(re.sub(r"\d+", "*", facts.path), []).append(facts)
    for number, (name, members) in enumerate(families.items()):
      style = {"marker": "osD^vP*X"[number % 8], "color": f"C{number % 10}", "linestyle": "none", "alpha": 0.75}
      depth = np.concatenate([np.ravel(facts.depth) for facts in members])
      counts = np.concatenate([np.full(np.size(facts.depth), facts.connections) for facts in members])
      axes[0].plot(depth, counts, label=name, **style)
      if scales is not None:
        axes[1].plot(depth, np.concatenate([_along_depth(scales[facts.path], facts) for facts in members]), **style)
    if layers:
      axes[0].set_yscale("log")
    axes[0].set_ylabel("connections")
    if scales is not None:
      axes[1].set_ylabel("step scale S")
      axes[1].axhline(1, color="0.8", zorder=0)
    axes[-1].set_xlabel(f"depth: products before the layer ({self.num_layers} layers deep)")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    for ax in axes:
      ax.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=150)

  def _scales(self, rule: Any) -> dict[str, Any]:
    check_rule(rule)
    scales = _scales(rule, self)
    check_paths("The tree of scales", scales, self.facts)
    return scales

  def muon_dimension_numbers(self) -> Callable[[Any], Any]:
    """What `optax.contrib.muon` is to know of each weight: the axes that it sums over, and those of its output.

    Stacked axes are in neither, so that Muon treats each layer and each copy by itself.

    Returns:
      A function from parameters, matched by path, to a tree of `optax.contrib.MuonDimensionNumbers`; `None`, Adam's
      part, for a leaf that is no weight, whose axes are not known, or that has no output axis.

    Example:
      >>> params = {"w": jnp.ones((8, 64)), "b": jnp.ones(64)}
      >>> structure = structure_from_model(lambda p, x: x @ p["w"] + p["b"], params, jnp.ones((1, 8)))
      >>> structure.muon_dimension_numbers()(params)
      {'b': None, 'w': MuonDimensionNumbers(reduction_axis=(0,), output_axis=(1,))}
      >>> tx = optax.contrib.muon(1e-3, muon_weight_dimension_numbers=structure.muon_dimension_numbers())
    """

    def numbers(facts: LeafFacts) -> Any:
      summed = facts.contracting_axes or ()
      rest = tuple(axis for axis in range(len(facts.shape)) if axis not in (*summed, *facts.stacked_axes))
      if not summed or not rest:
        return None
      return optax.contrib.MuonDimensionNumbers(reduction_axis=summed, output_axis=rest)

    known = {facts.path: numbers(facts) for facts in self.leaves()}

    def of(params: Any) -> Any:
      check_paths("The structure", known, params, more=True)
      return map_with_paths(lambda path, leaf: known[path], params)

    return of


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


def structure_from_model(apply_fn: Callable[..., Any], params: Any, *inputs: Any) -> Structure:
  """Facts read from the computation of the model itself: which axes are summed over, at what depth, in which layer.

  Traces `apply_fn(params, *inputs)`, as `jax.make_jaxpr` does, and computes nothing. For a Flax linen module that is
  `structure_from_model(model.apply, variables, x)`, for an NNX module `structure_from_model(Model.__call__, model, x)`.

  - A *product* is a matrix product or a convolution of a value computed from parameters alone with one that depends on
    an input. The parameters in it are a layer; what is added to its result is its bias.
  - Depth is the number of products on the longest path from the inputs. A leaf that is no weight (a norm's scale, an
    embedding) has the depth of the product that it follows. One that is used several times has its least.
  - Running averages of batch norms belong in `params`, as `variables` has them, or in a closure, or are not used where
    the model is traced as in training. Among the inputs they are data: a scale that meets them first has depth 0.
  - The layers of a `scan` are stacked along the axis that it runs over, and so are those that a loop, or the program,
    indexes one by one. The copies that `vmap` makes, and experts, are stacked too, but count as one layer.
  - Random numbers are no input, so that dropout on weights hides nothing.

  Args:
    apply_fn: The model, or its loss: anything that `jax.make_jaxpr` can trace.
    params: Its first argument; a tree of arrays or of `jax.ShapeDtypeStruct`. Other leaves are passed on as they are.
    *inputs: Its other arguments; arrays or `jax.ShapeDtypeStruct` in any trees, or whatever else the function takes.

  Returns:
    A `Structure`, whose facts are a tree like `params`; `None` for leaves that are no arrays.

  Raises:
    ValueError: `apply_fn` returns a tree like `params`, so that it computes a gradient or a training step.

  Warns:
    UserWarning: what cannot be seen (a parameter that enters a Pallas kernel, say, or that is never used) falls back to
      `structure_from_params`; the paths and the reasons are named, and shown in the table.

  Example:
    >>> params = {"first": jnp.ones((8, 64)), "scale": jnp.ones(64), "last": jnp.ones((1, 64))}
    >>> net = lambda p, x: (jnp.tanh(x @ p["first"]) * p["scale"]) @ p["last"].T
    >>> print(structure_from_model(net, params, jax.ShapeDtypeStruct((32, 8), jnp.float32)).table(ByDepth()))
    path   shape    layer   depth  connections  contracting  stacked  macs   uses           scale
    first  (8, 64)  itself  0      512          (0,)         ()       16384  product@0      1.414
    last   (1, 64)  itself  1      64           (1,)         ()       2048   product@1      1
    scale  (64,)    -       0      0            None         ()       0      elementwise@0  1.414
    2 layers deep
  """
  arrays = {path: leaf for path, leaf in by_path(params).items() if is_array(leaf)}
  findings, num_layers = read_model(apply_fn, params, inputs, list(arrays))
  found = dict(zip(arrays, findings, strict=True))
  shapes = {path: jax.ShapeDtypeStruct(tuple(leaf.shape), jnp.float32) for path, leaf in arrays.items()}
  guess = structure_from_params(shapes)
  if not num_layers and not all(what.seen for what in findings):  # all that is known of layers is guessed
    num_layers = guess.num_layers
  guessed = {facts.path: facts for facts in guess.leaves()}

  def facts(path: str, leaf: Any) -> LeafFacts | None:
    if path not in found:
      return None
    what: Findings = found[path]
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


class Rule(Protocol):
  """Turns a `Structure` into a tree of step scales. Not callable: callables look like schedules."""

  def scales(self, structure: Structure) -> Any:
    """A tree like the parameters, of numbers or of arrays that broadcast against the leaf."""
    ...


class _Multipliable:
  """Rules multiply: `ByDepth() * Multiplicative()` scales by both."""

  def __mul__(self, other: Any) -> "Product":
    return Product(self, other) if _is_rule(other) else NotImplemented

  def __rmul__(self, other: Any) -> "Product":
    return Product(other, self) if _is_rule(other) else NotImplemented


@dataclasses.dataclass(frozen=True)
class Product(_Multipliable):
  """The product of two rules."""

  first: Any
  second: Any

  def scales(self, structure: Structure) -> Any:
    """The leafwise product."""
    return jax.tree.map(lambda a, b: a * b, self.first.scales(structure), self.second.scales(structure))


@dataclasses.dataclass(frozen=True)
class Additive(_Multipliable):
  """CaAdam's additive rule: layers with few connections take larger steps, layers with many smaller ones.

      S = 1 + γ·(c̃−c)/(c̃−c_min)  if c ≤ c̃,     1 − γ·(c−c̃)/(c_max−c̃)  otherwise

  c is the number of connections of the leaf's layer; c̃, c_min and c_max are their median, minimum and maximum over the
  layers. Where a numerator is 0, S = 1. A leaf of no layer has S = 1.

  Args:
    gamma: γ in [0, 1]; S lies in [1−γ, 1+γ].

  Raises:
    TypeError, ValueError: `gamma` is not a number in [0, 1].

  Example:
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
class Multiplicative(_Multipliable):
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
class ByDepth(_Multipliable):
  """CaAdam's depth rule: the first layer takes the largest steps, the last unscaled ones.

      S = (1 + γ)^{(d_m − (1+d))/d_m}

  with the depth d of the leaf's layer, from 0, and the number of layers d_m. A leaf of no layer is scaled by its depth
  too.

  Args:
    gamma: γ > −1; negative values reverse the order.

  Raises:
    TypeError, ValueError: `gamma` is not a number in (−1, ∞).

  Example:
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
    deepest = max(1, structure.num_layers)

    def scale(facts: LeafFacts) -> Any:
      depth = facts.depth
      if isinstance(depth, np.ndarray):
        depth = depth.reshape([n if axis in facts.scanned_axes else 1 for axis, n in enumerate(facts.shape)])
      return (1 + self.gamma) ** ((deepest - (1 + depth)) / deepest) if structure.num_layers else 1.0

    return jax.tree.map(scale, structure.facts)


def _positions(structure: Structure) -> Any:
  """σ of every leaf: where its layer's connections stand among all layers', from 1 (fewest) over 0 (median) to −1
  (most).

  Layers stacked by a scan count one by one, copies of a layer as one.
  """
  counts = [
    facts.connections for facts in structure.leaves() if facts.layer == facts.path for _ in range(np.size(facts.depth))
  ]
  if not counts:
    return jax.tree.map(lambda facts: 0.0, structure.facts)
  low, middle, high = min(counts), statistics.median(counts), max(counts)

  def position(facts: LeafFacts) -> float:
    above_low = facts.connections - middle
    if facts.layer is None or above_low == 0:
      return 0.0
    return above_low / (low - middle) if above_low < 0 else above_low / (middle - high)

  return jax.tree.map(position, structure.facts)


def scale_by_structure(rule: Any, structure: Structure | None = None) -> optax.GradientTransformation:
  """Multiplies every leaf's update by a scale that is constant in time and depends on the leaf's place in the network.

      update ← S · update

  Args:
    rule: `Additive`, `Multiplicative`, `ByDepth`, a product of rules, any object with their method `scales(structure)`;
      or the scales themselves, as a tree like the parameters of numbers or of arrays that broadcast against the leaf.
    structure: The facts; by default `structure_from_params` of the updates. Under `optax.masked` or `optax.partition`
      that sees the visible leaves alone, where an explicit structure sees all.

  Returns:
    A stateless transformation. The scales are computed while tracing and become constants of the program.

  Raises:
    TypeError: `rule` is neither.
    ValueError: at update, when the scales do not match the updates; the paths are named.

  Example:
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
    del params
    return optax.EmptyState()

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    seen = updates if params is None else params  # what has no gradient now is a layer all the same
    scales = _scales(rule, structure or structure_from_params(seen))
    check_paths(
      "The tree of scales" if structure is None else "The structure", scales, seen, more=structure is not None
    )

    def scale(path: str, update: Any) -> Any:
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

  A count of axes cannot tell them apart: in a scanned stack of layers a bias has two axes, in attention a kernel three.
  With a traced structure the leaf's use decides: it is shown if it is looked up, or if a product contracts its axes.
  The scales of a weight normalisation, which multiply a weight and are not contracted, stay hidden. Otherwise its name
  decides, by the conventions of `structure_from_params`, and with them every leaf of two or more axes is shown that is
  not called bias, scale or the like.

  Args:
    structure: The facts; by default those of `structure_from_params`.

  Returns:
    A function from a tree to a tree of booleans.

  Raises:
    TypeError: `structure` is neither a `Structure` nor `None`; in use, a step count instead of a tree.
    ValueError: in use, when the structure has nothing for a leaf; the path is named.

  Example:
    >>> layers = {"kernel": jnp.ones((12, 8, 8)), "bias": jnp.ones((12, 8)), "norm": {"scale": jnp.ones((12, 8))}}
    >>> decay_mask()(layers)
    {'bias': False, 'kernel': True, 'norm': {'scale': False}}
    >>> tx = optax.adamw(1e-3, mask=decay_mask())
  """
  check_structure(structure)

  def decays(facts: LeafFacts) -> bool:
    entered = {use.partition("@")[0] for use in facts.uses}
    if (
      facts.layer == facts.path or "lookup" in entered or ("product" in entered and facts.contracting_axes is not None)
    ):
      return True
    return not facts.uses and len(facts.shape) > 1 and _name(facts.path).startswith("embedding")

  def mask(tree: Any) -> Any:
    check_no_count(tree)
    shown = {facts.path: decays(facts) for facts in (structure or structure_from_params(tree)).leaves()}
    check_paths("The structure", shown, tree, more=structure is not None)
    return mask_paths(lambda path, leaf: shown[path], tree)

  return mask


def check_rule(rule: Any) -> None:
  """Raises `TypeError` unless `rule` is a rule or a tree of numbers."""
  leaves = jax.tree.leaves(rule)
  numbers = all(
    isinstance(leaf, float | int | np.ndarray | np.number | jax.Array) and not isinstance(leaf, bool) for leaf in leaves
  )
  if not _is_rule(rule) and not (leaves and numbers):
    raise TypeError(
      "rule must be Additive(), Multiplicative(), ByDepth(), a product of rules, or a tree of numbers like the "
      f"parameters, but was {rule!r}."
    )


def check_structure(structure: Any) -> None:
  """Raises `TypeError` unless it is a `Structure` or `None`."""
  if structure is not None and not isinstance(structure, Structure):
    raise TypeError(
      "structure must be a Structure, as structure_from_params or structure_from_model returns it, or None, but was a "
      f"{type(structure).__name__}."
    )


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
  """Whether an array of `shape` broadcasts to one of shape `to`."""
  return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape[::-1], to[::-1], strict=False))


def _is_rule(rule: Any) -> bool:
  return callable(getattr(rule, "scales", None)) and not isinstance(rule, type)


def _scales(rule: Any, structure: Structure) -> dict[str, Any]:
  return by_path(rule.scales(structure) if _is_rule(rule) else rule)


def _along_depth(scale: Any, facts: LeafFacts) -> np.ndarray:
  """A leaf's scale for each of the layers in it."""
  if np.ndim(scale):
    scale = np.mean(scale, axis=tuple(axis for axis in range(np.ndim(scale)) if axis not in facts.scanned_axes))
  return np.broadcast_to(scale, np.shape(facts.depth)).ravel()


def _brief_uses(uses: tuple[str, ...]) -> str:
  return " ".join(uses) if len(uses) < 4 else f"{uses[0]} {uses[1]} and {len(uses) - 2} more"


def _brief(value: Any) -> str:
  """A number to four digits; an array by its ends, in order from least to most unless it falls."""
  if isinstance(value, str) or np.ndim(value) == 0:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
  flat = np.ravel(value)
  flat = flat if np.all(np.diff(flat) <= 0) else np.sort(flat)
  return f"{_brief(flat[0])}..{_brief(flat[-1])}"
