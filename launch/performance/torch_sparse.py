"""The operations over sparse voxels in plain PyTorch, eager and fp32: what `launch.benchmark
--sparse --torch` measures ours against.

Written the way sparse code without a kernel library is: a convolution multiplies for each tap the
voxels that have that neighbour and adds the products up where they belong; attention is PyTorch's
fused kernel, window by window or over the object. Tables are made beforehand, as ours are.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from launch.performance.sparse_operation import Operation


def prepared(operation: Operation) -> tuple[Callable, Callable]:
  """What computes the operation on its one object, and what its gradients."""
  makers = {
    "convolution": convolution,
    "windows": windows,
    "full attention": full_attention,
  }
  function = makers[operation.name](operation)

  # the object without padding; a kernel has none
  valid_V = operation.valid_RV[0]
  operands = []
  for array in operation.operands:
    rows = array
    if array.shape[:2] == operation.valid_RV.shape:
      rows = array[0][valid_V]
    operands.append(torch.from_numpy(np.ascontiguousarray(rows)).requires_grad_())
  cotangent = torch.from_numpy(operation.cotangent[0][valid_V])

  def run_forward():
    with torch.no_grad():
      return function(*operands)

  def run_backward():
    loss = (function(*operands) * cotangent).sum()
    return torch.autograd.grad(loss, operands)

  return run_forward, run_backward


def convolution(operation: Operation) -> Callable:
  """Gather, multiply, add where it belongs: tap by tap over the pairs that exist."""
  near_27V = operation.tables[0]
  slots = near_27V.shape[1]
  pairs = []
  for near_V in near_27V:
    out_P = np.flatnonzero(near_V != slots)
    pairs.append((torch.from_numpy(out_P), torch.from_numpy(near_V[out_P].astype(np.int64))))

  def run(x_VI, kernel_TIO):
    y_VO = x_VI.new_zeros(len(x_VI), kernel_TIO.shape[-1])
    for kernel_IO, (out_P, in_P) in zip(kernel_TIO, pairs, strict=True):
      y_VO = y_VO.index_add(0, out_P, x_VI[in_P] @ kernel_IO)
    return y_VO

  return run


def windows(operation: Operation) -> Callable:
  """Sorted by window, each window by itself, and back."""
  order = operation.tables
  valid_V = order.valid_RV[0]
  order_V = torch.from_numpy(order.order_RV[0][valid_V].astype(np.int64))
  inverse_V = torch.argsort(order_V)
  sizes = np.bincount(order.window_RV[0][valid_V]).tolist()

  def run(q_VHK, k_VHK, v_VHK):
    by_window = [x[order_V].split(sizes) for x in (q_VHK, k_VHK, v_VHK)]
    out = [attend(*qkv) for qkv in zip(*by_window, strict=True)]
    return torch.cat(out)[inverse_V]

  return run


def full_attention(operation: Operation) -> Callable:
  del operation  # one object sees all of itself
  return attend


def attend(q_VHK, k_VHK, v_VHK):
  """Attention of one group of voxels, (V, H, K)."""
  q_1HVK, k_1HVK, v_1HVK = (x.transpose(0, 1)[None] for x in (q_VHK, k_VHK, v_VHK))
  out_1HVK = F.scaled_dot_product_attention(q_1HVK, k_1HVK, v_1HVK)
  return out_1HVK[0].transpose(0, 1)
