#!/usr/bin/env bash
# On the CPU, jaxlib since 0.10.1 divides an array by one number through its reciprocal: x / max(x) need not reach 1, and is 0 for large x.
#
# Expected: float32 division is correctly rounded; x / s is exactly 1 where x equals s, for every finite s but 0.
# What happens: if s is broadcast against x, XLA multiplies x with 1/s, jitted or not. jnp.array([41., 0.5]) / 41 has 0.99999994; so have 47, 55,
#   61, 82, 83, 94, 97 below 100. For s above 2^126 (8.5e37) the reciprocal lies below the least normal number and counts as 0, and so does the
#   quotient: a vector scaled by its largest element, the usual guard against overflow, vanishes where the guard is needed.
#   Arrays of one shape, and one number by another, are divided as written.
# What helps: a power of two as the scale, at most 2^125; or the divisor broadcast to x's shape behind lax.optimization_barrier.
# Since: jaxlib 0.10.1; seen with 0.10.0 (as written) and 0.10.1, 0.10.2, 0.12.0.1 (through the reciprocal).
# Where from: found by running; jax's change log does not say it.
# Date seen: 2026-11-28.
#
# Output seen:
#   jax 0.10.0
#     [41, 0.5] / its maximum        1 0.012195121
#     the same with jit              1 0.012195121
#     by an array of its shape       1 0.012195121
#     [3.3e38, 1e38] / its maximum   1 0.30303028
#     its maximum by itself          1
#     by an array of the same shape  1 0.30303028
#   jax 0.10.1
#     [41, 0.5] / its maximum        0.99999994 0.012195121
#     the same with jit              0.99999994 0.012195121
#     by an array of its shape       1 0.012195121
#     [3.3e38, 1e38] / its maximum   0 0
#     its maximum by itself          1
#     by an array of the same shape  1 0.30303028
#   jax 0.12.0.1
#     [41, 0.5] / its maximum        0.99999994 0.012195121
#     the same with jit              0.99999994 0.012195121
#     by an array of its shape       1 0.012195121
#     [3.3e38, 1e38] / its maximum   0 0
#     its maximum by itself          1
#     by an array of the same shape  1 0.30303028
set -euo pipefail
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
  { echo "This needs Python 3.12 or later: set PYTHON to one." >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
cd "$folder"
cat >divide.py <<'EOF'
import sys

import jax
import jax.numpy as jnp


def broadcast(x):
  return x / jax.lax.optimization_barrier(jnp.broadcast_to(jnp.max(x), x.shape))


small, large = jnp.array([41.0, 0.5], jnp.float32), jnp.array([3.3e38, 1e38], jnp.float32)
CASES = {
  "[41, 0.5] / its maximum": small / jnp.max(small),
  "the same with jit": jax.jit(lambda x: x / jnp.max(x))(small),
  "by an array of its shape": broadcast(small),
  "[3.3e38, 1e38] / its maximum": large / jnp.max(large),
  "its maximum by itself": jnp.max(large) / jnp.max(large),
  "by an array of the same shape": broadcast(large),
}
print("jax", jax.__version__)
for name, quotient in CASES.items():
  print(f"  {name:30}", " ".join(f"{float(q):.8g}" for q in quotient.ravel()))
wrong = [float(jnp.max(quotient)) != 1 for quotient in CASES.values()]
if wrong != [sys.argv[1] == "reciprocal" and which in (0, 1, 3) for which in range(6)]:
  sys.exit(f"No longer so: with jax {jax.__version__} the cases whose maximum is not 1 are {wrong}.")
EOF
for version_and_way in "0.10.0 written" "0.10.1 reciprocal" "0.12.0.1 reciprocal"; do
  read -r version way <<<"$version_and_way"
  "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "jax==$version" "jaxlib==$version" numpy==2.5.5 ml_dtypes==0.6.0
  JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore divide.py "$way"
done
