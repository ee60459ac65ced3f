"""Shardings for the state of an optimizer, from the shardings of the parameters."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from optax_ext._common.arguments import shown
from optax_ext._common.paths import by_path, check_paths, is_masked, map_with_paths


def state_shardings(tx: Any, params: Any, shardings: Any) -> Any:
  """Shardings of `tx.init(params)`, for parameters that are sharded as `shardings` says.

  - A leaf shaped like its parameter (a moment, an accumulated gradient, an average) is sharded like it.
  - Where an axis is shorter than its parameter's (ND-Adam's second moment along the axes that it sums over, scales of
    8-bit moments), the parameter's mesh axes split it if they divide its length. Otherwise no mesh axis splits it.
  - Everything else is replicated: counts, hyperparameters, leaves of another rank.

  Works through `optax.chain`, `masked`, `partition`, `MultiSteps`, `inject_hyperparams` and every transformation that
  `optax.tree.map_params` can read. It calls `tx.init` with a tree that has no leaves. So if a partition's labels are a
  function, the function must map over the parameters, and must not look up a parameter by its name.

  Args:
    tx: The optimizer, or anything with its method `init`.
    params: The parameters; `jax.ShapeDtypeStruct`s do. Only shapes and dtypes are read.
    shardings: A `NamedSharding` for each parameter: a tree like `params`, or a prefix of it, such as one for all.

  Returns:
    A tree like `tx.init(params)` of `NamedSharding`s, for `jax.jit(tx.init, out_shardings=...)`, `jax.device_put` or a
    checkpoint.

  Raises:
    TypeError: a sharding is not a `NamedSharding`.
    ValueError: `shardings` does not match `params`, there are no parameters and so no mesh, or `optax.tree.map_params`
      cannot read the state.

  Example:
    >>> from optax_ext import nd_adam
    >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
    >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}
    >>> specs = {"kernel": PartitionSpec("data", "model"), "bias": PartitionSpec("model")}
    >>> shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    >>> tx = nd_adam(1e-3)
    >>> of_state = state_shardings(tx, params, shardings)
    >>> moments = optax.tree.get(of_state, "ScaleByAdamState")
    >>> print(*(tuple(leaf.spec) for leaf in (moments.mu["kernel"], moments.nu["kernel"], moments.count)))
    ('data', 'model') (None, 'model') ()
    >>> state = jax.jit(tx.init, out_shardings=of_state)(params)
  """
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
  per_leaf = _for_each(shardings, abstract)
  meshes = [sharding.mesh for sharding in jax.tree.leaves(per_leaf)]
  if not meshes:
    raise ValueError("There are no parameters, so that no mesh is known to put the optimizer's state on.")

  def sharding_of(leaf: Any, param: Any, sharding: Any) -> Any:
    if is_masked(leaf):
      return leaf
    (param,), (sharding,) = jax.tree.leaves(param), jax.tree.leaves(sharding)  # out of Flax's boxes
    if leaf.shape == param.shape:
      return sharding
    spec = PartitionSpec()
    if leaf.ndim == param.ndim and all(n and whole % n == 0 for n, whole in zip(leaf.shape, param.shape, strict=True)):
      names = [*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec))]
      fits = lambda name, n, whole: n == whole or (n > 1 and n % _parts(sharding.mesh, name) == 0)
      sizes = zip(names, leaf.shape, param.shape, strict=True)
      spec = PartitionSpec(*[name if fits(name, n, whole) else None for name, n, whole in sizes])
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)

  state = jax.eval_shape(tx.init, abstract)
  try:
    return optax.tree.map_params(
      tx,
      sharding_of,
      state,
      abstract,
      per_leaf,
      transform_non_params=lambda leaf: NamedSharding(meshes[0], PartitionSpec()),
      is_leaf=is_masked,
    )
  except Exception as error:
    raise ValueError(
      "optax.tree.map_params cannot tell which parts of the optimizer's state are like the parameters, perhaps because "
      "a function of labels looks parameters up by name: give what it returns for your parameters, a tree, in its "
      f"place ({type(error).__name__}: {error})."
    ) from error


def _parts(mesh: Any, names: Any) -> int:
  """Into how many parts the mesh axes of one entry of a spec split an axis."""
  return math.prod(mesh.shape[name] for name in (names if isinstance(names, tuple) else (names,)) if name is not None)


def _for_each(shardings: Any, params: Any) -> Any:
  """One sharding for each parameter, from a tree of them or a prefix of it."""
  is_leaf = lambda node: isinstance(node, jax.sharding.Sharding | PartitionSpec)

  def check(path: str, sharding: Any) -> None:
    if sharding is not None and not isinstance(sharding, NamedSharding):
      raise TypeError(
        f"The sharding of {repr(path) if path else 'the parameters'} must be a jax.sharding.NamedSharding, which says "
        f"how a mesh splits each axis, but was {shown(sharding)}."
      )

  map_with_paths(check, shardings)
  try:
    return jax.tree.map(lambda s, below: jax.tree.map(lambda _: s, below), shardings, params, is_leaf=is_leaf)
  except ValueError as error:
    check_paths("The tree of shardings", by_path(shardings, is_leaf), params)
    raise ValueError(
      f"The tree of shardings does not match the parameters: it is {jax.tree.structure(shardings, is_leaf)}, they are "
      f"{jax.tree.structure(params)}."
    ) from error
