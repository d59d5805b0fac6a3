"""Light for the renderer: a few directional lights over an ambient term."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class LightConfig:
  """Ranges from which `random_lights` draws uniformly. Radiance 1 renders a white surface facing
  the light as white.
  """

  count: tuple[int, int] = (1, 3)
  ambient: tuple[float, float] = (0.2, 0.5)
  key: tuple[float, float] = (0.5, 1.0)  # radiance of the first light
  fill: tuple[float, float] = (0.1, 0.35)  # of each further one
  elevation_deg: tuple[float, float] = (10.0, 75.0)  # above the object's ground plane
  tint: float = 0.08  # largest deviation of a colour channel from white


@dataclasses.dataclass(frozen=True)
class Lights:
  """`directions_L3` point from the surface to each light, unit length, object frame; colours are
  linear radiances.
  """

  ambient_3: np.ndarray
  directions_L3: np.ndarray
  colours_L3: np.ndarray
  # towards the sky, as the directions
  up_3: np.ndarray = dataclasses.field(default_factory=lambda: np.array([0.0, 0.0, 1.0]))


def random_lights(rng: np.random.Generator, config: LightConfig, camera_azimuth: float) -> Lights:
  """Draws a light set. The key light stays within 100 degrees of the camera's azimuth (radians), so
  the seen side is lit.
  """
  count = int(rng.integers(config.count[0], config.count[1] + 1))
  spread = np.radians(100.0)
  azimuth = np.append(
    camera_azimuth + rng.uniform(-spread, spread), rng.uniform(0, 2 * np.pi, count - 1)
  )
  elevation = np.radians(rng.uniform(*config.elevation_deg, count))
  directions = np.stack(
    [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)],
    -1,
  )
  radiance = np.append(rng.uniform(*config.key), rng.uniform(*config.fill, count - 1))
  tint = 1 + rng.uniform(-config.tint, config.tint, (count + 1, 3))
  return Lights(rng.uniform(*config.ambient) * tint[0], directions, radiance[:, None] * tint[1:])


def turned(lights: Lights, rotation_33: np.ndarray) -> Lights:
  """The same lights seen from a frame that `rotation_33` (acts on columns) takes to the lights'
  frame.
  """
  return dataclasses.replace(
    lights, directions_L3=lights.directions_L3 @ rotation_33, up_3=lights.up_3 @ rotation_33
  )
