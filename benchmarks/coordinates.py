"""The coordinate check of four networks, with and without `MaximalUpdate`, over 16 times the width.

Run `python benchmarks/coordinates.py`; the tables go to `benchmarks/results/coordinates.md`, the pictures beside them.
"""

import datetime
import os
import pathlib
import platform

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import optax_ext
from optax_ext import MaximalUpdate, caadam, coordinate_check, rescale_init, structure_from_model

RESULTS = pathlib.Path(__file__).parent / "results"
FACTORS, RATE, STEPS, HEAD, SEEDS = (1, 2, 4, 8, 16), 2**-7, 8, 8, 4


class CNN(nn.Module):
  """Three convolutions, one of them in groups and one depthwise."""

  width: int

  @nn.compact
  def __call__(self, x):
    """Logits."""
    x = nn.relu(nn.Conv(self.width, (3, 3), name="first")(x))
    x = nn.Conv(self.width, (3, 3), feature_group_count=self.width, use_bias=False, name="depthwise")(x)
    x = nn.relu(nn.Conv(2 * self.width, (3, 3), feature_group_count=2, use_bias=False, name="grouped")(x))
    return nn.Dense(10, name="out")(x.mean((1, 2)))


class Block(nn.Module):
  """A transformer's block, as `nn.scan` wants it."""

  heads: int

  @nn.compact
  def __call__(self, x, _=None):
    """Activations of the same shape, and nothing to stack."""
    width = x.shape[-1]
    x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(nn.LayerNorm(name="norm0")(x))
    h = nn.Dense(4 * width, name="up")(nn.LayerNorm(name="norm1")(x))
    return x + nn.Dense(width, name="down")(nn.gelu(h)), None


class ViT(nn.Module):
  """Patches, two blocks, a head."""

  width: int
  heads: int

  @nn.compact
  def __call__(self, x):
    """Logits."""
    x = nn.Conv(self.width, (2, 2), (2, 2), name="patches")(x).reshape(x.shape[0], -1, self.width)
    x = x + self.param("positions", nn.initializers.normal(0.5), (1, x.shape[1], self.width))
    for i in range(2):
      x = Block(self.heads, name=f"block_{i}")(x)[0]
    return nn.Dense(10, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


class GPT(nn.Module):
  """An embedding whose size does not depend on the width, three blocks one by one or in a scan, a head or none."""

  width: int
  scanned: bool = False
  tied: bool = False

  @nn.compact
  def __call__(self, codes):
    """Logits of the next codes."""
    start, heads = nn.initializers.normal(0.5), self.width // HEAD
    embed = nn.Embed(10, self.width, embedding_init=start, name="embed")
    x = embed(codes) + self.param("positions", start, (1, codes.shape[1], self.width))
    if self.scanned:
      stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
      x = stack(heads, name="blocks")(x)[0]
    else:
      for i in range(3):
        x = Block(heads, name=f"block_{i}")(x)[0]
    x = nn.LayerNorm(name="norm")(x)
    return embed.attend(x) if self.tied else nn.Dense(10, use_bias=False, name="head")(x)


def data(kind):
  """Random inputs, and classes to learn by heart."""
  key = jax.random.key(1)
  if kind == "codes":
    codes = jax.random.randint(key, (16, 9), 0, 10)
    return codes[:, :-1], codes[:, 1:]
  return jax.random.normal(key, (32, 8, 8, 3)), jnp.arange(32) % 10


MODELS = {  # how they are made, their data, the narrowest width: sizes in a GPT of two heads are above those of others
  "CNN": (CNN, "images", 16),
  "ViT": (lambda width: ViT(width, width // HEAD), "images", 16),
  "GPT": (GPT, "codes", 32),
  "GPT, scanned": (lambda width: GPT(width, scanned=True), "codes", 32),
}


def check(model_of, kind, narrowest):
  """The outcomes in the standard parametrisation and with the rule."""
  x, labels = data(kind)
  widths = [narrowest * factor for factor in FACTORS]

  def new(width, seed=0):
    model = model_of(width)

    def loss(params, x, labels):
      return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), labels).mean()

    return loss, model.init(jax.random.key(seed), x)

  def structure(width):
    loss, params = new(width)
    return structure_from_model(loss, params, x, labels)

  base = structure(narrowest)

  def rescaled(width, seed):
    loss, params = new(width, seed)
    return loss, rescale_init(params, structure(width), base)

  transferred = lambda structure: caadam(RATE, rule=MaximalUpdate(base), structure=structure)
  return {
    "standard parametrisation": coordinate_check(new, widths, optax.adam(RATE), (x, labels), STEPS, seeds=SEEDS),
    "maximal update": coordinate_check(rescaled, widths, transferred, (x, labels), STEPS, seeds=SEEDS),
  }


def main():
  versions = f"Python {platform.python_version()}, jax {jax.__version__}, optax_ext {optax_ext.__version__}"
  lines = [
    "# Coordinate checks",
    "",
    f"`python benchmarks/coordinates.py`, {datetime.date.today()}, {versions}, {platform.machine()}, {os.cpu_count()} "
    f"cores. Mean |value| of each product, over {SEEDS} seeds, after {STEPS} steps of Adam at {RATE}; a slope is that "
    "of its logarithm against the logarithm of the width.",
  ]
  for name, model in MODELS.items():
    for title, found in check(*model).items():
      found.plot(RESULTS / f"coordinates-{name.lower().replace(', ', '-')}-{title.split()[0]}.png")
      lines += ["", f"## {name}, {title}", "", "```text", str(found), "```"]
      print("\n".join(lines[-5:]), flush=True)
  (RESULTS / "coordinates.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
  main()
