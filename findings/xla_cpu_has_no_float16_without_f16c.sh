#!/usr/bin/env bash
# XLA's CPU compiler cannot compile float16 for a processor with SSE4.2 alone; bfloat16 and float32 it can.
#
# Expected: float16 is slow where the processor has no conversion instructions (F16C, which comes with AVX), but works, as in NumPy.
# What happens: the compiled code calls __extendhfsf2 and __truncsfhf2, functions of the compiler's runtime that jaxlib does not provide, and
#   compiling raises JaxRuntimeError. So do all programs that convert from or to float16 or compute in it, jitted or not.
# Since: seen with jax 0.10.2 and 0.12.0.1. A processor with AVX and F16C is told to be one without by XLA's own flag xla_cpu_max_isa.
# Where from: the names in the message, "Symbols not found: [ __extendhfsf2, __truncsfhf2 ]", on standard error.
# Date seen: 2026-11-28.
#
# Output seen:
#   jax 0.12.0.1 AVX {'float16': '[2.0, 2.0]', 'bfloat16': '[2.0, 2.0]', 'float32': '[2.0, 2.0]'}
#   jax 0.12.0.1 SSE4_2 {'float16': 'JaxRuntimeError: Failed to materialize symbols', 'bfloat16': '[2.0, 2.0]', 'float32': '[2.0, 2.0]'}
#   Symbols not found: [ __extendhfsf2, __truncsfhf2 ]
set -euo pipefail
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
  { echo "This needs Python 3.12 or later: set PYTHON to one." >&2; exit 2; }
[ "$(uname -m)" = x86_64 ] || { echo "This needs an x86-64 processor." >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.12.0.1 jaxlib==0.12.0.1 numpy==2.5.5 ml_dtypes==0.6.0
cd "$folder"
for isa in AVX SSE4_2; do
  XLA_FLAGS=--xla_cpu_max_isa=$isa JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - $isa 2>errors <<'EOF' || { cat errors >&2; exit 1; }
import sys

import jax
import numpy as np

isa = sys.argv[1]


def doubled(dtype):
  try:
    return str(jax.jit(lambda x: x * 2)(np.ones(2, dtype)).tolist())
  except jax.errors.JaxRuntimeError as error:
    return f"JaxRuntimeError: {str(error).splitlines()[0].split(':')[1].strip()}"


seen = {str(jax.numpy.dtype(dtype)): doubled(dtype) for dtype in (np.float16, jax.numpy.bfloat16, np.float32)}
print("jax", jax.__version__, isa, seen)
if (seen["float16"] == seen["float32"]) != (isa == "AVX") or seen["bfloat16"] != seen["float32"]:
  sys.exit("No longer so: float16 compiles for SSE4.2, or what else compiled does not.")
EOF
done
grep -o 'Symbols not found.*' errors | head -1
