"""Haliax: named axes, blocks stacked and folded by a scan, as Levanter's models are."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "haliax", "3.13"
REQUIRES = ["haliax==1.4.dev453", "jax==0.10.2", "optax==0.2.8"]
MODEL = "`nn.Stacked` of `nn.LayerNorm` and `nn.Linear`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import equinox as eqx
  import haliax as hax
  import haliax.nn as hnn
  import jax
  import jax.numpy as jnp

  layers, embed, heads, mlp = hax.make_axes(layers=3, embed=12, heads=2, mlp=20)
  vocab, batch, pos = hax.make_axes(vocab=11, batch=2, pos=5)

  class Block(eqx.Module):
    norm: hnn.LayerNorm
    up: hnn.Linear
    down: hnn.Linear

    @staticmethod
    def init(*, key: Any) -> Any:
      first, second = jax.random.split(key)
      return Block(
        hnn.LayerNorm.init(embed),
        hnn.Linear.init(embed, (heads, mlp), key=first),
        hnn.Linear.init((heads, mlp), embed, key=second),
      )

    def __call__(self, x: Any) -> Any:
      return x + self.down(hnn.gelu(self.up(self.norm(x))))

  model = {
    "embed": hnn.Embedding.init(vocab, embed, key=jax.random.key(0)),
    "blocks": hnn.Stacked.init(layers, Block)(key=jax.random.split(jax.random.key(1), 3)),
    "norm": hnn.LayerNorm.init(embed),
    "head": hnn.Linear.init(embed, vocab, key=jax.random.key(2)),
  }

  def apply(model: Any, tokens: Any) -> Any:
    x = model["embed"].embed(hax.named(tokens, (batch, pos)))
    return model["head"](model["norm"](model["blocks"].fold(x))).array

  return apply, model, (jnp.zeros((2, 5), int),)


# nn/linear.py, Linear.init: out_first puts the axes Out before In, and is the default; `dot` sums over In. nn/scan.py:
# Stacked makes the blocks by vmap, the axis `layers` first, and folds over it. up and down: depths 2i and 2i + 1.
UP, DOWN = "blocks/stacked/up/weight/0", "blocks/stacked/down/weight/0"
LAYERS = 7
EXPECTED = {
  "embed/weight/0": other(0),
  "blocks/stacked/norm/weight/0": other([0, 1, 3], stacked=(0,)),
  "blocks/stacked/norm/bias/0": other([0, 1, 3], stacked=(0,)),
  UP: weight([0, 2, 4], 12 * 40, (3,), stacked=(0,)),
  "blocks/stacked/up/bias/0": bias(UP, [0, 2, 4], 12 * 40, stacked=(0,)),
  DOWN: weight([1, 3, 5], 12 * 40, (2, 3), stacked=(0,)),
  "blocks/stacked/down/bias/0": bias(DOWN, [1, 3, 5], 12 * 40, stacked=(0,)),
  "norm/weight/0": other(5),
  "norm/bias/0": other(5),
  "head/weight/0": weight(6, 132, (1,)),
  "head/bias/0": bias("head/weight/0", 6, 132),
}
