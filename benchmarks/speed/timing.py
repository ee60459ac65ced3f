"""How long a step takes: contenders that take turns, and what a step of an optax optimizer is among them."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from cases import Case


@dataclasses.dataclass(frozen=True)
class Contender:
  """Something that is timed.

  Attributes:
    start: Makes what the first step takes.
    step: From what a step takes to what the next one takes; it may go on in the background.
    wait: Waits until all steps so far are done.
  """

  start: Callable[[], Any]
  step: Callable[[Any], Any]
  wait: Callable[[Any], Any] = lambda state: None


def optax_contender(case: Case, shapes: Any) -> Contender:
  """A compiled step with donated parameters and state, and gradients that stay the same."""
  step = jax.jit(lambda params, state, grads: case.step(case.tx, grads, state, params), donate_argnums=(0, 1))

  def start() -> tuple[Any, Any, Any]:
    full = lambda value: jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), shapes)
    params = full(0.02)
    return params, jax.jit(case.tx.init)(params), full(0.01)

  def next_step(arrays: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    return (*step(*arrays), arrays[2])

  return Contender(start, next_step, jax.block_until_ready)


def seconds_per_step(contender: Contender, at_least: float) -> float:
  """The mean over so many steps that they take `at_least` seconds, after at least one more that is not counted."""
  state = contender.step(contender.start())
  contender.wait(state)
  steps = 1
  while True:
    begin = time.perf_counter()
    for _ in range(steps):
      state = contender.step(state)
    contender.wait(state)
    elapsed = time.perf_counter() - begin
    if elapsed >= at_least:
      return elapsed / steps
    steps = max(2 * steps, int(1.2 * steps * at_least / elapsed))


def take_turns(contenders: dict[str, Contender], rounds: int, at_least: float) -> dict[str, list[float]]:
  """Seconds per step of every contender in every round; only one of them holds memory at a time."""
  seconds: dict[str, list[float]] = {name: [] for name in contenders}
  for _ in range(rounds):
    for name, contender in contenders.items():
      seconds[name].append(seconds_per_step(contender, at_least))
  return seconds


def ratio(seconds: dict[str, list[float]], name: str, reference: str) -> float:
  """The median, over the rounds, of the ratio to the reference in the same round."""
  return statistics.median(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))
