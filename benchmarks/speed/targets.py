"""TPUs and GPUs that programs are compiled for on a machine that has neither. Nothing runs there.

XLA's compilers come as Python packages: pip install -e ".[aot]".
"""

import contextlib
import functools
import os
import pathlib
from typing import Any

import jax
from jax.experimental import topologies

# The smallest slice that each TPU comes in; a program for one device is compiled for its first.
TPUS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
GPUS = {"H100": "h100_sxm.textproto"}
TARGETS = (*TPUS, *GPUS)


def without_accelerators() -> None:
  """Keeps jax, and the compilers' drivers, from looking for devices. Call it before jax computes anything."""
  os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "CUDA_VISIBLE_DEVICES": "-1"}
  jax.config.update("jax_platforms", "cpu")


def kind_of(target: str) -> str:
  """`"tpu"` or `"gpu"`."""
  return "tpu" if target in TPUS else "gpu"


@functools.cache
def devices_of(target: str) -> list[Any]:
  """The devices of a target: all of the slice for a TPU, one GPU."""
  if target in TPUS:
    return list(topologies.get_topology_desc(topology_name=TPUS[target], platform="tpu").devices)
  config = (pathlib.Path(__file__).parent / GPUS[target]).read_text()
  return list(topologies.get_topology_desc(platform="cuda", target_config=config, topology="1x1x1").devices)


def lowering_for(target: str) -> contextlib.AbstractContextManager[Any]:
  """What programs with kernels are traced and lowered in. jax asks which GPU one is for, and a mesh can tell it."""
  if target in TPUS:
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice(devices_of(target)[0].device_kind, None, "cuda")
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def compile_for(target: str, lowered: Any) -> Any:
  """Compiles what was lowered with shardings on the target's devices.

  A TPU may keep small arrays on chip between operations. That is turned off, so that all traffic is with HBM.
  """
  return lowered.compile(compiler_options={"xla_msa_enable": "false"} if target in TPUS else None)
