"""This machine as a cluster of one node, for rehearsals without a cluster file.

Its GPUs are not known by name here, so it counts as a machine without any.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from dcr_ray.planning.cluster import Cluster, NodeFacts, NodeType, StorageFacts
from dcr_ray.planning.gpus import GIB
from dcr_ray.planning.machine import this_machine


def this_cluster() -> Cluster:
    """The cores, memory and disk that can be had now."""
    machine, disk = this_machine(), shutil.disk_usage(Path.home()).free
    facts = NodeFacts(cpus=machine.cores, host_memory_gib=machine.memory_bytes / GIB, disk_gib=max(1.0, disk / GIB))
    storage = StorageFacts(path="runs", read_gb_s=1.0, write_gb_s=0.5)
    return Cluster("this machine", "ray", (NodeType("node", 1, facts),), storage, "USD", None)
