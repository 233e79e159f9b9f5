# Run the command of /etc/pyvmm.command, which vmm/arm64/guest_command.py wrote: `pyvmm run IMAGE -- COMMAND`.
# Sourced by init.sh. The ports are vmm/config/command.py's. To pyvmm.status goes one line each:
#
#     started     the command begins
#     exit N      it has ended, and everything is written; pyvmm ends the machine then
#     error WHY   it cannot begin
. /etc/pyvmm.command # directory, tag, terminal, and the command as $1 and so on

ready() {
    [ "$status" ] || return 1
    if [ "$terminal" ]; then [ -e /dev/hvc0 ]; else [ "$stdin" ] && [ "$stdout" ] && [ "$stderr" ]; fi
}
status= stdin= stdout= stderr= tries=0
until ready; do # ports come one by one, once the driver is there
    for port in /sys/class/virtio-ports/*; do
        name=
        read -r name 2>/dev/null <"$port/name"
        port=/dev/${port##*/}
        case $name in
        pyvmm.status) status=$port ;;
        pyvmm.stdin) stdin=$port ;;
        pyvmm.stdout) stdout=$port ;;
        pyvmm.stderr) stderr=$port ;;
        esac
    done
    if [ "$((tries += 1))" -gt 200 ]; then
        echo "pyvmm guest: no virtio console for the command: has the kernel VIRTIO_CONSOLE and a transport?"
        poweroff
    fi
    ready || sleep 0.05
done
exec 3>"$status"

fail() {
    echo "error $*" >&3
    sleep 30 # pyvmm ends the machine
    poweroff
}
[ -d "$directory" ] || mkdir -p "$directory" || fail "cannot make $directory"
[ ! "$tag" ] || mount -t virtiofs "$tag" "$directory" || fail "cannot mount $directory (virtiofs)"
cd "$directory" || fail "cannot enter $directory"

start() {
    exec 3>&-
    if ! command -v -- "$1" >/dev/null; then
        echo "pyvmm guest: $1: not found" >&2
        exit 127
    fi
    exec "$@"
}
echo started >&3
out= err=
if [ "$terminal" ]; then
    export TERM="$terminal"
    (command -v -- "$1" >/dev/null && set -- setsid -c "$@"; start "$@") <>/dev/hvc0 >&0 2>&1
    code=$?
else
    # Pipes: a port can be opened once only, so that /dev/stderr would be busy.
    mkfifo /run/stdin /run/stdout /run/stderr
    cat <"$stdin" >/run/stdin 3>&- &
    cat </run/stdout >"$stdout" 3>&- &
    out=$!
    cat </run/stderr >"$stderr" 3>&- &
    err=$!
    (start "$@") </run/stdin >/run/stdout 2>/run/stderr
    code=$?
fi
cd /
for process in /proc/[0-9]*; do # those left behind keep the pipes open
    process=${process#/proc/}
    case $process in 1 | "$out" | "$err") ;; *) kill -9 "$process" 2>/dev/null ;; esac
done
if [ "$terminal" ]; then
    timeout 60 stty echo </dev/hvc0 # returns when the terminal has sent all
else
    wait "$out" "$err"
fi
sync
echo "exit $code" >&3
sleep 30 # pyvmm ends the machine
poweroff
