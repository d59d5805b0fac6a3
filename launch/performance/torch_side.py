"""The same model, parameters and batches as a configuration's, in eager PyTorch, measured as
steps.Side measures it. Needs PyTorch: `launch.benchmark` imports this after it has looked for it.
"""

import time

import numpy as np
import torch

from launch.performance import steps, torch_twin
from sam3d_jax.models import registry


class TorchSide:
  """The same model, parameters and batches as another side's, in eager PyTorch on CPU."""

  def __init__(self, side: steps.Side):
    begin = time.monotonic()
    self.config = side.setup.config
    optim = side.setup.optim
    objective = self.config.objective

    # the same model with the same parameters, trained with the same settings
    model = torch_twin.Geometry(registry.typed_config(self.config.model))
    params = {path: np.asarray(leaf) for path, leaf in side.state.params.items()}
    model.load(params)
    self.training = torch_twin.Training(
      model,
      weights=dict(objective.weights),
      lr=1e-6,
      betas=(optim.b1, optim.b2),
      eps=optim.eps,
      clip_norm=optim.clip_norm,
      decay=optim.ema[0],
      drop_condition=objective.drop_condition,
      time_mean=objective.time_mean,
      time_std=objective.time_std,
    )
    self.startup = {"parameters": time.monotonic() - begin}
    self.batches = side.setup.train_loader.iterate(0)
    self.times: list[steps.Times] = []

  def step(self, *, counted: bool, ahead: bool = False) -> None:
    """One training step, until its loss is known."""
    del ahead  # takes turns
    # reading and computing follow each other here
    wall_begin, cpu_begin = steps.clocks()
    rows = next(self.batches)
    wait = time.monotonic() - wall_begin
    cond, latents = torch_twin.tensors(rows)
    self.training.step(cond, latents)
    wall_end, cpu_end = steps.clocks()
    if counted:
      self.times.append(steps.Times(wait, wall_end - wall_begin, cpu_end - cpu_begin))

  def report(self, batches: int) -> dict:
    """The figures that Side.report gives, as far as they make sense here: the input pipeline is the
    other side's.
    """
    del batches
    return {
      **steps.timing(self.times, self.config.batch_size),
      "config": f"{self.config.stage} {self.config.model.name}, PyTorch eager",
      "device": "1 x cpu",
      "batch_size": self.config.batch_size,
      "versions": f"torch {torch.__version__}",
      "mfu": None,
      "startup_seconds": self.startup,
      "memory_bytes": None,
      "input_samples_per_second": None,
    }
