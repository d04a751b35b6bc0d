# shellcheck shell=bash
# The teacher: vLLM with a language model, on a machine that is paid for as long as it is up.

# What k8s/teacher has it on.
declare -A TEACHERS=([tpu]=v6e-8 [gpu]=h100-1)

teacher() {
    cluster_there
    if [[ ${TARGETS[0]} == up ]]; then teacher_up "${TARGETS[1]}"; else teacher_down; fi
}

teacher_up() {
    local name=${TEACHERS[$1]}
    say "the teacher of k8s/teacher/$1 keeps its machine until deploy/gke teacher down; in dollars:"
    cost "$name" "the teacher"
    confirm "start it?"
    slice_up "$name"
    credentials
    run "teacher" kubectl apply "--kustomize=k8s/teacher/$1"
    say "done; it answers when a machine is there and its weights are loaded:"
    echo
    echo "kubectl --context=$CONTEXT --namespace=nanocode rollout status deployment/teacher --timeout=2h"
}

teacher_down() {
    say "the teacher will be removed: a run that asks it waits half an hour for another one, then ends with its answers kept"
    confirm "remove it?"
    credentials
    run "teacher" kubectl delete \
        deployment,service,horizontalpodautoscaler,podmonitoring,poddisruptionbudget,configmap \
        --selector=app.kubernetes.io/component=teacher --namespace=nanocode
    say "its pool stays, for jobs and the next teacher, and costs nothing without them (deploy/gke pool rm removes it)"
}
