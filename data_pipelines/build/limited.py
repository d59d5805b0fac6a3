"""Reading what others have made, in a process of its own, with limits of memory and time.

A few bytes can ask for all of a machine's memory, keep a decoder busy for hours, or end the process
that decodes them. So inputs are read in a worker that stays from one input to the next: what it
makes comes back, and where it goes beyond a limit, or dies, the input is refused and another worker
takes its place.

One worker belongs to a process; threads that share it wait for each other. It knows nothing of the
program that started it but where modules are.
"""

import atexit
from collections.abc import Callable
import contextlib
import dataclasses
import json
import mmap
from multiprocessing import connection
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any
import warnings

from data_pipelines.build.processes import THREAD_VARIABLES
from sam3d_jax.errors import ConfigError, InputNote, JobFailed, Refused

GIGABYTE = 1 << 30
SHARED_BYTES = 1 << 20  # arrays of more come back in memory that both processes see
ALIGNED = 64  # bytes: where arrays begin in it
START_SECONDS = 120.0  # until a worker has imported what an input needs
LOOK_SECONDS = 1.0  # between looks whether the parent is still there
PROGRAM = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); " + (
  "from data_pipelines.build import limited; limited.serve(int(sys.argv[1]))"
)
TOO_LARGE, TOO_SLOW, CRASHED = "too_large", "too_slow", "crashed"  # reasons


@dataclasses.dataclass(frozen=True)
class Limits:
  """What reading one input may take.

  memory_gb: beyond what the worker itself has; 0: any. seconds: on the wall; 0: any. With neither,
  inputs are read in the process that asks.
  """

  memory_gb: float = 4.0
  seconds: float = 300.0

  def __post_init__(self):
    for name in ("memory_gb", "seconds"):
      value = getattr(self, name)
      if not value >= 0:
        raise ConfigError(f"limits.{name} = {value}: it must be 0 (no limit) or more")


NONE = Limits(0.0, 0.0)


def call(limits: Limits, function: Callable, *args: Any, kept: Any = None) -> Any:
  """What `function(*args)` returns, called in the worker.

  Args:
    limits: of this call.
    function: of a module, found there by its name.
    args: pickled, as what is returned.
    kept: the first argument, if it is large and the same at every call: it is sent once.

  Raises:
    Refused: too_large, too_slow or crashed.
    Exception: what the function raises.
  """
  first = () if kept is None else (kept,)
  if limits == NONE:
    try:
      return function(*first, *args)
    except MemoryError as error:
      raise Refused(TOO_LARGE, "there is not enough memory to read it") from error
  with _lock:
    return _worker().call(limits, function, args, kept)


# --- The process that asks ------------------------------------------------------------------------


class _Worker:
  """A process that reads inputs, one at a time."""

  def __init__(self):
    self._socket, theirs = socket.socketpair()
    self._channel = connection.Connection(os.dup(self._socket.fileno()))
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
    with theirs as other:
      handle = other.fileno()
      self._process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(handle), json.dumps(sys.path)],
        stdin=subprocess.DEVNULL,
        pass_fds=(handle,),
        env=environment,
      )
    self.owner = os.getpid()
    self._kept: list[Any] = []  # what it holds, by its place

  @property
  def is_alive(self) -> bool:
    return self.owner == os.getpid() and self._process.poll() is None

  def call(self, limits: Limits, function: Callable, args: tuple, kept: Any) -> Any:
    """As `call` of the module."""
    try:
      answer = self._ask(limits, function, args, kept)
    # also where this process is told to stop: half an answer is none
    except BaseException:
      self.stop()
      raise
    kind, value, notes = answer
    for text in notes:
      warnings.warn(text, InputNote, stacklevel=4)
    if kind == "made":
      return value
    # what was taken may not have been given back
    if kind == TOO_LARGE:
      self.stop()
      allowed = f"{limits.memory_gb:g} GB (limits.memory_gb)"
      raise Refused(TOO_LARGE, f"reading it takes more memory than {allowed}")
    raise value

  def _ask(self, limits: Limits, function: Callable, args: tuple, kept: Any) -> tuple:
    try:
      self._send(limits, function, args, kept)
      # importing is not the input's time
      if self._channel.poll(START_SECONDS):
        self._channel.recv_bytes()
      end = time.monotonic() + (limits.seconds or float("inf"))
      while not self._channel.poll(min(LOOK_SECONDS, max(0.0, end - time.monotonic()))):
        if time.monotonic() >= end:
          allowed = f"{limits.seconds:g} s (limits.seconds)"
          raise Refused(TOO_SLOW, f"reading it takes longer than {allowed}")
      data, sizes = pickle.loads(self._channel.recv_bytes())
      return pickle.loads(data, buffers=self._buffers(sizes))
    except (EOFError, ConnectionError, BrokenPipeError) as error:
      code = self._process.wait()
      raise Refused(CRASHED, f"reading it ended its process ({_said(code)})") from error

  def _send(self, limits: Limits, function: Callable, args: tuple, kept: Any) -> None:
    place, sent = None, None
    if kept is not None:
      held = [number for number, known in enumerate(self._kept) if known is kept]
      place = held[0] if held else len(self._kept)
      if not held:
        self._kept.append(kept)
        sent = kept
    self._channel.send_bytes(pickle.dumps((limits, function, args, place, sent), protocol=5))

  def _buffers(self, sizes: list[int]) -> list[memoryview]:
    """The arrays that come in shared memory, of which this process keeps its own view."""
    if not sizes:
      return []
    _, handles, _, _ = socket.recv_fds(self._socket, 1, 1)
    (handle,) = handles
    try:
      shared = mmap.mmap(handle, sum(map(_padded, sizes)), access=mmap.ACCESS_COPY)
    finally:
      os.close(handle)
    view = memoryview(shared)
    found = []
    start = 0
    for size in sizes:
      found.append(view[start : start + size])
      start += _padded(size)
    return found

  def stop(self) -> None:
    """Ends the process, whatever it does."""
    if self.owner != os.getpid():
      return
    self._channel.close()
    self._socket.close()
    self._process.kill()
    self._process.wait()


_lock = threading.RLock()
_current: _Worker | None = None


def _worker() -> _Worker:
  """The worker of this process, a new one if there is none that lives."""
  global _current
  if _current is None or not _current.is_alive:
    _current = _Worker()
    atexit.register(_current.stop)
  return _current


def _said(code: int) -> str:
  """An exit code in words."""
  if code >= 0:
    return f"exit code {code}"
  with contextlib.suppress(ValueError):
    return signal.Signals(-code).name
  return f"signal {-code}"


# --- The worker -----------------------------------------------------------------------------------


def serve(handle: int) -> None:
  """Answers calls until whoever asks is gone."""
  # Ctrl-C is the parent's to handle; of two the kernel ends this one first.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
    file.write("1000")
  threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()

  channel = connection.Connection(handle)
  own = socket.socket(fileno=os.dup(handle))
  kept: dict[int, Any] = {}
  while True:
    try:
      task = channel.recv_bytes()
    except (EOFError, OSError):
      return
    try:
      limits, function, args, place, sent = pickle.loads(task)
    # no input is to blame for a program that is not there
    except Exception as error:
      failure = JobFailed(f"a worker that reads inputs cannot be used: {error!r}")
      channel.send_bytes(b"begun")
      channel.send_bytes(pickle.dumps((pickle.dumps(("raised", failure, [])), [])))
      continue
    if sent is not None:
      kept[place] = sent
    if place is not None:
      args = (kept[place], *args)
    channel.send_bytes(b"begun")
    data, buffers = _answer(limits, function, args)
    sizes = [buffer.nbytes for buffer in buffers]
    channel.send_bytes(pickle.dumps((data, sizes)))
    if sizes:
      shared = os.memfd_create("read")
      with os.fdopen(shared, "wb") as file:
        for buffer in buffers:
          file.write(buffer)
          file.write(bytes(_padded(buffer.nbytes) - buffer.nbytes))
        file.flush()
        socket.send_fds(own, [b"x"], [shared])


def _watch(parent: int) -> None:
  """Ends the process when its parent is gone."""
  while os.getppid() == parent:
    time.sleep(LOOK_SECONDS)
  os._exit(1)


def _padded(size: int) -> int:
  """The bytes that an array takes in shared memory, up to where the next begins."""
  return -(-size // ALIGNED) * ALIGNED


def _answer(limits: Limits, function: Callable, args: tuple) -> tuple[bytes, list[memoryview]]:
  """The pickled (kind, value, notes) of a call, and its large arrays, which are apart."""
  notes: list[str] = []
  try:
    with _limited(limits.memory_gb), warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always", InputNote)
      try:
        value = function(*args)
      finally:
        notes += [str(found.message) for found in caught if found.category is InputNote]
    return _pickled(("made", value, notes))
  except MemoryError:
    return _pickled((TOO_LARGE, None, notes))
  except Exception as error:
    # traces hold what was read
    error.__traceback__ = None
    with contextlib.suppress(Exception):
      data = pickle.dumps(("raised", error, notes))
      pickle.loads(data)
      return data, []
    plain = RuntimeError(f"{type(error).__name__}: {error}")
    return _pickled(("raised", plain, notes))


def _pickled(answer: tuple) -> tuple[bytes, list[memoryview]]:
  """An answer as bytes, and apart from them the arrays that are large."""
  large: list[memoryview] = []

  def stays(buffer: pickle.PickleBuffer) -> bool:
    """Whether an array is pickled with the rest; large ones are kept aside."""
    view = buffer.raw()
    if view.nbytes < SHARED_BYTES or not hasattr(os, "memfd_create"):
      return True
    large.append(view)
    return False

  return pickle.dumps(answer, protocol=5, buffer_callback=stays), large


@contextlib.contextmanager
def _limited(memory_gb: float):
  """Memory that is asked for within is given up to so much more than there is now."""
  try:
    import resource
  except ImportError:  # a system without such limits
    resource = None
  if not memory_gb or resource is None:
    yield
    return
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  most = _address_space() + int(memory_gb * GIGABYTE)
  if hard != resource.RLIM_INFINITY:
    most = min(most, hard)
  with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
  try:
    yield
  finally:
    with contextlib.suppress(ValueError, OSError):
      resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
  """Bytes of the process's address space."""
  try:
    with open("/proc/self/statm") as file:
      pages = int(file.read().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")
  except (OSError, ValueError):
    return GIGABYTE
