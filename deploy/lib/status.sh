# shellcheck shell=bash
# What is there, what runs, what it costs right now. Changes nothing but kubectl's credentials.

status() {
    if there "cluster $CLUSTER" "$CLUSTER" "${CLUSTER_MARK[@]}"; then
        must "cluster $CLUSTER" gcloud container clusters describe "$CLUSTER" "--location=$ZONE" \
            --format='value(status,currentMasterVersion)'
        say "cluster $CLUSTER in $ZONE: ${FOUND//$'\t'/, version }"
        must "credentials" gcloud container clusters get-credentials "$CLUSTER" "--location=$ZONE" --dns-endpoint
        status_pools
        status_teacher
        status_jobs
    else
        say "cluster $CLUSTER in $ZONE: not there"
    fi
    status_bucket "$BUCKET"
    status_bucket "$WORK_BUCKET"
}

status_pools() {
    local nodes pools name machine spot most count cost total=0 other=0
    must "nodes" kubectl get nodes --no-headers \
        '--output=custom-columns=:.metadata.labels.cloud\.google\.com/gke-nodepool'
    nodes=$FOUND
    must "pools" gcloud container node-pools list "--cluster=$CLUSTER" "--location=$ZONE" \
        --format='csv[no-heading](name,config.machineType,config.spot,autoscaling.maxNodeCount)'
    pools=$FOUND
    echo
    printf '%-12s %-20s %-10s %12s %10s\n' pool machine capacity nodes '$/hour'
    while IFS=, read -r name machine spot most; do
        [[ $name ]] || continue
        count=$(grep -cxF "$name" <<<"$nodes" || true)
        [[ ${spot,,} == true ]] && spot=spot || spot=on_demand
        ((count)) && cost=$(node_cost "$name" "$count" "$spot") || cost=0.00
        printf '%-12s %-20s %-10s %12s %10s\n' "$name" "$machine" "${spot/_/ }" "$count of $most" "${cost:-?}"
        if [[ $cost ]]; then
            total=$(awk -v a="$total" -v b="$cost" 'BEGIN { print a + b }')
        else
            other=$((other + count))
        fi
    done <<<"$pools"
    printf '\nchips right now: $%.2f an hour by prices.toml; ' "$total"
    printf 'nodes without a price there: %d; they and all that is no node come on top\n' "$other"
}

# node_cost POOL NODES CAPACITY: dollars an hour; empty where prices.toml has none.
node_cost() (
    ON_DEMAND=''
    [[ $1 =~ ^([a-z0-9]+-[0-9]+)(-[0-9]+)?$ ]] || exit 0
    slice "${BASH_REMATCH[1]}" 2>/dev/null || exit 0
    rate=$(price "$CHIP" "$3")
    [[ ! $rate ]] || dollars "$((CHIPS * $2 / HOSTS))" "$rate"
)

status_teacher() {
    must "teacher" kubectl get deployments --selector=app.kubernetes.io/component=teacher --namespace=nanocode \
        '--output=jsonpath={range .items[*]}{.status.readyReplicas} of {.spec.replicas} ready{end}'
    if [[ $FOUND ]]; then
        # The field is missing as long as none is ready.
        [[ $FOUND == " "* ]] && FOUND=0$FOUND
        say "teacher: $FOUND; it keeps its machine until deploy/gke teacher down"
    else
        say "teacher: not there"
    fi
}

status_jobs() {
    echo
    # JobSets own Jobs: those show both.
    must "jobs" kubectl get jobsets,jobs --namespace=nanocode --ignore-not-found
    say "${FOUND:-no jobs}"
    echo
}

status_bucket() {
    if look "bucket $1" gcloud storage du --summarize "$1"; then
        say "bucket $1: $(awk '{ printf "%.2f GiB", $1 / 2^30 }' <<<"$FOUND")"
    else
        say "bucket $1: not there"
    fi
}
