"""What storage in few bytes costs in quality: four optimizers on a CNN and on a small GPT, six ways to store a run.

    OPTAX_EXT_DATA=FOLDER python benchmarks/low_precision.py
    OPTAX_EXT_DATA=FOLDER python benchmarks/low_precision.py --problems gpt --optimizers exadam caadam
    OPTAX_EXT_DATA=FOLDER python benchmarks/low_precision.py --report

FOLDER holds tinyshakespeare.txt. Each optimizer's rate is tuned in float32, on seeds that serve nothing else. Every
arm then trains at that rate, from the same weights on the same batches, so that differences are paired by seed. A
gradient is taken at the weights that the model has, bfloat16 ones where the arm stores such. The final loss is that of
`join_weights` in float32 and that of the bfloat16 weights.

The control is float32 again, from weights that differ in their last bit. Two runs that differ so little part too. The
control's interval says how small a difference this measurement can see.

A finished run is one line of `low_precision.jsonl`, appended at once: a second call does what is missing. `--problems`,
`--optimizers` and `--arms` choose a part. `--report` writes the tables of what is finished into `low_precision.md`.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_ext
from optax_ext.compare.problem import Problem, batches, keys
from optax_ext.compare.problems.bundled import digits
from optax_ext.compare.problems.images import ConvNet, image_problem
from optax_ext.compare.problems.papers import GPT, shakespeare

START = (-6, -5, -4)  # half decades: the rates 1e-3, 3e-3 and 1e-2
TUNING_SEEDS, SEEDS = (100, 101), (0, 1, 2, 3, 4)
STUDENT_T = 2.776  # 97.5 % of Student's distribution with 4 degrees of freedom
SMOOTHING = 0.1  # the weight of labels that are the same for all classes
TARGET = 1e-3  # the interval of the ratio to float32's loss is to lie within ±0.1 %
MEASURED = 1024  # training examples on which the final loss is taken
BF16 = jnp.bfloat16

Make = Callable[..., optax.GradientTransformation]


def adam(rate: Any, *, structure: Any, **storage: Any) -> optax.GradientTransformation:
  """optax's; the same equations in pieces where the moments are stored otherwise."""
  if not storage:
    return optax.adam(rate)
  moments = optax_ext.scale_by_moments(
    optax_ext.constant_gain(0.9), optax_ext.constant_gain(0.999), debias=optax_ext.standard(0.9, 0.999), **storage
  )
  return optax_ext.cast_updates(optax.chain(moments, optax.scale_by_learning_rate(rate)))


OPTIMIZERS: dict[str, Make] = {
  "adam": adam,
  "exadam": lambda rate, *, structure, **storage: optax_ext.exadam(rate, **storage),
  "adamnx": lambda rate, *, structure, **storage: optax_ext.adamnx(rate, **storage),
  "caadam": lambda rate, *, structure, **storage: optax_ext.caadam(rate, structure=structure, **storage),
}


@dataclasses.dataclass(frozen=True)
class Arm:
  """A way to store a run.

  Attributes:
    optimizer: From a function that makes the optimizer, given how moments are stored, to the optimizer of this arm.
    dtype: Of the weights that the model has.
    start: What is done to the initial weights, in float32.
  """

  optimizer: Callable[[Make], optax.GradientTransformation]
  dtype: Any = jnp.float32
  start: Callable[[jax.Array], jax.Array] = lambda weight: weight


def in_8_bits(make: Make, **options: Any) -> optax.GradientTransformation:
  return optax_ext.quantize_state(make(), min_size=1024, **options)


def in_8_bits_by_chance(make: Make) -> optax.GradientTransformation:
  return in_8_bits(make, rounding=optax_ext.stochastic(1))


def in_16_bits(make: Make) -> optax.GradientTransformation:
  return make(mu_dtype=BF16, nu_dtype=BF16, rounding=optax_ext.stochastic(1))


ARMS = {
  "float32": Arm(lambda make: make()),
  "control: float32, another last bit": Arm(lambda make: make(), start=lambda weight: weight * (1 + 2.0**-23)),
  "24 bits, 8-bit moments": Arm(lambda make: optax_ext.split_weights(in_8_bits(make)), BF16),
  "24 bits, 8-bit moments by chance": Arm(lambda make: optax_ext.split_weights(in_8_bits_by_chance(make)), BF16),
  "24 bits, bfloat16 moments": Arm(lambda make: optax_ext.split_weights(in_16_bits(make)), BF16),
  "16 bits by chance, 8-bit moments": Arm(lambda make: optax_ext.split_weights(in_8_bits(make), bits=16), BF16),
  "bfloat16 throughout": Arm(lambda make: make(), BF16),
}


@dataclasses.dataclass(frozen=True)
class Task:
  """A problem, and for how many steps it is trained."""

  problem: Problem
  steps: int

  @functools.cached_property
  def structure(self) -> optax_ext.Structure:
    """What CaAdam is told of the network."""
    return self.problem.structure

  @functools.cached_property
  def measured(self) -> dict[str, Any]:
    """Where losses are taken: on a fixed part of the training data, evenly spread, and on held-out data."""
    every = max(1, self.problem.examples // MEASURED)
    part = jax.tree.map(lambda array: array[::every][:MEASURED], self.problem.train)
    return {"train": part, "held out": self.problem.validation}


def gpt() -> Problem:
  """The next of 65 characters from up to 32 before it: two blocks of width 96, without dropout."""
  model = GPT(block=32, width=96, heads=4, layers=2, dropout=0.0)
  problem = shakespeare(model, batch_size=8, part=0.9, held_out=512)
  params = jax.eval_shape(problem.init, jax.random.key(0))
  apply = lambda params, codes: model.apply({"params": params}, codes, training=False)
  structure = optax_ext.structure_from_model(apply, params, jax.ShapeDtypeStruct((1, 32), jnp.int32))
  return dataclasses.replace(problem, name="gpt", hints={"structure": structure})


def smoothed(hard: Problem) -> Problem:
  """The digits with labels that are 0.91 on the digit and 0.01 on each other one.

  Their entropy, 0.500, is the least loss. That of hard labels tends to 0, where ratios say little.
  """
  model, classes = ConvNet((16, 32, 64), (1, 2, 2)), 10

  def others(logits: jax.Array) -> jax.Array:
    """The loss of labels that are the same for all classes, with their weight beside that of the hard ones."""
    return -jax.nn.log_softmax(logits).mean() * SMOOTHING / (1 - SMOOTHING)

  def metrics(params: Any, state: Any, data: Any) -> dict[str, jax.Array]:
    logits: Any = model.apply({"params": params, "batch_stats": state}, data["x"], training=False)
    labels = (1 - SMOOTHING) * jax.nn.one_hot(data["label"], classes) + SMOOTHING / classes
    return {"loss": optax.softmax_cross_entropy(logits, labels).mean()}

  problem = image_problem("digits-smoothed", model, hard.data, hard.batch_size, others)
  return dataclasses.replace(problem, metrics=metrics)


TASKS: dict[str, Callable[[], Task]] = {
  "gpt": lambda: Task(gpt(), 400),
  "digits-smoothed": lambda: Task(smoothed(digits()), 360),
  "digits": lambda: Task(digits(), 360),
}


@functools.cache
def task_of(name: str) -> Task:
  return TASKS[name]()


def wide(params: Any) -> Any:
  return jax.tree.map(lambda weight: weight.astype(jnp.float32), params)


def joined(params: Any, state: Any) -> Any:
  """The weights in float32, with what the state holds of them."""
  return optax_ext.join_weights(params, state) if isinstance(state, optax_ext.SplitWeightsState) else wide(params)


@dataclasses.dataclass(frozen=True)
class Trainer:
  """The compiled parts of one arm's runs, for all seeds and rates."""

  init: Callable[[jax.Array, Any], tuple[Any, Any]]  # rate, float32 weights -> weights, optimizer's state
  step: Callable[..., tuple[Any, Any, Any]]  # rate, batch, weights, model's state, optimizer's state -> the last three
  losses: Callable[..., dict[str, jax.Array]]  # weights, model's state, optimizer's state -> losses


@functools.cache
def trainer(problem: str, optimizer: str, arm: str) -> Trainer:
  task, way = task_of(problem), ARMS[arm]

  def tx_of(rate: jax.Array) -> optax.GradientTransformation:
    cosine = lambda count: rate * (1 + jnp.cos(jnp.pi * count / task.steps)) / 2
    return way.optimizer(functools.partial(OPTIMIZERS[optimizer], cosine, structure=task.structure))

  def init(rate: jax.Array, weights: Any) -> tuple[Any, Any]:
    params = jax.tree.map(lambda weight: way.start(weight).astype(way.dtype), weights)
    return params, tx_of(rate).init(params)

  def step(rate: jax.Array, batch: Any, params: Any, state: Any, opt_state: Any) -> tuple[Any, Any, Any]:
    loss = lambda params: task.problem.loss_of(wide(params), state, batch, jax.random.key(0))
    grads, state = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = tx_of(rate).update(grads, opt_state, params)
    return optax.apply_updates(params, updates), state, opt_state

  def losses(params: Any, state: Any, opt_state: Any) -> dict[str, jax.Array]:
    weights = {"": joined(params, opt_state), ", bfloat16": wide(jax.tree.map(lambda w: w.astype(BF16), params))}
    return {
      f"{part}{which}": task.problem.metrics_of(of, state, data)["loss"]
      for which, of in weights.items()
      for part, data in task.measured.items()
    }

  return Trainer(jax.jit(init), jax.jit(step, donate_argnums=(2, 3, 4)), jax.jit(losses))


def train(problem: str, optimizer: str, arm: str, rate: float, seed: int) -> dict[str, float]:
  """The final losses of one run. Each step is a program of its own: XLA is slow with convolutions in loops on CPUs."""
  task, parts = task_of(problem), trainer(problem, optimizer, arm)
  weights, state = task.problem.start(keys(seed)[0])
  params, opt_state = parts.init(jnp.float32(rate), weights)
  take = lambda rows: jax.tree.map(lambda array: array[rows], task.problem.train)
  for batch in map(take, batches(task.problem, seed, 0, task.steps)):
    params, state, opt_state = parts.step(jnp.float32(rate), batch, params, state, opt_state)
  return {name: float(loss) for name, loss in parts.losses(params, state, opt_state).items()}


class Runs:
  """The finished runs, in a file."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    lines = path.read_text().splitlines() if path.exists() else []
    self.done = {self.key(run): run for run in map(json.loads, lines)}

  @staticmethod
  def key(run: dict[str, Any]) -> tuple[Any, ...]:
    """What tells runs apart."""
    return tuple(run[name] for name in ("problem", "optimizer", "arm", "rate", "seed", "steps"))

  def losses(self, problem: str, optimizer: str, arm: str, rate: float, name: str) -> np.ndarray | None:
    """One loss of all seeds; `None` where a run is missing."""
    run = {"problem": problem, "optimizer": optimizer, "arm": arm, "rate": rate, "steps": task_of(problem).steps}
    found = [self.done.get(self.key(run | {"seed": seed})) for seed in SEEDS]
    return np.array([run[name] for run in found if run]) if all(found) else None

  def get(self, problem: str, optimizer: str, arm: str, rate: float, seed: int) -> dict[str, Any]:
    """A run, trained now if it is not finished."""
    run = {"problem": problem, "optimizer": optimizer, "arm": arm, "rate": rate, "seed": seed}
    run["steps"] = task_of(problem).steps
    if self.key(run) not in self.done:
      begin = time.process_time()
      run |= train(problem, optimizer, arm, rate, seed)
      run["cpu seconds"] = round(time.process_time() - begin, 1)
      with self.path.open("a") as file:
        file.write(json.dumps(run) + "\n")
      self.done[self.key(run)] = run
    return self.done[self.key(run)]


def rate_of(half_decades: int) -> float:
  """1 or 3 times a power of ten."""
  return float(f"{3 if half_decades % 2 else 1}e{half_decades // 2}")


def tuned_rate(runs: Runs, problem: str, optimizer: str) -> float:
  """The rate with the least held-out loss in float32, of rates that reach beyond it on both sides."""

  def held_out(i: int) -> float:
    found = [runs.get(problem, optimizer, "float32", rate_of(i), seed)["held out"] for seed in TUNING_SEEDS]
    return float(np.nan_to_num(np.mean(found), nan=np.inf))

  first, *_, last = START
  while True:
    best = min(range(first, last + 1), key=held_out)
    if first < best < last:
      return rate_of(best)
    first, last = min(first, best - 1), max(last, best + 1)


def run_all(runs: Runs, problem: str, optimizer: str, arms: list[str]) -> None:
  """Seed by seed, so that what is finished of each arm is paired."""
  rate = tuned_rate(runs, problem, optimizer)
  for seed in SEEDS:
    for arm in arms:
      run = runs.get(problem, optimizer, arm, rate, seed)
      print(f"{problem}, {optimizer}, {arm}, seed {seed}: {run['train']:.5f}", flush=True)


def kept(problem: str, optimizer: str, arm: str) -> float:
  """Bytes that a run keeps for each parameter: weights and optimizer's state."""
  weights, _ = jax.eval_shape(task_of(problem).problem.start, jax.random.key(0))
  held = jax.eval_shape(trainer(problem, optimizer, arm).init, jax.ShapeDtypeStruct((), jnp.float32), weights)
  size = lambda tree, of: sum(of(leaf) for leaf in jax.tree.leaves(tree))
  return size(held, lambda leaf: leaf.size * leaf.dtype.itemsize) / size(weights, lambda leaf: leaf.size)


def interval(ratio: np.ndarray) -> tuple[float, float]:
  """Mean and half the width of its 95 % interval."""
  return ratio.mean(), STUDENT_T * ratio.std(ddof=1) / math.sqrt(len(ratio))


def rows(runs: Runs, problem: str, optimizer: str) -> Iterator[list[str]]:
  """A row of the table for each arm whose runs are all there."""
  rate = tuned_rate(runs, problem, optimizer)
  of = lambda arm, name: runs.losses(problem, optimizer, arm, rate, name)
  train, held_out = of("float32", "train"), of("float32", "held out")
  for arm in ARMS:
    losses, narrow, unseen = of(arm, "train"), of(arm, "train, bfloat16"), of(arm, "held out")
    if train is None or held_out is None or losses is None or narrow is None or unseen is None:
      continue
    ratios = [None if arm == "float32" else losses / train, narrow / train]
    ratios.append(None if arm == "float32" else unseen / held_out)
    cells = ["" if ratio is None else "{:+.3%} ± {:.3%}".format(*interval(ratio - 1)) for ratio in ratios]
    mean, half = interval(losses / train - 1)
    inside = "" if arm == "float32" else ("yes" if abs(mean) + half <= TARGET else "**no**")
    bytes_kept = f"{kept(problem, optimizer, arm):.2f}"
    yield [f"{optimizer}, {rate:g}", arm, bytes_kept, f"{losses.mean():.5f}", *cells, inside]


HEAD = [
  "optimizer, rate", "arm", "bytes kept", "final training loss", "against float32", "of the bfloat16 weights",
  "held out", "inside ±0.1 %",
]  # fmt: skip
INTRODUCTION = """\
# What storage in few bytes costs in quality

`python benchmarks/low_precision.py`, {date}, jax {jax}, CPU; {minutes:.0f} CPU minutes.

Each optimizer at the rate that is best for it in float32, cosine to 0; means of {seeds} seeds; ratios paired by seed,
with 95 % intervals (Student's t). "24 bits" is `split_weights(quantize_state(…))` or, with bfloat16 moments, those
rounded by chance; "8-bit moments by chance" are `quantize_state(…, rounding=stochastic(1))`; "16 bits by chance" is
`split_weights(quantize_state(…), bits=16)`; "bfloat16 throughout" is the optimizer alone, on bfloat16 weights. Bytes
kept are weights and state for each parameter; small leaves keep float32 moments. Losses are those of `join_weights`,
and of the bfloat16 weights (the float32 arms': rounded once, at the end). Gradients are taken at the bfloat16 weights.
The control shows how far float32 parts from float32, from weights that differ in their last bit. A negative ratio is a
lower loss than float32's: 8-bit second moments whose codes are the nearest drift, which changes the steps by some per
cent (`flashoptim_peer.md`); by chance they do not. Rates are half decades, and reach beyond the best one on both sides.
Inside tells whether the whole interval lies within ±0.1 %.
"""


def report(runs: Runs, problems: list[str]) -> str:
  minutes = sum(run["cpu seconds"] for run in runs.done.values()) / 60
  facts = {"date": datetime.date.today(), "jax": jax.__version__, "minutes": minutes, "seeds": len(SEEDS)}
  lines = [INTRODUCTION.format(**facts)]
  for problem in problems:
    task = task_of(problem)
    weights, _ = jax.eval_shape(task.problem.start, jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(weights))
    lines += [f"## {problem}: {size:,} parameters, {task.steps} steps", ""]
    lines += [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    lines += [f"| {' | '.join(row)} |" for optimizer in OPTIMIZERS for row in rows(runs, problem, optimizer)]
    missing = [
      f"{optimizer}, {arm}"
      for optimizer in OPTIMIZERS
      for arm in ARMS
      if runs.losses(problem, optimizer, arm, tuned_rate(runs, problem, optimizer), "train") is None
    ]
    lines += ["", *([f"Not run: {'; '.join(missing)}.", ""] if missing else [])]
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--problems", nargs="+", choices=TASKS, default=list(TASKS))
  parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
  parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
  parser.add_argument(
    "--report", action="store_true", help="train nothing but float32 rates that are not tuned, and write the tables"
  )
  parser.add_argument("--results", default=pathlib.Path(__file__).parent / "results", type=pathlib.Path)
  options = parser.parse_args()
  runs = Runs(options.results / "low_precision.jsonl")
  if options.report:
    text = report(runs, options.problems)
    print(text)
    (options.results / "low_precision.md").write_text(text)
    return
  for problem in options.problems:
    for optimizer in options.optimizers:
      run_all(runs, problem, optimizer, options.arms)


if __name__ == "__main__":
  main()
