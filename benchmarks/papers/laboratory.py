"""What the experiments share: their options, their folders, and runs that go on where they were interrupted."""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from optax_ext.compare import Comparison, Optimizer, Problem, Protocol, compare
from optax_ext.compare.experiment import FIRST_REPORTING_SEED
from optax_ext.compare.laboratory import Laboratory
from optax_ext.compare.progress import Progress
from optax_ext.compare.run import Result

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "papers"
FEW = 20  # evaluations of a run: all are kept
ENOUGH = 8  # of more: enough for a picture


def parser(description: str | None) -> argparse.ArgumentParser:
  """The options of every experiment."""
  parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--slice", action="store_true", help="a tiny part of the data, of the runs and of their steps")
  parser.add_argument("--out", type=pathlib.Path, help="folder of the results, which it goes on with (results/papers)")
  return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
  """The options; a slice needs a folder of its own, as the report would take it for the experiment."""
  options = parser.parse_args(arguments)
  if options.slice and not options.out:
    parser.error("--slice needs --out, a folder of its own: the report would take a slice for the experiment.")
  options.out = options.out or RESULTS
  return options


def share_cores() -> None:
  """Makes every core that this process may use a device of its own, before the first computation: runs share them."""
  jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count())


def report(
  folder: pathlib.Path,
  problem: Problem,
  protocol: Protocol,
  optimizers: Mapping[str, Optimizer],
  seeds: int,
  rates: Mapping[str, float],
  batching: str = "map",
) -> dict[str, list[Result]]:
  """Runs each optimizer at one rate on reporting seeds; every finished run is a line of `finished.jsonl`."""
  with Progress(True, len(optimizers), len(optimizers) * seeds * protocol.steps) as progress:
    laboratory = Laboratory(
      problem, protocol, optimizers, batching, folder=folder, points=kept(protocol), progress=progress
    )
    note(folder, seeds=seeds, rates=rates)
    fresh = range(FIRST_REPORTING_SEED, FIRST_REPORTING_SEED + seeds)
    runs = {name: laboratory.on(name, fresh, "reporting", with_test=True) for name in optimizers}
    return {name: run([{"learning_rate": rates[name]}])[0] for name, run in runs.items()}


def tuned(
  folder: pathlib.Path,
  problem: Problem,
  optimizers: Sequence[str | Optimizer],
  protocol: Protocol,
  batching: str,
  **options: Any,
) -> Comparison:
  """`compare`, without its table of all curves, which `finished.jsonl` holds too."""
  options |= {"batching": batching, "curve_points": kept(protocol), "out": folder}
  comparison = compare(problem, optimizers, protocol, **options)
  (folder / "runs.json").unlink()
  return comparison


def kept(protocol: Protocol) -> int | None:
  """How many evaluations of each run are kept; `None` for all."""
  return None if protocol.evaluations <= FEW else ENOUGH


def note(folder: pathlib.Path, **facts: Any) -> None:
  """Writes what the report has to know beside the runs."""
  (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
