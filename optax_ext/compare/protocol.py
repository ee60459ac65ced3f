"""`Protocol`: how long a run trains, when it stops, how its learning rate changes. Programs decide for each run."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_ext._common.arguments import check_whole

Shape = Callable[[jax.Array], jax.Array]  # count from 0 -> factor of the learning rate


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
  """Stops after `patience` evaluations in a row that were not better than the best by more than `min_delta` (as Keras).

  Attributes:
    patience: Evaluations, at least 1.
    min_delta: In units of the metric.
    start: Evaluations (from 0) before this one are not looked at.
  """

  patience: int
  min_delta: float = 0.0
  start: int = 0

  def __post_init__(self) -> None:
    check_whole("patience", self.patience, 1)
    check_whole("start", self.start, 0)
    _check_between("min_delta", self.min_delta, 0, math.inf)


@dataclasses.dataclass(frozen=True)
class ReduceOnPlateau:
  """Multiplies the learning rate by `factor` after `patience` evaluations without improvement (as Keras).

  Attributes:
    factor: From 0 (down to the lowest rate at once) to 1 (none).
    patience: Evaluations, at least 1.
    min_delta: In units of the metric.
    cooldown: Evaluations after a reduction that do not count.
    min_rate: The learning rate is not reduced below this,
    min_scale: nor below this part of the initial one.
  """

  factor: float = 0.1
  patience: int = 10
  min_delta: float = 1e-4
  cooldown: int = 0
  min_rate: float = 0.0
  min_scale: float = 0.0

  def __post_init__(self) -> None:
    check_whole("patience", self.patience, 1)
    check_whole("cooldown", self.cooldown, 0)
    for name, high in [("factor", 1), ("min_delta", math.inf), ("min_rate", math.inf), ("min_scale", 1)]:
      _check_between(name, getattr(self, name), 0, high)


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A run's length, evaluations and learning-rate schedule.

  Attributes:
    steps: Most steps of a run; a multiple of `evaluate_every`.
    evaluate_every: Steps between evaluations of the validation data.
    schedule: "constant"; "cosine" (linear warm-up in the first `warmup` of the steps, then half a cosine to 0); or a
      function of the count from 0 that gives a factor of the learning rate.
    warmup: Part of the steps, for "cosine".
    early_stopping: Where given, runs may end before `steps`.
    plateau: Where given, the learning rate falls when the validation metric does not.
    report: "best" for the metrics at the best validation value (best weights; with early stopping the last that was
      better by `min_delta`, as Keras restores), "last" for those at the last evaluation.
  """

  steps: int
  evaluate_every: int
  schedule: str | Shape = "constant"
  warmup: float = 0.05
  early_stopping: EarlyStopping | None = None
  plateau: ReduceOnPlateau | None = None
  report: str = "best"

  def __post_init__(self) -> None:
    check_whole("steps", self.steps, 1)
    check_whole("evaluate_every", self.evaluate_every, 1)
    _check_between("warmup", self.warmup, 0, 1)
    if self.steps % self.evaluate_every:
      raise ValueError(
        f"steps must be a multiple of evaluate_every, so that the last step is evaluated, but were {self.steps} and "
        f"{self.evaluate_every}."
      )
    if not callable(self.schedule) and self.schedule not in ("constant", "cosine"):
      raise ValueError(f"schedule must be 'constant', 'cosine' or a function of the count, but was {self.schedule!r}.")
    if self.report not in ("best", "last"):
      raise ValueError(f"report must be 'best' or 'last', but was {self.report!r}.")

  @property
  def evaluations(self) -> int:
    """The number of evaluations in a run that does not stop early."""
    return self.steps // self.evaluate_every

  def best(self, values: Sequence[float]) -> int:
    """The index of the evaluation with the best weights. Less is better. The last one where none was looked at."""
    looked_at = self.early_stopping or EarlyStopping(1)
    index, best = len(values) - 1, math.inf
    for i, value in enumerate(values):
      if i >= looked_at.start and value < best - looked_at.min_delta:
        index, best = i, value
    return index

  def shape(self) -> Shape | None:
    """The schedule as a function; `None` for a constant."""
    if callable(self.schedule):
      return self.schedule
    return warmup_cosine(self.steps, round(self.warmup * self.steps)) if self.schedule == "cosine" else None


def _check_between(name: str, value: float, low: float, high: float) -> None:
  if not low <= value <= high:
    raise ValueError(f"{name} must be a number from {low} to {high}, but was {value!r}.")


def warmup_cosine(steps: int, warmup: int) -> Shape:
  """(count+1)/warmup while that is below 1, then half a cosine from 1 to 0 at `steps`."""

  def factor(count: jax.Array) -> jax.Array:
    done = (count - warmup) / max(steps - warmup, 1)
    return jnp.where(count < warmup, (count + 1) / max(warmup, 1), 0.5 * (1 + jnp.cos(math.pi * jnp.clip(done, 0, 1))))

  return factor


class Watch(NamedTuple):
  """What early stopping and the plateau remember of a run. Values are the metric's, signed so that less is better."""

  best: jax.Array
  wait: jax.Array
  plateau_best: jax.Array
  plateau_wait: jax.Array
  cooldown: jax.Array
  scale: jax.Array  # of the learning rate
  stopped: jax.Array
  diverged: jax.Array


def watch() -> Watch:
  """Before the first evaluation."""
  infinity, zero, false = jnp.float32(jnp.inf), jnp.int32(0), jnp.bool_(False)
  return Watch(infinity, zero, infinity, zero, zero, jnp.float32(1), false, false)


def judge(
  protocol: Protocol, seen: Watch, index: jax.Array, value: jax.Array, rate: jax.Array, finite: jax.Array
) -> Watch:
  """After evaluation `index` (from 0) gave `value`; `rate` is the run's initial learning rate.

  A run diverges where its loss or metric is not finite; it then stops.
  """
  value = jnp.asarray(value, jnp.float32)
  if stopping := protocol.early_stopping:
    counts = index >= stopping.start
    better = counts & (value < seen.best - stopping.min_delta)
    wait = jnp.where(better, 0, seen.wait + counts)
    stop = (wait >= stopping.patience) & (index > 0)
    seen = seen._replace(best=jnp.where(better, value, seen.best), wait=wait, stopped=seen.stopped | stop)
  if plateau := protocol.plateau:
    cooldown = jnp.maximum(seen.cooldown - 1, 0)
    waited = jnp.where(seen.cooldown > 0, 0, seen.plateau_wait)
    better = value < seen.plateau_best - plateau.min_delta
    waited = jnp.where(better, 0, waited + (cooldown == 0))
    lowest = jnp.minimum(jnp.maximum(plateau.min_rate / rate, plateau.min_scale), 1).astype(jnp.float32)
    reduce = (waited >= plateau.patience) & (seen.scale > lowest)
    seen = seen._replace(
      plateau_best=jnp.where(better, value, seen.plateau_best),
      plateau_wait=jnp.where(reduce, 0, waited),
      cooldown=jnp.where(reduce, plateau.cooldown, cooldown),
      scale=jnp.where(reduce, jnp.maximum(seen.scale * plateau.factor, lowest), seen.scale),
    )
  return seen._replace(stopped=seen.stopped | ~finite, diverged=seen.diverged | ~finite)
