# shellcheck shell=bash
# Saying, asking, looking, running: what the steps of deploy/gke are made of.

SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
# Where gcloud's last complaint lies.
ERRORS=$SCRATCH/errors

# Complaints that mean "there is no such thing"; any other complaint means that we do not know.
ABSENT='not.?found|does not exist|SERVICE_DISABLED|has not been used in project|is not enabled'
# A new account or identity pool takes some seconds to be known everywhere.
NOT_YET='[Ss]ervice account .* does not exist|Identity [Pp]ool does not exist'

say() { printf '%s\n' "${DRY_RUN:+# }$*"; }

# refuse LINE: bad input. die LINE: the cloud would not.
refuse() { echo "error: $*" >&2 && exit 2; }
die() { echo "error: $*" >&2 && exit 1; }

# confirm QUESTION: goes on after a yes only.
confirm() {
    local answer=''
    [[ ! $YES && ! $DRY_RUN ]] || return 0
    [[ -t 0 ]] || refuse "there is no terminal to ask on; add --yes to go on without a question"
    read -r -p "$1 [y/N] " answer || true
    [[ $answer == [yY]* ]] || { say "stopped; nothing was changed" && exit 1; }
}

# full COMMAND...: the command with what each call of gcloud and kubectl needs, in FULL. kubectl is told its
# cluster each time: the current context may have become another one meanwhile.
full() {
    FULL=("$@")
    case $1 in
        gcloud) FULL+=("--project=$PROJECT" --quiet) ;;
        kubectl) FULL+=("--context=$CONTEXT") ;;
    esac
}

# show COMMAND...: the command as a user can paste it; a long one has a line for each option.
show() {
    local word line='' long='' quote="'\\''"
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word="'${word//\'/$quote}'"
        line+="${line:+ }$word"
        [[ $word == --* ]] && long+=$' \\\n    '"$word" || long+="${long:+ }$word"
    done
    if ((${#line} <= 110)); then printf '%s\n' "$line"; else printf '%s\n' "$long"; fi
}

# run WHAT COMMAND...: does it, or shows it in a dry run.
run() {
    local what=$1 try
    full "${@:2}"
    if [[ $DRY_RUN ]]; then
        show "${FULL[@]}"
        return
    fi
    for try in {1..7}; do
        # Both streams go on to the user; what comes on stderr is kept for advice().
        { "${FULL[@]}" 2>&1 >&3 3>&- | tee "$ERRORS" >&2; } 3>&1 && return
        if ((try == 7)) || ! grep -qE "$NOT_YET" "$ERRORS"; then break; fi
        sleep 10
    done
    die "$what: $(advice); then give the same command again"
}

# look WHAT COMMAND...: what a reading command finds, in FOUND; fails where there is no such thing.
look() {
    full "${@:2}"
    FOUND=$("${FULL[@]}" 2>"$ERRORS") && return
    grep -qiE "$ABSENT" "$ERRORS" && return 1
    die "$1: $(tr '\n' ' ' <"$ERRORS" | cut -c 1-300)($(advice))"
}

# must WHAT COMMAND...: the same where there is no reason for it not to be there.
must() { look "$@" || die "$1: not found"; }

# there WHAT MARK COMMAND...: whether the reading command finds it. With a MARK that is not "-" it has to be
# what the command prints; another output means that somebody else made it, and we keep our hands off.
there() {
    look "$1" "${@:3}" || return
    case $2 in
        -) [[ $FOUND ]] ;;
        "$FOUND") ;;
        *) die "$1 was not made by deploy/gke for cluster $CLUSTER; take another --cluster${HINT:+, or $HINT}" ;;
    esac
}

# ensure WHAT MARK LOOK... -- MAKE...: makes it if it isn't there.
ensure() {
    split "$@"
    if [[ ! $DRY_RUN ]] && there "$1" "$2" "${LOOK[@]}"; then
        say "$1: there"
    else
        say "$1: making"
        run "$1" "${DO[@]}"
    fi
}

# remove WHAT MARK LOOK... -- REMOVE...: removes it if it is there.
remove() {
    split "$@"
    if [[ $DRY_RUN ]] || there "$1" "$2" "${LOOK[@]}"; then
        say "$1: removing"
        run "$1" "${DO[@]}"
    else
        say "$1: not there"
    fi
}

split() {
    LOOK=() DO=()
    shift 2
    while [[ $1 != -- ]]; do
        LOOK+=("$1")
        shift
    done
    DO=("${@:2}")
}

# What to do about the last complaint.
advice() {
    case $(<"$ERRORS") in
        *[Bb]illing*) echo "link a billing account to the project in the console" ;;
        *[Qq]uota* | *QUOTA*) echo "ask for more quota, see 'Quotas' in docs/gke.md" ;;
        *STOCKOUT* | *EXHAUSTED* | *"enough resources"*) echo "the zone has none left; wait or try another zone" ;;
        *"ncompatible operation"* | *"being created"*) echo "the cluster is being changed; wait for the end of that" ;;
        *PERMISSION_DENIED* | *"does not have"* | *403*)
            echo "your account lacks a role, see 'What you need' in docs/gke.md"
            ;;
        *"auth login"* | *credential*) echo "log in with: gcloud auth login" ;;
        *"achine type"*) echo "the zone does not have this machine type; try another zone or --cpu-machine" ;;
        *) echo "mend what the message above says" ;;
    esac
}
