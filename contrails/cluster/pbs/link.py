"""See `contrails.submitit_pbs.in_job.link`; scripts of jobs queued by earlier versions start this module."""

from contrails.submitit_pbs.in_job.link import main

if __name__ == "__main__":
    main()
