"""What a job runs: launcher, hand-over, teardown."""
