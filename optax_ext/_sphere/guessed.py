"""ND-Adam's axes guessed from the parameters that it sees, and a word where it sees no vector."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_ext._common.paths import described
from optax_ext._network.by_name import guess
from optax_ext._sphere.axes import Axes, vector_mask


def with_axes(
  make: Callable[[Axes], optax.GradientTransformationExtraArgs], axes: Axes
) -> optax.GradientTransformationExtraArgs:
  """The optimizer `make(axes)`; where `axes` is `None`, with the axes of `structure_from_params` of each tree.

  Warns at init where there are leaves and none holds vectors: all would take Adam's step, without a word.
  """
  given = make(axes)  # also where axes are guessed: bad arguments fail now

  def init(params: Any) -> Any:
    found = guess(params) if axes is None else axes
    state = make(found).init(params)
    if jax.tree.leaves(params) and not any(jax.tree.leaves(vector_mask(found)(params))):
      warnings.warn(
        f"nd_adam sees no weight vector among {described(params)}, so that it steps all of them as Adam does: give it "
        "axes= or structure=, take it out of optax.flatten, and let optax.masked or optax.partition show it weights.",
        stacklevel=2,
      )
    return state

  def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
    tx = make(guess(updates if params is None else params)) if axes is None else given
    return tx.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(init, update)
