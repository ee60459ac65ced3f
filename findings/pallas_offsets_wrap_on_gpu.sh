#!/usr/bin/env bash
# A Pallas kernel for GPUs on an int8 array of between 2^31 and 2^32 elements reads and writes before the array: its offsets are signed int32.
#
# Expected: each block is read from its own place, in arrays of any size, or lowering refuses the size.
# What happens: offsets have 64 bits for arrays of more than 2^32 bytes alone. Below that they are i32, and tt.addptr extends their sign (PTX:
#   cvt.s64.s32): element 2^31 is read from 2 GiB before the array. Arrays of 2 bytes an element have fewer than 2^31 there and are safe.
# Since: seen with jax 0.10.2 and 0.12.0.1.
# Where from: _compute_offsets_from_indices in jax/_src/pallas/triton/lowering.py: signless(64 if full_size > 2**32 else 32), full_size in bytes.
# Date seen: 2026-11-28. Read off the lowered module and its PTX; no GPU is needed, and none was at hand to run it.
#
# Output seen:
#   jax 0.12.0.1
#   2^30 elements of int8: offsets of tensor<1024xi32>
#   3 * 2^30 elements of int8: offsets of tensor<1024xi32>
#   2^33 elements of int8: offsets of tensor<1024xi64>
set -euo pipefail
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
  { echo "This needs Python 3.12 or later: set PYTHON to one." >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.12.0.1 jaxlib==0.12.0.1 numpy==2.5.5 ml_dtypes==0.6.0
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'EOF'
import contextlib
import io
import re
import sys

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

device = jax.sharding.AbstractDevice("NVIDIA H100", None, "cuda")
mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)


def copy(x, y):
  y[...] = x[...]


def call(x):
  block, shape = pl.BlockSpec((1024,), lambda i: (i,)), jax.ShapeDtypeStruct(x.shape, x.dtype)
  return pl.pallas_call(
    copy, grid=x.size // 1024, in_specs=[block], out_specs=block, out_shape=shape, compiler_params=triton.CompilerParams(), debug=True
  )(x)


def offsets(size):
  with contextlib.redirect_stdout(io.StringIO()) as module, jax.sharding.use_abstract_mesh(mesh):
    jax.jit(call).trace(jax.ShapeDtypeStruct((size,), jnp.int8)).lower(lowering_platforms=("cuda",))
  return re.findall(r"tt\.addptr .*, (tensor<1024xi\d+>)", module.getvalue())[0]


print("jax", jax.__version__)
sizes = {"2^30": 2**30, "3 * 2^30": 3 * 2**30, "2^33": 2**33}
seen = {name: offsets(size) for name, size in sizes.items()}
for name, of in seen.items():
  print(f"{name} elements of int8: offsets of {of}")
if "i32" not in seen["3 * 2^30"]:
  sys.exit("No longer so: the offsets in an array of 3 * 2^30 elements have 64 bits.")
EOF
