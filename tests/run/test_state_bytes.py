"""Bytes of a state before there is one: by leaf and kind, for every kind of optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_ext
from optax_ext import state_bytes

PARAMS = {"mu": {"kernel": jnp.ones((64, 128)), "bias": jnp.ones(128, jnp.bfloat16)}, "count": jnp.ones(())}
LABELS = {"mu": {"kernel": "a", "bias": "b"}, "count": "b"}
TX = {
  "adam": optax.adam(1e-3),
  "injected": optax.inject_hyperparams(optax.adamw)(1e-3),
  "partition": optax.partition({"a": optax.adam(1e-3), "b": optax.sgd(0.1, momentum=0.9)}, LABELS),
  "MultiSteps": optax.MultiSteps(optax_ext.exadam(1e-3), 2),
  "adafactor": optax.adafactor(1e-3),
  "noise": optax.add_noise(0.1, 0.1, 0),
  "8 bits": optax_ext.quantize_state(optax.adam(1e-3)),
  "sgd": optax.sgd(0.1),
}


@pytest.mark.parametrize("tx", TX.values(), ids=TX)
def test_all_bytes_are_counted_once(tx):
  """As many as a state has that is there, by each way to add them up; descriptions of the parameters do."""
  stored = sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(PARAMS)))
  found = state_bytes(tx, PARAMS)
  assert found.total == sum(found.by_path().values()) == sum(found.by_kind().values()) == stored
  assert found == state_bytes(tx, jax.eval_shape(lambda: PARAMS))
  assert found.per_param == stored / (64 * 128 + 128 + 1)


def test_each_array_is_named_by_its_parameter_and_field():
  """A parameter may have the name of a field, or there may be one alone."""
  found = state_bytes(TX["8 bits"], PARAMS)
  assert found.by_path() == {
    "count": 16,
    "mu/bias": 2 * 2 * 128 + 8,
    "mu/kernel": 2 * 64 * 128 + 2 * 4 * 64,
    "(all)": 4,
  }
  assert found.by_kind() == {"count": 4, "mu": 4 + 256 + 8192, "nu": 4 + 256 + 8192, "scale": 2 * (4 + 4 + 4 * 64)}
  assert {(array.kind, array.dtype) for array in found.arrays if array.path == "mu/kernel"} == {
    ("mu", "int8"),
    ("nu", "uint8"),
    ("scale", "float32"),
  }
  assert state_bytes(optax.adam(1e-3), np.ones(3)).by_path() == {"": 24, "(all)": 4}
  assert set(state_bytes(TX["partition"], PARAMS).by_kind()) == {"count", "mu", "nu", "trace"}


def test_a_table():
  lines = str(state_bytes(TX["8 bits"], PARAMS)).splitlines()
  assert lines[0].split() == ["path", "count", "mu", "nu", "scale", "bytes"]
  assert lines[3].split() == ["mu/kernel", "0", "8,192", "8,192", "512", "16,896"]
  assert lines[-1] == "2.10 bytes of state for each of 8,321 parameters"


@pytest.mark.filterwarnings("ignore:scale_by_structure sees 1 layer")
def test_bytes_of_a_bfloat16_model():
  """A second moment is float32 unless it is asked for in bfloat16; ND-Adam has one for each vector of 64."""
  params, half = {"kernel": jax.ShapeDtypeStruct((64, 128), jnp.bfloat16)}, jnp.bfloat16
  bytes_of = lambda tx: round(sum(state_bytes(tx, params).by_kind()[kind] for kind in ("mu", "nu")) / (64 * 128), 4)
  assert bytes_of(optax.adamw(1e-3)) == 4
  for make in (optax_ext.exadam, optax_ext.adamnx, optax_ext.caadam):
    assert bytes_of(make(1e-3)) == 6
    assert bytes_of(make(1e-3, nu_dtype=half, rounding=optax_ext.stochastic(0))) == 4
  assert bytes_of(optax_ext.nd_adam(1e-3, axes=(0,))) == 2 + 4 / 64
