"""From noise to latents: the samplers of the flow models. What is particular to packed objects
stands in texture.py.
"""

from collections.abc import Callable, Mapping
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax import sections
from sam3d_jax.batch import Conditioning
from sam3d_jax.objectives import draws, paths
from sam3d_jax.objectives.paths import Latents, VelocityModel
from sam3d_jax.sampling import guidance, solvers
from sam3d_jax.sections import FieldError

# (x, t_B, tokens_BSD, d_B) -> latent name -> (B, tokens, channels)
TokenVelocity = Callable[..., dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How to sample. The defaults are the published ones of the Geometry model.

  steps, method, rescale_t: the grid (paths.time_grid) and the solver (solvers.METHODS). guidance:
  strength, or latent name -> strength. interval: times in [0, 1] where it applies, both ends
  included; None for never. shortcut: the distilled sampler: d = 1 / steps is fed to the model;
  guidance, which the distilled model has built in, is off. pointmap_guidance: separate weight of
  the point map, None for the plain form with two conditions.
  """

  steps: int = 25
  method: str = "euler"
  rescale_t: float = 3.0
  guidance: float | Mapping[str, float] | tuple[tuple[str, float], ...] = 7.0
  interval: tuple[float, float] | None = (0.0, 0.5)
  shortcut: bool = False
  pointmap_guidance: float | None = None

  def __post_init__(self):
    # kept as sorted pairs, so that the configuration hashes and can be static under jit
    if isinstance(self.guidance, Mapping):
      pairs = sorted(self.guidance.items())
      object.__setattr__(self, "guidance", tuple(pairs))
    if self.interval is not None:
      object.__setattr__(self, "interval", tuple(self.interval))

    # what cannot be sampled
    sections.check_choice(self, "method", solvers.METHODS)
    if self.steps < 1:
      raise FieldError(f"steps = {self.steps}: a sampler needs at least one step")
    sections.check_not_negative(self, "rescale_t")
    if self.shortcut and self.pointmap_guidance is not None:
      raise FieldError(
        f"pointmap_guidance = {self.pointmap_guidance}: shortcut sampling takes no guidance, leave "
        "it at None"
      )
    if self.interval is not None:
      low, high = self.interval
      if not 0.0 <= low <= high <= 1.0:
        raise FieldError(f"interval = {self.interval}: give two times in [0, 1], the smaller first")

  def grid(self) -> np.ndarray:
    """Times visited, (steps + 1,)."""
    return paths.time_grid(self.steps, self.rescale_t)

  def step_size(self) -> float:
    """The d to feed: 1 / steps in shortcut mode (whatever the grid's own steps are, as published),
    else 0.
    """
    if self.shortcut:
      return 1.0 / self.steps
    return 0.0

  def strengths(self, t: float, latents) -> tuple[tuple[str, float], ...] | None:
    """Guidance strengths at a static time, None where one forward pass is enough."""
    if self.shortcut:
      return None
    strength = self.guidance
    if isinstance(strength, tuple):
      strength = dict(strength)
    return guidance.strengths_at(
      t,
      strength,
      self.interval,
      latents,
    )


def guided_velocity(
  velocity: TokenVelocity,
  tokens_BSD: jax.Array,
  d,
  strengths,
  *,
  pointmap_guidance: float | None = None,
  tokens_without_pointmap_BSD: jax.Array | None = None,
  unconditional_tokens_BSD=None,
) -> solvers.Velocity:
  """The velocity field (x, t) -> v that a solver integrates, at fixed guidance `strengths`
  (guidance.strengths_at).

  The unconditional branch multiplies all tokens by zero. Keys and values are then equal for every
  token, so attention over S of them equals attention over one: by default a single zero token
  stands for all, and the branch skips S - 1 key and value projections. It therefore runs as a
  forward pass of its own; joined with the conditional one in a batch it would have to carry all S
  tokens. `unconditional_tokens_BSD` replaces it.
  """
  if unconditional_tokens_BSD is None:
    unconditional_tokens_BSD = jnp.zeros_like(tokens_BSD[..., :1, :])

  # Two or three forward passes a stage, one where nothing is guided.
  def field(x, t):
    conditional = velocity(x, t[None], tokens_BSD, d)
    if strengths is None:
      return conditional

    # away from what the model would do without a condition
    unconditional = velocity(
      x,
      t[None],
      unconditional_tokens_BSD,
      d,
    )
    if pointmap_guidance is None:
      return guidance.combine(
        conditional,
        unconditional,
        dict(strengths),
      )

    # and, with a weight of its own, from what it would do without the point map
    without_pointmap = velocity(
      x,
      t[None],
      tokens_without_pointmap_BSD,
      d,
    )
    return guidance.combine_pointmap(
      conditional,
      without_pointmap,
      unconditional,
      dict(strengths),
      pointmap_guidance,
    )

  return field


def integrate_noise(
  velocity: TokenVelocity,
  noise: Latents,
  tokens_BSD: jax.Array,
  cfg: SamplerConfig,
  *,
  d,
  tokens_without_pointmap_BSD: jax.Array | None = None,
  fixed: Latents | None = None,
  trajectory: bool = False,
):
  """Carries given noise to data; see sample_latents. `d` is the step size to feed, None to feed
  none.
  """

  # Steps of equal strengths share a compiled loop.
  def strengths_of(t):
    return cfg.strengths(t, noise)

  def velocity_at(strengths):
    return guided_velocity(
      velocity,
      tokens_BSD,
      d,
      strengths,
      pointmap_guidance=cfg.pointmap_guidance,
      tokens_without_pointmap_BSD=tokens_without_pointmap_BSD,
    )

  return solvers.integrate(
    velocity_at,
    noise,
    cfg.grid(),
    solver=cfg.method,
    kind=strengths_of,
    fixed=fixed,
    trajectory=trajectory,
  )


def check_step_embedder(model: VelocityModel, cfg: SamplerConfig) -> None:
  """Raises ValueError for shortcut sampling with a model that has no step embedder."""
  if cfg.shortcut and not model.step_conditioned:
    raise ValueError(
      "shortcut sampling needs a model with a step embedder: set model.flow.shortcut = True or "
      "shortcut = False"
    )


def sample_latents(
  model: VelocityModel,
  cond: Conditioning,
  key_B2: jax.Array,
  cfg: SamplerConfig,
  shapes: Mapping[str, tuple[int, ...]],
  fixed: Latents | None = None,
) -> dict[str, jax.Array]:
  """Samples latents from the model. Pure; jit it with `cfg` and `shapes` static.

  Args:
    model: a model with a step embedder is fed d = 0, or d = 1 / steps in shortcut mode
    (paths.step_size).
    cond: the condition, encoded once.
    key_B2: (B, 2) uint32, one key an example; its noise depends on nothing else (draws.raw_keys
    makes them from a seed).
    cfg: the sampler.
    shapes: latent name -> (tokens, channels).
    fixed: latents (B, tokens, channels) that are held at these values at every step.

  Returns:
    latent name -> (B, tokens, channels) float32.
  Raises:
    ValueError: shortcut mode with a model that has no step embedder, or a fixed latent that is not
    sampled.
  """
  check_step_embedder(model, cfg)
  # What is held must be something that is sampled.
  unknown = sorted(set(fixed or ()) - set(shapes))
  if unknown:
    raise ValueError(
      f"fixed latents {', '.join(unknown)} are not among {', '.join(sorted(shapes))}"
    )

  # the condition, with and without its point map
  tokens_BSD = model.encode(cond)
  without_BSD = None
  if cfg.pointmap_guidance is not None:
    drop_B = jnp.ones(len(key_B2), bool)
    without_BSD = model.encode(cond, drop_B)

  # from noise to data
  # Noise depends on each example's key alone, whatever the batch around it.
  d = paths.step_size(model, (cfg.step_size(),))
  keys = draws.wrap_keys(key_B2)
  noise = draws.noise(keys, shapes)
  return integrate_noise(
    model.velocity,
    noise,
    tokens_BSD,
    cfg,
    d=d,
    tokens_without_pointmap_BSD=without_BSD,
    fixed=fixed,
  )
