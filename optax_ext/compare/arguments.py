"""The arguments of `compare`, checked before anything is built: optimizers by name, rates, seeds, options."""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optax_ext._common.arguments import check_whole, shown
from optax_ext.compare import grid
from optax_ext.compare.batching import WAYS
from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.problem import Problem


def resolve(optimizers: Any, problem: Problem, add_baselines: bool) -> dict[str, Optimizer]:
  """The optimizers by name, with the matched baselines of the named ones."""
  if isinstance(optimizers, Mapping):
    named_as = lambda name, o: dataclasses.replace(o, name=name) if isinstance(o, Optimizer) else Optimizer(name, o)
    optimizers = [named_as(name, of) for name, of in optimizers.items()]
  resolved: dict[str, Optimizer] = {}
  if isinstance(optimizers, str) or not isinstance(optimizers, Sequence) or not optimizers:
    raise ValueError(f"optimizers must be a list of at least one name or Optimizer, but was {optimizers!r}.")
  for optimizer in optimizers:
    if isinstance(optimizer, str):
      from optax_ext.compare.names import named

      optimizer = named(optimizer, problem)
    elif not isinstance(optimizer, Optimizer):
      raise TypeError(
        f"An optimizer must be a name or an Optimizer, but one was {shown(optimizer)}: give a dict from names to "
        'functions of the learning rate, as {"mine": optax_ext.adamnx}.'
      )
    if optimizer.name in resolved:
      raise ValueError(f"Two optimizers have the name {optimizer.name!r}; give each its own.")
    resolved[optimizer.name] = optimizer
  if add_baselines:
    from optax_ext.compare.names import NAMES, named

    missing = [b for o in resolved.values() for b in o.baselines if b not in resolved and b in NAMES]
    resolved |= {name: named(name, problem) for name in missing}
    if unknown := {b for o in resolved.values() for b in o.baselines} - resolved.keys():
      raise ValueError(f"Baselines must be among the optimizers, or known by name, but {sorted(unknown)} are neither.")
  return resolved


def baseline_names(optimizers: Mapping[str, Optimizer]) -> list[str]:
  """Of all optimizers, those that are baselines of others."""
  return [b for o in optimizers.values() for b in o.baselines if b in optimizers]


def seeds_of(seeds: int | Sequence[int], first: int, name: str) -> list[int]:
  """The seeds, of which there are as many as given from `first` on, or which are listed.

  Raises:
    ValueError: they are neither.
  """
  whole = lambda number: isinstance(number, numbers.Integral) and not isinstance(number, bool) and int(number) >= 0
  counted = [first + i for i in range(int(seeds))] if whole(seeds) else []  # type: ignore
  listed: list[Any] = list(seeds) if isinstance(seeds, Iterable) else counted
  chosen = [int(seed) if whole(seed) else -1 for seed in listed]
  if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
    raise ValueError(
      f"{name} must be a number of at least 1, or different whole numbers of at least 0, but was {seeds!r}."
    )
  return chosen


def rates_of(learning_rates: Sequence[float] | None) -> list[float]:
  """The grid for all in ascending order; empty where each optimizer has its own."""
  if learning_rates is None:
    return []
  try:
    rates = sorted(float(rate) for rate in learning_rates)
    listed = not isinstance(learning_rates, str)
  except (TypeError, ValueError):
    rates, listed = [], False
  if not listed:
    raise ValueError(f"learning_rates must be a list of rates, but was {learning_rates!r}; for one rate give a list.")
  if not rates:
    raise ValueError("learning_rates is an empty grid: give at least one rate, or None for a grid around the centre.")
  if not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
    raise ValueError(f"learning_rates must be different finite numbers above 0, but were {rates}.")
  return rates


def check_options(
  learning_rates: Sequence[float],
  points: int,
  ratio: float,
  track: str,
  quick: bool,
  trials: int,
  single_rate: float | None,
  margin: float,
  batching: str,
  curve_points: int | None,
) -> None:
  """Raises `ValueError` for an option of `compare` that is none, or does not fit another."""
  grid.grid(1.0, points, ratio)
  if track not in ("A", "B"):
    raise ValueError(f"track must be 'A' (learning rate alone) or 'B' (all settings), but was {track!r}.")
  if track == "B" and quick:
    raise ValueError("quick tunes learning rates alone: leave quick out, or choose track 'A'.")
  if track == "B" and learning_rates:
    raise ValueError(
      "Track B draws learning rates from ranges around the centres: leave learning_rates out, or track A."
    )
  check_whole("trials", trials, 1)
  if single_rate is not None and not 0 <= single_rate < math.inf:
    raise ValueError(f"single_rate must be a finite number above 0, 0 for none or None, but was {single_rate}.")
  if not 0 <= margin < math.inf:
    raise ValueError(f"margin must be a finite number of at least 0, but was {margin}.")
  if batching not in ("auto", *WAYS):
    raise ValueError(f"batching must be 'auto', 'map', 'vmap' or 'step', but was {batching!r}.")
  if curve_points is not None:
    check_whole("curve_points", curve_points)
