"""launch.performance.kernels: what a profile's kernels are called, and how their times add up."""

from launch.performance import kernels
from launch.performance.kernels import Kernel

PROGRAM = """
%fused (p: f32[2]) -> f32[2] {
  ROOT %mul.3 = f32[2]{0} multiply(%p, %p), metadata={op_name="jit(step)/inner/mul"}
}
ENTRY %main {
  %loop_multiply_fusion.4 = bf16[12,8]{1,0} fusion(%x), kind=kLoop, \
metadata={op_name="jit(step)/transpose(jvp())/while/body/block/mul"}
  ROOT %copy.1 = f32[] copy(%y)
}
"""


def test_kernels_are_sorted_by_what_they_are_called():
  named = {
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16": "attention",
    "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT": "matrix products",
    "gemm_fusion_dot_139": "matrix products",
    "memcpy128": "copies",
    "ncclDevKernel_AllReduce": "collectives",
    "input_reduce_fusion_5": "reductions",
    "loop_add_fusion": "element by element and other",
  }
  assert {name: Kernel(name, 1.0).kind for name in named} == named


def test_a_kernel_of_the_compiler_is_found_in_the_program_by_its_name():
  found = kernels.sources(PROGRAM)
  assert found["loop_multiply_fusion_4"] == "bf16[12,8] block/mul"
  assert "copy_1" not in found  # has no source


def test_times_are_given_a_step_largest_first():
  text = kernels.text(
    [Kernel("memcpy", 0.002), Kernel("memcpy", 0.004), Kernel("fmha", 0.014)],
    {"memcpy": "from here"},
    steps=2,
  )
  lines = [line.split() for line in text.splitlines()]
  assert lines[0][:2] == ["10.0", "ms"]
  assert [line[:3] for line in lines if "x" in line] == 2 * [
    ["7.00", "ms", "70.0%"],
    ["3.00", "ms", "30.0%"],
  ]
  assert text.count("from here") == 1
