"""ND-Adam's geometry: weight vectors of unit length, moved along the sphere, with one second moment each.

A *vector* runs along the **axes** that its layer contracts: the input weights of one hidden unit. Axes are given as a
function of a leaf's path and the leaf, as a tree like the parameters, as one tuple for all leaves of two or more axes,
or as a `Structure`. `None` puts a leaf among the scalars, which no function here changes.

Under `jax.jit` arrays are whole, however a mesh splits them, and so are the sums over vectors. Inside `jax.shard_map` a
function sees one device's part: where a mesh axis splits the axes of vectors, its `axis_name` says over which devices
their sums go on.
"""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_ext._common.dtypes import arithmetic_dtype, leaf_dtype
from optax_ext._common.mesh import AxisName, resolve_names, split_axes
from optax_ext._common.paths import map_with_paths
from optax_ext._moments.debias import abs_sq
from optax_ext._moments.ratios import Square, elementwise
from optax_ext._sphere.axes import Axes, resolve_axes

Total = Callable[[jax.Array], jax.Array]
"""An array like a leaf -> its sums over each vector, with size 1 along the vectors' axes."""


def project_out_params(axes: Axes, *, axis_name: AxisName = None) -> optax.GradientTransformation:
  """Removes from each gradient vector its part along the weight vector, so that it is tangent to the sphere.

      g ← g − (g·w)/(w·w) w

  For unit vectors this is Algorithm 1's g − (g·w) w. It is a projection for vectors of any length. Where w = 0, g
  stays.

  Args:
    axes: The axes of the vectors: a function `axes(path, leaf)` that returns a tuple of ints or `None`, a tree of such
      values, one tuple for all leaves of two or more axes, or a `Structure`.
    axis_name: Inside `jax.shard_map`, the mesh axes that split the vectors: a name, a tuple of names, or a function
      `axis_name(path, leaf)` that returns one or `None`. Name none for vectors that each device holds whole.

  Returns:
    A stateless transformation that needs `params`. Updates have the dtype of the arithmetic: float32 for narrower
    gradients. Complex vectors are vectors of their real and imaginary parts.

  Raises:
    TypeError: axes are not a tuple of ints (a bare int, say), or `axis_name` gives no names.
    ValueError: at update, when a leaf does not have an axis, `axes` has no entry for it, `params` is `None`, or the
      mesh of a `shard_map` has no axis of that name.

  Example:
    >>> tx = project_out_params((0,))
    >>> w, g = jnp.array([[1.0], [0.0]]), jnp.array([[3.0], [4.0]])
    >>> print(tx.update(g, tx.init(w), w)[0].T)
    [[0. 4.]]

  References:
    Zhang, Improved Adam Optimizer for Deep Neural Networks, 2018, Algorithm 1; `a longer version
    <https://arxiv.org/abs/1709.04546>`_
  """
  axes_of, names_of = resolve_axes(axes), resolve_names(axis_name)

  def project(path: str, grad: jax.Array, param: jax.Array) -> jax.Array:
    along = axes_of(path, grad)
    if along is None:
      return grad
    g, w = _in_arithmetic(grad, param)
    return tangent(g, w, sum_over(along, names_of(path, grad)))

  return _stateless_with_params("project_out_params", project)


def renormalize_params(axes: Axes, *, axis_name: AxisName = None) -> optax.GradientTransformation:
  """Changes the update so that each vector has unit length once it is applied. Must be the last link of a chain.

      w̄ = w + update     update ← w̄/‖w̄‖ − w

  Where w̄ = 0 it stays 0. Anything after this link (a scale, weight decay) breaks the unit length.

  Args:
    axes: The axes of the vectors: a function `axes(path, leaf)` that returns a tuple of ints or `None`, a tree of such
      values, one tuple for all leaves of two or more axes, or a `Structure`.
    axis_name: Inside `jax.shard_map`, the mesh axes that split the vectors: a name, a tuple of names, or a function
      `axis_name(path, leaf)` that returns one or `None`. Name none for vectors that each device holds whole.

  Returns:
    A stateless transformation that needs `params`.

  Raises:
    TypeError: axes are not a tuple of ints (a bare int, say), or `axis_name` gives no names.
    ValueError: at update, when a leaf does not have an axis, `axes` has no entry for it, `params` is `None`, or the
      mesh of a `shard_map` has no axis of that name.

  Example:
    >>> tx = renormalize_params((0,))
    >>> w, update = jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [0.75]])
    >>> print(optax.apply_updates(w, tx.update(update, tx.init(w), w)[0]).T)
    [[0.8 0.6]]

  References:
    Zhang, Improved Adam Optimizer for Deep Neural Networks, 2018, Algorithm 1; `a longer version
    <https://arxiv.org/abs/1709.04546>`_
  """
  axes_of, names_of = resolve_axes(axes), resolve_names(axis_name)

  def renormalize(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
    along = axes_of(path, update)
    if along is None:
      return update
    u, w = _in_arithmetic(update, param)
    return on_sphere(w + u, sum_over(along, names_of(path, update))) - w

  return _stateless_with_params("renormalize_params", renormalize)


def normalize_vectors(params: Any, axes: Axes) -> Any:
  """Divides every weight vector by its length: the initialisation that ND-Adam starts from.

      w ← w/‖w‖

  Args:
    params: A tree of arrays.
    axes: The axes of the vectors: a function `axes(path, leaf)` that returns a tuple of ints or `None`, a tree of such
      values, one tuple for all leaves of two or more axes, or a `Structure`.

  Returns:
    A tree like `params`, in the same dtypes. Zero vectors stay zero; leaves whose axes are `None` are unchanged.

  Raises:
    TypeError: axes are not a tuple of ints (a bare int, say).
    ValueError: a leaf does not have an axis, or `axes` has no entry for it.

  Example:
    >>> print(normalize_vectors({"kernel": jnp.array([[3.0, 0.0], [4.0, 0.0]])}, (0,))["kernel"])
    [[0.6 0. ]
     [0.8 0. ]]

  References:
    Zhang, Improved Adam Optimizer for Deep Neural Networks, 2018, Algorithm 1; `a longer version
    <https://arxiv.org/abs/1709.04546>`_
  """
  axes_of = resolve_axes(axes)

  def normalize(path: str, param: Any) -> Any:
    if not hasattr(param, "dtype") and not isinstance(param, numbers.Number):  # a module's function, say
      return param
    along = axes_of(path, param)
    if along is None:
      return param
    w = jnp.asarray(param, arithmetic_dtype(param))
    # Squares of huge or tiny weights leave the dtype's range. A power of two rounds nothing, and within these limits is
    # a normal number, as the reciprocal of the largest weight may not be. Without the barrier XLA takes (w·w)·(s·s) for
    # (w·s)·(w·s) where s is a constant.
    largest = jnp.max(jnp.abs(w), axis=along, keepdims=True, initial=0)
    limit = jnp.finfo(largest.dtype).maxexp - 28
    exponent = jnp.clip(jnp.frexp(largest)[1], -limit, limit)
    w = jax.lax.optimization_barrier(w * jnp.ldexp(jnp.ones_like(largest), -exponent))
    return on_sphere(w, sum_over(along)).astype(leaf_dtype(param))

  return map_with_paths(normalize, params)


def per_vector(axes: Axes, *, axis_name: AxisName = None) -> Square:
  """ND-Adam's second moment: ‖g‖² of each vector, one number where Adam has one per weight.

  Args:
    axes: The axes of the vectors: a function `axes(path, leaf)` that returns a tuple of ints or `None`, a tree of such
      values, one tuple for all leaves of two or more axes, or a `Structure`.
    axis_name: Inside `jax.shard_map`, the mesh axes that split the vectors: a name, a tuple of names, or a function
      `axis_name(path, leaf)` that returns one or `None`. Name none for vectors that each device holds whole.

  Returns:
    A function for `scale_by_moments(..., square=...)`. Its sums keep the leaf's rank, with size 1 along the axes;
    leaves whose axes are `None` have |g|² of every element.

  Raises:
    TypeError, ValueError: as `project_out_params`.

  Example:
    >>> print(per_vector((0,))("kernel", jnp.array([[3.0, 1.0], [4.0, 1.0]])))
    [[25.  2.]]

  References:
    Zhang, Improved Adam Optimizer for Deep Neural Networks, 2018, Algorithm 1; `a longer version
    <https://arxiv.org/abs/1709.04546>`_
  """
  axes_of, names_of = resolve_axes(axes), resolve_names(axis_name)

  def square(path: str, grad: jax.Array) -> jax.Array:
    along = axes_of(path, grad)
    return elementwise(path, grad) if along is None else sum_over(along, names_of(path, grad))(abs_sq(grad))

  return square


def _stateless_with_params(
  name: str, f: Callable[[str, jax.Array, jax.Array], jax.Array]
) -> optax.GradientTransformation:
  """`optax.stateless_with_tree_map` for a function that takes the leaf's path as well."""

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    if params is None:
      raise ValueError(
        f"{name} needs the current value of the parameters, but you are not passing `params` when calling `update`."
      )
    return map_with_paths(f, updates, params), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _in_arithmetic(update: jax.Array, param: jax.Array) -> tuple[jax.Array, jax.Array]:
  dtype = arithmetic_dtype(update)
  return jnp.asarray(update, dtype), jnp.asarray(param, dtype)


def sum_over(axes: tuple[int, ...], names: tuple[str, ...] = ()) -> Total:
  """Sums along `axes`, which stay as axes of size 1, and over the devices that the mesh axes `names` number."""

  def total(x: jax.Array) -> jax.Array:
    x = jnp.sum(x, axes, keepdims=True)
    split = split_axes(names)
    return jax.lax.psum(x, split) if split else x

  return total


def tangent(g: jax.Array, w: jax.Array, total: Total) -> jax.Array:
  """The part of g that is tangent to the sphere, g − (g·w)/(w·w) w."""
  return g - coefficient(total(_product(g, w)), total(_product(w, w))) * w


def on_sphere(w: jax.Array, total: Total) -> jax.Array:
  """The vector w/‖w‖, of unit length."""
  return unit(w, total(_product(w, w)))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  """What the real scalar product of two vectors sums."""
  return a.real * b.real + a.imag * b.imag if jnp.iscomplexobj(a) else a * b


def coefficient(product: jax.Array, square: jax.Array) -> jax.Array:
  """(g·w)/(w·w), the part of g along w; 0 where the squared length is 0, or the quotient leaves the dtype's range."""
  quotient = product / jnp.where(square > 0, square, 1)
  return jnp.where((square > 0) & jnp.isfinite(quotient), quotient, 0)


def unit(w: jax.Array, square: jax.Array) -> jax.Array:
  """w/‖w‖, given ‖w‖²; a vector whose squared length is 0, or too large for the dtype, stays as it is."""
  usable = (square > 0) & jnp.isfinite(square)
  return w / jnp.where(usable, jnp.sqrt(jnp.where(usable, square, 1)), 1)
