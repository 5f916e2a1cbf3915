"""Section 10 and the words of ports: pure parsers, and which ports an app is served on as its state says."""

import contextlib
import io
import os
import re
import subprocess
import tarfile

import pytest
from hypothesis import example, given, strategies as st

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


@given(scheme=st.sampled_from(["http", "https", "grpc", "grpcs"]), host=st.integers(0, 70000), container=st.integers(0, 70000))
@example("http", 443, 1)
@example("https", 80, 1)
@example("grpc", 443, 1)
@example("grpcs", 80, 1)
@example("grpcs", 443, 65535)
def test_a_port_map_of_numbers_is_taken_as_written_or_refused(scheme, host, container):
    text = f"{scheme}:{host}:{container}"
    fits = 0 < host < 65536 and 0 < container < 65536 and (host != 80 or scheme == "http") and (host != 443 or scheme in ("https", "grpcs"))
    with contextlib.nullcontext() if fits else pytest.raises(d.UsageError):
        assert str(d.parse_port_map(text)) == text


def test_ports_that_anybody_may_choose():
    assert [d.parse_proxy_port(text) for text in ("80", "443", "1024", "65535")] == [80, 443, 1024, 65535]
    for text in ("79", "81", "22", "1023", "0", "x", "70000"):
        with pytest.raises(d.UsageError):
            d.parse_proxy_port(text)


LOGS = ["/var/log/nginx/blog-access.log", "/var/log/nginx/blog-error.log"]
GOOD = ["server { listen 80; }", "# include nothing\nserver { }", "location /include { return 200 'root'; }", "access_log off;", f"access_log {LOGS[0]};",
        f"server {{\n  error_log  {LOGS[1]} ;\n}}", "fastcgi_split_path_info ^(.+)$;", "sendfile on;", "proxy_set_header X-Include a;", "rewrite ^/alias /other;",
        "proxy_pass http://blog-web-5000;", "location ~ \\.perl { }", "open_log_file_cache off;", "proxy_ssl_name a;", "ssl_protocols TLSv1.3;",
        "ssl_session_tickets off;"]
BAD = {"include /etc/passwd;": "include", 'server {"include" /etc/passwd; }': "include", "a b;include c;": "include", "a b;\n\t 'include' c;": "include", "} include c;": "include",
       "map $a $b {include c;}": "include", "a b;\rinclude c;": "include", "load_module x.so;": "load_module", "root /;": "root", "location / { alias /; }": "alias",
       "content_by_lua_block { }": "content_by_lua_block", "access_by_lua_file x;": "access_by_lua_file", "lua_package_path x;": "lua_package_path", "perl_set $a x;": "perl_set",
       "perl x;": "perl", "js_import x;": "js_import", "proxy_cache_path /x keys_zone=a:1m;": "proxy_cache_path", "proxy_temp_path /x;": "proxy_temp_path",
       "proxy_store on;": "proxy_store", "ssl_dhparam /x;": "ssl_dhparam", "ssl_crl /x;": "ssl_crl", "ssl_session_ticket_key /x;": "ssl_session_ticket_key",
       "proxy_ssl_crl /x;": "proxy_ssl_crl", "location / { grpc_ssl_crl /x; }": "grpc_ssl_crl", "ssl_conf_command PrivateKey /x;": "ssl_conf_command",
       "proxy_ssl_conf_command PrivateKey /x;": "proxy_ssl_conf_command",
       "xslt_stylesheet /x;": "xslt_stylesheet", "a b;xml_entities /x;xslt_string_param a b;": "xslt_string_param",
       "auth_basic_user_file /x;": "auth_basic_user_file", "ssl_certificate_key /x;": "ssl_certificate_key",
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
    d.remove(root / "apps/blog/NO_VHOST")
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


def test_a_port_of_a_user_without_a_name(root, monkeypatch):
    monkeypatch.setattr(d, "listening_ports", lambda: {7070: 2**31 - 7})
    d.write_lines(root / "apps/blog/PORTS", ["http:7070:1"])
    with pytest.raises(d.DokkuError, match="7070 is used by a program of the user 2147483641"):
        d.require_ports("blog", set())


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError, ProcessLookupError])
def test_a_process_that_can_not_be_looked_at_is_none_of_ours(monkeypatch, error):
    def read(path, **words):
        """Refuse as a kernel does whose /proc hides the processes of others, or whose process is gone."""
        raise error(path)
    assert d.stat_of(os.getpid())[1] == str(os.getppid())
    monkeypatch.setattr(d.Path, "read_text", read)
    assert d.stat_of(os.getpid()) == [] and not d.worker_lives((os.getpid(), "1"))


@pytest.mark.parametrize("old", ["", "    listen 5050;\n"])
def test_a_vhost_comes_back_when_nginx_does_not_let_go_of_its_old_address(root, monkeypatch, old):
    target, served = root / "nginx/blog.conf", []
    d.make_folder(root / "nginx/candidate")
    d.make_folder(root / "locks")
    if old:
        d.write_text(target, old)

    def serve_vhosts():
        """Have nginx refuse whatever is there."""
        served.append(d.read_text(target))
        raise d.DokkuError("nginx has not taken the new configuration")
    monkeypatch.setattr(d, "test_candidate", lambda name, text: d.write_text(root / "nginx/candidate/blog.conf", text))
    monkeypatch.setattr(d, "serve_vhosts", serve_vhosts)
    with pytest.raises(d.DokkuError, match="has not taken"):
        d.install_vhost("blog.conf", "    listen 127.0.0.1:5050;\n")
    assert d.read_text(target) == old and target.exists() is bool(old)
    assert served == ([""] if old else ["    listen 127.0.0.1:5050;\n"]), "first without it, so that nginx closes the port"


# --- certificates and pages ---

def test_an_own_certificate_ends_the_authoritys_renewals(root, monkeypatch):
    done, folder = [], d.acme_folder("blog")
    monkeypatch.setattr(d, "keep_certificate", lambda app, text="": done.append(text))
    monkeypatch.setattr(d, "render_crontab", lambda: done.append(folder.exists()))
    monkeypatch.setattr(d, "remove_strays", lambda app: None)
    monkeypatch.setattr(d, "render_vhost", lambda app: done.append("without challenges"))
    monkeypatch.setattr(d, "checked_certificate", lambda text: "checked")
    monkeypatch.setattr(d, "self_signed", lambda names: ("signed by itself", "request"))
    monkeypatch.setattr(d, "read_given", lambda file, caller: "given")
    monkeypatch.setattr("sys.stdin", io.StringIO("given"))
    for give, text in ((lambda: d.certs_add("blog", "crt", "key", d.Caller("root", local=True)), "checked"),
                       (lambda: d.certs_generate("blog", None), "signed by itself"),
                       (lambda: d.ssl_certificate("blog"), "checked"), (lambda: d.letsencrypt_disable("blog"), "")):
        d.make_folder(folder / "accounts")
        done.clear()
        give()
        assert done == [text, "without challenges", False]
    done.clear()
    d.certs_add("--global", "crt", "key", d.Caller("root", local=True))
    assert done == ["checked", False]


def test_a_certificate_that_nginx_refuses_leaves_the_authority_at_work(root, monkeypatch):
    def keep_certificate(app, text=""):
        """Have nginx refuse it."""
        raise d.DokkuError("nginx refuses the configuration")
    monkeypatch.setattr(d, "keep_certificate", keep_certificate)
    d.make_folder(d.acme_folder("blog"))
    with pytest.raises(d.DokkuError, match="nginx refuses"):
        d.own_certificate("blog", "text")
    assert d.acme_folder("blog").is_dir()


@pytest.mark.parametrize("said, told", [("", "lego ended without a word"), (" \n", "lego ended without a word"), ("a\nthe last line\n", "the last line")])
def test_an_authority_that_gives_no_certificate(root, monkeypatch, said, told):
    def stream(argv, env):
        """End as lego does."""
        raise d.ToolFailed(argv, -9, said)
    d.write_property("blog", "letsencrypt", "email", "me@example.com")
    monkeypatch.setattr(d, "stream", stream)
    with pytest.raises(d.DokkuError, match=f"No certificate was issued: {told}$"):
        d.lego("blog", ["blog.example.com"], "run")


@pytest.mark.parametrize("why", ["curl: (6) Could not resolve host: blog.example.com",
                                 "curl: (7) Failed to connect to blog.example.com port 80: Connection refused", "another one answers"])
def test_why_a_domain_does_not_lead_here_is_told_whole(root, monkeypatch, why):
    monkeypatch.setattr(d, "run", lambda argv, check: subprocess.CompletedProcess(argv, 6, b"", why.encode()))
    monkeypatch.setattr("socket.getaddrinfo", lambda *words: [])
    assert d.examine_domain("blog", "blog.example.com")["leads here"] == f"no: {why}"


def test_nobody_waits_for_pages_that_are_still_coming(root, monkeypatch):
    """Standard input is read before the app's lock is taken: a slow client keeps no deploy out."""
    read = []

    class Slow:
        """Give no tar."""

        @staticmethod
        def read(limit):
            read.append(d.is_locked(root / "apps/blog/lock"))
            return b"no tar"
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": Slow}))
    with pytest.raises(d.UsageError, match="no tar of at most"):
        d.custom_page("blog")
    assert read == [False]


@pytest.mark.parametrize("mode, harm", [(mode, harm) for mode in ("w", "w:gz", "w:bz2", "w:xz") for harm in ("cut off", "damaged")])
def test_a_harmed_archive_is_no_certificate(root, monkeypatch, mode, harm):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode=mode) as bundle:
        header = tarfile.TarInfo("server.crt")
        header.size = 60_000
        bundle.addfile(header, io.BytesIO(os.urandom(60_000)))
    content = bytearray(whole.getvalue())
    content[20_000:20_100] = os.urandom(100)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content[:30_000] if harm == "cut off" else content)))
    with pytest.raises(d.DokkuError):
        d.certs_add("blog", None, None, d.Caller("me"))


@pytest.mark.parametrize("linked", [False, True])
def test_own_pages_are_files_and_no_links_to_what_we_may_read(root, monkeypatch, linked):
    given = io.BytesIO()
    with tarfile.open(fileobj=given, mode="w") as bundle:
        for name, kind in (("maintenance.html", tarfile.SYMTYPE if linked else tarfile.REGTYPE), ("deep", tarfile.DIRTYPE), ("deep/link.html", tarfile.SYMTYPE), ("deep/fifo", tarfile.FIFOTYPE),
                           ("deep/plain.css", tarfile.REGTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.linkname, header.mode = kind, "/etc/passwd", 0o755
            bundle.addfile(header)
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": io.BytesIO(given.getvalue())}))
    monkeypatch.setattr(d, "render_vhost", lambda app: [])
    if linked:
        with pytest.raises(d.UsageError, match="with a maintenance.html"):
            d.custom_page("blog")
    else:
        d.custom_page("blog")
    pages = d.pages_of("blog")
    assert sorted(str(path.relative_to(pages)) for path in pages.rglob("*")) == ([] if linked else ["deep", "deep/plain.css", "maintenance.html"])


def test_guests_come_and_go_several_at_once(root, monkeypatch):
    monkeypatch.setattr(d, "render_vhost", lambda app: [])
    for verb, words, kept in (("add", "192.0.2.7 10.0.0.0/8", ["192.0.2.7", "10.0.0.0/8"]), ("add", "::1 192.0.2.7", ["192.0.2.7", "10.0.0.0/8", "::1"]),
                              ("remove", "::1 192.0.2.7", ["10.0.0.0/8"])):
        d.change_guests("blog", words, verb)
        assert d.read_lines(root / "apps/blog/ALLOWED_IPS") == kept


def test_a_vhost_moves_although_another_one_is_put_into_quarantine_meanwhile(root, monkeypatch):
    """What tests vhosts one by one clears the candidates away."""
    target, candidate = root / "nginx/blog.conf", root / "nginx/candidate/blog.conf"
    d.make_folder(root / "locks")
    d.write_text(target, "    listen 5050;\n")
    monkeypatch.setattr(d, "test_candidate", lambda name, text: d.write_text(candidate, text))
    monkeypatch.setattr(d, "serve_vhosts", lambda: d.remove(candidate) or [])
    d.install_vhost("blog.conf", "    listen 127.0.0.1:5050;\n")
    assert d.read_text(target) == "    listen 127.0.0.1:5050;\n" and not (root / "nginx/UNSEEN").exists()


def test_the_folder_of_an_account_stays_inside(root, monkeypatch):
    """One that was set before addresses were looked at."""
    given = []
    d.write_text(d.property_file("blog", "letsencrypt", "email"), "../../me@example.com\n")
    monkeypatch.setattr(d, "stream", lambda argv, env: given.append(argv[argv.index("--email") + 1]))
    d.lego("blog", ["blog.example.com"], "run")
    assert len(given) == 1 and "/" not in given[0]


def test_a_limit_of_requests_is_counted_under_a_name_of_its_own(root):
    d.write_property("blog", "nginx", "rate-limit", "5r/s")
    assert re.findall(r"zone=([^: ]+)", d.vhost_text("blog")) == ["rate-blog", "rate-blog"]


DEFAULTS = {key: one.default for (noun, key), one in d.PROPERTIES.items() if noun == "nginx"}


def test_what_a_client_forges_reaches_no_grpc_server():
    text = d.render("vhost.conf.j2", **vhost(settings=DEFAULTS, listeners=(d.PortMap("grpc", 9000, 50051),), upstreams={50051: ("10.0.0.9:50051",)})._asdict())
    for name in ("For", "Port", "Proto", "Host", "Prefix"):
        assert f"grpc_set_header X-Forwarded-{name} " in text
    assert 'grpc_set_header Forwarded "";' in text


@pytest.mark.parametrize("modern", [True, False])
def test_a_name_without_an_app_is_refused_by_https(modern):
    text = d.render("server.conf.j2", reject_handshake=modern, proxied="")
    assert "listen 443 ssl http2 default_server;" in text and ("ssl_reject_handshake on;" in text) == modern and ("ssl_certificate $dokku_nothing;" in text) != modern


@pytest.mark.parametrize("mine, theirs, fine", [("grpc", "http", False), ("https", "http", False), ("grpcs", "https", True), ("http", "http", True), ("grpc", "grpc", True)])
def test_a_port_speaks_one_thing(root, monkeypatch, mine, theirs, fine):
    monkeypatch.setattr(d, "certificate_of", lambda app: root / "CERTIFICATE")
    for app, scheme in (("blog", mine), ("shop", theirs)):
        d.write_lines(root / "apps" / app / "PORTS", [f"{scheme}:8080:5000"])
    with contextlib.nullcontext() if fine else pytest.raises(d.DokkuError, match="8080 is used by shop"):
        d.require_ports("blog", set())


@pytest.fixture
def served(root, monkeypatch):
    """Nothing is served; what is to be done for every app is done."""
    for name in ("render_vhost", "render_crontab", "remove_strays", "containers_of"):
        monkeypatch.setattr(d, name, lambda *words, **facts: [])
    monkeypatch.setattr(d, "each_app", lambda app, everything, work, *words, **facts: [work(name) for name in d.apps()])


def test_the_server_s_port_is_none_of_a_program(root, served, monkeypatch):
    monkeypatch.setattr(d, "listening_ports", lambda: {7070: 0})
    with pytest.raises(d.DokkuError, match="7070 is used by another program"):
        d.change_property("proxy", "--global", "proxy-port", "7070")
    assert d.host_ports("blog") == {80}


def test_a_server_s_certificate_that_nginx_refuses_is_not_kept(root, served, monkeypatch):
    def refuse(name, text):
        """Refuse, as nginx does with a key of 1,024 bits."""
        raise d.DokkuError("nginx refuses")
    d.write_text(root / "CERTIFICATE", "names: a\nold\n", secret=True)
    monkeypatch.setattr(d, "test_candidate", refuse)
    with pytest.raises(d.DokkuError, match="refuses"):
        d.keep_certificate("--global", "names: a\nnew\n")
    assert d.read_text(root / "CERTIFICATE") == "names: a\nold\n"


def test_ports_on_which_an_app_is_served_no_more_are_told(root, served, capsys):
    d.write_text(root / "CERTIFICATE", "names: *.example.com\n", secret=True)
    d.change_domains("blog", "add", ["www.customer.org"])
    assert "blog is no longer served on 443" in capsys.readouterr().err
