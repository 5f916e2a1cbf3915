#!/bin/sh
# Install or upgrade dokku_py on Debian or Ubuntu, as root:  ./install.sh [--domain NAME] [--key FILE] [--demo]
set -eu
library=/usr/lib/dokku-py root=/var/lib/dokku domain= key= demo=
doing="reading the arguments"
trap '[ $? = 0 ] || echo " !     install.sh failed while $doing; mend what stands above and run it again" >&2' EXIT
say() { doing=$1; echo "-----> $1"; }
while [ $# -gt 0 ]; do
    case $1 in
        --domain) domain=$2; shift 2 ;;
        --key) key=$2; shift 2 ;;
        --demo) demo=yes; shift ;;
        *) echo "usage: install.sh [--domain NAME] [--key FILE] [--demo]" >&2; exit 2 ;;
    esac
done
[ "$(id -u)" = 0 ] || { echo "run it as root: sudo ./install.sh" >&2; exit 1; }
source=$(cd "$(dirname "$0")" && pwd)

say "installing Debian packages"
missing=
have() { command -v "$1" >/dev/null 2>&1; }
have dockerd || missing="$missing docker.io"
have nginx || missing="$missing nginx-light"
[ -x /usr/sbin/sshd ] || missing="$missing openssh-server"
for tool in git sudo cron logrotate mmdebstrap curl; do have $tool || missing="$missing $tool"; done
have ip || missing="$missing iproute2"
/usr/bin/python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
if [ -n "$missing" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing ca-certificates iptables >/dev/null
fi

say "making the user dokku and its home $root"
id dokku >/dev/null 2>&1 || useradd --system --create-home --home-dir $root --shell /bin/bash dokku
usermod -p '*' -aG docker dokku
chmod 755 $root

say "copying the program to $library"
mkdir -p $library/hooks
[ -x $library/venv/bin/python3 ] || /usr/bin/python3 -m venv $library/venv
$library/venv/bin/python3 -c 'import docker, jinja2' 2>/dev/null || $library/venv/bin/pip install --quiet docker==7.2.0 jinja2==3.1.6
rm -rf $library/templates.new && cp -r "$source/templates" $library/templates.new
rm -rf $library/templates && mv $library/templates.new $library/templates
cp "$source/dokku_py.py" $library/dokku_py.py.new && mv $library/dokku_py.py.new $library/dokku_py.py
packages=$($library/venv/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
launcher() {  # no `site`: a command starts a quarter faster without it
    printf '#!/usr/bin/python3 -IS\nimport sys\nsys.path[:0] = ["%s", "%s"]\nfrom dokku_py import main\nsys.exit(main(%s))\n' \
        $library "$packages" "$1" > "$2.new"
    chmod 755 "$2.new" && mv "$2.new" "$2"
}
launcher 'sys.argv[1:]' $library/dokku
launcher '["git-hook"]' $library/hooks/pre-receive
chown -R root:root $library && chmod -R go-w $library
env -u PYTHONDONTWRITEBYTECODE $library/venv/bin/python3 -m compileall -q $library/dokku_py.py $library/venv/lib
ln -sf $library/dokku /usr/bin/dokku

say "installing what the host needs: sudoers, nginx include, cron, logrotate"
visudo -cqf $library/templates/host/sudoers
install -m 440 $library/templates/host/sudoers /etc/sudoers.d/dokku-py
install -m 644 $library/templates/host/nginx.conf /etc/nginx/conf.d/dokku.conf
install -m 644 $library/templates/host/logrotate /etc/logrotate.d/dokku-py
if [ "$(readlink /etc/nginx/sites-enabled/default 2>/dev/null)" = /etc/nginx/sites-available/default ]; then
    rm /etc/nginx/sites-enabled/default
    echo "       removed the distribution's own default site (it claims every name)"
fi
printf '# dokku_py: finish what a killed process left, judge new releases.\n* * * * * root /usr/bin/dokku tick 2>&1 | logger -t dokku\n' > /etc/cron.d/dokku-py
if [ -d /run/systemd/system ]; then
    install -m 644 $library/templates/host/dokku-boot.service /etc/systemd/system/dokku-boot.service
    systemctl daemon-reload && systemctl enable --quiet dokku-boot.service docker nginx
else
    printf '@reboot root /usr/bin/dokku boot\n' >> /etc/cron.d/dokku-py
fi

say "starting docker, sshd and cron"
if ! docker -H unix:///var/run/docker.sock version >/dev/null 2>&1; then
    # The init script raises its file limit and gives up where that is not allowed.
    service docker start >/dev/null 2>&1 || start-stop-daemon --start --background --no-close --exec /usr/sbin/dockerd \
        --pidfile /var/run/docker-ssd.pid --make-pidfile -- -p /var/run/docker.pid >> /var/log/docker.log 2>&1
    tries=0
    until docker -H unix:///var/run/docker.sock version >/dev/null 2>&1; do
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
[ -s $root/VHOST ] && [ -z "$domain" ] || dokku domains:set-global "${domain:-$(hostname -f)}"
for file in ${key:-/root/.ssh/*.pub}; do
    [ ! -f "$file" ] || dokku ssh-keys:add "$(basename "$file" .pub)" - < "$file" || true
done
dokku ssh-keys:list | grep -q . || echo " !     no key yet: add yours with  dokku ssh-keys:add NAME < key.pub"
echo "=====> dokku_py is installed: git push dokku@$(hostname -f):APP main"
[ -z "$demo" ] || sh "$source/tests/demo"
