"""The command line: one module per command, in folders named as the sections of `contrails --help`."""
