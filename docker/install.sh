#!/bin/sh
# Everything that an image gets from outside, one step a call: what the Dockerfile runs, and the tests too.
set -eu

ENVIRONMENT=/opt/nanocode
PIP=/opt/pip

case ${1-} in
    # What is in every image: Python, certificates, the user that everything runs as.
    base)
        apt-get update
        apt-get install --yes --no-install-recommends ca-certificates python3
        rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
        # Here, because a WORKDIR of the Dockerfile would belong to the user.
        mkdir /app
        # Pods may write to /tmp and to volumes only, so that is where a home can be.
        useradd --uid 1000 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin nanocode
        ;;
    # What installs packages; it stays behind in its stage.
    pip)
        apt-get update
        apt-get install --yes --no-install-recommends python3-venv
        python3 -m venv "$PIP"
        ;;
    # The packages of the given locks, exactly those: wheels only, so nothing is compiled.
    packages)
        shift
        [ -d "$ENVIRONMENT" ] || python3 -m venv --without-pip "$ENVIRONMENT"
        for lock in "$@"; do
            "$PIP/bin/pip" --python "$ENVIRONMENT/bin/python" install --no-cache-dir --disable-pip-version-check \
                --root-user-action=ignore --no-deps --require-hashes --only-binary=:all: --requirement "$lock"
        done
        ;;
    # nanocode itself lies in /app as in a checkout, where it finds k8s/ and SOUL.md beside its code.
    source)
        mkdir -p "$ENVIRONMENT/lib/python3.11/site-packages" "$ENVIRONMENT/bin"
        echo /app >"$ENVIRONMENT/lib/python3.11/site-packages/nanocode.pth"
        printf '%s\n' "#!$ENVIRONMENT/bin/python" 'import sys' 'from cli.main import main' 'sys.exit(main())' \
            >"$ENVIRONMENT/bin/nanocode"
        chmod 755 "$ENVIRONMENT/bin/nanocode"
        # Nobody can write compiled modules later. By content: a copy into another stage may change the times.
        python3 -m compileall -q --invalidation-mode unchecked-hash /app
        ;;
    *)
        echo "usage: install.sh base | pip | packages LOCK... | source" >&2
        exit 2
        ;;
esac
