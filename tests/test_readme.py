"""README has two commands; the tables of memory say what states take. (test_docs.py runs the code of both.)"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
import support

import optax_ext

MEMORY = (support.ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
blocks = functools.partial(support.blocks, support.ROOT / "README.md")


def test_bytes_of_state_are_those_of_the_table():
  """Row by row, to 0.1 %, of two large weights."""
  params, half = {name: jax.ShapeDtypeStruct((4096, 4096), jnp.float32) for name in ("in", "out")}, jnp.bfloat16
  axes, every = (0,), (optax_ext.exadam, optax_ext.adamnx, optax_ext.caadam)
  pieces = optax.chain(
    optax_ext.project_out_params(axes),
    optax_ext.scale_by_moments(
      optax_ext.constant_gain(0.9), optax_ext.constant_gain(0.999), square=optax_ext.per_vector(axes)
    ),
    optax_ext.renormalize_params(axes),
  )
  narrow = [make(1e-3, mu_dtype=half, nu_dtype=half, rounding=optax_ext.stochastic(0)) for make in every]
  rows = [
    [optax.adam(1e-3), *(make(1e-3) for make in every)],
    narrow,
    [optax_ext.quantize_state(make(1e-3)) for make in (optax.adam, *every)],
    *[[optax_ext.quantize_state(make(1e-3), kernel="pallas") for make in every]] * 2,
    [optax_ext.nd_adam(1e-3, axes=axes)],
    [pieces],
    [optax_ext.nd_adam(1e-3, axes=axes, kernel="pallas")],
    [optax_ext.nd_adam(1e-3, axes=axes, mu_dtype=half, kernel="pallas")],
  ]
  table = MEMORY.split("| bytes of state |")[1].split("\n\n")[0]
  stated = [float(line.rsplit("|", 2)[1]) for line in table.splitlines()[2:]]
  for number, txs in zip(stated, rows, strict=True):
    for tx in txs:
      assert optax_ext.state_bytes(tx, params).per_param == pytest.approx(number, rel=1e-3)


def test_bytes_kept_are_those_of_the_table():
  """Of bfloat16 weights and their state, row by row, to 0.1 %."""
  params, half = {"w": jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)}, jnp.bfloat16
  rows = [
    optax.adam(1e-3),
    optax_ext.adamnx(1e-3, mu_dtype=half, nu_dtype=half, rounding=optax_ext.stochastic(0)),
    *[optax_ext.quantize_state(optax.adam(1e-3))] * 2,
  ]
  table = MEMORY.split("| bytes kept |")[1].split("\n\n")[0]
  for line, tx in zip(table.splitlines()[2:], rows, strict=True):
    kept = 2 + optax_ext.state_bytes(optax_ext.split_weights(tx), params).per_param
    assert kept == pytest.approx(float(line.rsplit("|", 2)[1]), rel=1e-3)


def test_there_are_two_commands():
  commands = blocks("sh")
  assert len(commands) == 2
  assert all(len(command.splitlines()) == 1 for command in commands)
