"""CaAdam on California Housing: the paper's Tables I and III as published, then a fair comparison.

    python benchmarks/papers/caadam.py published --network 64-32
    python benchmarks/papers/caadam.py published --network 64-32 --own-init
    python benchmarks/papers/caadam.py fair --network 64-32

published: the notebooks' protocol at the learning rate 1e-3: Keras' Adam, AdamW, Adamax and Nadam; CaAdam as written
(the equations on the traced structure); CaAdam as published (the factors that the authors' code applied, as trees);
Adam at α·s, s being the geometric mean of the kernels' published factors, its smallest rate also times s. 30 seeds (10
for the largest network), all from one initialisation as in the paper, or with --own-init each from its own.

fair: every optimizer at its best learning rate, on fresh seeds.
"""

import argparse
import dataclasses
import functools
import statistics
from typing import Any

import jax
import keras_optimizers as keras
import laboratory
from laboratory import report, share_cores, tuned

from optax_ext import Additive, ByDepth, Multiplicative
from optax_ext.compare import EarlyStopping, Optimizer, Problem, Protocol, ReduceOnPlateau
from optax_ext.compare.problem import keys
from optax_ext.compare.problems.papers import CALIFORNIA, california

RATE = 1e-3
RULES = {"additive": Additive(0.95), "multiplicative": Multiplicative(5.0), "depth": ByDepth(1.0)}


def protocol(problem: Problem, epochs: int = 1000) -> Protocol:
  """The notebooks': at most 1,000 epochs; the smallest rate is 2.5e-5 for 1e-3, and in proportion for others."""
  every = problem.steps_per_epoch
  stopping = EarlyStopping(patience=25, min_delta=1e-5, start=12)
  plateau = ReduceOnPlateau(factor=0.25, patience=8, min_delta=1e-4, min_scale=0.025)
  return Protocol(epochs * every, every, early_stopping=stopping, plateau=plateau)


def published_factors(rule: str, params: Any) -> Any:
  """What the authors' code multiplied the steps with, as a tree like the parameters.

  It keys its counts by Keras' short variable names, "kernel" and "bias": every kernel gets the count of the last one,
  every bias 0. Medians and extremes are of the kernels' true counts. Depth counts variables instead of layers.
  """
  layers = params["params"]
  kernels = [layers[f"Dense_{i}"]["kernel"].size for i in range(len(layers))]
  middle, least, most = statistics.median(kernels), min(kernels), max(kernels)
  position = lambda count: (middle - count) / ((middle - least) if count <= middle else (most - middle))
  factor = {"additive": lambda count: 1 + 0.95 * position(count), "multiplicative": lambda c: 5 ** abs(position(c))}
  if rule == "depth":
    by_place = [2 ** ((2 * len(layers) - 1 - place) / (2 * len(layers))) for place in range(2 * len(layers))]
    pairs = zip(by_place[::2], by_place[1::2], strict=True)
  else:
    pairs = [(factor[rule](kernels[-1]), factor[rule](0))] * len(layers)
  return {"params": {f"Dense_{i}": {"kernel": kernel, "bias": bias} for i, (kernel, bias) in enumerate(pairs)}}


def arms(problem: Problem) -> tuple[dict[str, Optimizer], dict[str, float]]:
  """The optimizers of the published comparison, and the rate of each."""
  params = jax.eval_shape(problem.init, keys(0)[0])
  make = {name: getattr(keras, name) for name in ("adam", "adamw", "adamax", "nadam")}
  rates = dict.fromkeys(make, RATE)
  for name, rule in RULES.items():
    factors = published_factors(name, params)
    written = rule.scales(problem.structure)
    make[f"{name}, as written"] = functools.partial(keras.adam, scales=written)
    make[f"{name}, as published"] = functools.partial(keras.adam, scales=factors)
    make[f"adam at the scale of {name}"] = keras.adam
    kernels = [layer["kernel"] for layer in factors["params"].values()]
    rates |= {f"{name}, as written": RATE, f"{name}, as published": RATE}
    rates[f"adam at the scale of {name}"] = RATE * statistics.geometric_mean(kernels)
  return {name: Optimizer(name, of) for name, of in make.items()}, rates


def published(options: argparse.Namespace) -> None:
  problem = california(options.network, shared_init=not options.own_init, examples=600 if options.slice else None)
  folder = options.out / "caadam" / f"{options.network}-{'own-init' if options.own_init else 'published'}"
  optimizers, rates = arms(problem)
  seeds = 2 if options.slice else 10 if options.network == CALIFORNIA[-1] else 30
  report(folder, problem, protocol(problem, 16 if options.slice else 1000), optimizers, seeds, rates)


def fair(options: argparse.Namespace) -> None:
  problem = california(options.network, examples=600 if options.slice else None)
  problem = dataclasses.replace(problem, metric="rmse")
  names = ["adam", "adamw", "adamax", "nadam", "caadam_additive", "caadam_multiplicative", "caadam_depth"]
  names += ["exadam", "exadam_nolog", "adamnx", "nd_adam"]
  size = {"points": 1, "tuning_seeds": 1, "seeds": 2} if options.slice else {"tuning_seeds": 5, "seeds": 30}
  names = names[:2] if options.slice else names
  folder = options.out / "caadam" / f"{options.network}-fair"
  tuned(folder, problem, names, protocol(problem, 14 if options.slice else 1000), "map", **size)


def main(arguments: list[str] | None = None) -> None:
  parser = laboratory.parser(__doc__)
  parser.add_argument("part", choices=["published", "fair"])
  parser.add_argument("--network", default="64-32", choices=CALIFORNIA, help="hidden layers (64-32)")
  parser.add_argument("--own-init", action="store_true", help="published: an initialisation of its own for each seed")
  options = laboratory.parse(parser, arguments)
  {"published": published, "fair": fair}[options.part](options)


if __name__ == "__main__":
  share_cores()
  main()
