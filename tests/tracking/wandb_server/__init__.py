"""A W&B server on this machine that keeps all that it receives, and answers what wandb-core sends as the real one."""

from wandb_server.faults import Fault
from wandb_server.held import Artifact, Held, StoredRun
from wandb_server.server import KEY, WandbServer

__all__ = ["KEY", "Artifact", "Fault", "Held", "StoredRun", "WandbServer"]
