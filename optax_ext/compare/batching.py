"""Chooses how a problem's runs are batched, from its program: nothing is compiled or timed for the choice.

- "vmap": many runs at once, in a loop over steps. Small programs cost little more for many runs than for one.
- "map": one run a device, in such a loop. For programs whose arithmetic outweighs all else.
- "step": one run a device, and each step a program of its own. XLA's CPU compiler makes convolutions fast outside of
  loops alone.
"""

from collections.abc import Sequence
from typing import Any

import jax

from optax_ext.compare.fingerprint import Traced

WAYS = ("map", "vmap", "step")
LARGE = 1e8  # floating-point operations of a step with its gradient, on a CPU
LANES = 32  # runs at once; more gain nothing
OPERATIONS, BYTES = 1e11, 2**31  # of steps of runs at once; of their parameters, gradients and optimizer's states
COPIES = 5  # of the parameters in a run: they, gradient, update, two moments


def chosen(batching: str, traced: Traced, devices: Sequence[Any] | None) -> str:
  """`batching`, or the way that suits where it is "auto"."""
  if batching != "auto":
    return batching
  on_cpu = (devices or jax.local_devices())[0].platform == "cpu"
  if on_cpu and traced.convolves:
    return "step"
  return "map" if on_cpu and traced.operations > LARGE else "vmap"


def most_lanes(traced: Traced) -> int:
  """How many runs go at once on one device."""
  return int(max(1, min(LANES, OPERATIONS // traced.operations, BYTES // (COPIES * traced.bytes))))
