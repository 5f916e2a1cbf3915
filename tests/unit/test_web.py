"""Section 10 and the words of ports: pure parsers, and which ports an app is served on as its state says."""

import os
import subprocess

import pytest
from hypothesis import given, strategies as st

import dokku_py as d


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(d, "ROOT", tmp_path)
    d.write_lines(tmp_path / "VHOST", ["example.com"])
    for app in ("blog", "shop"):
        d.make_folder(tmp_path / "apps" / app)
    return tmp_path


def test_a_port_map_reads_as_it_is_written():
    assert d.parse_port_map("http:80:5000") == d.PortMap("http", 80, 5000)
    for text in ("http:80:5000", "https:443:5000", "grpc:50051:50051", "grpcs:8443:1", "http:65535:65535", "https:8443:80"):
        assert str(d.parse_port_map(text)) == text


@pytest.mark.parametrize("text", ["", "80", "80:5000", "http", "http:80", "http:80:", "http::80", "http:80:80:80", "ftp:21:21", "HTTP:80:80", "http:0:80", "http:80:65536",
                                  "http:-1:80", "http:٣:80", "http:0099999999:80", "http:80:80 ", "http:80:80\n", "http:443:80", "https:80:80"])
def test_port_maps_refused(text):
    with pytest.raises(d.UsageError):
        d.parse_port_map(text)


@given(text=st.text(max_size=60))
def test_any_text_is_a_port_map_or_refused(text):
    try:
        assert str(d.parse_port_map(text)) == text or not text.isascii() or "0" in text
    except d.UsageError as error:
        assert error.message


def test_ports_that_anybody_may_choose():
    assert [d.parse_proxy_port(text) for text in ("80", "443", "1024", "65535")] == [80, 443, 1024, 65535]
    for text in ("79", "81", "22", "1023", "0", "x", "70000"):
        with pytest.raises(d.UsageError):
            d.parse_proxy_port(text)


LOGS = ["/var/log/nginx/blog-access.log", "/var/log/nginx/blog-error.log"]
GOOD = ["server { listen 80; }", "# include nothing\nserver { }", "location /include { return 200 'root'; }", "access_log off;", f"access_log {LOGS[0]};",
        f"server {{\n  error_log  {LOGS[1]} ;\n}}", "fastcgi_split_path_info ^(.+)$;", "sendfile on;", "proxy_set_header X-Include a;", "rewrite ^/alias /other;",
        "proxy_pass http://blog-web-5000;", "location ~ \\.perl { }", "open_log_file_cache off;"]
BAD = {"include /etc/passwd;": "include", 'server {"include" /etc/passwd; }': "include", "a b;include c;": "include", "a b;\n\t 'include' c;": "include", "} include c;": "include",
       "map $a $b {include c;}": "include", "a b;\rinclude c;": "include", "load_module x.so;": "load_module", "root /;": "root", "location / { alias /; }": "alias",
       "content_by_lua_block { }": "content_by_lua_block", "access_by_lua_file x;": "access_by_lua_file", "lua_package_path x;": "lua_package_path", "perl_set $a x;": "perl_set",
       "perl x;": "perl", "js_import x;": "js_import", "proxy_cache_path /x keys_zone=a:1m;": "proxy_cache_path", "proxy_temp_path /x;": "proxy_temp_path",
       "proxy_store on;": "proxy_store", "auth_basic_user_file /x;": "auth_basic_user_file", "ssl_certificate_key /x;": "ssl_certificate_key",
       "access_log /etc/cron.d/x;": "access_log", f"access_log {LOGS[0]}x;": "access_log", f"access_log {LOGS[0]}/../../../etc/x;": "access_log",
       f"error_log {LOGS[1]} debug;": "error_log", 'access_log "/etc/x";': "access_log", "access_log syslog:server=1.2.3.4;": "access_log",
       "location / { fastcgi_pass unix:/run/php.sock; }": "unix:", "proxy_pass http://unix:/run/docker.sock:/;": "unix:", "proxy_pass http://UNIX:/run/docker.sock:/;": "UNIX:", "# x\ninclude y;": "include"}


@pytest.mark.parametrize("text", GOOD)
def test_a_rendered_template_that_stays_with_its_app(text):
    assert d.refuse_directives(text, LOGS) == text


@pytest.mark.parametrize("text", BAD)
def test_a_rendered_template_that_reaches_beyond_its_app(text):
    with pytest.raises(d.DokkuError, match=f"may not use {BAD[text]}"):
        d.refuse_directives(text, LOGS)


def vhost(**words):
    return d.Vhost(**{"app": "blog", "domains": ("blog.example.com",), "listeners": (d.PortMap("http", 80, 5000),), "upstreams": {5000: ("10.0.0.9:5000",)},
                      "access_log": LOGS[0], "error_log": LOGS[1], "settings": {}, **words})


def test_a_pushed_template_has_the_words_of_a_vhost_and_no_others():
    text = "{{ app }} {{ domains[0] }} {% for row in listeners %}{{ row.scheme }}:{{ row.host }}{% endfor %} {{ upstreams[5000][0] }}"
    assert d.render_pushed(text, vhost()) == "blog blog.example.com http:80 10.0.0.9:5000\n"
    for bad in ("{{ secret }}", "{{ app.__class__.__mro__ }}", "{{ domains[7] }}", "{{ 1 / 0 }}", "{% include 'x' %}", "{% endfor %}", "{{ app.x }}", "{{ settings.update(a=1) }}"):
        with pytest.raises(d.DokkuError, match="template"):
            d.render_pushed(bad, vhost())


@pytest.mark.parametrize("old, new, moves", [
    ("", "    listen 5050;\n", False), ("    listen 5050;\n", "", False), ("    listen 5050;\n", "    listen 127.0.0.1:5050;\n", True),
    ("    listen 127.0.0.1:5050;\n", "    listen 5050;\n", True), ("    listen [::]:5050;\n", "    listen [::1]:5050;\n", True),
    ("    listen 5050;\n", "    listen 5051;\n", False), ("    listen 80;\n", "    listen 127.0.0.1:80;\n", False), ("    listen 5050;\n", "    listen 5050;\n", False)])
def test_a_port_that_goes_over_to_another_address(old, new, moves):
    assert d.moves_address(old, new) is moves


def test_without_maps_an_app_is_served_on_80_by_name_or_on_a_port_of_its_own(root):
    assert list(map(str, d.port_maps("blog", 3000))) == ["http:80:3000"]
    d.write_text(root / "apps/blog/NO_VHOST", "")
    own = d.port_maps("blog", 3000)[0].host
    assert own > 5000 and d.port_maps("blog", 3000) == [d.PortMap("http", own, 3000)]
    d.write_text(root / "apps/shop/NO_VHOST", "")
    assert d.port_maps("shop")[0].host not in (own, 80)
    d.write_lines(root / "apps/blog/PORTS", ["http:80:1", "http:7070:2"])
    assert list(map(str, d.port_maps("blog", 3000))) == [f"http:{own}:1", "http:7070:2"]
    d.remove_file(root / "apps/blog/NO_VHOST")
    assert list(map(str, d.port_maps("blog", 3000))) == ["http:80:1", "http:7070:2"]
    d.write_text(root / "apps/blog/NO_PROXY", "")
    assert d.port_maps("blog")[0].host == own, "what Docker publishes can't be shared by name"


def test_the_servers_proxy_port_is_for_apps_that_share_it_by_name(root):
    d.write_property("--global", "proxy", "proxy-port", "8080")
    assert d.host_ports("blog") == {8080}
    d.write_text(root / "apps/blog/NO_VHOST", "")
    assert d.host_ports("blog") & {80, 8080} == set()
    d.write_property("blog", "proxy", "proxy-port", "7070")
    assert d.host_ports("blog") == {7070}


def test_a_port_of_its_own_is_none_that_is_mapped_or_in_use(root, monkeypatch):
    d.write_lines(root / "apps/shop/PORTS", ["http:5001:1"])
    d.write_property("shop", "proxy", "proxy-port", "5002")
    monkeypatch.setattr(d, "listening_ports", lambda: {5003: 0})
    assert d.app_port("blog") == 5004 and d.app_port("blog") == 5004


def test_ports_are_shared_by_name_and_in_no_other_way(root, monkeypatch):
    monkeypatch.setattr(d, "listening_ports", lambda: {7070: 0, 22: 0, 80: 0})
    d.write_lines(root / "apps/blog/PORTS", ["http:80:1", "http:7070:1"])
    d.require_ports("blog", {7070})
    with pytest.raises(d.DokkuError, match="7070 is used by a program of the user root"):
        d.require_ports("blog", set())
    d.write_lines(root / "apps/shop/PORTS", ["http:7070:1"])
    d.require_ports("shop", set())
    d.write_text(root / "apps/shop/NO_VHOST", "")
    for app, other in (("shop", "blog"), ("blog", "shop")):
        with pytest.raises(d.DokkuError, match=f"7070 is used by {other}"):
            d.require_ports(app, {7070})


def test_what_docker_publishes_is_on_loopback_unless_told_otherwise(root):
    release = d.Release(app="blog", number=1, port=3000)
    d.write_release(release, {})
    assert d.published_ports(release) == []
    d.write_text(root / "apps/blog/NO_PROXY", "")
    d.write_lines(root / "apps/blog/PORTS", ["http:7070:3000", "http:7071:9"])
    assert d.published_ports(release) == ["127.0.0.1:7070:3000", "127.0.0.1:7071:9"]
    d.write_property("blog", "network", "bind-all-interfaces", "true")
    assert d.published_ports(release) == ["0.0.0.0:7070:3000", "0.0.0.0:7071:9"]


def test_the_vhost_of_an_app_is_computed_from_state(root):
    release = d.Release(app="blog", number=3, port=3000, procfile={"web": "x"})
    d.write_release(release, {}, {})
    d.write_text(root / "addresses/10.9.0.9=blog=v3=web.1", "")
    d.write_text(root / "addresses/10.9.0.10=blog=v2=web.1", "")
    assert d.vhost_of(release, "blog").upstreams == {3000: ("10.9.0.9:3000",)} and d.vhost_of(None, "blog").upstreams == {5000: ()}
    assert d.vhost_of(release, "blog").includes == f"{root}/apps/blog/nginx.conf.d/*.conf"
    d.write_property("blog", "network", "static-web-listener", "10.1.1.1:99")
    assert d.vhost_of(release, "blog").upstreams == {3000: ("10.1.1.1:99",)}
    d.write_property("blog", "nginx", "disable-custom-config", "true")
    d.write_property("blog", "nginx", "access-log-path", "off")
    text = d.vhost_text("blog", release)
    assert "access_log off;" in text and "include" not in text
    assert d.vhost_text("blog", release._replace(template="mine")) == text, "not without an administrator's word"
    d.write_property("blog", "nginx", "allow-template", "true")
    assert d.vhost_text("blog", release._replace(template="mine")) == "mine\n"
    d.write_text(root / "apps/blog/NO_PROXY", "")
    assert d.vhost_text("blog", release) == ""


def test_workers_are_found_whatever_other_processes_call_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(d, "NGINX_PID", tmp_path / "nginx.pid")
    d.write_text(d.NGINX_PID, f"{os.getpid()}\n")
    (tmp_path / "\udcff) 1").symlink_to("/bin/sleep")
    with subprocess.Popen([tmp_path / "\udcff) 1", "60"], stdin=subprocess.PIPE) as child:
        worker, = [row for row in d.worker_processes() if row[0] == child.pid]
        assert d.worker_lives(worker) and d.worker_accepts(worker) and not d.worker_lives((child.pid, "1"))
        child.kill()
    assert not d.worker_lives(worker) and not d.worker_accepts(worker) and worker not in d.worker_processes()
