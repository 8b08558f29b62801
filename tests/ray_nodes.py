"""Several Ray nodes on one machine, in a process of their own: a program that is told on its standard input what to do.

    add            one more node with one CPU; prints its id
    kill           SIGKILL to the raylet of a node, not the head, that holds a part of a placement group; prints its id
    drain          notice to such a node: it goes in 60 seconds; prints its id
    groups         prints the states of all placement groups as JSON
    end

It prints one line for each of them, and the address of the head first. Its own lines begin with MARK: Ray prints too.
"""

from __future__ import annotations

import json
import subprocess
import sys

MARK = "> "


def answer(text: str) -> None:
    print(f"{MARK}{text}", flush=True)


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_host": "127.0.0.1", "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=True)
    small = {"num_cpus": 1, "object_store_memory": 80_000_000}
    for _ in range(2):
        cluster.add_node(**small)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    answer(cluster.address)
    for line in sys.stdin:
        command = line.split()[0]
        if command == "add":
            answer(cluster.add_node(**small).node_id)
        elif command in ("kill", "drain"):
            node = _holding(cluster)
            if command == "kill":
                cluster.remove_node(node, allow_graceful=False)
            else:
                reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
                subprocess.run(
                    ["ray", "drain-node", "--address", cluster.address, "--node-id", node.node_id, *reason]
                    + ["--deadline-remaining-seconds", "60"],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
            answer(node.node_id)
        elif command == "groups":
            states = [group["state"] for group in ray.util.placement_group_table().values()]
            answer(json.dumps(states))
        else:
            ray.shutdown()
            cluster.shutdown()
            return


def _holding(cluster):
    """A node beside the head that holds a bundle of a placement group."""
    import ray

    used = {
        node
        for group in ray.util.placement_group_table().values()
        if group["state"] == "CREATED"
        for node in group["bundles_to_node_id"].values()
    }
    return next(node for node in cluster.worker_nodes if node.node_id in used)


if __name__ == "__main__":
    main()
