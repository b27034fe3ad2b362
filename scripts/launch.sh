# What the run_*.sh scripts share: their options, and starting a script in one process or, by mpirun, in several.
# Use: source "$(dirname "$0")/launch.sh"; $PYTHON is the interpreter to use (python, unless it is set).

name=$(basename "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PYTHON=${PYTHON:-python}

fail() {
    echo "$name: error: $1" >&2
    exit 1
}

# options "cfg data_path ..." ARGUMENT...: the variables of these names from --cfg=X or --cfg X (- and _ are the same),
# and everything else that is no flag, such as train.epochs=10, in the array `rest`.
options() {
    local known=" $1 " flag
    shift
    rest=()
    while [ $# -gt 0 ]; do
        flag=${1%%=*}
        flag=${flag#--}
        flag=${flag//-/_}
        if [[ $1 != --* ]]; then
            rest+=("$1")
        elif [[ $known != *" $flag "* ]]; then
            fail "unknown option ${1%%=*}; there are:$(for one in $known; do printf ' --%s' "$one"; done)"
        elif [[ $1 == *=* ]]; then
            printf -v "$flag" %s "${1#*=}"
        elif [ $# -gt 1 ]; then
            printf -v "$flag" %s "$2"
            shift
        else
            fail "$1 needs a value"
        fi
        shift
    done
}

# launch RANKS SCRIPT ARGUMENT...
launch() {
    local ranks=$1 missing
    shift
    command -v "$PYTHON" > /dev/null || fail "no $PYTHON here; activate the environment or set PYTHON"
    if [ "$ranks" = 1 ]; then
        "$PYTHON" "$@"
        return
    fi
    command -v mpirun > /dev/null || fail "no mpirun here; pip install -r requirements.txt, or the system's Open MPI"
    missing=$(PYTHONPATH=src "$PYTHON" -c "import sys; from focal_twins.distributed.launch import mpirun_variables; print(*mpirun_variables(int(sys.argv[1])))" \
        "$ranks") || exit 1
    [ -z "$missing" ] || fail "mpirun would not start $ranks processes here; allow it by: export $missing"
    mpirun -n "$ranks" "$PYTHON" "$@"
}

# train RANKS ARGUMENT...: what run_train_1p.sh and run_train_8p.sh take.
train() {
    local ranks=$1 cfg=focalv2_small_useconv_patch4_window7_224 data_path= batch_size= stop_step=
    shift
    options "cfg data_path batch_size stop_step" "$@"
    [[ ${stop_step,,} != true ]] || stop_step=20 # as the reports' scripts say it
    launch "$ranks" train.py --config "$cfg" --device_num "$ranks" ${data_path:+"data.path=$data_path"} \
        ${batch_size:+"train.batch_size=$batch_size"} ${stop_step:+"train.stop_after_update=$stop_step"} "${rest[@]}"
}

# performance RANKS ARGUMENT...: what run_performance_1p.sh and run_performance_8p.sh take.
performance() {
    local ranks=$1 cfg=focalv2_small_useconv_patch4_window7_224 data_path= batch_size= start
    local output=runs/performance_${ranks}p
    shift
    options "cfg data_path batch_size output" "$@"
    [ -n "$data_path" ] || fail "--data_path=FOLDER is needed, the folder with train/ and val/"
    mkdir -p "$output"
    rm -rf "$output/run" # of the last time
    start=$(date +%s)
    # In parentheses, for what fails in there ends that shell alone, and its line is in the log.
    (train "$ranks" --cfg "$cfg" --data_path "$data_path" ${batch_size:+--batch_size "$batch_size"} --stop_step 20 \
        "runtime.output=$output/run" train.log_interval=10 "${rest[@]}") > "$output/train_0.log" 2>&1 || {
        tail -n 5 "$output/train_0.log" >&2
        fail "training failed; its log is $output/train_0.log"
    }
    "$PYTHON" scripts/performance_report.py "$output/run" --ranks "$ranks" --seconds $(($(date +%s) - start)) \
        --output "$output"
}
