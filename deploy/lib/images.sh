# shellcheck shell=bash
# The images of docker/, built by Cloud Build from a commit: an image's tag says exactly what is in it.

IMAGES=(worker trainer-tpu trainer-cuda trainer-cpu)

images_up() {
    local name incomplete=''
    for name in "${IMAGES[@]}"; do
        if [[ $DRY_RUN ]] || ! there "image $name" - \
            gcloud artifacts docker images describe "$REGISTRY/$name:$TAG" --format='value(image_summary.digest)'; then
            incomplete=yes
        fi
    done
    if [[ ! $incomplete ]]; then
        say "images $TAG: there"
        return
    fi
    say "images $TAG: building ${IMAGES[*]}; uncommitted changes are not in them"
    local source=build.tar.gz
    if [[ ! $DRY_RUN ]]; then
        git cat-file -e "$TAG^{commit}" 2>/dev/null ||
            refuse "--tag $TAG: this checkout has no such commit to build, and the registry no such images"
        source=$SCRATCH/build.tar.gz
    fi
    run "source of the images" git archive --format=tar.gz "--output=$source" "$TAG"
    run "images $TAG" gcloud builds submit "$source" --config=deploy/cloudbuild.yaml \
        "--substitutions=_REGISTRY=$REGISTRY,_TAG=$TAG" \
        "--service-account=projects/$PROJECT/serviceAccounts/$BUILDER" \
        "--gcs-source-staging-dir=$WORK_BUCKET/builds"
}
