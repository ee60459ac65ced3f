"""Puts deliberate errors into the library, one at a time, and sees whether the tests notice each.

    nice -n 5 python benchmarks/mutants.py > benchmarks/results/mutants.md
    python benchmarks/mutants.py [--list] [name or group ...]

A mutant is a small edit of one file: the wrong line that someone might write. The script works on a copy of the
checkout in a temporary folder. It runs the named tests on the unchanged copy first, where all must pass. Then it makes
one edit, runs that mutant's tests alone, and takes the edit back. One process runs at a time.

A mutant is noticed if a test fails. A test that cannot be collected notices nothing. The script ends non-zero if a
mutant is not noticed, if its old text does not occur exactly once in its file, or if a test fails without any edit.
"""

import argparse
import datetime
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import optax

ROOT = pathlib.Path(__file__).parents[1]
COPIED = ("optax_ext", "tests", "examples", "benchmarks", "pyproject.toml", "README.md")
LIMIT = 300  # seconds for one run of pytest, in which an edit may have made an endless loop


class Mutant(NamedTuple):
  """A deliberate error.

  Attributes:
    path: The file, below optax_ext/.
    old: Text that occurs in it once.
    new: What replaces it.
    tests: The tests, below tests/, of which one at least must fail.
  """

  path: str
  old: str
  new: str
  tests: list[str]


def of(file: str, *names: str) -> list[str]:
  """Tests of one file, by what follows `test_` in their names."""
  return [f"{file}::test_{name}" for name in names]


GAINS, DEBIAS, MOMENTS = (f"moments/test_{name}.py" for name in ("gains", "debias", "scale_by_moments"))
ROUNDING, CODES = "memory/test_rounding.py", "memory/test_quantize.py"
STRESS, VECTORS, OPTIMIZERS = "test_stress.py", "sphere/test_vectors.py", "test_optimizers.py"
STRUCTURE, NAMES, PATHS = "network/test_structure.py", "network/test_names.py", "common/test_paths.py"
WIDTH, LAYER_DECAY, CONDITIONS = "network/test_width.py", "network/test_layer_decay.py", "sphere/test_conditions.py"
READER, SHARDING, CONVERT = "network/test_reader.py", "run/test_sharding.py", "run/test_checkpoints.py"

MUTANTS = {
  # From a gradient to a direction
  "gains/adamnx-one-step-late": Mutant(
    "_moments/gains.py",
    "jnp.exp(high * (t - 1)) * (1 + low * (t - 1))",
    "jnp.exp(high * t) * (1 + low * t)",
    of(GAINS, "first_value_is_kept[adamnx]", "adamnx_as_printed"),
  ),
  "gains/adamnx-sign": Mutant(
    "_moments/gains.py",
    "two_floats.split((1 - b2) * math.log(b2))",
    "two_floats.split(-(1 - b2) * math.log(b2))",
    of(GAINS, "adamnx_as_printed"),
  ),
  "gains/adamnx-in-one-float": Mutant(
    "_moments/gains.py", " * (1 + low * (t - 1)) * ", " * ", of(GAINS, "gain_accuracy[adamnx-eager]")
  ),
  "gains/adam-t-off-by-one": Mutant(
    "_moments/gains.py",
    "(1 - b) / one_minus_decay_power(b, t)",
    "(1 - b) / one_minus_decay_power(b, t + 1)",
    of(GAINS, "average_with_adam_gain_is_debiased_adam"),
  ),
  "gains/power-by-subtraction": Mutant(
    "_moments/gains.py",
    "return -jnp.expm1(_time(t) * _log(b))",
    "return 1 - jnp.exp(_time(t) * _log(b))",
    of(GAINS, "gain_accuracy[adam-eager]"),
  ),
  "debias/d1-and-d2-swapped": Mutant(
    "_moments/debias.py",
    "1 / c1, p2 / c1, 1 / c2, p1 / c2",
    "1 / c1, p1 / c1, 1 / c2, p2 / c2",
    of(DEBIAS, "cross_moment"),
  ),
  "debias/d2-of-the-square": Mutant(
    "_moments/debias.py", "_fraction(abs_sq(m), eps)", "_fraction(v, eps)", of(DEBIAS, "cross_moment")
  ),
  "debias/nesterov-without-plus-one": Mutant(
    "_moments/debias.py",
    "one_minus_decay_power(b1, jnp.asarray(t, jnp.result_type(float)) + 1)",
    "one_minus_decay_power(b1, jnp.asarray(t, jnp.result_type(float)))",
    of(DEBIAS, "nesterov_is_nadam[0.9]"),
  ),
  "debias/complex-square": Mutant(
    "_moments/debias.py",
    "x.real**2 + x.imag**2",
    "x.real**2 - x.imag**2",
    of(DEBIAS, "cross_moment_of_complex_means_uses_their_size"),
  ),
  "ratios/eps-inside-the-root": Mutant(
    "_moments/ratios.py",
    "jnp.sqrt(moments.square + eps_root) + eps",
    "jnp.sqrt(moments.square + eps_root + eps)",
    of(MOMENTS, "adam_from_pieces_is_optax_adam", "eps_root"),
  ),
  "ratios/gradient-not-added": Mutant(
    "_moments/ratios.py", "moments.mean + moments.grad", "moments.mean", of(DEBIAS, "nesterov_is_nadam[0.9]")
  ),
  "ratios/no-floor": Mutant(
    "_moments/ratios.py",
    "jnp.maximum(denominator, jnp.finfo(denominator.dtype).tiny ** 0.5)",
    "denominator",
    of(MOMENTS, "zero_gradients_give_zero_updates[0.0-float32]"),
  ),
  "transform/w1-for-w2": Mutant(
    "_moments/transform.py",
    "squared, jnp.asarray(w2, real)",
    "squared, jnp.asarray(w1, real)",
    of(MOMENTS, "adam_from_pieces_is_optax_adam"),
  ),
  "transform/count-from-0": Mutant(
    "_moments/transform.py",
    "w1, w2, debiased = mean_gain(t),",
    "w1, w2, debiased = mean_gain(state.count),",
    of(MOMENTS, "step_is_counted_from_one"),
  ),
  "transform/overflowed-average-goes-on": Mutant(
    "_moments/transform.py",
    "return jax.lax.select(_is_finite(average), average + weight * (value - average), average)",
    "return average + weight * (value - average)",
    of(MOMENTS, "extreme_gradients_never_become_nan[1e+30]"),
  ),
  "transform/overflowed-square-steps": Mutant(
    "_moments/transform.py",
    "overflowed = (v == jnp.inf) & _is_finite(m)",
    "overflowed = jnp.zeros_like(v, bool) & _is_finite(m)",
    of(STRESS, "every_pair_of_extremes_compiled_and_not[exadam-0]"),
  ),
  "transform/underflowed-gain": Mutant(
    "_moments/transform.py",
    "return jnp.maximum(weight, jnp.finfo(weight.dtype).tiny)",
    "return weight",
    of(STRESS, "every_pair_of_extremes_compiled_and_not[adamnx-1000000]"),
  ),
  "log-step/count-off-by-one": Mutant(
    "_moments/log_step.py", "(_time(count) + 2)", "(_time(count) + 1)", of(GAINS, "log_step_size")
  ),
  "dtypes/updates-not-cast": Mutant(
    "_common/dtypes.py",
    "jnp.asarray(update, leaf_dtype(leaf)), updates, like)",
    "jnp.asarray(update), updates, like)",
    of(MOMENTS, "updates_are_cast_like_the_parameters_or_the_gradients"),
  ),
  "dtypes/arithmetic-in-bfloat16": Mutant(
    "_common/dtypes.py",
    "jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)",
    "jnp.finfo(dtype).bits >= 32 else dtype",
    of(MOMENTS, "narrow_gradients_are_computed_in_float32[bfloat16]"),
  ),
  # Storage
  "rounding/seed-dropped": Mutant(
    "_memory/rounding.py",
    "jax.random.key(self.seed, impl=THREEFRY)",
    "jax.random.key(0, impl=THREEFRY)",
    of(ROUNDING, "elements_leaves_steps_and_moments_are_independent"),
  ),
  "rounding/path-dropped": Mutant(
    "_memory/rounding.py",
    " ^ jnp.uint32(zlib.crc32(path.encode()))",
    "",
    of(ROUNDING, "elements_leaves_steps_and_moments_are_independent"),
  ),
  "rounding/step-dropped": Mutant(
    "_memory/rounding.py",
    "impl=THREEFRY), t))",
    "impl=THREEFRY), 0))",
    of(ROUNDING, "elements_leaves_steps_and_moments_are_independent"),
  ),
  "rounding/moments-share-their-bits": Mutant(
    "_memory/rounding.py",
    "round_to_bfloat16(v, high >> 16)",
    "round_to_bfloat16(v, high & LOWER)",
    of(ROUNDING, "elements_leaves_steps_and_moments_are_independent"),
  ),
  "rounding/biased-by-half-a-bit": Mutant(
    "_memory/rounding.py",
    "jnp.minimum(magnitude, LARGEST) + bits",
    "jnp.minimum(magnitude, LARGEST) + (bits | 1)",
    of(ROUNDING, "the_mean_over_all_random_numbers_is_exact[False]"),
  ),
  "rounding/carries-to-infinity": Mutant(
    "_memory/rounding.py",
    "jnp.minimum(magnitude, LARGEST) + bits",
    "magnitude + bits",
    of(ROUNDING, "finite_stays_finite_and_the_rest_passes"),
  ),
  "codes/scale-off": Mutant(
    "_memory/codes.py", "(1 - 0.45 / 2 **", "(1 - 0.5 / 2 **", of(CODES, "the_largest_number_of_a_block_is_kept")
  ),
  "codes/ends-of-intervals": Mutant(
    "_memory/codes.py",
    "jnp.abs(signed) + 0.5, jnp.int32",
    "jnp.abs(signed), jnp.int32",
    of(CODES, "numbers_are_those_of_the_table"),
  ),
  "codes/not-the-nearest-between-decades": Mutant(
    "_memory/codes.py", "place - decade < 0.2", "place - decade < 0.5", of(CODES, "codes_are_the_nearest")
  ),
  "codes/small-squares-vanish": Mutant(
    "_memory/codes.py", "x_ > 0 if dtype == jnp.uint8 else 0", "0", of(CODES, "codes_are_the_nearest")
  ),
  # ND-Adam
  "sphere/projection-dropped": Mutant(
    "_sphere/transforms.py",
    "return g - coefficient(total(_product(g, w)), total(_product(w, w))) * w",
    "return g",
    of(VECTORS, "projection_of_vectors_that_are_not_unit"),
  ),
  "sphere/projection-of-unit-vectors-alone": Mutant(
    "_sphere/transforms.py",
    "return g - coefficient(total(_product(g, w)), total(_product(w, w))) * w",
    "return g - total(_product(g, w)) * w",
    of(VECTORS, "projection_of_vectors_that_are_not_unit"),
  ),
  "sphere/normalisation-dropped": Mutant(
    "_sphere/transforms.py",
    "return on_sphere(w + u, sum_over(along, names_of(path, update))) - w",
    "return u",
    of(VECTORS, "renormalised_vectors_have_unit_length"),
  ),
  "sphere/sums-over-all-axes": Mutant(
    "_sphere/transforms.py",
    "jnp.sum(x, axes, keepdims=True)",
    "jnp.sum(x, keepdims=True)",
    of(VECTORS, "per_vector_sums"),
  ),
  "sphere/negative-axes": Mutant(
    "_sphere/axes.py",
    "tuple(sorted({axis % ndim for axis in value}))",
    "tuple(sorted(set(value)))",
    of(VECTORS, "wrong_axes"),
  ),
  "sphere/no-factor-2-in-the-square": Mutant(
    "_sphere/step.py",
    "+ 2 * w1 * keep * mg +",
    "+ w1 * keep * mg +",
    of("sphere/test_one_pass.py", "a_mean_that_is_not_tangent"),
  ),
  "nd-adam/rate-for-vectors": Mutant(
    "_sphere/spec.py",
    "optax.masked(optax.scale_by_learning_rate(self.vector_rate), vectors)",
    "optax.masked(optax.scale_by_learning_rate(self.rate), vectors)",
    of(OPTIMIZERS, "scalars_of_nd_adam_take_adams_step"),
  ),
  "nd-adam/vector-rate-for-scalars": Mutant(
    "_sphere/spec.py",
    "optax.masked(optax.scale_by_learning_rate(self.rate), scalars)",
    "optax.masked(optax.scale_by_learning_rate(self.vector_rate), scalars)",
    of(OPTIMIZERS, "scalars_of_nd_adam_take_adams_step"),
  ),
  "nd-adam/vectors-no-faster": Mutant(
    "_optimizers.py",
    "vector_learning_rate = _times(50, learning_rate)",
    "vector_learning_rate = learning_rate",
    of(OPTIMIZERS, "vector_learning_rate_follows_a_schedule"),
  ),
  # What an optimizer knows of the network
  "rules/mean-for-median": Mutant(
    "_network/rules.py", "float(np.median(counts))", "float(np.mean(counts))", of(STRUCTURE, "published_network")
  ),
  "rules/always-signed": Mutant(
    "_network/rules.py", "(sigma if self.signed else abs(sigma))", "sigma", of(STRUCTURE, "published_network")
  ),
  "rules/depth-from-1": Mutant(
    "_network/rules.py", "(deepest - (1 + depth))", "(deepest - depth)", of(STRUCTURE, "published_network", "by_depth")
  ),
  "rules/a-stack-counts-once": Mutant(
    "_network/rules.py",
    "for _ in range(np.size(facts.depth))",
    "for _ in range(1)",
    of(STRUCTURE, "scanned_layers_get_one_scale_each"),
  ),
  "by-name/order-of-letters": Mutant(
    "_network/by_name.py",
    "order = sorted(leaves, key=natural_key)",
    "order = sorted(leaves)",
    of(STRUCTURE, "numbered_layers_count_naturally"),
  ),
  "by-name/torch-weights-the-other-way": Mutant(
    "_network/by_name.py",
    'axes[1:] if name.word == "weight" else axes[:-1]',
    "axes[:-1]",
    of(STRUCTURE, "contracting_axes_by_name_and_shape"),
  ),
  "by-name/marks-of-biases": Mutant(
    "_network/by_name.py", 'for same in ("marks", "wrapped")', 'for same in ("wrapped",)', [NAMES]
  ),
  "paths/params-stays": Mutant("_common/paths.py", "    path = path[1:]\n", "    pass\n", of(PATHS, "path_string")),
  "paths/numbers-as-letters": Mutant(
    "_common/paths.py", '(1, int(part), "")', "(1, 0, part)", of(PATHS, "natural_order_counts")
  ),
  "paths/boxes-have-names": Mutant(
    "_common/paths.py", "(*path, *below[1:])", "(*path, *below)", of(PATHS, "names_at_init_and_update_agree_in_flax")
  ),
  # The reader of networks
  "reader/roles-swapped": Mutant(
    "_network/jaxpr/products.py",
    "return Product(out, result, (roles[0], roles[1]), 1, macs)",
    "return Product(out, result, (roles[1], roles[0]), 1, macs)",
    of(READER, "facts"),
  ),
  "reader/depth-not-increased": Mutant(
    "_network/jaxpr/products.py",
    "return Active(depth + 1, source)",
    "return Active(depth, source)",
    of(READER, "facts"),
  ),
  "reader/what-contracts-nothing-is-a-layer": Mutant(
    "_network/jaxpr/products.py",
    "  if contracts(product):\n    return",
    "  if True:\n    return",
    of(READER, "a_product_that_contracts_nothing_is_no_layer"),
  ),
  "reader/loops-never-reversed": Mutant(
    "_network/jaxpr/control.py",
    'indices = range(length)[::-1] if eqn.params["reverse"] else range(length)',
    "indices = range(length)",
    of(READER, "a_scanned_stack_is_its_layers_unrolled"),
  ),
  "reader/loops-over-layers-count-once": Mutant(
    "_network/jaxpr/control.py",
    "if once is None or once.over_layers:",
    "if once is None:",
    of(READER, "a_scanned_stack_is_its_layers_unrolled"),
  ),
  "reader/rows-stacked-with-step-1": Mutant(
    "_network/jaxpr/axes.py",
    "front = Dim((Factor(axis, steps.pop(), len(rows)),), 0, len(rows))",
    "front = Dim((Factor(axis, 1, len(rows)),), 0, len(rows))",
    of(READER, "a_scanned_stack_is_its_layers_unrolled"),
  ),
  "reader/batch-axis-not-stacked": Mutant(
    "_network/jaxpr/summarize.py",
    "self.stacked = tuple(sorted({*self.scanned, *batch, *(copies - set(self.contracting))}))",
    "self.stacked = tuple(sorted({*self.scanned, *(copies - set(self.contracting))}))",
    of(READER, "facts", "a_weight_that_an_input_chooses_is_a_layer"),
  ),
  "reader/copies-not-stacked": Mutant(
    "_network/jaxpr/summarize.py",
    "copies = {axis for axis, along in use.axes.items() if axis < first and along and all(a.is_copy for a in along)}",
    "copies = set()",
    of(READER, "facts"),
  ),
  "reader/copies-not-passed-on": Mutant(
    "_network/jaxpr/domain.py",
    'self.kind == "copy" or self.copied or (self.parent is not None and self.parent.is_copy)',
    'self.kind == "copy" or self.copied',
    of(READER, "biases_of_copies_after_a_layer_that_they_share"),
  ),
  "reader/shifts-of-anything": Mutant(
    "_network/jaxpr/products.py",
    "(x.origin or x) is not (y.origin or y) or ",
    "",
    of(READER, "learned_weights_of_two_streams_are_no_layer"),
  ),
  "reader/macs-of-one-shift": Mutant(
    "_network/jaxpr/products.py",
    "product.macs * (1 + len(node.members)) * reader.times",
    "product.macs * reader.times",
    of(READER, "a_depthwise_convolution_by_shifts"),
  ),
  "reader/lookups-are-layers": Mutant(
    "_network/jaxpr/products.py",
    "if not contracted or (x.scaled is not None and not free):",
    "if not contracted:",
    of(READER, "two_embeddings_multiplied_are_no_layer"),
  ),
  "reader/backward-flag-dropped": Mutant(
    "_network/jaxpr/reader.py",
    "backward=self.backward or is_backward(eqn)",
    "backward=self.backward",
    of(READER, "derivatives_have_no_layers"),
  ),
  "reader/merge-ignores-picked-rows": Mutant(
    "_network/jaxpr/axes.py",
    "    and all(axis in whole or at(smaller, axis) == at(larger, axis) for axis in smaller.placed | smaller.picked)\n",
    "",
    of(READER, "several_slices_of_a_stack_in_one_weight"),
  ),
  "reader/positions-are-biases": Mutant(
    "_network/jaxpr/summarize.py",
    'any(a.kind == "place" and not a.is_copy for along',
    'any(a.kind == "nothing" and not a.is_copy for along',
    of(READER, "positions_are_no_bias"),
  ),
  "reader/any-statistic-normalises": Mutant(
    "_network/jaxpr/elementwise.py",
    "by.spread.node is node and by.spread.kind == wanted",
    "by.spread.node is node",
    of(READER, "whether_a_normaliser_follows_each_unit"),
  ),
  "reader/penalties-have-depths": Mutant(
    "_network/jaxpr/summarize.py",
    'uses = [use for use in uses if use.kind in ("product", "lookup")]',
    "pass",
    of(READER, "a_determinant_beside_the_layer"),
  ),
  # A training run's state
  "convert/factor-inverted": Mutant(
    "_run/convert.py",
    "new_bias / jnp.where(t > 0, bias, 1)",
    "bias / jnp.where(t > 0, new_bias, 1)",
    of(CONVERT, "other_decays"),
  ),
  "convert/schedules-start-again": Mutant(
    "_run/convert.py",
    "return node._replace(count=_with_value(node.count, count))",
    "return node",
    of(CONVERT, "schedules_go_on"),
  ),
  "sharding/axis-of-size-1-is-split": Mutant(
    "_run/sharding.py",
    "name if fits(name, n, whole) else None for",
    "name for",
    of(SHARDING, "state_lives_where_its_parameters_live[nd_adam]"),
  ),
  "sharding/parts-that-do-not-divide": Mutant(
    "_run/sharding.py",
    "(n > 1 and n % _parts(sharding.mesh, name) == 0)",
    "n > 1",
    of(CODES, "scales_of_blocks_live_with_their_blocks[64--1-of_scale2]"),
  ),
  # Rules that read the network
  "width/hidden-is-not-scaled": Mutant(
    "_network/width.py",
    'return 1 / of.fan_in if of.role in ("hidden", "output") else 1.0',
    'return 1 / of.fan_in if of.role == "output" else 1.0',
    of(WIDTH, "scales_are_those_of_the_table", "the_rule_makes_activations_flat"),
  ),
  "width/whole-fan-in": Mutant(
    "_network/width.py",
    "(leaf / math.sqrt(of.fan_in))",
    "(leaf / of.fan_in)",
    of(WIDTH, "rescaled_initialisations"),
  ),
  "width/inputs-are-outputs": Mutant(
    "_network/width.py",
    "if axis not in along)",
    "if axis not in along[1:])",
    of(WIDTH, "scales_are_those_of_the_table"),
  ),
  "width/tied-is-hidden": Mutant(
    "_network/width.py",
    'if "lookup" in facts.ways():',
    'if "lookup" in facts.ways() and not along:',
    of(WIDTH, "scales_are_those_of_the_table[gpt, tied]"),
  ),
  "coordinates/slope-upside-down": Mutant(
    "_network/coordinate_check.py",
    "np.polyfit(width, values, 1)",
    "np.polyfit(values, width, 1)",
    of(WIDTH, "slopes_of_known_powers"),
  ),
  "coordinates/sizes-of-one-iteration": Mutant(
    "_network/jaxpr/record.py",
    "{at: jnp.mean(values) for at, values",
    "{at: values[0] for at, values",
    of(WIDTH, "sizes_are_those_of_the_products"),
  ),
  "layer-decay/head-is-a-block": Mutant(
    "_network/layer_decay.py",
    "self.rate ** (n + 1 - i)",
    "self.rate ** (n - i)",
    of(LAYER_DECAY, "scales_are_those_of_the_published_recipe"),
  ),
  "by-path/last-expression": Mutant(
    "_network/rules.py",
    "for expression, factor in self.factors.items() if re.search",
    "for expression, factor in reversed(self.factors.items()) if re.search",
    of(STRUCTURE, "factors_by_path"),
  ),
  # ND-Adam's conditions
  "conditions/longest-alone": Mutant(
    "_sphere/conditions.py",
    "if not 1 - TOLERANCE <= low <= high <= 1 + TOLERANCE]",
    "if not high <= 1 + TOLERANCE]",
    of(CONDITIONS, "one_vector_of_another_length_gets_a_word"),
  ),
  "conditions/biases-too": Mutant(
    "_sphere/axes.py",
    'given = lambda path, leaf: axes if jnp.ndim(leaf) > 1 or path == "" else None',
    "given = lambda path, leaf: axes",
    of(CONDITIONS, "one_tuple_for_all_makes_no_vectors_of_biases"),
  ),
  "conditions/all-are-normalised": Mutant(
    "_sphere/conditions.py",
    "loose = [path for path in vectors if not known[path].normalised]",
    "loose = [path for path in vectors if known[path].normalised]",
    of(CONDITIONS, "units_that_nothing_normalises_get_a_word"),
  ),
}


def chosen(names: list[str]) -> dict[str, Mutant]:
  """The mutants of these names and groups, all by default.

  Raises:
    SystemExit: a name is of none.
  """
  known = {name: [name] for name in MUTANTS}
  for name in MUTANTS:
    known.setdefault(name.partition("/")[0], []).append(name)
  if unknown := [name for name in names if name not in known]:
    raise SystemExit(f"No mutant and no group is called {', '.join(unknown)}: --list shows all.")
  wanted = {name for given in names or MUTANTS for name in known[given]}
  return {name: mutant for name, mutant in MUTANTS.items() if name in wanted}


def copy_checkout(folder: pathlib.Path) -> None:
  """Copies what the tests need, without anything compiled."""
  for name in COPIED:
    source = ROOT / name
    if source.is_dir():
      shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results", ".*"))
    else:
      shutil.copy(source, folder / name)


def python(folder: pathlib.Path, *args: str) -> tuple[int | None, str]:
  """Runs the interpreter in the copy. Gives its exit status, `None` after too long a time, and what it printed."""
  path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
  # Bytecode is kept by the second and the size of a file: two edits of one file may have both in common.
  variables = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, *args]
  try:
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=LIMIT)
  except subprocess.TimeoutExpired:
    return None, f"more than {LIMIT} s"
  return done.returncode, done.stdout + done.stderr


def run_tests(folder: pathlib.Path, tests: list[str]) -> tuple[int | None, str]:
  """Runs some tests until one fails."""
  files = [f"tests/{test}" for test in tests]
  return python(folder, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files)


def verdict(folder: pathlib.Path, mutant: Mutant) -> str:
  """`"yes"` if a test fails with the edit, else why not. Leaves the copy as it was."""
  file = folder / "optax_ext" / mutant.path
  text = file.read_text(encoding="utf-8")
  if (times := text.count(mutant.old)) != 1:
    return f"old text occurs {times} times"
  file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
  try:
    status, log = run_tests(folder, mutant.tests)
  finally:
    file.write_text(text, encoding="utf-8")
  if status in (0, 1):
    return "yes" if status else "no"
  print(log[-2000:], file=sys.stderr)
  return "no: it took too long" if status is None else f"no: pytest ended with {status}"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    "names", nargs="*", metavar="name", help="mutants or groups (what stands before /); all by default"
  )
  parser.add_argument("--list", action="store_true", help="show names, files and tests, and run nothing")
  options = parser.parse_args()
  mutants = chosen(options.names)
  if options.list:
    for name, mutant in mutants.items():
      print(f"{name}: {mutant.path}; {' '.join(mutant.tests)}")
    return
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary).resolve()
    copy_checkout(folder)
    _, imported = python(folder, "-c", "import optax_ext; print(optax_ext.__file__)")
    if not pathlib.Path(imported.strip()).is_relative_to(folder):
      raise SystemExit(f"Python imports optax_ext from {imported.strip()}, but not from the copy in {folder}.")
    begin = time.time()
    tests = list(dict.fromkeys(test for mutant in mutants.values() for test in mutant.tests))
    status, log = run_tests(folder, tests)
    if status != 0:
      raise SystemExit(f"Not all tests pass without an edit:\n{log[-3000:]}")
    versions = f"Python {platform.python_version()}, jax {jax.__version__}, optax {optax.__version__}"
    print(f"`python benchmarks/mutants.py`, {datetime.date.today()}, {versions}, CPU\n")
    print(f"Without an edit all tests of the table pass, in {time.time() - begin:.0f} s.\n")
    print("| mutant | file | noticed | seconds |\n|---|---|---|---|", flush=True)
    verdicts = []
    for name, mutant in mutants.items():
      begin = time.time()
      verdicts.append(verdict(folder, mutant))
      print(f"| {name} | {mutant.path} | {verdicts[-1]} | {time.time() - begin:.0f} |", flush=True)
  noticed = verdicts.count("yes")
  print(f"\n{noticed} of {len(verdicts)} mutants are noticed.")
  raise SystemExit(noticed < len(verdicts))


if __name__ == "__main__":
  main()
