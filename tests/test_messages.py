"""Wrong uses that a newcomer makes, each with the sentence that tells what to do instead."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support
from flax import linen, nnx

import optax_ext as ox
from optax_ext import compare

PARAMS = {
  "Dense_0": {"bias": jnp.ones(3), "kernel": jnp.ones((4, 3))},
  "Dense_1": {"bias": jnp.ones(2), "kernel": jnp.ones((3, 2))},
}
WIDER = PARAMS | {"Dense_1": {"bias": jnp.ones(5), "kernel": jnp.ones((3, 5))}}
DEEPER = PARAMS | {"Dense_2": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}}
OPTIMIZERS = {"exadam": ox.exadam, "adamnx": ox.adamnx, "caadam": ox.caadam, "nd_adam": ox.nd_adam}
WRAPPED = OPTIMIZERS | {
  "quantized": lambda rate: ox.quantize_state(ox.adamnx(rate), min_size=1),
  "split": lambda rate: ox.split_weights(ox.adamnx(rate)),
  "watched": lambda rate: ox.layer_statistics(ox.adamnx(rate)),
}
GAINS = ox.constant_gain(0.9), ox.constant_gain(0.999)
MODEL = nnx.Linear(4, 3, rngs=nnx.Rngs(0))


def net(params, x):
  for layer in params.values():
    x = x @ layer["kernel"] + layer["bias"]
  return x


STRUCTURE = ox.structure_from_model(net, PARAMS, jnp.ones((5, 4)))


def step(tx):
  return support.in_full(lambda params: tx.update(params, tx.init(params), params)[0])(PARAMS)


def trace(tx, params=PARAMS, grads=None, old=None):
  """A step with the state of the `old` parameters. It only fails, so that nothing needs to be computed."""
  state = jax.eval_shape(tx.init, params if old is None else old)
  return jax.eval_shape(tx.update, params if grads is None else grads, state, params)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
  "numbers", [(0.9, 0.999, 1e-3), (0.9, 0.999, 1e-8, 1e-3), (0.9, 0.99, np.float32(1e-3)), (0.9, 0.999)]
)
def test_decay_rates_in_the_first_places(name, numbers):
  with pytest.warns(UserWarning, match=rf"^{name} has learning_rate=0.9, b1=.* as if decay rates had been given first"):
    OPTIMIZERS[name](*numbers)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_large_rates_and_unusual_betas_are_nobodys_business(name):
  for numbers in (1.0, 1e-9, 1e-9), (0.9,), (0.9, 0.0, 0.5), (100.0, 0.9, 0.1), (0.1, 0.95, 0.9):
    OPTIMIZERS[name](*numbers)
  jax.eval_shape(lambda *numbers: OPTIMIZERS[name](*numbers).init({}), 0.9, 0.999, 1e-3)  # as numbers of a program


@pytest.mark.parametrize("make", [ox.adamnx, optax.adamw])
def test_a_mask_that_was_not_called(make):
  with pytest.raises(TypeError, match=r"^decay_mask takes a Structure .* a dict of 4 arrays: .* mask=decay_mask\(\)"):
    trace(make(1e-3, mask=ox.decay_mask))
  with pytest.raises(TypeError, match=r"but was a dict of 4 arrays. A mask is what label_paths\(label\) returns"):
    trace(make(1e-3, mask=ox.label_paths))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:nd_adam")
@pytest.mark.parametrize("axes", [lambda path, leaf: (0,) if leaf.ndim > 1 else None, STRUCTURE.normalised_axes()])
def test_functions_are_no_schedules_under_inject_hyperparams(axes):
  """optax calls every callable with the step count, unless it is told otherwise."""
  given = {"axes": axes, "axis_name": lambda path, leaf: None, "nu_dtype": jnp.bfloat16}
  tx, plain = optax.inject_hyperparams(ox.nd_adam)(1e-3, **given), ox.nd_adam(1e-3, **given)
  chex.assert_trees_all_close(step(tx), step(plain), rtol=1e-5)
  assert list(tx.init(PARAMS).hyperparams) == ["learning_rate", "b1", "b2", "eps", "eps_root"]


def test_a_mask_that_optax_has_called():
  """In a partial optax sees no signature of ours, and calls the mask with the step count."""
  make = functools.partial(ox.adamnx, mask=lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params))
  with pytest.warns(UserWarning, match="mask=False lets nothing decay"):
    optax.inject_hyperparams(make)(1e-2).init(PARAMS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exadam", "adamnx", "caadam"])
@pytest.mark.parametrize("static_args", [(), ("mask", "mu_dtype")])
def test_masks_under_inject_hyperparams(name, static_args):
  """Called with the step count, a mask would be no mask, and nothing would decay."""
  kernels = lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params)
  given = {"weight_decay": 0.5, "mask": kernels, "mu_dtype": jnp.bfloat16}
  tx = optax.inject_hyperparams(OPTIMIZERS[name], static_args)(1e-3, **given)
  state = tx.init(PARAMS)
  assert state.hyperparams.keys() == {"learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay"}
  assert jax.tree.leaves(optax.tree.get(state, "mu"))[0].dtype == jnp.bfloat16
  chex.assert_trees_all_close(step(tx), step(OPTIMIZERS[name](1e-3, **given)), rtol=1e-5)


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.filterwarnings("ignore:(nd_adam|scale_by_structure)")
@pytest.mark.parametrize(
  ("old", "new", "says"),
  [
    (
      PARAMS,
      DEEPER,
      r"The state is of other parameters: .* has nothing for 'Dense_2/bias', 'Dense_2/kernel'\. .*new s",
    ),
    (DEEPER, PARAMS, r"The state is of other parameters: .* also has 'Dense_2/bias', 'Dense_2/kernel'\."),
    (PARAMS, WIDER, r"'Dense_1.*bias'.*((has|of) shape \(2,\), wh.* \(5,\)|of shape \(5,\), but .* shape \(2,\))"),
  ],
  ids=["added", "removed", "wider"],
)
def test_a_state_of_another_model(name, old, new, says):
  tx = WRAPPED[name](1e-3)
  narrow = lambda tree: jax.tree.map(lambda p: p.astype(jnp.bfloat16), tree) if name == "split" else tree
  with pytest.raises(ValueError, match=says):
    trace(tx, narrow(new), old=narrow(old))


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.filterwarnings("ignore:(nd_adam|scale_by_structure|split_weights)")
@pytest.mark.parametrize(
  ("grads", "says"),
  [
    (DEEPER, "^The gradients do not match the parameters: they also have 'Dense_2/bias', 'Dense_2/kernel'"),
    ({"Dense_0": PARAMS["Dense_0"]}, "^The gradients .* they have nothing for 'Dense_1/bias', 'Dense_1/kernel'"),
    (jnp.ones(()), "^The gradients do not match the parameters: they have nothing for 'Dense_0/bias'"),
    (WIDER, r"^The gradients do not match the parameters: 'Dense_1/bias' has shape \(5,\) there and \(2,\) here"),
  ],
  ids=["more", "fewer", "none", "wider"],
)
def test_gradients_of_another_model(name, grads, says):
  with pytest.raises(ValueError, match=says):
    trace(WRAPPED[name](1e-3), grads=grads)


def test_what_is_given_is_told_in_few_words():
  """No sentence prints an array."""
  for wrong, words in (
    (PARAMS, "but was a dict of 4 arrays."),
    (np.ones((100, 100)), r"but was an array of shape \(100, 100\)"),
    ([0.1] * 100, "but was a list."),
    ("0.1", "but was '0.1'"),
    (MODEL, "but was the model Linear: an optimizer gets to know the parameters by tx.init"),
    (linen.Dense(3), "but was the model Dense: "),
  ):
    for make in OPTIMIZERS.values():
      with pytest.raises(TypeError, match=f"^learning_rate must be a number in .* or a schedule .* {words}") as caught:
        make(wrong)
      assert len(str(caught.value)) < 220


MAKERS = [
  ({"debias": ox.standard}, r"^debias must be a function, such as standard\(\), but was the function standard itself"),
  ({"debias": ox.cross_moment}, "but was the function cross_moment itself: call it"),
  ({"debias": ox.nesterov}, "but was the function nesterov itself: call it"),
  ({"ratio": ox.adam_ratio}, "but was the function adam_ratio itself: call it"),
  ({"square": ox.per_vector}, "but was the function per_vector itself: call it"),
  ({"mean_gain": ox.constant_gain}, r"^mean_gain must .* but was the function constant_gain itself: call it"),
  ({"square_gain": ox.adamnx_gain}, r"^square_gain must .* but was the function adamnx_gain itself: call it"),
  ({"ratio": lambda m, v: m}, r"^ratio must be a function of \(moments\), but .* <lambda>, which takes \(m, v\)"),
  ({"square": lambda g: g}, r"^square must be a function of \(path, grad\), but .* which takes \(g\)"),
  ({"mean_gain": lambda: 0.1}, r"^mean_gain must be a function of \(t\)"),
  ({"rounding": ox.stochastic}, "but was the function stochastic"),
]


@pytest.mark.parametrize(("given", "says"), MAKERS, ids=[says[:40] for _, says in MAKERS])
def test_plugs_of_moments(given, says):
  with pytest.raises(TypeError, match=says):
    ox.scale_by_moments(**dict(zip(("mean_gain", "square_gain"), GAINS, strict=True)) | given)


def test_functions_of_ones_own_are_plugs():
  """With annotations, and as methods and partial functions."""

  class Mine:
    def gain(self, t) -> float:
      return 0.5

  tx = ox.scale_by_moments(Mine().gain, max, square=ox.elementwise, ratio=lambda moments, extra=1: moments.mean)
  assert tx.init(PARAMS)


TX = ox.adamnx(1e-3)


def check(
  build=lambda width: (lambda params, x: x @ params["w"], {"w": jnp.ones((4, width))}), widths=(8, 16), **options
):
  return ox.coordinate_check(build, widths, options.pop("optimizer", optax.sgd(0.1)), (jnp.ones((2, 4)),), **options)


WRONG = {
  "an uncalled rule": (
    lambda: ox.scale_by_structure(ox.ByDepth),
    "any object with a method scales.* the class ByDepth",
  ),
  **{
    f"parameters in place of a structure, {type(rule).__name__}": (
      lambda rule=rule: rule.scales(PARAMS),
      "^structure must be a Structure, .* but was a dict of 4 arrays",
    )
    for rule in (ox.ByDepth(), ox.Additive(), ox.LayerDecay(0.9), ox.ByPath({"": 1.0}), ox.Additive() * ox.ByDepth())
  },
  "widths that are one": (lambda: check(widths=8), r"^widths must be a list of whole numbers, .* but was 8"),
  "widths in words": (lambda: check(widths=["8", "16"]), "^widths must be a list of whole numbers"),
  "a number to build": (lambda: check(build=3), "^build must be a function, .* but was 3"),
  "a build without seed": (lambda: check(seeds=2), r"^build must be a function of \(width, seed\)"),
  "an optimizer of nothing": (
    lambda: check(optimizer=lambda structure: None),
    "^What optimizer.structure. returns must be",
  ),
  "fields that are none": (lambda: ox.quantize_state(TX, signed=None), "^signed must be a list or tuple of names"),
  "a structure as a rule": (lambda: ox.scale_by_structure(STRUCTURE), "any object with a method .* was a Structure"),
  "a function as a rule": (lambda: ox.scale_by_structure(net), r"any object with a method scales\(structure\), .* net"),
  "an uncalled transformation": (lambda: ox.quantize_state(optax.adam), "^tx must be .* the function adam: call it"),
  "a state to quantize": (lambda: ox.quantize_state(TX.init(PARAMS)), "^tx must be .* but was a tuple of 9 arrays"),
  "a function to split": (lambda: ox.split_weights(optax.adam), "^tx must be .* the function adam: call it"),
  "a tree to cast": (lambda: ox.cast_updates(PARAMS), "^inner must be .* but was a dict of 4 arrays"),
  "a function to watch": (lambda: ox.layer_statistics(ox.adamnx), "or None for a link.* the function adamnx: call it"),
  "the transformation last": (lambda: ox.update_and_apply(PARAMS, TX.init(PARAMS), PARAMS, TX), "^tx must be an optax"),
  "bytes, swapped": (lambda: ox.state_bytes(PARAMS, TX), "^tx must be .* but was a dict of 4 arrays"),
  "bytes of a function": (
    lambda: ox.state_bytes(TX, {"f": net}),
    "^params must be a tree of arrays, but its leaf 'f' is",
  ),
  "a model in place of a function": (
    lambda: ox.structure_from_model(MODEL, jnp.ones(4)),
    r"Linear.__call__, model, \*i",
  ),
  "a linen model": (lambda: ox.structure_from_model(linen.Dense(3), PARAMS), r"\(model.apply, variables, \*inputs\)"),
  "parameters first": (lambda: ox.structure_from_model(PARAMS, net), "^apply_fn must be a function of the parameters"),
  "a rescaled structure": (lambda: ox.rescale_init(STRUCTURE, PARAMS, STRUCTURE), "^structure must be a Structure, as"),
  "a rescaled tree": (
    lambda: ox.rescale_init(PARAMS, STRUCTURE, PARAMS),
    "^base must be a Structure, as .* a dict of 4",
  ),
  "axes of the leaf alone": (
    lambda: ox.vector_mask(lambda leaf: (0,)),
    r"^axes must be a function of \(path, leaf\), bu",
  ),
  "uncalled axes": (
    lambda: ox.vector_mask(STRUCTURE.normalised_axes),
    r"the function normalised_axes, which takes \(\).",
  ),
  "parameters as axes": (
    lambda: ox.normalize_vectors((0,), PARAMS),
    r"'Dense_0/bias' .* but were an array of shape \(3",
  ),
  "a label of the path alone": (
    lambda: ox.label_paths(lambda path: "a"),
    r"^label must be a function of \(path, leaf\)",
  ),
  "a name, not a path": (lambda: ox.path_string("a/b"), "^path must be a path of jax.tree_util, .* a string already"),
  "a mesh axis of the leaf": (lambda: ox.nd_adam(1.0, axis_name=lambda leaf: "x"), r"^axis_name must be a function of"),
  "parameters as dtype": (lambda: ox.adamnx(1.0, nu_dtype=PARAMS), "^nu_dtype must be .* but was a dict of 4 arrays"),
}


DATA = {"x": np.zeros((8, 4), np.float32)}
COMPARED = {
  "a built optimizer": (
    lambda: compare.Optimizer("mine", TX),
    "^The optimizer 'mine' must be a function of the learning",
  ),
  "a name that is none": (
    lambda: compare.Optimizer(ox.adamnx, "mine"),
    "^name must be a string, but was the function ad",
  ),
  "a range of words": (lambda: compare.Range("low", 1), "^low must be a number in"),
  "a model that is made": (
    lambda: problem(MODEL),
    r"^build must be a function that makes the model, build\(rngs\), but",
  ),
  "a builder without rngs": (
    lambda: problem(lambda: MODEL),
    r"^build must be a function of \(rngs\), but was the functio",
  ),
  "a metric alone": (
    lambda: problem(lambda rngs: MODEL).metrics_of(*STATE, DATA),
    "^metrics must return a dict from names",
  ),
  "a list of functions": (
    lambda: compare.compare(problem(lambda rngs: MODEL), [ox.adamnx], compare.Protocol(2, 1)),
    '^An optimizer must be .* but one was the function adamnx: give a dict .* as {"mine": optax_ext.adamnx}',
  ),
}
STATE = nnx.split(MODEL, nnx.Param, ...)[1:]


def problem(build):
  loss = metrics = lambda model, data: model(data["x"]).mean()
  return compare.Problem.from_nnx("p", build, loss, metrics, DATA, DATA, DATA, batch_size=2, metric="loss")


@pytest.mark.parametrize("name", WRONG | COMPARED)
def test_things_in_the_wrong_place(name):
  use, says = (WRONG | COMPARED)[name]
  with pytest.raises(TypeError, match=says):
    use()


def test_an_expression_that_is_none():
  with pytest.raises(ValueError, match=r"^label must be a regular expression, but '\(' is none"):
    ox.label_paths("(")


def test_what_has_no_effect_is_told():
  with pytest.warns(UserWarning, match="^rounding has no effect, because moments are stored in float32: give mu_dtype"):
    jax.eval_shape(ox.adamnx(1e-3, rounding=ox.stochastic(0)).init, PARAMS)
  with pytest.warns(
    UserWarning, match="^split_weights splits no parameter, because none of these has 16 bits: 4 leaves"
  ):
    jax.eval_shape(ox.split_weights(optax.sgd(0.1)).init, PARAMS)
  with pytest.warns(UserWarning, match="^adax_gain has b2=0.999, a decay rate by its size: its b2 is a growth rate"):
    ox.adax_gain(0.999)
  half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
  jax.eval_shape(ox.split_weights(optax.sgd(0.1)).init, {"head": jnp.ones(3)} | half)
  for rounded in (ox.adamnx(1e-3, rounding=ox.stochastic(0)), ox.scale_by_moments(*GAINS, rounding=ox.stochastic(0))):
    jax.eval_shape(rounded.init, half)
    rounded.init({})  # as `optax.tree.map_params` does


@pytest.mark.parametrize("module", [ox, compare])
def test_listing_a_module_shows_its_public_names_alone(module):
  assert set(dir(module)) - {"__version__"} == set(module.__all__)
