"""Functions and dtypes as arguments under `optax.inject_hyperparams`, which takes every callable for a schedule.

It would call a `mask` with the step count, so that nothing decays, and `axes` with one argument of two. It learns an
optimizer's arguments from `inspect.signature(...).bind`. There `not_schedules` puts them into boxes that cannot be
called, and the optimizer takes them out with `unboxed`.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp

Factory = TypeVar("Factory", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Box:
  """Holds a function, and is none itself."""

  function: Callable[..., Any]


class Signature(inspect.Signature):
  """A function's signature, whose `bind` boxes what can be called and is no schedule."""

  not_schedules: frozenset[str] = frozenset()

  def bind(self, /, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
    """As `inspect.Signature.bind`; a class of numbers becomes the dtype that it stands for."""
    bound = super().bind(*args, **kwargs)
    for name in bound.arguments.keys() & self.not_schedules:
      value = bound.arguments[name]
      if not callable(value):
        continue
      bound.arguments[name] = jnp.dtype(bound.arguments[name]) if name.endswith("_dtype") else Box(value)
    return bound


def unboxed(value: Any) -> Any:
  """The function in a box, or the value itself."""
  return value.function if isinstance(value, Box) else value


def not_schedules(*names: str) -> Callable[[Factory], Factory]:
  """Says in a function's signature which of its arguments are no schedules, even if they can be called.

  >>> import optax
  >>> @not_schedules("mask")
  ... def decayed(learning_rate, mask):
  ...   return optax.chain(optax.add_decayed_weights(0.1, unboxed(mask)), optax.scale_by_learning_rate(learning_rate))
  >>> tx = optax.inject_hyperparams(decayed)(1.0, lambda params: {"bias": False, "kernel": True})
  >>> params = {"bias": jnp.ones(1), "kernel": jnp.ones(1)}
  >>> print(tx.update(params, tx.init(params), params)[0])
  {'bias': Array([-1.], dtype=float32), 'kernel': Array([-1.1], dtype=float32)}
  """

  def said(function: Factory) -> Factory:
    own = inspect.signature(function)
    signature = Signature(list(own.parameters.values()), return_annotation=own.return_annotation)
    signature.not_schedules = frozenset(names)
    function.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return function

  return said
