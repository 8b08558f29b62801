"""A study's part in sharing a cluster: it says how it stands, and starts or gives back a group as it is told.

Ray itself queues what cannot be placed, so a study that finds no room waits, and its first group and engines are
placed as soon as another study has given something back. What others hold besides studies is not known here.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import replace
from typing import Any

from dcr_ray.errors import InputError, Problem
from dcr_ray.pools.shared_cluster import EXPIRE_SECONDS, Share, SharedCluster, Standing
from dcr_ray.study import Resources

ACTOR, NAMESPACE = "shared-cluster", "dcr-ray"
BEAT_SECONDS = 2.0
ANSWER_SECONDS = 10.0
NOTICED_SECONDS = 10.0
"""For how long a study may be without a place before its user is told: Ray needs a few seconds anyway."""


class FairShare:
    """`groups` is how many to begin with, `gpus` how many GPUs the study's groups and engines hold now.

    Raises InputError where another driver runs a study of this name here.
    """

    def __init__(self, study: str, resources: Resources, ranks: int):
        driver = f"process {os.getpid()} on {os.uname().nodename} [{uuid.uuid4().hex[:8]}]"
        self._bundle = {"CPU": float(resources.cpus_per_rank)}
        if resources.gpus_per_rank:
            self._bundle["GPU"] = float(resources.gpus_per_rank)
        self._ranks = ranks
        self._gpus_per_engine = resources.tensor_parallel * (resources.gpus_per_engine or 0.0)
        self.gpus = 0.0
        self._standing = Standing(
            study=study,
            driver=driver,
            wanted=resources.worker_groups or 1,
            weight=ranks * (self._bundle.get("GPU") or self._bundle["CPU"]),
            engines=resources.engines,
        )
        self._began = time.monotonic()
        self._beaten = 0.0
        self._waits = self._left = False
        self._lacking_since: float | None = None
        self._trouble: str | None = None
        share = self._tell(self._standing)
        # A driver that was killed is forgotten after a while.
        while share.holder and time.monotonic() - self._began < EXPIRE_SECONDS + 5:
            time.sleep(1)
            share = self._tell(self._standing)
        if share.holder:
            found = f"{study}, which {share.holder.partition(' [')[0]} runs on this cluster"
            fix = "Stop it, wait for its end, or give this one another name."
            raise InputError([Problem("study", found, "a study that nobody runs there", fix)])
        self.groups = share.groups

    def beat(self, crew: Any) -> list[str]:
        """Say how the study stands and do what its share asks for. Returns what a user should know."""
        import ray

        if self._left or time.monotonic() - self._beaten < BEAT_SECONDS:
            return []
        self._beaten = time.monotonic()
        states = states_of_groups(self._bundle, self._ranks)
        standing = replace(
            self._standing,
            up=crew.groups_up,
            placed=states.count("CREATED"),
            pending=len(states) - states.count("CREATED"),
            engines_pending=crew.engines_pending,
            room=fits(self._bundle, self._ranks, free_resources()),
        )
        self.gpus = standing.placed * self._ranks * self._bundle.get("GPU", 0.0)
        self.gpus += (standing.engines - standing.engines_pending) * self._gpus_per_engine
        try:
            share = self._tell(standing)
        except ray.exceptions.RayError as error:
            # The study goes on with what it has.
            before, self._trouble = self._trouble, type(error).__name__
            said = " ".join(str(error).split())[:200]
            return [f"the cluster's other studies cannot be asked: {said}"] if before != self._trouble else []
        self._trouble = None
        messages = self._waiting(standing, share)
        if share.groups < crew.groups_wanted and crew.groups_wanted > 1:
            if name := crew.release_group():
                messages.append(f"{name} is given back after its stage: study {share.giving_to} waits for room")
        elif share.groups > crew.groups_wanted:
            messages.append(f"{crew.start_group()} is started: the cluster has room for it")
        return messages

    def leave(self) -> None:
        """The study has ended. The last one takes the actor with it."""
        import ray

        if self._left:
            return
        self._left = True
        actor = _actor()
        if ray.get(actor.leave.remote(self._standing.study, self._standing.driver), timeout=ANSWER_SECONDS):
            ray.kill(actor)

    def _waiting(self, standing: Standing, share: Share) -> list[str]:
        if not standing.lacks:
            self._lacking_since = None
        elif self._lacking_since is None:
            self._lacking_since = time.monotonic()
        elif not self._waits and time.monotonic() - self._lacking_since > NOTICED_SECONDS:
            self._waits = True
            missing = [] if standing.placed else [f"a group of {self._ranks} x {_told(self._bundle)}"]
            missing += ["an engine"] if standing.engines_pending else []
            others = f"; here run {', '.join(share.others)}" if share.others else "; no other study runs here"
            return [f"waits for room for {' and '.join(missing)}{others}"]
        if not standing.lacks and self._waits:
            self._waits = False
            return ["has found room"]
        return []

    def _tell(self, standing: Standing) -> Share:
        import ray

        try:
            return ray.get(_actor().tell.remote(standing), timeout=ANSWER_SECONDS)
        except ray.exceptions.RayActorError:
            # The last study that ended took it along just now.
            return ray.get(_actor().tell.remote(standing), timeout=ANSWER_SECONDS)


def states_of_groups(bundle: dict[str, float], ranks: int) -> list[str]:
    """Ray's states of the placement groups that this driver's worker groups have asked for; CREATED have a place."""
    import ray

    # The identifier of a placement group ends with that of the job that made it.
    job = ray.get_runtime_context().get_job_id()
    return [
        group["state"]
        for identifier, group in ray.util.placement_group_table().items()
        if identifier.endswith(job)
        and group["state"] != "REMOVED"
        and len(group["bundles"]) == ranks
        and all(each == bundle for each in group["bundles"].values())
    ]


def free_resources() -> list[dict[str, float]]:
    """What each node has free now."""
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())


def fits(bundle: dict[str, float], ranks: int, nodes: list[dict[str, float]]) -> bool:
    """Whether so many bundles fit into what the nodes have free, each of them into one node."""
    return sum(int(min(node.get(name, 0) / amount for name, amount in bundle.items())) for node in nodes) >= ranks


def _actor() -> Any:
    import ray

    options = {"name": ACTOR, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    on_head = {"node:__internal_head__": 0.0001}
    return ray.remote(SharedCluster).options(**options, num_cpus=0, max_restarts=-1, resources=on_head).remote()


def _told(bundle: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())
