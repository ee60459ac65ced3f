"""What compiled programs for TPUs and GPUs move, keep and exchange: the limits of benchmarks/speed, asserted.

    python -m pytest -m aot

in an environment with the extra `aot`. No TPU or GPU is needed.
"""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

pytestmark = pytest.mark.aot

SPEED = pathlib.Path(__file__).parents[1] / "benchmarks" / "speed"


@pytest.fixture(scope="module")
def speed():
  """Imports a module of benchmarks/speed."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(SPEED)
    importlib.import_module("targets").without_accelerators()
    yield importlib.import_module


@pytest.mark.parametrize("target", ["v5e", "v6e", "tpu7x", "H100"])
def test_every_step_keeps_its_limits(speed, target):
  """Traffic, temporaries, donation (but for scalars), traces. One more pass over an array is 4 bytes, over codes 1."""
  broken = []
  for name, case in speed("cases").CASES.items():
    if not (limit := case.limit(target)):
      continue
    cost = speed("ahead_of_time").cost_of(case, target)
    within = cost.least - 0.01 <= cost.moved <= limit and cost.temporaries <= case.temporaries
    if not (within and cost.wasted <= 16 and cost.traces == 1):
      broken.append(f"{name}, at most {limit} bytes: {cost}")
  assert not broken, "\n".join(broken)


def test_chips_exchange_no_more_than_they_must(speed):
  broken = []
  for name, sharded in speed("sharded").SHARDED.items():
    collectives, held = speed("sharded").exchanged(sharded)
    if collectives != sharded.expected or not held < 0.51:
      broken.append(f"{name}, {sharded.expected} expected: {collectives}, {held:.3f} of the state on a chip")
  assert not broken, "\n".join(broken)


@pytest.mark.parametrize("target", ["v5e", "H100"])
def test_counter_of_traffic(speed, target):
  """Reads and writes counted by hand: one fusion, two with a barrier between them, a sum of columns."""

  def moved(f, *shapes):
    device = speed("targets").devices_of(target)[0]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=SingleDeviceSharding(device)) for shape in shapes]
    compiled = speed("targets").compile_for(target, jax.jit(f).lower(*args))
    counted = speed("traffic").bytes_moved(compiled.as_text())
    if target == "v5e":
      assert counted == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=1e-3)
    return counted / (4 * 2048**2)

  square = (2048, 2048)
  assert moved(lambda x, y: x + y * y, square, square) == 3
  assert moved(lambda x: jax.lax.optimization_barrier(x + 1) * 2, square) == 4
  assert moved(lambda x: x / jnp.sum(x, 0, keepdims=True), square) == pytest.approx(3, abs=1e-2)


def test_collectives_are_counted(speed):
  """An asynchronous one counts once, by its start; one that stands in several fusions once, by its channel."""
  text = "%a = f32[8]{0} all-reduce-start(%x)\n%b = f32[8]{0} all-reduce-done(%a)\n%c = f32[16]{0} all-gather(%b)"
  assert speed("traffic").collectives(text) == {"all-gather": 1, "all-reduce": 1}
  text = "%a = f32[] all-gather(%x), channel_id=7\n%b = f32[] all-gather(%y), channel_id=7\n%c = f32[] all-gather(%z)"
  assert speed("traffic").collectives(text) == {"all-gather": 2}
