"""What who gave the inputs should know of, as lines for the screen."""

from collections.abc import Iterator
import contextlib
import warnings

from launch.console.progress import say
from sam3d_jax.errors import InputNote


@contextlib.contextmanager
def noted() -> Iterator[None]:
  """Says every InputNote that comes up within as it comes, each once; other warnings stay as they
  are.
  """
  said: set[str] = set()
  with warnings.catch_warnings():  # which puts `showwarning` back, too
    warnings.simplefilter("always", InputNote)
    as_before = warnings.showwarning

    def show(message, category, *where, **more):
      if not issubclass(category, InputNote):
        as_before(message, category, *where, **more)
        return
      text = f"note: {message}"
      if text not in said:
        said.add(text)
        say(text)

    warnings.showwarning = show
    yield
