"""Optimisers, learning-rate schedules, clipping, and which parameters are trained."""

from collections.abc import Mapping
import dataclasses
import math
import re

import jax
import optax

from sam3d_jax.errors import ConfigError

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


def check(cfg: OptimConfig) -> None:
  """Raises ConfigError for values that cannot work."""
  if cfg.schedule not in SCHEDULES:
    raise ConfigError(f"optim.schedule = {cfg.schedule!r} is not one of {', '.join(SCHEDULES)}")
  if not cfg.lr > 0 or not math.isfinite(cfg.lr):
    raise ConfigError(f"optim.lr = {cfg.lr} is not a positive number")
  for decay in cfg.ema:
    if not 0 < decay < 1:
      raise ConfigError(f"optim.ema holds {decay}, a decay lies between 0 and 1 (write 0.9999)")
  for key in ("trainable", "frozen"):
    try:
      re.compile(getattr(cfg, key))
    except re.error as error:
      raise ConfigError(
        f"optim.{key} = {getattr(cfg, key)!r} is not a regular expression: {error}"
      ) from error


def learning_rate(cfg: OptimConfig, step: int, total_steps: int) -> float:
  """The learning rate of the update that leads to `step` + 1: linear warm-up, then the schedule.

  Computed on the host and fed to the step as an input, so that runs that differ in it share one
  compiled program.
  """
  warmup = min(1.0, (step + 1) / cfg.warmup_steps) if cfg.warmup_steps else 1.0
  if cfg.schedule == "constant":
    return cfg.lr * warmup
  span = max(1, total_steps - cfg.warmup_steps)
  progress = min(1.0, max(0.0, (step - cfg.warmup_steps) / span))
  cosine = cfg.final_lr_fraction + (1 - cfg.final_lr_fraction) * 0.5 * (
    1 + math.cos(math.pi * progress)
  )
  return cfg.lr * warmup * cosine


def make_optimizer(cfg: OptimConfig) -> optax.GradientTransformation:
  """Clipping, Adam moments and decoupled weight decay; the caller scales the result by minus the
  learning rate.
  """
  parts = [optax.clip_by_global_norm(cfg.clip_norm)] if cfg.clip_norm else []
  parts.append(optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps))
  if cfg.weight_decay:
    parts.append(optax.add_decayed_weights(cfg.weight_decay))
  return optax.chain(*parts)


def split_trainable(cfg: OptimConfig, params: Mapping[str, jax.Array]) -> tuple[dict, dict]:
  """(trainable, frozen) by the two regular expressions. Raises ConfigError if nothing is left to
  train or a pattern hits nothing.
  """
  trainable = {
    p for p in params if re.fullmatch(cfg.trainable, p) and not re.fullmatch(cfg.frozen, p)
  }
  for key in ("trainable", "frozen"):
    pattern = getattr(cfg, key)
    if pattern and not any(re.fullmatch(pattern, p) for p in params):
      raise ConfigError(
        f"optim.{key} = {pattern!r} matches no parameter; the paths start with "
        f"{', '.join(sorted({p.split('/')[0] for p in params}))}"
      )
  if not trainable:
    raise ConfigError(
      f"optim.trainable = {cfg.trainable!r} and optim.frozen = {cfg.frozen!r} leave nothing to "
      "train"
    )
  return {p: x for p, x in params.items() if p in trainable}, {
    p: x for p, x in params.items() if p not in trainable
  }
