#!/usr/bin/env bash
# Since jax 0.11.2 some equations hold their program in a Python object, and walking the sub-jaxprs in the parameters does not find it.
#
# Expected: every equation of a traced function is found by walking the jaxpr and the jaxprs in its equations' parameters
#   (jax.extend.core.jaxprs_in_params), as counters of operations, readers of structure and interpreters do.
# What happens: jnp.nonzero, jnp.searchsorted (so jnp.interp and jnp.digitize), jnp.frexp, jnp.ldexp and lax.custom_root are each one equation
#   "call_hi_primitive" with one parameter, _prim, that is no jaxpr. The printed jaxpr shows another name ("Nonzero"), and for custom_root
#   even its program. A walker sees no loop and no cumulative sum, and says nothing; the compiled program has them. Tracing the object's
#   method expand gives the program of nonzero and searchsorted.
# Since: jax 0.11.2 for custom_root and 0.12.0 for nonzero and searchsorted; before, they show a custom_jvp_call with a jaxpr in its
#   parameters, and plain equations. Not in the change log up to 0.11.0.
# Where from: the classes on HiPrim in jax/_src/numpy/hijax.py, jax/_src/numpy/ufuncs.py and jax/_src/lax/control_flow/solves.py.
# Date seen: 2026-11-28.
#
# Output seen:
#   jax 0.12.0.1
#   custom_root   found by walking: ['call_hi_primitive']; the compiled program has 'while': True
#                 parameters ['_prim'], sub-jaxprs 0, object CustomRoot
#   nonzero       found by walking: ['call_hi_primitive']; the compiled program has 'scatter': True
#                 parameters ['_prim'], sub-jaxprs 0, object Nonzero
#   searchsorted  found by walking: ['jit', 'convert_element_type', 'call_hi_primitive']; the compiled program has 'while': True
#                 parameters ['_prim'], sub-jaxprs 0, object SearchSorted
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


def walk(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from walk(inner)


def newton(f, start):
  return jax.lax.fori_loop(0, 5, lambda _, x: x - f(x) / (2 * x), start)


def root(a):
  return jax.lax.custom_root(lambda x: x * x - a, 1.0, newton, lambda g, y: y / g(1.0))


x = jnp.arange(4.0)
FUNCTIONS = {
  "custom_root": (root, 2.0, "while"),
  "nonzero": (lambda x: jnp.nonzero(x, size=2)[0], x, "scatter"),
  "searchsorted": (lambda x: jnp.searchsorted(x, 2.5), x, "while"),
}
print("jax", jax.__version__)
hidden = {}
for name, (function, argument, operation) in FUNCTIONS.items():
  found = list(walk(jax.make_jaxpr(function)(argument).jaxpr))
  compiled = f"stablehlo.{operation}" in jax.jit(function).lower(argument).as_text()
  print(f"{name:13} found by walking: {[e.primitive.name for e in found]};", f"the compiled program has '{operation}': {compiled}")
  objects = [e for e in found if e.primitive.name == "call_hi_primitive"]
  hidden[name] = bool(objects) and compiled
  for e in objects:
    print(f"{'':13} parameters {list(e.params)}, sub-jaxprs {len(list(jax.extend.core.jaxprs_in_params(e.params)))},",
          f"object {type(e.params['_prim']).__name__}")
if not all(hidden.values()):
  sys.exit("No longer so: the equations inside custom_root, nonzero and searchsorted are found by walking the sub-jaxprs.")
EOF
