# shellcheck shell=bash
# Accelerators as GKE machines, and what they cost. The names are those of nanocode_core/planning/accelerators.py
# (a test holds both tables together); a v5e or v6e name counts chips, a v5p name TensorCores, two a chip.

# slice NAME: sets CHIP, CHIPS, HOSTS, MACHINE, TOPOLOGY (of a slice of several hosts) and GPU (its type).
slice() {
    local size=${1##*-} family
    CHIP=${1%-*} CHIPS=$size HOSTS=1 TOPOLOGY='' GPU=''
    case $CHIP in
        v5e | v6e)
            [[ $CHIP == v5e ]] && family=ct5lp-hightpu || family=ct6e-standard
            # Up to eight chips are one machine; larger slices are made of machines of four.
            MACHINE=$family-4t HOSTS=0
            case $size in
                1 | 4 | 8) MACHINE=$family-${size}t HOSTS=1 ;;
                16) TOPOLOGY=4x4 ;;
                32) TOPOLOGY=4x8 ;;
                64) TOPOLOGY=8x8 ;;
                128) TOPOLOGY=8x16 ;;
                256) TOPOLOGY=16x16 ;;
                *) refuse "no accelerator $1; $CHIP comes as 1, 4, 8, 16, 32, 64, 128 and 256" ;;
            esac
            ;;
        v5p)
            MACHINE=ct5p-hightpu-4t HOSTS=0
            case $size in
                8) HOSTS=1 ;;
                16) TOPOLOGY=2x2x2 ;;
                32) TOPOLOGY=2x2x4 ;;
                64) TOPOLOGY=2x4x4 ;;
                128) TOPOLOGY=4x4x4 ;;
                256) TOPOLOGY=4x4x8 ;;
                512) TOPOLOGY=4x8x8 ;;
                *) refuse "no accelerator $1; v5p comes as 8, 16, 32, 64, 128, 256 and 512" ;;
            esac
            CHIPS=$((size / 2))
            ;;
        h100)
            [[ $size =~ ^[1248]$ ]] || refuse "no accelerator $1; h100 comes as 1, 2, 4 and 8"
            # Google sells parts of such a machine as spot only.
            [[ ! $ON_DEMAND || $size == 8 ]] || refuse "$1 comes as spot only; leave out --on-demand, or take h100-8"
            MACHINE=a3-highgpu-${size}g GPU=nvidia-h100-80gb
            ;;
        h200)
            [[ $size == 8 ]] || refuse "no accelerator $1 on GKE; h200 comes as 8"
            MACHINE=a3-ultragpu-8g GPU=nvidia-h200-141gb
            ;;
        # Their slices need a workload policy, and no price of them is published.
        tpu7x) refuse "deploy/gke makes no pools for $1; choose from v5e, v5p, v6e, h100, h200" ;;
        cpu) refuse "cpu is no accelerator to ask for; every cluster has the pool cpu" ;;
        *) refuse "no accelerator $1; names are like v6e-8, v5e-16, v5p-8, h100-8" ;;
    esac
    ((HOSTS)) || HOSTS=$((CHIPS / 4))
}

# price CHIP FIELD: on_demand or spot dollars for a chip and hour, or the date; empty where there is none.
# The user's file replaces whole tables of ours, as in nanocode_core/config/chips.py.
price() {
    local files=(nanocode_core/config/prices.toml)
    [[ ! ${NANOCODE_PRICES-} ]] || files+=("$NANOCODE_PRICES")
    awk -F ' *= *' -v chip="[$1]" -v field="$2" '
        { sub(/[ \t]*(#.*)?$/, "") }
        /^\[/ { inside = tolower($1) == chip; if (inside) value = "" }
        inside && $1 == field { value = $2; gsub(/"/, "", value) }
        END { print value }
    ' "${files[@]}"
}

# cost NAME [WHO]: one line, what the accelerator costs while a job (or WHO) has it.
cost() {
    local rate spot times='' capacity=spot who=${2:-a job}
    slice "$1"
    ((MAX_SLICES == 1)) || times="up to $MAX_SLICES times "
    rate=$(price "$CHIP" on_demand) spot=$(price "$CHIP" spot)
    if [[ ! $rate ]]; then
        say "  $1: prices.toml has no price for $CHIP"
    elif [[ ! $ON_DEMAND && ! $spot ]]; then
        say "  $1: ${times}less than $(dollars "$CHIPS" "$rate") an hour while $who has it, 0 otherwise" \
            "($CHIPS chips, spot; prices.toml has the price on demand only)"
    else
        [[ $ON_DEMAND ]] && capacity="on demand" || rate=$spot
        say "  $1: $times$(dollars "$CHIPS" "$rate") an hour while $who has it, 0 otherwise" \
            "($CHIPS chips, $capacity, $rate each, price of $(price "$CHIP" date) in prices.toml)"
    fi
}

dollars() { awk -v chips="$1" -v rate="$2" 'BEGIN { printf "%.2f", chips * rate }'; }

costs() {
    local name
    for name in "${ACCELERATORS[@]}"; do cost "$name"; done
    say "  prices.toml does not know: the control plane, one e2-standard-4 (up to three), up to four spot" \
        "$CPU_MACHINE while jobs need them, Cloud NAT, storage, builds; see 'What it costs' in docs/gke.md"
}
