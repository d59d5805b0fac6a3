"""Optimisers, learning-rate schedules, clipping, and which parameters are trained."""

from collections.abc import Mapping
import dataclasses
import math
import re

import jax
import optax

from sam3d_jax import sections
from sam3d_jax.errors import ConfigError
from sam3d_jax.sections import FieldError

SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW by default without weight decay (arXiv 2511.16624, appendix on training)."""

  lr: float = 1e-4
  schedule: str = "constant"  # after the warm-up: constant, or cosine to final_lr_fraction
  warmup_steps: int = 1000
  final_lr_fraction: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 1.0  # global gradient norm; 0 switches clipping off
  # parameters whose path matches (full match) are trained, the rest is frozen
  trainable: str = ".*"
  frozen: str = ""  # of those, the ones that match this are frozen all the same
  ema: tuple[float, ...] = (0.9999,)  # decays of the parameter averages

  def __post_init__(self):
    sections.check_positive(self, "eps")
    for name in ("b1", "b2"):
      decay = getattr(self, name)
      if not 0 <= decay < 1:
        raise FieldError(f"{name} = {decay}: a decay of Adam is a number from 0 to below 1")
    sections.check_not_negative(self, "warmup_steps", "final_lr_fraction")
    sections.check_not_negative(self, "weight_decay", "clip_norm")


def check(cfg: OptimConfig) -> None:
  """Raises ConfigError for values that cannot work."""
  if cfg.schedule not in SCHEDULES:
    known = ", ".join(SCHEDULES)
    raise ConfigError(f"optim.schedule = {cfg.schedule!r} is not one of {known}")
  # Written so that NaN does not pass.
  if not cfg.lr > 0 or not math.isfinite(cfg.lr):
    raise ConfigError(f"optim.lr = {cfg.lr} is not a positive number")
  for decay in cfg.ema:
    if not 0 < decay < 1:
      raise ConfigError(f"optim.ema holds {decay}, a decay lies between 0 and 1 (write 0.9999)")
  # A pattern that cannot be compiled would only fail when parameters exist.
  for key, pattern in patterns(cfg).items():
    try:
      re.compile(pattern)
    except re.error as error:
      raise ConfigError(
        f"optim.{key} = {pattern!r} is not a regular expression: {error}"
      ) from error


def patterns(cfg: OptimConfig) -> dict[str, str]:
  """The regular expressions over parameter paths, by key."""
  return {
    "trainable": cfg.trainable,
    "frozen": cfg.frozen,
  }


def learning_rate(cfg: OptimConfig, step: int, total_steps: int) -> float:
  """The learning rate of the update that leads to `step` + 1: linear warm-up, then the schedule.

  Computed on the host and fed to the step as an input, so that runs that differ in it share one
  compiled program.
  """
  # The first step already moves: its share is 1 / warmup_steps.
  warmup = 1.0
  if cfg.warmup_steps:
    done = (step + 1) / cfg.warmup_steps
    warmup = min(1.0, done)
  if cfg.schedule == "constant":
    return cfg.lr * warmup

  # Half a period of the cosine over the steps after the warm-up.
  span = max(1, total_steps - cfg.warmup_steps)
  progress = (step - cfg.warmup_steps) / span
  progress = max(0.0, progress)
  progress = min(1.0, progress)
  wave = 1 + math.cos(math.pi * progress)
  # From 1 down to the fraction that is left at the end.
  final = cfg.final_lr_fraction
  fraction = final + (1 - final) * 0.5 * wave
  return cfg.lr * warmup * fraction


def make_optimizer(cfg: OptimConfig) -> optax.GradientTransformation:
  """Clipping, Adam moments and decoupled weight decay; the caller scales the result by minus the
  learning rate.
  """
  # In this order: the moments are those of the clipped gradient, the decay passes them by.
  parts = []
  if cfg.clip_norm:
    parts.append(optax.clip_by_global_norm(cfg.clip_norm))
  parts.append(optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps))
  if cfg.weight_decay:
    parts.append(optax.add_decayed_weights(cfg.weight_decay))
  return optax.chain(*parts)


def split_trainable(cfg: OptimConfig, params: Mapping[str, jax.Array]) -> tuple[dict, dict]:
  """(trainable, frozen) by the two regular expressions. Raises ConfigError if nothing is left to
  train or a pattern hits nothing.
  """
  # A pattern that matches nothing is misspelt.
  for key, pattern in patterns(cfg).items():
    matched = any(re.fullmatch(pattern, path) for path in params)
    if pattern and not matched:
      first_parts = {path.split("/")[0] for path in params}
      starts = ", ".join(sorted(first_parts))
      raise ConfigError(
        f"optim.{key} = {pattern!r} matches no parameter; the paths start with {starts}"
      )

  # The second pattern takes out of what the first one names.
  trainable, frozen = {}, {}
  for path, value in params.items():
    named = re.fullmatch(cfg.trainable, path)
    excepted = re.fullmatch(cfg.frozen, path)
    side = trainable if named and not excepted else frozen
    side[path] = value
  if not trainable:
    raise ConfigError(
      f"optim.trainable = {cfg.trainable!r} and optim.frozen = {cfg.frozen!r} leave nothing to "
      "train"
    )
  return trainable, frozen
