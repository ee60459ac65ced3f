"""Optimizers of optax and optax.contrib by name, with ranges of their settings.

The ranges are by a setting's name, since optax names settings alike.
"""

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from optax_ext.compare.grid import Range
from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.problem import Problem

B1 = Range(0.8, 0.98, "complement")
B2 = Range(0.9, 0.9999, "complement")
DECAY = Range(1e-4, 0.3)
SPACE = {"b1": B1, "b2": B2, "weight_decay": DECAY, "momentum": B1, "decay": Range(0.8, 0.999, "complement")}
MORE: Mapping[str, Mapping[str, Range]] = {
  "muon": {"beta": B1},
  "signum": {"beta": B1},
  "momo": {"beta": B1},
  "ademamix": {"alpha": Range(1, 20), "b3": Range(0.999, 0.99999, "complement")},
  "adan": {"b1": B1, "b2": Range(0.8, 0.98, "complement"), "b3": Range(0.9, 0.999, "complement")},
}
CENTRES = {"muon": 0.02, "lion": 1e-4, "lars": 0.1, "sign_sgd": 1e-4, "signum": 1e-4, "adagrad": 1e-2, "fromage": 1e-2}


def find(name: str) -> Callable[..., Any] | None:
  """A constructor of the learning rate in optax or optax.contrib; `None` for pieces, such as `clip`, `scale_by_adam`.

  Args:
    name: As "lion", "muon" or "contrib.muon".
  """
  path = name.removeprefix("contrib.").split(".")
  places = [optax.contrib] if name.startswith("contrib.") else [optax, optax.contrib]
  for place in places:
    found: Any = functools.reduce(_member, path, place)
    if isinstance(found, types.FunctionType | functools.partial) and _takes_a_rate(path[-1], found):
      return found
  return None


def names() -> list[str]:
  """All that `find` finds, in optax's order."""
  return [name for place in (optax, optax.contrib) for name in vars(place) if name.islower() and find(name)]


def peer(name: str, problem: Problem) -> Optimizer:
  """An optimizer of optax, tuned around its default learning rate, its usual one, or 1e-3.

  Of the schedule-free ones the averaged parameters are measured. Muon is told which axes of the problem's weights are
  inputs and outputs, where its structure is known.
  """
  make = find(name)
  assert make is not None
  last = name.rpartition(".")[2]
  rate, *settings = inspect.signature(make).parameters.values()
  default = rate.default if isinstance(rate.default, int | float) and rate.default > 0 else 1e-3
  known = {**SPACE, **MORE.get(last, {})}
  space = {setting.name: known[setting.name] for setting in settings if setting.name in known}
  if last == "muon" and problem.structure is not None and problem.structure.traced():
    make = functools.partial(make, muon_weight_dimension_numbers=problem.structure.muon_dimension_numbers())
  if any(setting.name == "key" for setting in settings):  # of its noise, the same in every run
    make = functools.partial(make, key=jax.random.key(0))
  if last == "sophia":
    make = _told_the_loss(make)
  evaluated = optax.contrib.schedule_free_eval_params if "schedule_free" in last else None
  return Optimizer(name, make, CENTRES.get(last, float(default)), space, ("adam",), evaluated=evaluated)


def _told_the_loss(make: Callable[..., Any]) -> Callable[..., optax.GradientTransformationExtraArgs]:
  """Sophia estimates second derivatives of the loss, which it calls `obj_fn` and others `value_fn`."""

  def of(learning_rate: Any, **settings: Any) -> optax.GradientTransformationExtraArgs:
    tx = optax.with_extra_args_support(make(learning_rate, **settings))

    def update(updates: Any, state: Any, params: Any = None, *, value_fn: Any = None, **extra: Any) -> Any:
      return tx.update(updates, state, params, obj_fn=value_fn, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)

  return of


def _member(module: Any, name: str) -> Any:
  """What a module holds under a name, but for names that it only gives with a warning."""
  return vars(module).get(name) if isinstance(module, types.ModuleType) else None


def _takes_a_rate(name: str, make: Any) -> bool:
  """Whether the first argument is a learning rate, and no other is needed."""
  if name.startswith("_") or "scale_by_" in name:
    return False
  parameters = [*inspect.signature(make).parameters.values()]
  needed = [of for of in parameters[1:] if of.default is of.empty and of.kind is of.POSITIONAL_OR_KEYWORD]
  return bool(parameters) and parameters[0].name.endswith("learning_rate") and not needed
