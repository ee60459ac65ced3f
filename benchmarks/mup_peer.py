"""Multipliers of `MaximalUpdate` beside those of microsoft/mup 1.0.0, the paper's own torch package, on an MLP.

    python benchmarks/mup_peer.py [--python PATH]

Without `--python`, an interpreter of an environment that has mup and torch, it makes such an environment. mup divides
the logits in the model and leaves the output's rate as it is; Adam's steps do not depend on the gradient's scale, so a
weight behind a factor c with the rate α moves the logits as one without the factor does with c·α. Both products are
compared: rate × factor, and the deviation of the initialisation × factor, each beside the base model's. The table goes
to `benchmarks/results/mup_peer.md`.
"""

import argparse
import datetime
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import venv

import jax
import jax.numpy as jnp

from optax_ext import MaximalUpdate, rescale_init, structure_from_model

RESULTS = pathlib.Path(__file__).parent / "results"
BASE, WIDTHS = 32, (64, 256, 1024)
NAMES = ("first.weight", "first.bias", "hidden.weight", "hidden.bias", "out.weight", "out.bias")
THEIRS = """
import json, sys, torch
from torch import nn
from mup import MuAdam, MuReadout, set_base_shapes

def model(width):
  torch.manual_seed(0)
  net = nn.Sequential()
  net.first, net.hidden, net.out = nn.Linear(64, width), nn.Linear(width, width), MuReadout(width, 10)
  return net

base, widths = json.loads(sys.argv[1])
found = {}
for width in widths:
  net = model(width)
  before = {name: float(p.std()) for name, p in net.named_parameters()}
  set_base_shapes(net, model(base), delta=model(2 * base))
  factor = 1 / net.out.width_mult()
  names = {id(p): name for name, p in net.named_parameters()}
  of = lambda name: factor if name == "out.weight" else 1.0
  groups = MuAdam(net.parameters(), lr=1.0).param_groups
  rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
  found[width] = {
    name: (rates[name] * of(name), float(p.std()) / before[name] * of(name)) for name, p in net.named_parameters()
  }
print(json.dumps([torch.__version__, found]))
"""


def ours():
  """Width -> name of a parameter, as torch has it -> scale of its rate and of its initialisation."""

  def net(p, x):
    h = jax.nn.relu(x @ p["first"]["weight"].T + p["first"]["bias"])
    h = jax.nn.relu(h @ p["hidden"]["weight"].T + p["hidden"]["bias"])
    return h @ p["out"]["weight"].T + p["out"]["bias"]

  def new(width):
    sizes = {"first": (width, 64), "hidden": (width, width), "out": (10, width)}
    return {name: {"weight": jnp.ones(size), "bias": jnp.ones(size[0])} for name, size in sizes.items()}

  structure = lambda width: structure_from_model(net, new(width), jnp.ones((1, 64)))
  base, found = structure(BASE), {}
  for width in WIDTHS:
    scales = MaximalUpdate(base).scales(structure(width))
    starts = rescale_init(new(width), structure(width), base)
    pairs = {name: name.split(".") for name in NAMES}
    found[width] = {name: (scales[a][b], float(jnp.ravel(starts[a][b])[0])) for name, (a, b) in pairs.items()}
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--python", type=pathlib.Path)
  python = parser.parse_args().python
  with tempfile.TemporaryDirectory() as folder:
    if python is None:
      venv.create(folder, with_pip=True)
      python = pathlib.Path(folder) / "bin" / "python"
      subprocess.run([python, "-m", "pip", "install", "-q", "mup==1.0.0", "torch"], check=True)
    asked = json.dumps([BASE, WIDTHS])
    done = subprocess.run([python, "-c", THEIRS, asked], check=True, capture_output=True, text=True)
  version, theirs = json.loads(done.stdout)
  rows = ["| width | parameter | rate, mup | rate, here | initial deviation, mup | here |", "|---|---|---|---|---|---|"]
  same = True
  for width, mine in ours().items():
    for name, (rate, start) in mine.items():
      their_rate, their_start = theirs[str(width)][name]
      same &= math.isclose(rate, their_rate) and (
        name.endswith("bias") or math.isclose(start, their_start, rel_tol=1e-5)
      )
      starts = "– | –" if name.endswith("bias") else f"{their_start:.4g} | {start:.4g}"
      rows.append(f"| {width} | `{name}` | {their_rate:.4g} | {rate:.4g} | {starts} |")
  verdict = "The same." if same else "**Not the same.**"
  head = f"`python benchmarks/mup_peer.py`, {datetime.date.today()}, mup 1.0.0, torch {version}, jax {jax.__version__}."
  text = "\n".join(["# Beside microsoft/mup", "", f"{head} An MLP of base width {BASE}. {verdict}", "", *rows, ""])
  (RESULTS / "mup_peer.md").write_text(text)
  print(text)
  return 0 if same else 1


if __name__ == "__main__":
  sys.exit(main())
