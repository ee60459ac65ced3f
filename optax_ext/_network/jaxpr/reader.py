"""Reads from a model's computation, its jaxpr, how each parameter enters it. Nothing else here touches a jaxpr.

The program is run forwards on descriptions of values instead of numbers. A value depends on an input, and then its
description says after how many products; or on parameters alone, and then it says where their axes are; or on neither.
A *product* (`dot_general`, `ragged_dot_general`, `conv_general_dilated`) of the first two kinds is a layer.

Inside a loop, depths and positions are arrays with one axis for each enclosing loop, so that the body is read once for
all iterations, and a few times before that to find what it does to the values that it carries.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from optax_ext._common.primitives import ELEMENTWISE, RANDOM, TRANSPARENT, is_literal
from optax_ext._network.jaxpr import layouts
from optax_ext._network.jaxpr.domain import (
  CONSTANT,
  UNIFORM,
  Learned,
  Source,
  Value,
  aligned,
  as_unreadable,
  carried_out,
  constant_rows,
  deepest,
  entered,
  for_one_more_loop,
  iterate,
  latest,
  left,
  moved,
  only_where,
  settled,
  simplest,
  stacked_rows,
  unprobed,
)
from optax_ext._network.jaxpr.integers import INTEGERS
from optax_ext._network.jaxpr.layouts import Dim, Factor, Layout, Unreadable
from optax_ext._network.jaxpr.summarize import NEVER, Axis, Findings, Node, Use, summarize
from optax_ext._network.jaxpr.versions import Program, called, program_of, scan


def read_model(
  apply_fn: Callable[..., Any], params: Any, inputs: Sequence[Any], paths: Sequence[str]
) -> tuple[list[Findings], int]:
  """The findings about each array in `params`, in order, and the number of layers along the deepest path.

  Raises:
    ValueError: `apply_fn` computes gradients.
  """
  closed, shapes = _trace(apply_fn, params, inputs)
  reader = Reader()
  arguments = [Value(pieces=((leaf, layouts.identity(shape)),)) for leaf, shape in enumerate(shapes)]
  arguments = [CONSTANT if _is_key(var) else value for value, var in zip(arguments, closed.jaxpr.invars, strict=False)]
  arguments += [CONSTANT if _is_key(var) else Value(depth=0) for var in closed.jaxpr.invars[len(shapes) :]]
  reader.read(program_of(closed), arguments)
  last = max((int(np.max(node.depth)) for node in reader.nodes), default=-1)
  return summarize(paths, shapes, reader.uses), last + 1


def _trace(apply_fn: Callable[..., Any], params: Any, inputs: Sequence[Any]) -> tuple[Any, list[tuple[int, ...]]]:
  """The jaxpr of `apply_fn`, whose first arguments are the arrays in `params`, and their shapes.

  Whatever is no array or number (a flag, a name, a function) stays as it is. So do integers where the program will not
  have them traced: they are sizes then.
  """
  leaves, treedef = jax.tree.flatten((params, tuple(inputs)))
  mine = len(jax.tree.leaves(params))

  def attempt(integers: bool) -> tuple[Any, list[int]]:
    traced = [i for i, leaf in enumerate(leaves) if is_array(leaf) or (i >= mine and _is_number(leaf, integers))]

    def flat(*arrays: Any) -> Any:
      full = list(leaves)
      for i, array in zip(traced, arrays, strict=True):
        full[i] = array
      args = jax.tree.unflatten(treedef, full)
      out = apply_fn(args[0], *args[1])
      _check_no_gradient(out, args[0])
      return [leaf for leaf in jax.tree.leaves(out) if is_array(leaf)]

    return jax.make_jaxpr(flat)(*[leaves[i] for i in traced]), traced

  try:
    closed, traced = attempt(integers=True)
  except (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError):
    if not any(_is_number(leaf, True) and not _is_number(leaf, False) for leaf in leaves[mine:]):
      raise
    closed, traced = attempt(integers=False)
  return closed, [tuple(leaves[i].shape) for i in traced if i < mine]


def is_array(leaf: Any) -> bool:
  """Whether a leaf is an array, or the description of one."""
  return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _is_number(leaf: Any, integers: bool) -> bool:
  return isinstance(leaf, float | complex) or (integers and isinstance(leaf, int) and not isinstance(leaf, bool))


def _is_integer(dtype: Any) -> bool:
  return jax.numpy.issubdtype(dtype, np.integer) or jax.numpy.issubdtype(dtype, np.bool_)


def _is_key(var: Any) -> bool:
  return jax.numpy.issubdtype(var.aval.dtype, jax.dtypes.prng_key)


def _check_no_gradient(out: Any, params: Any) -> None:
  """Raises if part of the output is a tree like the parameters: a gradient, or updated parameters."""
  structure, shapes = jax.tree.structure(params), [np.shape(leaf) for leaf in jax.tree.leaves(params) if is_array(leaf)]
  if len(shapes) < 2:
    return
  alike = lambda node: jax.tree.structure(node) == structure
  for node in jax.tree.leaves(out, is_leaf=alike):
    if alike(node) and [np.shape(leaf) for leaf in jax.tree.leaves(node) if is_array(leaf)] == shapes:
      raise ValueError(
        "apply_fn must compute the model's output or its loss, but it returns a tree like the parameters, as a gradient"
        " or a training step does; the backward pass has no layers of its own, so give the forward function."
      )


class Reader:
  """Runs a jaxpr on descriptions of values and notes the uses of parameters."""

  def __init__(self) -> None:
    self.uses: list[Use] = []
    self.nodes: list[Node] = []
    self.level = 0  # number of enclosing loops
    self.order = 0

  def read(self, program: Program, args: Sequence[Value]) -> list[Value]:
    """The descriptions of a program's results."""
    jaxpr, consts = program
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(self.constant, consts), *args], strict=True))
    for eqn in jaxpr.eqns:
      ins = [self.constant(var.val) if is_literal(var) else env[var] for var in eqn.invars]
      self.order += 1
      env.update(zip(eqn.outvars, self.equation(eqn, ins), strict=True))
    return [self.constant(var.val) if is_literal(var) else env[var] for var in jaxpr.outvars]

  def constant(self, value: Any) -> Value:
    """Of a constant of the program; small integers are read."""
    if not is_array(value):
      value = np.asarray(value)
    uniform = value.ndim == 0
    if value.size > _MANY or not _is_integer(value.dtype):
      return UNIFORM if uniform else CONSTANT
    return self.known(np.asarray(value), uniform)

  def known(self, array: np.ndarray, uniform: bool = False) -> Value:
    """Of numbers that are the same in all iterations."""
    return Value(known=array.reshape((1,) * self.level + array.shape), uniform=uniform)

  def equation(self, eqn: Any, ins: list[Value]) -> Sequence[Value]:
    """The descriptions of an equation's results."""
    name, level = eqn.primitive.name, self.level
    try:
      if name in _HANDLERS:
        return _HANDLERS[name](self, eqn, ins)
      if name in RANDOM:
        return [CONSTANT] * len(eqn.outvars)  # noise is no input
      if name not in ELEMENTWISE and (program := called(eqn)) is not None:
        return self.read(program, ins)
      if not any(value.is_active or value.pieces for value in ins):
        return self.compute(eqn, ins)
      if name in _MOVES:
        return [self.move(ins[0], lambda layout: _MOVES[name](layout, eqn.params, eqn), name.startswith("reduce_"))]
      if name in ELEMENTWISE:
        return self.elementwise(eqn, ins)
    except Unreadable as why:
      self.level = level
      return self.unknown(eqn, ins, str(why))
    except Exception as error:
      if not safety_net:
        raise
      self.level = level
      return self.unknown(eqn, ins, f"it enters {name} in a form that is not read ({type(error).__name__}: {error})")
    return self.unknown(eqn, ins, f"it enters {name}, which cannot be read")

  # Values that depend on nothing

  def compute(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """Does arithmetic on small integers (loop counters, positions), which decides what is indexed."""
    out = eqn.outvars[0].aval
    uniform = not getattr(out, "shape", ()) or (
      bool(ins) and all(value.uniform for value in ins) and len(eqn.outvars) == 1
    )
    arrays = [value.known for value in ins]
    compute = INTEGERS.get(eqn.primitive.name)
    if compute is None or any(array is None for array in arrays) or math.prod(out.shape) > _MANY:
      return [UNIFORM if uniform else CONSTANT] * len(eqn.outvars)
    if not _is_integer(out.dtype):
      return [UNIFORM if uniform else CONSTANT]
    rank = max([array.ndim for array in arrays if array is not None], default=0)
    loops = self.level
    arrays = [a.reshape(a.shape[:loops] + (1,) * (rank - a.ndim) + a.shape[loops:]) for a in arrays if a is not None]
    return [Value(known=np.asarray(compute(eqn.params, loops, *arrays)), uniform=uniform)]

  # Uses

  def note(self, kind: str, value: Value, depth: Any, **more: Any) -> None:
    """Notes a use of every parameter that `value` is computed from."""
    for leaf, layout in value.pieces:
      self.note_leaf(kind, leaf, layout, depth, **more)

  def note_leaf(self, kind: str, leaf: int, layout: Layout, depth: Any, **more: Any) -> Use:
    """Notes one use; arrays get a last axis for the loops that are left later."""
    depth, layout = for_one_more_loop(np.maximum(depth, 0)), layout.per_loop(for_one_more_loop)
    use = Use(leaf, kind, self.order, depth, layout, **more)
    self.uses.append(use)
    return use

  def unknown(self, eqn: Any, ins: list[Value], why: str) -> list[Value]:
    """Whatever is not understood: its parameters are said to be unseen, once they meet an input."""
    depth = deepest(ins)
    if depth is None:
      pieces = layouts.merge(*([(leaf, Layout((), unreadable=why))] for value in ins for leaf, _ in value.pieces))
      return [Value(pieces=pieces)] * len(eqn.outvars)
    if eqn.outvars:
      for value in ins:
        self.note("unseen", value, depth, reason=why)
    return [Value(depth)] * len(eqn.outvars)

  def move(self, value: Value, change: Callable[[Layout], Layout | None], lossy: bool = False) -> Value:
    """A value whose dimensions change and whose content does not; `lossy` if sums are taken."""
    pieces = []
    for leaf, layout in value.pieces:
      try:
        new = layout if layout.unreadable else change(layout)
      except Unreadable as why:
        new = Layout((), unreadable=str(why))
      if new is not None:
        pieces.append((leaf, new))
    source = moved(value.source, change, lossy)
    learned = value.learned and not lossy and value.learned.moved(change, lambda read: self.move(read, change))
    return Value(value.depth, tuple(pieces), None, False, source, learned or None)

  def elementwise(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """Arithmetic that leaves every position where it is."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    if len(eqn.outvars) > 1:  # optimization_barrier, device_put: each operand by itself
      return (
        list(ins) if len(ins) == len(eqn.outvars) else self.unknown(eqn, ins, f"it enters {name}, which cannot be read")
      )
    ins = [self.widened(value, var.aval.shape, shape) for value, var in zip(ins, eqn.invars, strict=True)]
    if name in ("add", "add_any"):
      ins = self.with_bias(ins)
    depth = deepest(ins)
    if depth is None:
      learned = ins[0].learned if len(ins) == 1 and name in TRANSPARENT else None
      return [Value(pieces=layouts.merge(*(value.pieces for value in ins if value.pieces)), learned=learned)]
    active = [value for value in ins if value.is_active]
    source = latest(active)
    for value in ins:
      self.note_elementwise(name, value, source, depth)
    if source is not None and source.direct and not _keeps_bias(name, ins):
      source = dataclasses.replace(source, direct=False)
    return [Value(depth, source=source)]

  def widened(self, value: Value, old: Sequence[int], new: Sequence[int]) -> Value:
    """An operand of elementwise arithmetic with the shape of its result."""
    if tuple(old) == tuple(new) or not (value.pieces or value.source):
      return value
    if not old:  # a number has no axes, wherever it comes from
      value = dataclasses.replace(
        value, pieces=tuple((leaf, Layout((), present=piece.present)) for leaf, piece in value.pieces)
      )
    where = range(len(new) - len(old), len(new))
    return self.move(value, lambda layout: layouts.broadcast(layout, new, where))

  def with_bias(self, ins: list[Value]) -> list[Value]:
    """The terms of a sum: a product of parameters to which a bias is added is the layer of a learned input."""
    for product, bias in (ins, ins[::-1]):
      if product.learned and bias.pieces and not any(layout.unreadable for _, layout in bias.pieces):
        weights = {product.learned.weight_of(layout) for _, layout in bias.pieces}
        if len(weights) == 1 and (weight := weights.pop()) is not None:
          return [product.learned.read(weight), bias]
    return ins

  def note_elementwise(self, name: str, value: Value, source: Source | None, depth: Any) -> None:
    """A parameter meets a value after `depth` products: it follows the last of them."""
    for leaf, layout in value.pieces:
      axes = {} if source is None else aligned(layout, source)
      is_bias = name in ("add", "add_any") and source is not None and source.direct and bool(source.node.members)
      node = None if source is None else source.node
      window = ((_present(layout),), ())
      kind = "bias" if is_bias else "elementwise"
      self.note_leaf(kind, leaf, layout, np.subtract(depth, 1), node=node, axes=axes, window=window)

  def placed(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """Parameters put beside, or into, a value that depends on an input: a class token, a scatter."""
    depth = deepest(ins)
    for value in ins:
      self.note("elementwise", value, np.subtract(depth, 1))
    return [Value(depth)] * len(eqn.outvars)

  # Products

  def product(self, eqn: Any, ins: list[Value], result: Sequence[tuple[int | None, int | None]],
              roles: Sequence[dict[int, str]], groups: int, macs: int) -> list[Value]:  # fmt: skip
    """A product of two operands.

    Args:
      eqn: The equation.
      ins: Its operands' descriptions.
      result: For each dimension of the result, the dimension of each operand that it comes from.
      roles: For each operand, what is done with its dimensions: `"sum"`, `"batch"`, `"part"` (summed, but not as a
        whole); others are of the output.
      groups: Into how many groups a convolution divides the output dimension of its second operand.
      macs: Multiply-accumulates.
    """
    depth, mine = deepest(ins[:2]), [0, 1]
    if depth is None:  # of parameters alone
      pieces = [
        self.move(value, _product_of_params(side, result, roles[side], eqn)) for side, value in enumerate(ins[:2])
      ]
      merged = layouts.merge(*(value.pieces for value in pieces if value.pieces))
      if not all(value.pieces for value in ins[:2]):
        return [Value(pieces=merged)]

      def as_layer(weight: int) -> Value:
        self.note("elementwise", ins[1 - weight], -1)
        sides = [value if side == weight else Value(0) for side, value in enumerate(ins[:2])]
        [read] = self.product(eqn, sides, result, roles, groups, macs)
        return read

      return [Value(pieces=merged, learned=Learned(layouts.identity(eqn.outvars[0].aval.shape), result, as_layer))]
    if not any(value.pieces for value in ins[:2]):
      sources = [
        moved(ins[side].source, _product_of_params(side, result, {}, eqn), True) if ins[side].is_active else None
        for side in mine
      ]
      return [
        Value(
          depth,
          source=latest(
            [Value(value.depth, source=s) for value, s in zip(ins, sources, strict=False) if value.is_active]
          ),
        )
      ]
    side = 0 if ins[0].pieces else 1
    weight, active, roles_ = ins[side], ins[1 - side], roles[side]
    node = Node(self.order, np.maximum(depth, 0), [])
    dims = []
    shape = eqn.outvars[0].aval.shape
    for size, pair in zip(shape, result, strict=True):
      axes = self.result_axes(size, pair[side], pair[1 - side], weight, active, groups if side else 1)
      dims.append(Dim(tuple(Factor(len(node.axes) + i, 1, n) for i, (n, _) in enumerate(axes)), 0, size))
      node.axes += [axis for _, axis in axes]
    for leaf, layout in weight.pieces:
      self.note_product(leaf, layout, depth, node, dims, result, side, roles_, groups, macs)
    self.nodes.append(node)
    return [Value(np.add(depth, 1), source=Source(node, Layout(tuple(dims)), True))]

  def result_axes(self, size: int, from_weight: int | None, from_active: int | None, weight: Value, active: Value,
                  groups: int) -> list[tuple[int, Axis]]:  # fmt: skip
    """The axes that one dimension of a product's result consists of, with their sizes."""
    before = None
    if from_active is not None and active.source is not None:
      before = active.source.layout.dims[from_active]
    if from_weight is None:
      if before is None or not before.is_full:
        return [(size, Axis("place"))]
      assert active.source is not None
      return [
        (f.size, Axis("place", None if f.axis is None else active.source.node.axes[f.axis])) for f in before.factors
      ]
    readable = [layout for _, layout in weight.pieces if not layout.unreadable and layout.dims[from_weight].is_full]
    factors = next((layout.dims[from_weight].factors for layout in readable if layout.dims[from_weight].axes), ())
    if from_active is not None or len(factors) < 2:
      kinds = ["copy" if from_active is not None and groups == 1 else "unit"] * max(1, len(factors))
    else:
      kinds = ["unit"] * len(factors)
    sizes = [f.size for f in factors] or [size]
    if groups > 1:  # vmap puts its copies first into the groups of a convolution
      copies = _copies(readable[0], factors, groups) if readable else 0
      kinds = ["copy" if i < copies else "unit" for i in range(len(sizes))]
    if before is not None and active.source is not None and "copy" in kinds:
      for f, n, kind in zip(before.factors, sizes, kinds, strict=False):
        if f.axis is not None and kind == "copy" and f.size == n:
          active.source.node.axes[f.axis].mark()
    return [(n, Axis(kind)) for n, kind in zip(sizes, kinds, strict=True)]

  def note_product(self, leaf: int, layout: Layout, depth: Any, node: Node, dims: list[Dim], result: Any, side: int,
                   roles: dict[int, str], groups: int, macs: int) -> None:  # fmt: skip
    """Notes the use of one leaf as (part of) the weight of a product."""
    if layout.unreadable:
      self.note_leaf("unseen", leaf, layout, depth, node=node, reason=layout.unreadable)
      return
    sums, batch, axes, share = [], [], {}, 1.0
    for dim, old in enumerate(layout.dims):
      role = roles.get(dim)
      if role in ("sum", "part"):
        sums += [f if role == "sum" else f._replace(size=0) for f in old.factors if f.axis is not None]
      elif role == "batch":
        batch += [f for f in old.factors if f.axis is not None]
        share *= old.extent / old.size
    for new, pair in enumerate(result):
      if (dim := pair[side]) is None or roles.get(dim):
        continue
      factors = layout.dims[dim].factors
      copies = _copies(layout, factors, groups) if side else 0
      batch += [f for f in factors[:copies] if f.axis is not None]
      if len(factors) == len(dims[new].factors):
        for f, along in zip(factors[copies:], dims[new].factors[copies:], strict=True):
          if f.axis is not None and along.axis is not None:
            axes.setdefault(f.axis, []).append(node.axes[along.axis])
    windows = [(dim.start, dim.extent) for dim in layout.dims]
    window = (
      (_present(layout), *(w for dim, w in enumerate(windows) if roles.get(dim) == "batch")),
      tuple(w for dim, w in enumerate(windows) if roles.get(dim) != "batch"),
    )
    node.members.append(
      self.note_leaf(
        "product", leaf, layout, depth, node=node, sums=sums, batch=batch, axes=axes, window=window, macs=macs * share
      )
    )

  def dot_general(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """Matrix products and einsums."""
    (sums, batch), ranks, shapes = (
      eqn.params["dimension_numbers"],
      [v.aval.ndim for v in eqn.invars],
      [v.aval.shape for v in eqn.invars],
    )
    free = [[d for d in range(ranks[i]) if d not in sums[i] and d not in batch[i]] for i in (0, 1)]
    result = [*zip(*batch, strict=True), *((d, None) for d in free[0]), *((None, d) for d in free[1])]
    roles = [dict.fromkeys(sums[i], "sum") | dict.fromkeys(batch[i], "batch") for i in (0, 1)]
    macs = math.prod(eqn.outvars[0].aval.shape) * math.prod(shapes[0][d] for d in sums[0])
    return self.product(eqn, ins, result, roles, 1, macs)

  def ragged_dot_general(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """Rows of the first operand, in groups, times each group's own matrix."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (sums, batch), group = numbers.dot_dimension_numbers, tuple(numbers.rhs_group_dimensions)
    if not group:
      raise Unreadable("it enters ragged_dot_general in a form that is not read")
    shapes = [v.aval.shape for v in eqn.invars[:2]]
    free = [
      [d for d in range(len(shapes[i])) if d not in sums[i] and d not in batch[i] and (i == 0 or d not in group)]
      for i in (0, 1)
    ]
    result = [*zip(*batch, strict=True), *((d, None) for d in free[0]), *((None, d) for d in free[1])]
    roles = [dict.fromkeys(sums[i], "sum") | dict.fromkeys(batch[i], "batch") for i in (0, 1)]
    roles[1] |= dict.fromkeys(group, "batch")
    macs = math.prod(eqn.outvars[0].aval.shape) * math.prod(shapes[0][d] for d in sums[0])
    return self.product(eqn, ins, result, roles, 1, macs)

  def conv_general_dilated(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """Convolutions; the second operand is the kernel."""
    numbers, params, (x, kernel) = eqn.params["dimension_numbers"], eqn.params, [v.aval.shape for v in eqn.invars]
    (batch, channels, *places), (out, into, *window) = numbers.lhs_spec, numbers.rhs_spec
    groups = max(params["feature_group_count"], params["batch_group_count"])
    pairs = {numbers.out_spec[0]: (batch, None), numbers.out_spec[1]: (channels if groups > 1 else None, out)}
    pairs |= {new: (old, None) for new, old in zip(numbers.out_spec[2:], places, strict=True)}
    roles = [dict.fromkeys([channels, *places], "part"), dict.fromkeys([into, *window], "sum")]
    stretched = math.prod(params["lhs_dilation"]) > 1  # transposed: every place of the input meets the whole kernel
    grid = x if stretched else eqn.outvars[0].aval.shape
    where = numbers.lhs_spec if stretched else numbers.out_spec
    macs = math.prod(kernel) * math.prod(n for d, n in enumerate(grid) if d != where[1])
    return self.product(eqn, ins, [pairs[d] for d in range(len(pairs))], roles, groups, macs)

  # Indexing

  def concatenate(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """Side by side; `stack` along a new dimension."""
    out, name = eqn.outvars[0].aval.shape, eqn.primitive.name
    if deepest(ins) is not None:
      return self.placed(eqn, ins)
    if not any(value.pieces for value in ins):
      return self.compute(eqn, ins)
    dim, start, pieces = eqn.params["dimension" if name == "concatenate" else "axis"], 0, []
    for value, var in zip(ins, eqn.invars, strict=True):
      low, shape = [0] * len(out), list(var.aval.shape)
      low[dim] = start
      if name == "stack":
        shape.insert(dim, 1)
      where = [d for d in range(len(out)) if name == "concatenate" or d != dim]
      widened = lambda layout, shape=shape, where=where, low=low: layouts.pad(
        layouts.broadcast(layout, shape, where), low, out
      )
      pieces.append(self.move(value, widened).pieces)
      start += shape[dim]
    return [Value(pieces=layouts.merge(*(some for some in pieces if some)))]

  def split(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """The opposite."""
    dim, start, results = eqn.params["axis"], 0, []
    for var in eqn.outvars:
      starts = [0] * len(var.aval.shape)
      starts[dim] = start
      cut = lambda layout, starts=starts, shape=var.aval.shape: layouts.slice_(layout, starts, shape, [1] * len(starts))
      results.append(self.move(ins[0], cut))
      start += var.aval.shape[dim]
    return results

  def unstack(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """The rows along an axis, each without the axis; rows of positions are read."""
    [value], axis = ins, eqn.params["axis"]
    if value.known is not None:
      rows = np.moveaxis(value.known, self.level + axis, 0)
      return [Value(known=row, uniform=row.ndim == self.level) for row in rows]

    row = lambda i: lambda layout: layouts.row(layout, axis, i)
    return [self.move(value, row(i)) for i in range(len(eqn.outvars))]

  def dynamic_slice(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """A part from computed positions on: one layer of many, or a lookup."""
    (value, *starts), sizes = ins, eqn.params["slice_sizes"]
    if not value.pieces and not value.is_active and value.known is None:
      return self.compute(eqn, ins) if deepest(ins) is None else [Value(deepest(ins))]
    whole = eqn.invars[0].aval.shape
    moving = [d for d in range(len(sizes)) if sizes[d] != whole[d]]
    depth = deepest([starts[d] for d in moving])
    if depth is not None:
      return self.lookup(value, moving, depth, eqn)
    positions = [
      0 if d not in moving else self.position(starts[d].known, whole[d] - sizes[d]) for d in range(len(sizes))
    ]
    if value.known is not None:
      return self.compute(eqn, ins)
    cut = lambda layout: layouts.slice_(layout, self.checked(positions), sizes, [1] * len(sizes))
    return [self.move(value, cut)]

  def position(self, known: np.ndarray | None, last: int) -> Any:
    """A position inside the array, as jax has it; `None` where it cannot be told."""
    return None if known is None else simplest(np.clip(known, 0, max(0, last)))

  def checked(self, positions: list[Any]) -> list[Any]:
    """The positions, all of them told."""
    if any(position is None for position in positions):
      raise Unreadable("it is indexed by a number that the program computes in a way that is not read")
    return positions

  def lookup(self, value: Value, dims: Sequence[int], depth: Any, eqn: Any, result: Sequence[int | None] = (),
             copies: Sequence[int] = ()) -> list[Value]:  # fmt: skip
    """Positions that depend on an input, along `dims`; dimension i of the result comes from `result[i]`."""
    out = eqn.outvars[0].aval.shape
    depth = np.maximum(depth, value.depth) if value.is_active else depth
    node = Node(
      self.order, depth, [Axis("unit" if result and result[i] is not None else "place") for i in range(len(out))]
    )
    for leaf, layout in value.pieces:
      batch = [f for dim in copies for f in layout.dims[dim].factors] if layout.dims else []
      sums = [f for dim in dims for f in layout.dims[dim].factors] if layout.dims else []
      axes: dict[int, list[Axis]] = {}
      for new, dim in enumerate(result):
        for f in layout.dims[dim].factors if dim is not None and layout.dims else ():
          if f.axis is not None:
            axes.setdefault(f.axis, []).append(node.axes[new])
      self.note_leaf("lookup", leaf, layout, np.subtract(depth, 1), node=node, sums=sums, batch=batch, axes=axes)
    return [Value(depth, source=Source(node, layouts.identity(out), False) if value.pieces and result else None)]

  def gather(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """Indexing with arrays: an embedding, or one layer of many."""
    value, index = ins
    numbers, sizes, out = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.outvars[0].aval.shape
    batched = tuple(getattr(numbers, "operand_batching_dims", ()))
    gone = {*numbers.collapsed_slice_dims, *batched}
    kept = [d for d in range(len(sizes)) if d not in gone]
    whole = eqn.invars[0].aval.shape
    if index.is_active or not value.pieces:
      depth = deepest(ins)
      if depth is None:
        return self.compute(eqn, ins)
      from_dims: list[int | None] = [None] * len(out)
      for new, d in zip(numbers.offset_dims, kept, strict=True):
        from_dims[new] = d
      return self.lookup(value, numbers.start_index_map, depth, eqn, from_dims, batched)
    positions: list[Any] = [0] * len(sizes)
    rank = eqn.invars[1].aval.ndim
    if rank == 1 and not batched:
      for i, d in enumerate(numbers.start_index_map):
        positions[d] = self.position(None if index.known is None else index.known[..., i], whole[d] - sizes[d])
      cut = lambda layout: layouts.slice_(layout, self.checked(positions), sizes, [1] * len(sizes))
      return [self.move(self.move(value, cut), lambda layout: layouts.drop(layout, tuple(gone)))]
    return [self.move(value, lambda layout: constant_rows(layout, index.known, numbers, sizes, out, rank, self.level))]

  def dynamic_update_slice(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """A part replaced."""
    target, update, *starts = ins
    if deepest(ins) is not None:
      return self.placed(eqn, ins)
    if not (target.pieces or update.pieces):
      return self.compute(eqn, ins)
    shapes = [v.aval.shape for v in eqn.invars[:2]]
    positions = [self.position(s.known, whole - part) for s, whole, part in zip(starts, *shapes, strict=True)]
    widened = lambda layout: layouts.pad(layout, [_fixed(at) for at in self.checked(positions)], shapes[0])
    pieces = [target.pieces, self.move(update, widened).pieces]
    return [Value(pieces=layouts.merge(*(some for some in pieces if some)))]

  def scatter(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """Positions replaced, or added to."""
    if deepest(ins) is None:
      if not any(value.pieces for value in ins):
        return self.compute(eqn, ins)
      raise Unreadable(f"it enters {eqn.primitive.name}, whose positions are not followed")
    return self.placed(eqn, ins)

  # Branches and loops

  def cond(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """Every branch is read, in those iterations where a counter chooses it if one does; the deepest counts."""
    which, args = ins[0], ins[1:]
    results = []
    for number, branch in enumerate(eqn.params["branches"]):
      taken = np.ones(1, bool) if which.known is None else np.equal(which.known, number)
      if taken.any():
        inside = args if taken.all() else [only_where(value, taken) for value in args]
        results.append(self.read(program_of(branch), inside))
    joined = [self.joined(values) for values in zip(*results, strict=True)]
    if not which.is_active:
      return joined
    for value in joined:
      self.note("lookup", value, np.subtract(which.depth, 1))
    return [
      Value(np.maximum(which.depth, value.depth) if value.is_active else which.depth, source=value.source)
      for value in joined
    ]

  def joined(self, values: Sequence[Value]) -> Value:
    """One of several values, no matter which."""
    depth = deepest(values)
    if depth is None:
      if all(value.known is not None and np.array_equal(value.known, values[0].known) for value in values):  # type: ignore
        return values[0]
      return Value(pieces=layouts.merge(*(value.pieces for value in values if value.pieces)))
    for value in values:
      self.note("elementwise", value, np.subtract(depth, 1))
    return Value(depth, source=latest([value for value in values if value.is_active]))

  def scan(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """A loop along the leading axis of its last operands."""
    loop, length = scan(eqn), eqn.params["length"]
    order = np.arange(length)[::-1] if eqn.params["reverse"] else np.arange(length)
    consts, init, rows = _parts(ins, loop.consts, loop.carried)
    index = order.reshape((1,) * self.level + (length,))
    self.level += 1
    rows = [self.row(entered(value, self.level), index) for value in rows]
    carry, outs = self.loop(loop.body, [entered(v, self.level) for v in consts], init, rows, length)
    stacked = [self.stack_rows(value, np.argsort(order), length) for value in outs]
    return carry + stacked

  def row(self, value: Value, index: np.ndarray) -> Value:
    """What an iteration sees of an array that is scanned over."""
    if value.known is not None:
      at = self.level - 1  # the loop's axis, of size 1 so far; the scanned axis follows it
      return Value(known=np.take(value.known[(slice(None),) * at + (0,)], index.ravel(), axis=at))
    here = lambda layout: layouts.drop(layouts.pick(layout, 0, index), (0,))
    out = self.move(dataclasses.replace(value, source=None), here)
    return dataclasses.replace(out, source=moved(value.source, lambda layout: layouts.drop(layout, (0,)), False))

  def stack_rows(self, value: Value, places: np.ndarray, length: int) -> Value:
    """What is left of a loop whose iterations each give a row: seen from outside, of a `value` from inside."""
    at = self.level
    if value.known is not None:
      shape = value.known.shape
      return Value(
        known=np.take(np.broadcast_to(value.known, (*shape[:at], length, *shape[at + 1 :])), places, axis=at)
      )
    rows = lambda layout: stacked_rows(layout, places, length, at)
    source = moved(value.source, lambda layout: layout.moved([layouts.filler(length), *layout.dims]), False)
    pieces = self.move(dataclasses.replace(value, source=None), rows).pieces
    return Value(left(value.depth, at), pieces, None, False, source)

  def loop(
    self, body: Program, consts: list[Value], init: list[Value], rows: list[Value], length: int
  ) -> tuple[list[Value], list[Value]]:
    """Reads the body of a loop, whose level is entered already and is left here.

    First only what the body does to what it carries: which of it depends on an input, or counts; and how much deeper it
    gets. Then the body itself. Returns what is carried out, from outside, and the rows, still from inside.
    """
    carry, start = [entered(value, self.level) for value in init], list(init)
    for _ in range(2 * len(carry) + 2):
      outs, gains, layered = self.rehearse(body, consts, carry, rows)
      after = [self.carried(old, new, length) for old, new in zip(carry, outs, strict=False)]
      if all(new is old for old, new in zip(carry, after, strict=True)):
        break
      carry = after
    else:
      carry = [
        value if value.is_active else Value(pieces=as_unreadable(value, "a loop changes its axes")) for value in carry
      ]
      outs, gains, layered = self.rehearse(body, consts, carry, rows)
    for old, new in zip(start, carry, strict=True):
      if new.is_active and old.pieces:  # a learned first state
        self.note("elementwise", entered(old, self.level), -1)
    moving = [i for i, value in enumerate(carry) if value.is_active]
    depths = [for_one_more_loop(start[i].depth) for i in moving]
    entering = deepest([*consts, *rows, *(entered(value, self.level) for value in start)])
    if layered and length:
      depths, final = iterate([-NEVER if d is None else d for d in depths], gains, length, self.level)
    else:  # over time: counts once
      depths, final = [settled(gains[k], k, entering) if d is None else d for k, d in enumerate(depths)], None
    for i, depth in zip(moving, depths, strict=True):
      carry[i] = Value(0 if depth is None else depth)
    before, self.uses = self.uses, []
    outs = self.read(body, [*consts, *carry, *rows])
    self.level -= 1
    self.uses = before + [use.leave_loop(length) for use in self.uses]
    result = [carried_out(value, self.level) for value in outs[: len(carry)]]
    if final is not None:
      result = [
        dataclasses.replace(v, depth=final[moving.index(i)]) if i in moving else v for i, v in enumerate(result)
      ]
    return result, outs[len(carry) :]

  def rehearse(self, body: Program, consts: list[Value], carry: list[Value], rows: list[Value]) -> Any:
    """Reads a body without noting its uses.

    Depths get one more axis, with an entry for each carried value alone and a last one for all others, so that a
    result's entries are the products on the longest paths from each: a matrix of the max-plus algebra.

    Returns:
      The results; for each that stays dependent on an input its row of the matrix; whether the loop indexes a weight.
    """
    saved, self.uses, nodes, order = self.uses, [], self.nodes, self.order
    self.nodes = []
    self.level += 1
    moving = [i for i, value in enumerate(carry) if value.is_active]
    probe = np.full((1,) * (self.level - 1) + (len(moving) + 1,), -NEVER)
    inner = [[entered(value, self.level) for value in some] for some in (consts, carry, rows)]
    for some in (inner[0], inner[2]):
      for i, value in enumerate(some):
        if value.is_active:
          depth = np.broadcast_to(value.depth, np.broadcast_shapes(np.shape(value.depth), probe.shape)).copy()
          depth[..., :-1] = -NEVER
          some[i] = dataclasses.replace(value, depth=depth)
    for column, i in enumerate(moving):
      depth = probe.copy()
      depth[..., column] = 0
      inner[1][i] = Value(depth)
    outs = self.read(body, inner[0] + inner[1] + inner[2])
    self.level -= 1
    # one level further in, the loop's own axis is the last but one, and the probe's the last
    layered = any(
      use.kind == "product" and dataclasses.replace(use, layout=use.layout.per_loop(unprobed)).is_indexed
      for use in self.uses
    )
    gains = [np.maximum(outs[i].depth if outs[i].is_active else -NEVER, probe) for i in moving]
    self.uses, self.nodes, self.order = saved, nodes, order
    return [carried_out(value, self.level) for value in outs], gains, layered

  def carried(self, old: Value, new: Value, length: int) -> Value:
    """What a carried value may be in any iteration, if it enters one as `old` and leaves it as `new`."""
    if old.is_active:
      return old
    if new.is_active:
      return Value(new.depth)
    if old.known is not None and new.known is not None:
      step = new.known - old.known if old.known.dtype != bool else np.not_equal(new.known, old.known)
      if not step.any():
        return old
      at, flat = self.level - 1, np.unique(step)
      if flat.size == 1 and step.dtype != bool:
        if old.known.shape[at] > 1 or length == 1:
          return old  # it was taken to count, and it does
        count = np.arange(length).reshape((1,) * at + (-1,) + (1,) * (old.known.ndim - at - 1))
        return Value(known=old.known + flat[0] * count)
    if old.known is not None:
      return Value(pieces=new.pieces)
    pieces = layouts.merge(old.pieces, new.pieces) if old.pieces or new.pieces else ()
    same = {(leaf, layout.key()) for leaf, layout in pieces} == {(leaf, layout.key()) for leaf, layout in old.pieces}
    return old if same else Value(pieces=pieces)

  def while_(self, eqn: Any, ins: list[Value]) -> list[Value]:
    """A loop that runs until its condition fails: it counts once, or as often as a counter tells."""
    p = eqn.params
    tests, rest = ins[: p["cond_nconsts"]], ins[p["cond_nconsts"] :]
    consts, init, _ = _parts(rest, p["body_nconsts"], len(rest) - p["body_nconsts"])
    length = self.trip_count(p, tests, consts, init)
    self.level += 1
    if length is None:  # what the loop counts is unknown too
      init = [Value(pieces=v.pieces) if not v.is_active else v for v in init]
    carry, _ = self.loop(program_of(p["body_jaxpr"]), [entered(v, self.level) for v in consts], init, [], length or 1)
    return carry

  def trip_count(self, p: Any, tests: list[Value], consts: list[Value], init: list[Value]) -> int | None:
    """How often the body of a `while` runs, if that depends on a counter alone."""
    self.level += 1
    carry = [entered(value, self.level) for value in init]
    body, test = program_of(p["body_jaxpr"]), program_of(p["cond_jaxpr"])
    outs, _, _ = self.rehearse(body, [entered(v, self.level) for v in consts], carry, [])
    carry = [self.carried(old, new, _MANY) for old, new in zip(carry, outs, strict=True)]
    [holds] = self.read(test, [*(entered(v, self.level) for v in tests), *carry])
    self.level -= 1
    if holds.known is None or holds.known.size != _MANY or holds.known.all():
      return None
    return int(np.argmin(holds.known.ravel()))


def _keeps_bias(name: str, ins: Sequence[Value]) -> bool:
  """Whether a parameter added after this operation is still the bias of the product before it.

  Statistics are subtracted and a norm's scale multiplied, so those end it; a constant number does not.
  """
  if name in ("mul", "div", "sub"):
    return sum(value.is_active for value in ins) == 1 and all(value.uniform or value.is_active for value in ins)
  return name in TRANSPARENT


def _product_of_params(
  side: int, result: Sequence[tuple[int | None, int | None]], roles: dict[int, str], eqn: Any
) -> Callable[[Layout], Layout]:
  """Where an operand's axes are in the result of a product that is no layer."""
  shape = eqn.outvars[0].aval.shape

  def change(layout: Layout) -> Layout:
    if "part" in roles.values():
      raise Unreadable("it is convolved with another parameter")
    dims = [
      layouts.filler(n) if (dim := pair[side]) is None else layout.dims[dim]
      for n, pair in zip(shape, result, strict=True)
    ]
    if any(dim.size != n for dim, n in zip(dims, shape, strict=True)):
      raise Unreadable("it is convolved with another parameter")
    inner = tuple(f for d in roles if roles[d] == "sum" for f in layout.dims[d].factors if f.axis is not None)
    return dataclasses.replace(layout.moved(dims), inner=layout.inner + inner)

  return change


def _present(layout: Layout) -> bytes | None:
  return None if layout.present is None else layout.present.tobytes()


def _copies(layout: Layout, factors: Sequence[Factor], groups: int) -> int:
  """How many of the leading factors of a grouped convolution's output are copies made by `vmap`.

  The copies' axis comes before the kernel's own, as that of a layer's channels does not.
  """
  count = 0
  own = min((axis for dim in layout.dims if dim.factors != factors for axis in dim.axes), default=0)
  for f in factors[:-1]:
    if groups > 1 and groups % f.size == 0 and f.axis is not None and f.axis < own:
      groups //= f.size
      count += 1
    else:
      break
  return count


def _fixed(position: Any) -> int:
  if np.ndim(position):
    raise Unreadable("a loop writes it to several places")
  return position


def _parts(values: list[Value], consts: int, carry: int) -> tuple[list[Value], list[Value], list[Value]]:
  return values[:consts], values[consts : consts + carry], values[consts + carry :]


def _slice(layout: Layout, p: Any, eqn: Any) -> Layout | None:
  return layouts.slice_(layout, p["start_indices"], eqn.outvars[0].aval.shape, p["strides"] or [1] * len(layout.dims))


def _pad(layout: Layout, p: Any, eqn: Any) -> Layout:
  if any(inside for _, _, inside in p["padding_config"]):
    raise Unreadable("it is padded between its entries")
  return layouts.pad(layout, [low for low, _, _ in p["padding_config"]], eqn.outvars[0].aval.shape)


def _reshape(layout: Layout, p: Any, eqn: Any) -> Layout:
  return layouts.reshape(
    layout if p.get("dimensions") is None else layouts.select(layout, p["dimensions"]), eqn.outvars[0].aval.shape
  )


safety_net = True  # a form of a primitive that other versions of jax bring must not stop a training; in tests it must
_MANY = 4096  # numbers that are read, and iterations that a counter is followed for


_MOVES: Mapping[str, Callable[[Layout, Any, Any], Layout | None]] = {
    "transpose": lambda layout, p, eqn: layouts.select(layout, p["permutation"]),
    "reshape": _reshape,
    "broadcast_in_dim": lambda layout, p, eqn: layouts.broadcast(layout, p["shape"], p["broadcast_dimensions"]),
    "squeeze": lambda layout, p, eqn: layouts.drop(layout, p["dimensions"]),
    "slice": _slice,
    "rev": lambda layout, p, eqn: layouts.reverse(layout, p["dimensions"]),
    "pad": _pad,
} | {
    f"reduce_{kind}": lambda layout, p, eqn: layouts.drop(layout, p["axes"])
    for kind in ("sum", "max", "min", "prod", "and", "or", "xor")
}  # fmt: skip


_HANDLERS: Mapping[str, Callable[[Reader, Any, list[Value]], Sequence[Value]]] = {
  "dot_general": Reader.dot_general,
  "ragged_dot_general": Reader.ragged_dot_general,
  "conv_general_dilated": Reader.conv_general_dilated,
  "concatenate": Reader.concatenate,
  "stack": Reader.concatenate,
  "split": Reader.split,
  "unstack": Reader.unstack,
  "dynamic_slice": Reader.dynamic_slice,
  "dynamic_update_slice": Reader.dynamic_update_slice,
  "gather": Reader.gather,
  "cond": Reader.cond,
  "scan": Reader.scan,
  "while": Reader.while_,
} | dict.fromkeys(
  ["scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-max", "scatter-min"], Reader.scatter
)
RULES = _MOVES.keys() | _HANDLERS.keys()  # names of primitives that are read one by one
