"""Optimizer states in 8 bits: a wrapper for any optax transformation that has moments."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import tree_flatten_with_path

from optax_ext._common.applied import Applied, StoredWeight, Widening, applied
from optax_ext._common.arguments import check_transformation, check_whole, shown
from optax_ext._common.dims import at_least
from optax_ext._common.dtypes import cast_like, check_rounding, stored_like
from optax_ext._common.layout import with_layout_errors
from optax_ext._common.mesh import whole_size
from optax_ext._common.paths import by_path, innermost_field, is_masked, map_with_paths
from optax_ext._common.tpu import import_pallas
from optax_ext._memory.codes import CODES, decode, encode, scale_for, scale_shape
from optax_ext._memory.elementwise import NotServedError, Program
from optax_ext._memory.hashes import half_words, places_of
from optax_ext._memory.rounding import OfLeaf, Stochastic
from optax_ext._memory.step import NO_KEY, Stepped, check_codes, kernel_of, step_in_xla
from optax_ext._memory.stored import AS_IS, in_codes


class QuantizedState(NamedTuple):
  """State of `quantize_state`: the wrapped optimizer's state with its large moments as codes, and their scales.

  There is a tree of scales for each tree of moments. The scale is the largest number of a row or block, and a code
  stands for a share of the scale. A leaf without codes has a scale of 1. `count` is the number of updates where codes
  are rounded by chance, and otherwise `None`.
  """

  codes: Any
  scale: tuple[Any, ...]
  count: jax.Array | None = None


def quantize_state(
  tx: optax.GradientTransformation,
  *,
  signed: Sequence[str] = ("mu", "trace"),
  unsigned: Sequence[str] = ("nu",),
  min_size: int = 4096,
  block: int | None = None,
  axis: int | None = None,
  rounding: Stochastic | None = None,
  kernel: str | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Keeps the moments of any optax optimizer in 8 bits each: 2 bytes of state per parameter where Adam has 8.

      moments = decode(codes, scale)     as float32
      update, moments = tx.update(g, moments)
      scale = the largest size in each row or block;     codes = encode(moments, scale)

  Moments are found by the names of their fields in the state. A moment is coded if it is a floating-point array with
  the shape of its parameter and `min_size` elements or more. Everything else stays unchanged: counts, scalars, small
  leaves, ND-Adam's second moment, hyperparameters, accumulated gradients.

  The codes are Dettmers' dynamic codes. Their 8 bits hold about two decimal digits of the largest numbers, and one
  digit of numbers 10⁴ times smaller. The last unsigned code is ∞. A moment of 0 stays 0, and no second moment becomes
  0. With `block=None` there is one scale for each row of the last axis. A step then moves 22 bytes per float32
  parameter on TPU and GPU, where Adam moves 28.

  No finite gradient makes NaN. Where the square of a gradient overflows, its element takes no step from then on, as
  with Adam in float32. A signed moment of 2⁶⁰ (1.2e18) or more is stored as the largest of its row. A row (or block)
  becomes NaN as a whole if one of its signed moments is ∞ or NaN, or if one of its unsigned moments is NaN or negative.

  Args:
    tx: The optimizer. Each step traces its `update` twice, once for the scales and once for the codes, and once more
      with a kernel.
    signed: Fields of the state that hold numbers of both signs.
    unsigned: Fields that hold numbers that are not negative.
    min_size: Leaves with fewer elements get no codes. A leaf with a symbol in its shape, for `jax.export`, counts as
      large; blocks divide an axis if they divide it for every value of the symbol.
    block: Elements for each scale, along `axis`; `None` for whole rows of the last axis. Rows are also used where
      `block` does not divide the axis. Blocks keep an outlier from spoiling its row. XLA needs more passes over memory
      for blocks: 50 bytes per parameter and more without `kernel="xla"`.
    axis: The axis along which blocks lie, counted from the last, −1. `None` takes the axis that the device at init
      reads fastest: −2 if `jax.default_backend()` is a TPU, else −1. A state keeps its axis.
    rounding: `None` for the nearest codes, or `stochastic(seed)` for codes by chance, whose expectation is the moment
      (but for second moments below 5e-8 of their row's largest, which are stored as that). The nearest code swallows
      changes below half a code, so that second moments drift by some per cent; by chance such changes count on average,
      for the same bytes. The random bits of a moment are a function of the seed, the leaf's path, the moment's index
      and the step, which the state then counts.
    kernel: How `update_and_apply` steps a leaf whose step is elementwise, as with most optimizers. `"pallas"` uses one
      kernel: 16 bytes per float32 parameter, 10 per bfloat16 parameter with bfloat16 gradients. The kernel serves TPUs
      where there is a scale for each row, and NVIDIA GPUs for rows and blocks of up to 8192 elements along the last
      axis. The kernel for GPUs is experimental: compiled ahead of time for H100, not yet run on one. jax compiles it
      where it finds a GPU, or where an abstract mesh names one; it cannot be exported by `jax.export`. `"xla"` works in
      the shape of blocks: 22.6 bytes with blocks of 128 and 22.3 with 256, along axis −2 on TPU and −1 on GPU. A
      warning names the coded leaves that are not served. On a mesh call the kernel inside `jax.shard_map`: XLA refuses
      to partition it where no `jax.set_mesh` tells of the mesh.

  Returns:
    A transformation whose state is a `QuantizedState`. `codes` have their parameters' shapes and `scale` their rank, so
    that `state_shardings` and specs of the parameters fit. An update reads the layout from these shapes, not from
    `block` and `axis`. Updates have the parameters' dtypes (the gradients' dtypes without parameters). Where a mesh
    splits the last axis, rows exchange their maxima. Blocks along another axis exchange nothing, nor do blocks that end
    where a device's part ends. Inside `jax.shard_map` a row must be whole on each device: split other axes, or use
    blocks. `min_size` counts the whole parameter there, too.

  Raises:
    TypeError, ValueError: an argument is not as above; at init, where the state has no field of such a name, or one
      with a tree unlike the parameters, or inside a `jax.shard_map` that does not tell the size of the whole; at
      update, where codes have another dtype than int8 or uint8, or the state has no count and `rounding` wants one.

  Warns:
    UserWarning: at init, where no moment is coded; at update, for what `kernel` does not serve.

  Example:
    >>> tx, params = quantize_state(optax.adam(0.1)), {"kernel": jnp.linspace(1, 2, 8192).reshape(64, 128)}
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...   updates, state = tx.update(jax.tree.map(lambda w: 2 * w, params), state, params)  # the gradient of x²
    ...   params = optax.apply_updates(params, updates)
    ...   print(f"{(params['kernel'] ** 2).mean():.3f}")
    2.043
    1.774
    1.525
    >>> nu, scale = state.codes[0].nu["kernel"], state.scale[1]["kernel"]
    >>> print(nu.dtype, nu.shape, scale.dtype, scale.shape)
    uint8 (64, 128) float32 (64, 1)

  References:
    Dettmers et al., `8-bit Optimizers via Block-wise Quantization <https://arxiv.org/abs/2110.02861>`_, 2022
  """
  check_transformation("tx", tx)
  kinds = _kinds(signed, unsigned)
  check_whole("min_size", min_size)
  if block is not None:
    check_whole("block", block)
  if axis is not None and (not isinstance(axis, int | np.integer) or axis >= 0):
    raise ValueError(f"axis must be an int that counts from the last axis, which is -1, but was {shown(axis)}.")
  if kernel not in (None, "xla", "pallas"):
    raise ValueError(f'kernel must be None, "xla" or "pallas", but was {kernel!r}.')
  check_rounding(rounding)
  if kernel == "pallas":
    import_pallas()
  storage = in_codes(by_chance=rounding is not None)
  tx = optax.with_extra_args_support(tx)

  def init(params: Any) -> Any:
    moments = _Moments(tx, tx.init(params), kinds)
    if not moments.trees:
      raise ValueError(
        f"The optimizer's state has no field named {', '.join(kinds)} with moments to store in 8 bits; those like the "
        f"parameters are named {', '.join(moments.fields) or 'nowhere'}: list them in signed or unsigned."
      )

    moments.check_like(params)

    def is_large(leaf: Any, param: Any) -> bool:
      if leaf.dtype in CODES:
        raise ValueError(f"A moment has dtype {leaf.dtype} already, but quantize_state stores floating-point moments.")
      like_param = leaf.shape == jnp.shape(param) and jnp.issubdtype(leaf.dtype, jnp.floating)
      return like_param and leaf.ndim > 0 and _reaches(param, min_size)

    def first_scale(dtype: Any, leaf: Any, param: Any) -> jax.Array:
      if not is_large(leaf, param):
        return jnp.ones((1,) * leaf.ndim, jnp.float32)
      along = axis or (-2 if jax.default_backend() == "tpu" else -1)
      return scale_for(unfolded(leaf), scale_shape(leaf.shape, along, block), dtype)

    def first_codes(dtype: Any, leaf: Any, param: Any, scale: jax.Array) -> jax.Array:
      return encode(unfolded(leaf), scale, dtype) if is_large(leaf, param) else leaf

    unfolded = jax.lax.optimization_barrier  # XLA would work out the maxima of all zeros while it compiles
    like = [params] * len(moments.trees)
    scale = moments.map(first_scale, like)
    codes = moments.map(first_codes, like, scale)
    _warn_if_none_is_coded(codes, min_size)
    return QuantizedState(moments.replaced(codes), scale, jnp.zeros([], jnp.int32) if rounding else None)

  def decoded(_: Any, codes: jax.Array, scale: jax.Array) -> jax.Array:
    _check_not_cast(codes, scale, min_size)
    return decode(codes, scale) if codes.dtype in CODES else codes

  def new_scale(_: Any, moment: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    return scale_for(moment, scale.shape, codes.dtype) if codes.dtype in CODES else scale

  def new_codes(_: Any, moment: jax.Array, codes: jax.Array, scale: jax.Array, bits: Any) -> jax.Array:
    return encode(moment, scale, codes.dtype, bits()) if codes.dtype in CODES else moment

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    return_applied: bool = False,
    stored_weights: Any = None,
    **extra_args: Any,
  ) -> tuple[Any, Any]:
    def step(grads: Any, state: QuantizedState) -> tuple[Any, _Moments, _Moments]:
      old = _Moments(tx, state.codes, kinds)
      updates, new = in_float32(grads, old.replaced(old.map(decoded, state.scale)), params, extra_args)
      return updates, old, _Moments(tx, new, kinds)

    count = None if state.count is None else jnp.asarray(optax.safe_increment(state.count))
    keys = rounding.keys_at(count) if rounding else None
    in_kernel = None
    if kernel and (return_applied or stored_weights is not None):
      in_kernel = steps_of_kernel(updates, state, params, keys, stored_weights, extra_args)
    _, old, new = step(updates, state)
    scale = new.map(new_scale, old.trees, state.scale)
    # Codes need the scales, scales need all moments of a row: two passes over memory. Behind the barrier XLA computes
    # the moments once more from gradients and codes, 6 bytes; it would otherwise keep them from the first pass, 16.
    # The parameters stay outside: behind the barrier they would be read twice, 4 bytes more.
    updates, state, scale = jax.lax.optimization_barrier((updates, state, scale))
    updates, old, new = step(updates, state)
    codes = new.map(new_codes, old.trees, scale, random_bits(keys, new.trees))
    if in_kernel is not None:  # XLA does not compute what is replaced here
      updates = _replaced(updates, in_kernel, lambda leaf: Applied(*leaf.weights))
      codes = tuple(_replaced(tree, in_kernel, lambda leaf, i=i: leaf.moments[i][0]) for i, tree in enumerate(codes))
      scale = tuple(_replaced(tree, in_kernel, lambda leaf, i=i: leaf.moments[i][1]) for i, tree in enumerate(scale))
    return updates, QuantizedState(_with_dtypes_of(state.codes, new.replaced(codes)), scale, count)

  def in_float32(grads: Any, state: Any, params: Any, extra_args: dict[str, Any]) -> tuple[Any, Any]:
    """A step of the optimizer in the dtype of decoded moments, and its updates in those that it would have itself."""
    updates, state = tx.update(_widened(grads, params), state, params, **extra_args)
    return cast_like(grads if params is None else params, updates), state

  def random_bits(keys: OfLeaf | None, trees: Sequence[Any]) -> list[Any]:
    """For each moment of each tree a function that makes its bits; what is not in codes never calls it."""

    def of_leaf(i: int, path: str, moment: jax.Array) -> Callable[[], Any]:
      return lambda: half_words(keys(path, moment), places_of(moment.shape), i) if keys else None

    return [map_with_paths(functools.partial(of_leaf, i), tree) for i, tree in enumerate(trees)]

  def steps_of_kernel(
    updates: Any,
    state: QuantizedState,
    params: Any,
    keys: OfLeaf | None,
    stored_weights: Any,
    extra_args: dict[str, Any],
  ) -> Any:
    """A tree like the updates, of a `Stepped` for each leaf that the kernel serves and `None` for the others."""
    old = _Moments(tx, state.codes, kinds)
    args, treedef = jax.tree.flatten((updates, old.replaced(old.map(decoded, state.scale)), params))

    def whole(*args: Any) -> Any:
      updates, state, params = treedef.unflatten(args)
      updates, state = in_float32(updates, state, params, extra_args)
      return applied(params, updates), _Moments(tx, state, kinds).trees

    program, results = Program.of(whole, args)
    grads, before, weights = treedef.unflatten(program.inputs)
    new_weights, new_moments = results
    moments, count, unserved = _Moments(tx, before, kinds).trees, len(old.trees), []

    # By path, since optax.masked and partition hide leaves in the updates and not here
    kept = by_path(stored_weights, lambda node: node is None or isinstance(node, StoredWeight))

    def stepped(path: str, grad: Any, param: Any, g: Any, w: Any, new_w: Any, *rest: Any) -> Stepped | None:
      codes, scales, m, new_m = (list(rest[i * count : (i + 1) * count]) for i in range(4))
      if not any(getattr(leaf, "dtype", None) in CODES for leaf in codes):
        return None
      try:
        check_codes(codes, scales)
        step = program.elementwise((g, w, *m), (new_w, *new_m))
        if stored_weights is not None and path not in kept:
          raise NotServedError("a wrapper around quantize_state has changed its path")
        weight, of_weight, key = kept.get(path) or StoredWeight(AS_IS, (param,), NO_KEY)
        kinds, parts = (weight, *[storage] * count), [of_weight, *zip(codes, scales, strict=True)]
        in_xla = functools.partial(step_in_xla, step, kinds)
        fused = in_xla if kernel == "xla" else kernel_of(step, kinds, grad, parts)
        key = jnp.concatenate([key, keys(path, grad) if keys else NO_KEY])
        new_weight, *new = fused(program.values(step.numbers), key, grad, parts)
        return Stepped(new_weight, new)
      except NotServedError as reason:
        unserved.append(f"{path!r}: {reason}")
        return None

    trees = grads, weights, new_weights, *old.trees, *state.scale, *moments, *new_moments
    steps = map_with_paths(stepped, updates, params, *trees)
    if unserved:
      warnings.warn(
        f"quantize_state's kernel={kernel!r} does not serve these leaves, which take a plain step: "
        f"{'; '.join(unserved)}.",
        stacklevel=2,
      )
    return steps

  def check(state: Any, _: Any) -> None:
    if rounding and getattr(state, "count", 0) is None:
      raise ValueError(
        "The state of quantize_state has no count, which rounding=stochastic(seed) needs: an older state goes on as "
        "state._replace(count=jnp.zeros([], jnp.int32))."
      )

  return Widening(*with_layout_errors(init, update, check))


class _Moments:
  """The trees of moments in a state of `tx`: those like the parameters whose field is named in `kinds`."""

  def __init__(self, tx: optax.GradientTransformation, state: Any, kinds: dict[str, Any]):
    like_params = optax.tree.map_params(tx, _Tree, state, is_leaf=lambda _: True)
    leaves, self._treedef = tree_flatten_with_path(like_params)
    names = [innermost_field(path) if isinstance(leaf, _Tree) else "" for path, leaf in leaves]
    self._leaves = [leaf.tree if isinstance(leaf, _Tree) else leaf for _, leaf in leaves]
    self._is_moment = [name in kinds for name in names]
    self.fields = sorted({name for name in names if name})
    self.names = [name for name in names if name in kinds]
    self.dtypes = [kinds[name] for name in self.names]
    self.trees = [leaf for leaf, is_moment in zip(self._leaves, self._is_moment, strict=True) if is_moment]

  def check_like(self, params: Any) -> None:
    """Raises `ValueError` for a tree of moments that is not one like the parameters."""
    for name, tree in zip(self.names, self.trees, strict=True):
      try:
        jax.tree.structure(tree, is_leaf=is_masked).flatten_up_to(params)
      except ValueError as error:
        raise ValueError(
          f"The optimizer's state has in its field {name!r} a tree unlike the parameters, which cannot be stored in 8 "
          "bits: leave the field out of signed and unsigned."
        ) from error

  def map(self, f: Callable[..., Any], *rest: Sequence[Any]) -> tuple[Any, ...]:
    """`f(dtype of the codes, leaf, ...)` for each leaf of each tree and of the trees in `rest`."""
    of = lambda dtype: lambda leaf, *others: leaf if is_masked(leaf) else f(dtype, leaf, *others)
    rows = zip(self.dtypes, self.trees, *rest, strict=True)
    return tuple(jax.tree.map(of(dtype), *trees, is_leaf=is_masked) for dtype, *trees in rows)

  def replaced(self, trees: Sequence[Any]) -> Any:
    """The state with other trees in place of the moments."""
    new = iter(trees)
    leaves = zip(self._leaves, self._is_moment, strict=True)
    return self._treedef.unflatten([next(new) if is_moment else leaf for leaf, is_moment in leaves])


def _reaches(param: Any, min_size: int) -> bool:
  """Whether a parameter has so many elements, all devices' parts together."""
  least, most = (at_least(size, min_size) for size in whole_size(param))
  if least != most:
    raise ValueError(
      f"Inside jax.shard_map with check_vma=False quantize_state sees a part of shape {jnp.shape(param)} and cannot "
      f"tell whether the whole parameter has min_size={min_size} elements: make the state outside, by jax.jit(tx.init, "
      "out_shardings=state_shardings(tx, params, shardings))(params)."
    )
  return least


def _warn_if_none_is_coded(moments: Any, min_size: int) -> None:
  leaves = jax.tree.leaves(moments)
  if leaves and not any(leaf.dtype in CODES for leaf in leaves):
    warnings.warn(
      f"quantize_state stores no moment in 8 bits: the largest of these {len(leaves)} has "
      f"{max(leaf.size for leaf in leaves)} elements, and min_size={min_size} or more of real numbers in the shape of "
      "their parameter are coded. Give a smaller min_size; state_bytes(tx, params) shows what each leaf takes.",
      stacklevel=3,
    )


def _check_not_cast(codes: jax.Array, scale: jax.Array, min_size: int) -> None:
  """Raises `ValueError` for codes or scales in another dtype. Several scales, or a vector's size, tell codes.

  One number may be the second moment of a whole vector, which is none.
  """
  coded = any(n != 1 for n in scale.shape) or (codes.ndim == 1 and at_least(codes.size, max(min_size, 2)))
  if jnp.issubdtype(codes.dtype, jnp.complexfloating) or not (coded or codes.dtype in CODES):
    return
  if codes.dtype not in CODES or scale.dtype != jnp.float32:
    raise ValueError(
      f"The state of quantize_state has a moment of shape {codes.shape} with codes in {codes.dtype} and scales in "
      f"{scale.dtype}, but codes are int8 or uint8 and scales float32: a cast (optax.tree.cast) or the target of a "
      "checkpoint has changed them. Restore the state with jax.eval_shape(tx.init, params) as the target."
    )


def _replaced(tree: Any, steps: Any, new: Callable[[Stepped], Any]) -> Any:
  """A tree with the new leaves of those that the kernel stepped."""
  hidden = lambda node: node is None or is_masked(node)
  return jax.tree.map(lambda leaf, step: new(step) if isinstance(step, Stepped) else leaf, tree, steps, is_leaf=hidden)


def _widened(updates: Any, params: Any) -> Any:
  """Gradients as wide as the moments that are decoded, or as their weights: the square of a float16 number may be 0.

  Anew in each pass: as arrays of float32 they would be written to memory.
  """

  def widened(path: str, g: Any, param: Any) -> jax.Array:
    dtype = jnp.result_type(g, param)
    return jnp.asarray(g, jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.inexact) else dtype)

  return map_with_paths(widened, updates, updates if params is None else params)


def _with_dtypes_of(old: Any, new: Any) -> Any:
  """A state in the dtypes that it began with. Some optimizers leave it in those of their arithmetic."""
  return jax.tree.map(lambda before, after: stored_like(before, after), old, new)


class _Tree:
  """A leaf for jax that holds a tree."""

  def __init__(self, tree: Any):
    self.tree = tree


def _kinds(signed: Sequence[str], unsigned: Sequence[str]) -> dict[str, Any]:
  """The dtype of the codes of each field."""
  for name, fields in (("signed", signed), ("unsigned", unsigned)):
    if not isinstance(fields, list | tuple) or not all(isinstance(field, str) for field in fields):
      raise TypeError(f"{name} must be a list or tuple of names of fields, but was {shown(fields)}.")
  if both := set(signed) & set(unsigned):
    raise ValueError(f"The field {min(both)!r} is named both in signed and in unsigned.")
  return dict.fromkeys(signed, jnp.int8) | dict.fromkeys(unsigned, jnp.uint8)
