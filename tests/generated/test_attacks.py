"""Corpora of what an attacker sends, by class of attack (docs/security.md): nothing is done by it, nothing is kept of it, nothing outside the state tree is touched."""

import os
import re
import sys

import dokku_py as d
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_grammar import CODES, root, run, snapshot  # noqa: F401 - root is a fixture

LINES = int(os.environ.get("DOKKU_LINES", "1500"))
WATCH = {"root": None, "touched": []}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0WpUmG4wGNRsv5aSdLAQOWCeGkjpRnzz0zAYpYd0mF"


def note(event, args):
    """Note what is written, made, moved or removed elsewhere than below the root, and what is run."""
    if not WATCH["root"]:
        return
    paths = []
    if event == "open" and isinstance(args[0], str) and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
        paths = [args[0]]
    elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.symlink", "os.link", "os.truncate"):
        paths = [str(path) for path in args[:2] if isinstance(path, (str, os.PathLike))]
    elif event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn"):
        WATCH["touched"].append((event, args))
    WATCH["touched"] += [(event, path) for path in paths if not str(path).startswith((WATCH["root"], "/dev/null")) and not re.search(r"/dokku-crash-|/\.hypothesis|/__pycache__|^/tmp/", str(path))]


sys.addaudithook(note)


@pytest.fixture
def watched(root, tmp_path):  # noqa: F811
    """The state tree of test_grammar with a key of each role, and an eye on everything else."""
    for role in d.ROLES:
        d.write_json(tmp_path / "keys" / role, d.Key(role, KEY, f"SHA256:{role}", role, () if role == "admin" else ("blog",))._asdict())
    (tmp_path / "VHOST").write_text("example.com\n")
    WATCH.update(root=str(tmp_path), touched=[])
    yield tmp_path
    WATCH["root"] = None
    assert WATCH["touched"] == []


def ask(monkeypatch, key, line):
    """Ask as a key, as sshd hands it over; give the code and what was said."""
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", line)
    return run(["--as", key])


WORDS = st.sampled_from(["apps:list", "apps:create", "config:set", "run", "blog", "--", "-", "--app", "--global", "--force", "A=1", ";", "&&", "|", "`id`", "$(id)", ">", "/tmp/x", "*", "'", '"', "\\",
                         "git-receive-pack", "git-upload-pack", "../other", "--help", "-h", "é", "\u2028", "\udcff"])


def test_class_1_any_line_at_the_door(watched, monkeypatch):
    @settings(max_examples=LINES, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=LINES < 10000)
    @given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=7).map(" ".join)), st.sampled_from(sorted(d.ROLES)))
    def check(line, role):
        code, said = ask(monkeypatch, role, line.replace("\0", "").encode("utf-8", "surrogateescape" if line.isascii() else "replace").decode("utf-8", "surrogateescape"))
        assert code in CODES and "This is a bug" not in said, (line, said)

    check()


@pytest.mark.parametrize("text", ["", "\n", KEY + "\n" + KEY, f'command="sh" {KEY}', f"no-pty {KEY}", KEY[:-3], KEY.replace("ed25519", "rsa"), KEY + '\ncommand="x" ' + KEY, "ssh-dss AAAA", "ssh-ed25519 !!!",
                                  "-----BEGIN OPENSSH PRIVATE KEY-----", KEY.split()[1], KEY.replace(" ", ",", 1), "ssh-ed25519 " + "A" * 100000])
def test_class_2_only_one_whole_key_comes_in(watched, text):
    with pytest.raises(d.UsageError):
        d.parse_public_key(text)


@pytest.mark.parametrize("name", ["a b", 'a"b', "a,b", "a\nb", "a\r", "-x", ".", "..", "a/b", "a\0b", "", "x" * 65, "ы", "a'b", "a`b", "$x", "a;b", "a\\b"])
@pytest.mark.parametrize("command", ["ssh-keys:add", "access:add", "deploy:allow", "developer:allow"])
def test_class_2_no_name_of_a_key_breaks_out_of_its_line(watched, monkeypatch, name, command):
    before = snapshot(watched)
    words = ["blog", name] if command.endswith("allow") else [name]
    code, said = ask(monkeypatch, "admin", d.shlex.join([command, *words]).replace("\0", ""))
    assert code != 0 and not (watched / ".ssh" / "authorized_keys").exists() and {**snapshot(watched)} == before, said


NAMES = ["", ".", "..", "-x", "--global", "--all", "a/b", "../a", "a\nb", "a\0", "a b", "а", "ａ", "a\u202e", "x" * 300, "$x", "a;b", "`id`", "a'", 'a"', "a\\", "*", "?", "~", "%s", "{{a}}"]


@pytest.mark.parametrize("kind", ["app", "process-type", "entry", "network", "tag", "key-name", "config-key", "domain", "user", "label", "nginx-word", "provider", "release-name"])
@pytest.mark.parametrize("name", NAMES)
def test_class_3_no_name_is_a_path_an_option_or_another_program(kind, name):
    if (kind, name) in (("label", "a/b"), ("config-key", "x" * 300)):
        return  # Docker's labels may hold a /, the environment a long name
    with pytest.raises(d.UsageError):
        d.parser_named(kind)(name)


@pytest.mark.parametrize("name", ["tls", "ssl", "blog.git", "Blog", "blog.", "b..g", "con/fig"])
def test_class_3_names_that_would_be_something_else_are_refused(name):
    with pytest.raises(d.UsageError):
        d.parse_app(name)


@pytest.mark.parametrize("line", ["git-upload-pack '../other'", "git-upload-pack '/etc'", "git-receive-pack '../../etc'", "git-receive-pack '-x'", "git-receive-pack 'a b'", "git-upload-archive 'blog'", "git-shell",
                                  "git-receive-pack 'blog' --x", "git-receive-pack", "git-upload-pack 'blog;id'", "git-hook", "git-receive-pack 'blog\n'", "tick", "boot", "setup", "document man"])
@pytest.mark.parametrize("role", ["admin", "deploy"])
def test_class_4_git_is_asked_for_one_repository_or_nothing(watched, monkeypatch, line, role):
    before = snapshot(watched)
    code, said = ask(monkeypatch, role, line)
    assert code in (1, 2, 20, 77) and snapshot(watched) == before, said


def test_class_10_a_value_survives_whole_or_is_refused_whole():
    for value in ("a\nb", "$(id)", "`id`", "'", '"', "\\", "=", "a=b", " ", "\t", "\u2028", "\x85", "\x1b[31m", "é" * 1000, "#", "x" * 100_000):
        pairs = d.parse_environment(d.render_environment({"A": d.parse_config_value("A", value), "B": "1"}))
        assert pairs == {"A": value, "B": "1"}
    for value in ("a\0b", "x" * 200_000):
        with pytest.raises(d.UsageError):
            d.parse_config_value("A", value)


HOSTILE = ["x;", "x}", "{", "x\ny", "x#", "x; include /etc/passwd", "1m; lua_code x", "'", '"', "a\\", "$x;", "10s;}", "\0", "x\r", "on;"]
KINDS = sorted({row[3] for row in d.read_table("properties.tsv") if row[0] == "nginx" and not row[3].startswith("{")}
               | {"domain", "port-map", "redirect-target", "user", "upstream", "proxy-port", "port"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HOSTILE)
def test_class_11_nothing_ends_a_directive(kind, text):
    with pytest.raises(d.UsageError):
        d.parser_named(kind)(text)


@pytest.mark.parametrize("kind", KINDS)
def test_class_11_what_is_taken_holds_nothing_that_nginx_would_read_otherwise(kind):
    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(st.text(alphabet="ab.:/$-_*019 ;{}#\n'\"\\", max_size=20))
    def check(text):
        try:
            taken = str(d.parser_named(kind)(text))
        except d.UsageError:
            return
        assert not re.search(r"""[;{}#\n'"\\]""", taken)

    check()


@pytest.mark.parametrize("option", ["-v /:/x", "--volume=/:/x", "--privileged", "--pid=host", "--device /dev/sda", "--cap-add ALL", "--security-opt apparmor=unconfined", "--network host", "--net=host", "--name x",
                                    "--mount type=bind,src=/,dst=/x", "--volumes-from other", "--userns host", "--ipc=host", "--uts host", "--group-add docker", "--cgroup-parent /", "--env-file /etc/shadow",
                                    "--label-file /etc/shadow", "--cidfile /tmp/x", "-p 22:22", "--publish=80:80", "--restart always", "--runtime x", "--sysctl kernel.x=1", "--ulimit nofile=1", "--oom-kill-disable",
                                    "--log-driver syslog", "-d", "--rm", "--entrypoint", "; id", "-", "--memory=1g\n--privileged",
                                    *(f"--label 'x{end}deploy --privileged{end}run y'" for end in "\r\v\f\x1c\x85\u2028")])
def test_class_12_what_reaches_the_host_is_no_developers(watched, monkeypatch, option):
    before = snapshot(watched)
    code, said = ask(monkeypatch, "developer", f"docker-options:add blog deploy {d.shlex.quote(option)}")
    assert code in (1, 2, 77) and snapshot(watched) == before, said


@pytest.mark.parametrize("option", ["--memory 1g --privileged", "--memory=1g --privileged", "--label a=b -v /:/host", "-l a=b --pid=host", "--init image",
                                    "--init --privileged", "--read-only /bin/sh",
                                    "--no-healthcheck -v=/:/x", "--build-arg X --secret id=a,src=/etc/shadow", "--build-arg=X --secret=id=a,src=/etc/shadow",
                                    "--no-cache --secret=id=a,src=/etc/shadow",
                                    "--pull --ssh=default=/root/.ssh/id", "--target a b", "--label", "--memory", "--privileged",
                                    "--secret id=a,src=/etc/shadow"])
def test_class_12_an_option_is_one_whole_option(watched, monkeypatch, option):
    """What follows its value is another option; without its value it takes the next one, and that one's value is read as an option."""
    monkeypatch.setattr(d, "translate_options", lambda words: None)
    for phases in ("build", "deploy", "build,deploy,run"):
        before = snapshot(watched)
        code, said = ask(monkeypatch, "developer", f"docker-options:add blog {phases} {d.shlex.quote(option)}")
        assert code == 77 and snapshot(watched) == before, said
        assert ask(monkeypatch, "admin", f"docker-options:add blog {phases} {d.shlex.quote(option)}")[0] == 0
        assert ask(monkeypatch, "admin", f"docker-options:clear blog {phases}")[0] == 0


@pytest.mark.parametrize("option", ["--memory 1g", "--memory=1g", "-m 1g", "-m=1g", "--init", "--init=false", "--read-only", "--no-healthcheck", "--no-cache",
                                    "--pull", "--pull=always", "--build-arg X=1",
                                    "--label a=b", "--entrypoint ''", "--label 'a=b -v /:/host'", "--target --secret"])
def test_class_12_a_developer_may_add_what_stays_inside(watched, monkeypatch, option):
    monkeypatch.setattr(d, "translate_options", lambda words: None)
    assert ask(monkeypatch, "developer", f"docker-options:add blog build,deploy {d.shlex.quote(option)}")[0] == 0
    assert d.docker_options_of("blog", "build") == d.shlex.split(option)


def test_class_12_an_option_that_brings_its_own_image_is_more_than_an_option(monkeypatch):
    made = {"": d.EMPTY_IMAGE, "--label": "true", "--init": d.EMPTY_IMAGE}
    monkeypatch.setattr(d, "docker_command", lambda: "docker")
    monkeypatch.setattr(d, "inspect_image", lambda name: {"Id": "x"})
    monkeypatch.setattr(d, "output_of", lambda argv, **options: argv[-3] if argv[-3] in made else "")
    monkeypatch.setattr(d, "inspect_container", lambda identity: {"Config": {"Image": made[identity]}, "HostConfig": {"Init": identity == "--init"}})
    removed = []
    monkeypatch.setattr(d, "remove_container", removed.append)
    with pytest.raises(d.UsageError, match="is more than options"):
        d.translate_options(("--label",))
    assert d.translate_options(("--init",)) == ({}, {"Init": True}) and removed == ["", "--label", "", "--init"]


def test_class_12_no_label_of_an_option_takes_the_place_of_ours(watched, monkeypatch):
    made = {}

    class Client:
        """What create_container asks of the engine."""

        create_host_config = create_networking_config = create_endpoint_config = staticmethod(lambda *words, **facts: dict(facts))
        create_container_config = staticmethod(lambda image, command, environment,
                                               **facts: {"Env": [f"{key}={value}" for key, value in environment.items()], "Labels": {}})
        create_container_from_config = staticmethod(lambda config, name: made.update(config) or {"Id": "1"})

    hostile = {"com.dokku.app-name": "other", "com.dokku.expires": "1", "com.dokku.published": "x", "com.dokku.managed-by": "me", "mine": "1"}
    monkeypatch.setattr(d, "engine", Client)
    monkeypatch.setattr(d, "docker_options_of", lambda *words: ["--label"])
    monkeypatch.setattr(d, "translate_options", lambda words: ({"Labels": hostile}, {}))
    d.write_property("blog", "logs", "app-label-alias", "com.dokku.managed-by")
    d.create_container(d.Release("blog", 3), "web.1", config=None)
    assert made["Labels"] == {"com.dokku.managed-by": "dokku_py", "com.dokku.expires": "", "com.dokku.published": "", "com.dokku.app-name": "blog",
                              "com.dokku.process-type": "web",
                              "com.dokku.dyno": "web.1", "com.dokku.container-type": "deploy", "com.dokku.release": "v3", "com.dokku.incarnation": "v3",
                              "mine": "1"}


@pytest.mark.parametrize("words", ["registry:set blog image-repo library/debian", "storage:mount blog /:/data", "storage:mount blog /etc/shadow:/x", "storage:mount blog ../../etc:/x", "storage:create x /etc", "ports:set blog http:22:5000", "ports:add blog https:999:1",
                                   "network:set blog attach-post-create host", "network:set blog bind-all-interfaces true", "network:create x", "nginx:set blog bind-address-ipv4 0.0.0.0",
                                   "nginx:set blog access-log-path /etc/passwd", "nginx:set blog trusted-proxies 0.0.0.0/0", "cron:set blog mailto root", "letsencrypt:set blog dns-provider exec"])
def test_class_12_nor_are_places_of_the_host(watched, monkeypatch, words):
    before = snapshot(watched)
    code, said = ask(monkeypatch, "developer", words)
    assert code in (1, 2, 77) and snapshot(watched) == before, said


@pytest.mark.parametrize("kind", ["repository", "registry", "image", "image-repo", "branch", "repo-template", "extra-tags"])
@pytest.mark.parametrize("text", ["-oProxyCommand=id", "--upload-pack=id", "ext::sh -c id", "file:///etc", "/etc/passwd", "a b", "a\nb", "http://user:pw@host/x", "x;id", "$(id)", "`id`", "", "..", "a'b", "\0", "host:99999999/x y"])
def test_class_13_no_address_is_an_option_or_a_program(kind, text):
    with pytest.raises(d.UsageError):
        d.parser_named(kind)(text)


@pytest.mark.parametrize("role", ["developer", "operator", "viewer", "deploy"])
@pytest.mark.parametrize("words", ["ssh-keys:add me", "ssh-keys:remove admin", "ssh-keys:list", "access:add", "access:set developer --role admin", "access:set developer --apps all", "acl:add other developer",
                                   "developer:allow blog", "deploy:allow blog", "access:check admin events", "config:set --global A=1", "config:show --global", "nginx:set --global client-max-body-size 0",
                                   "nginx:set blog allow-template true", "domains:set-global x.example.com", "events:off", "trace:on", "git:auth h.example.com me x", "git:generate-deploy-key", "registry:login h.example.com me x",
                                   "certs:add --global", "images:set source hub", "letsencrypt:cron-job --remove", "git:from-image --build-dir /root blog debian", "config:import blog /etc/shadow",
                                   "certs:add blog /etc/shadow /etc/shadow", "storage:exec x cat /etc/shadow", "proxy:set --global proxy-port 22", "nginx:stop", "apps:destroy blog", "git:load-image blog debian"])
def test_class_17_nobody_gives_himself_more(watched, monkeypatch, role, words):
    before = snapshot(watched)
    code, said = ask(monkeypatch, role, words)
    assert code in (2, 77) and snapshot(watched) == before, said


@pytest.mark.parametrize("words", ["apps:report {}", "config:show {}", "ps:restart {}", "logs {}", "git-upload-pack '{}'", "git-receive-pack '{}'", "certs:show {} key", "enter {} web sh", "apps:rename {} blog2", "apps:clone {} blog2"])
@pytest.mark.parametrize("role", ["developer", "operator", "viewer", "deploy"])
def test_class_18_a_refusal_says_nothing_of_what_there_is(watched, monkeypatch, role, words):
    (watched / "apps" / "secret").mkdir()
    assert ask(monkeypatch, role, words.format("secret")) == ask(monkeypatch, role, words.format("nothing"))
