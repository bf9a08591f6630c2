#!/bin/sh
# Verify this bundle and load its images: sh install.sh --key release.pub.pem [--verify-only]
#
# Needs sh, openssl, sha256sum and, to load, docker (or what WARDROUND_DOCKER names, such as podman). No network.
#
# Nothing is loaded before the list of checksums is found signed by the key, and every file is found on the list, whole.
# The key is not in the bundle, since it would prove nothing there: get it from whom you trust, by another way. This script
# comes with the bundle, too. Who wants to trust neither says, before starting it, what it will say itself:
#
#   openssl dgst -sha256 -verify release.pub.pem -signature SHA256SUMS.sig SHA256SUMS && sha256sum --check SHA256SUMS
set -eu

fail() {
    echo "install.sh: $1" >&2
    [ "$loading" = yes ] || echo "install.sh: nothing was loaded." >&2
    exit 1
}

loading=no
key=
verify_only=no
while [ $# -gt 0 ]; do
    case $1 in
    --key) [ $# -ge 2 ] || fail "--key needs a file"; key=$2; shift 2 ;;
    --verify-only) verify_only=yes; shift ;;
    --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) fail "unknown argument $1; say --key FILE, and perhaps --verify-only" ;;
    esac
done
[ -n "$key" ] || fail "say --key FILE: the public key of whoever made the bundle, got from them by another way"
[ -r "$key" ] || fail "the key $key cannot be read"
case $key in /*) ;; *) key=$PWD/$key ;; esac
cd "$(dirname "$0")"

for program in openssl sha256sum; do
    command -v "$program" >/dev/null 2>&1 || fail "the program $program is needed and not there"
done
for file in SHA256SUMS SHA256SUMS.sig; do
    [ -f "$file" ] || fail "$file is missing: the bundle is not whole; copy it again"
done

# 1. The list is signed by the key.
openssl pkey -pubin -in "$key" -noout 2>/dev/null || fail "$key is no public key in PEM"
openssl dgst -sha256 -verify "$key" -signature SHA256SUMS.sig SHA256SUMS >/dev/null 2>&1 ||
    fail "the list of checksums is not signed by the key in $key: the bundle was altered, or somebody else made it"

# 2. Every file of the list is there and is what was signed.
while read -r digest name; do
    case $name in "" | /* | *..*) fail "the list names $name, which is no file of a bundle" ;; esac
    [ -f "$name" ] && [ ! -L "$name" ] || fail "$name is missing: the bundle is not whole; copy it again"
    found=$(sha256sum "$name") || fail "$name cannot be read"
    [ "${found%% *}" = "$digest" ] || fail "$name is not what was signed: it was altered or cut short; copy the bundle again"
done <SHA256SUMS

# 3. And nothing else is there that somebody could take for a part of it.
listed=$(sed 's/^[0-9a-f]*  //' SHA256SUMS && printf 'SHA256SUMS\nSHA256SUMS.sig\n')
extra=$(find . ! -type d | sed 's|^\./||' | grep -v -x -F "$listed" | head -n 1)
[ -z "$extra" ] || fail "$extra is not on the signed list: somebody put it there; unpack the bundle into an empty folder"

fingerprint=$(openssl pkey -pubin -in "$key" -outform DER | sha256sum)
echo "signed by the key ${fingerprint%% *}, and whole: $(wc -l <SHA256SUMS) files of Wardround $(cat VERSION)"
[ "$verify_only" = no ] || exit 0

docker=${WARDROUND_DOCKER:-docker}
command -v "$docker" >/dev/null 2>&1 || fail "the program $docker is not there; set WARDROUND_DOCKER, or use --verify-only"
"$docker" version >/dev/null 2>&1 || fail "no engine answers to '$docker version': start it, or set DOCKER_HOST"
loading=yes
while read -r file tag; do
    echo "loading $tag"
    "$docker" load --quiet --input "$file" >/dev/null || fail "$docker could not load $file"
    "$docker" image inspect "$tag" >/dev/null 2>&1 || fail "$file does not hold $tag"
done <IMAGES

cat <<'END'
loaded. What comes next:
  compose      compose/ holds what a hospital runs (site.yml) and the coordinator's; docs/ says how
  Kubernetes   push the images to your registry; charts/ holds the charts
  systemd      wheels/ and locks/: pip install --no-index --find-links wheels --require-hashes -r locks/site-agent.txt
END
