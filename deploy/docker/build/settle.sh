#!/bin/sh
# Make a folder the same in every build: settle.sh FOLDER...
#
# Byte code is written here, named by the digest of its source and not by a time: the containers' roots are read-only, so
# Python could not write it later, and each start (and each health check) would compile all that it imports.
# One process, in sorted order, with a fixed hash seed: what Python writes depends on what it compiled before.
set -eu
for folder in "$@"; do
    find "$folder" -depth -type d -name __pycache__ -exec rm -rf {} +
    # -qq and true: some packages carry files for later versions of Python, which do not compile and are not imported.
    PYTHONHASHSEED=0 python3 -m compileall -qq --invalidation-mode unchecked-hash "$folder" || true
    # Modes as after a checkout with umask 022, whatever the umask was; times as in every build (1980, the first of a zip).
    chmod -R u=rwX,go=rX "$folder"
    find "$folder" -exec touch --no-dereference --date=@315532800 {} +
done
