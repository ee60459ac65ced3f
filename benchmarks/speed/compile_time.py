"""How long a step takes to trace, lower and compile on this machine, relative to optax.adam's.

    python benchmarks/speed/compile_time.py

The optimizers take turns within each run, so that a slow moment of the machine meets all of them; each figure is the
median over the runs of the ratio within a run. Writes `benchmarks/results/speed/compile_time.md`, unless `--trees` are
others.
"""

import argparse
import os
import statistics
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from cases import CASES, TIMED, Case
from report import heading, markdown_table, this_machine, write

import optax_ext

TREES = ["200x64", "1000x64", "200x256"]  # from 256 on, nd_adam's leaves are large enough for its single reading
STEPS = {name: CASES[name] for name in TIMED} | {"caadam, multiplicative": Case(optax_ext.caadam(1e-3))}
TARGETS = {"caadam, by depth": 1.4, "caadam, multiplicative": 1.4, "adamnx": 1.4, "exadam": 2.0, "nd_adam": 3.5}


def layers(leaves: int, side: int) -> Any:
  """Abstract parameters: `leaves` arrays, half of them square kernels and half biases."""
  layer = {
    "kernel": jax.ShapeDtypeStruct((side, side), jnp.float32),
    "bias": jax.ShapeDtypeStruct((side,), jnp.float32),
  }
  return {f"layer_{i}": layer for i in range(leaves // 2)}


def seconds_to_compile(case: Case, params: Any) -> tuple[float, float]:
  """Seconds to trace and lower one donated step, and to compile it."""
  jax.clear_caches()
  state = jax.eval_shape(case.tx.init, params)
  step = jax.jit(lambda params, state, grads: case.step(case.tx, grads, state, params), donate_argnums=(0, 1))
  start = time.perf_counter()
  lowered = step.lower(params, state, params)
  middle = time.perf_counter()
  lowered.compile()
  return middle - start, time.perf_counter() - middle


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--trees", nargs="+", default=TREES, help="leaves x side of the kernels (200x64 1000x64 200x256)")
  parser.add_argument("--runs", type=int, default=5, help="(5)")
  options = parser.parse_args()
  sections = [heading("Trace, lower and compile, relative to optax.adam", this_machine(), f"{options.runs} runs")]
  for tree in options.trees:
    leaves, side = map(int, tree.split("x"))
    params = layers(leaves, side)
    runs = [{name: seconds_to_compile(step, params) for name, step in STEPS.items()} for _ in range(options.runs)]
    rows = []
    for name in STEPS:
      ratios = [sum(run[name]) / sum(run["optax.adam"]) for run in runs]
      trace, compile_ = (statistics.median(run[name][i] for run in runs) for i in (0, 1))
      at_most = f"{TARGETS[name]:.1f}" if name in TARGETS else ""
      spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
      rows.append([name, f"{statistics.median(ratios):.2f}", spread, at_most, f"{trace:.2f}", f"{compile_:.2f}"])
    what = f"{leaves} leaves, kernels {side}×{side}"
    sections.append(markdown_table([what, "ratio", "in the runs", "target", "trace, lower, s", "compile, s"], rows))
  if options.trees == TREES:
    write("compile_time.md", *sections)
  else:
    print("\n\n".join(sections))


if __name__ == "__main__":
  main()
