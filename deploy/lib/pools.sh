# shellcheck shell=bash
# Node pools. A pool that is there is left as it is: to change one, remove and add it.

# Spot machines go away at half a minute's notice. The taint keeps everything off them that does not ask for
# it, above all Prefect's server.
SPOT=(--spot --node-taints=cloud.google.com/gke-spot=true:NoSchedule)

# A pool for jobs is empty until one asks for it. A job wants 80 GiB of local disk (gke.disk_gib), and GKE keeps
# nearly half of a boot disk for itself.
FOR_JOBS=(--num-nodes=0 --enable-autoscaling --disk-size=200)

# pool_up NAME FLAG...
pool_up() {
    ensure "pool $1" - \
        gcloud container node-pools describe "$1" "--cluster=$CLUSTER" "--location=$ZONE" --format='value(name)' -- \
        gcloud container node-pools create "$1" "--cluster=$CLUSTER" "--location=$ZONE" "${@:2}" \
        "--service-account=$NODES" --scopes=cloud-platform --workload-metadata=GKE_METADATA "--labels=$LABELS"
}

pool_down() {
    remove "pool $1" - \
        gcloud container node-pools describe "$1" "--cluster=$CLUSTER" "--location=$ZONE" --format='value(name)' -- \
        gcloud container node-pools delete "$1" "--cluster=$CLUSTER" "--location=$ZONE"
}

# slice_up NAME: the pool of an accelerator. A pool of several hosts is one slice, which GKE makes and loses as a
# whole, so each further slice is a further pool (NAME-2, NAME-3, ...).
slice_up() {
    local flags number
    slice "$1"
    flags=("--machine-type=$MACHINE" "${FOR_JOBS[@]}" --enable-gvnic)
    [[ $ON_DEMAND ]] || flags+=("${SPOT[@]}")
    if [[ $TOPOLOGY ]]; then
        flags+=("--max-nodes=$HOSTS" "--tpu-topology=$TOPOLOGY" --placement-type=COMPACT)
        for ((number = 1; number <= MAX_SLICES; number++)); do
            pool_up "$(slice_pool "$1" "$number")" "${flags[@]}"
        done
        return
    fi
    # Neither topology nor placement for one host: GKE takes that for a slice of several.
    flags+=("--max-nodes=$MAX_SLICES")
    [[ ! $GPU ]] || flags+=("--accelerator=type=$GPU,count=$CHIPS,gpu-driver-version=latest")
    pool_up "$1" "${flags[@]}"
}

slice_down() {
    local number=1
    slice "$1"
    pool_down "$1"
    [[ $TOPOLOGY ]] || return 0
    while ((number++ < 99)); do
        if [[ $DRY_RUN ]]; then
            ((number <= MAX_SLICES)) || break
        else
            look "pools" gcloud container node-pools list "--cluster=$CLUSTER" "--location=$ZONE" --format='value(name)'
            grep -qxF "$(slice_pool "$1" "$number")" <<<"$FOUND" || break
        fi
        pool_down "$(slice_pool "$1" "$number")"
    done
}

slice_pool() { if (($2 == 1)); then echo "$1"; else echo "$1-$2"; fi; }
