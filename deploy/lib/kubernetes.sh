# shellcheck shell=bash
# What runs in the cluster: controllers, secrets, nanocode itself.

JOBSET=v0.12.0
KUEUE_VERSION=v0.19.1
OVERLAY=k8s/overlays/gke

kubernetes_up() {
    credentials
    controller JobSet "$JOBSET" jobset
    [[ ! $KUEUE ]] || controller Kueue "$KUEUE_VERSION" kueue
    settings
    run "nanocode" kubectl apply "--kustomize=$OVERLAY"
    secret OPENROUTER_API_KEY
    secret HF_TOKEN
    [[ ! $KUEUE ]] || run "queues" kubectl apply --kustomize=k8s/kueue
    # A teacher may wait for its machine for hours.
    run "nanocode" kubectl wait deployment --selector=app.kubernetes.io/component!=teacher --for=condition=Available \
        --namespace=nanocode --timeout=15m
}

# Before the cluster goes: a disk that a volume claim holds outlives the cluster, but not its namespace.
kubernetes_down() {
    if [[ ! $DRY_RUN ]] && ! there "cluster $CLUSTER" "$CLUSTER" "${CLUSTER_MARK[@]}"; then return; fi
    # A cluster that does not answer any more has to be removable too.
    (
        credentials
        remove "namespace nanocode" - kubectl get namespace nanocode --ignore-not-found --output=name -- \
            kubectl delete namespace nanocode --timeout=15m
    ) || say "namespace nanocode: left to the cluster's end; its disks remain then"
    run "settings of the overlay" rm -f "$OVERLAY/settings.env"
}

credentials() {
    say "credentials of cluster $CLUSTER for kubectl"
    run "credentials" gcloud container clusters get-credentials "$CLUSTER" "--location=$ZONE" --dns-endpoint
}

# controller NAME VERSION PROJECT: a controller of kubernetes-sigs in the given version, and wait until it answers:
# from then on its webhook sees everything that is applied.
controller() {
    local manifests=https://github.com/kubernetes-sigs/$3/releases/download/$2/manifests.yaml
    ensure "$1 $2" - deployed "$3" "$2" -- kubectl apply --server-side "--filename=$manifests"
    run "$1" kubectl rollout status "deployment/$3-controller-manager" "--namespace=$3-system" --timeout=10m
}

deployed() {
    local image
    full kubectl get deployment "$1-controller-manager" "--namespace=$1-system" --ignore-not-found \
        '--output=jsonpath={.spec.template.spec.containers[*].image}'
    image=$("${FULL[@]}") || return
    [[ $image != *":$2"* ]] || echo "$image"
}

# secret VARIABLE: stores the variable, if it is set, under its name in the Secret nanocode-secrets. The value
# travels through pipes only, and its owner is its own field manager: the next variable leaves it alone.
secret() {
    local make apply
    [[ ${!1-} ]] || return 0
    [[ ${!1} != *$'\n'* ]] || refuse "$1 has a line break in it; a key is one line"
    full kubectl create secret generic nanocode-secrets --from-env-file=/dev/stdin --namespace=nanocode \
        --dry-run=client --output=yaml
    make=("${FULL[@]}")
    full kubectl apply --server-side "--field-manager=nanocode-${1,,}" --filename=-
    apply=("${FULL[@]}")
    say "secret $1: storing"
    if [[ $DRY_RUN ]]; then
        printf 'printf "%s=%%s\\n" "$%s" | %s | %s\n' "$1" "$1" "${make[*]}" "${apply[*]}"
    else
        printf '%s=%s\n' "$1" "${!1}" | "${make[@]}" | "${apply[@]}" ||
            die "secret $1: could not be stored; mend what the message above says, then give the same command again"
    fi
}

# What the overlay has to know of this project: kustomize takes the image from it, and Prefect's pods see the rest.
settings() {
    local lines
    lines=$(
        echo "NANOCODE_STORE=$BUCKET/store"
        echo "NANOCODE_WORK=$WORK_BUCKET/store"
        echo "NANOCODE_IMAGES=$REGISTRY"
        echo "NANOCODE_TAG=$TAG"
        echo "NANOCODE_ACCELERATOR=${ACCELERATORS[0]}"
        [[ ! $ON_DEMAND ]] || echo "NANOCODE_SPOT=false"
        echo "WORKER_IMAGE=$REGISTRY/worker:$TAG"
    )
    say "settings of the overlay: writing $OVERLAY/settings.env"
    if [[ $DRY_RUN ]]; then
        printf "cat > %s/settings.env <<'END'\n%s\nEND\n" "$OVERLAY" "$lines"
    else
        [[ -d $OVERLAY ]] || refuse "there is no $OVERLAY; run deploy/gke in a whole checkout of nanocode"
        printf '%s\n' "$lines" >"$OVERLAY/settings.env"
    fi
}

next_commands() {
    say "done; open the Prefect UI (http://127.0.0.1:4200), and start a run in a second terminal:"
    echo
    echo "kubectl --context=$CONTEXT --namespace=nanocode port-forward service/prefect-server 4200:4200"
    echo "PREFECT_API_URL=http://127.0.0.1:4200/api prefect deployment run nanocode/full-speedrun" \
        "--param preset=d20"
}
