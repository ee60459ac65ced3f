"""The coordinate check: whether activations keep their size as a network gets wider."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_ext._common.arguments import check_function, check_number, check_transformation, check_whole, shown
from optax_ext._common.dtypes import is_array, is_numeric
from optax_ext._common.paths import by_path, listed
from optax_ext._common.tables import aligned
from optax_ext._network.by_trace import structure_from_model
from optax_ext._network.structure import Structure

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")


@dataclasses.dataclass(frozen=True, eq=False)
class CoordinateCheck:
  """The outcome of `coordinate_check`. Printing it shows a table and the verdict.

  Attributes:
    widths: The widths, as they were given.
    sizes: Name of a product -> the mean |value| of its results, an array (widths, steps + 1): before training, and
      after each step. The name is its weight's path; products of activations alone are `"product 1"` and so on.
    tolerance: The largest slope that counts as flat.
  """

  widths: tuple[int, ...]
  sizes: Mapping[str, np.ndarray]
  tolerance: float

  def slopes(self, step: int = -1) -> dict[str, float]:
    """Name of a product -> the slope of log size against log width after a step; 0 where the size is 0."""
    width = np.log(self.widths)
    logs = {name: np.log(np.maximum(sizes[:, step], 1e-30)) for name, sizes in self.sizes.items()}
    return {name: float(np.polyfit(width, values, 1)[0]) for name, values in logs.items()}

  @property
  def growing(self) -> list[str]:
    """The products that grow with width, after the last step."""
    return [name for name, slope in self.slopes().items() if not slope <= self.tolerance]

  @property
  def shrinking(self) -> list[str]:
    """The products that shrink as the network gets wider, after the last step."""
    return [name for name, slope in self.slopes().items() if slope < -self.tolerance]

  def __str__(self) -> str:
    first, last = self.slopes(0), self.slopes()
    head = ["product", *(f"width {width}" for width in self.widths), "slope", "slope at first"]
    rows = [head]
    for name, sizes in self.sizes.items():
      rows.append([name, *(f"{size:.3g}" for size in sizes[:, -1]), f"{last[name]:+.2f}", f"{first[name]:+.2f}"])
    return "\n".join([*aligned(rows), self.verdict()])

  def verdict(self) -> str:
    """One sentence."""
    if broken := [name for name, sizes in self.sizes.items() if not np.all(np.isfinite(sizes))]:
      return f"{len(broken)} of {len(self.sizes)} products are not finite ({', '.join(broken[:3])}): take a lower rate."
    parts = [
      f"{len(names)} of {len(self.sizes)} products {verb} with width ({', '.join(names[:3])}{' …' * (len(names) > 3)})"
      for names, verb in ((self.growing, "grow"), (self.shrinking, "shrink"))
      if names
    ]
    return f"{' and '.join(parts)}." if parts else f"All {len(self.sizes)} products keep their size as width grows."

  def plot(self, path: Any) -> None:
    """Draws size against width, one line a product, one panel a step, into a file. Needs matplotlib."""
    from matplotlib.figure import Figure

    steps = next(iter(self.sizes.values())).shape[1]
    figure = Figure(figsize=(2.6 * steps, 3.4), layout="constrained")
    panels = figure.subplots(1, steps, sharex=True, sharey=True, squeeze=False)[0]
    for step, panel in enumerate(panels):
      for name, sizes in self.sizes.items():
        panel.plot(self.widths, sizes[:, step], marker="o", markersize=3, label=name)
      panel.set_xscale("log", base=2)
      panel.set_yscale("log")
      panel.set_title(f"after step {step}" if step else "before training")
      panel.set_xlabel("width")
      panel.grid(alpha=0.3)
    panels[0].set_ylabel("mean |value| of a product")
    if len(self.sizes) <= 16:
      figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=150)


def coordinate_check(
  build: Callable[..., tuple[Callable[..., Any], Any]],
  widths: Sequence[int],
  optimizer: optax.GradientTransformation | Callable[[Structure], optax.GradientTransformation],
  batch: Sequence[Any],
  steps: int = 4,
  *,
  tolerance: float = 0.1,
  seeds: int | None = None,
) -> CoordinateCheck:
  """Trains a network for a few steps at several widths, and compares the sizes of its activations.

  In a right parametrisation no activation grows with width at the same learning rate. Where an activation grows, the
  best learning rate falls as the network gets wider. The check needs no hooks in the model: it runs the model's traced
  computation and takes the mean |value| of each product's result, also inside scans. It does not look into `cond` and
  `while_loop`.

  Args:
    build: `build(width)` returns `(loss, params)`: a function `loss(params, *batch)` that returns a scalar, and new
      parameters.
    widths: At least two, in rising order.
    optimizer: A transformation for all widths; or a function of the structure at each width that returns one:
      `lambda structure: caadam(1e-2, rule=MaximalUpdate(base), structure=structure)`.
    batch: What `loss` takes after the parameters. The check trains and measures on this batch.
    steps: The number of training steps.
    tolerance: The largest |slope| that counts as flat.
    seeds: With a number, `build(width, seed)` is called for that many seeds from 0 on, and sizes are their means: one
      seed's slopes scatter by a few hundredths, more where narrow widths are among them.

  Returns:
    A `CoordinateCheck`, which can be printed and plotted.

  Raises:
    TypeError, ValueError: an argument is not as above; the products at two widths differ.

  Example:
    >>> import jax.numpy as jnp
    >>> from optax_ext import MaximalUpdate, caadam, rescale_init, structure_from_model
    >>> def loss(p, x, y):
    ...   return jnp.mean((jnp.tanh(jnp.tanh(x @ p["in"]) @ p["hidden"]) @ p["out"] - y) ** 2)
    >>> def new(width):
    ...   sizes = {"in": (8, width), "hidden": (width, width), "out": (width, 2)}
    ...   keys = jax.random.split(jax.random.key(0), 3)
    ...   return {n: jax.random.normal(k, s) / s[0] ** 0.5 for k, (n, s) in zip(keys, sizes.items())}
    >>> x, y = jax.random.normal(jax.random.key(1), (16, 8)), jnp.ones((16, 2))
    >>> base = structure_from_model(loss, new(32), x, y)
    >>> widths, standard = [32, 64, 128, 256], lambda width: (loss, new(width))
    >>> print(coordinate_check(standard, widths, optax.adam(0.02), (x, y)).verdict())
    2 of 3 products grow with width (hidden, out).
    >>> def build(width):
    ...   return loss, rescale_init(new(width), structure_from_model(loss, new(width), x, y), base)
    >>> transferred = lambda structure: caadam(0.02, rule=MaximalUpdate(base), structure=structure)
    >>> print(coordinate_check(build, widths, transferred, (x, y)).verdict())
    All 3 products keep their size as width grows.

  References:
    Yang et al., `Tensor Programs V <https://arxiv.org/abs/2203.03466>`_, 2022, Appendix D.1
  """
  if not isinstance(widths, Sequence | np.ndarray) or not all(isinstance(n, int | np.integer) for n in widths):
    raise TypeError(f"widths must be a list of whole numbers, such as [64, 128, 256], but was {shown(widths)}.")
  if len(widths) < 2 or any(after <= before for before, after in itertools.pairwise(widths)):
    raise ValueError(f"widths must be two or more, in rising order, but were {list(widths)}.")
  if not (callable(optimizer) or isinstance(optimizer, optax.GradientTransformation)):
    raise TypeError(
      "optimizer must be an optax transformation, or a function of a structure that returns one, but was "
      f"{optimizer!r}."
    )
  check_whole("steps", steps)
  if seeds is not None:
    check_whole("seeds", seeds)
  check_number("tolerance", tolerance, "[0, inf)")
  check_function("build", build, "lambda width: (loss, params)", *(["width"] if seeds is None else ["width", "seed"]))
  arrays = _arrays(batch)
  found = [_sizes(_built(build, width, seeds), optimizer, arrays, steps) for width in widths]
  for width, sizes in zip(widths, found, strict=True):
    if sizes.keys() != found[0].keys():
      raise ValueError(
        f"The model of width {width} has the products {', '.join(sizes)}, that of width {widths[0]} "
        f"{', '.join(found[0])}: change nothing but the width."
      )
  return CoordinateCheck(tuple(widths), {name: np.stack([of[name] for of in found]) for name in found[0]}, tolerance)


def _built(build: Any, width: int, seeds: int | None) -> list[tuple[Any, Any]]:
  """The network of each seed."""
  return [_checked(build(width))] if seeds is None else [_checked(build(width, seed)) for seed in range(seeds)]


def _checked(made: Any) -> tuple[Any, Any]:
  if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0])):
    raise TypeError(f"build(width) must return a function and its parameters, (loss, params), but returned {made!r}.")
  if odd := [path for path, leaf in by_path(made[1]).items() if not is_numeric(leaf)]:
    raise TypeError(f"The params of build(width) must be arrays, but {listed(odd)} are none: filter them out.")
  return made


def _arrays(batch: Any) -> tuple[Any, ...]:
  """The batch, which the loss takes as arrays alone."""
  if not isinstance(batch, tuple | list):
    raise TypeError(f"batch must be a tuple of what loss takes after the parameters, but was a {type(batch).__name__}.")
  if odd := [leaf for leaf in jax.tree.leaves(batch) if not is_numeric(leaf) or isinstance(leaf, bool)]:
    raise TypeError(f"batch must hold arrays and numbers, but has {odd[0]!r}: close over it in loss.")
  return tuple(batch)


def _sizes(
  built: Sequence[tuple[Callable[..., Any], Any]], optimizer: Any, batch: tuple[Any, ...], steps: int
) -> dict[str, np.ndarray]:
  """Name of a product -> its sizes before training and after each step, means over the networks of one width."""
  from optax_ext._network.jaxpr.model import read_products
  from optax_ext._network.jaxpr.record import mean_sizes
  from optax_ext._network.jaxpr.versions import program_of

  tx, (loss, params) = optimizer, built[0]
  if not isinstance(optimizer, optax.GradientTransformation):
    tx = optimizer(structure_from_model(loss, params, *batch))
    check_transformation("What optimizer(structure) returns", tx)
  paths = [path for path, leaf in by_path(params).items() if is_array(leaf)]
  closed, products = read_products(loss, params, batch, paths)
  program = program_of(closed)
  names = _names(program, products)
  if not names:
    raise ValueError("loss has no product outside of cond and while_loop: there is nothing to measure.")

  @jax.jit
  def measured(params: Any, batch: Any) -> jax.Array:
    sizes = mean_sizes(program, jax.tree.leaves((params, batch)), names)
    return jnp.stack([sizes[place] for place in names])

  @jax.jit
  def moved(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
    updates, state = tx.update(jax.grad(loss)(params, *batch), state, params)
    return optax.apply_updates(params, updates), state

  def trained(params: Any) -> np.ndarray:
    state, found = tx.init(params), [measured(params, batch)]
    for _ in range(steps):
      params, state = moved(params, state, batch)
      found.append(measured(params, batch))
    return np.stack(found, axis=1)

  return dict(zip(names.values(), np.mean([trained(params) for _, params in built], axis=0), strict=True))


def _names(program: Any, products: Mapping[Any, list[str]]) -> dict[Any, str]:
  """Place of a product -> its name, in the order of the program, each name once."""
  from optax_ext._network.jaxpr.record import equations

  names, times, others = {}, dict[str, int](), 0
  for place, eqn in equations(program):
    if place in products:
      name = " + ".join(sorted(products[place]))
      times[name] = times.get(name, 0) + 1
      names[place] = name if times[name] == 1 else f"{name}, use {times[name]}"
    elif eqn.primitive.name in PRODUCTS:
      others += 1
      names[place] = f"product {others}"
  return names
