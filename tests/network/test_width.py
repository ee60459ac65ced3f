"""Learning rates that transfer across width: scales against tables written by hand, and the coordinate check."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from support import ROOT

import optax_ext
from optax_ext import ByDepth, MaximalUpdate, coordinate_check, rescale_init, structure_from_model
from optax_ext._common.paths import by_path

sys.path.insert(0, str(ROOT / "benchmarks"))

import coordinates

BASE, WIDTH = 8, 32
R = WIDTH // BASE
F32 = jnp.float32


def shaped(**shapes):
  return {name: jax.ShapeDtypeStruct(shape, F32) for name, shape in shapes.items()}


def linen(module, *inputs):
  inputs = [jax.ShapeDtypeStruct(*one) for one in inputs]
  return module.apply, jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *inputs), inputs


# Each model is (apply, params, inputs) at a width, and has a table: path -> the role of the leaf, and S if not by role.


def mlp(width):
  params = shaped(a=(5, width), b=(width,), h=(width, width), scale=(width,), o=(width, 3), c=(3,))
  apply = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"] + p["b"]) @ p["h"] * p["scale"]) @ p["o"] + p["c"]
  return apply, params, [jax.ShapeDtypeStruct((2, 5), F32)]


def torch(width):
  """A layer's weight is (out, in)."""
  params = shaped(a=(width, 5), h=(2 * width, width), o=(3, 2 * width))
  return (
    lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"].T) @ p["h"].T) @ p["o"].T,
    params,
    [jax.ShapeDtypeStruct((2, 5), F32)],
  )


def cnn(width):
  return linen(coordinates.CNN(width), ((2, 8, 8, 3), F32))


def vit(width):
  return linen(coordinates.ViT(width, heads=2), ((2, 8, 8, 3), F32))  # wider heads


def gpt(width, **kinds):
  return linen(coordinates.GPT(width, **kinds), ((2, 5), jnp.int32))  # more heads


def experts(width):
  """A mixture in which an input chooses the expert, and an ensemble of heads."""
  params = shaped(a=(5, width), route=(width, 4), w=(4, width, width), heads=(6, width, 3))

  def apply(p, x, chosen):
    h = jnp.tanh(x @ p["a"])
    h = jnp.tanh(jnp.einsum("bi,bio->bo", h, p["w"][chosen]) * (h @ p["route"]).sum(-1, keepdims=True))
    return jax.vmap(lambda w: h @ w)(p["heads"])

  return apply, params, [jax.ShapeDtypeStruct((2, 5), F32), jax.ShapeDtypeStruct((2,), jnp.int32)]


def blocks_of(name):
  roles = {f"{name}/{norm}/{leaf}": "other" for norm in ("norm0", "norm1") for leaf in ("scale", "bias")}
  for layer in ("attention/query", "attention/key", "attention/value", "attention/out", "up", "down"):
    roles |= {f"{name}/{layer}/kernel": "hidden", f"{name}/{layer}/bias": "other"}
  return roles


TABLES = {
  "mlp": (mlp, {"a": "input", "h": "hidden", "o": "output", "b": "other", "c": "other", "scale": "other"}),
  "torch": (torch, {"a": "input", "h": "hidden", "o": "output"}),
  "cnn": (
    cnn,
    {
      "first/kernel": "input",
      "first/bias": "other",
      "depthwise/kernel": "input",
      "grouped/kernel": "hidden",
      "out/kernel": "output",
      "out/bias": "other",
    },
  ),
  "vit": (
    vit,
    {
      "patches/kernel": "input",
      "patches/bias": "other",
      "positions": "other",
      "norm/scale": "other",
      "norm/bias": "other",
      "head/kernel": "output",
      "head/bias": "other",
      **blocks_of("block_0"),
      **blocks_of("block_1"),
    },
  ),
  "gpt, scanned": (
    lambda width: gpt(width, scanned=True),
    {
      "embed/embedding": "lookup",
      "positions": "other",
      "norm/scale": "other",
      "norm/bias": "other",
      "head/kernel": "output",
      **blocks_of("blocks"),
    },
  ),
  "gpt, tied": (
    lambda width: gpt(width, tied=True, scanned=True),
    {
      "embed/embedding": "tied",
      "positions": "other",
      "norm/scale": "other",
      "norm/bias": "other",
      **blocks_of("blocks"),
    },
  ),
  "experts": (experts, {"a": "input", "route": "output", "w": "hidden", "heads": "output"}),
}
S = {"input": 1, "other": 1, "lookup": 1, "tied": 1, "hidden": 1 / R, "output": 1 / R}


def structures(build, *widths):
  return [structure_from_model(apply, params, *inputs) for apply, params, inputs in map(build, widths)]


def named(tree):
  return {path.removeprefix("params/"): value for path, value in by_path(tree).items()}


@pytest.mark.slow
@pytest.mark.parametrize(("build", "roles"), TABLES.values(), ids=TABLES)
def test_scales_are_those_of_the_table(build, roles):
  base, wide = structures(build, BASE, WIDTH)
  assert named(MaximalUpdate(base).scales(wide)) == {path: S[role] for path, role in roles.items()}
  words = {
    "hidden": f"hidden: fan-in × {R}",
    "output": f"output: fan-in × {R}",
    "tied": f"tied: divide the logits by {R}",
  }
  reasons = {path.removeprefix("params/"): why for path, why in MaximalUpdate(base).reasons(wide).items()}
  assert reasons == {path: words.get(role, role) for path, role in roles.items()}
  assert set(named(MaximalUpdate(base).scales(base)).values()) == {1}


PARTS = {
  "concatenated": lambda p, x: jnp.tanh(x @ p["a"]) @ jnp.concatenate([p["q"], p["k"]], 1),
  "stacked": lambda p, x: jnp.einsum("bi,kio->kbo", jnp.tanh(x @ p["a"]), jnp.stack([p["q"], p["k"]])),
  "added": lambda p, x: jnp.tanh(x @ p["a"]) @ (p["q"] + p["k"]),
  "multiplied": lambda p, x: jnp.tanh(x @ p["a"]) @ (p["q"] * p["k"]),
}


@pytest.mark.parametrize("apply", PARTS.values(), ids=PARTS)
def test_every_part_of_a_weight_has_the_scale(apply):
  """Rates and initialisations of a layer whose weight is computed from several leaves."""
  x = jax.ShapeDtypeStruct((2, 5), F32)
  for outputs, role in ((None, "hidden"), (3, "output")):
    shapes = lambda width, n=outputs: shaped(a=(5, width), q=(width, n or width), k=(width, n or width))
    base, wide = (structure_from_model(apply, shapes(width), x) for width in (BASE, WIDTH))
    rule = MaximalUpdate(base)
    assert rule.scales(wide) == {"a": 1, "q": 1 / R, "k": 1 / R}
    assert {rule.reasons(wide)[name] for name in "qk"} == {f"{role}: fan-in × {R}"}
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes(WIDTH))
    for name in "qk":
      np.testing.assert_array_equal(rescale_init(ones, wide, base)[name], R**-0.5 if role == "output" else 1)


@pytest.mark.filterwarnings("ignore:structure_from_model could not see")
def test_a_weight_whose_axes_are_not_known_is_named():
  def build(width):
    rows, columns = np.triu_indices(width)
    apply = lambda p, x: (x @ p["a"]) @ jnp.zeros((width, width)).at[rows, columns].set(p["t"])
    return structure_from_model(apply, shaped(a=(5, width), t=(rows.size,)), jax.ShapeDtypeStruct((2, 5), F32))

  base, wide = build(4), build(8)
  assert MaximalUpdate(base).scales(wide) == {"a": 1, "t": 1}
  assert MaximalUpdate(base).reasons(wide)["t"] == "its axes are not known: not scaled"


def test_rates_of_sgd():
  base, wide = structures(mlp, BASE, WIDTH)
  want = {"a": R, "b": R, "scale": R, "c": 1, "h": 1, "o": 1 / R}
  assert MaximalUpdate(base, "sgd").scales(wide) == want
  base, wide = structures(gpt, BASE, WIDTH)
  assert named(MaximalUpdate(base, "sgd").scales(wide))["embed/embedding"] == R


def test_axes_that_grow_by_other_factors():
  """Each weight has the factor of its own inputs."""
  build = lambda inner, outer: (
    lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"],
    shaped(a=(5, inner), b=(inner, outer), c=(outer, 2)),
    [jax.ShapeDtypeStruct((2, 5), F32)],
  )
  base, wide = (structure_from_model(apply, params, *x) for apply, params, x in (build(4, 6), build(8, 18)))
  assert MaximalUpdate(base).scales(wide) == {"a": 1, "b": 1 / 2, "c": 1 / 3}


def test_the_table_says_why():
  base, wide = structures(mlp, BASE, WIDTH)
  lines = wide.table(ByDepth() * MaximalUpdate(base)).splitlines()
  assert lines[0].endswith("scale  reason")
  assert [line.split("  ")[-1].strip() for line in lines[1:-1]] == [
    "input", "other", "other", "hidden: fan-in × 4", "output: fan-in × 4", "other"
  ]  # fmt: skip
  assert "reason" not in wide.table(ByDepth())


@pytest.mark.slow
@pytest.mark.parametrize(("build", "roles"), TABLES.values(), ids=TABLES)
def test_rescaled_initialisations(build, roles):
  base, wide = structures(build, BASE, WIDTH)
  params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, jnp.bfloat16), build(WIDTH)[1])
  found = named(rescale_init(params, wide, base))
  for path, role in roles.items():
    np.testing.assert_array_equal(found[path], R**-0.5 if role == "output" else 1, err_msg=path)
    assert found[path].dtype == jnp.bfloat16


@pytest.mark.heavy
def test_steps_scale_and_decay_does_not():
  """S scales the direction; decay is α·λ whatever the width."""
  base, wide = structures(mlp, BASE, WIDTH)
  params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), mlp(WIDTH)[1])
  grads = jax.tree.map(jnp.ones_like, params)
  scales = MaximalUpdate(base).scales(wide)
  step = lambda tx: tx.update(grads, tx.init(params), params)[0]
  for make, rate in ((optax_ext.caadam, 1e-2), (optax_ext.adamnx, lambda count: 1e-2), (optax_ext.exadam, 1e-2)):
    tx = make(rate, weight_decay=0.1, rule=MaximalUpdate(base), structure=wide)
    plain = step(make(rate, weight_decay=0.0, rule=jax.tree.map(lambda leaf: 1.0, params)))
    for path, update in step(tx).items():
      np.testing.assert_allclose(update, scales[path] * plain[path] - 1e-2 * 0.1 * 0.5, rtol=1e-5)


OTHERS = {
  "a leaf less": (lambda p, x: x @ p["a"], {"a": (5, 8)}, "structure of another model, with 'h' only in the model"),
  "a leaf more": (
    lambda p, x: (x @ p["a"]) @ p["h"] + p["more"],
    {"a": (5, 8), "h": (8, 3), "more": (3,)},
    "with 'more' only in the base",
  ),
  "fewer layers": (
    lambda p, x: (x @ p["a"]) + p["h"][0, 0],
    {"a": (5, 8), "h": (8, 3)},
    "base is 1 layers deep and the model 2",
  ),
  "other axes": (
    lambda p, x: (x @ p["a"]) @ p["h"].T,
    {"a": (5, 8), "h": (3, 8)},
    r"contracting axes \(1,\), the model",
  ),
  "wider": (
    lambda p, x: (x @ p["a"]) @ p["h"],
    {"a": (5, 64), "h": (64, 3)},
    r"'a' has shape \(5, 32\) in the model and \(5, 64\) in base",
  ),
}


@pytest.mark.parametrize(("apply", "shapes", "message"), OTHERS.values(), ids=OTHERS)
def test_structures_of_other_models_are_refused(apply, shapes, message):
  x = jax.ShapeDtypeStruct((2, 5), F32)
  wide = structure_from_model(lambda p, x: (x @ p["a"]) @ p["h"], shaped(a=(5, 32), h=(32, 3)), x)
  base = structure_from_model(apply, shaped(**shapes), x)
  params = jax.tree.map(lambda facts: jnp.ones(facts.shape), wide.facts)
  for use in (MaximalUpdate(base).scales, MaximalUpdate(base).reasons, lambda s: rescale_init(params, s, base)):
    with pytest.raises(ValueError, match=message):
      use(wide)


def test_another_number_of_scanned_layers_is_refused():
  def build(layers, width):
    apply = lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ p["a"], p["w"])[0]
    return structure_from_model(
      apply, shaped(a=(5, width), w=(layers, width, width)), jax.ShapeDtypeStruct((2, 5), F32)
    )

  assert MaximalUpdate(build(3, 8)).scales(build(3, 16)) == {"a": 1, "w": 1 / 2}
  with pytest.raises(ValueError, match="base is 3 layers deep and the model 4"):
    MaximalUpdate(build(2, 8)).scales(build(3, 16))


def test_optax_chains_take_the_rule():
  base, wide = structures(mlp, BASE, WIDTH)
  params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5, jnp.bfloat16), mlp(WIDTH)[1])
  scale = optax_ext.scale_by_structure(MaximalUpdate(base), wide)

  def optimizer(learning_rate):
    return optax.chain(optax.scale_by_adam(), scale, optax.scale_by_learning_rate(learning_rate))

  tx = optax.inject_hyperparams(optimizer)(learning_rate=0.5)
  updates = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), tx.init(params), params)[0]
  for path, factor in MaximalUpdate(base).scales(wide).items():
    np.testing.assert_allclose(np.float32(updates[path]), -0.5 * factor, rtol=1e-2)


@pytest.mark.slow
def test_muons_adam_takes_the_rule():
  """Muon's steps need none; its Adam, for the embedding and the output, does."""
  base, wide = structures(mlp, BASE, WIDTH)
  params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), mlp(WIDTH)[1])
  numbers = wide.muon_dimension_numbers(exclude="^[ao]$")
  rule = MaximalUpdate(base)
  by_muon = {path: number is not None for path, number in numbers(params).items()}
  scaled = optax.masked(optax_ext.scale_by_structure(rule, wide), {path: not muon for path, muon in by_muon.items()})
  muon = optax.contrib.muon(1e-2, muon_weight_dimension_numbers=numbers)
  step = lambda tx: tx.update(params, tx.init(params), params)[0]
  got, want = step(optax.chain(muon, scaled)), step(muon)
  assert [path for path, muon in by_muon.items() if muon] == ["h"]
  for path, scale in rule.scales(wide).items():
    np.testing.assert_allclose(got[path], want[path] * (1 if by_muon[path] else scale), rtol=1e-6)


def test_wrong_arguments():
  base, wide = structures(mlp, BASE, WIDTH)
  with pytest.raises(
    TypeError, match=r"base must be the structure of the same model at a smaller width, .* but was a dict"
  ):
    MaximalUpdate({})
  with pytest.raises(ValueError, match="optimizer must be 'adam' or 'sgd', but was 'muon'"):
    MaximalUpdate(base, "muon")
  with pytest.raises(ValueError, match="leaf 'a' has shape"):
    rescale_init(jax.tree.map(lambda leaf: jnp.ones(leaf.shape), mlp(BASE)[1]), wide, base)
  for make in (optax_ext.exadam, optax_ext.adamnx):
    with pytest.raises(ValueError, match="A structure was given without a rule"):
      make(1e-3, structure=wide)


# the coordinate check

X = jax.random.normal(jax.random.key(1), (16, 5))


def loss_of(apply):
  return lambda p, x: jnp.mean((apply(p, x) - jnp.sin(jnp.arange(3))) ** 2)


def filled(shapes):
  """Weights of variance 1/fan-in; biases of 0, and 1 for a scale."""
  keys = dict(zip(shapes, jax.random.split(jax.random.key(0), len(shapes)), strict=True))

  def leaf(name, shape):
    if len(shape) > 1:
      return jax.random.normal(keys[name], shape) / shape[-2] ** 0.5
    return jnp.full(shape, float(name == "scale"))

  return {name: leaf(name, of.shape) for name, of in shapes.items()}


def looped(width):
  """Layers in a scan, inside of a remat, with a bias and an attention between activations."""

  @jax.checkpoint
  def layer(h, w):
    h = h + jnp.tanh(h @ w)
    return h + (h @ h.T / h.shape[-1]) @ h * 0, None

  apply = lambda p, x: lax.scan(layer, x @ p["a"], p["w"])[0] @ p["o"]
  return apply, shaped(a=(5, width), w=(3, width, width), o=(width, 3))


@pytest.mark.slow
def test_sizes_are_those_of_the_products():
  """Against the same numbers computed in the open, before and after a step, in loops too."""
  apply, shapes = looped(BASE)
  params, loss, tx = filled(shapes), loss_of(apply), optax.sgd(0.5)
  found = coordinate_check(lambda width: (loss, filled(looped(width)[1])), [BASE, 16], tx, (X,), steps=1)

  def by_hand(p):
    size = lambda y: float(jnp.mean(jnp.abs(y)))
    h, inner, logits, values = X @ p["a"], [], [], []
    first = size(h)
    for w in p["w"]:
      inner.append(size(h @ w))
      h = h + jnp.tanh(h @ w)
      logits.append(size(h @ h.T))
      values.append(size((h @ h.T / h.shape[-1]) @ h))
    return {
      "a": first,
      "w": np.mean(inner),
      "product 1": np.mean(logits),
      "product 2": np.mean(values),
      "o": size(h @ p["o"]),
    }

  after = jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params, X))
  for step, p in enumerate((params, after)):
    want = by_hand(p)
    assert list(found.sizes) == ["a", "w", "product 1", "product 2", "o"]
    for name, sizes in found.sizes.items():
      np.testing.assert_allclose(sizes[0, step], want[name], rtol=1e-4, err_msg=name)


def test_slopes_of_known_powers(tmp_path):
  sizes = {
    "flat": np.ones((3, 2)),
    "grows": np.array([[1, 1], [1, 4], [1, 16]]),
    "shrinks": np.array([[1.0, 1]] * 3) / [[1], [2], [4]],
  }
  found = optax_ext.CoordinateCheck((8, 16, 32), sizes, 0.1)
  assert found.slopes() == pytest.approx({"flat": 0, "grows": 2, "shrinks": -1})
  assert found.slopes(0) == pytest.approx({"flat": 0, "grows": 0, "shrinks": -1})
  assert (found.growing, found.shrinking) == (["grows"], ["shrinks"])
  assert found.verdict() == "1 of 3 products grow with width (grows) and 1 of 3 products shrink with width (shrinks)."
  assert str(found).splitlines()[2].split() == ["grows", "1", "4", "16", "+2.00", "+0.00"]
  found.plot(tmp_path / "check.png")
  assert (tmp_path / "check.png").stat().st_size > 5_000
  nan = optax_ext.CoordinateCheck((8, 16), {"a": np.array([[1.0], [np.nan]])}, 0.1)
  assert nan.growing == ["a"]
  assert nan.verdict() == "1 of 1 products are not finite (a): take a lower rate."


@pytest.mark.heavy
def test_the_rule_makes_activations_flat():
  loss, widths = loss_of(mlp(BASE)[0]), [16, 128]
  new = lambda width: filled(mlp(width)[1])
  base = structure_from_model(loss, new(16), X)
  build = lambda width: (loss, rescale_init(new(width), structure_from_model(loss, new(width), X), base))
  standard = coordinate_check(lambda width: (loss, new(width)), widths, optax.adam(0.03), (X,))
  flat = coordinate_check(
    build, widths, lambda s: optax_ext.caadam(0.03, rule=MaximalUpdate(base), structure=s), (X,), tolerance=0.2
  )
  assert {"h", "o"} <= set(standard.growing)
  assert standard.slopes()["o"] > 0.4
  assert flat.growing == []
  assert "keep their size" in flat.verdict() or flat.shrinking


@pytest.mark.slow
def test_sizes_are_means_over_seeds():
  loss, seen = loss_of(mlp(BASE)[0]), []

  def build(width, seed):
    seen.append((width, seed))
    return loss, jax.tree.map(lambda leaf: (1 + seed) * leaf, filled(mlp(width)[1]))

  of = lambda build, seeds=None: coordinate_check(build, [8, 16], optax.sgd(0.0), (X,), steps=1, seeds=seeds)
  got, first = of(build, 2), of(lambda width: build(width, 0))
  second = of(lambda width: build(width, 1))
  assert seen[:4] == [(8, 0), (8, 1), (16, 0), (16, 1)]
  for name, sizes in got.sizes.items():
    np.testing.assert_allclose(sizes, (first.sizes[name] + second.sizes[name]) / 2, rtol=1e-6)
  with pytest.raises(ValueError, match="seeds must be a whole number of at least 1, but was 0"):
    of(build, 0)


@pytest.mark.slow
def test_wrong_arguments_of_the_check():
  loss = loss_of(mlp(BASE)[0])
  build = lambda width: (loss, filled(mlp(width)[1]))
  for widths in ([8], [16, 8], [8, 8]):
    with pytest.raises(ValueError, match="widths must be two or more, in rising order, but were"):
      coordinate_check(build, widths, optax.sgd(1.0), (X,))
  with pytest.raises(ValueError, match="steps must be a whole number of at least 1, but was 0"):
    coordinate_check(build, [8, 16], optax.sgd(1.0), (X,), steps=0)
  other = lambda width: build(width) if width == 8 else (loss_of(looped(8)[0]), filled(looped(width)[1]))
  with pytest.raises(ValueError, match=r"The model of width 16 has the products .*: change nothing but the width"):
    coordinate_check(other, [8, 16], optax.sgd(1.0), (X,))
  params = filled(mlp(8)[1])
  wrong = {
    "optimizer must be an optax transformation, or a function": (build, None, (X,)),
    r"build\(width\) must return a function and its parameters": (lambda width: loss, optax.sgd(1.0), (X,)),
    "must be arrays, but 'f' are none: filter them out": (lambda width: (loss, {"f": jnp.tanh}), optax.sgd(1.0), (X,)),
    "batch must be a tuple of what loss takes after the parameters, but was a ": (build, optax.sgd(1.0), X),
    "batch must hold arrays and numbers, but has True: close over it": (build, optax.sgd(1.0), (X, True)),
  }
  for message, (built, optimizer, batch) in wrong.items():
    with pytest.raises(TypeError, match=message):
      coordinate_check(built, [8, 16], optimizer, batch)
  flat = lambda width: (lambda p, x: sum(jnp.sum(leaf) for leaf in p.values()), params)
  with pytest.raises(ValueError, match="loss has no product outside of cond and while_loop"):
    coordinate_check(flat, [8, 16], optax.sgd(1.0), (X,))
