"""Adam's successors, taken apart into optax transformations."""

from optax_ext._common.dtypes import cast_updates
from optax_ext._common.paths import label_paths, path_string
from optax_ext._memory.join_weights import join_weights, split
from optax_ext._memory.quantize import QuantizedState, quantize_state
from optax_ext._memory.residuals import SplitWeightsState
from optax_ext._memory.rounding import Stochastic, stochastic
from optax_ext._memory.split_weights import split_weights
from optax_ext._moments.debias import Debias, Moments, cross_moment, nesterov, standard
from optax_ext._moments.gains import Gain, adafactor_gain, adam_gain, adamnx_gain, adax_gain, constant_gain
from optax_ext._moments.log_step import log_step_size
from optax_ext._moments.ratios import Ratio, Square, accelerated_ratio, adam_ratio, elementwise
from optax_ext._moments.transform import scale_by_moments
from optax_ext._network.by_name import structure_from_params
from optax_ext._network.by_trace import structure_from_model
from optax_ext._network.coordinate_check import CoordinateCheck, coordinate_check
from optax_ext._network.facts import LeafFacts
from optax_ext._network.layer_decay import LayerDecay
from optax_ext._network.rules import Additive, ByDepth, ByPath, Multiplicative, Product, Rule
from optax_ext._network.structure import Structure
from optax_ext._network.transforms import decay_mask, scale_by_structure
from optax_ext._network.width import MaximalUpdate, rescale_init
from optax_ext._optimizers import adamnx, caadam, exadam, nd_adam
from optax_ext._run.apply import update_and_apply
from optax_ext._run.convert import convert_moments
from optax_ext._run.sharding import state_shardings
from optax_ext._run.state_bytes import ArrayBytes, StateBytes, state_bytes
from optax_ext._run.statistics import LayerStatisticsState, layer_statistics, read_statistics
from optax_ext._sphere.axes import Axes, vector_mask
from optax_ext._sphere.logits import l2_logits
from optax_ext._sphere.transforms import normalize_vectors, per_vector, project_out_params, renormalize_params

__version__ = "0.1.0"

__all__ = [
    # alias: whole optimizers
    "adamnx", "caadam", "exadam", "nd_adam",
    # moments
    "Ratio", "Square", "accelerated_ratio", "adam_ratio", "elementwise", "scale_by_moments",
    # debias
    "Debias", "Moments", "cross_moment", "nesterov", "standard",
    # schedules
    "Gain", "adafactor_gain", "adam_gain", "adamnx_gain", "adax_gain", "constant_gain", "log_step_size",
    # structure
    "Additive", "ByDepth", "ByPath", "LayerDecay", "LeafFacts", "Multiplicative", "Product", "Rule", "Structure",
    "decay_mask", "scale_by_structure", "structure_from_model", "structure_from_params",
    # width: learning rates that transfer to wider models
    "CoordinateCheck", "MaximalUpdate", "coordinate_check", "rescale_init",
    # vectors
    "Axes", "normalize_vectors", "per_vector", "project_out_params", "renormalize_params", "vector_mask",
    # softmax
    "l2_logits",
    # convert, sharding: a run on several machines, and from one optimizer to another
    "LayerStatisticsState", "convert_moments", "layer_statistics", "read_statistics", "state_shardings",
    # rounding, quantize, fused: less memory, and less of it moved
    "ArrayBytes", "QuantizedState", "SplitWeightsState", "StateBytes", "Stochastic", "join_weights", "quantize_state",
    "split", "split_weights", "state_bytes", "stochastic", "update_and_apply",
    # paths, storage
    "cast_updates", "label_paths", "path_string",
]  # fmt: skip


def __dir__() -> list[str]:
  """The public names, without the modules that they come from."""
  return [*__all__, "__version__"]
