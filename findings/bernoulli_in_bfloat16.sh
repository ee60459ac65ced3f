#!/usr/bin/env bash
# jax.random.bernoulli with a bfloat16 probability of 0.001 is true in 0.77 % of the draws, and with 0.999 always.
#
# Expected: the dtype of p rounds p (0.001 becomes 0.000999), and no more.
# What happens: the draw is uniform(key, shape, p.dtype) < p, and a uniform bfloat16 has 128 values, 0 to 127/128. So the probability is p
#   rounded up to the next multiple of 1/128: 0.0078 for all p up to that, 1 for 0.999. float16 has 1024 values. mode="high" is nearly right
#   for small p. A uniform bfloat16 has mean 0.496, so that stochastic rounding with floor(x + u) is biased by -1/256 of a step,
#   and a normal bfloat16 is never farther than 2.89 from 0.
# Since: seen with jax 0.10.2 and 0.12.0.1, the same numbers.
# Where from: _bernoulli in jax/_src/random/core.py; jax-ml/jax issue 28017 and pull request 28130 are about float32, where it shows below
#   1e-7, and added mode="high".
# Date seen: 2026-11-28.
#
# Output seen:
#   jax 0.12.0.1
#   float32   share of true by p {0.001: 0.001, 0.005: 0.0049, 0.01: 0.0099, 0.999: 0.9991}; uniform: 942524 values, mean 0.5001; largest normal 4.65
#   float16   share of true by p {0.001: 0.002, 0.005: 0.0058, 0.01: 0.0108, 0.999: 0.999}; uniform: 1024 values, mean 0.4996; largest normal 3.49
#   bfloat16  share of true by p {0.001: 0.0077, 0.005: 0.0077, 0.01: 0.0154, 0.999: 1.0}; uniform: 128 values, mean 0.4961; largest normal 2.89
#   bfloat16, p 0.001, mode='high': 0.0010
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
import sys

import jax
import jax.numpy as jnp

print("jax", jax.__version__)
key, shape = jax.random.key(0), (1_000_000,)
for dtype in (jnp.float32, jnp.float16, jnp.bfloat16):
  shares = {p: round(float(jax.random.bernoulli(key, jnp.asarray(p, dtype), shape).mean()), 4) for p in (0.001, 0.005, 0.01, 0.999)}
  uniform = jax.random.uniform(key, shape, dtype).astype(jnp.float32)
  normal = jax.random.normal(key, shape, dtype).astype(jnp.float32)
  print(f"{jnp.dtype(dtype).name:9} share of true by p {shares}; uniform: {jnp.unique(uniform).size} values, mean {uniform.mean():.4f};",
        f"largest normal {jnp.abs(normal).max():.2f}")
high = float(jax.random.bernoulli(key, jnp.bfloat16(0.001), shape, mode="high").mean())
print(f"bfloat16, p 0.001, mode='high': {high:.4f}")
if float(jax.random.bernoulli(key, jnp.bfloat16(0.001), shape).mean()) < 0.002:
  sys.exit("No longer so: bernoulli with p = 0.001 in bfloat16 is true about once in a thousand draws.")
EOF
