"""Time of one optimizer step on the GPU at hand, and the share of the memory's speed that it reaches.

    python benchmarks/speed/gpu.py
    python benchmarks/speed/gpu.py --low-precision --parameters 1.24e8 1e9

The speed of the memory is that of a copy, measured on the same arrays in the same rounds: x + 1 in place, one word read
and one written. What a step moves is read off its compiled program. `--low-precision` takes steps on bfloat16 weights
beside Adam's on float32 ones. Writes `gpu.md`, with date and device, and every single time into `gpu.json`, anew after
each number of parameters, into `benchmarks/results/speed` or the folder that `--out` names. A step that does not
compile or fit has a line that says so. `--parameters 1e5 --side 128 --rounds 1 --seconds 0` shows on any machine that
all of it runs.
"""

import argparse
import json
import pathlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp
from cases import CASES, LOW_PRECISION, TIMED, Case, kernels
from report import RESULTS, heading, markdown_table, write
from timing import Contender, optax_contender, take_turns
from traffic import bytes_moved

COPY = "copy"


def copy_contender(shapes: Any) -> Contender:
  """All arrays plus 1, in place."""
  step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  start = lambda: jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)
  return Contender(start, step, jax.block_until_ready)


def moved_by(case: Case, shapes: Any) -> int | None:
  """Bytes that one step of a case moves, as compiled for the device at hand; `None` where it has loops, as on CPUs."""
  step = jax.jit(lambda params, state, grads: case.step(case.tx, grads, state, params), donate_argnums=(0, 1))
  text = step.lower(shapes, jax.eval_shape(case.tx.init, shapes), shapes).compile().as_text() or ""
  try:
    return bytes_moved(text)
  except NotImplementedError:
    return None


def measure(cases: dict[str, Case], parameters: float, side: int, rounds: int, seconds: float) -> dict[str, Any]:
  """Parameters, and by contender: bytes that a step moves and the seconds that it takes in each round, or the error."""
  count = max(1, round(parameters / side**2))
  shapes = {name: kernels(count, side, case.dtype) for name, case in cases.items()}
  contenders = {COPY: copy_contender(kernels(count, side, jnp.float32))}
  found: dict[str, dict[str, Any]] = {COPY: {"moved": 8 * count * side**2}}
  for name, case in cases.items():
    try:
      found[name] = {"moved": moved_by(case, shapes[name])}
      contender = optax_contender(case, shapes[name])
      contender.wait(contender.step(contender.start()))
      contenders[name] = contender
    except Exception as error:  # of a compiler, or for lack of memory: the others go on
      found[name] = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
  for name, of_rounds in take_turns(contenders, rounds, seconds).items():
    found[name]["seconds"] = of_rounds
  return {"parameters": count * side**2, "steps": found}


def table(found: dict[str, Any]) -> str:
  size, steps, rows = found["parameters"], found["steps"], []
  speed_of = lambda step: step["moved"] / statistics.median(step["seconds"])
  for name, step in steps.items():
    if "failed" in step:
      rows.append([f"{name}: {step['failed'].replace('|', '¦')}", *["–"] * 4])
      continue
    cells = ["–"] * 3
    if step["moved"] is not None:
      share = speed_of(step) / speed_of(steps[COPY])
      cells = [f"{step['moved'] / size:.2f}", f"{speed_of(step) / 1e9:.0f}", f"{share:.2f}"]
    rows.append([name, f"{1e3 * statistics.median(step['seconds']):.3f}", *cells])
  head = [f"{size / 1e6:.1f} million parameters", "ms", "bytes per parameter", "GB/s", "of the copy's"]
  return markdown_table(head, rows)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--parameters", type=float, nargs="+", default=[1e8, 5e8, 2e9], help="how many (1e8 5e8 2e9)")
  which = parser.add_mutually_exclusive_group()
  which.add_argument("--cases", nargs="+", choices=CASES, default=list(TIMED), metavar="CASE")
  which.add_argument("--low-precision", action="store_true", help="Adam in few bytes, beside Adam")
  parser.add_argument("--side", type=int, default=4096, help="of the square weights (4096)")
  parser.add_argument("--rounds", type=int, default=5, help="(5)")
  parser.add_argument("--seconds", type=float, default=0.5, help="at least, of every case in every round (0.5)")
  parser.add_argument("--out", type=pathlib.Path, help="folder of the results (benchmarks/results/speed)")
  options = parser.parse_args()
  cases = LOW_PRECISION if options.low_precision else {name: CASES[name] for name in options.cases}
  device = jax.devices()[0]
  facts = f"{options.rounds} rounds of at least {options.seconds:g} s"
  sections, found = [heading("Time of one step", device.device_kind, facts)], []
  for parameters in options.parameters:
    found.append(measure(cases, parameters, options.side, options.rounds, options.seconds))
    sections.append(table(found[-1]))
    if device.platform == "gpu" or options.out:
      folder = options.out or RESULTS
      write("gpu.md", *sections, folder=folder)
      (folder / "gpu.json").write_text(json.dumps({"device": device.device_kind, "sizes": found}, indent=1) + "\n")
    else:
      print("\n\n".join(sections))


if __name__ == "__main__":
  main()
