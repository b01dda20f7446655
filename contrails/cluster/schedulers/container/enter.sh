#!/bin/bash
# Run a command of a job in a container, and serve its calls of the scheduler's commands, which the image lacks.
#
#   enter.sh --site NAME --image IMAGE [--bind PATH]... [--stage FOLDER] [--nvidia WORDS --amd WORDS] -- RUNTIME COMMAND...
#
# RUNTIME is a command line with blanks between its words: {image} becomes the image, a word with {bind} is repeated for
# every folder that the container sees, {gpus} becomes the words for the node's GPUs. This script runs on the node outside
# of the container and needs bash and coreutils, no Python. Its exit code is the command's, or 9 if there is no container.
#
# A call from inside: `call.sh`, under the name of the command, writes a folder with its words, environment and standard
# input, and the folder's name to a fifo. `serve` runs the command here and leaves output and exit code in that folder.
set -u
export USER="${USER:-$(id -un)}" # Charliecloud refuses to start without it
own=$(cd "${BASH_SOURCE[0]%/*}" && pwd)
commands="sbatch squeue scancel scontrol sacct sinfo sstat sacctmgr qsub qstat qdel qselect qsig qmgr qextend pbsnodes"

main() {
    local site='' image='' stage='' nvidia='' amd='' binds=() runtime words
    while [ "$1" != -- ]; do
        case $1 in
        --site) site=$2 ;;
        --image) image=$2 ;;
        --stage) stage=$2 ;;
        --nvidia) nvidia=$2 ;;
        --amd) amd=$2 ;;
        --bind) binds+=("$2") ;;
        esac
        shift 2
    done
    read -r -a runtime <<<"$2"
    shift 2
    require "$image" "${runtime[0]}"
    stage=$(expanded "$stage")
    [ -n "$stage" ] && mkdir -p -- "$stage" 2>/dev/null # a container sees only what exists
    if [ -f "$image" ] && [ -n "$stage" ]; then
        stage_image "$image" "$stage" && image=$staged
    fi
    make_calls
    local gpus=$nvidia
    [ -e /dev/kfd ] && [ ! -e /dev/nvidiactl ] && gpus=$amd
    fill "$image" "$gpus" "$PWD" "${HOME-}" "${calls%/*}" "$stage" "${SCRATCHDIR-}" ${binds[@]+"${binds[@]}"}
    serve_calls </dev/null >/dev/null 2>&1 &
    loop=$!
    echo "$loop" >"$calls/loop"
    write_environment >"$calls/environment"
    [ "${runtime[0]}" = ch-run ] && unset TMPDIR # it would stand for /tmp in the container
    run "${words[@]}" sh "$calls/inside.sh" "$calls" "$PWD" "$@"
    kill -KILL "$loop"
    wait "$loop" 2>/dev/null
    local begun=''
    [ -e "$calls/entered" ] && begun=1
    rm -rf -- "$calls"
    # 128 + N: signal N came before the container had begun
    [ -n "$begun" ] || ((code > 128 && code <= 192)) || explain "$image" "${runtime[0]}" "$code"
    exit "$code"
}

refuse() { # MESSAGE
    printf 'error: %s; then check a node with `contrails doctor --site %q --job`\n' "$1" "$site" >&2
    exit 9
}

require() { # IMAGE RUNTIME
    [[ $1 != /* || -e $1 ]] || refuse "container: expected the image $1 on the node $HOSTNAME, found none; nodes may \
not see this folder: move the image to storage that they share, and correct the site profile"
    command -v -- "$2" >/dev/null || refuse "container_runtime: expected the command $2 on the node $HOSTNAME, found \
none; load its module in prologue of the site profile, or request nodes that have it"
}

# Run a command as a child, so that this script sees its end; signals for this script alone are passed on.
run() { # COMMAND...
    local child
    "$@" <&0 &
    child=$!
    trap 'kill -TERM "$child"' TERM
    trap 'kill -USR1 "$child"' USR1
    trap 'kill -USR2 "$child"' USR2
    while :; do
        wait "$child"
        code=$?
        [ -e "/proc/$child" ] || return # else a signal ended the wait
    done
}

# Say why no container came to be, below the runtime's own message.
explain() { # IMAGE RUNTIME CODE
    local most found=''
    read -r most 2>/dev/null </proc/sys/user/max_user_namespaces || most=1
    if [ "$most" = 0 ] || grep -qsx 0 /proc/sys/kernel/unprivileged_userns_clone; then
        found=", and the node allows no user namespaces, which a runtime without setuid needs"
    fi
    refuse "container: expected $2 on the node $HOSTNAME to run sh in $1, which is to be built for $(uname -m), found \
exit code $3$found; its own message is above; correct the image or the node"
}

# The image

expanded() { # TEXT: print it with environment variables such as $SCRATCHDIR replaced; nothing if one is not set
    local text=$1
    while [[ $text =~ \$\{?([A-Za-z_][A-Za-z_0-9]*)\}? ]]; do
        [ -n "${!BASH_REMATCH[1]-}" ] || return
        text=${text//"${BASH_REMATCH[0]}"/"${!BASH_REMATCH[1]}"}
    done
    printf '%s' "$text"
}

# Set $staged to a verified copy of the image in a folder of this node; the first job copies, the others wait for it.
stage_image() { # IMAGE FOLDER
    local image=$1 folder=$2 temporary said lock
    staged=$folder/container-$UID-$(stat -L -c %s-%Y -- "$image")-${image##*/}
    if ! said=$(mkdir -p -- "$folder" 2>&1) || ! { exec {lock}>"$staged.lock"; } 2>/dev/null; then
        keep_shared "$image" "${said:-no file can be made in $folder}"
        return 1
    fi
    flock "$lock" 2>/dev/null # without locks, several copies are made, each under a name of its own
    # the folder may be shared by users, and what is there runs as this one
    if [ ! -O "$staged" ] || [ "$(stat -c %s -- "$staged" 2>/dev/null)" != "$(stat -L -c %s -- "$image")" ]; then
        rm -f -- "$staged".*.tmp
        temporary=$staged.$$.tmp
        if ! said=$(copy "$image" "$temporary" 2>&1) || ! mv -- "$temporary" "$staged"; then
            rm -f -- "$temporary"
            exec {lock}>&-
            keep_shared "$image" "$said"
            return 1
        fi
    fi
    exec {lock}>&-
}

copy() { # FROM TO
    local read_sum
    read_sum=$(set -o pipefail && tee -- "$2" <"$1" | sha256sum) || return 1
    sync -- "$2" 2>/dev/null
    [ "$read_sum" = "$(sha256sum <"$2")" ] || { echo "the copy differs from the image"; return 1; }
}

keep_shared() { # IMAGE REASON
    echo "warning: no copy of the image on this node, so the slower shared file $1 is used: $2" >&2
}

# The command line of the runtime

# Set $words to the runtime's command line.
fill() { # IMAGE GPUS FOLDER...
    local image=$1 gpus=$2 word path seen=: folders=()
    shift 2
    for path; do
        case $path in /) continue ;; /*) ;; *) continue ;; esac
        [[ -e $path && $seen != *":$path:"* ]] || continue
        seen+=$path:
        folders+=("$path")
        [ -d "$image" ] && mkdir -p -- "$image$path" 2>/dev/null # Charliecloud needs it, and cannot make it
    done
    words=()
    for word in "${runtime[@]}"; do
        case $word in
        *'{bind}'*) for path in "${folders[@]}"; do words+=("${word//'{bind}'/"$path"}"); done ;;
        '{gpus}') read -r -a word <<<"$gpus" && words+=("${word[@]}") ;;
        *) words+=("${word//'{image}'/"$image"}") ;;
        esac
    done
}

# The environment

# What the image sets for itself, or a shell for its own use.
is_foreign() { # NAME
    case $1 in
    PATH | LD_* | LIBRARY_PATH | PYTHONHOME | PYTHONUSERBASE | VIRTUAL_ENV | CONDA_* | BASH_ENV | ENV | IFS) true ;;
    SHELLOPTS | BASHOPTS | SHLVL | PWD | OLDPWD | UID | EUID | PPID | APPTAINER_* | SINGULARITY_* | _) true ;;
    *) [[ ! $1 =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] ;;
    esac
}

# Print the job's environment as lines for a POSIX shell, since runtimes differ in what they let through.
write_environment() {
    local pair rest
    while IFS= read -r -d '' pair; do
        is_foreign "${pair%%=*}" && continue
        rest=${pair#*=}
        printf "export %s='" "${pair%%=*}"
        while [[ $rest == *\'* ]]; do
            printf '%s' "${rest%%\'*}" "'\''"
            rest=${rest#*\'}
        done
        printf "%s'\n" "$rest"
    done <"/proc/$$/environ"
}

# Calls of the scheduler's commands

# Set $calls to a folder for the user alone; remove those of jobs that were killed on this node.
make_calls() {
    local old name folder=${TMPDIR:-/tmp}
    [ -d "$folder" ] || folder=/tmp
    for old in "$folder/contrails-$HOSTNAME".*.*; do
        name=${old##*/contrails-"$HOSTNAME".}
        [[ -O $old && ! -e /proc/${name%%.*} ]] && rm -rf -- "$old"
    done
    calls=$(mktemp -d "$folder/contrails-$HOSTNAME.$$.XXXXXX") || refuse "container: expected a folder for temporary \
files on the node $HOSTNAME, could not write to $folder; free space there, or set TMPDIR in prologue of the site profile"
    mkdir "$calls/bin"
    mkfifo "$calls/requests"
    cp "$own/inside.sh" "$own/call.sh" "$calls"
    chmod 700 "$calls/call.sh"
    for name in $commands; do
        command -v "$name" >/dev/null && ln -s ../call.sh "$calls/bin/$name"
    done
}

serve_calls() {
    local id
    trap '' TERM USR1 USR2 INT HUP # a signal for every process of the job must not end a call that is under way
    exec 3<>"$calls/requests"
    while [ -e "/proc/$$" ]; do
        read -r -t 5 id <&3 || continue
        [[ $id =~ ^[0-9]+\.[0-9]+$ ]] && serve "$calls/$id" 3<&- &
    done
    rm -rf -- "$calls"
}

serve() { # FOLDER OF THE CALL
    local call=$1 words=() word child watch code
    while IFS= read -r -d '' word; do words+=("$word"); done <"$call/words"
    run_call "${words[@]:1}" <"$call/in" >"$call/out" 2>"$call/err" &
    child=$!
    while is_alive "${words[0]}"; do sleep 0.2; done && kill -KILL "$child" &
    watch=$!
    wait "$child"
    code=$?
    kill -KILL "$watch"
    if is_alive "${words[0]}"; then
        echo "$code" >"$call/code.new" && mv "$call/code.new" "$call/code"
    else
        rm -rf -- "$call"
    fi
}

is_alive() { # PID: a process that was killed may stay in the table until its parent asks
    local said
    read -r said 2>/dev/null <"/proc/$1/stat" && [[ ${said##*) } != Z* ]]
}

# Run a command with the job's own environment, as the caller has changed it.
run_call() { # FOLDER NAME ARGUMENT...
    local pair
    local -A callers=()
    while IFS= read -r -d '' pair; do callers[${pair%%=*}]=${pair#*=}; done <"$call/environ"
    while IFS= read -r -d '' pair; do
        is_foreign "${pair%%=*}" && continue
        if [ -n "${callers[${pair%%=*}]+set}" ]; then
            export "${pair%%=*}=${callers[${pair%%=*}]}"
        else
            unset "${pair%%=*}"
        fi
    done <"/proc/$$/environ"
    cd "$1" 2>/dev/null
    [[ " $commands " == *" $2 "* ]] && exec "${@:2}"
    exit 127
}

main "$@"
