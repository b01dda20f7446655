"""See `contrails.submitit_pbs.in_job.environment`."""

from contrails.submitit_pbs.in_job.environment import PbsJobEnvironment as PbsJobEnvironment
