"""Reports for people: the HTML page of a run, the log of all runs, the comparison of two runs."""
