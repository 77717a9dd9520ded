"""Stand-ins for SLURM's four programs, which start a job at once, all its nodes here. A real one is not at hand."""

from pathlib import Path

PROGRAMS = {
    # As the real one, it runs a copy of the script that lies elsewhere.
    "sbatch": """
        here=$(dirname "$0") nodes=1
        while [[ $1 == --* ]]; do
            echo "$1" >> "$here/flags"
            case $1 in --nodes=*) nodes=${1#*=} ;; esac
            shift
        done
        cp "$1" "$here/slurm_script"
        echo $$ > "$here/script"
        shift
        export SLURM_JOB_ID=7 SLURM_JOB_NODELIST="node[0-9]" SLURM_JOB_NUM_NODES=$nodes SLURM_CPUS_ON_NODE=4
        exec bash "$here/slurm_script" "$@"
    """,
    "scontrol": """
        case "$1 $2" in
            "show hostnames") echo localhost; echo another ;;
            "show job")
                # SLURM's signal may come at any time: here, at first, before there is a step.
                if [[ ${TOLD_EARLY-} && ! -e $(dirname "$0")/tasks ]]; then kill "$(< "$(dirname "$0")/script")"; fi
                echo "   JobState=${JOB_STATE:-RUNNING} Reason=None"
                echo "   SubmitTime=2026-11-26T10:00:00 E=1"
                ;;
            *) echo "$*" >> "$(dirname "$0")/flags" ;;
        esac
    """,
    # To the tasks and not to the script, as the real one without --batch.
    "scancel": """
        echo "$*" >> "$(dirname "$0")/flags"
        if [[ ${BUSY_ONCE-} && ! -e $(dirname "$0")/busy ]]; then touch "$(dirname "$0")/busy"; exit 1; fi
        kill "${1/#--signal=/-}" $(cat "$(dirname "$0")/tasks")
    """,
    "srun": """
        nodes=1
        while [[ $1 == --* ]]; do
            echo "$1" >> "$(dirname "$0")/flags"
            case $1 in --nodes=*) nodes=${1#*=} ;; esac
            shift
        done
        for ((node = 0; node < nodes; node++)); do SLURM_NODEID=$node "$@" & done
        # Told to end, the real one kills its tasks.
        trap 'kill -KILL $(jobs -p)' TERM
        jobs -p > "$(dirname "$0")/tasks"
        for ((node = 0; node < nodes; node++)); do wait -n || exit; done
    """,
}


def stand_ins(folder: Path) -> Path:
    """Write them to `folder`, which is to be put on the PATH. The flags they get are lines of `folder/flags`."""
    folder.mkdir(exist_ok=True)
    for name, body in PROGRAMS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder
