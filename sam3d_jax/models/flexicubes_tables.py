"""Tables of Dual Marching Cubes as FlexiCubes uses it, made by rule.

arXiv 2308.05371 §4 builds on dual marching cubes (Nielson 2004): inside a cube, the edges that the
surface crosses fall into groups, and each group becomes one vertex of the mesh. Which edges belong
together follows from the signs of the eight corners alone, so there are 256 cases. A case is the
sum of 2^i over the corners i that are inside (negative).
"""

import functools
from typing import NamedTuple

import numpy as np

# (8, 3) corner i of a cube, x fastest
CORNERS = np.array([(i & 1, (i >> 1) & 1, i >> 2) for i in range(8)], np.int32)
# (12, 2) corners of each edge, in the order of the published weights: beta has one number an edge
EDGES = np.array(
  [
    (0, 1),
    (1, 5),
    (4, 5),
    (0, 4),
    (2, 3),
    (3, 7),
    (6, 7),
    (2, 6),
    (2, 0),
    (3, 1),
    (7, 5),
    (6, 4),
  ],
  np.int32,
)
CASES = 256
SLOTS = 4  # most groups, that is vertices, of a cube
NO_SLOT = SLOTS  # group of an edge that the surface does not cross


class Tables(NamedTuple):
  """What the signs of a cube's corners decide, a row a case."""

  slot: np.ndarray  # (256, 12) int8, group of each edge, 0..3; NO_SLOT where it is not crossed
  count: np.ndarray  # (256,) int8, groups
  problem: np.ndarray  # (256,) bool, see `make`
  direction: np.ndarray  # (256, 3) int8, of a problem case: normal of its ambiguous face


@functools.cache
def make() -> Tables:
  """The tables, from the rule that joins crossed edges through the faces of the cube.

  A face with two crossed edges joins them. One with four is ambiguous, its inside corners lie
  diagonally: here the two edges around each inside corner are joined, which separates the inside
  corners. A cube across the face joins them alike, for it sees the same four signs.

  A problem case has one ambiguous face, with all four edges in one group. Two such cubes sharing
  that face would make a surface that touches itself (the paper's C16 and C19); both take the row
  of the case 255 - case instead, which joins the edges around the outside corners.
  """
  slot = np.full((CASES, len(EDGES)), NO_SLOT, np.int8)
  count = np.zeros(CASES, np.int8)
  problem = np.zeros(CASES, bool)
  direction = np.zeros((CASES, 3), np.int8)
  for case in range(CASES):
    groups, ambiguous = _groups(case)
    for number, edges in enumerate(groups):
      slot[case, list(edges)] = number
    count[case] = len(groups)
    # one ambiguous face, its edges in one group
    if len(ambiguous) == 1:
      (normal, edges) = ambiguous[0]
      met = {int(slot[case, edge]) for edge in edges}
      problem[case] = len(met) == 1
      if problem[case]:
        direction[case] = normal
  return Tables(
    slot=slot,
    count=count,
    problem=problem,
    direction=direction,
  )


def _groups(case: int):
  """Groups of crossed edges of a case, by their smallest edge; its ambiguous faces as (outward
  normal, edges).
  """
  inside = [bool(case >> corner & 1) for corner in range(8)]
  crossed = [inside[a] != inside[b] for a, b in EDGES]
  # every crossed edge begins as a group of its own, named by its smallest edge
  group = list(range(len(EDGES)))

  def join(edges):
    names = {group[edge] for edge in edges}
    for edge, name in enumerate(group):
      if name in names:
        group[edge] = min(names)

  ambiguous = []
  for axis in range(3):
    for side in range(2):
      corners = np.flatnonzero(CORNERS[:, axis] == side)
      within = np.isin(EDGES, corners).all(axis=1)
      edges = [edge for edge in np.flatnonzero(within) if crossed[edge]]
      if len(edges) == 2:
        join(edges)
      elif len(edges) == 4:
        # around each inside corner
        for corner in corners:
          if inside[corner]:
            join([edge for edge in edges if corner in EDGES[edge]])
        normal = np.zeros(3, np.int8)
        normal[axis] = 2 * side - 1
        ambiguous.append((normal, edges))

  members = {}
  for edge, name in enumerate(group):
    if crossed[edge]:
      members.setdefault(name, []).append(edge)
  return list(members.values()), ambiguous
