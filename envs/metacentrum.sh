# Sourced by every job at MetaCentrum. A job inherits nothing from the shell that submits it.
# The environment itself is built once: see jobs/sites/README.md#metacentrum.

# a batch shell may come without the modules command and the client commands of PBS, which the job's next link needs
[ -r /etc/profile.d/modules.sh ] && . /etc/profile.d/modules.sh
export PATH="$PATH:/opt/pbs/bin"

# caches and temporary files belong to the scratch folder: the quota of /tmp is 1 GB
if [ -n "${SCRATCHDIR:-}" ]; then
    export TMPDIR="$SCRATCHDIR"
    export XDG_CACHE_HOME="$SCRATCHDIR/.cache"
    export SINGULARITY_TMPDIR="$SCRATCHDIR"
    export SINGULARITY_CACHEDIR="$SCRATCHDIR/.singularity"
fi

# a Kerberos ticket is valid for 10 hours, and the job may run longer: renew it every hour, while the job's shell lives
if klist -s 2>/dev/null; then
    (while kill -0 $$; do kinit -R; for _ in {1..60}; do sleep 60; kill -0 $$ || exit; done; done) </dev/null >/dev/null 2>&1 &
fi
