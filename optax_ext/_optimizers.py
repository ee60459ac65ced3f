"""The four optimizers, each a chain of a few pieces that reads like its paper."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import optax  # pyright: ignore[reportMissingTypeStubs]

from optax_ext._common.arguments import Scalar, check_number, check_order, check_rate, is_concrete
from optax_ext._common.dtypes import cast_updates
from optax_ext._common.injection import not_schedules, unboxed
from optax_ext._common.mesh import AxisName
from optax_ext._memory.rounding import Stochastic
from optax_ext._moments.debias import cross_moment, standard
from optax_ext._moments.gains import adam_gain, adamnx_gain, constant_gain
from optax_ext._moments.log_step import log_step_size
from optax_ext._moments.ratios import accelerated_ratio, adam_ratio
from optax_ext._moments.transform import scale_by_moments
from optax_ext._network.rules import Multiplicative
from optax_ext._network.structure import Structure, check_structure
from optax_ext._network.transforms import scale_by_structure
from optax_ext._sphere.axes import Axes
from optax_ext._sphere.guessed import with_axes
from optax_ext._sphere.one_pass import in_one_pass
from optax_ext._sphere.spec import Spec

Mask = Any | Callable[[optax.Params], Any] | None


@not_schedules("mask", "mu_dtype", "nu_dtype")
def exadam(
  learning_rate: optax.ScalarOrSchedule,
  b1: Scalar = 0.9,
  b2: Scalar = 0.999,
  eps: Scalar = 1e-8,
  eps_root: Scalar = 0.0,
  mu_dtype: Any = None,
  weight_decay: optax.ScalarOrSchedule = 0.0,
  mask: Mask = None,
  *,
  nu_dtype: Any = None,
  log_step: bool = True,
  rounding: Stochastic | None = None,
  rule: Any = None,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """EXAdam: cross-moment debiasing, gradient acceleration, a logarithmic step size.

      m ← β₁·m + (1−β₁)·g          v ← β₂·v + (1−β₂)·g²          cᵢ = 1 − βᵢᵗ
      d₁ = 1 + β₂ᵗ·v/(v+ε)         d₂ = 1 + β₁ᵗ·m²/(m²+ε)
      m̃ = m/c₁·d₁                  ṽ = v/c₂·d₂                   g̃ = g/c₁·d₁
      θ ← θ − α·½·ln(2(t+1))·(m̃ + g̃)/(√(ṽ + ε̄) + ε) − α·λ·θ

  At Adam's learning rate EXAdam's steps are 7 to 12 times as long as Adam's where gradients are steady, and up to 28
  times where gradients are noise (2 to 16 times without the logarithm). So tune the rate: start at a tenth of Adam's.
  The steps depend on the gradient's scale where |g| is not large against √ε.

  Args:
    learning_rate: α, a number or a schedule of the count.
    b1: Decay rate β₁ of the mean, in [0, 1).
    b2: Decay rate β₂ of the square, in [0, 1).
    eps: ε ≥ 0, in the denominator and in d₁ and d₂.
    eps_root: ε̄ ≥ 0, inside the root; needed to differentiate through an update.
    mu_dtype: Stores m; by default the parameters' dtype.
    weight_decay: λ ≥ 0, a number or a schedule; decoupled, and not multiplied by the logarithm.
    mask: What the decay applies to, as in `optax.adamw`.
    nu_dtype: Stores v; by default float32 for narrower parameters, else their dtype. A bfloat16 parameter then has 6
      bytes of state, where `optax.adamw` has 4; with `jnp.bfloat16` and `rounding=stochastic(seed)` it has 4, too.
    log_step: Whether to use the logarithmic step size of the paper's first version; its second version has none.
    rounding: How moments stored in bfloat16 are rounded: `None` to the nearest, or by chance with `stochastic(seed)`.
    rule: Scales each leaf's step, not its decay, as in `caadam`: `MaximalUpdate(base)` or `LayerDecay(0.75)`, say.
    structure: Facts about the network, for the rule.

  Returns:
    An `optax.GradientTransformationExtraArgs`; updates have the parameters' dtypes.

  Raises:
    TypeError, ValueError: an argument is not as above; a parameter is not of floating or complex numbers (at init);
      `params` is missing (at update, where there is weight decay); two leaves have the same path (at init); gradients,
      state and parameters do not match (at update).

  Warns:
    UserWarning: the numbers look as if decay rates had been given first, as `(0.9, 0.999, 1e-3)`.

  Example:
    >>> import jax.numpy as jnp
    >>> tx, params = exadam(1e-2), jnp.array([1.0, 2.0, 3.0])
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...   updates, state = tx.update(2 * params, state, params)  # the gradient of x²
    ...   params = optax.apply_updates(params, updates)
    ...   print(f"{sum(params**2):.3f}")
    12.710
    11.808
    11.050

  References:
    Adly, `EXAdam: The Power of Adaptive Cross-Moments <https://arxiv.org/abs/2412.20302v1>`_, 2024, Algorithm 1
  """
  check_rate("learning_rate", learning_rate)
  check_number("b1", b1, "[0, 1)")
  check_number("b2", b2, "[0, 1)")
  check_order("exadam", learning_rate, b1, b2)
  return cast_updates(
    optax.chain(
      scale_by_moments(
        constant_gain(b1),
        constant_gain(b2),
        debias=cross_moment(eps=eps),
        ratio=accelerated_ratio(eps, eps_root),
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
        rounding=rounding,
      ),
      optax.scale_by_schedule(log_step_size()) if log_step else optax.identity(),
      *_scaled(rule, structure),
      _decay(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate),
    )
  )


@not_schedules("mask", "mu_dtype", "nu_dtype")
def adamnx(
  learning_rate: optax.ScalarOrSchedule,
  b1: Scalar = 0.9,
  b2: Scalar = 0.99,
  eps: Scalar = 1e-8,
  eps_root: Scalar = 0.0,
  mu_dtype: Any = None,
  weight_decay: optax.ScalarOrSchedule = 0.01,
  mask: Mask = None,
  *,
  nu_dtype: Any = None,
  rounding: Stochastic | None = None,
  rule: Any = None,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """AdamNX: a second-moment decay rate that tends to 1, so that Adam turns into SGD with momentum.

      β₁,ₜ = (β₁ − β₁ᵗ)/(1 − β₁ᵗ)      β₂,ₜ = (1 − β₂^{k(t−1)})/(1 − β₂^{kt}),   k = 1 − β₂
      m ← β₁,ₜ·m + (1−β₁,ₜ)·g          v ← β₂,ₜ·v + (1−β₂,ₜ)·g²
      θ ← θ − α·m/(√(v + ε̄) + ε) − α·λ·θ

  With β₂ = 0.99 the second moment has a time constant of 9,950 steps. After 50,000 steps it is in effect frozen.

  Args:
    learning_rate: α, a number or a schedule of the count.
    b1: β₁, in [0, 1).
    b2: β₂, in (0, 1).
    eps: ε ≥ 0, outside the root.
    eps_root: ε̄ ≥ 0, inside the root; needed to differentiate through an update.
    mu_dtype: Stores m; by default the parameters' dtype.
    weight_decay: λ ≥ 0, a number or a schedule; decoupled.
    mask: What the decay applies to, as in `optax.adamw`; the authors decay weights, not biases or norms.
    nu_dtype: Stores v; by default float32 for narrower parameters, else their dtype. A bfloat16 parameter then has 6
      bytes of state, where `optax.adamw` has 4; with `jnp.bfloat16` and `rounding=stochastic(seed)` it has 4, too.
    rounding: How moments stored in bfloat16 are rounded: `None` to the nearest, or by chance with `stochastic(seed)`.
    rule: Scales each leaf's step, not its decay, as in `caadam`: `MaximalUpdate(base)` or `LayerDecay(0.75)`, say.
    structure: Facts about the network, for the rule.

  Returns:
    An `optax.GradientTransformationExtraArgs`; updates have the parameters' dtypes.

  Raises:
    TypeError, ValueError: an argument is not as above; a parameter is not of floating or complex numbers (at init);
      `params` is missing (at update, where there is weight decay); two leaves have the same path (at init); gradients,
      state and parameters do not match (at update).

  Warns:
    UserWarning: the numbers look as if decay rates had been given first, as `(0.9, 0.999, 1e-3)`.

  Example:
    >>> import jax.numpy as jnp
    >>> tx, params = adamnx(1e-1), jnp.array([1.0, 2.0, 3.0])
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...   updates, state = tx.update(2 * params, state, params)  # the gradient of x²
    ...   params = optax.apply_updates(params, updates)
    ...   print(f"{sum(params**2):.3f}")
    12.803
    11.672
    10.607

  References:
    Zhu et al., `AdamNX: An Adam improvement algorithm based on a novel exponential decay mechanism for the second-order
    moment estimate <https://arxiv.org/abs/2511.13465>`_, 2025, Algorithm 1
  """
  check_rate("learning_rate", learning_rate)
  check_number("b1", b1, "[0, 1)")
  check_order("adamnx", learning_rate, b1, b2)
  return cast_updates(
    optax.chain(
      scale_by_moments(
        adam_gain(b1),
        adamnx_gain(b2),
        ratio=adam_ratio(eps, eps_root),
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
        rounding=rounding,
      ),
      *_scaled(rule, structure),
      _decay(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate),
    )
  )


@not_schedules("mask", "mu_dtype", "nu_dtype")
def caadam(
  learning_rate: optax.ScalarOrSchedule,
  b1: Scalar = 0.9,
  b2: Scalar = 0.999,
  eps: Scalar = 1e-8,
  eps_root: Scalar = 0.0,
  mu_dtype: Any = None,
  weight_decay: optax.ScalarOrSchedule = 0.0,
  mask: Mask = None,
  *,
  rule: Any = Multiplicative(),  # noqa: B008 (frozen)
  structure: Structure | None = None,
  nu_dtype: Any = None,
  rounding: Stochastic | None = None,
) -> optax.GradientTransformationExtraArgs:
  """CaAdam: Adam with a step size for each layer, set by its connections or its depth.

      m ← β₁·m + (1−β₁)·g          v ← β₂·v + (1−β₂)·g²
      m̂ = m/(1 − β₁ᵗ)              v̂ = v/(1 − β₂ᵗ)
      θ ← θ − α·S·m̂/(√(v̂ + ε̄) + ε) − α·λ·θ

  S comes from the rule: `Additive`, `Multiplicative`, `ByDepth` (γ = 0.95, 5 and 1 by default). Look at S before
  training, with `print(structure_from_params(params).table(rule))`.

  Args:
    learning_rate: α, a number or a schedule of the count.
    b1: Decay rate β₁ of the mean, in [0, 1).
    b2: Decay rate β₂ of the square, in [0, 1).
    eps: ε ≥ 0, outside the root. Keras, and so the authors, have 1e-7, optax has 1e-8.
    eps_root: ε̄ ≥ 0, inside the root; needed to differentiate through an update.
    mu_dtype: Stores m; by default the parameters' dtype.
    weight_decay: λ ≥ 0, a number or a schedule; decoupled, and not multiplied by S.
    mask: What the decay applies to, as in `optax.adamw`.
    rule: Makes S of the structure, or is S: a tree of numbers like the parameters. `Multiplicative()` by default.
    structure: Facts about the network; by default `structure_from_params` of the parameters that the optimizer sees.
    nu_dtype: Stores v; by default float32 for narrower parameters, else their dtype. A bfloat16 parameter then has 6
      bytes of state, where `optax.adamw` has 4; with `jnp.bfloat16` and `rounding=stochastic(seed)` it has 4, too.
    rounding: How moments stored in bfloat16 are rounded: `None` to the nearest, or by chance with `stochastic(seed)`.

  Returns:
    An `optax.GradientTransformationExtraArgs`; updates have the parameters' dtypes.

  Raises:
    TypeError, ValueError: an argument is not as above; a parameter is not of floating or complex numbers, or two have
      the same path (at init); the scales or the structure do not match the parameters, or `params` is missing where
      there is weight decay (at update).

  Warns:
    UserWarning: the numbers look as if decay rates had been given first, as `(0.9, 0.999, 1e-3)`; at init, as
      `scale_by_structure`.

  Example:
    >>> import jax.numpy as jnp
    >>> from optax_ext import ByDepth
    >>> params = {"Dense_0": {"kernel": jnp.ones((2, 2))}, "Dense_1": {"kernel": jnp.ones((2, 1))}}
    >>> tx = caadam(0.1, rule=ByDepth())
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> print(updates["Dense_0"]["kernel"][0], updates["Dense_1"]["kernel"][0])
    [-0.14142136 -0.14142136] [-0.1]

  References:
    Genet and Inzirillo, `CaAdam: Improving Adam optimizer using connection aware methods
    <https://arxiv.org/abs/2410.24216>`_, 2024, Equations 15 to 22
  """
  check_rate("learning_rate", learning_rate)
  check_number("b1", b1, "[0, 1)")
  check_number("b2", b2, "[0, 1)")
  check_order("caadam", learning_rate, b1, b2)
  return cast_updates(
    optax.chain(
      scale_by_moments(
        constant_gain(b1),
        constant_gain(b2),
        debias=standard(),
        ratio=adam_ratio(eps, eps_root),
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
        rounding=rounding,
      ),
      scale_by_structure(rule, structure),
      _decay(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate),
    )
  )


@not_schedules("axes", "axis_name", "mu_dtype", "nu_dtype")
def nd_adam(
  learning_rate: optax.ScalarOrSchedule,
  b1: Scalar = 0.9,
  b2: Scalar = 0.999,
  eps: Scalar = 1e-8,
  eps_root: Scalar = 0.0,
  mu_dtype: Any = None,
  *,
  vector_learning_rate: optax.ScalarOrSchedule | None = None,
  axes: Axes = None,
  structure: Structure | None = None,
  nu_dtype: Any = None,
  axis_name: AxisName = None,
  rounding: Stochastic | None = None,
  kernel: str | None = None,
) -> optax.GradientTransformationExtraArgs:
  """ND-Adam: weight vectors of unit length, moved along the sphere, with one second moment each.

      g ← ḡ − (ḡ·w)/(w·w) w        m ← β₁·m + (1−β₁)·g          v ← β₂·v + (1−β₂)·‖g‖²
      m̂ = m/(1 − β₁ᵗ)              v̂ = v/(1 − β₂ᵗ)
      w̄ = w − α_v·m̂/(√(v̂ + ε̄) + ε)                             w ← w̄/‖w̄‖

  Leaves that hold no vectors (biases, norms) take Adam's step with α. Start from `normalize_vectors(params, axes)`, as
  the algorithm does.

  Large leaves take a step in one pass over memory: the chain of pieces needs three. On a TPU such a step moves 32 bytes
  for a float32 parameter, the chain 44. Both agree to rounding. The chain itself steps scalars, complex leaves, leaves
  of fewer than 2¹⁶ elements, leaves with a symbol in their shape (`jax.export`), and vectors that a mesh with explicit
  axes splits.

  The method has a condition: a normaliser of its own (batch norm) follows each unit, so that the length of the unit's
  vector has no effect. `axes=structure_from_model(...).normalised_axes()` finds these units and leaves everything else
  to Adam: output, embeddings, attention, low-rank adapters.

  Anything that changes the update afterwards breaks the unit length: a link after nd_adam, `optax.apply_every`,
  `optax.contrib.schedule_free`. In such a chain let `renormalize_params(axes)` be the last link, outside of all others.

  Args:
    learning_rate: α of the scalars, a number or a schedule of the count.
    b1: Decay rate β₁ of the mean, in [0, 1).
    b2: Decay rate β₂ of the square, in [0, 1).
    eps: ε ≥ 0, outside the root.
    eps_root: ε̄ ≥ 0, inside the root.
    mu_dtype: Stores m; by default the parameters' dtype.
    vector_learning_rate: α_v of the vectors, a number or a schedule; by default 50·α, a schedule included.
    axes: The axes that each vector runs along: a function `axes(path, leaf)` that returns a tuple of ints or `None`, a
      tree of such values like the parameters, or one tuple for all leaves of two or more axes. By default taken from
      `structure`.
    structure: Facts about the network. The vectors are those of all weights, along their contracting axes. By default
      `structure_from_params` of the parameters that the optimizer sees.
    nu_dtype: Stores v; by default float32 for narrower parameters, else their dtype. A bfloat16 vector of n elements
      has 2 + 4/n bytes of state for each.
    axis_name: Inside `jax.shard_map`, the mesh axes that split the vectors: a name, a tuple of names, or a function
      `axis_name(path, leaf)` that returns one or `None`. Under `jax.jit` none is needed.
    rounding: How moments stored in bfloat16 are rounded: `None` to the nearest, or by chance with `stochastic(seed)`.
    kernel: `"pallas"` lets `update_and_apply` step a leaf with one kernel on TPUs, if blocks of whole vectors fit on
      the chip. A warning names the leaves that the kernel does not serve. On a mesh call it inside `jax.shard_map`: XLA
      refuses to partition the kernel where no `jax.set_mesh` tells of the mesh.

  Returns:
    An `optax.GradientTransformationExtraArgs` that needs `params`; updates have the parameters' dtypes.

  Raises:
    TypeError, ValueError: an argument is not as above; axes name one that a leaf does not have; both `axes` and
      `structure` are given; a parameter is not of floating or complex numbers, or two have the same path (at init); the
      structure does not match the parameters; `params` is missing (at update).

  Warns:
    UserWarning: the numbers look as if decay rates had been given first, as `(0.9, 0.999, 1e-3)`; at init,

      - when there are leaves but no vectors, so that all leaves take Adam's step: inside `optax.flatten`, and where
        `optax.masked` or `optax.partition` show nd_adam biases alone;
      - when the axes come from a structure and no normaliser is known to follow the units of a vector;
      - when a vector's length is not within 1% of 1. Inside `jax.jit` lengths are not known, and there is no warning.

  Example:
    >>> import jax.numpy as jnp
    >>> from optax_ext import normalize_vectors
    >>> params = normalize_vectors({"kernel": jnp.array([[3.0, 1.0], [4.0, 1.0]])}, (0,))
    >>> tx = nd_adam(1e-3)
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...   updates, state = tx.update({"kernel": jnp.ones((2, 2))}, state, params)
    ...   params = optax.apply_updates(params, updates)
    ...   w = params["kernel"][:, 0]
    ...   print(f"{w[0]:.3f} {w[1]:.3f}, length {jnp.linalg.norm(w):.3f}")
    0.559 0.829, length 1.000
    0.517 0.856, length 1.000
    0.474 0.880, length 1.000

  References:
    Zhang, Improved Adam Optimizer for Deep Neural Networks, 2018, Algorithm 1; `a longer version
    <https://arxiv.org/abs/1709.04546>`_
  """
  check_rate("learning_rate", learning_rate)
  if vector_learning_rate is None:
    vector_learning_rate = _times(50, learning_rate)
  check_rate("vector_learning_rate", vector_learning_rate)
  check_number("b1", b1, "[0, 1)")
  check_number("b2", b2, "[0, 1)")
  check_order("nd_adam", learning_rate, b1, b2)
  axes, axis_name = unboxed(axes), unboxed(axis_name)
  check_structure(structure)
  if axes is not None and structure is not None:
    raise ValueError("Both axes and structure were given, and each of them says which vectors to normalise: give one.")
  spec = Spec(
    b1=b1,
    b2=b2,
    eps=eps,
    eps_root=eps_root,
    rate=learning_rate,
    vector_rate=vector_learning_rate,
    axes=None,
    axis_name=axis_name,
    mu_dtype=mu_dtype,
    nu_dtype=nu_dtype,
    rounding=rounding,
  )

  def make(axes: Axes) -> optax.GradientTransformationExtraArgs:
    return in_one_pass(dataclasses.replace(spec, axes=axes), kernel)

  return with_axes(make, structure if axes is None else axes)


def _scaled(rule: Any, structure: Structure | None) -> list[optax.GradientTransformation]:
  """The link of a rule; without one there is none, so that states have the layout that they had before."""
  if rule is None and structure is not None:
    raise ValueError("A structure was given without a rule, which would read it: give rule=, or leave structure out.")
  return [] if rule is None else [scale_by_structure(rule, structure)]


def _decay(weight_decay: optax.ScalarOrSchedule, mask: Mask) -> optax.GradientTransformation:
  """Decoupled weight decay. Without any (0 and no mask) the state is the same, and no parameters are needed."""
  check_rate("weight_decay", weight_decay)
  if mask is None and is_concrete(weight_decay) and weight_decay == 0:
    return optax.identity()
  if mask is False:
    warnings.warn(
      "mask=False lets nothing decay. Was mask a function? optax.inject_hyperparams calls one of a partial or a lambda "
      "with the step count: name it in static_args=('mask',).",
      stacklevel=3,
    )
  decay = optax.with_extra_args_support(optax.add_decayed_weights(weight_decay, unboxed(mask)))

  def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
    if params is None:
      raise ValueError(
        "Weight decay needs the parameters: call tx.update(grads, state, params), or give weight_decay=0.0."
      )
    return decay.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(decay.init, update)


def _times(factor: float, rate: optax.ScalarOrSchedule) -> optax.ScalarOrSchedule:
  return (lambda count: factor * rate(count)) if callable(rate) else factor * rate
