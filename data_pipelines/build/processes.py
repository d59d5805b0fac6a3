"""Worker processes: one thread of linear algebra each, ended at once when the work is over, stopped
or lost its parent.
"""

from collections.abc import Iterator
import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextlib.contextmanager
def pool(workers: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
  """An executor of fresh processes, which inherit no state of JAX or of a renderer. At the end what
  is not finished is given up.
  """
  fresh = multiprocessing.get_context("spawn")
  with single_threaded_children():
    executor = concurrent.futures.ProcessPoolExecutor(workers, fresh, initializer=_start)
    try:
      yield executor
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


def _start() -> None:
  """Ctrl-C is the parent's to handle; a worker whose parent has died ends too."""
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
