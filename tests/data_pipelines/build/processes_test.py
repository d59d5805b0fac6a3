"""Worker processes end with the work, however it ends."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import os, time
from data_pipelines.build import processes

def work(seconds):
  return os.getpid(), os.environ["OMP_NUM_THREADS"], time.sleep(seconds)

if __name__ == "__main__":
  with processes.pool(2) as pool:
    for job in [pool.submit(work, 0.5) for _ in range(2)]:
      print(*job.result()[:2], flush=True)
    {end}
"""

WAITING = "pool.submit(work, 600).result()"


def is_alive(pid: int) -> bool:
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize(
  "end, kill", [(WAITING, signal.SIGKILL), (WAITING, signal.SIGTERM), ("raise SystemExit(0)", None)]
)
def test_no_worker_outlives_its_parent(tmp_path, end, kill):
  script = tmp_path / "script.py"
  script.write_text(SCRIPT.format(end=end))
  env = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[3])}
  parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=env)
  lines = [parent.stdout.readline().split() for _ in range(2)]
  assert [threads for _, threads in lines] == ["1", "1"]
  if kill:
    time.sleep(0.5)
    parent.send_signal(kill)
  parent.wait(60)
  workers, until = {int(pid) for pid, _ in lines}, time.monotonic() + 30
  while any(map(is_alive, workers)) and time.monotonic() < until:
    time.sleep(0.1)
  assert not any(map(is_alive, workers))
