"""Open files: how many this process may have, raised as far as the system lets it.

The usual soft limit, 1 024, is less than a run with many shards and a checkpoint under way needs.
"""

import resource

from sam3d_jax.errors import JobFailed

WANTED = 65_536
LEAST = 256  # libraries, threads, and a checkpoint that is being written


def raise_limit() -> int:
  """Raises the soft limit of open files towards WANTED; returns what it is then.

  Raises JobFailed if the system allows fewer than LEAST.
  """
  # As far as the hard limit, which only the system's owner moves.
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  most = WANTED
  if hard != resource.RLIM_INFINITY:
    most = min(WANTED, hard)
  if soft != resource.RLIM_INFINITY and soft < most:
    # some systems state a hard limit that they do not grant
    try:
      resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):
      most = soft
    soft = most
  if 0 <= soft < LEAST:
    raise JobFailed(
      f"this process may open {soft} files, {LEAST} or more are needed: raise the limit "
      "(ulimit -n, LimitNOFILE of a service, --ulimit nofile of a container)"
    )
  return limit()


def limit() -> int:
  """How many files this process may have open."""
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  return WANTED if soft == resource.RLIM_INFINITY else soft
