"""What XLA makes of one step: traces, donation and memory traffic of the compiled CPU program. Exact, no timings."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_ext
from optax_ext._common.retrace import once_per_shape

pytestmark = pytest.mark.filterwarnings("ignore:scale_by_structure sees")  # leaves of one shape, and no network

PARAMS = {f"Dense_{i}": {"kernel": jnp.zeros((128, 128)), "bias": jnp.zeros(128)} for i in range(5)}
SIZE = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
ELEMENTWISE = {
  "exadam": optax_ext.exadam(1e-3),
  "exadam_decay": optax_ext.exadam(optax.cosine_decay_schedule(1e-3, 100), weight_decay=0.1, log_step=False),
  "adamnx": optax_ext.adamnx(1e-3),
  "caadam_additive": optax_ext.caadam(1e-3, rule=optax_ext.Additive()),
  "caadam_multiplicative": optax_ext.caadam(1e-3, weight_decay=0.1),
  "caadam_depth": optax_ext.caadam(1e-3, rule=optax_ext.ByDepth()),
}


donating = functools.partial(jax.jit, donate_argnums=(0, 1))


def step_of(tx):
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return step


def compiled(tx):
  return donating(step_of(tx)).lower(PARAMS, jax.eval_shape(tx.init, PARAMS), PARAMS).compile()


def bytes_per_parameter(tx):
  return compiled(tx).cost_analysis()["bytes accessed"] / SIZE


@pytest.mark.slow
@pytest.mark.parametrize("tx", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_one_trace(tx):
  step, params = donating(chex.assert_max_traces(step_of(tx), 1)), jax.tree.map(jnp.copy, PARAMS)
  state = tx.init(params)
  for _ in range(3):
    params, state = step(params, state, PARAMS)
  assert step._cache_size() == 1


@pytest.mark.parametrize("tx", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_parameters_and_state_are_donated(tx):
  memory = compiled(tx).memory_analysis()
  donated = jax.tree.map(lambda leaf: leaf.size * leaf.dtype.itemsize, (PARAMS, jax.eval_shape(tx.init, PARAMS)))
  assert memory.alias_size_in_bytes == sum(jax.tree.leaves(donated))
  assert memory.temp_size_in_bytes <= 0.01 * 4 * SIZE


@pytest.mark.slow
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_memory_traffic(name):
  """No more than optax.adam's, up to scalars.

  EXAdam's numerator needs the gradient itself beside both moments, as Nadam's does. The CPU compiler fuses each output
  on its own, so that one more word is read; on TPU and GPU, where a step is one fusion, none is.
  """
  extra = 4 if name.startswith("exadam") else 0
  assert bytes_per_parameter(ELEMENTWISE[name]) <= bytes_per_parameter(optax.adam(1e-3)) + extra + 0.01
  if extra:
    assert bytes_per_parameter(ELEMENTWISE[name]) <= bytes_per_parameter(optax.nadam(1e-3)) + 0.01


def test_scalars_are_computed_once_a_step():
  """exp, log and expm1 of the step do not multiply with the leaves."""

  def count(tx, leaves):
    params = {str(i): jnp.zeros(3) for i in range(leaves)}
    text = str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
    return sum(text.count(f" {name} ") for name in ("exp", "expm1", "log"))

  for tx in ELEMENTWISE.values():
    assert count(tx, 2) == count(tx, 40)


def equations(jaxpr):
  """How many equations a jaxpr has, with those of all it calls, each call counted."""
  inner = [
    p for eqn in jaxpr.eqns for value in eqn.params.values() for p in (value if type(value) is tuple else [value])
  ]
  return len(jaxpr.eqns) + sum(
    equations(getattr(p, "jaxpr", p)) for p in inner if hasattr(p, "jaxpr") or hasattr(p, "eqns")
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("tx", "limit", "traced"),
  [
    (optax_ext.caadam(1e-3), 1.75, 0.5),
    (optax_ext.adamnx(1e-3), 1.75, 0.5),
    (optax_ext.exadam(1e-3), 2.6, 0.5),
    (optax_ext.nd_adam(1e-3), 3.1, 2),
  ],
  ids=["caadam", "adamnx", "exadam", "nd_adam"],
)
def test_equations_per_leaf(tx, limit, traced):
  """Relative to optax.adam: time to compile grows with all equations, time to trace with those outside of shared calls.

  benchmarks/speed/compile_time.py measures both.
  """

  def per_leaf(tx, count):
    few, many = (
      {f"Dense_{i}": {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)} for i in range(layers)} for layers in (2, 12)
    )

    def update_and_apply(params, state, grads):
      return optax.apply_updates(params, tx.update(grads, state, params)[0])

    of = lambda params: count(jax.make_jaxpr(update_and_apply)(params, tx.init(params), params).jaxpr)
    return (of(many) - of(few)) / 20

  adam = optax.adam(1e-3)
  assert per_leaf(tx, equations) <= limit * per_leaf(adam, equations)
  outside = lambda jaxpr: len(jaxpr.eqns)
  assert per_leaf(tx, outside) <= traced * per_leaf(adam, outside)


def test_arithmetic_is_shared_under_compilation_alone():
  """A call outside of it, jax.vmap's too, would compile every leaf at every step."""
  f, shared = (lambda t: t), []
  note = lambda t: shared.append(once_per_shape(f, t) is not f) or t
  for call in (note, jax.vmap(note), jax.jit(note), jax.jit(jax.vmap(jax.vmap(note)))):
    call(jnp.zeros((2, 2), int))
  assert shared == [False, False, True, True]


def test_state_size():
  """Two words per parameter; ND-Adam's second moment is one number per vector."""
  state_bytes = lambda tx: sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(tx.init, PARAMS))
  )
  for tx in ELEMENTWISE.values():
    assert state_bytes(tx) <= 8 * SIZE + 16
  np.testing.assert_allclose(state_bytes(optax_ext.nd_adam(1e-3)) / SIZE, 4, atol=0.1)
