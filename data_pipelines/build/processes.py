"""Worker processes: one thread of linear algebra each, ended at once when the work is over, stopped
or lost its parent.
"""

from collections.abc import Iterator
import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import signal
import threading
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# in a worker: the way to the process that has started it
_channel: multiprocessing.queues.SimpleQueue | None = None


class Pool:
  """An executor, and what its workers tell while they work."""

  def __init__(self, executor: concurrent.futures.ProcessPoolExecutor, channel):
    self.submit = executor.submit
    self._channel = channel

  def told(self) -> Iterator[Any]:
    """What workers have told since the last call, oldest first."""
    while not self._channel.empty():
      yield self._channel.get()


def tell(what: Any) -> None:
  """Tells the process that has started this worker; `what` is small and pickles."""
  _channel.put(what)


@contextlib.contextmanager
def pool(workers: int) -> Iterator[Pool]:
  """Fresh processes, which inherit no state of JAX or of a renderer. At the end what is not
  finished is given up.
  """
  fresh = multiprocessing.get_context("spawn")
  channel = fresh.SimpleQueue()
  with single_threaded_children():
    executor = concurrent.futures.ProcessPoolExecutor(
      workers,
      fresh,
      initializer=_start,
      initargs=(channel,),
    )
    try:
      yield Pool(executor, channel)
    finally:
      _stop(executor)


@contextlib.contextmanager
def single_threaded_children():
  """Processes started inside use one thread each for linear algebra: the cores are taken by the
  processes.
  """
  saved = {name: os.environ.get(name) for name in THREAD_VARIABLES}
  os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
  try:
    yield
  finally:
    for name, value in saved.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value


def _start(channel) -> None:
  """Ctrl-C is the parent's to handle; a worker whose parent has died ends too."""
  global _channel
  _channel = channel
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def watch() -> None:
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _stop(executor: concurrent.futures.ProcessPoolExecutor) -> None:
  # shutdown() would wait for jobs that can take many minutes, and before Python 3.14 the executor
  # offers no other end.
  processes = list((executor._processes or {}).values())
  executor.shutdown(wait=False, cancel_futures=True)
  for process in processes:
    process.terminate()
  for process in processes:
    process.join()
