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
  return HEADER.format(name=spec.name, command=spec.command, retries=spec.retries) + yaml.safe_dump(
    document(spec), sort_keys=False, width=10_000
  )


def document(spec: Spec) -> dict[str, Any]:
  """The JobSet as data."""
  cfg = spec.kubernetes
  labels = {"labels": {"kueue.x-k8s.io/queue-name": cfg.queue}} if cfg.queue else {}
  # GKE numbers its TPU pods by it
  whole_slice = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
  annotations = {"annotations": whole_slice} if spec.kind == "tpu" else {}
  refused = {
    "action": "FailJob",
    "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [2]},
  }
  job = {
    "parallelism": spec.hosts,
    "completions": spec.hosts,
    "completionMode": "Indexed",
    "backoffLimit": 0,
    "podFailurePolicy": {"rules": [refused]},
    "template": {"spec": pod(spec)},
  }
  return {
    "apiVersion": API,
    "kind": "JobSet",
    "metadata": {"name": spec.name, "namespace": cfg.namespace, **labels, **annotations},
    "spec": {
      "network": {"enableDNSHostnames": True},
      "failurePolicy": {
        "maxRestarts": spec.retries,
        "rules": [
          {"name": "bad-input", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        ],
      },
      "replicatedJobs": [{"name": JOB, "replicas": spec.slices, "template": {"spec": job}}],
    },
  }


def pod(spec: Spec) -> dict[str, Any]:
  """The specification of one pod."""
  cfg = spec.kubernetes
  chips = (
    {"resources": {"limits": {RESOURCES[spec.kind]: spec.chips}}} if spec.kind in RESOURCES else {}
  )
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
    **chips,
    "volumeMounts": mounts,
  }
  selector = {"nodeSelector": dict(cfg.node_selector)} if cfg.node_selector else {}
  return {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": spec.grace_seconds,
    **selector,
    "containers": [container],
    "volumes": volumes,
  }


def variables(spec: Spec) -> list[dict[str, Any]]:
  """Environment of the container: flags, and where the other processes are (on TPUs GKE says so
  itself).
  """
  out = [{"name": name, "value": value} for name, value in spec.environment.items()]
  if spec.kind != "tpu" and spec.hosts > 1:
    out += [
      {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{spec.name}-{JOB}-0-0.{spec.name}:{PORT}"},
      {"name": "JAX_NUM_PROCESSES", "value": str(spec.hosts)},
      {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
    ]
  return out
