"""See `contrails.submitit_pbs.in_job.link`; scripts of jobs that wait start it by this name."""

from contrails.submitit_pbs.in_job.link import main

if __name__ == "__main__":
    main()
