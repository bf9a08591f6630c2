#!/bin/sh
# Gather under /rootfs what an image adds to its base beside the packages: rootfs.sh APP STATE_FOLDER[:MODE]...
#
# The project (APP), its licence, the user that it runs as, and empty folders of that user, closed to others: a new volume
# that is mounted over one of them belongs to it. (Where a password of the database lies, its server reads by the group.)
set -eu
app=$1
shift
mkdir -p "/rootfs$app" /rootfs/etc /rootfs/usr/share/wardround /rootfs/srv
cp -R "$app/." "/rootfs$app/"
cp LICENSE /rootfs/usr/share/wardround/LICENSE
# Written here and not by useradd, which puts the day and backup copies beside it.
{ cat /etc/passwd; echo 'wardround:x:10001:10001:Wardround:/srv/wardround:/usr/sbin/nologin'; } > /rootfs/etc/passwd
{ cat /etc/group; echo 'wardround:x:10001:'; } > /rootfs/etc/group
sh settle.sh /rootfs
for folder in "$@"; do
    mode=0700
    case $folder in *:*) mode=${folder##*:} ;; esac
    install --directory --owner=10001 --group=10001 --mode="$mode" "/rootfs${folder%%:*}"
done
find /rootfs/srv -exec touch --date=@315532800 {} +
