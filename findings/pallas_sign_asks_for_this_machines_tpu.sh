#!/usr/bin/env bash
# A Pallas kernel for TPUs that calls jnp.sign cannot be compiled ahead of time on a machine without a TPU; with jnp.abs it can.
#
# Expected: compiling for a described device (jax.experimental.topologies) needs no device, whatever elementwise function the kernel calls.
# What happens: lowering `sign` asks the process which TPU it runs on, not the device that the program is for, and raises. Only its path for
#   bfloat16 uses the answer; float32 is refused too.
# Since: seen with jax 0.10.2 (libtpu 0.0.42.1) and 0.12.0.1 (libtpu 0.0.50.1).
# Where from: `_sign_lowering_rule` in jax/_src/pallas/mosaic/lowering.py, which calls `get_tpu_info().generation`. Written with selects the
#   same function compiles.
# Date seen: 2026-11-28.
#
# Output seen:
#   jax 0.12.0.1
#   abs: compiles
#   sign: ValueError: Unsupported TPU device kind: cpu
#   sign by selects: compiles
set -euo pipefail
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
  { echo "This needs Python 3.12 or later: set PYTHON to one." >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.12.0.1 jaxlib==0.12.0.1 libtpu==0.0.50.1 numpy==2.5.5 ml_dtypes==0.6.0
cd "$folder"
JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 "$folder/venv/bin/python" -W ignore - <<'EOF'
import sys

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

device = topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu").devices[0]
on_device = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=SingleDeviceSharding(device))
FUNCTIONS = {
  "abs": jnp.abs,
  "sign": jnp.sign,
  "sign by selects": lambda x: jnp.where(x > 0, 1.0, jnp.where(x < 0, -1.0, x)),
}


def compiles(function):
  def kernel(x, y):
    y[...] = function(x[...])

  call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32))
  try:
    jax.jit(call).lower(on_device).compile()
  except Exception as error:
    return f"{type(error).__name__}: {str(error).splitlines()[0].split('. ')[0]}"
  return "compiles"


print("jax", jax.__version__)
seen = {name: compiles(function) for name, function in FUNCTIONS.items()}
for name, outcome in seen.items():
  print(f"{name}: {outcome}")
if not (seen["abs"] == seen["sign by selects"] == "compiles" and seen["sign"].startswith("ValueError")):
  sys.exit("No longer so: a kernel with jnp.sign compiles where no TPU is, or kernels are refused for another reason.")
EOF
