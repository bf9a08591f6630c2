#!/bin/sh
# Take out of a virtual environment what no program of ours reads: prune_packages.sh VENV
set -eu
packages=$1/lib/python3.11/site-packages
find "$packages" -depth -type d -name tests -exec rm -rf {} +
find "$packages" -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.a' \) -delete
# Compilers' helpers.
rm -rf "$packages/numpy/f2py" "$packages/numpy/distutils" "$packages/numpy/_core/include"
# Descriptions of every service of a cloud; ours speaks to S3, and may get its credentials from the others.
if [ -d "$packages/botocore/data" ]; then
    find "$packages/botocore/data" -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sts ! -name sso ! -name sso-oidc -exec rm -rf {} +
fi
