#!/usr/bin/env bash
# Under jit on the CPU, jaxlib up to 0.11.2 simplifies sums and products with constants; jaxlib 0.12.0 computes what is written.
#
# Expected: jit changes the last bits of a result, and an upgrade of jax no more than that.
# What happens: up to 0.11.2 jit makes (x + 1e8) - 1e8 into x, and the error term of a two-sum with a constant into 0, so that compensated
#   sums lost their compensation; x * 60000 * 0.001 in float16 did not overflow, as both factors were joined first. Without jit, or with
#   lax.optimization_barrier, the result was the written one. With 0.12 jit gives the written one too: compensation works,
#   and what never overflowed under jit (a loss scale and its inverse, say) gives inf.
# Since: jaxlib 0.12.0; seen with 0.10.2, 0.11.0 and 0.11.2 (simplified) and 0.12.0 and 0.12.0.1 (as written).
#   jnp.exp(80 x) * jnp.exp(-80 x) went the same way, between 0.11.0 and 0.11.2.
# Where from: found by running; jax's change log up to 0.11.0 does not say it.
# Date seen: 2026-11-28.
#
# Output seen:
#   jax 0.11.2
#     (x + 1e8) - 1e8                  without jit 0            with jit 1.2345
#     (x / 1e30) / 1e30 * 1e30 * 1e30  without jit 0            with jit 1.2345
#     error of x + 1e5 by two-sum      without jit 0.000125051  with jit 0
#     the same with a barrier          without jit 0.000125051  with jit 0.000125051
#     x * 60000 * 0.001 in float16     without jit inf          with jit 74.125
#   jax 0.12.0.1
#     (x + 1e8) - 1e8                  without jit 0            with jit 0
#     (x / 1e30) / 1e30 * 1e30 * 1e30  without jit 0            with jit 0
#     error of x + 1e5 by two-sum      without jit 0.000125051  with jit 0.000125051
#     the same with a barrier          without jit 0.000125051  with jit 0.000125051
#     x * 60000 * 0.001 in float16     without jit inf          with jit inf
set -euo pipefail
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
  { echo "This needs Python 3.12 or later: set PYTHON to one." >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
cd "$folder"
cat >sums.py <<'EOF'
import sys

import jax
import jax.numpy as jnp

print("jax", jax.__version__)
barrier = jax.lax.optimization_barrier


def two_sum_error(x, hold=lambda s: s):
  s = hold(x + 1e5)
  return x - (s - 1e5)


x = jnp.float32(1.2345)
CASES = {
  "(x + 1e8) - 1e8": (lambda x: (x + 1e8) - 1e8, x),
  "(x / 1e30) / 1e30 * 1e30 * 1e30": (lambda x: (x / 1e30) / 1e30 * 1e30 * 1e30, x),
  "error of x + 1e5 by two-sum": (two_sum_error, x),
  "the same with a barrier": (lambda x: two_sum_error(x, barrier), x),
  "x * 60000 * 0.001 in float16": (lambda x: x * jnp.float16(60000) * jnp.float16(0.001), jnp.float16(1.2345)),
}
differs = {}
for name, (function, argument) in CASES.items():
  plain, compiled = float(function(argument)), float(jax.jit(function)(argument))
  differs[name] = plain != compiled
  print(f"  {name:32} without jit {plain:<12.6g} with jit {compiled:.6g}")
simplified = sum(differs.values())
if differs["the same with a barrier"] or simplified != int(sys.argv[1]):
  sys.exit(f"No longer so: with jax {jax.__version__} jit changes {simplified} of these results, not {sys.argv[1]}.")
EOF
for version_and_count in "0.11.2 4" "0.12.0.1 0"; do
  read -r version count <<<"$version_and_count"
  "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "jax==$version" "jaxlib==$version" numpy==2.5.5 ml_dtypes==0.6.0
  JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore sums.py "$count"
done
