"""Ray, in which nobody works without the token of the cluster.

Ray reads that when it is imported, so that nothing else of ours imports it. Whoever imported it
before has said by then what is to hold.
"""

import os
import sys

if "ray" not in sys.modules:
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray.exceptions import OutOfMemoryError as RayMemoryError
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["NodeAffinitySchedulingStrategy", "RayError", "RayMemoryError", "RayTaskError", "ray"]
