"""What compiled programs for TPUs and GPUs move, keep and exchange: the limits of benchmarks/speed, asserted.

    python -m pytest -m aot

in an environment with the extra `aot`. No TPU or GPU is needed.
"""

import dataclasses
import functools
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stored_weights
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import optax_ext
from optax_ext._common.primitives import IN_KERNELS
from optax_ext._memory.elementwise import Program, evaluated
from optax_ext._memory.gpu_kernel import evaluated_in_triton
from optax_ext._memory.step import kernel_of

pytestmark = [
  pytest.mark.aot,
  pytest.mark.filterwarnings("ignore:scale_by_structure sees"),  # single kernels
  pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),
]

SPEED = pathlib.Path(__file__).parents[1] / "benchmarks" / "speed"

# What a kernel computes of two blocks and a number that all elements share, by primitive.
_shown = lambda mask, x: lax.select_n(mask, x, x + 1)
IN_A_KERNEL = {
  "abs": lambda x, y, n: lax.abs(x),
  "add": lambda x, y, n: x + y + n,
  "and": lambda x, y, n: _shown((x > y) & (x > n), x),
  "ceil": lambda x, y, n: lax.ceil(x),
  "clamp": lambda x, y, n: lax.clamp(-abs(y), x, abs(y)) + lax.clamp(n, x, jnp.full((), 2, x.dtype)),
  "convert_element_type": lambda x, y, n: x.astype(jnp.bfloat16).astype(jnp.float32) + (x > y).astype(jnp.float32),
  "copy": lambda x, y, n: lax.copy_p.bind(x),
  "div": lambda x, y, n: x / y + x / n + n / x,
  "eq": lambda x, y, n: _shown(lax.eq(x, lax.max(x, y)), x),
  "exp": lambda x, y, n: lax.exp(x),
  "exp2": lambda x, y, n: lax.exp2(x),
  "floor": lambda x, y, n: lax.floor(x),
  "ge": lambda x, y, n: _shown(x >= n, y),
  "gt": lambda x, y, n: _shown(x > y, x),
  "integer_pow": lambda x, y, n: x**3 + y**-2,
  "is_finite": lambda x, y, n: _shown(lax.is_finite(x), y),
  "le": lambda x, y, n: _shown(x <= n, y),
  "log": lambda x, y, n: lax.log(x),
  "logistic": lambda x, y, n: lax.logistic(x),
  "lt": lambda x, y, n: _shown(x < y, x),
  "max": lambda x, y, n: lax.max(x, y) + lax.max(x, n),
  "min": lambda x, y, n: lax.min(x, y) + lax.min(x, n),
  "mul": lambda x, y, n: x * y * n,
  "ne": lambda x, y, n: _shown(x != y, x),
  "neg": lambda x, y, n: -x,
  "not": lambda x, y, n: _shown(~(x > y), x),
  "or": lambda x, y, n: _shown((x > y) | (x > n), x),
  "round": lambda x, y, n: lax.round(x) + lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
  "rsqrt": lambda x, y, n: lax.rsqrt(x),
  "select_n": lambda x, y, n: lax.select_n(x > y, x, y) + lax.select_n(n > 0, x, y),
  "sign": lambda x, y, n: lax.sign(x),
  "sqrt": lambda x, y, n: lax.sqrt(x),
  "square": lambda x, y, n: lax.square(x),
  "stop_gradient": lambda x, y, n: lax.stop_gradient(x),
  "sub": lambda x, y, n: x - y - n,
  "tanh": lambda x, y, n: lax.tanh(x),
  "xor": lambda x, y, n: _shown((x > y) ^ (x > n), x),
}


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
  cases = speed("cases")
  for name, case in (cases.CASES | cases.LOW_PRECISION).items():
    if not (limit := case.limit(target)):
      continue
    cost = speed("ahead_of_time").cost_of(case, target, leaves=2)
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


def in_branch(text, number):
  """A program that always takes one branch of its conditionals: a call in the place of each."""

  def call(match):
    one_by_one = re.findall(r"(?:false|true)_computation=%([\w.\-]+)", match[3])[::-1]  # the true one comes first
    branches = one_by_one or re.findall(r"%([\w.\-]+)", match[3].split("branch_computations=")[1].split("}")[0])
    return f"{match[1]} call({match[2].split(', ')[1 + number]}), to_apply=%{branches[number]}"

  return re.sub(r"^(.*) conditional\((.*?)\)(.*)$", call, text, flags=re.MULTILINE)


@pytest.fixture
def statistics_step(speed):
  """Compiles a donated step of four weights, whose gradients are given or of a chain of products in the program."""
  cases, targets = speed("cases"), speed("targets")

  def compiled(tx, target, trains, shardings=None, side=2048):
    sharding = shardings or SingleDeviceSharding(targets.devices_of(target)[0])
    on_device = functools.partial(jax.tree.map, lambda leaf, sharding: leaf.update(sharding=sharding))
    alike = lambda tree: jax.tree.map(lambda _: sharding, tree)
    params = cases.kernels(4, side)
    params = on_device(params, alike(params))
    state = jax.eval_shape(tx.init, params)
    state = on_device(state, optax_ext.state_shardings(tx, params, sharding) if shardings else alike(state))

    def loss(params, x):
      return sum(x := jnp.tanh(x @ layer["kernel"]) for layer in params.values()).sum()

    def step(params, state, data):
      return cases.update_then_apply(tx, jax.grad(loss)(params, data) if trains else data, state, params)

    data = jax.ShapeDtypeStruct((64, side), jnp.float32, sharding=sharding) if trains else params
    return targets.compile_for(target, jax.jit(step, donate_argnums=(0, 1)).lower(params, state, data))

  return compiled


def cost_of_statistics(speed, compiled, side=2048):
  """Bytes per parameter of a step that does not measure, and of one that does; temporaries, as parts of the weights."""
  size, text = 4 * side**2, compiled.as_text()
  moved = [speed("traffic").bytes_moved(in_branch(text, number)) / size for number in (0, 1)]
  return *moved, compiled.memory_analysis().temp_size_in_bytes / (4 * size)


STATISTICS = {
  "adam": (optax.adam(1e-3), 68.1),
  "adamw, cosine": (optax.adamw(optax.cosine_decay_schedule(1e-3, 1000)), 68.1),
  "nd_adam": (optax_ext.nd_adam(1e-3), 84.4),
  "8 bits": (optax_ext.quantize_state(optax.adam(1e-3)), 60.2),
}


@pytest.mark.parametrize("target", ["v5e", "H100"])
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_cost_nothing_where_they_are_not_measured(speed, statistics_step, name, target):
  """To 1 %, of the bytes of the optimizer alone; and memory for the update of one leaf out of four."""
  inner, limit = STATISTICS[name]
  alone, *_ = cost_of_statistics(speed, statistics_step(inner, target, trains=False))
  compiled = statistics_step(optax_ext.layer_statistics(inner, every=100), target, trains=False)
  without, measuring, temporaries = cost_of_statistics(speed, compiled)
  assert without == pytest.approx(alone, rel=0.01)
  assert without + 20 < measuring < limit
  assert temporaries < 0.3


@pytest.mark.parametrize(("target", "through_memory"), [("v5e", 8), ("H100", 0)])
def test_statistics_in_a_program_with_the_gradients(speed, statistics_step, target, through_memory):
  """XLA copies neither parameters nor state for the branch. On TPU the gradient is now written and read."""
  inner = optax.adam(1e-3)
  alone, *_ = cost_of_statistics(speed, statistics_step(inner, target, trains=True))
  compiled = statistics_step(optax_ext.layer_statistics(inner, every=100), target, trains=True)
  without, _, temporaries = cost_of_statistics(speed, compiled)
  assert without < 1.01 * (alone + through_memory)
  assert temporaries < 1.4  # all gradients, one update


@pytest.mark.parametrize("target", ["v5e", "H100"])
@pytest.mark.parametrize(
  ("tx", "without", "measuring"),
  [
    (optax_ext.layer_statistics(optax.adam(1e-3)), 52, 52),
    (optax.chain(optax_ext.layer_statistics(every=100), optax.adam(1e-3)), 28, 52),
    (optax.chain(optax.adam(1e-3), optax_ext.layer_statistics(every=100)), 36, 60),
  ],
  ids=["every step", "first link", "last link"],
)
def test_statistics_in_their_other_forms(speed, statistics_step, tx, without, measuring, target):
  *moved, _ = cost_of_statistics(speed, statistics_step(tx, target, trains=False))
  assert moved == pytest.approx([without, measuring], abs=0.1)


def test_statistics_on_a_mesh_are_exchanged_only_where_they_are_measured(speed, statistics_step):
  """Maxima, sums and the rest after the projection, each of all leaves in one all-reduce, and all in the branch."""
  mesh = Mesh(np.reshape(speed("targets").devices_of("v5e"), (2, 2)), ("data", "model"))
  tx = optax_ext.layer_statistics(optax.adam(1e-3), every=100)
  compiled = statistics_step(tx, "v5e", trains=False, shardings=NamedSharding(mesh, PartitionSpec("data", "model")))
  entry = compiled.as_text()[compiled.as_text().index("\nENTRY") :]
  assert speed("traffic").collectives(compiled.as_text()) == {"all-reduce": 3}
  assert speed("traffic").collectives(entry) == {}


@pytest.mark.parametrize(("target", "dtype"), [("v5e", "float32"), ("H100", "float32"), ("H100", "bfloat16")])
def test_kernels_compute_what_the_table_says(speed, target, dtype):
  """A target's compiler takes each primitive of `IN_KERNELS`; interpreted, each keeps its meaning, with NaN and ∞."""
  block = jax.ShapeDtypeStruct((32, 128), dtype)
  every = lambda x, y, n: [f(x, y, n.astype(dtype)).astype(dtype) for f in IN_A_KERNEL.values()]
  on_gpu = {"compiler_params": triton.CompilerParams()} if target == "H100" else {}
  evaluate = evaluated_in_triton if target == "H100" else evaluated
  scalars = pl.BlockSpec(memory_space=None if target == "H100" else pltpu.SMEM)

  def computed(n, x, y, **options):
    program, results = Program.of(every, (x, y, n))
    step = dataclasses.replace(program.elementwise(program.inputs[:2], results), evaluate=evaluate)
    assert {equation.primitive.name for equation in step.equations} - {"broadcast_in_dim"} == IN_KERNELS

    def kernel(n_ref, x_ref, y_ref, *refs):
      for ref, result in zip(refs, step(step.unpacked(n_ref), x_ref[...], y_ref[...]), strict=True):
        ref[...] = result

    shape = [jax.ShapeDtypeStruct(x.shape, x.dtype)] * len(IN_A_KERNEL)
    call = pl.pallas_call(kernel, in_specs=[scalars, pl.BlockSpec(), pl.BlockSpec()], out_shape=shape, **options)
    return call(step.packed(program.values(step.numbers)), x, y)

  on_target = SingleDeviceSharding(speed("targets").devices_of(target)[0])
  args = [x.update(sharding=on_target) for x in (jax.ShapeDtypeStruct((), jnp.float32), block, block)]
  with speed("targets").lowering_for(target):
    lowered = jax.jit(functools.partial(computed, **on_gpu)).lower(*args)
  assert "custom-call" in speed("targets").compile_for(target, lowered).as_text()
  x, y = (jax.random.normal(jax.random.key(seed), block.shape, dtype) for seed in (0, 1))
  x = x.at[0, :7].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0.0, -0.0, 0.5, 2.5], dtype))
  n = jnp.float32(0.5)
  tolerance = {"rtol": 1e-6} if dtype == "float32" else {"rtol": 2**-6, "atol": 0.15}  # sums of what was rounded
  interpreted = jax.jit(functools.partial(computed, interpret=True))(n, x, y)
  for name, one, wanted in zip(IN_A_KERNEL, interpreted, jax.jit(every)(x, y, n), strict=True):
    np.testing.assert_allclose(*(np.asarray(z, np.float32) for z in (one, wanted)), **tolerance, err_msg=name)


@pytest.mark.parametrize("target", ["v5e", "H100"])
def test_weights_in_parts_move_once(speed, target):
  """Two bytes and one of weights, two of moments, two of gradient: 12.0, and the scales; no temporaries."""
  shape, on_target = (4096, 4096), SingleDeviceSharding(speed("targets").devices_of(target)[0])
  parts = stored_weights.parts_of(shape, (4096, 1), abstract=True)
  keys, grad = jax.ShapeDtypeStruct((4,), jnp.uint32), jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  args = jax.tree.map(lambda x: x.update(sharding=on_target), (keys, grad, parts))
  step = stored_weights.adam(shape)

  def stepped(keys, grad, parts):
    return kernel_of(step, stored_weights.KINDS, grad, parts)([], keys, grad, parts)

  with speed("targets").lowering_for(target):
    lowered = jax.jit(stepped, donate_argnums=2).lower(*args)
  compiled = speed("targets").compile_for(target, lowered)
  size, text = grad.size, compiled.as_text()
  assert 12.0 < speed("traffic").bytes_moved(text) / size < 12.01
  assert 5.0 < speed("traffic").reused_bytes(text) / size < 5.01
  assert compiled.memory_analysis().temp_size_in_bytes < 0.01 * size


def test_collectives_are_counted(speed):
  """An asynchronous one counts once, by its start; one that stands in several fusions once, by its channel."""
  text = "%a = f32[8]{0} all-reduce-start(%x)\n%b = f32[8]{0} all-reduce-done(%a)\n%c = f32[16]{0} all-gather(%b)"
  assert speed("traffic").collectives(text) == {"all-gather": 1, "all-reduce": 1}
  text = "%a = f32[] all-gather(%x), channel_id=7\n%b = f32[] all-gather(%y), channel_id=7\n%c = f32[] all-gather(%z)"
  assert speed("traffic").collectives(text) == {"all-gather": 2}
