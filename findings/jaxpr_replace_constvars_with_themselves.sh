#!/usr/bin/env bash
# jaxpr.replace(constvars=jaxpr.constvars) is another program since jax 0.11.1: the constants become leading arguments.
#
# Expected: replacing a field with the value that it has changes nothing. A pass that renames variables does
#   jaxpr.replace(constvars=..., invars=..., eqns=...) and keeps the program's arguments.
# What happens: naming constvars drops the constants' values, and a Jaxpr without values for its constvars counts them as its first arguments:
#   one constant and one argument become none and two. What pairs jaxpr.invars with the arguments takes the constant for the first one.
#   jaxpr_as_fun fails when it is called; eval_jaxpr does not notice, as it puts constants and arguments in one list.
#   Giving consts=jaxpr.consts as well keeps them; replace(eqns=...) and replace(invars=...) do without.
# Since: jax 0.11.1 (0.10.2 and 0.11.0 keep the constant); seen with 0.11.1, 0.11.2, 0.12.0 and 0.12.0.1.
# Where from: Jaxpr.replace in jax/_src/core.py: consts_default = () if "constvars" in kwargs. A Jaxpr has carried its constants since
#   jax 0.11.0, where ClosedJaxpr became another name of Jaxpr.
# Date seen: 2026-11-28.
#
# Output seen:
#   jax 0.12.0.1
#   the jaxpr
#     constvars 1, invars 1, consts 1: { lambda a:f32[3]; b:f32[3]. let c:f32[3] = mul b a in (c,) }
#     the first of invars is the argument
#     jaxpr_as_fun(...)(x): [0.0, 10.0, 20.0]
#     eval_jaxpr(..., [weight], x): [0.0, 10.0, 20.0]
#   replace(eqns=its own)
#     constvars 1, invars 1, consts 1: { lambda a:f32[3]; b:f32[3]. let c:f32[3] = mul b a in (c,) }
#     the first of invars is the argument
#     jaxpr_as_fun(...)(x): [0.0, 10.0, 20.0]
#     eval_jaxpr(..., [weight], x): [0.0, 10.0, 20.0]
#   replace(constvars=its own)
#     constvars 0, invars 2, consts 0: { lambda ; a:f32[3] b:f32[3]. let c:f32[3] = mul b a in (c,) }
#     the first of invars is the constant
#     jaxpr_as_fun(...)(x): ValueError: foreach() argument 2 is shorter than argument 1
#     eval_jaxpr(..., [weight], x): [0.0, 10.0, 20.0]
#   replace(constvars=its own, consts=its own)
#     constvars 1, invars 1, consts 1: { lambda a:f32[3]; b:f32[3]. let c:f32[3] = mul b a in (c,) }
#     the first of invars is the argument
#     jaxpr_as_fun(...)(x): [0.0, 10.0, 20.0]
#     eval_jaxpr(..., [weight], x): [0.0, 10.0, 20.0]
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
import jax.extend.core
import jax.numpy as jnp

print("jax", jax.__version__)
weight = jnp.arange(3.0)
x = jnp.array([10.0, 10.0, 10.0])
jaxpr = jax.make_jaxpr(lambda x: x * weight)(x).jaxpr
same = jaxpr.replace(constvars=jaxpr.constvars)
kept = jaxpr.replace(constvars=jaxpr.constvars, consts=jaxpr.consts)


def show(name, j):
  print(name)
  print(f"  constvars {len(j.constvars)}, invars {len(j.invars)}, consts {len(j.consts)}:", " ".join(str(j).split()))
  print("  the first of invars is", "the constant" if j.invars[0] in jaxpr.constvars else "the argument")
  try:
    print("  jaxpr_as_fun(...)(x):", jax.extend.core.jaxpr_as_fun(j)(x)[0].tolist())
  except Exception as error:
    print(f"  jaxpr_as_fun(...)(x): {type(error).__name__}: {str(error).splitlines()[0]}")
  print("  eval_jaxpr(..., [weight], x):", jax.core.eval_jaxpr(j, [weight], x)[0].tolist())


show("the jaxpr", jaxpr)
show("replace(eqns=its own)", jaxpr.replace(eqns=jaxpr.eqns))
show("replace(constvars=its own)", same)
show("replace(constvars=its own, consts=its own)", kept)
if len(same.invars) == len(jaxpr.invars) and len(same.constvars) == len(jaxpr.constvars):
  sys.exit("No longer so: replacing constvars with themselves keeps the program's constants and arguments.")
EOF
