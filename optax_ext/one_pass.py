"""ND-Adam's step from sums that one reading of gradient, weights and mean gives, where the chain reads them thrice.

As a chain of pieces the step has three sums that wait for each other: g·w, then ‖g‖² of the projected gradient, then
‖w̄‖². But all three follow from the products of what was there before the step,

    w·w   g·w   g·g   m·w   m·m   m·g.

The chain stays the definition: it makes the state, and it steps the leaves that are not served here.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_ext.debias import Debias, Moments
from optax_ext.fused import Applied
from optax_ext.kernels import Block, Multiplier, block_of, for_tpu, kernel_step, step_in_order
from optax_ext.meshes import AxisName, explicit_sharding, resolve_names, split_axes
from optax_ext.moments import Ratio, Step, moving_average, weight_of_square
from optax_ext.once import once_per_shape
from optax_ext.paths import map_with_paths
from optax_ext.rounding import Stochastic
from optax_ext.schedules import Gain
from optax_ext.storage import arithmetic_dtype, check_trainable, leaf_dtype, to_nearest
from optax_ext.vectors import Axes, coefficient, resolve_axes, sum_over, unit

SAMPLE = 16  # rows of a leaf that the first projection looks at
SMALL = 2**16  # elements below which a leaf's traffic is not worth the time that this form takes to compile


class _Now(NamedTuple):
  """What a step has from its count: the gains, the multiplier, a leaf's arithmetic, how moments are rounded."""

  gains: tuple[Any, Any]
  multiplier: Multiplier
  moved: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
  storing: Callable[..., tuple[jax.Array, jax.Array]]


def in_one_pass(
  chain: optax.GradientTransformation,
  mean_gain: Gain,
  square_gain: Gain,
  debias: Debias,
  ratio: Ratio,
  vector_rate: optax.GradientTransformation,
  *,
  axes: Axes,
  axis_name: AxisName = None,
  rounding: Stochastic | None = None,
  kernel: str | None = None,
) -> optax.GradientTransformationExtraArgs:
  """The same transformation as `chain`, ND-Adam's five links, with fewer readings of memory.

  The gradient is projected twice, first with a provisional coefficient s from 16 rows of the leaf:

      r = ḡ − s·w     c = (r·w)/(w·w)     g = r − c·w     ‖g‖² = r·r − c·(r·w)     m·g = m·r − c·(m·w)

  With s = 0 the difference ‖g‖² loses all its digits where ḡ is nearly parallel to w (in float32 at angles below 10⁻³);
  with s it loses none. Where the rows say nothing of the vector (weights of which they hold next to nothing) r·r is not
  less than ḡ·ḡ, s = 0 is taken, and below 10⁻³ ‖g‖ is over-estimated, as 10⁻³·‖ḡ‖: steps are then too short, never
  too long. With the chain's gains w₁ and w₂ and its multiplier a = −α/c₁/(√v̂ + ε), the rest follows:

      w·m ← (1−w₁)·(w·m)     m·m ← (1−w₁)²·m·m + 2·w₁·(1−w₁)·m·g + w₁²·‖g‖²     ‖w̄‖² = w·w + 2·a·w·m + a²·m·m

  These leaves take the plain chain: scalars; complex vectors; leaves of fewer than 2¹⁶ elements (of a device's part, in
  `jax.shard_map`), whose traffic is not worth the time to compile this form; vectors that a mesh with explicit axes
  splits, whose rows cannot be taken out. In programs for CPUs all leaves are stepped in the chain's order, because XLA
  makes a loop over memory there of every sum.

  Where a mesh splits vectors, the sample's sums and the nine sums are exchanged in turn: two rounds for the whole tree,
  where the chain needs three.

  Args:
    chain: Of `project_out_params`, `scale_by_moments`, the vectors' and the scalars' rate (both masked) and
      `renormalize_params`.
    mean_gain: w₁ of the chain's `scale_by_moments`.
    square_gain: Its w₂.
    debias: Its debias rule, which must scale the mean.
    ratio: Its ratio, which must be linear in the mean.
    vector_rate: What the third link masks.
    axes: The axes of the vectors.
    axis_name: As in `project_out_params`.
    rounding: As in `scale_by_moments`.
    kernel: As in `nd_adam`.

  Returns:
    A transformation with the state of `chain`, whose updates have the parameters' dtypes.

  Raises:
    ValueError: `kernel` is none of its values.
  """
  if kernel not in (None, "pallas", "interpret"):
    raise ValueError(f'kernel must be None, "pallas" or "interpret", but was {kernel!r}.')
  axes_of, names_of = resolve_axes(axes), resolve_names(axis_name)
  vectors_of = lambda path, leaf: axes_of(path, leaf) or ()  # of leaves that are served, and so have some

  def served(path: str, grad: Any) -> bool:
    check_trainable(path, grad)
    along = axes_of(path, grad)
    return along is not None and grad.size >= SMALL and not jnp.iscomplexobj(grad) and not _is_split(grad, along)

  def update(
    updates: Any, state: Any, params: Any = None, *, return_applied: bool = False, **extra_args: Any
  ) -> tuple[Any, Any]:
    del extra_args
    here = map_with_paths(served, updates)

    def part(mine: bool, tree: Any) -> Any:
      """The leaves of one side; the others are hidden, as `optax.masked` hides them."""
      hide = lambda one, leaf: leaf if bool(one) == mine else optax.MaskedNode()
      return jax.tree.map(hide, here, tree, is_leaf=_none)

    moments = state[1]
    of_rest = moments._replace(mu=part(False, moments.mu), nu=part(False, moments.nu))
    of_rest = (state[0], of_rest, *state[2:])
    new: Any
    rest, new = chain.update(part(False, updates), of_rest, None if params is None else part(False, params))
    rate, _ = vector_rate.update(jnp.ones([], jnp.result_type(float)), state[2].inner_state)
    now = at(new[1].count, rate)
    leaves = [part(True, tree) for tree in (updates, moments.mu, moments.nu, params)]
    steps = with_kernel(now, leaves) if kernel and return_applied else map_with_paths(partial(step, now), *leaves)

    def join(i: int, rest: Any) -> Any:
      return jax.tree.map(lambda one, leaf, step: step[i] if one else leaf, here, rest, steps, is_leaf=_none)

    moments = new[1]._replace(mu=join(1, new[1].mu), nu=join(2, new[1].nu))
    return join(0, rest), (new[0], moments, *new[2:])

  def at(t: jax.Array, rate: Any) -> _Now:
    debiased = debias(t)

    def multiplier(v: jax.Array) -> jax.Array:
      """What the mean is multiplied by to give the update. A second moment that overflowed allows no step."""
      ratios = ratio(debiased(Moments(jnp.zeros_like(v), jnp.ones_like(v), v)))
      return jnp.where(jnp.isinf(v), 0, jnp.asarray(rate, v.dtype) * ratios)

    gains = mean_gain(t), weight_of_square(square_gain, t)

    def moved(along: tuple[int, ...], names: tuple[str, ...], *leaf: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
      dtype = arithmetic_dtype(leaf[0])
      w1, w2 = (jnp.asarray(gain, dtype) for gain in gains)
      total = sum_over(along, names)

      def in_order(*leaf: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        g, w, m, v = (jnp.asarray(x, dtype) for x in leaf)
        new, m, v = step_in_order(g, w, m, v, (w1, w2), multiplier, total)
        return new - w, m, v

      def from_sums(*leaf: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        s = sampled_coefficient(leaf[0], leaf[1], along, total, dtype)
        g, w, m, v = (jnp.asarray(x, dtype) for x in leaf)
        new, m, v = step_from_sums(g, w, m, v, s, (w1, w2), multiplier, lambda *of: totals(of, along, names))
        return new - w, m, v

      return on_cpu(in_order, from_sums, *leaf)

    storing = rounding.at(t) if rounding else to_nearest
    return _Now(gains, multiplier, once_per_shape(moved, t, static_argnums=(0, 1)), storing)

  def step(now: _Now, path: str, grad: Any, mu: jax.Array, nu: jax.Array, param: Any) -> Step:
    """By XLA."""
    update, m, v = now.moved(vectors_of(path, grad), names_of(path, grad), grad, param, mu, nu)
    return Step(update.astype(leaf_dtype(param)), *now.storing(path, m, v, mu.dtype, nu.dtype))

  def with_kernel(now: _Now, leaves: list[Any]) -> Any:
    """By the kernel where it serves a leaf, which then has an `Applied` in place of an update."""
    fallbacks: list[str] = []

    def blocks_of(path: str, grad: Any, mu: jax.Array, param: Any) -> Block | str:
      if rounding is not None:
        return "its moments are rounded stochastically"
      if split_axes(names_of(path, grad)):
        return "the mesh splits its vectors"
      return block_of(grad, param, mu, vectors_of(path, grad))

    def kernel_or_step(path: str, grad: Any, mu: jax.Array, nu: jax.Array, param: Any) -> Step:
      blocks = blocks_of(path, grad, mu, param)
      if isinstance(blocks, str):
        fallbacks.append(f"{path!r}: {blocks}")
        return step(now, path, grad, mu, nu, param)

      def on_tpu(grad: Any, mu: Any, nu: Any, param: Any) -> tuple[Any, Any, Any]:
        interpret = kernel == "interpret"
        return kernel_step(grad, param, mu, nu, now.gains, now.multiplier, blocks, interpret=interpret)

      def elsewhere(grad: Any, mu: Any, nu: Any, param: Any) -> tuple[Any, Any, Any]:
        update, mu, nu = step(now, path, grad, mu, nu, param)
        return optax.apply_updates(param, update), mu, nu

      args = grad, mu, nu, param
      new = on_tpu(*args) if kernel == "interpret" else for_tpu(on_tpu, elsewhere, *args)
      applied: Any = Applied(new[0])
      return Step(applied, new[1], new[2])

    steps = map_with_paths(kernel_or_step, *leaves)
    if fallbacks:
      warnings.warn(
        f"nd_adam's kernel does not serve these leaves, which XLA steps: {'; '.join(fallbacks)}.", stacklevel=3
      )
    return steps

  return optax.GradientTransformationExtraArgs(chain.init, update)


def step_from_sums(
  g: jax.Array,
  w: jax.Array,
  m: jax.Array,
  v: jax.Array,
  s: jax.Array,
  gains: tuple[jax.Array, jax.Array],
  multiplier: Multiplier,
  totals: Callable[..., tuple[jax.Array, ...]],
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """New weights, mean and second moment, from sums none of which waits for another; s is the sampled coefficient."""
  w1, w2 = gains
  r = g - s * w
  ww, mw, mm, gw, gg, mg, rw, rr, mr = totals(w * w, m * w, m * m, g * w, g * g, m * g, r * w, r * r, m * r)
  helps = rr < gg
  s, rw, rr, mr = (jnp.where(helps, x, y) for x, y in ((s, 0), (rw, gw), (rr, gg), (mr, mg)))
  c = coefficient(rw, ww)
  of_c = lambda product: jnp.where(c == 0, 0, c * product)  # a product that overflowed has c = 0
  # What is left after most of rr has cancelled is rounding error, in float32 below an angle of 10⁻³.
  square = jnp.where(jnp.isinf(rr), rr, jnp.maximum(rr - of_c(rw), 8 * jnp.finfo(rr.dtype).eps * rr))
  mg = mr - of_c(mw)

  v = moving_average(v, square, w2)
  m = moving_average(m, (g - s * w) - c * w, w1)
  a, keep = multiplier(v), 1 - w1
  wm = keep * mw + w1 * (rw - c * ww)
  mm = keep * keep * mm + 2 * w1 * keep * mg + w1 * w1 * square
  return unit(w + a * m, ww + jnp.where(a == 0, 0, a * (2 * wm + a * mm))), m, v


def totals(products: tuple[jax.Array, ...], along: tuple[int, ...], names: tuple[str, ...]) -> tuple[jax.Array, ...]:
  """The sums of several arrays over vectors, in one reading of memory.

  On TPUs XLA makes one loop over memory of several sums of columns, but not of one sum of their stacked inputs, and on
  GPUs the other way about.
  """
  stacked = tuple(axis + 1 for axis in along)
  at_once = lambda *products: tuple(sum_over(stacked, names)(jnp.stack(products)))
  one_by_one = lambda *products: tuple(map(sum_over(along, names), products))
  return jax.lax.platform_dependent(*products, cuda=at_once, default=one_by_one)


def on_cpu(this: Callable[..., Any], otherwise: Callable[..., Any], *args: Any) -> Any:
  """Calls one function in a program for CPUs, wherever it is compiled, and the other in all other programs."""
  return jax.lax.platform_dependent(*args, cpu=this, default=otherwise)


def sampled_coefficient(g: Any, w: Any, along: tuple[int, ...], total: Any, dtype: Any) -> jax.Array:
  """(g·w)/(w·w) of a few rows, evenly spaced where the axis divides into whole tiles of memory."""
  axis = max(along, key=lambda i: (i < g.ndim - 1, g.shape[i]))
  n = g.shape[axis]
  # Pieces that start where a mesh splits the axis need no exchange. Where they are no whole tiles of a TPU's memory,
  # cutting would copy the leaf.
  pieces = math.gcd(n // SAMPLE, SAMPLE) if n % SAMPLE == 0 and axis < g.ndim - 1 else 1
  rows = min(n // pieces, SAMPLE // pieces)

  def sample(x: Any) -> jax.Array:
    cut = jnp.reshape(x, (*x.shape[:axis], pieces, -1, *x.shape[axis + 1 :]))
    few = jax.lax.slice_in_dim(cut, 0, rows, axis=axis + 1)
    return few.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :]).astype(dtype)

  g, w = sample(g), sample(w)
  return jax.lax.stop_gradient(coefficient(total(g * w), total(w * w)))


def _is_split(leaf: jax.Array, along: tuple[int, ...]) -> bool:
  """Whether a mesh with explicit axes splits the vectors of a leaf, whose rows then cannot be taken out."""
  sharding = explicit_sharding(leaf)
  return sharding is not None and any(sharding.spec[axis] is not None for axis in along)


def _none(node: Any) -> bool:
  return node is None
