# shellcheck shell=bash
# What lies around the nodes: APIs, network, accounts, images' registry, buckets, cluster, identities.
# Each has its up beside its down.

# How our mark is read where there is one.
marks() {
    HINT=''
    NETWORK_MARK=(gcloud compute networks describe "$CLUSTER" --format='value(description)')
    REGISTRY_MARK=(gcloud artifacts repositories describe "$CLUSTER" "--location=$REGION"
        --format='value(labels.nanocode-cluster)')
    CLUSTER_MARK=(gcloud container clusters describe "$CLUSTER" "--location=$ZONE"
        --format='value(resourceLabels.nanocode-cluster)')
}

apis() {
    local name wanted=() missing=()
    for name in artifactregistry cloudbuild cloudresourcemanager compute container containerfilesystem iam \
        iamcredentials logging monitoring storage; do
        wanted+=("$name.googleapis.com")
    done
    FOUND=''
    [[ $DRY_RUN ]] || must "APIs" gcloud services list --enabled --format='value(config.name)'
    for name in "${wanted[@]}"; do
        grep -qxF "$name" <<<"$FOUND" || missing+=("$name")
    done
    if ((! ${#missing[@]})); then
        say "APIs: there"
    else
        say "APIs: enabling"
        run "APIs" gcloud services enable "${missing[@]}"
    fi
}

# Nodes are private: nothing can reach them from outside, and a slice of 64 hosts needs no 64 external
# addresses (a new project may use eight). Google's services are reached by private access, the rest of the
# internet (the Hugging Face hub, a teacher's API) through Cloud NAT.
network_up() {
    ensure "network $CLUSTER" "nanocode-cluster=$CLUSTER" "${NETWORK_MARK[@]}" -- \
        gcloud compute networks create "$CLUSTER" --subnet-mode=custom --mtu=8896 \
        "--description=nanocode-cluster=$CLUSTER"
    ensure "subnet $CLUSTER" - \
        gcloud compute networks subnets describe "$CLUSTER" "--region=$REGION" --format='value(name)' -- \
        gcloud compute networks subnets create "$CLUSTER" "--region=$REGION" "--network=$CLUSTER" --range=10.0.0.0/20 \
        --secondary-range=pods=10.4.0.0/14,services=10.8.0.0/20 --enable-private-ip-google-access
    ensure "router $CLUSTER" - \
        gcloud compute routers describe "$CLUSTER" "--region=$REGION" --format='value(name)' -- \
        gcloud compute routers create "$CLUSTER" "--region=$REGION" "--network=$CLUSTER"
    ensure "NAT $CLUSTER" - \
        gcloud compute routers nats describe "$CLUSTER" "--router=$CLUSTER" "--region=$REGION" \
        --format='value(name)' -- \
        gcloud compute routers nats create "$CLUSTER" "--router=$CLUSTER" "--region=$REGION" \
        --auto-allocate-nat-external-ips --nat-all-subnet-ip-ranges
}

network_down() {
    if [[ ! $DRY_RUN ]] && ! there "network $CLUSTER" "nanocode-cluster=$CLUSTER" "${NETWORK_MARK[@]}"; then
        say "network $CLUSTER: not there"
        return
    fi
    # The NAT goes with its router.
    remove "router $CLUSTER" - \
        gcloud compute routers describe "$CLUSTER" "--region=$REGION" --format='value(name)' -- \
        gcloud compute routers delete "$CLUSTER" "--region=$REGION"
    remove "subnet $CLUSTER" - \
        gcloud compute networks subnets describe "$CLUSTER" "--region=$REGION" --format='value(name)' -- \
        gcloud compute networks subnets delete "$CLUSTER" "--region=$REGION"
    remove "network $CLUSTER" "nanocode-cluster=$CLUSTER" "${NETWORK_MARK[@]}" -- \
        gcloud compute networks delete "$CLUSTER"
}

# Accounts of their own for nodes and builds: the project's default one can often do everything.
accounts_up() {
    account_up "$NODES" "nodes of nanocode cluster $CLUSTER" roles/container.defaultNodeServiceAccount
    account_up "$BUILDER" "image builds of nanocode cluster $CLUSTER" roles/logging.logWriter
}

accounts_down() {
    account_down "$NODES" roles/container.defaultNodeServiceAccount
    account_down "$BUILDER" roles/logging.logWriter
}

account_up() {
    ensure "account $1" - gcloud iam service-accounts describe "$1" --format='value(email)' -- \
        gcloud iam service-accounts create "${1%%@*}" "--display-name=$2"
    bind "$3" "serviceAccount:$1" projects "$PROJECT"
}

account_down() {
    # First its role: a binding outlives its account.
    unbind "$2" "serviceAccount:$1" projects "$PROJECT"
    remove "account $1" - gcloud iam service-accounts describe "$1" --format='value(email)' -- \
        gcloud iam service-accounts delete "$1"
}

registry_up() {
    ensure "registry $CLUSTER" "$CLUSTER" "${REGISTRY_MARK[@]}" -- \
        gcloud artifacts repositories create "$CLUSTER" "--location=$REGION" --repository-format=docker \
        "--labels=$LABELS"
    ensure "cleanup of registry $CLUSTER" - \
        gcloud artifacts repositories describe "$CLUSTER" "--location=$REGION" --format='value(cleanupPolicies)' -- \
        gcloud artifacts repositories set-cleanup-policies "$CLUSTER" "--location=$REGION" \
        --policy=deploy/cleanup.json --no-dry-run
    local registry=("artifacts repositories" "$CLUSTER" "--location=$REGION")
    bind roles/artifactregistry.reader "serviceAccount:$NODES" "${registry[@]}"
    bind roles/artifactregistry.writer "serviceAccount:$BUILDER" "${registry[@]}"
}

registry_down() {
    remove "registry $CLUSTER" "$CLUSTER" "${REGISTRY_MARK[@]}" -- \
        gcloud artifacts repositories delete "$CLUSTER" "--location=$REGION"
}

# No hierarchical namespace: a record written last is our commit, so no directory is ever renamed.
# Work in progress has a bucket of its own: deleted checkpoints would be kept and charged for a week by soft
# delete, and what nobody has touched for a month belongs to no run.
buckets_up() {
    local common=("--location=$REGION" --uniform-bucket-level-access --public-access-prevention)
    bucket_up "$BUCKET" "${common[@]}"
    bucket_up "$WORK_BUCKET" "${common[@]}" --soft-delete-duration=0 --lifecycle-file=deploy/lifecycle.json
    bind roles/storage.objectViewer "serviceAccount:$BUILDER" "storage buckets" "$WORK_BUCKET"
}

bucket_up() {
    local label="gcloud storage buckets update $1 --update-labels=$LABELS"
    # Google labels a bucket only after it has been made; a stop between the two needs a hand.
    HINT="if it is yours: $label"
    ensure "bucket $1" "$CLUSTER" gcloud storage buckets describe "$1" --format='value(labels.nanocode-cluster)' -- \
        gcloud storage buckets create "$@"
    HINT=''
    ensure "labels of bucket $1" - gcloud storage buckets describe "$1" --format='value(labels.app)' -- \
        gcloud storage buckets update "$1" "--update-labels=$LABELS"
}

buckets_down() {
    bucket_down "$WORK_BUCKET"
    [[ ! $DELETE_ARTIFACTS ]] || bucket_down "$BUCKET"
}

bucket_down() {
    remove "bucket $1" "$CLUSTER" gcloud storage buckets describe "$1" --format='value(labels.nanocode-cluster)' -- \
        gcloud storage rm --recursive "$1"
}

# A zonal cluster: its control plane is covered by GKE's free tier, a regional one is not, and a slice lives in
# one zone anyway. While the control plane is away, jobs that run go on.
# The control plane is reached by its DNS name with the user's Google account; it has no address to attack.
# Dataplane V2 enforces the network policies of k8s/; image streaming starts a pod before its image is there;
# the scale-down of optimize-utilization gives idle slices back sooner.
cluster_up() {
    ensure "cluster $CLUSTER" "$CLUSTER" "${CLUSTER_MARK[@]}" -- \
        gcloud container clusters create "$CLUSTER" "--location=$ZONE" "--release-channel=$CHANNEL" \
        "--network=$CLUSTER" "--subnetwork=$CLUSTER" --enable-ip-alias --cluster-secondary-range-name=pods \
        --services-secondary-range-name=services --enable-private-nodes --enable-dns-access --no-enable-ip-access \
        --enable-dataplane-v2 "--workload-pool=$PROJECT.svc.id.goog" --enable-image-streaming \
        --addons=HorizontalPodAutoscaling,GcePersistentDiskCsiDriver,GcsFuseCsiDriver \
        --autoscaling-profile=optimize-utilization --machine-type=e2-standard-4 --num-nodes=1 \
        "--service-account=$NODES" --scopes=cloud-platform "--labels=$LABELS"
    pool_up default --machine-type=e2-standard-4 --num-nodes=1 --enable-autoscaling --min-nodes=1 --max-nodes=3
    # A cluster is born with a pool whose name and size cannot be chosen.
    pool_down default-pool
    pool_up cpu "--machine-type=$CPU_MACHINE" "${FOR_JOBS[@]}" "${SPOT[@]}" --max-nodes=4
}

# Its pools go with it.
cluster_down() {
    remove "cluster $CLUSTER" "$CLUSTER" "${CLUSTER_MARK[@]}" -- \
        gcloud container clusters delete "$CLUSTER" "--location=$ZONE"
}

# Kubernetes accounts are principals of their own here: no keys, no Google account in between. The pool that
# they belong to exists as soon as the project has had its first cluster.
identities_up() { identities bind; }
# Bindings of a bucket that goes, go with it.
identities_down() { [[ $DELETE_ARTIFACTS ]] || identities unbind "$BUCKET"; }

identities() {
    local pool=principal://iam.googleapis.com/projects/$PROJECT_NUMBER/locations/global/workloadIdentityPools
    local account=$pool/$PROJECT.svc.id.goog/subject/ns/nanocode/sa bucket buckets=("$BUCKET" "$WORK_BUCKET")
    [[ ! ${2-} ]] || buckets=("$2")
    for bucket in "${buckets[@]}"; do
        "$1" roles/storage.objectUser "$account/nanocode-worker" "storage buckets" "$bucket"
        "$1" roles/storage.objectUser "$account/nanocode-trainer" "storage buckets" "$bucket"
        "$1" roles/storage.objectViewer "$account/nanocode-teacher" "storage buckets" "$bucket"
    done
}

# bind ROLE MEMBER KIND NAME [FLAG]: gives MEMBER the role on NAME, a thing of gcloud's group KIND.
bind() { binding ensure add "$@"; }
unbind() { binding remove remove "$@"; }

binding() {
    local role=$3 member=$4 group target=("${@:6}") condition=()
    read -ra group <<<"$5"
    # A project's policy may have conditions already; gcloud then wants to hear that this one has none.
    [[ $5 != projects ]] || condition=(--condition=None)
    "$1" "role ${role#roles/} of ${member##*[:/]} on ${target[0]}" - \
        bound "$role" "$member" "${group[@]}" get-iam-policy "${target[@]}" -- \
        gcloud "${group[@]}" "$2-iam-policy-binding" "${target[@]}" "--role=$role" "--member=$member" "${condition[@]}"
}

# bound ROLE MEMBER COMMAND...: prints the binding if the policy that the gcloud command reads has it.
bound() {
    local policy
    full gcloud "${@:3}" --flatten='bindings[].members' --format='csv[no-heading](bindings.role,bindings.members)'
    policy=$("${FULL[@]}") || return
    grep -xF "$1,$2" <<<"$policy" || true
}

# What down leaves behind.
remains() {
    say "what remains:"
    [[ $DELETE_ARTIFACTS ]] || say "  $BUCKET with the artifacts (deploy/gke down --delete-artifacts removes it)"
    say "  the APIs that up has enabled (nothing to pay), and logs in Cloud Logging until they expire"
    [[ ! $DRY_RUN ]] || return 0
    if look "disks" gcloud compute disks list --format='value(name)' "--filter=labels.goog-k8s-cluster-name=$CLUSTER" &&
        [[ $FOUND ]]; then
        say "  disks of the cluster, which cost until you delete them in the console: ${FOUND//$'\n'/ }"
    fi
}
