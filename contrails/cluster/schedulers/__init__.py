"""The schedulers, including this machine, and the sites where they run jobs."""
