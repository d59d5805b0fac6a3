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
  strengths = []
  guided = False
  for name in sorted(latents):
    # its strength, if the time lies in its interval
    limits = of_latent(interval, name)
    s = 0.0
    if limits is not None and limits[0] <= t <= limits[1]:
      s = float(of_latent(strength, name))
    strengths.append((name, s))
    guided = guided or s > 0
  # one forward pass is enough where nothing is guided
  if not guided:
    return None
  return tuple(strengths)


def of_latent(value, name: str):
  """The latent's own value where there is one a latent, else the common one."""
  if isinstance(value, Mapping):
    return value[name]
  return value


def combine(
  conditional: Latents, unconditional: Latents, strengths: Mapping[str, float]
) -> dict[str, jax.Array]:
  """(1 + s) v_c - s v_0 with each latent's own s."""
  guided = {}
  for k, v in conditional.items():
    s = strengths[k]
    # Away from the unconditional velocity by s of the difference.
    guided[k] = (1.0 + s) * v - s * unconditional[k]
  return guided


def combine_pointmap(
  conditional: Latents,
  without_pointmap: Latents,
  unconditional: Latents,
  strengths: Mapping[str, float],
  pointmap_strength: float,
) -> dict[str, jax.Array]:
  """v_c + p (v_c - v_n) + s (v_n - v_0) with each latent's own s; where s is 0, v_c stays."""
  p = pointmap_strength
  guided = {}
  for k, v_c in conditional.items():
    s = strengths[k]
    # outside its interval a latent keeps the conditional velocity, bit for bit
    if s == 0:
      guided[k] = v_c
      continue
    v_n = without_pointmap[k]
    # First away from what the model does without the point map, then from no condition.
    of_pointmap = v_c + p * (v_c - v_n)
    guided[k] = of_pointmap + s * (v_n - unconditional[k])
  return guided
