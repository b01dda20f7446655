"""A submitit plugin for OpenPBS and PBS Pro, `submitit.AutoExecutor(folder, cluster="pbs")`; see PBS.md beside it."""
