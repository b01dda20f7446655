# The first program in a container: `sh inside.sh CALLS FOLDER COMMAND...`. It takes over the job's environment, puts the
# scheduler's commands first on the PATH, and becomes the command. See enter.sh.
calls=$1 folder=$2
shift 2
: >"$calls/entered"
read -r loop <"$calls/loop"
if [ ! -d "/proc/$loop" ]; then
    echo "error: container_runtime: expected the process ids of the node in the container, found others; locks and" \
        "heartbeats need the former: give the runtime its option for them, such as --pid=host" >&2
    exit 9
fi
if [ -r /ch/environment ]; then # where Charliecloud keeps the variables of an image, without setting them
    while IFS= read -r line; do
        case $line in PATH=* | LD_LIBRARY_PATH=*) export "$line" ;; esac
    done </ch/environment
fi
. "$calls/environment"
export PYTHONNOUSERSITE=1 # packages below ~/.local belong to the Python of the node
export CONTRAILS_CONTAINER="$calls"
export PATH="$calls/bin${PATH:+:$PATH}:/usr/local/bin:/usr/bin:/bin"
if ! command -v "$1" >/dev/null; then
    echo "error: container: expected $1 on the PATH of the image, found none in $PATH; build the image again with" \
        "envs/contrails.def or envs/Dockerfile" >&2
    exit 9
fi
cd "$folder" 2>/dev/null || cd /
exec "$@"
