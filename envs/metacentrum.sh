# Sourced by every job at MetaCentrum. A job inherits nothing from the shell that submits it.
# The environment itself is built once, on a frontend: `envs/build` in a clone below /storage/<city>/home/$USER.

# a batch shell may come without the modules command and the client commands of PBS, which the job's next link needs
[ -r /etc/profile.d/modules.sh ] && . /etc/profile.d/modules.sh
export PATH="$PATH:/opt/pbs/bin"

# caches and temporary files belong to the scratch folder: the quota of /tmp and of the home folder is small
if [ -n "${SCRATCHDIR:-}" ]; then
    export TMPDIR="$SCRATCHDIR"
    export XDG_CACHE_HOME="$SCRATCHDIR/.cache"
fi
