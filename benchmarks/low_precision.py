"""What low-precision moments cost in quality: Adam on digits and a small character GPT, five ways to keep its state.

The learning rate is tuned once for each problem, for float32 and on seeds of its own; every arm trains at that rate
from the same weights on the same batches, so that differences are paired by seed. One line of JSON a run, appended at
once: started again, it does only what is missing.

OPTAX_EXT_DATA=<folder with tinyshakespeare.txt> python benchmarks/low_precision.py
writes benchmarks/results/low_precision.jsonl and low_precision.md.
"""

import argparse
import datetime
import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import optax_ext
from optax_ext._memory.quantize import quantize_state
from optax_ext._memory.rounding import stochastic
from optax_ext.compare.problem import Problem
from optax_ext.compare.problems.bundled import digits
from optax_ext.compare.problems.data import tiny_shakespeare

RATES = [1e-3, 3e-3, 1e-2]
TUNING_SEEDS, SEEDS = (100, 101), (0, 1, 2, 3, 4)
STUDENT_T = 2.776  # 97.5 % of Student's distribution with 4 degrees of freedom
STEPS = {"digits": 360, "gpt": 400}
BF16 = jnp.bfloat16
CONTEXT = 32


def adam(rate: Any, **storage: Any) -> optax.GradientTransformation:
  moments = optax_ext.scale_by_moments(
    optax_ext.constant_gain(0.9), optax_ext.constant_gain(0.999), debias=optax_ext.standard(0.9, 0.999), **storage
  )
  return optax_ext.cast_updates(optax.chain(moments, optax.scale_by_learning_rate(rate)))


ARMS = {
  "float32": adam,
  "bfloat16 moments, nearest": lambda rate: adam(rate, mu_dtype=BF16, nu_dtype=BF16),
  "bfloat16 moments, stochastic": lambda rate: adam(rate, mu_dtype=BF16, nu_dtype=BF16, rounding=stochastic(0)),
  "8-bit moments, a scale a row": lambda rate: quantize_state(adam(rate), min_size=1024),
  "bfloat16 throughout": lambda rate: optax.adam(rate),
}
PARAMETERS = {"bfloat16 throughout": BF16}  # parameters, gradients, moments and the optimizer's arithmetic


class Block(nn.Module):
  """Causal self-attention and an MLP, each after a norm."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """The sum of x, what its places tell each other, and what each makes of it."""
    mask = nn.make_causal_mask(x[..., 0])
    x = x + nn.MultiHeadDotProductAttention(num_heads=4, use_bias=False)(nn.LayerNorm(use_bias=False)(x), mask=mask)
    hidden = nn.gelu(nn.Dense(4 * x.shape[-1], use_bias=False)(nn.LayerNorm(use_bias=False)(x)))
    return x + nn.Dense(x.shape[-1], use_bias=False)(hidden)


class GPT(nn.Module):
  """A character model: two blocks of width 96."""

  @nn.compact
  def __call__(self, text: jax.Array) -> jax.Array:
    """Logits of the next character."""
    x = nn.Embed(65, 96)(text) + self.param("positions", nn.initializers.normal(0.02), (CONTEXT, 96))
    for _ in range(2):
      x = Block()(x)
    return nn.Dense(65, use_bias=False)(nn.LayerNorm(use_bias=False)(x))


def gpt() -> Problem:
  """The next of 65 characters from up to 32 before it, in windows that do not overlap."""
  text = tiny_shakespeare()
  windows = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)
  seen = int(0.9 * len(windows))
  model = GPT()

  def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    logits: Any = model.apply(params, batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

  metrics = lambda params, data: {"loss": loss(params, data, jax.random.key(0))}
  init = lambda key: model.init(key, jnp.zeros((1, CONTEXT), jnp.int32))
  held_out = windows[seen : seen + 512]
  return Problem("gpt", init, loss, metrics, windows[:seen], held_out, held_out, batch_size=8)


@functools.cache
def problem_of(name: str) -> Problem:
  return {"digits": digits, "gpt": gpt}[name]()


@functools.cache
def trainer(name: str, arm: str) -> Callable[..., dict[str, jax.Array]]:
  """Trains from a rate, the initial weights and the examples of each batch; compiled once for all seeds and rates.

  Gives the losses at the end: of training data (a fixed part of them) and of held-out data.
  """
  problem, steps = problem_of(name), STEPS[name]
  wide = lambda params: jax.tree.map(lambda w: w.astype(jnp.float32), params)

  def run(rate: jax.Array, params: Any, state: Any, rows: jax.Array) -> dict[str, jax.Array]:
    tx = ARMS[arm](lambda count: rate * (1 + jnp.cos(jnp.pi * count / steps)) / 2)

    def step(carry: Any, chosen: jax.Array) -> tuple[Any, None]:
      params, state, opt_state = carry
      batch = jax.tree.map(lambda array: jnp.asarray(array)[chosen], problem.train)
      loss = lambda params: problem.loss_of(wide(params), state, batch, jax.random.key(0))
      grads, state = jax.grad(loss, has_aux=True)(params)
      updates, opt_state = tx.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), state, opt_state), None

    params = jax.tree.map(lambda w: w.astype(PARAMETERS.get(arm, jnp.float32)), params)
    params, state, _ = jax.lax.scan(step, (params, state, tx.init(params)), rows)[0]
    part = jax.tree.map(lambda array: jnp.asarray(array[:1024]), problem.train)
    losses = {"train": part, "held out": problem.validation}
    return {name: problem.metrics_of(wide(params), state, data)["loss"] for name, data in losses.items()}

  return jax.jit(run)


def train(problem: Problem, arm: str, rate: float, seed: int) -> dict[str, float]:
  """The final losses of one run."""
  rng, steps, size = np.random.default_rng(seed), STEPS[problem.name], problem.steps_per_epoch * problem.batch_size
  epochs = math.ceil(steps / problem.steps_per_epoch)
  order = np.concatenate([rng.permutation(problem.examples)[:size] for _ in range(epochs)])
  rows = order[: steps * problem.batch_size].reshape(steps, -1)
  losses = trainer(problem.name, arm)(rate, *problem.start(jax.random.key(seed)), rows)
  return {name: float(loss) for name, loss in losses.items()}


class Runs:
  """The finished runs, in a file."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    lines = path.read_text().splitlines() if path.exists() else []
    self.done = {self.key(run): run for run in map(json.loads, lines)}

  @staticmethod
  def key(run: dict[str, Any]) -> tuple[Any, ...]:
    """What tells runs apart."""
    return run["problem"], run["arm"], run["rate"], run["seed"], run["steps"]

  def get(self, problem: Problem, arm: str, rate: float, seed: int) -> dict[str, Any]:
    """A run, trained now if it is not finished."""
    run = {"problem": problem.name, "arm": arm, "rate": rate, "seed": seed, "steps": STEPS[problem.name]}
    if self.key(run) not in self.done:
      run |= train(problem, arm, rate, seed)
      with self.path.open("a") as file:
        file.write(json.dumps(run) + "\n")
      self.done[self.key(run)] = run
    return self.done[self.key(run)]


def state_bytes(arm: str, params: Any) -> int:
  """The size of an arm's optimizer state."""
  dtype = PARAMETERS.get(arm, jnp.float32)
  params = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, dtype), params)
  state = jax.eval_shape(ARMS[arm](RATES[0]).init, params)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def table(problem: Problem, runs: Runs) -> list[str]:
  """The arms at the tuned rate, as lines of Markdown."""
  tuning = {rate: np.mean([runs.get(problem, "float32", rate, s)["held out"] for s in TUNING_SEEDS]) for rate in RATES}
  rate = min(tuning, key=lambda rate: tuning[rate])
  start, _ = jax.eval_shape(problem.start, jax.random.key(0))
  size = sum(leaf.size for leaf in jax.tree.leaves(start))
  lines = [
    f"## {problem.name}: {size:,} parameters, {STEPS[problem.name]} steps, tuned rate {rate:g}",
    "",
    "| moments | bytes per parameter | final training loss | against float32 | held-out loss | against float32 |",
    "|---|---|---|---|---|---|",
  ]
  for seed in SEEDS:  # so that what is finished of each arm is paired
    for arm in ARMS:
      runs.get(problem, arm, rate, seed)
  for arm in ARMS:
    cells = []
    for name in ("train", "held out"):
      loss, base = (np.array([runs.get(problem, a, rate, s)[name] for s in SEEDS]) for a in (arm, "float32"))
      ratio = loss / base - 1
      spread = STUDENT_T * ratio.std(ddof=1) / math.sqrt(len(SEEDS))
      cells += [f"{loss.mean():.4f}", f"{ratio.mean():+.2%} ± {spread:.2%}" if arm != "float32" else ""]
    lines.append(f"| {arm} | {state_bytes(arm, start) / size:.2f} | {' | '.join(cells)} |")
  return [*lines, ""]


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--problems", nargs="*", default=["digits", "gpt"])
  parser.add_argument("--results", default="benchmarks/results", type=pathlib.Path)
  options = parser.parse_args()
  runs = Runs(options.results / "low_precision.jsonl")
  lines = [
    f"`python benchmarks/low_precision.py`, {datetime.date.today()}, jax {jax.__version__}, CPU. "
    "Adam (0.9, 0.999), cosine to 0; means of 5 seeds; differences paired by seed, with 95 % intervals (Student's t).",
    "",
  ]
  for name in options.problems:
    lines += table(problem_of(name), runs)
  (options.results / "low_precision.md").write_text("\n".join(lines))


if __name__ == "__main__":
  main()
