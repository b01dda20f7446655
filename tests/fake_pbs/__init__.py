"""A PBS of one machine for tests: client commands and a scheduler that really runs jobs, as measured on OpenPBS 23.06.

Jobs are processes in sessions of their own. The delays of the server (TERM late after the walltime, KILL after TERM,
ghosts after a node failure) are those of a real one times `factor`; walltimes are not scaled.
"""

from fake_pbs.control import FakePbs

__all__ = ["FakePbs"]
