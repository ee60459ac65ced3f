"""e3nn: equivariant linear layers with a gate between them, a tensor square and a readout."""

from typing import Any

from expected import bias, weight

PACKAGE, PYTHON = "e3nn-jax", "3.13"
REQUIRES = ["e3nn-jax==0.21.0", "flax==0.12.12", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`flax.Linear`, `gate`, `tensor_square`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import e3nn_jax as e3nn
  import jax
  import jax.numpy as jnp
  from flax import linen as nn

  class Model(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
      x = e3nn.IrrepsArray("3x0e + 2x1o", x)
      x = e3nn.flax.Linear("6x0e + 4x0e + 4x1o", biases=True, name="first")(x)
      x = e3nn.gate(x)
      x = e3nn.flax.Linear("5x0e + 2x1o", name="second")(x)
      x = e3nn.concatenate([x, e3nn.tensor_square(x)]).regroup()
      x = e3nn.flax.Linear("4x0e", name="third")(x).array
      return e3nn.flax.MultiLayerPerceptron((8, 1), jax.nn.silu, output_activation=False, with_bias=True, name="mlp")(x)

  x = jnp.ones((5, 9))
  model = Model()
  return model.apply, model.init(jax.random.key(0), x), (x,)


# _src/linear.py:187: a weight (u, w) for each pair of irreps, `einsum("uw,ui->wi", w, x)`: axis 0. Linear joins equal
# irreps, 6x0e + 4x0e to 10x0e. A bias is added to the scalars' paths. gate and tensor_square contract activations with
# constants alone. 5 + 15 + 3 scalars reach the third: five, their squares, and the dot products of two vectors.
FIRST = "first/w[0,0] 3x0e,10x0e"
LAYERS = 5
EXPECTED = {
  FIRST: weight(0, 30, (0,)),
  "first/b[0] 10x0e": bias(FIRST, 0, 30),
  "first/w[1,1] 2x1o,4x1o": weight(0, 8, (0,)),
  "second/w[0,0] 6x0e,5x0e": weight(1, 30, (0,)),
  "second/w[1,1] 4x1o,2x1o": weight(1, 8, (0,)),
  "third/w[0,0] 23x0e,4x0e": weight(2, 92, (0,)),
  "mlp/Dense_0/kernel": weight(3, 32, (0,)),
  "mlp/Dense_0/bias": bias("mlp/Dense_0/kernel", 3, 32),
  "mlp/Dense_1/kernel": weight(4, 8, (0,)),
  "mlp/Dense_1/bias": bias("mlp/Dense_1/kernel", 4, 8),
}
