"""Classifier-free guidance (Ho & Salimans 2022) limited to an interval of time (Kynkäänniemi et al.
2024).

    v = (1 + s) v_conditional - s v_unconditional,   s = strength where low <= t <= high, else 0

Strength and interval may differ by latent. Where no latent has a positive strength the conditional
velocity is used as it is, hence a negative strength alone does nothing. With a separate weight p
for the point map,

    v = v_c + p (v_c - v_n) + s (v_n - v_0)

where v_n sees the condition without point map; p applies only where s does.
"""

from collections.abc import Mapping, Sequence

import jax

from sam3d_jax.objectives.paths import Latents

Interval = tuple[float, float] | None


def strengths_at(
  t: float,
  strength: float | Mapping[str, float],
  interval: Interval | Mapping[str, Interval],
  latents: Sequence[str],
) -> tuple[tuple[str, float], ...] | None:
  """Strength of each latent at the static time t, as a hashable (name, strength) list; None where
  there is no guidance.

  An interval holds both its ends; the interval None never guides.
  """

  def one(name):
    limits = interval[name] if isinstance(interval, Mapping) else interval
    s = strength[name] if isinstance(strength, Mapping) else strength
    return float(s) if limits is not None and limits[0] <= t <= limits[1] else 0.0

  strengths = tuple((name, one(name)) for name in sorted(latents))
  return strengths if any(s > 0 for _, s in strengths) else None


def combine(
  conditional: Latents, unconditional: Latents, strengths: Mapping[str, float]
) -> dict[str, jax.Array]:
  """(1 + s) v_c - s v_0 with each latent's own s."""
  return {
    k: (1.0 + strengths[k]) * v - strengths[k] * unconditional[k] for k, v in conditional.items()
  }


def combine_pointmap(
  conditional: Latents,
  without_pointmap: Latents,
  unconditional: Latents,
  strengths: Mapping[str, float],
  pointmap_strength: float,
) -> dict[str, jax.Array]:
  """v_c + p (v_c - v_n) + s (v_n - v_0) with each latent's own s; where s is 0, v_c stays."""

  def one(k, c):
    if strengths[k] == 0:
      return c
    return (
      c
      + pointmap_strength * (c - without_pointmap[k])
      + strengths[k] * (without_pointmap[k] - unconditional[k])
    )

  return {k: one(k, c) for k, c in conditional.items()}
