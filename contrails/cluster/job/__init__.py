"""The code that runs inside a job: launcher, hand-over, teardown."""
