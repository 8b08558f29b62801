"""Hyper-parameter and scaling studies of DCR, Discernment via Contrastive Refinement, on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcr_ray.api import ScalingStudy, Study

__all__ = ["ScalingStudy", "Study"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # The API reaches everything else; a light command that only wants a submodule does not pay for it.
    if name in __all__:
        from dcr_ray import api

        return getattr(api, name)
    raise AttributeError(f"module 'dcr_ray' has no attribute '{name}'")
