"""Plots of a sweep's report as SVG, without scripts: a trial has one colour and one number, its
rank, in all of them.
"""

from collections.abc import Sequence
import dataclasses
import html
import itertools
import math

Point = tuple[float, float]

WIDTH, HEIGHT = 620, 320  # of a plot, in pixels
LEFT, RIGHT, TOP, BOTTOM = 60, 34, 10, 56  # margins; curves are numbered in the right one
DASH = 9  # length of a stripe where curves lie upon each other
SAME = 2.0  # pixels: curves that are never further apart lie upon each other
TICKS = 5  # values written along an axis
TICK = 44.0  # pixels between two of them that are not evenly spaced
LABEL = 11.0  # pixels between two numbers
DOT = 8.0  # radius, with a number in it
GREY = "#999"  # of trials without a rank
# dark enough for white numbers, and apart in hue and lightness
COLOURS = (
  "#1f5fbf",
  "#d95f02",
  "#0b7a5c",
  "#c2185b",
  "#7b4bb8",
  "#8a6d00",
  "#0089a3",
  "#5d4037",
)
GOLDEN_ANGLE = 137.5  # degrees of hue from one colour to the next, where there are more of them


@dataclasses.dataclass(frozen=True)
class Line:
  """What is drawn of one trial. mark: its number and colour. said: when pointed at. points: (step,
  value) of a curve, or one (value of the key, metric).
  """

  mark: "Mark"
  said: str
  points: Sequence[Point]


@dataclasses.dataclass(frozen=True)
class Mark:
  """How a trial is told from the others."""

  number: str
  colour: str


def mark_of(rank: int | None, trials: int) -> Mark:
  """Number and colour of a rank; those without one are grey."""
  if rank is None:
    return Mark("–", GREY)
  if trials <= len(COLOURS):
    return Mark(str(rank), COLOURS[rank - 1])
  # Neighbours in rank are far apart in hue; every third has the same lightness.
  hue = (215 + GOLDEN_ANGLE * (rank - 1)) % 360
  lightness = (34, 42, 26)[rank % 3]
  return Mark(str(rank), f"hsl({hue:.0f},75%,{lightness}%)")


class Scale:
  """Values to pixels along one axis, logarithmic where all are positive and span more than a
  decade.
  """

  def __init__(
    self, values: Sequence[float], first: float, last: float, *, log: bool | None = None
  ):
    """first, last: pixels of the least and of the greatest value. log: None: by the values."""
    low, high = min(values), max(values)
    if log is None:
      log = low > 0 and high > 10 * low
    if log:
      low, high = math.log10(low), math.log10(high)
    # one value alone lies in the middle
    if low == high:
      low, high = low - 0.5, high + 0.5
    self.log = log
    self.low, self.high = low, high
    self.first, self.last = first, last
    self.values = sorted(set(values))

  def __call__(self, value: float) -> float:
    """The pixel of a value."""
    if self.log:
      value = math.log10(value)
    # 0 at the least value, 1 at the greatest
    share = (value - self.low) / (self.high - self.low)
    length = self.last - self.first
    return self.first + share * length

  def ticks(self) -> list[float]:
    """The values themselves where they are few and far enough apart, else five values, evenly
    spaced on the axis.
    """
    places = [self(value) for value in self.values]
    gaps = [abs(after - before) for before, after in itertools.pairwise(places)]
    few = len(places) <= TICKS
    apart = min(gaps, default=TICK) >= TICK
    if few and apart:
      return self.values

    step = (self.high - self.low) / (TICKS - 1)
    even = [self.low + number * step for number in range(TICKS)]
    if not self.log:
      return even
    return [10**value for value in even]


def frame(
  caption: str, x: Scale, y: Scale, x_label: str, content: str, names: list[str] | None = None
) -> str:
  """A plot: axes with ticks around drawn content. names: of the values 0, 1, 2, ... of a horizontal
  axis that has no numbers.
  """
  right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

  # Ticks of the horizontal axis, then of the vertical one.
  if names:
    marks = [(i, html.escape(name)) for i, name in enumerate(names)]
  else:
    marks = [(value, f"{value:.3g}") for value in x.ticks()]
  ticks = []
  for value, said in marks:
    place = f'x="{x(value):.0f}" y="{bottom + 16}"'
    ticks.append(f'<text class=tick {place} text-anchor="middle">{said}</text>')
  for value in y.ticks():
    height = y(value)
    place = f'x="{LEFT - 6}" y="{height + 4:.0f}"'
    ticks.append(f'<text class=tick {place} text-anchor="end">{value:.3g}</text>')
    ticks.append(f'<line class=grid x1="{LEFT}" y1="{height:.0f}" x2="{right}" y2="{height:.0f}"/>')

  # Axes, and what they are of.
  axes = (
    f'<line class=axis x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
    f'<line class=axis x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{bottom}"/>'
  )
  if x.log:
    x_label += " (logarithmic)"
  if y.log:
    caption += ", logarithmic"
  place = f'x="{WIDTH / 2}" y="{HEIGHT - 16}"'
  label = f'<text class=tick {place} text-anchor="middle">{html.escape(x_label)}</text>'
  drawn = "".join([*ticks, axes, label, content])
  size = f'width="{WIDTH}" height="{HEIGHT}"'
  return (
    f"<figure><figcaption>{html.escape(caption)}</figcaption><svg {size}>{drawn}</svg></figure>"
  )


def curves(caption: str, lines: list[Line]) -> str:
  """One curve a trial, numbered at its end, the first drawn last; nothing if there is no point.

  Curves that lie upon each other share one line, in stripes of their colours.
  """
  lines = [line for line in lines if line.points]
  if not lines:
    return ""

  # one frame for all of them
  steps, values = [], []
  for line in lines:
    for step, value in line.points:
      steps.append(step)
      values.append(value)
  x = Scale(steps, LEFT, WIDTH - RIGHT, log=False)
  y = Scale(values, HEIGHT - BOTTOM, TOP)
  paths = [[(x(step), y(value)) for step, value in line.points] for line in lines]

  # The first of them is drawn last.
  drawn = []
  stripes = striped(paths)
  for line, path, stripe in reversed(list(zip(lines, paths, stripes, strict=True))):
    drawn.append(polyline(line, path, stripe))
  drawn += numbers(lines, paths)
  return frame(caption, x, y, "step", "".join(drawn))


def striped(paths: list[list[Point]]) -> list[tuple[int, int]]:
  """(which stripe, of how many) of each path: 0 of 1 where a path lies alone."""
  # Groups of paths that lie upon each other, by the first of them.
  groups: list[list[int]] = []
  for index, path in enumerate(paths):
    for group in groups:
      if upon(path, paths[group[0]]):
        group.append(index)
        break
    else:
      groups.append([index])

  stripe_of = {}
  for group in groups:
    for number, index in enumerate(group):
      stripe_of[index] = (number, len(group))
  return [stripe_of[index] for index in range(len(paths))]


def upon(path: list[Point], other: list[Point]) -> bool:
  """Whether two paths of the same steps are never more than SAME pixels apart."""
  if len(path) != len(other):
    return False
  pairs = zip(path, other, strict=True)
  return all(math.dist(point, same) <= SAME for point, same in pairs)


def polyline(line: Line, path: list[Point], stripe: tuple[int, int]) -> str:
  """A curve; a single point is a dot."""
  points = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
  style = ""
  if len(path) == 1:
    points = f"{points} {points}"
    style = ' stroke-width="7" stroke-linecap="round"'

  # Where several lie upon each other each fills its part of the way.
  number, count = stripe
  if count > 1:
    gap = DASH * (count - 1)
    style += f' stroke-dasharray="{DASH} {gap}" stroke-dashoffset="{-DASH * number}"'
  title = f"<title>{html.escape(line.said)}</title>"
  return f'<polyline points="{points}" stroke="{line.mark.colour}"{style}>{title}</polyline>'


def numbers(lines: list[Line], paths: list[list[Point]]) -> list[str]:
  """The number of each curve at its height beside the plot, none upon another."""
  by_height = sorted(range(len(lines)), key=lambda index: paths[index][-1][1])
  bottom = HEIGHT - BOTTOM
  apart = min(LABEL, (bottom - TOP) / len(lines))

  # From the top down, as far below the one above as need be; then up again from the bottom.
  heights = []
  lowest_free = float(TOP)
  for index in by_height:
    heights.append(max(paths[index][-1][1], lowest_free))
    lowest_free = heights[-1] + apart
  limit = float(bottom)
  for place in reversed(range(len(heights))):
    heights[place] = min(heights[place], limit)
    limit = heights[place] - apart

  # Each in the colour of its curve.
  drawn = []
  for index, height in zip(by_height, heights, strict=True):
    mark = lines[index].mark
    place = f'x="{WIDTH - RIGHT + 6}" y="{height + 4:.1f}"'
    drawn.append(f'<text class=number {place} fill="{mark.colour}">{mark.number}</text>')
  return drawn


def dots(caption: str, key: str, lines: list[Line], *, log: bool, names: list[str] | None) -> str:
  """One dot a trial, numbered, moved aside where it would cover another; the first drawn last.

  log: the key's space is logarithmic. names: of the values 0, 1, 2, ... of a key without numbers.
  """
  # Both axes leave room for a whole dot at their ends.
  points = [line.points[0] for line in lines]
  values, metrics = zip(*points, strict=True)
  log_x = log or None
  if names:
    log_x = False
  x = Scale(values, LEFT + 20, WIDTH - RIGHT - 20, log=log_x)
  y = Scale(metrics, HEIGHT - BOTTOM - DOT, TOP + DOT)

  # The best is drawn last, over the others.
  drawn = []
  taken: list[Point] = []
  for line, (value, metric) in reversed(list(zip(lines, points, strict=True))):
    place = beside(x(value), y(metric), taken)
    taken.append(place)
    drawn.append(dot(line, place))
  return frame(caption, x, y, key, "".join(drawn), names)


def beside(x: float, y: float, taken: list[Point]) -> Point:
  """The place nearest to (x, y), to either side, that is not covered."""
  step = DOT / 2
  for distance in range(2 * len(taken) * 4 + 1):
    # 0, 1 to the right, 1 to the left, 2 to the right, ...
    side = 1 if distance % 2 else -1
    place = (x + side * step * ((distance + 1) // 2), y)
    free = all(math.dist(place, other) >= 2 * DOT for other in taken)
    if free:
      return place
  return x, y


def dot(line: Line, place: Point) -> str:
  """A dot with its number."""
  x, y = place
  title = f"<title>{html.escape(line.said)}</title>"
  centre = f'cx="{x:.1f}" cy="{y:.1f}" r="{DOT:.0f}"'
  circle = f'<circle {centre} fill="{line.mark.colour}"/>'
  below = y + 3
  number = f'<text class=inside x="{x:.1f}" y="{below:.1f}">{line.mark.number}</text>'
  return f"<g>{circle}{number}{title}</g>"
