"""Whether a learning rate tuned on a narrow network is right for a wide one, with and without `MaximalUpdate`.

    python benchmarks/transfer.py digits     an MLP on scikit-learn's digits, a quarter of an hour on two cores
    python benchmarks/transfer.py text       a GPT on tiny Shakespeare, hours; with --optimizers adam less than one
    python benchmarks/transfer.py report     table and picture of the results that are there

For each width, optimizer and parametrisation `compare` tries learning rates half an octave apart, on several seeds, and
extends a grid that ends at its best. Judged is the training loss after a fixed number of steps with a cosine schedule,
on a part of the training data. Interrupted work goes on from its folder. Raw numbers go to
`benchmarks/results/transfer-*.json`.
"""

import argparse
import datetime
import functools
import json
import math
import os
import pathlib
import platform
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import optax_ext
from optax_ext import MaximalUpdate, adamnx, caadam, exadam, rescale_init, structure_from_model
from optax_ext.compare import Optimizer, Problem, Protocol, compare
from optax_ext.compare.problems import data

RESULTS = pathlib.Path(__file__).parent / "results"
HALF_OCTAVE = 2**0.5
FACTORS = (1, 2, 4, 8)
KINDS = ("standard", "maximal_update")
CENTRES = {  # of the grid at the base width
  "digits": {"adam": 2**-5, "exadam": 2**-8, "adamnx": 2**-5},
  "text": {"adam": 2**-7, "exadam": 2**-10, "adamnx": 2**-7},
}
POINTS = 9
ARMS = ("adam", "exadam", "adamnx")


class MLP(nn.Module):
  """Two hidden layers."""

  width: int

  @nn.compact
  def __call__(self, x):
    """Logits."""
    for i in range(2):
      x = nn.relu(nn.Dense(self.width, name=f"hidden_{i}")(x))
    return nn.Dense(10, name="out")(x)


class GPT(nn.Module):
  """Two blocks, with heads of 8: a wider network has more heads. The size of embeddings does not depend on width."""

  width: int
  characters: int = 65
  block: int = 32

  @nn.compact
  def __call__(self, codes):
    """Logits of the next characters."""
    start = nn.initializers.normal(0.5)
    x = nn.Embed(self.characters, self.width, embedding_init=start, name="embedding")(codes)
    x = x + self.param("positions", start, (self.block, self.width))
    mask = nn.make_causal_mask(codes)
    for i in range(2):
      attention = nn.MultiHeadDotProductAttention(self.width // 8, name=f"block_{i}_attention")
      x = x + attention(nn.LayerNorm(name=f"block_{i}_norm0")(x), mask=mask)
      h = nn.gelu(nn.Dense(4 * self.width, name=f"block_{i}_expand")(nn.LayerNorm(name=f"block_{i}_norm1")(x)))
      x = x + nn.Dense(self.width, name=f"block_{i}_contract")(h)
    return nn.Dense(self.characters, name="out")(nn.LayerNorm(name="norm")(x))


def digits():
  """1,536 digits, and the model of a width."""
  from sklearn.datasets import load_digits

  rows, labels = load_digits(return_X_y=True)
  examples = {"x": np.asarray(rows[:1536] / 16, np.float32), "label": labels[:1536].astype(np.int32)}
  return examples, examples, MLP, 128


def text():
  """Windows of a tenth of tiny Shakespeare; 256 of them to measure on."""
  codes = data.tiny_shakespeare()
  starts = np.arange(len(codes) // 10 - 33)
  windows = lambda starts: {
    "x": codes[starts[:, None] + np.arange(32)].astype(np.int32),
    "label": codes[starts[:, None] + np.arange(1, 33)].astype(np.int32),
  }
  return windows(starts), windows(starts[:: len(starts) // 256][:256]), GPT, 16


PROBLEMS = {"digits": (digits, 64, 40, 12), "text": (text, 16, 400, 3)}  # data and model, base width, steps, seeds


def problem_of(name, kind, width):
  """The problem at a width, and for the maximal update parametrisation the rule that goes with it."""
  load, base_width, *_ = PROBLEMS[name]
  train, measured, model_of, batch_size = load()
  sample = jnp.asarray(train["x"][:2])
  model = model_of(width)

  def structure_at(width):
    net = model_of(width)
    return structure_from_model(net.apply, jax.eval_shape(net.init, jax.random.key(0), sample), sample)

  structure, base = structure_at(width), structure_at(base_width)

  def init(key):
    params = model.init(key, sample)
    return rescale_init(params, structure, base) if kind == "maximal_update" else params

  def loss(params, batch, key=None):
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, batch["x"]), batch["label"]).mean()

  metrics = lambda params, part: {"loss": loss(params, part)}
  found = Problem(f"{name}-{kind}-{width}", init, loss, metrics, train, measured, measured, batch_size=batch_size)
  return found, {"rule": MaximalUpdate(base), "structure": structure} if kind == "maximal_update" else {}


def optimizers_of(name, kind, width, scaled, arms):
  """Each with a grid whose centre falls with width in the standard parametrisation, as its best rate does."""
  falling = 1.0 if kind == "maximal_update" else (PROBLEMS[name][1] / width) ** 0.75
  make = {
    "adam": functools.partial(caadam, **scaled) if scaled else optax.adam,
    "exadam": functools.partial(exadam, **scaled),
    "adamnx": functools.partial(adamnx, weight_decay=0.0, **scaled),
  }
  return [Optimizer(arm, make[arm], centre=CENTRES[name][arm] * falling) for arm in arms]


def run(name, kind, width, out, arms, steps, seeds, points=POINTS):
  """Optimizer -> learning rate -> loss, the mean over seeds; a run that diverged makes it infinite."""
  problem, scaled = problem_of(name, kind, width)
  found = compare(
    problem,
    optimizers_of(name, kind, width, scaled, arms),
    Protocol(steps=steps, evaluate_every=steps, schedule="cosine", report="last"),
    points=points,
    ratio=HALF_OCTAVE,
    tuning_seeds=seeds,
    seeds=1,
    single_rate=0,
    add_baselines=False,
    batching="vmap",
    out=out / problem.name,
    progress=False,
  )
  return {arm: dict(sorted(found.arms[arm].search.by_rate.items())) for arm in found.arms}


def best_rate(losses):
  """The rate of the least loss."""
  return min(losses, key=losses.get)


def loss_at(losses, rate):
  """The loss at a rate between those tried: along a line in the logarithm of the rate."""
  rates = sorted(losses)
  return float(np.interp(math.log(rate), np.log(rates), [losses[r] for r in rates]))


def report():
  """The table and the picture of all results."""
  rows = [
    "| problem | optimizer | parametrisation | best rate at width × 1, 2, 4, 8 (log₂) | moves by, octaves | "
    "loss at the rate of × 1, beyond the best |",
    "|---|---|---|---|---|---|",
  ]
  pages = {name: sorted(RESULTS.glob(f"transfer-{name}-*.json")) for name in PROBLEMS}
  pages = {name: json.loads(files[-1].read_text()) for name, files in pages.items() if files}
  for name, page in pages.items():
    for arm in page["optimizers"]:
      for kind in KINDS:
        curves = [{float(r): v for r, v in one[arm].items()} for one in page["losses"][kind].values()]
        rates = [best_rate(curve) for curve in curves]
        excess = [loss_at(curve, rates[0]) / min(curve.values()) - 1 for curve in curves]
        rows.append(
          f"| {name} | {arm} | {kind.replace('_', ' ')} | {', '.join(f'{math.log2(rate):.2f}' for rate in rates)} | "
          f"{math.log2(rates[-1] / rates[0]):+.2f} | {', '.join(f'{100 * e:.1f}%' for e in excess[1:])} |"
        )
  head = [f"- {name}: {page['command']}, {page['date']}, {page['versions']}" for name, page in pages.items()]
  text = "\n".join(["# Learning rates across width", "", *head, "", *rows, ""])
  (RESULTS / "transfer.md").write_text(text)
  print(text)
  draw(pages)


def draw(pages):
  """Loss against rate, one line a width; one row a problem and parametrisation, one column an optimizer."""
  from matplotlib.figure import Figure

  lines = [(name, kind) for name in pages for kind in KINDS]
  figure = Figure(figsize=(10, 2.7 * len(lines)), layout="constrained")
  panels = figure.subplots(len(lines), 3, squeeze=False)
  for row, (name, kind) in zip(panels, lines, strict=True):
    for panel, arm in zip(row, pages[name]["optimizers"], strict=False):
      for number, (width, losses) in enumerate(pages[name]["losses"][kind].items()):
        curve = sorted((float(rate), loss) for rate, loss in losses[arm].items())
        panel.plot(*zip(*curve, strict=True), marker=".", color=f"C{number}", label=f"width {width}")
      panel.set(xscale="log", yscale="log", title=f"{name}, {arm}, {kind.replace('_', ' ')}", xlabel="learning rate")
      panel.grid(alpha=0.3)
    for panel in row[len(pages[name]["optimizers"]) :]:
      panel.set_visible(False)
    row[0].set_ylabel("training loss")
    row[0].legend(fontsize="small")
  figure.savefig(RESULTS / "transfer.png", dpi=110)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=[*PROBLEMS, "report"])
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/transfer"), help="where runs are kept")
  parser.add_argument("--optimizers", nargs="+", choices=ARMS, default=ARMS)
  parser.add_argument(
    "--slice", action="store_true", help="two widths, few runs: whether it works; no result is written"
  )
  options = parser.parse_args()
  if options.what == "report":
    return report()
  name = options.what
  _, base, steps, seeds = PROBLEMS[name]
  short = {"steps": 20, "points": 3, "seeds": 1} if options.slice else {"steps": steps, "seeds": seeds}
  losses = {
    kind: {
      base * factor: run(name, kind, base * factor, options.out, options.optimizers, **short)
      for factor in FACTORS[: 2 if options.slice else None]
    }
    for kind in KINDS
  }
  if options.slice:
    return print(json.dumps(losses))
  page = {
    "command": f"python benchmarks/transfer.py {name} --optimizers {' '.join(options.optimizers)}",
    "date": datetime.date.today().isoformat(),
    "versions": f"Python {platform.python_version()}, jax {jax.__version__}, optax_ext {optax_ext.__version__}",
    "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    "steps": steps,
    "optimizers": list(options.optimizers),
    "losses": losses,
  }
  (RESULTS / f"transfer-{name}-{page['date']}.json").write_text(json.dumps(page, indent=1) + "\n")
  return report()


if __name__ == "__main__":
  sys.exit(main())
