"""Optimizers by name. Beside the problems with models this is the one file that imports other parts of the library.

Centres are half decades: Adam's usual rate corrected by the known effective step (EXAdam's is 7 to 28 times Adam's, 2
to 16 without its logarithm; CaAdam's multiplicative rule multiplies by up to 5). `adamnx` and `adamw` decay alike.
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_ext
from optax_ext.compare import peers
from optax_ext.compare.grid import Range
from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.peers import B1, B2, DECAY
from optax_ext.compare.problem import Problem

EIGHT_BITS, SPLIT = "-8bit", "-split"
LOWER = 10**-3.5  # half a decade below 1e-3


def _adam(problem: Problem) -> Optimizer:
  return Optimizer("adam", optax.adam, 1e-3, {"b1": B1, "b2": B2})


def _adamw(problem: Problem) -> Optimizer:
  make = lambda learning_rate, weight_decay=0.01, **settings: optax.adamw(
    learning_rate, weight_decay=weight_decay, **settings
  )
  return Optimizer("adamw", make, 1e-3, {"b1": B1, "b2": B2, "weight_decay": DECAY})


def _momentum(problem: Problem) -> Optimizer:
  """SGD with momentum and coupled L2 (gradient + λ·w), as the ND-Adam paper's baseline."""

  def make(learning_rate: Any, momentum: Any = 0.9, weight_decay: Any = 1e-3) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum))

  return Optimizer("sgd_l2", make, 0.1, {"momentum": B1, "weight_decay": Range(1e-5, 1e-2)})


def _sgd(problem: Problem) -> Optimizer:
  make = lambda learning_rate, momentum=0.9: optax.sgd(learning_rate, momentum)
  return Optimizer("sgd", make, 0.1, {"momentum": B1})


def _exadam(log_step: bool) -> Callable[[Problem], Optimizer]:
  def of(problem: Problem) -> Optimizer:
    make = lambda learning_rate, **settings: optax_ext.exadam(learning_rate, log_step=log_step, **settings)
    name, centre = ("exadam", 1e-4) if log_step else ("exadam_nolog", LOWER)
    return Optimizer(name, make, centre, {"b1": B1, "b2": B2}, ("adam",))

  return of


def _adamnx(problem: Problem) -> Optimizer:
  space = {"b1": B1, "b2": Range(0.9, 0.999, "complement"), "weight_decay": DECAY}
  return Optimizer("adamnx", optax_ext.adamnx, 1e-3, space, ("adamw",))


def _caadam(name: str, rule: Callable[..., Any], centre: float, gamma: Range) -> Callable[[Problem], Optimizer]:
  def of(problem: Problem) -> Optimizer:
    def make(learning_rate: Any, **settings: Any) -> optax.GradientTransformation:
      chosen = rule(settings.pop("gamma")) if "gamma" in settings else rule()
      return optax_ext.caadam(learning_rate, rule=chosen, structure=problem.structure, **settings)

    return Optimizer(name, make, centre, {"b1": B1, "b2": B2, "gamma": gamma}, ("adam",))

  return of


def _nd_adam(problem: Problem) -> Optimizer:
  """On the vectors of the units that a normaliser follows: by the problem's hints, else by the trace, else on all."""
  axes, normalised = problem.hints.get("axes"), problem.hints.get("normalised_units")
  if axes is None and problem.structure is not None and problem.structure.traced():
    normalised = any(facts.normalised for facts in problem.structure.leaves())
    axes = problem.structure.normalised_axes() if normalised else None

  def make(learning_rate: Any, rate_ratio: Any = 50.0, **settings: Any) -> optax.GradientTransformation:
    of_vectors = _times(rate_ratio, learning_rate)
    where = {"axes": axes} if axes is not None else {"structure": problem.structure}
    return optax_ext.nd_adam(learning_rate, vector_learning_rate=of_vectors, **where, **settings)

  def prepare(params: Any) -> Any:
    along = axes if axes is not None else problem.structure or optax_ext.structure_from_params(params)
    return optax_ext.normalize_vectors(params, along)

  note = "" if normalised else "outside the method's conditions: no normaliser after each unit"
  space = {"b1": B1, "b2": B2, "rate_ratio": Range(5, 500)}
  return Optimizer("nd_adam", make, 1e-3, space, ("adam", "sgd_l2"), prepare, note=note)


NAMES: dict[str, Callable[[Problem], Optimizer]] = {
  "adam": _adam,
  "adamw": _adamw,
  "sgd": _sgd,
  "sgd_l2": _momentum,
  "exadam": _exadam(log_step=True),
  "exadam_nolog": _exadam(log_step=False),
  "adamnx": _adamnx,
  "caadam_additive": _caadam("caadam_additive", optax_ext.Additive, 1e-3, Range(0.3, 0.99, "linear")),
  "caadam_multiplicative": _caadam("caadam_multiplicative", optax_ext.Multiplicative, LOWER, Range(1.5, 15)),
  "caadam_depth": _caadam("caadam_depth", optax_ext.ByDepth, 1e-3, Range(0.3, 3)),
  "nd_adam": _nd_adam,
}


def named(name: str, problem: Problem) -> Optimizer:
  """The optimizer of a name: one of `NAMES`, or any of optax and optax.contrib, as "lion", "muon", "prodigy".

  With "-8bit" at its end the state is kept in 8 bits, with "-split" float32 weights in bfloat16 and 8 more bits; both
  are "adamw-8bit-split".

  Raises:
    ValueError: there is none.
  """
  check_name(name)
  if name.endswith(SPLIT):
    whole = named(name.removesuffix(SPLIT), problem)
    prepare = lambda params: _narrow(whole.prepare(params) if whole.prepare else params)
    return _wrapped(name, whole, optax_ext.split_weights, prepare=prepare, evaluated=_joined(whole))
  if name.endswith(EIGHT_BITS):
    return _wrapped(name, named(name.removesuffix(EIGHT_BITS), problem), optax_ext.quantize_state)
  return NAMES[name](problem) if name in NAMES else peers.peer(name, problem)


def _wrapped(name: str, whole: Optimizer, wrap: Callable[[Any], Any], **changes: Any) -> Optimizer:
  """An optimizer in fewer bytes, tuned and compared as the whole one."""
  make = lambda learning_rate, **settings: wrap(whole.make(learning_rate, **settings))
  return dataclasses.replace(whole, name=name, make=make, baselines=whole.baselines or (whole.name,), **changes)


def _narrow(params: Any) -> Any:
  """float32 parameters in bfloat16."""
  return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf, params)


def _joined(whole: Optimizer) -> Callable[[Any, Any], Any]:
  """What is measured of split weights: the float32 ones that the optimizer sees."""

  def evaluated(state: Any, params: Any) -> Any:
    weights = optax_ext.join_weights(params, state)
    return whole.evaluated(state.inner_state, weights) if whole.evaluated else weights

  return evaluated


def check_name(name: str) -> None:
  """Raises `ValueError` unless there is an optimizer of that name."""
  whole = name.removesuffix(SPLIT).removesuffix(EIGHT_BITS)
  if whole not in NAMES and peers.find(whole) is None:
    close = difflib.get_close_matches(whole, {*NAMES, *peers.names()}, 3, 0.75)
    meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
      f"Unknown optimizer {name!r}; the known ones are {', '.join(NAMES)}, and those of optax and optax.contrib that "
      f"need nothing but a learning rate, each also with -8bit, -split or -8bit-split behind its name.{meant}"
    )


def _times(factor: Any, rate: Any) -> Any:
  return (lambda count: factor * rate(count)) if callable(rate) else factor * rate
