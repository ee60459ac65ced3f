#!/usr/bin/env bash
# jnp.maximum in a Pallas kernel for GPUs loses NaN: it lowers to the maximum of numbers, where jax's own and the interpreted kernel keep NaN.
#
# Expected: a kernel computes jnp.maximum(x, 1) as jax does everywhere else: NaN for NaN. Interpreting a kernel shows what it computes.
# What happens: Pallas by Triton lowers max and min to arith.maxnumf and arith.minnumf (PTX max.f32), which return the other operand: a NaN
#   becomes 1. Clipping in a kernel so makes an ordinary number of a broken one. A test with interpret=True sees NaN.
# Since: seen with jax 0.10.2 and 0.12.0.1.
# Where from: _max_lowering_rule and _min_lowering_rule in jax/_src/pallas/triton/lowering.py; `clamp` is made of both.
#   jnp.where((x > y) | (x != x), x, y) keeps NaN.
# Date seen: 2026-11-28. Read off the lowered module; no GPU is needed.
#
# Output seen:
#   jax 0.12.0.1
#   for a GPU: arith.maxnumf
#   interpreted, of NaN: nan
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


def at_least_one(x, y):
  y[...] = jnp.maximum(x[...], 1)


def call(x, **options):
  return pl.pallas_call(at_least_one, out_shape=jax.ShapeDtypeStruct((128,), jnp.float32), **options)(x)


print("jax", jax.__version__)
nan = jnp.full(128, jnp.nan)
with contextlib.redirect_stdout(io.StringIO()) as module, jax.sharding.use_abstract_mesh(mesh):
  traced = jax.jit(lambda x: call(x, compiler_params=triton.CompilerParams(), debug=True)).trace(nan)
  traced.lower(lowering_platforms=("cuda",))
operations = set(re.findall(r"arith\.max\w+", module.getvalue()))
print("for a GPU:", *operations)
interpreted = float(call(nan, interpret=True)[0])
print("interpreted, of NaN:", interpreted)
if not (operations == {"arith.maxnumf"} and interpreted != interpreted):
  sys.exit("No longer so: the kernel's maximum keeps NaN on a GPU too, or the interpreted one loses it.")
EOF
