"""JAX MD: NequIP's energy of a graph of atoms, equivariant convolutions weighted by a radial network."""

from typing import Any

from expected import other, weight

PACKAGE, PYTHON = "jax-md", "3.13"
REQUIRES = ["jax-md==0.2.29", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`NequIPEnergyModel`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import jax.numpy as jnp
  import jraph
  from jax_md._nn.nequip import NequIPEnergyModel

  model = NequIPEnergyModel(
    graph_net_steps=2,
    use_sc=True,
    nonlinearities={"e": "raw_swish", "o": "tanh"},
    n_elements=3,
    hidden_irreps="8x0e + 4x1e",
    sh_irreps="1x0e + 1x1e",
    num_basis=5,
    radial_net_n_hidden=6,
    radial_net_n_layers=1,
  )
  senders, receivers = jnp.array([0, 1, 2, 3, 0, 2]), jnp.array([1, 0, 3, 2, 2, 0])
  edges = jax.random.normal(jax.random.key(1), (6, 3))

  def apply(params: Any, nodes: Any, edges: Any) -> Any:
    return model.apply(params, graph(nodes, edges))

  def graph(nodes: Any, edges: Any) -> Any:
    return jraph.GraphsTuple(nodes, edges, receivers, senders, None, jnp.array([4]), jnp.array([6]))

  nodes = jax.nn.one_hot(jnp.array([0, 1, 2, 1]), 3)
  return apply, model.init(jax.random.key(0), graph(nodes, edges)), (nodes, edges)


# _nn/nequip.py: Linear_0 embeds the species (0). A convolution: its Linear_0 on the nodes (1), a radial network of two
# Dense on the edges (0 and 1, for each convolution anew), their tensor product, the sum over edges, Linear_1 (2). The
# second convolution: 3 and 4. The readout: Linear_1 (5) and Linear_2 (6). e3nn's Linear is (in, out) for each pair of
# irreps, axis 0. (The tensor products with the species have weights (u, v, w), summed over u and v in an order that
# einsum chooses: not asked.) The frequencies multiply distances.
FIRST, SECOND = "NequIPConvolution_0", "NequIPConvolution_1"
LAYERS = 7
EXPECTED = {
  "BesselEmbedding_0/frequencies": other(0),
  "Linear_0/w[0,0] 3x0e,8x0e": weight(0, 24, (0,)),
  f"{FIRST}/Linear_0/w[0,0] 8x0e,8x0e": weight(1, 64, (0,)),
  f"{FIRST}/MLP_0/Dense_0/kernel": weight(0, 30, (0,)),
  f"{FIRST}/MLP_0/Dense_1/kernel": weight(1, 168, (0,)),
  f"{FIRST}/Linear_1/w[0,0] 8x0e,8x0e": weight(2, 64, (0,)),
  f"{FIRST}/Linear_1/w[0,1] 8x0e,4x0e": weight(2, 32, (0,)),
  f"{FIRST}/Linear_1/w[1,2] 8x1e,4x1e": weight(2, 32, (0,)),
  f"{SECOND}/Linear_0/w[0,0] 8x0e,8x0e": weight(3, 64, (0,)),
  f"{SECOND}/Linear_0/w[1,1] 4x1e,4x1e": weight(3, 16, (0,)),
  f"{SECOND}/MLP_0/Dense_0/kernel": weight(0, 30, (0,)),
  f"{SECOND}/MLP_0/Dense_1/kernel": weight(1, 168, (0,)),
  f"{SECOND}/Linear_1/w[0,0] 12x0e,8x0e": weight(4, 96, (0,)),
  f"{SECOND}/Linear_1/w[1,2] 16x1e,4x1e": weight(4, 64, (0,)),
  "Linear_1/w[0,0] 8x0e,4x0e": weight(5, 32, (0,)),
  "Linear_2/w[0,0] 4x0e,1x0e": weight(6, 4, (0,)),
}
