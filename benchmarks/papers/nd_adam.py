"""ND-Adam on Fashion-MNIST: its table's question, and each of its claims by itself.

    python benchmarks/papers/nd_adam.py published --logits plain    and "batch_norm", and l2
    python benchmarks/papers/nd_adam.py tuned --logits plain        the same
    python benchmarks/papers/nd_adam.py claims                      after tuned --logits plain

10,000 training images, four convolutions without bias, each followed by a batch norm without scale; 10 epochs, cosine
to 0, batches of 128. published: ND-Adam at its authors' learning rate 1e-3 (vectors 50 times that), SGD with momentum
and L2 at their 0.1, Adam at 1e-3, 5 seeds. tuned: every optimizer at its best learning rate, 5 fresh seeds. claims, at
these rates: the angle between w and w one step before, and the length of w, in every layer and step; and accuracy when
the initial kernels are multiplied by 0.1, 1 and 10.
"""

import argparse
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import laboratory
import optax
from laboratory import note, report, share_cores, tuned

from optax_ext.compare import Optimizer, Problem, Protocol, batches, keys
from optax_ext.compare.names import named
from optax_ext.compare.problems.papers import fashion_mnist

NAMES = ("adam", "adamw", "sgd", "sgd_l2", "nd_adam")
PUBLISHED = {"adam": 1e-3, "sgd_l2": 0.1, "nd_adam": 1e-3}
SCALED = ("adam", "sgd_l2", "nd_adam")
SCALES = (0.1, 1.0, 10.0)


def problem_of(logits: str, small: bool) -> Problem:
  examples = (256, 128, 128) if small else (10_000, 2_000, 10_000)
  return fashion_mnist(logits, norm_scale=False, batch_size=128, examples=examples)


def protocol(problem: Problem, epochs: int) -> Protocol:
  every = problem.steps_per_epoch
  return Protocol(epochs * every, every, schedule="cosine", warmup=0.0, report="last")


def main(arguments: list[str] | None = None) -> None:
  parser = laboratory.parser(__doc__)
  parser.add_argument("part", choices=["published", "tuned", "claims"])
  parser.add_argument(
    "--logits", default="plain", choices=["plain", "batch_norm", "l2"], help="of published and tuned (plain)"
  )
  options = laboratory.parse(parser, arguments)
  {"published": published, "tuned": compare_tuned, "claims": claims}[options.part](options)


def published(options: argparse.Namespace) -> None:
  problem, folder = problem_of(options.logits, options.slice), options.out / "nd_adam" / f"{options.logits}-published"
  optimizers = {name: named(name, problem) for name in PUBLISHED}
  how_long = protocol(problem, 1 if options.slice else 10)
  report(folder, problem, how_long, optimizers, 2 if options.slice else 5, PUBLISHED, "step")


def compare_tuned(options: argparse.Namespace) -> None:
  problem = problem_of(options.logits, options.slice)
  size = {"points": 1, "tuning_seeds": 1, "seeds": 2} if options.slice else {"points": 5, "tuning_seeds": 1, "seeds": 5}
  names = NAMES[::4] if options.slice else NAMES
  folder = options.out / "nd_adam" / options.logits
  epochs = 1 if options.slice else 10
  found = tuned(folder, problem, names, protocol(problem, epochs), "step", single_rate=0, add_baselines=False, **size)
  rates = {name: arm.search.best["learning_rate"] for name, arm in found.arms.items() if arm.search.best}
  note(folder, rates=rates)


def claims(options: argparse.Namespace) -> None:
  folder = options.out / "nd_adam"
  tuned_facts = folder / "plain" / "facts.json"
  if not tuned_facts.exists():
    raise SystemExit(f"The tuned learning rates are read from {tuned_facts}, which is not there: run tuned before.")
  rates = json.loads(tuned_facts.read_text("utf-8"))["rates"]
  problem, epochs = problem_of("plain", options.slice), 1 if options.slice else 10
  arms = {
    f"{name}, kernels × {scale}": scaled(problem, name, scale) for name in SCALED if name in rates for scale in SCALES
  }
  at = {arm: rates[arm.partition(",")[0]] for arm in arms}
  report(folder / "initial-scale", problem, protocol(problem, epochs), arms, 1 if options.slice else 3, at, "step")
  (folder / "angles").mkdir(parents=True, exist_ok=True)
  for name, rate in rates.items():
    path = folder / "angles" / f"{name}.json"
    if not path.exists() or json.loads(path.read_text("utf-8"))["rate"] != rate:
      layers = angles(problem, named(name, problem), rate, epochs)
      path.write_text(json.dumps({"rate": rate, "layers": layers}) + "\n", "utf-8")


def scaled(problem: Problem, name: str, scale: float) -> Optimizer:
  """The named optimizer, from initial kernels of the convolutions times `scale`."""
  optimizer = named(name, problem)
  then = optimizer.prepare or (lambda params: params)
  multiplied = lambda params: jax.tree.map(lambda leaf: scale * leaf if leaf.ndim == 4 else leaf, params)
  return dataclasses.replace(
    optimizer, name=f"{name}, kernels × {scale}", prepare=lambda params: then(multiplied(params))
  )


def angles(problem: Problem, optimizer: Optimizer, rate: float, epochs: int) -> dict[str, Any]:
  """Of each convolution and step: by how many radians the units' vectors turn, and their length, both as means.

  Seed 0, at the tuned rate.
  """
  how_long = protocol(problem, epochs)
  tx = optimizer.build({"learning_rate": rate}, 1.0, how_long.shape())
  init_key, dropout_key = keys(0)
  params, state = jax.jit(problem.start)(init_key)
  params = optimizer.prepare(params) if optimizer.prepare else params
  opt_state = tx.init(params)

  @jax.jit
  def step(params: Any, state: Any, opt_state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any, Any, Any]:
    (_, state), grads = jax.value_and_grad(problem.loss_of, has_aux=True)(params, state, batch, key)
    updates, opt_state = tx.update(grads, opt_state, params)
    new: Any = optax.apply_updates(params, updates)
    measured = {name: turn(params[name]["kernel"], new[name]["kernel"]) for name in params if name.endswith("conv")}
    return new, state, opt_state, measured

  measured = []
  rows = batches(problem, 0, 0, how_long.steps)
  for i, chosen in enumerate(rows):
    batch = jax.tree.map(lambda array, chosen=chosen: array[chosen], problem.train)
    params, state, opt_state, now = step(params, state, opt_state, batch, jax.random.fold_in(dropout_key, i))
    measured.append(jax.device_get(now))
  curve = lambda layer, i: [float(f"{of[layer][i]:.4g}") for of in measured]
  return {layer: {"angle": curve(layer, 0), "length": curve(layer, 1)} for layer in measured[0]}


def turn(before: jax.Array, after: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Means over the units of a convolution: 2·asin(½·‖u − u′‖) for the directions u and u′, and ‖w′‖."""
  length = lambda kernel: jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1, 2)))
  chord = length(before / length(before) - after / length(after))
  return jnp.mean(2 * jnp.arcsin(jnp.minimum(chord / 2, 1))), jnp.mean(length(after))


if __name__ == "__main__":
  share_cores()
  main()
