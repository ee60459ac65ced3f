"""Time of one optimizer step on the GPU at hand, and the share of the memory's speed that it reaches.

    python benchmarks/speed/gpu.py

The speed of the memory is that of a copy, measured on the same arrays in the same rounds: x + 1 in place, one word read
and one written. What a step moves is read off its compiled program. Writes `benchmarks/results/speed/gpu.md`, with date
and device, and every single time into `gpu.json`. `--parameters 1e5 --side 64 --rounds 1 --seconds 0` shows on any
machine that all of it runs.
"""

import argparse
import json
import math
import statistics
from typing import Any

import jax
from cases import CASES, TIMED, kernels
from report import RESULTS, heading, markdown_table, write
from timing import Contender, optax_contender, take_turns
from traffic import bytes_moved

COPY = "copy"


def copy_contender(shapes: Any) -> Contender:
  """All arrays plus 1, in place."""
  step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  start = lambda: jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)
  return Contender(start, step, jax.block_until_ready)


def moved_by(name: str, shapes: Any) -> int:
  """Bytes that one step of a case moves, as compiled for the device at hand."""
  case = CASES[name]
  step = jax.jit(lambda params, state, grads: case.step(case.tx, grads, state, params), donate_argnums=(0, 1))
  return bytes_moved(step.lower(shapes, jax.eval_shape(case.tx.init, shapes), shapes).compile().as_text() or "")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--parameters", type=float, nargs="+", default=[1e8, 5e8, 2e9], help="how many (1e8 5e8 2e9)")
  parser.add_argument("--cases", nargs="+", choices=CASES, default=list(TIMED), metavar="CASE")
  parser.add_argument("--side", type=int, default=4096, help="of the square weights (4096)")
  parser.add_argument("--rounds", type=int, default=5, help="(5)")
  parser.add_argument("--seconds", type=float, default=0.5, help="at least, of every case in every round (0.5)")
  options = parser.parse_args()
  device = jax.devices()[0]
  facts = f"{options.rounds} rounds of at least {options.seconds:g} s"
  sections, times = [heading("Time of one step on a GPU", device.device_kind, facts)], {}
  for parameters in options.parameters:
    shapes = kernels(max(1, round(parameters / options.side**2)), options.side)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    contenders = {COPY: copy_contender(shapes)} | {name: optax_contender(CASES[name], shapes) for name in options.cases}
    seconds = take_turns(contenders, options.rounds, options.seconds)
    moved = {COPY: 8 * size} | {name: moved_by(name, shapes) for name in options.cases}
    speed = {name: moved[name] / statistics.median(of_rounds) for name, of_rounds in seconds.items()}
    rows = []
    for name, of_rounds in seconds.items():
      time = f"{1e3 * statistics.median(of_rounds):.3f}"
      share = f"{speed[name] / speed[COPY]:.2f}"
      rows.append([name, time, f"{moved[name] / size:.2f}", f"{speed[name] / 1e9:.0f}", share])
    head = [f"{size / 1e6:.0f} million parameters", "ms", "bytes per parameter", "GB/s", "of the copy's"]
    sections.append(markdown_table(head, rows))
    times[str(size)] = seconds
  if device.platform != "gpu":
    print("\n\n".join(sections))
    return
  write("gpu.md", *sections)
  (RESULTS / "gpu.json").write_text(json.dumps({"device": device.device_kind, "seconds": times}, indent=1) + "\n")


if __name__ == "__main__":
  main()
