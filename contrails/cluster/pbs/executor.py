"""See `contrails.submitit_pbs.executor`."""

from contrails.submitit_pbs.executor import PbsExecutor as PbsExecutor
