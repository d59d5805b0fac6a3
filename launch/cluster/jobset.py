"""A JobSet for Kubernetes: one indexed Job a slice, one pod a machine, all started together."""

from typing import Any

import yaml

from launch.cluster.spec import Spec

API = "jobset.x-k8s.io/v1alpha2"
RESOURCES = {"tpu": "google.com/tpu", "gpu": "nvidia.com/gpu"}
PORT = 8476
JOB, CONTAINER = "slice", "train"
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"

HEADER = """\
# {name}: launch.{command}. Rendered by launch.cluster; submit it with kubectl create -f.
# Exit code 2 (bad configuration or input) fails the JobSet at once. Exit code 75 (stopped after
# saving) and every failure start all pods again, at most {retries} times together: JobSet does not
# tell the two apart.
"""


def render(spec: Spec) -> str:
  """`jobset.yaml`."""
  header = HEADER.format(name=spec.name, command=spec.command, retries=spec.retries)
  # as wide as it needs: a folded line of a command could not be read
  return header + yaml.safe_dump(document(spec), sort_keys=False, width=10_000)


def document(spec: Spec) -> dict[str, Any]:
  """The JobSet as data."""
  cfg = spec.kubernetes
  metadata: dict[str, Any] = {"name": spec.name, "namespace": cfg.namespace}
  if cfg.queue:
    metadata["labels"] = {"kueue.x-k8s.io/queue-name": cfg.queue}
  if spec.kind == "tpu":
    # one node pool a slice; GKE numbers its TPU pods by it
    topology = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    metadata["annotations"] = {topology: "cloud.google.com/gke-nodepool"}

  # Bad input fails the Job, and with it the JobSet; anything else starts all pods again.
  refused = {
    "action": "FailJob",
    "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [2]},
  }
  bad_input = {
    "name": "bad-input",
    "action": "FailJobSet",
    "onJobFailureReasons": ["PodFailurePolicy"],
  }
  # A pod a machine, and never one pod alone a second time.
  job = {
    "parallelism": spec.hosts,
    "completions": spec.hosts,
    "completionMode": "Indexed",
    "backoffLimit": 0,
    "podFailurePolicy": {"rules": [refused]},
    "template": {"spec": pod(spec)},
  }
  slices = {
    "name": JOB,
    "replicas": spec.slices,
    "template": {"spec": job},
  }
  return {
    "apiVersion": API,
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      # processes find each other by name
      "network": {"enableDNSHostnames": True},
      "failurePolicy": {"maxRestarts": spec.retries, "rules": [bad_input]},
      "replicatedJobs": [slices],
    },
  }


def pod(spec: Spec) -> dict[str, Any]:
  """The specification of one pod."""
  cfg = spec.kubernetes
  volumes = [
    {"name": "data", "persistentVolumeClaim": {"claimName": cfg.claim}},
    # NCCL and reading processes share memory there; the default is 64 MiB
    {"name": "shm", "emptyDir": {"medium": "Memory"}},
  ]
  mounts = [{"name": "data", "mountPath": cfg.mount}, {"name": "shm", "mountPath": "/dev/shm"}]
  container = {
    "name": CONTAINER,
    "image": cfg.image,
    "command": spec.argv,
    "env": variables(spec),
  }
  if spec.kind in RESOURCES:
    container["resources"] = {"limits": {RESOURCES[spec.kind]: spec.chips}}
  container["volumeMounts"] = mounts

  document: dict[str, Any] = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": spec.grace_seconds,
  }
  if cfg.node_selector:
    document["nodeSelector"] = dict(cfg.node_selector)
  document["containers"] = [container]
  document["volumes"] = volumes
  return document


def variables(spec: Spec) -> list[dict[str, Any]]:
  """Environment of the container: flags, and where the other processes are (on TPUs GKE says so
  itself).
  """
  out = [{"name": name, "value": value} for name, value in spec.environment.items()]
  if spec.kind != "tpu" and spec.hosts > 1:
    # the first pod of the first slice, by the name that the JobSet's network gives it
    first = f"{spec.name}-{JOB}-0-0.{spec.name}:{PORT}"
    out += [
      {"name": "JAX_COORDINATOR_ADDRESS", "value": first},
      {"name": "JAX_NUM_PROCESSES", "value": str(spec.hosts)},
      {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
    ]
  return out
