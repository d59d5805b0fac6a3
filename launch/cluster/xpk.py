"""An XPK command for TPUs on GKE."""

import shlex

from launch.cluster.spec import Spec

# beside those that XPK starts again anyway (42, 127 to 255: killed); 2 is among neither
RETRIED = "1,75"


def render(spec: Spec) -> str:
  """`xpk.sh`."""
  cfg = spec.xpk
  options = {
    "workload": spec.name,
    "cluster": cfg.cluster,
    "project": cfg.project,
    "zone": cfg.zone,
    "device-type": cfg.device_type,
    "num-slices": spec.slices,
    "docker-image": cfg.image,
    "max-restarts": spec.retries,
    "restart-on-exit-codes": RETRIED,
    "termination-grace-period-seconds": spec.grace_seconds,
  }
  lines = [f"--{name}={value}" for name, value in options.items()]
  lines += [f"--env={name}={value}" for name, value in spec.environment.items()]
  lines.append(f"--command={spec.shell_command}")
  arguments = " \\\n".join(f"  {shlex.quote(line)}" for line in lines)
  return f"""#!/bin/bash
# {spec.name}: launch.{spec.command}. Rendered by launch.cluster. All machines are started again
# together after exit code 75, a failure or a kill, at most {spec.retries} times; never after exit
# code 2.
set -euo pipefail
xpk workload create \\
{arguments}
"""
