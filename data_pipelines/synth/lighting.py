"""Light for the renderer: a few directional lights over an ambient term."""

import dataclasses

import numpy as np

from sam3d_jax import sections


@dataclasses.dataclass(frozen=True)
class LightConfig:
  """Ranges from which `random_lights` draws uniformly.

  Radiance 1 renders a white surface that faces the light as white.
  """

  count: tuple[int, int] = (1, 3)
  ambient: tuple[float, float] = (0.2, 0.5)
  key: tuple[float, float] = (0.5, 1.0)  # radiance of the first light
  fill: tuple[float, float] = (0.1, 0.35)  # of each further one
  elevation_deg: tuple[float, float] = (10.0, 75.0)  # above the object's ground plane
  tint: float = 0.08  # largest deviation of a colour channel from white

  def __post_init__(self):
    for name in ("count", "ambient", "key", "fill"):
      sections.check_range(self, name, 0)
    sections.check_range(self, "elevation_deg", -90, 90)
    sections.check_share(self, "tint")


@dataclasses.dataclass(frozen=True)
class Lights:
  """An ambient term and L directional lights, in the object frame."""

  ambient_3: np.ndarray  # linear radiance
  directions_L3: np.ndarray  # from the surface to each light, unit length
  colours_L3: np.ndarray  # linear radiances
  # towards the sky, as the directions
  up_3: np.ndarray = dataclasses.field(default_factory=lambda: np.array([0.0, 0.0, 1.0]))


def random_lights(rng: np.random.Generator, config: LightConfig, camera_azimuth: float) -> Lights:
  """Draws a light set.

  The key light stays within 100 degrees of the camera's azimuth (radians), so the seen side is lit.
  """
  # Where the lights stand, the key light first.
  fewest, most = config.count
  count = int(rng.integers(fewest, most + 1))
  spread = np.radians(100.0)
  key_azimuth = camera_azimuth + rng.uniform(-spread, spread)
  other_azimuths = rng.uniform(0, 2 * np.pi, count - 1)
  azimuth = np.append(key_azimuth, other_azimuths)
  degrees = rng.uniform(*config.elevation_deg, count)
  elevation = np.radians(degrees)
  flat = np.cos(elevation)
  x = flat * np.cos(azimuth)
  y = flat * np.sin(azimuth)
  z = np.sin(elevation)

  # How bright they are, each with a tint of its own; the first tint is the ambient term's.
  key_radiance = rng.uniform(*config.key)
  fill_radiances = rng.uniform(*config.fill, count - 1)
  radiance = np.append(key_radiance, fill_radiances)
  deviation = rng.uniform(-config.tint, config.tint, (count + 1, 3))
  tint = 1 + deviation
  ambient = rng.uniform(*config.ambient)
  return Lights(
    ambient_3=ambient * tint[0],
    directions_L3=np.stack([x, y, z], -1),
    colours_L3=radiance[:, None] * tint[1:],
  )


def turned(lights: Lights, rotation_33: np.ndarray) -> Lights:
  """The same lights in another frame; `rotation_33` (acts on columns) takes it to the lights'."""
  # rows times R are R^T times columns
  return dataclasses.replace(
    lights,
    directions_L3=lights.directions_L3 @ rotation_33,
    up_3=lights.up_3 @ rotation_33,
  )
