#!/bin/sh
# Take out of the base what installs or configures software, and what runs as root: prune_base.sh
#
# What is left is what a running program needs, a shell to look around with, and dpkg's list of packages, which scanners
# read. Licences of Debian's packages stay in /usr/share/doc.
set -eu
# In this order: what a package's removal needs (perl, python3-pip's own cleaner) goes after it.
for package in python3-venv python3.11-venv python3-pip python3-wheel python3-pip-whl python3-setuptools-whl \
    python3-setuptools python3-pkg-resources python3-lib2to3 \
    e2fsprogs libext2fs2 libss2 logsave mount util-linux-extra apt adduser gpgv debian-archive-keyring libapt-pkg6.0 \
    perl libperl5.36 perl-modules-5.36 perl-base; do
    if dpkg-query --status "$package" >/dev/null 2>&1; then
        # The order of removals is ours, so that what dpkg says about essential packages is known.
        dpkg --purge --force-all "$package" >/tmp/purged 2>&1 || { cat /tmp/purged >&2; exit 1; }
    fi
done
# Python's own image has them outside of dpkg.
stdlib=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
rm -rf "$stdlib/ensurepip" "$stdlib/idlelib" "$stdlib/turtledemo" "$stdlib/test" "$stdlib/lib2to3"
for name in pip setuptools wheel pkg_resources _distutils_hack; do
    rm -rf "/usr/local/lib/python3.11/site-packages/$name" "/usr/local/lib/python3.11/site-packages/$name"-*.dist-info
done
rm -f /usr/local/bin/pip* /usr/local/bin/wheel* /usr/local/bin/idle* /usr/local/bin/2to3*
# Character sets of the last century (Python brings its own), time scales with leap seconds, and manuals.
rm -rf /usr/lib/*/gconv /usr/share/zoneinfo/right /usr/share/zoneinfo/posix /usr/share/info /usr/share/man /usr/share/perl5
# Nobody becomes another user in here.
find / -xdev -perm /6000 -type f -exec chmod ug-s {} +
# What says when the image was built.
rm -rf /build /tmp/* /var/tmp/* /var/log/* /var/cache/* /var/lib/apt /var/lib/dpkg/*-old /etc/passwd- /etc/group- \
    /etc/shadow- /etc/gshadow- /var/lib/systemd
