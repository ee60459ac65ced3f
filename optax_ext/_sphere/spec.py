"""The specification of ND-Adam's step. The chain, the step in one pass and the kernel are made from it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_ext._common.arguments import Scalar
from optax_ext._common.dtypes import Rounding, Storing, cast_updates, to_nearest
from optax_ext._common.mesh import AxisName
from optax_ext._moments.debias import Debias, Moments, standard
from optax_ext._moments.gains import Gain, constant_gain
from optax_ext._moments.ratios import Ratio, adam_ratio
from optax_ext._moments.transform import scale_by_moments, weight_of_square
from optax_ext._sphere.axes import Axes, resolve_axes, vector_mask
from optax_ext._sphere.transforms import per_vector, project_out_params, renormalize_params

Multiplier = Callable[[jax.Array], jax.Array]
"""A leaf's new second moment -> what its new mean is multiplied by to give the update."""


class States(NamedTuple):
  """The state of ND-Adam's chain, by the names of its links."""

  projection: Any
  moments: Any
  vector_rate: Any
  rate: Any
  renormalization: Any


@dataclasses.dataclass(frozen=True)
class Spec:
  """ND-Adam's ingredients.

  The moments are Adam's, so that a step is linear in the mean: `now` relies on it.

  Attributes:
    b1: Decay rate β₁ of the mean.
    b2: Decay rate β₂ of the square.
    eps: ε, outside the root.
    eps_root: ε̄, inside the root.
    rate: α of the scalars.
    vector_rate: α_v of the vectors.
    axes: The axes of the vectors, in any form.
    axis_name: The mesh axes that split them, inside `jax.shard_map`.
    mu_dtype: Stores m.
    nu_dtype: Stores v.
    rounding: How stored moments are rounded.
  """

  b1: Scalar
  b2: Scalar
  eps: Scalar
  eps_root: Scalar
  rate: optax.ScalarOrSchedule
  vector_rate: optax.ScalarOrSchedule
  axes: Axes
  axis_name: AxisName
  mu_dtype: Any
  nu_dtype: Any
  rounding: Rounding | None

  def gains(self) -> tuple[Gain, Gain]:
    """w₁ and w₂."""
    return constant_gain(self.b1), constant_gain(self.b2)

  def debias(self) -> Debias:
    """Adam's bias correction."""
    return standard(self.b1, self.b2)

  def ratio(self) -> Ratio:
    """Adam's direction."""
    return adam_ratio(self.eps, self.eps_root)

  def chain(self) -> optax.GradientTransformationExtraArgs:
    """ND-Adam as a chain of pieces: its definition. The state is a tuple, of `States`."""
    axes = resolve_axes(self.axes)
    vectors, scalars = vector_mask(axes), vector_mask(axes, vectors=False)
    links = States(
      project_out_params(axes, axis_name=self.axis_name),
      scale_by_moments(
        *self.gains(),
        debias=self.debias(),
        ratio=self.ratio(),
        square=per_vector(axes, axis_name=self.axis_name),
        mu_dtype=self.mu_dtype,
        nu_dtype=self.nu_dtype,
        rounding=self.rounding,
      ),
      optax.masked(optax.scale_by_learning_rate(self.vector_rate), vectors),
      optax.masked(optax.scale_by_learning_rate(self.rate), scalars),
      renormalize_params(axes, axis_name=self.axis_name),
    )
    return cast_updates(optax.chain(*links))

  def now(self, states: States, t: jax.Array) -> "Now":
    """The numbers of step t, which all leaves share; `states` are those before the step."""
    minus_rate, _ = optax.scale_by_learning_rate(self.vector_rate).update(
      jnp.ones([], jnp.result_type(float)), states.vector_rate.inner_state
    )
    (mean_gain, square_gain), debiased, ratio = self.gains(), self.debias()(t), self.ratio()

    def multiplier(v: jax.Array) -> jax.Array:
      """−α_v/c₁/(√(v̂ + ε̄) + ε). A second moment that overflowed allows no step."""
      of_one = ratio(debiased(Moments(jnp.zeros_like(v), jnp.ones_like(v), v)))
      return jnp.where(jnp.isinf(v), 0, jnp.asarray(minus_rate, v.dtype) * of_one)

    storing = self.rounding.at(t) if self.rounding else to_nearest
    return Now(t, (mean_gain(t), weight_of_square(square_gain, t)), multiplier, storing)


class Now(NamedTuple):
  """What a step has from its count t: the gains, the multiplier, how moments are stored."""

  t: jax.Array
  gains: tuple[Any, Any]
  multiplier: Multiplier
  storing: Storing
