"""CPU seconds of a whole comparison, as ratios to plain jitted loops that do the same runs.

    python benchmarks/compare_speed.py                             # a convolutional network: digits
    python benchmarks/compare_speed.py --problem breast_cancer --epochs 200
    python benchmarks/compare_speed.py --problem digits --quick    # quick=True beside the full design
    python benchmarks/compare_speed.py --problem fashion-mnist --epochs 1 --points 1 --seeds 1

Each part is a process of its own, so that each pays for its imports and its compilation, and CPU time is what the
machine's other work changes least. The plain loops compile each optimizer's step once, with the learning rate as an
argument, and do the runs that the comparison did one after another, evaluating as often. Loops and comparison are timed
without imports and the problem's data, which both need.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

OPTIMIZERS = "adam,exadam"


def cpu() -> float:
  """Seconds of this process so far, all threads together."""
  used = resource.getrusage(resource.RUSAGE_SELF)
  return used.ru_utime + used.ru_stime


def plain(name: str, folder: pathlib.Path) -> dict[str, float]:
  """The runs that `folder` holds, as anybody would write them."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from optax_ext.compare import batches, keys
  from optax_ext.compare.names import named
  from optax_ext.compare.problems.named import load

  lines = [json.loads(line) for line in (folder / "finished.jsonl").read_text("utf-8").splitlines()[1:]]
  problem = load(name)
  begin, times = cpu(), {"imports": cpu()}
  start, measure = jax.jit(problem.start), jax.jit(problem.metrics_of)
  splits = {split: jax.device_put(getattr(problem, split)) for split in ("validation", "test")}

  def step_of(optimizer: str) -> Any:
    tx_of = lambda rate: named(optimizer, problem).build({"learning_rate": rate})

    def step(params: Any, state: Any, opt_state: Any, batch: Any, key: jax.Array, rate: Any) -> Any:
      loss_of = lambda params: problem.loss_of(params, state, batch, key)
      (loss, new_state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
      updates, opt_state = tx_of(rate).update(grads, opt_state, params)
      return optax.apply_updates(params, updates), new_state, opt_state, loss

    return tx_of, jax.jit(step, donate_argnums=(0, 1, 2))

  programs = {optimizer: step_of(optimizer) for optimizer in OPTIMIZERS.split(",")}
  gaps = []
  for line in lines:
    optimizer, result = line["key"].partition("|")[0], line["result"]
    tx_of, step = programs[optimizer]
    steps, rate = result["steps"], jnp.float32(result["trial"]["learning_rate"])
    init, dropout = keys(result["seed"])
    params, state = start(init)
    opt_state = tx_of(rate).init(params)
    rows, value = batches(problem, result["seed"], 0, steps[-1]), 0.0
    for i, chosen in enumerate(rows):
      batch = jax.tree.map(lambda array, chosen=chosen: array[chosen], problem.train)
      params, state, opt_state, _ = step(params, state, opt_state, batch, jax.random.fold_in(dropout, i), rate)
      times.setdefault("first step", cpu() - begin)
      if (i + 1) % steps[0] == 0:
        value = float(measure(params, state, splits["validation"])[problem.metric])
        if line["key"].endswith("report"):
          float(measure(params, state, splits["test"])[problem.metric])
    times.setdefault("first run", cpu() - begin)
    gaps.append(abs(value / result["curves"][f"validation/{problem.metric}"][-1] - 1))
  return times | {"all": cpu() - begin, "runs": len(lines), "median gap": float(np.median(gaps))}


def compared(
  name: str, folder: pathlib.Path, epochs: int, points: int, seeds: int | None, quick: bool
) -> dict[str, float]:
  """A comparison, as the command line makes it."""
  from optax_ext.compare import Protocol, compare
  from optax_ext.compare.problems.named import load
  from optax_ext.compare.programs import Programs
  from optax_ext.compare.store import Store

  problem = load(name)
  begin, times = cpu(), {"imports": cpu()}
  add, init = Store.add, Programs.__init__

  def timed_add(*args: Any) -> None:
    times.setdefault("first run", cpu() - begin)
    add(*args)

  def timed_init(self: Any, *args: Any) -> None:
    init(self, *args)
    steps = self.steps

    def timed(*args: Any) -> Any:
      found = steps(*args)
      times.setdefault("first step", cpu() - begin)
      return found

    self.steps = timed

  for kind, name_of, timed in ((Store, "add", timed_add), (Programs, "__init__", timed_init)):
    setattr(kind, name_of, timed)
  every = problem.steps_per_epoch
  protocol = Protocol(epochs * every, every)
  options = {"points": points, "seeds": seeds, "tuning_seeds": seeds, "quick": quick}
  found = compare(problem, OPTIMIZERS.split(","), protocol, out=folder, progress=False, **options)
  verdicts = {pair[0]: difference.verdict for pair, difference in found.tuned.items()}
  runs = len((folder / "finished.jsonl").read_text("utf-8").splitlines()) - 1
  return times | {"all": cpu() - begin, "runs": runs, "verdicts": verdicts}


def in_process(*arguments: str) -> dict[str, Any]:
  """What another process of this program prints."""
  begin = time.perf_counter()
  ran = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
  if ran.returncode:
    raise SystemExit(ran.stderr)
  return json.loads(ran.stdout.splitlines()[-1]) | {"wall": time.perf_counter() - begin}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--problem", default="digits", help="a bundled problem (digits)")
  parser.add_argument("--epochs", type=int, default=20, help="of each run (20)")
  parser.add_argument("--points", type=int, default=7, help="learning rates in each grid (7)")
  parser.add_argument("--seeds", type=int, help="for tuning, and as many for reporting (the design's)")
  parser.add_argument("--quick", action="store_true", help="quick=True beside the full design, instead of plain loops")
  parser.add_argument("--part", choices=["compare", "quick", "plain"], help=argparse.SUPPRESS)
  parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.part == "plain":
    return print(json.dumps(plain(options.problem, options.folder)))
  if options.part:
    quick = options.part == "quick"
    found = compared(options.problem, options.folder, options.epochs, options.points, options.seeds, quick)
    return print(json.dumps(found))
  with tempfile.TemporaryDirectory() as folder:
    size = ["--problem", options.problem, "--epochs", f"{options.epochs}", "--points", f"{options.points}"]
    size += ["--seeds", f"{options.seeds}"] if options.seeds else []
    part = lambda name, at: in_process(*size, "--part", name, "--folder", f"{folder}/{at}")
    of = {"comparison": part("compare", "full")}
    of["finished folder"] = part("compare", "full")
    of |= {"quick": part("quick", "quick")} if options.quick else {"plain loops": part("plain", "full")}
  for name, times in of.items():
    print(name, {key: round(value, 2) if isinstance(value, float) else value for key, value in times.items()})
  other = of["quick" if options.quick else "plain loops"]
  if options.quick:
    print(f"quick takes {other['all'] / of['comparison']['all']:.2f} of the full design's CPU time")
    return None
  first = (of["comparison"][when] + of["comparison"]["imports"] for when in ("first step", "first run"))
  plain_first = (other[when] + other["imports"] for when in ("first step", "first run"))
  more, ratio = (a - b if i == 0 else a / b for i, (a, b) in enumerate(zip(first, plain_first, strict=True)))
  print(
    f"CPU time relative to plain loops: all {of['comparison']['all'] / other['all']:.2f}, to the first finished run "
    f"{ratio:.2f}; to the first step {more:.1f} s more"
  )
  return None


if __name__ == "__main__":
  main()
