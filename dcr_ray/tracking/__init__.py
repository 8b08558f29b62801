"""MLflow tracking: a mirror of the study that is never read back, and that cannot stop or slow the study.

    Tracker   writes every event to an append-only spool in the study's directory, and does nothing else
    sender    a process of its own that reads the spool and sends it to MLflow; down servers are its concern alone
    sync      sends later what a sender could not

The facts of a study are kept elsewhere (the search's journal, the stage records): losing everything that is written
here loses no result.
"""

from dcr_ray.tracking.destination import check_tracking_uri, default_tracking_uri
from dcr_ray.tracking.entries import STUDY_UID
from dcr_ray.tracking.sync import Synced, sync
from dcr_ray.tracking.tracker import Tracker

__all__ = ["STUDY_UID", "Synced", "Tracker", "check_tracking_uri", "default_tracking_uri", "sync"]
