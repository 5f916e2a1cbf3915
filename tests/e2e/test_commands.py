"""Reports, properties, help and the words that every command knows, asked over ssh."""

import json

import pytest
from conftest import DOMAIN, ask


def test_reports_give_text_one_value_and_json(live):
    text = live.ok("ps:report")
    assert text.startswith(f"=====> {live.name} ps information\n")
    assert "       Deployed:                      true\n" in text and "       Running:                       true\n" in text
    assert "Status web 1:                  running (CID: " in text
    assert live.ok("ps:report", "--deployed") == "true\n"
    facts = json.loads(live.ok("ps:report", "--format", "json"))
    assert facts["deployed"] == "true" and facts["restart-policy"] == "" and facts["computed-restart-policy"] == "unless-stopped"
    assert live.ok("git:report", "--git-sha").strip() == live.git("rev-parse", "HEAD")
    assert live.ok("domains:report", "--domains-app-vhosts").strip() == live.host
    assert json.loads(live.person.ok("domains:report", "--global", "--format", "json")) == {"global-enabled": "true", "global-vhosts": DOMAIN}
    refused = live.refused("apps:report", "--app-colour")
    assert "Invalid flag passed, valid flags: --app-created-at, " in refused
    whole = live.ok("report")
    assert all(f"=====> {live.name} {noun} information" in whole for noun in ("app", "domains", "git", "nginx", "ps"))


def test_a_property_is_set_seen_in_nginx_and_cleared(bare):
    bare.ok("nginx:set", "client-max-body-size", "7m")
    assert "client_max_body_size 7m;" in bare.ok("nginx:show-config")
    assert bare.ok("nginx:report", "--nginx-client-max-body-size") == "7m\n"
    bare.ok("nginx:set", "client-max-body-size")
    assert "client_max_body_size 1m;" in bare.ok("nginx:show-config")
    assert "valid ones: access-log-format, " in bare.refused("nginx:set", "colour", "red", code=2)
    assert "is not a size" in bare.refused("nginx:set", "client-max-body-size", "'1m; include /etc/passwd'", code=2)


def test_a_server_wide_property_reaches_every_app(live):
    try:
        live.person.ok("nginx:set", "--global", "proxy-read-timeout", "123s")
        assert "proxy_read_timeout 123s;" in live.ok("nginx:show-config")
        assert json.loads(live.ok("nginx:report", "--format", "json"))["global-proxy-read-timeout"] == "123s"
    finally:
        live.person.ok("nginx:set", "--global", "proxy-read-timeout")
    assert "proxy_read_timeout 60s;" in live.ok("nginx:show-config")


def test_help_in_every_form(admin):
    assert "ps:scale" in admin.ok("ps") and admin.ok("ps:help") == admin.ok("ps") == admin.ok("help", "ps")
    for form in (("ps:scale", "--help"), ("help", "ps:scale"), ("ps:scale", "-h")):
        assert admin.ok(*form).startswith("dokku ps:scale")
    assert "dokku run" in admin.ok("run", "--help")
    assert admin.ok() == admin.ok("help")
    assert "did you mean apps:list?" in admin.refused("apps:lst", code=2)


@pytest.mark.parametrize("words", [("--app", "{app}", "config:set", "'A=b c'"), ("config:set", "--app", "{app}", "'A=b c'"),
                                   ("--quiet", "config:set", "{app}", "'A=b c'"), ("config:set", "{app}", "'A=b c'", "--quiet", "--trace"),
                                   ("config:set", "{app}", "--no-restart", "'A=b c'"), ("--force", "config:set", "{app}", "'A=b c'")])
def test_global_words_before_and_after_a_command(bare, words):
    bare.person.ok(*(word.format(app=bare.name) for word in words))
    assert bare.ok("config:get", "A") == "b c\n"


def test_quiet_leaves_headings_out_and_trace_shows_programs(bare):
    assert not bare.person.ok("--quiet", "apps:list").startswith("=====>")
    assert bare.person.ok("apps:list").startswith("=====> My Apps\n")
    assert "+ git " in bare.person.ssh("--trace", "apps:create", bare.name + "-two").stderr
    bare.person.ok("--force", "apps:destroy", bare.name + "-two")


def test_deploy_keys_are_listed_and_revoked(bare, stranger):
    bare.ok("deploy:allow", stdin=stranger.public)
    fingerprint, name = bare.ok("deploy:list").split()
    assert "role:         deploy" in bare.person.ok("access:info", fingerprint)
    bare.ok("deploy:revoke", name)
    assert bare.ok("deploy:list") == ""
    assert stranger.ssh("version").returncode == 255


def test_the_record_of_a_release(live):
    info = json.loads(live.ok("releases:info", "v1", "--format", "json"))
    assert info["release"] == "v1" and info["commit"] and info["image"].startswith("sha256:") and info["process worker"]
    assert "has no release v99" in live.refused("releases:info", "v99")


def test_all_apps_in_parallel(live, bare):
    out = live.person.ok("proxy:build-config", "--all", "--parallel", "2")
    assert ask(live.host)[0] == 200 and "Failed" not in out


def test_base_images_are_listed(admin, live):
    listed = admin.ok("images:list")
    assert f"dokku/{live.name}:v1" in listed
