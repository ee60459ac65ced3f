"""Facts read from small models of many architectures against those derived by hand, and optimizers that use them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import linen, nnx
from models import MODELS, NnxMLP, gpt_tied, mlp_linen, rand, resnet20, scanned, unet
from plain_models import check, leaves_by_path, scale_by_hand
from support import jitted

from optax_ext import (
  Additive,
  ByDepth,
  Multiplicative,
  caadam,
  nd_adam,
  normalize_vectors,
  structure_from_model,
  structure_from_params,
)


@pytest.fixture(scope="module", params=MODELS, ids=lambda build: build.__name__)
def model(request):
  return request.param()


@pytest.fixture(scope="module")
def structure(model):
  return structure_from_model(model.apply, model.params, *model.inputs)


def test_facts(model, structure):
  check(structure, model)


def test_shapes_suffice(model, structure):
  shapes = jax.eval_shape(lambda *args: args, model.params, *model.inputs)
  assert structure_from_model(model.apply, *shapes).leaves() == structure.leaves()


def test_loss_has_the_same_facts(model, structure):
  def loss(params, *inputs):
    penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jnp.mean((model.apply(params, *inputs) - 1) ** 2) + 0.01 * penalty

  traced = structure_from_model(jax.jit(loss), model.params, *model.inputs)
  check(traced, model)
  assert [facts.macs for facts in traced.leaves()] == [facts.macs for facts in structure.leaves()]


RULES = [Additive(), Multiplicative(signed=True), ByDepth()]


@pytest.mark.slow
def test_caadam_is_its_equations(model, structure):
  """Facts by hand, equations in NumPy float64."""
  grads = [jax.tree.map(lambda leaf, t=t: np.asarray(rand(leaf.shape, t)), model.params) for t in (1, 2, 3)]

  def run(params, grads):
    def trained(tx):
      def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

      return jax.lax.scan(step, (params, tx.init(params)), grads)[0][0]

    return [trained(caadam(1e-2, rule=rule, structure=structure)) for rule in RULES]

  results = jitted(run)(model.params, jax.tree.map(lambda *leaves: np.stack(leaves), *grads))
  given, grads = leaves_by_path(model.params), [leaves_by_path(grad) for grad in grads]
  for rule, result in zip(RULES, results, strict=True):
    moved = leaves_by_path(result)
    for path, leaf in given.items():
      gradient = lambda t, _, path=path: np.float64(grads[t - 1][path])
      scale = scale_by_hand(rule, model, path, leaf.shape)
      want = reference.caadam(np.float64(leaf), gradient, 3, scale, lr=1e-2)[-1]
      np.testing.assert_allclose(moved[path], want, rtol=1e-4, atol=2e-5, err_msg=f"{path} {rule}")


@pytest.mark.slow
def test_nd_adam_keeps_units_at_length_1(model, structure):
  tx = nd_adam(1e-3, structure=structure)
  params = jitted(lambda params: normalize_vectors(params, structure))(model.params)
  loss = lambda params: jnp.mean((model.apply(params, *model.inputs) - 1) ** 2)

  def train(params):
    def step(carry, _):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), None, 100)[0][0]

  before, after = leaves_by_path(params), leaves_by_path(jitted(train)(params))
  moved = 0
  for path, leaf in after.items():
    if (axes := model.facts[path].contracting) is not None:
      np.testing.assert_allclose(np.sqrt((np.asarray(leaf) ** 2).sum(axes)), 1, rtol=1e-5)
    moved += not np.array_equal(leaf, before[path])
  assert moved > 1


def test_muon_on_attention_and_scanned_layers():
  numbers = optax.contrib.MuonDimensionNumbers
  model = gpt_tied()
  dims = leaves_by_path(
    structure_from_model(model.apply, model.params, *model.inputs).muon_dimension_numbers()(model.params),
    lambda x: x is None or isinstance(x, numbers),
  )
  by_hand = {}
  for i in (0, 1):
    for part in ("query", "key", "value"):
      by_hand[f"block_{i}/attention/{part}/kernel"] = numbers((0,), (1, 2))
    by_hand[f"block_{i}/attention/out/kernel"] = numbers((0, 1), (2,))
    by_hand |= {f"block_{i}/{part}/kernel": numbers((0,), (1,)) for part in ("up", "down")}
  assert {path: value for path, value in dims.items() if value is not None} == by_hand

  model = scanned()
  spec = structure_from_model(model.apply, model.params, *model.inputs).muon_dimension_numbers()(model.params)
  spec_by_hand = jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      None
      if leaf.ndim < 2 or "bias" in str(path) or "norm" in str(path)
      else numbers((leaf.ndim - 2,), (leaf.ndim - 1,))
    ),
    model.params,
  )
  grads = jax.tree.map(lambda leaf: rand(leaf.shape, 7), model.params)
  step = lambda tx: jitted(lambda g: tx.update(g, tx.init(g), g)[0])
  steps = [step(optax.contrib.muon(0.1, muon_weight_dimension_numbers=dims))(grads) for dims in (spec, spec_by_hand)]
  jax.tree.map(np.testing.assert_array_equal, *steps)
  one = {"layer": grads["params"]["layers"]["up"]["kernel"][1]}  # Muon of one layer of the stack, by itself
  alone = step(optax.contrib.muon(0.1))(one)["layer"]
  np.testing.assert_allclose(steps[0]["params"]["layers"]["up"]["kernel"][1], alone, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_muon_on_a_module_that_can_be_called_and_on_parameters_beside_statistics():
  """Muon calls what is callable: the numbers must not be a tree of the shape of the module."""
  module, x = NnxMLP(nnx.Rngs(0)), rand((3, 4))
  numbers = structure_from_model(NnxMLP.__call__, module, x).muon_dimension_numbers()
  optimizer = nnx.Optimizer(module, optax.contrib.muon(1e-3, muon_weight_dimension_numbers=numbers), wrt=nnx.Param)
  before = nnx.state(module, nnx.Param)
  optimizer.update(module, jax.tree.map(jnp.ones_like, before))
  assert numbers(before)["layers"][1]["kernel"].get_value() == optax.contrib.MuonDimensionNumbers((0,), (1,))

  class Normed(linen.Module):
    @linen.compact
    def __call__(self, x):
      return linen.Dense(2, name="head")(linen.BatchNorm(use_running_average=True)(linen.Dense(3, name="first")(x)))

  variables = Normed().init(jax.random.key(0), x)
  numbers = structure_from_model(Normed().apply, variables, x).muon_dimension_numbers()
  tx = optax.contrib.muon(1e-3, muon_weight_dimension_numbers=numbers)
  tx.update(variables["params"], tx.init(variables["params"]), variables["params"])
  assert numbers(variables["params"])["head"]["kernel"] == optax.contrib.MuonDimensionNumbers((0,), (1,))


def test_one_call_for_each_framework():
  """The module's own call, with no recipe around it."""
  module, x = NnxMLP(nnx.Rngs(0)), rand((3, 4))
  facts = leaves_by_path(structure_from_model(NnxMLP.__call__, module, x).facts)
  params = nnx.state(module, nnx.Param)
  assert facts["layers/1/kernel"].contracting_axes == (0,)
  assert facts["layers/2/kernel"].depth == 2
  tx = caadam(1e-3, structure=structure_from_model(NnxMLP.__call__, module, x))
  tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)

  model = mlp_linen()
  assert structure_from_model(model.apply, model.params, *model.inputs).num_layers == 3


def test_statistics_are_not_layers():
  """Running statistics that the function updates belong to no layer, and nothing is said to be unused."""
  structure = structure_from_model(NnxMLP.__call__, NnxMLP(nnx.Rngs(0)), rand((3, 4)))
  facts = leaves_by_path(structure.facts)
  assert facts["norm/mean"].layer is None
  assert facts["norm/mean"].note == ""


def test_multiply_accumulates():
  """A place of the input meets a transposed kernel once; a kernel meets every place of its output."""
  model = unet()
  facts = leaves_by_path(structure_from_model(model.apply, model.params, *model.inputs).facts)
  assert facts["down0/kernel"].macs == 8 * 8 * (3 * 3 * 1 * 2)
  assert facts["down1/kernel"].macs == 4 * 4 * (3 * 3 * 2 * 4)
  assert facts["up1/kernel"].macs == 2 * 2 * (2 * 2 * 6 * 4)


def test_paths_and_trace_differ_where_paths_cannot_know():
  model = resnet20()
  guessed = leaves_by_path(structure_from_params(model.params).facts)
  traced = leaves_by_path(structure_from_model(model.apply, model.params, *model.inputs).facts)
  assert traced["proj_1_0/kernel"].depth == traced["conv_1_0a/kernel"].depth
  assert guessed["proj_1_0/kernel"].depth > guessed["head/kernel"].depth


def test_plot(tmp_path):
  pytest.importorskip("matplotlib")
  for build in (resnet20, scanned):
    model = build()
    structure = structure_from_model(model.apply, model.params, *model.inputs)
    structure.plot(tmp_path / "plain.png")
    structure.plot(tmp_path / "scaled.svg", ByDepth())
    assert (tmp_path / "plain.png").stat().st_size > 10_000
    assert "connections" in (tmp_path / "scaled.svg").read_text()
