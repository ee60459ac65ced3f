"""The installed jax has no primitive that nobody has classified."""

import subprocess
import sys

import pytest

from optax_ext._common.primitives import ELEMENTWISE, IN_KERNELS, POINTWISE, RANDOM, TRANSPARENT
from optax_ext._network.jaxpr.model import RULES

# Numbers that come from no operand.
SOURCES = "axis_index create_token dim_as_value dimension_size empty empty2 iota platform_index zeros_like"
# Equations that hold the program that they run, which is read.
CALLS = """
  call call_hi_primitive call_hi_primitive_linearized check closed_call composite core_map create_linear
  custom_jvp_call custom_jvp_call_jaxpr custom_lin custom_linear_solve custom_partitioning custom_transpose_call
  custom_vjp_call custom_vjp_call_jaxpr custom_vmap_call eval_jaxpr jit linear_call pjit remat2 remat_opt run_state
  shard_map stage xla_pmap
"""
# Known and not read: of a parameter that meets an input there, the reader says so.
UNREAD = {
  "an order or a place of numbers": "approx_top_k argmax argmin sort top_k",
  "numbers at other places": "broadcast_to tie",
  "windows and reductions by any function": """
    reduce reduce_window reduce_window_max reduce_window_min reduce_window_sum select_and_gather_add
    select_and_scatter select_and_scatter_add
  """,
  "linear algebra": """
    cholesky cholesky_update eig eigh eigh_jacobi fft geqp3 geqrf hessenberg householder_product lu
    lu_pivots_to_permutation ormqr qr schur svd symmetric_product triangular_solve tridiagonal tridiagonal_solve
  """,
  "fused or scaled products": """
    bias_bwd bias_fwd cudnn_fusion dot_product_attention_bwd dot_product_attention_bwd_wrapper
    dot_product_attention_fp8_bwd dot_product_attention_fp8_bwd_wrapper dot_product_attention_fp8_fwd
    dot_product_attention_fp8_fwd_wrapper dot_product_attention_fwd dot_product_attention_fwd_wrapper scaled_dot
    scaled_matmul scaled_matmul_wrapper
  """,
  "exchange between devices": """
    all_gather all_gather_done all_gather_invariant all_gather_reduced all_gather_reduced_start all_gather_start
    all_to_all all_to_all_done all_to_all_start pbroadcast pbroadcast_done pbroadcast_dynamic pbroadcast_start pgather
    ppermute ppermute_done ppermute_start precv preduced psend psum_done psum_invariant_start psum_start
    ragged_all_to_all reduce_scatter reduce_scatter_done reduce_scatter_start reduced_vary_cast reduced_vary_cast_p
    unreduced_psum_start unreduced_reduce_scatter unreduced_reduce_scatter_start vary_unreduced_cast
    vary_unreduced_cast_p
  """,
  "memory, other programs and effects": """
    accum_grad_in_ref addupdate after_all array_ref box_get box_set call_exported debug_callback debug_print dce_sink
    dll_constraint empty_ref ffi_call free_ref freeze from_edtype full_to_shard get infeed inspect_sharding
    io_callback log_extend log_read mutable_array new_box new_log new_ref outfeed pin pure_callback shape_assertion
    shard_to_full swap to_edtype unpin unreachable
  """,
}

LISTED = """
import gc, importlib, jax, jax.extend.core as core
for name in "jax.extend.core.primitives jax.lax.linalg jax.nn jax.numpy.fft jax.random jax.scipy.special".split():
  importlib.import_module(name)
print(*sorted({thing.name for thing in gc.get_objects() if isinstance(thing, core.Primitive)}))
"""


@pytest.mark.slow
def test_every_primitive_is_classified():
  """In a process of its own, where no other package has added primitives."""
  done = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True, check=True)
  installed = set(done.stdout.split())
  assert {"scan", "dot_general", "tanh", "random_bits"} <= installed
  known = {*ELEMENTWISE, *RANDOM, *RULES, *SOURCES.split(), *CALLS.split(), *" ".join(UNREAD.values()).split()}
  assert installed <= known, (
    f"classify {sorted(installed - known)} in optax_ext/_common/primitives.py, as a rule of the reader, or here"
  )


def test_classes_lie_in_each_other():
  assert TRANSPARENT <= POINTWISE <= ELEMENTWISE
  assert IN_KERNELS <= POINTWISE
  assert not ELEMENTWISE & RANDOM
