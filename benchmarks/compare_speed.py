"""Seconds for 56 runs (7 learning rates, 8 seeds): `compare`'s runner against plain jitted loops, compiled once.

    python benchmarks/compare_speed.py
    python benchmarks/compare_speed.py --problem digits --epochs 2 --seeds 1

Both train on the same batches and evaluate the validation data once an epoch. Compilation is left out, and printed
beside.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from optax_ext.compare import Optimizer, Problem, Protocol, batches, keys
from optax_ext.compare.problems.named import load
from optax_ext.compare.run import Runner, Task


def programs(problem: Problem) -> tuple[Any, Any, Any]:
  """Start, step and evaluation, compiled once; the learning rate is an argument."""

  def step(params: Any, state: Any, opt_state: Any, batch: Any, key: jax.Array, rate: float) -> tuple[Any, ...]:
    loss_of = lambda params: problem.loss_of(params, state, batch, key)
    (loss, new_state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = optax.adam(rate).update(grads, opt_state, params)
    return optax.apply_updates(params, updates), new_state, opt_state, loss

  return jax.jit(problem.start), jax.jit(step, donate_argnums=(0, 1, 2)), jax.jit(problem.metrics_of)


def plain(problem: Problem, compiled: tuple[Any, Any, Any], tasks: Sequence[Task], epochs: int) -> list[float]:
  """The last validation loss of each run, as anybody would compute it."""
  every = problem.steps_per_epoch
  start, step, evaluate = compiled
  validation = jax.device_put(problem.validation)
  final, metrics = [], {}
  for task in tasks:
    init, dropout = keys(task.seed)
    params, state = start(init)
    opt_state = optax.adam(1.0).init(params)
    rows = batches(problem, task.seed, 0, epochs * every)
    for i, chosen in enumerate(rows):
      batch = jax.tree.map(lambda array, chosen=chosen: array[chosen], problem.train)
      params, state, opt_state, _ = step(params, state, opt_state, batch, dropout, task.trial["learning_rate"])
      if (i + 1) % every == 0:
        metrics = evaluate(params, state, validation)
    final.append(float(metrics["loss"]))
  return final


RATES = np.geomspace(1e-4, 1e-1, 7)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--problem", default="breast_cancer", help="a bundled problem (breast_cancer)")
  parser.add_argument("--epochs", type=int, default=50, help="of each run (50)")
  parser.add_argument("--seeds", type=int, default=8, help="of each of the 7 learning rates (8)")
  options = parser.parse_args()
  problem = load(options.problem)
  tasks = [Task({"learning_rate": float(rate)}, seed) for rate in RATES for seed in range(options.seeds)]
  every = problem.steps_per_epoch
  protocol = Protocol(options.epochs * every, every)

  compiled = programs(problem)
  plain(problem, compiled, tasks[:1], 1)
  begin = time.perf_counter()
  expected = plain(problem, compiled, tasks, options.epochs)
  loops = time.perf_counter() - begin
  print(f"{len(tasks)} runs of {protocol.steps} steps: plain loops {loops:.2f} s", flush=True)
  for batching in ("map", "vmap", "step"):
    runner = Runner(problem, protocol, Optimizer("adam", optax.adam), batching)
    begin = time.perf_counter()
    results = runner.run(tasks)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    runner.run(tasks)
    again = time.perf_counter() - begin
    found = [result.curves["validation/loss"][-1] for result in results]
    gaps = np.abs(np.array(found) - expected) / np.abs(expected)
    print(
      f"{batching} {again:.2f} s, {loops / again:.1f} times as fast; with compilation {first:.2f} s, "
      f"{loops / first:.1f} times; last validation losses differ by {np.median(gaps):.0e} (median) to {gaps.max():.0e}",
      flush=True,
    )


if __name__ == "__main__":
  main()
