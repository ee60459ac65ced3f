"""ND-Adam's update in one pass over memory; its chain of pieces needs three.

The chain stays the definition: it makes the state, and it steps the leaves that are not served here.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_ext._common.applied import Applied
from optax_ext._common.dims import unknown
from optax_ext._common.dtypes import arithmetic_dtype, check_trainable, leaf_dtype
from optax_ext._common.layout import with_layout_errors
from optax_ext._common.mesh import explicit_sharding, resolve_names, split_axes
from optax_ext._common.paths import by_path, map_with_paths
from optax_ext._common.retrace import once_per_shape
from optax_ext._common.tpu import for_platform, import_pallas
from optax_ext._moments.transform import Step
from optax_ext._sphere.axes import resolve_axes
from optax_ext._sphere.spec import Now, Spec, States
from optax_ext._sphere.step import sampled_coefficient, step_from_sums, step_in_order, totals
from optax_ext._sphere.transforms import sum_over

SMALL = 2**16  # elements below which a leaf's traffic is not worth the time that this form takes to compile


def in_one_pass(spec: Spec, kernel: str | None = None) -> optax.GradientTransformationExtraArgs:
  """The same transformation as `spec.chain()`, with fewer readings of memory.

  These leaves take the plain chain: scalars; complex vectors; leaves of fewer than 2¹⁶ elements (of a device's part, in
  `jax.shard_map`), whose traffic is not worth the time to compile this form; leaves with a symbol in their shape, for
  `jax.export`; vectors that a mesh with explicit axes splits, whose rows cannot be taken out. In programs for CPUs all
  leaves are stepped in the chain's order, because XLA makes a loop over memory there of every sum.

  Where a mesh splits vectors, the sample's sums and the nine sums are exchanged in turn: two rounds for the whole tree,
  where the chain needs three.

  Args:
    spec: What the step is made of.
    kernel: As in `nd_adam`.

  Returns:
    A transformation with the state of the chain, whose updates have the parameters' dtypes.

  Raises:
    ValueError: `kernel` is none of its values.
  """
  if kernel not in (None, "pallas"):
    raise ValueError(f'kernel must be None or "pallas", but was {kernel!r}.')
  if kernel:
    import_pallas()
  chain, axes_of, names_of = spec.chain(), resolve_axes(spec.axes), resolve_names(spec.axis_name)
  vectors_of = lambda path, leaf: axes_of(path, leaf) or ()  # of leaves that are served, and so have some

  def served(path: str, grad: Any) -> bool:
    check_trainable(path, grad)
    along = axes_of(path, grad)
    return along is not None and not _why_in_chain(grad, along)

  def update(
    updates: Any, state: Any, params: Any = None, *, return_applied: bool = False, **extra_args: Any
  ) -> tuple[Any, Any]:
    del extra_args
    here = map_with_paths(served, updates)

    def part(mine: bool, tree: Any) -> Any:
      """The leaves of one side; the others are hidden, as `optax.masked` hides them."""
      hide = lambda one, leaf: leaf if bool(one) == mine else optax.MaskedNode()
      return jax.tree.map(hide, here, tree, is_leaf=_none)

    states = States(*state)
    mu, nu = states.moments.mu, states.moments.nu
    of_rest = states._replace(moments=states.moments._replace(mu=part(False, mu), nu=part(False, nu)))
    new: Any
    rest, new = chain.update(part(False, updates), tuple(of_rest), None if params is None else part(False, params))
    new = States(*new)
    now = spec.now(states, new.moments.count)
    moved = once_per_shape(partial(_moved, now), now.t, static_argnums=(0, 1))
    leaves = [part(True, tree) for tree in (updates, mu, nu, params)]
    if kernel and return_applied:
      steps, fallbacks = with_kernel(now, moved, leaves)
      _warn_of(fallbacks_in_chain(updates) + fallbacks)
    else:
      steps = steps_in_xla(now, moved, leaves)

    def join(i: int, rest: Any) -> Any:
      return jax.tree.map(lambda one, leaf, step: step[i] if one else leaf, here, rest, steps, is_leaf=_none)

    moments = new.moments._replace(mu=join(1, new.moments.mu), nu=join(2, new.moments.nu))
    return join(0, rest), tuple(new._replace(moments=moments))

  def step(now: Now, moved: Callable[..., Any], path: str, grad: Any, mu: Any, nu: Any, param: Any) -> Step:
    """By XLA."""
    update, m, v = moved(vectors_of(path, grad), names_of(path, grad), grad, param, mu, nu)
    return Step(update.astype(leaf_dtype(param)), *now.storing(path, m, v, mu.dtype, nu.dtype))

  def steps_in_xla(now: Now, moved: Callable[..., Any], leaves: list[Any]) -> Any:
    return map_with_paths(partial(step, now, moved), *leaves)

  def fallbacks_in_chain(updates: Any) -> list[str]:
    """Vectors that take the plain chain, with the reason."""
    along = {path: (leaf, axes_of(path, leaf)) for path, leaf in by_path(updates).items()}
    reasons = {path: _why_in_chain(leaf, axes) for path, (leaf, axes) in along.items() if axes is not None}
    return [f"{path!r}: {reason}" for path, reason in reasons.items() if reason]

  def with_kernel(now: Now, moved: Callable[..., Any], leaves: list[Any]) -> tuple[Any, list[str]]:
    """By the kernel where it serves a leaf, which then has an `Applied` in place of an update, and what it does not."""
    from optax_ext._sphere.pallas import Block, block_of, kernel_step  # takes longer to import than all of optax_ext

    fallbacks: list[str] = []

    def blocks_of(path: str, grad: Any, mu: jax.Array, param: Any) -> Block | str:
      if spec.rounding is not None:
        return "its moments are rounded stochastically"
      if split_axes(names_of(path, grad)):
        return "the mesh splits its vectors"
      return block_of(grad, param, mu, vectors_of(path, grad))

    def kernel_or_step(path: str, grad: Any, mu: jax.Array, nu: jax.Array, param: Any) -> Step:
      blocks = blocks_of(path, grad, mu, param)
      if isinstance(blocks, str):
        fallbacks.append(f"{path!r}: {blocks}")
        return step(now, moved, path, grad, mu, nu, param)

      def on_tpu(grad: Any, mu: Any, nu: Any, param: Any) -> tuple[Any, Any, Any]:
        return kernel_step(grad, param, mu, nu, now.gains, now.multiplier, blocks)

      def elsewhere(grad: Any, mu: Any, nu: Any, param: Any) -> tuple[Any, Any, Any]:
        update, mu, nu = step(now, moved, path, grad, mu, nu, param)
        return optax.apply_updates(param, update), mu, nu

      new = for_platform("tpu", on_tpu, elsewhere, grad, mu, nu, param)
      applied: Any = Applied(new[0])
      return Step(applied, new[1], new[2])

    return map_with_paths(kernel_or_step, *leaves), fallbacks

  return with_layout_errors(chain.init, update)


def _moved(
  now: Now, along: tuple[int, ...], names: tuple[str, ...], *leaf: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The update, mean and second moment of a leaf, from its gradient, weights and moments."""
  dtype = arithmetic_dtype(leaf[0])
  w1, w2 = (jnp.asarray(gain, dtype) for gain in now.gains)
  total = sum_over(along, names)

  def in_order(*leaf: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    g, w, m, v = (jnp.asarray(x, dtype) for x in leaf)
    new, m, v = step_in_order(g, w, m, v, (w1, w2), now.multiplier, total)
    return new - w, m, v

  def from_sums(*leaf: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    s = sampled_coefficient(leaf[0], leaf[1], along, total, dtype)
    g, w, m, v = (jnp.asarray(x, dtype) for x in leaf)
    new, m, v = step_from_sums(g, w, m, v, s, (w1, w2), now.multiplier, lambda *of: totals(of, along, names))
    return new - w, m, v

  return _on_cpu(in_order, from_sums, *leaf)


def _on_cpu(this: Callable[..., Any], otherwise: Callable[..., Any], *args: Any) -> Any:
  """Calls one function in a program for CPUs, wherever it is compiled, and the other in all other programs."""
  return jax.lax.platform_dependent(*args, cpu=this, default=otherwise)


def _warn_of(fallbacks: list[str]) -> None:
  if fallbacks:
    warnings.warn(
      f"nd_adam's kernel does not serve these leaves, which XLA steps: {'; '.join(fallbacks)}.", stacklevel=5
    )


def _why_in_chain(grad: Any, along: tuple[int, ...]) -> str:
  """Why a leaf's vectors take the plain chain; nothing where they do not."""
  if reason := unknown(grad.shape):
    return reason
  if grad.size < SMALL:
    return f"it has {grad.size} elements, fewer than {SMALL}"
  if jnp.iscomplexobj(grad):
    return "it is complex"
  return "a mesh with explicit axes splits its vectors" if _is_split(grad, along) else ""


def _is_split(leaf: jax.Array, along: tuple[int, ...]) -> bool:
  """Whether a mesh with explicit axes splits the vectors of a leaf, whose rows then cannot be taken out."""
  sharding = explicit_sharding(leaf)
  return sharding is not None and any(sharding.spec[axis] is not None for axis in along)


def _none(node: Any) -> bool:
  return node is None
