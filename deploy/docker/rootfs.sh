#!/bin/sh
# Gather what an image adds to its base beside the packages: rootfs.sh APP
#   /rootfs   the project, its licence, and the user that it runs as
#   /state    empty folders of that user, so that a new volume mounted over them belongs to it
set -eu
app=$1
mkdir -p "/rootfs$app" /rootfs/etc /rootfs/usr/share/wardround /state/wardround/jobs /state/handover /state/secrets
cp -R "$app/." "/rootfs$app/"
cp source/LICENSE /rootfs/usr/share/wardround/LICENSE
# Written here and not by useradd, which puts the day and backup copies beside it.
{ cat /etc/passwd; echo 'wardround:x:10001:10001:Wardround:/srv/wardround:/usr/sbin/nologin'; } > /rootfs/etc/passwd
{ cat /etc/group; echo 'wardround:x:10001:'; } > /rootfs/etc/group
chmod 0700 /state/wardround /state/wardround/jobs /state/handover
# The database's server reads its password there, by the group.
chmod 0750 /state/secrets
find /state -exec touch --date=@315532800 {} +
