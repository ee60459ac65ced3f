"""Bytes of device memory that one donated step moves per parameter, read off programs compiled for a TPU. Needs no TPU.

pip install "jax[tpu]==<the jax in use>", then, from the repository root:
python benchmarks/tpu_traffic.py > benchmarks/results/tpu_traffic.md
"""

import datetime
import os

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import optax_ext

LEAVES, SIDE = 4, 4096
OPTIMIZERS = {
  "optax.adam": optax.adam(1e-3),
  "exadam": optax_ext.exadam(1e-3),
  "exadam, no log step, decay, cosine": optax_ext.exadam(
    optax.cosine_decay_schedule(1e-3, 100), weight_decay=0.1, log_step=False
  ),
  "adamnx": optax_ext.adamnx(1e-3),
  "caadam, multiplicative": optax_ext.caadam(1e-3),
  "caadam, by depth": optax_ext.caadam(1e-3, rule=optax_ext.ByDepth()),
  "nd_adam": optax_ext.nd_adam(1e-3),
}


def bytes_per_parameter(tx, sharding):
  def on_device(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  params = on_device({f"Dense_{i}": {"kernel": jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)} for i in range(LEAVES)})
  lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, on_device(jax.eval_shape(tx.init, params)), params)
  compiled = lowered.compile(compiler_options={"xla_msa_enable": "false"})  # so that all traffic is HBM traffic
  costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
  assert costs is not None
  assert memory is not None
  size = LEAVES * SIDE * SIDE
  return costs["bytes accessed"] / size, memory.temp_size_in_bytes / (4 * size)


def main():
  topology = topologies.get_topology_desc(topology_name="v5e:1x1", platform="tpu", chips_per_host_bounds=[1, 1, 1])
  sharding = SingleDeviceSharding(topology.devices[0])
  print(f"{datetime.date.today()}, jax {jax.__version__}, compiled ahead of time for TPU v5e, {LEAVES} × {SIDE}²\n")
  print("| optimizer | bytes per float32 parameter | temporaries / parameters |")
  print("|---|---|---|")
  for name, tx in OPTIMIZERS.items():
    moved, temporary = bytes_per_parameter(tx, sharding)
    print(f"| {name} | {moved:.2f} | {temporary:.4f} |")


if __name__ == "__main__":
  main()
