"""Time of one optimizer step on this CPU: ours, optax's, PyTorch's and other implementations of the papers.

    python benchmarks/speed/cpu.py

All take turns, several times; a ratio is the median over the rounds of the ratio to optax.adam in the same round. The
other projects' packages come with the extra `speed`; without them their lines say so. Writes
`benchmarks/results/speed/cpu.md` and every single time into `cpu.json`; with `--tiny`, or `--trees`, it writes nothing.
"""

import argparse
import json
import os
import statistics
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from cases import CASES, TIMED, kernels
from report import RESULTS, heading, markdown_table, this_machine, write
from rivals import RIVALS
from timing import optax_contender, ratio, take_turns


def many_small(leaves: int = 1000, side: int = 64) -> Any:
  """As many arrays as a deep network of small layers has, half of them kernels and half biases."""
  f = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  return {f"layer_{i:03}": {"kernel": f(side, side), "bias": f(side)} for i in range(leaves // 2)}


def gpt2(layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024) -> Any:
  """The parameters of GPT-2; the smallest, of 124 million, by default.

  Radford et al., Language Models are Unsupervised Multitask Learners, 2019
  """
  f = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  norm = {"scale": f(width), "bias": f(width)}
  dense = lambda a, b: {"kernel": f(a, b), "bias": f(b)}
  block = {"ln_1": norm, "qkv": dense(width, 3 * width), "out": dense(width, width)}
  block |= {"ln_2": norm, "up": dense(width, 4 * width), "down": dense(4 * width, width)}
  embeddings = {"tokens": {"embedding": f(vocabulary, width)}, "positions": {"embedding": f(context, width)}}
  return embeddings | {f"block_{i:02}": block for i in range(layers)} | {"ln_f": norm}


TREES = {
  "few large": lambda tiny: kernels(4, 32 if tiny else 2048),
  "many small": lambda tiny: many_small(10) if tiny else many_small(),
  "GPT-2 small": lambda tiny: gpt2(2, 64, 100, 16) if tiny else gpt2(),
}


def measure(shapes: Any, rounds: int, at_least: float) -> tuple[dict[str, list[float]], dict[str, str]]:
  """Seconds per step, by contender and round; why the others are missing."""
  contenders = {name: optax_contender(CASES[name], shapes) for name in TIMED}
  missing = {}
  for name, make in RIVALS.items():
    try:
      contenders[name] = make(shapes)
    except ImportError as error:
      missing[name] = f'not measured ({error}): pip install -e ".[speed]"'
  return take_turns(contenders, rounds, at_least), missing


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES), metavar="TREE")
  parser.add_argument("--rounds", type=int, default=7, help="(7)")
  parser.add_argument("--seconds", type=float, default=1.0, help="at least, of every contender in every round (1)")
  parser.add_argument("--tiny", action="store_true", help="small arrays, to see that all of it runs")
  options = parser.parse_args()
  facts = f"{options.rounds} rounds of at least {options.seconds:g} s"
  sections, times = [heading("Time of one step on a CPU", this_machine(), facts)], {}
  for tree in options.trees:
    shapes = TREES[tree](options.tiny)
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    seconds, missing = measure(shapes, options.rounds, options.seconds)
    times[tree] = seconds
    rows = []
    for name, of_rounds in seconds.items():
      ratios = [a / b for a, b in zip(of_rounds, seconds["optax.adam"], strict=True)]
      spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
      rows.append(
        [name, f"{1e3 * statistics.median(of_rounds):.3g}", f"{ratio(seconds, name, 'optax.adam'):.2f}", spread]
      )
    what = f"{tree}: {len(jax.tree.leaves(shapes))} arrays, {size / 1e6:.3g} million parameters"
    sections.append(markdown_table([what, "ms", "× optax.adam", "in the rounds"], rows))
    sections += [f"{name}: {why}" for name, why in missing.items()]
  if options.tiny or options.trees != list(TREES):
    print("\n\n".join(sections))
    return
  write("cpu.md", *sections)
  (RESULTS / "cpu.json").write_text(json.dumps(times, indent=1) + "\n")


if __name__ == "__main__":
  main()
