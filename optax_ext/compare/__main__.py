"""The comparison from a command line: `python -m optax_ext.compare --problem digits --optimizers adam,exadam`."""

import argparse
import dataclasses
import pathlib

import numpy as np

from optax_ext.compare.arguments import check_options, rates_of, seeds_of
from optax_ext.compare.experiment import compare
from optax_ext.compare.names import NAMES, check_name
from optax_ext.compare.problem import check_batch_size
from optax_ext.compare.processes import check_process, part
from optax_ext.compare.protocol import EarlyStopping, Protocol, ReduceOnPlateau

PROBLEMS = (
  "digits, mnist5k, breast_cancer, california-64-32 (and the papers' other networks), fashion-mnist, cifar-10, "
  "shakespeare"
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  """The options."""
  parser = argparse.ArgumentParser(prog="python -m optax_ext.compare", description=__doc__)
  add = parser.add_argument
  add("--problem", default="digits", help=f"{PROBLEMS}, or your own as module:function (digits)")
  add(
    "--optimizers",
    required=True,
    help=f"comma-separated: {', '.join(NAMES)}, any of optax; NAME-8bit, NAME-split; baselines are added",
  )
  add(
    "--learning-rates", help="low:high:number, or comma-separated rates, for all (a grid around each one's own centre)"
  )
  add("--points", type=int, default=7, help="learning rates in a grid of one's own (7)")
  add("--quick", action="store_true", help="the cheapest design that can decide: 5 seeds, rates halved on the way")
  add("--seeds", type=int, help="reporting seeds (8, with --quick 5)")
  add("--tuning-seeds", type=int, help="tuning seeds (3, with --quick 2)")
  add("--epochs", type=int, default=20, help="passes through the training data, each evaluated at its end (20)")
  add("--schedule", default="constant", help="constant, cosine (with warm-up), or both as constant,cosine (constant)")
  add("--metric", help="the deciding metric: loss or error for the bundled problems (each one's own, mostly loss)")
  add("--maximize", action="store_true", help="more of --metric is better")
  add(
    "--early-stopping", type=int, metavar="PATIENCE", help="stop after so many epochs without a better validation value"
  )
  add("--plateau", type=int, metavar="PATIENCE", help="lower the learning rate to a tenth after so many such epochs")
  add(
    "--report",
    default="best",
    choices=["best", "last"],
    help="metrics at the best validation value, or the last (best)",
  )
  add("--track", default="A", choices=["A", "B"], help="A: tune the learning rate; B: all settings, at random (A)")
  add("--trials", type=int, default=16, help="of track B (16)")
  add("--single-rate", type=float, help="of the comparison at one rate; 0 for none (the baseline's usual rate)")
  add("--batching", default="auto", choices=["auto", "map", "vmap", "step"], help="how many runs go together (auto)")
  add(
    "--process",
    metavar="K/N",
    help="do the K-th of N shares of the optimizers, as 1/2; then the same command without it gathers all in --out",
  )
  add("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder; interrupted work there is continued (out)")
  return parser.parse_args(arguments)


def parse_rates(text: str | None) -> list[float] | None:
  """A grid from "low:high:number" or from comma-separated rates.

  Raises:
    ValueError: it is neither.
  """
  if text is None:
    return None
  try:
    if ":" in text:
      low, high, number = text.split(":")
      if not 0 < float(low) <= float(high) < float("inf") or int(number) < 1:
        raise ValueError
      return np.geomspace(float(low), float(high), int(number)).tolist()
    return [float(rate) for rate in text.split(",") if rate]
  except ValueError:
    raise ValueError(
      f"--learning-rates must be low:high:number, as 1e-4:1e-1:7, or comma-separated numbers, but was {text!r}."
    ) from None


def parse_process(text: str | None, out: pathlib.Path) -> tuple[int, int] | None:
  """The number of a process and how many there are, from "1/2".

  Raises:
    ValueError: it is no such pair.
  """
  if text is None:
    return None
  number, slash, processes = text.partition("/")
  if not slash or not number.strip().isdecimal() or not processes.strip().isdecimal():
    raise ValueError(f"--process must be K/N, as 1/2, but was {text!r}.")
  process = int(number), int(processes)
  check_process(process, out)
  return process


def main(arguments: list[str] | None = None) -> None:
  """Compares, prints the summary, and says where everything is."""
  options = parse(arguments)
  try:
    run(options)
  except ImportError as error:
    raise SystemExit(f"This needs {error.name}: pip install 'optax_ext[compare]'.") from error
  except (TypeError, ValueError) as error:
    raise SystemExit(f"{error}") from error


def _checked(options: argparse.Namespace) -> tuple[list[str], list[float] | None]:
  """The names of the optimizers and the rates; raises for every bad option, before any problem is built."""
  rates = parse_rates(options.learning_rates)
  if options.epochs < 1:
    raise ValueError(f"--epochs must be at least 1, but was {options.epochs}.")
  for schedule in options.schedule.split(","):
    _protocol(options, schedule.strip(), steps_per_epoch=1)
  given = {name: getattr(options, name) for name in ("points", "track", "quick", "trials", "single_rate", "batching")}
  check_options(rates_of(rates), ratio=2.0, margin=0.0, curve_points=None, **given)
  for name, number in (("--seeds", options.seeds), ("--tuning-seeds", options.tuning_seeds)):
    seeds_of(1 if number is None else number, 0, name)
  names = [name.strip() for name in options.optimizers.split(",") if name.strip()]
  for name in names:
    check_name(name)
  parse_process(options.process, options.out)
  return names, rates


def _protocol(options: argparse.Namespace, schedule: str, steps_per_epoch: int) -> Protocol:
  early, plateau = options.early_stopping, options.plateau
  return Protocol(
    steps=options.epochs * steps_per_epoch,
    evaluate_every=steps_per_epoch,
    schedule=schedule,
    early_stopping=None if early is None else EarlyStopping(early),
    plateau=None if plateau is None else ReduceOnPlateau(patience=plateau),
    report=options.report,
  )


def run(options: argparse.Namespace) -> None:
  """One comparison for each schedule."""
  names, rates = _checked(options)
  process = parse_process(options.process, options.out)
  from optax_ext.compare.problems.named import load

  problem = load(options.problem)
  check_batch_size(problem)
  metric = options.metric or problem.metric
  maximize = options.maximize or (metric == problem.metric and problem.maximize)
  problem = dataclasses.replace(problem, metric=metric, maximize=maximize)
  schedules = [name.strip() for name in options.schedule.split(",")]
  protocols = {schedule: _protocol(options, schedule, problem.steps_per_epoch) for schedule in schedules}
  for schedule, protocol in protocols.items():
    out = options.out / schedule if len(schedules) > 1 else options.out
    comparison = compare(
      problem,
      names,
      protocol,
      learning_rates=rates,
      points=options.points,
      seeds=options.seeds,
      tuning_seeds=options.tuning_seeds,
      quick=options.quick,
      track=options.track,
      trials=options.trials,
      single_rate=options.single_rate,
      batching=options.batching,
      process=process,
      out=out,
    )
    if process:
      print(f"The runs of {', '.join(comparison.arms)} are in {part(out, process)}; gather all without --process.")
      continue
    print(comparison.summary())
    print(f"Runs, summary, page and pictures are in {out}.")


if __name__ == "__main__":
  main()
