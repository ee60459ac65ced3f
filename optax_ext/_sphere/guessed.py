"""Guesses ND-Adam's axes from the parameters that the optimizer sees."""

from collections.abc import Callable
from typing import Any

import optax

from optax_ext._network.by_name import guess
from optax_ext._sphere.axes import Axes
from optax_ext._sphere.conditions import warn_of_conditions


def with_axes(
  make: Callable[[Axes], optax.GradientTransformationExtraArgs], axes: Axes
) -> optax.GradientTransformationExtraArgs:
  """The optimizer `make(axes)`; where `axes` is `None`, with the axes of `structure_from_params` of each tree."""
  given = make(axes)  # also where axes are guessed: bad arguments fail now

  def init(params: Any) -> Any:
    found = guess(params) if axes is None else axes
    state = make(found).init(params)
    warn_of_conditions(params, found)
    return state

  def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
    tx = make(guess(updates if params is None else params)) if axes is None else given
    return tx.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(init, update)
