"""What the model's computation says of its layers that names and shapes cannot: ResNet-20 and a small GPT.

Prints CaAdam's step scales by path (`structure_from_params`) and by trace (`structure_from_model`), where they
differ, and why; draws both networks. Run it as `python examples/structure.py [folder for the pictures]`.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from optax_ext import ByDepth, Multiplicative, structure_from_model, structure_from_params


class ResNet20(nn.Module):
  """He et al.'s network for CIFAR-10, with projections where the shape changes."""

  @nn.compact
  def __call__(self, x):  # noqa: D102
    norm = lambda x, name: nn.BatchNorm(use_running_average=True, name=f"{name}_norm")(x)
    conv = lambda x, width, size, stride, name: norm(
      nn.Conv(width, (size, size), (stride, stride), use_bias=False, name=name)(x), name
    )
    x = nn.relu(conv(x, 16, 3, 1, "stem"))
    for stage, width in enumerate((16, 32, 64)):
      for block in range(3):
        stride, name = 2 if stage and not block else 1, f"stage{stage}_block{block}"
        y = nn.relu(conv(x, width, 3, stride, f"{name}_first"))
        y = conv(y, width, 3, 1, f"{name}_second")
        if x.shape != y.shape:
          x = conv(x, width, 1, stride, f"{name}_projection")
        x = nn.relu(x + y)
    return nn.Dense(10, name="head")(x.mean((1, 2)))


class Block(nn.Module):
  """Attention and a perceptron, each on the normalised input and added to it."""

  @nn.compact
  def __call__(self, x, _):  # noqa: D102
    mask = nn.make_causal_mask(x[..., 0])
    x = x + nn.MultiHeadDotProductAttention(4, name="attention")(nn.LayerNorm(name="norm0")(x), mask=mask)
    h = nn.gelu(nn.Dense(4 * x.shape[-1], name="up")(nn.LayerNorm(name="norm1")(x)))
    return x + nn.Dense(x.shape[-1], name="down")(h), None


class GPT(nn.Module):
  """Six blocks in one scan, and an embedding that is the output layer too."""

  @nn.compact
  def __call__(self, ids):  # noqa: D102
    embed = nn.Embed(256, 64, name="embed")
    x = embed(ids) + self.param("positions", nn.initializers.normal(0.02), (ids.shape[-1], 64))
    blocks = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=6)
    x, _ = blocks(name="blocks")(x, None)
    return embed.attend(nn.LayerNorm(name="norm")(x))


WHY = {
  "ResNet-20": """Names sort the head before the stages, so that by path the classifier is layer 0; and the projections,
which run beside a block's first convolution, are layers of their own: 22 deep where the network is 20.""",
  "GPT": """By path, six layers in one leaf are one layer with six times the connections, depth follows the alphabet
(down before up, key before query), and the tied embedding is no layer. The trace sees the scan (an array of depths),
what each product sums over, and that the embedding, looked up first, is multiplied last.""",
}


def compare(name, module, inputs, folder):
  """Prints the table by trace, the scales that differ, and draws the layers."""
  variables = jax.eval_shape(module.init, jax.random.key(0), inputs)
  params = {"params": variables["params"]}
  rest = {kind: tree for kind, tree in variables.items() if kind != "params"}
  stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), rest)
  traced = structure_from_model(lambda p, x: module.apply({**p, **stats}, x), params, inputs)
  guessed = structure_from_params(params)
  rule = Multiplicative(signed=True) * ByDepth()
  print(f"{name}, by trace, S of {rule.first} · {rule.second}\n")
  print(traced.table(rule))
  print(
    f"\n{name}: by path {guessed.num_layers} layers deep, by trace {traced.num_layers}; where S differs by a tenth:\n"
  )
  by_path, by_trace = (jax.tree.leaves(rule.scales(structure)) for structure in (guessed, traced))
  facts = zip(jax.tree.leaves(traced.facts), by_path, by_trace, strict=True)
  for leaf, path, trace in facts:
    if leaf.layer == leaf.path and np.max(np.abs(np.log(trace / np.asarray(path)))) > np.log(1.1):
      shown = " ".join(f"{scale:.2f}" for scale in np.ravel(trace))
      print(f"  {leaf.path:40s} path {float(path):5.2f}  trace {shown}")
  print(f"\n{WHY[name]}\n")
  if folder is not None:
    file = pathlib.Path(folder) / f"structure-{name.lower()}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    traced.plot(file, rule)
    print(f"Drawn in {file.name}.\n")


def main(folder=None):
  compare("ResNet-20", ResNet20(), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32), folder)
  compare("GPT", GPT(), jax.ShapeDtypeStruct((1, 64), jnp.int32), folder)


if __name__ == "__main__":
  main(*sys.argv[1:2])
