"""What people look at: the page of a run, the log of all runs, two runs side by side."""
