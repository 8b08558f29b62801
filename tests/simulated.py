"""The simulated crew under the names that the tests use."""

from dcr_ray.pools.simulated import SimulatedWorker, run_simulated
from dcr_ray.pools.simulated import simulated_inputs as study_inputs

__all__ = ["SimulatedWorker", "run_simulated", "study_inputs"]
