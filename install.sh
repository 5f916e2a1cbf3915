#!/bin/sh
# Install, upgrade or remove dokku_py on Debian or Ubuntu, as root.
#   ./install.sh [--domain NAME] [--key FILE] [--demo]      from a checkout
#   ... | DOKKU_PY_SOURCE=<git URL or directory> sh         piped; arguments after  sh -s --
#   ./install.sh --uninstall [--purge]                      data under /var/lib/dokku stays unless --purge
set -eu
library=/usr/lib/dokku-py root=/var/lib/dokku domain= key= demo= uninstall= purge= fetched=
usage="usage: install.sh [--domain NAME] [--key FILE] [--demo] | --uninstall [--purge]"
doing="reading the arguments"
ended() {
    code=$?
    [ -z "$fetched" ] || rm -rf "$fetched"
    [ $code = 0 ] || echo " !     install.sh failed while $doing; mend what stands above and run it again" >&2
}
trap ended EXIT
say() { doing=$1; echo "-----> $1"; }
while [ $# -gt 0 ]; do
    case $1 in
        --domain) domain=${2:?$usage}; shift ;;
        --key) key=${2:?$usage}; shift; [ -f "$key" ] || { echo " !     there is no file $key" >&2; exit 2; } ;;
        --demo) demo=yes ;;
        --uninstall) uninstall=yes ;;
        --purge) purge=yes ;;
        *) echo "$usage" >&2; exit 2 ;;
    esac
    shift
done
[ -z "$purge" ] || [ -n "$uninstall" ] || { echo "$usage" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo " !     run it as root: sudo ./install.sh" >&2; exit 1; }
umask 022  # whatever the administrator's: others run and read what is installed
home=$(getent passwd dokku | cut -d: -f6)
[ "${home:-$root}" = $root ] || { echo " !     the user dokku lives in $home: another dokku is installed here, and this one would break it; use another machine" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
engine() { docker -H unix:///var/run/docker.sock "$@"; }

if [ -n "$uninstall" ]; then
    rm -f /etc/cron.d/dokku-py /usr/bin/dokku  # first, or tick starts again what goes
    say "removing the containers and the networks (images and data stay without --purge)"
    if engine version >/dev/null 2>&1; then
        [ -n "$purge" ] || engine ps -q --filter label=com.dokku.container-type=service --filter label=com.dokku.managed-by=dokku_py \
            | xargs -r docker -H unix:///var/run/docker.sock stop -t 60 >/dev/null  # databases write what they hold to the disk
        engine ps -aq --filter label=com.dokku.container-type --filter label=com.dokku.managed-by=dokku_py | xargs -r docker -H unix:///var/run/docker.sock rm -f >/dev/null
        { echo dokku; engine network ls -q --filter label=com.dokku.managed-by=dokku_py; } | xargs docker -H unix:///var/run/docker.sock network rm >/dev/null 2>&1 || true
        [ -z "$purge" ] || engine images -q 'dokku/*' | sort -u | xargs -r docker -H unix:///var/run/docker.sock rmi -f >/dev/null
    fi
    say "removing the program and what it put on the host"
    rm -rf $library /etc/sudoers.d/dokku-py /etc/nginx/conf.d/dokku.conf /etc/nginx/dokku-test.conf /etc/logrotate.d/dokku-py /etc/.dokku-py.new \
        /usr/share/bash-completion/completions/dokku /usr/share/zsh/vendor-completions/_dokku /usr/share/man/man1/dokku.1 \
        /etc/systemd/system/dokku-boot.service /etc/systemd/system/multi-user.target.wants/dokku-boot.service
    crontab -u dokku -r 2>/dev/null || true  # behind the last tick that may have begun
    nginx -s reload 2>/dev/null || true
    if [ -n "$purge" ]; then
        say "removing the user dokku and $root"
        pkill -KILL -u dokku && sleep 1 || true
        userdel dokku 2>/dev/null || true
        rm -rf $root
    else
        [ ! -f $root/.ssh/authorized_keys ] || sed -i '/command="\/usr\/bin\/dokku /d' $root/.ssh/authorized_keys
        echo "       $root and the user dokku are kept; install.sh takes them up again, --uninstall --purge removes them"
    fi
    echo "=====> dokku_py is removed; Docker, nginx and Debian's packages are left alone"
    exit 0
fi

source=$(cd "$(dirname "$0")" && pwd)
if [ ! -f "$source/dokku_py.py" ] || [ -n "${DOKKU_PY_SOURCE:-}" ]; then
    say "fetching the program"
    : "${DOKKU_PY_SOURCE:?name a git URL or a directory to install from, or run install.sh in a checkout}"
    source=$DOKKU_PY_SOURCE
    if [ ! -d "$source" ] || [ ! -f "$source/dokku_py.py" ]; then
        have git || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq git ca-certificates >/dev/null; }
        fetched=$(mktemp -d)
        git clone --quiet --depth 1 -- "$source" "$fetched/source"
        source=$fetched/source
    fi
fi

say "installing Debian packages"
missing=
have dockerd || missing="$missing docker.io"
have nginx || missing="$missing nginx-light"
[ -x /usr/sbin/sshd ] || missing="$missing openssh-server"
for tool in git sudo cron logrotate mmdebstrap curl openssl restic; do have $tool || missing="$missing $tool"; done
have ip || missing="$missing iproute2"
/usr/bin/python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
if [ -n "$missing" ] || ! have lego; then
    apt-get update -qq
    have lego || ! apt-cache show lego >/dev/null 2>&1 || missing="$missing lego"  # for letsencrypt:enable; not every release has it
    # Newer releases ship Docker's client and BuildKit apart from the engine.
    case $missing in *docker.io*) for package in docker-cli docker-buildx; do
        apt-cache show $package >/dev/null 2>&1 && missing="$missing $package"
    done ;; esac
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing ca-certificates iptables >/dev/null
fi

say "making the user dokku and its home $root"
id dokku >/dev/null 2>&1 || useradd --system --create-home --home-dir $root --shell /bin/bash dokku
usermod -p '*' -aG docker,adm dokku  # adm: it reads the logs of nginx, for nginx:access-logs and error-logs
install -d -o dokku -g dokku -m 755 $root  # it may be a disk that was mounted there
install -d -o dokku -g dokku -m 755 $root/data && install -d -o dokku -g dokku -m 700 $root/data/storage  # Docker makes what it mounts, as root
install -d -o dokku -g dokku -m 755 $root/nginx && install -d -o dokku -g www-data -m 2750 $root/nginx/auth  # nginx reads passwords' digests, other users don't

say "copying the program to $library"
mkdir -p $library/versions
$library/venv/bin/python3 -m pip --version >/dev/null 2>&1 || /usr/bin/python3 -m venv $library/venv
[ "$($library/venv/bin/python3 -c 'import docker, jinja2; print(docker.__version__, jinja2.__version__)' 2>/dev/null)" = "7.2.0 3.1.6" ] \
    || $library/venv/bin/pip install --quiet docker==7.2.0 jinja2==3.1.6
packages=$($library/venv/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# Each version has a folder of its own and `current` names one: a running command keeps its version, a killed upgrade changes nothing.
version=$library/versions/$(cat "$source/dokku_py.py" "$source/install.sh" $(find "$source/templates" -type f | sort) | sha256sum | cut -c1-12)
new=$(mktemp -d $library/versions/.new.XXXXXX)
cp -r "$source/dokku_py.py" "$source/templates" "$new"
launcher() {  # no `site`: a command starts a quarter faster without it
    printf '#!/usr/bin/python3 -ISXutf8\nimport sys\nsys.path[:0] = ["%s", "%s"]\nfrom dokku_py import front_door\nfront_door(%s)\n' \
        $library/current "$packages" "$1" > "$2"
    chmod 755 "$2"
}
mkdir "$new/hooks"
launcher 'sys.argv[1:]' "$new/dokku"
launcher '["git-hook"]' "$new/hooks/pre-receive"
chmod -R go=rX "$new"
old=$(readlink $library/current || true)
[ "$old" = "$version" ] || rm -rf "$version"
[ -d "$version" ] && rm -rf "$new" || mv "$new" "$version"
env -u PYTHONDONTWRITEBYTECODE /usr/bin/python3 -m compileall -q "$version/dokku_py.py" "$packages"
sync -f $library  # the program is on the disk before its name is
ln -sfn "$version" $library/current.new && mv -T $library/current.new $library/current
ln -sfn $library/current/dokku /usr/bin/dokku.new && mv -T /usr/bin/dokku.new /usr/bin/dokku
for folder in $library/versions/* $library/versions/.new.*; do
    [ "$folder" = "$version" ] || [ "$folder" = "$old" ] || rm -rf "$folder"
done

say "installing what the host needs: sudoers, nginx include, cron, logrotate"
visudo -cqf $library/current/templates/host/sudoers
place() {  # MODE FILE TARGET: in one step, for half a sudoers file would shut everybody out
    install -m "$1" "$2" /etc/.dokku-py.new && mv -T /etc/.dokku-py.new "$3"
}
place 440 $library/current/templates/host/sudoers /etc/sudoers.d/dokku-py
place 644 $library/current/templates/host/nginx.conf /etc/nginx/conf.d/dokku.conf
place 644 $library/current/templates/host/logrotate /etc/logrotate.d/dokku-py
if [ "$(readlink /etc/nginx/sites-enabled/default 2>/dev/null)" = /etc/nginx/sites-available/default ]; then
    rm /etc/nginx/sites-enabled/default
    echo "       removed the distribution's own default site (it claims every name)"
fi
printf '# dokku_py: finish what a killed process left, judge new releases.\n* * * * * root /usr/bin/dokku tick 2>&1 | logger -t dokku\n' > $library/cron
if [ -d /run/systemd/system ]; then
    place 644 $library/current/templates/host/dokku-boot.service /etc/systemd/system/dokku-boot.service
    systemctl daemon-reload && systemctl enable --quiet dokku-boot.service docker nginx
else
    printf '@reboot root /usr/bin/dokku boot\n' >> $library/cron
fi
place 644 $library/cron /etc/cron.d/dokku-py

mkdir -p /usr/share/bash-completion/completions /usr/share/zsh/vendor-completions /usr/share/man/man1
$library/current/dokku document bash > /usr/share/bash-completion/completions/dokku
$library/current/dokku document zsh > /usr/share/zsh/vendor-completions/_dokku
$library/current/dokku document man > /usr/share/man/man1/dokku.1

say "starting docker, sshd and cron"
if ! engine version >/dev/null 2>&1; then
    # The init script raises its file limit and gives up where that is not allowed.
    service docker start >/dev/null 2>&1 || start-stop-daemon --start --background --no-close --exec /usr/sbin/dockerd \
        --pidfile /var/run/docker-ssd.pid --make-pidfile -- -p /var/run/docker.pid >> /var/log/docker.log 2>&1
    tries=0
    until engine version >/dev/null 2>&1; do
        tries=$((tries + 1)); [ $tries -lt 60 ] || { tail -5 /var/log/docker.log >&2; exit 1; }
        sleep 1
    done
fi
ssh-keygen -A >/dev/null
mkdir -p /run/sshd
pgrep -x sshd >/dev/null || service ssh start >/dev/null
pgrep -x cron >/dev/null || service cron start >/dev/null

say "preparing the state tree, the network and nginx"
dokku setup
if [ -n "$domain" ]; then
    dokku domains:set-global "$domain"
elif [ ! -s $root/VHOST ] && [ -z "$(ls $root/apps)" ]; then  # else who runs it has decided
    dokku domains:set-global "$(hostname -f 2>/dev/null || hostname)" || echo " !     this host's name is no domain: dokku domains:set-global NAME   sets one" >&2
fi
admit() { dokku ssh-keys:add "$1" - || true; }  # a key that is known already is fine
known=$(dokku ssh-keys:list)  # the first administrators are found; who was removed since then stays so
if [ -n "$key" ]; then set -- "$key"; elif [ -z "$known" ]; then set -- /root/.ssh/*.pub; else set --; fi
for file in "$@"; do
    [ ! -f "$file" ] || admit "$(basename "$file" .pub)" < "$file"
done
if [ -z "$key$known" ] && [ -f /root/.ssh/authorized_keys ]; then  # who may log in as root is an administrator
    number=0
    grep -oE '^[[:space:]]*(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+' /root/.ssh/authorized_keys | while read -r line; do
        number=$((number + 1))
        echo "$line" | admit "root-$number" 2>/dev/null
    done
fi
dokku boot >/dev/null
dokku ssh-keys:list | grep -q . || echo " !     no key yet: add yours with  dokku ssh-keys:add NAME < key.pub"
echo "=====> dokku_py is installed: git push dokku@$(hostname -f):APP main"
doing="pushing the demo app"
[ -z "$demo" ] || sh "$source/tests/demo"
