"""Explicit Runge-Kutta solvers for dx/dt = v(x, t) over a static grid of times.

Every method here has stages of one form, k_i = v(x + c_i h k_(i-1), t + c_i h), so a method is its
two rows c (where the stages lie) and b (how they are averaged). The grid is static: what a step
needs to know about its times is decided while tracing.
"""

from collections.abc import Callable, Hashable, Sequence
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.objectives.paths import Latents

Velocity = Callable[[Latents, jax.Array], dict[str, jax.Array]]  # (x, t of shape ()) -> velocities


@dataclasses.dataclass(frozen=True)
class Method:
  """Rows of the Butcher tableau; each stage starts from the previous one's slope."""

  c: tuple[float, ...]
  b: tuple[float, ...]


METHODS = {
  "euler": Method(c=(0.0,), b=(1.0,)),
  "midpoint": Method(c=(0.0, 0.5), b=(0.0, 1.0)),
  "rk4": Method(c=(0.0, 0.5, 0.5, 1.0), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def method(name: str) -> Method:
  """A method by name. Raises ValueError for an unknown name."""
  if name not in METHODS:
    known = ", ".join(METHODS)
    raise ValueError(f"solver {name!r} is not one of {known}")
  return METHODS[name]


def step(
  rule: Method, velocities: Sequence[Velocity], x: Latents, t: jax.Array, h: jax.Array
) -> dict[str, jax.Array]:
  """One step from t to t + h; `velocities` holds one velocity function a stage."""
  slope = None
  total = None
  for c, b, velocity in zip(rule.c, rule.b, velocities, strict=True):
    # where the stage lies: as far along the last stage's slope
    at = x
    if slope is not None:
      at = {k: x[k] + c * h * slope[k] for k in x}
    slope = velocity(at, t + c * h)

    # its share of the average slope; midpoint's first stage has none
    if not b:
      continue
    if total is None:
      total = {k: b * v for k, v in slope.items()}
    else:
      total = {k: total[k] + b * v for k, v in slope.items()}

  # one step of h along the average
  return {k: x[k] + h * total[k] for k in x}


def integrate(
  velocity_at: Callable[[Hashable], Velocity],
  x: Latents,
  grid: np.ndarray,
  *,
  solver: str = "euler",
  kind: Callable[[float], Hashable] = lambda t: None,
  fixed: Latents | None = None,
  trajectory: bool = False,
):
  """Solves along `grid` with one `lax.scan` for each run of steps of the same kind.

  Args:
    velocity_at: kind -> velocity function; called while tracing.
    x: initial latents at grid[0].
    grid: static times (steps + 1,), in either direction.
    solver: a name in METHODS.
    kind: static label of a time, e.g. the guidance strengths there. Steps whose stages have equal
    labels share a scan, so that
      steps that need less work cost less.
    fixed: latents that are put back to these values at the start and after every step.
    trajectory: also return the states after each step, stacked: latent name -> (steps, B, n, c).

  Returns:
    The final latents, or (final latents, trajectory).
  """
  # Fixed latents hold from the start.
  rule = method(solver)
  fixed = {} if fixed is None else dict(fixed)
  x = {**x, **fixed}

  # the labels of each step's stages
  starts = grid[:-1]
  sizes = np.diff(grid)
  kinds = []
  for t, h in zip(starts, sizes, strict=True):
    stages = [float(t + c * h) for c in rule.c]
    labels = tuple(kind(stage) for stage in stages)
    kinds.append(labels)

  # one scan for each run of steps with equal labels
  states = []
  numbers = range(len(sizes))
  for labels, run in itertools.groupby(numbers, key=kinds.__getitem__):
    run = list(run)
    velocities = [velocity_at(label) for label in labels]

    def body(x, th, velocities=velocities):
      # The step, then what is held is put back.
      t, h = th
      moved = step(rule, velocities, x, t, h)
      x = {**moved, **fixed}
      return x, x if trajectory else None

    times = jnp.asarray(starts[run], jnp.float32)
    steps = jnp.asarray(sizes[run], jnp.float32)
    x, history = jax.lax.scan(body, x, (times, steps))
    states.append(history)

  if not trajectory:
    return x
  # The runs end to end, as the grid has them.
  visited = {}
  for k in x:
    runs = [history[k] for history in states]
    visited[k] = jnp.concatenate(runs)
  return x, visited


def constant(velocity: Velocity) -> Callable[[Hashable], Velocity]:
  """`velocity_at` for a field that is the same function at all times."""
  return lambda _: velocity
