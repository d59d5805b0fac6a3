"""Launching on clusters: SLURM, Kubernetes (JobSet), XPK on GKE and TPU VMs, rendered from one
small file by `launch.cluster.command`.
"""
