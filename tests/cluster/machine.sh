#!/usr/bin/env bash
# The first process of a machine that is made of namespaces: `unshare --net --pid --mount --uts --ipc --fork
# bash machine.sh FOLDER NAME [VISIBLE…]`.
#
# It sees this machine's programs, read-only; its own /proc, /tmp, /run, /dev/shm and home (FOLDER/NAME/home, at
# /tmp/home, kept when it is started again); and /shared (FOLDER/shared), which all of them have. VISIBLE are paths that
# its own /tmp would hide. All of it ends with this process; nothing is written outside FOLDER.
set -eu
folder=$1 name=$2
shift 2
home=/tmp/home
export PATH=$PATH:/usr/sbin:/sbin

mount --make-rprivate /
root=$folder/$name/root
mkdir -p "$folder/shared" "$folder/$name/home" "$root"
mount -t tmpfs -o size=1g machine "$root"
for path in /*; do
    case $path in
        /proc | /tmp | /run | /shared) ;;
        *)
            if [ -L "$path" ]; then
                cp -a "$path" "$root/"
            elif [ -d "$path" ]; then
                mkdir "$root$path"
                mount --rbind "$path" "$root$path"
            fi
            ;;
    esac
done
for path in usr etc var opt root home srv; do
    if [ -d "$root/$path" ] && [ ! -L "$root/$path" ]; then mount -o remount,bind,ro "$root/$path"; fi
done
mkdir -p "$root"/{proc,tmp,run/sshd,shared,old} "$root$home"
chmod 1777 "$root/tmp"
mount -t proc proc "$root/proc"
mount -t tmpfs -o size=1500m machine "$root/dev/shm"
mount -t tmpfs machine "$root/var/log"
mount --bind "$folder/shared" "$root/shared"
mount --bind "$folder/$name/home" "$root$home"
for path in "$@"; do
    case $path in
        /tmp/* | /run/*)
            mkdir -p "$root$path"
            mount --bind "$path" "$root$path"
            mount -o remount,bind,ro "$root$path"
            ;;
    esac
done
# Root's home, for sshd and for whoever asks the account database.
sed "s|^\(root:[^:]*:0:0:[^:]*\):[^:]*:|\1:$home:|" /etc/passwd > "$folder/$name/passwd"
mount --bind "$folder/$name/passwd" "$root/etc/passwd"

hostname "$name"
ip link set lo up
cd "$root"
pivot_root . old
umount -l /old
rmdir /old
export HOME=$home
if [ -e "$home/.ssh/authorized_keys" ]; then
    /usr/sbin/sshd -D -e -f /dev/null -h "$home/.ssh/host_key" -o PidFile=none -o UsePAM=no -o StrictModes=no \
        -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no \
        -o AuthorizedKeysFile="$home/.ssh/authorized_keys" > "$home/sshd.log" 2>&1 < /dev/null &
fi
# Not exec: the first process takes in the orphans of all others, which bash does.
while :; do
    sleep 1000 &
    wait $! || true
done
