"""Section 3: every word a user can write is accepted or refused with a UsageError or DokkuError, never a traceback."""

import subprocess

import pytest
from hypothesis import given, strategies as st

import dokku_py as d

PARSERS = [d.parse_app, d.parse_process_type, d.parse_domain, d.parse_config_key, d.parse_pair, d.parse_scale,
           d.parse_release_name, d.parser_named("key-name"), d.parser_named("branch"), d.parse_count, d.parser_named("size"), d.parser_named("seconds"),
           d.parse_switch, d.parser_named("restart-policy"), d.parse_public_key, d.parse_procfile, d.parse_checks_file]


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(text=st.text(max_size=200))
def test_any_text_is_accepted_or_refused(parse, text):
    try:
        parse(text)
    except d.DokkuError as error:
        assert error.message and error.code in (1, 2)


@pytest.mark.parametrize("name", ["blog", "a", "my-app", "a.b", "blog_2", "0day", "a--b"])
def test_app_names(name):
    assert d.parse_app(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "a-", "A", "a/b", "a b", "a\n", "a..b", "tls", "a.git", "é", "--global", "a" * 64])
def test_app_names_refused(name):
    with pytest.raises(d.UsageError):
        d.parse_app(name)


@pytest.mark.parametrize("domain", ["example.com", "*.example.com", "a.b-c.d", "localhost", "EXAMPLE.com."])
def test_domains(domain):
    assert d.parse_domain(domain) == domain.lower().rstrip(".")


@pytest.mark.parametrize("domain", ["", "*", "a b", "a;b", "a{", "a\nb", "a..b", "-a.com", "$host", "x" * 300, "*.*.com", ".com"])
def test_domains_refused(domain):
    with pytest.raises(d.UsageError):
        d.parse_domain(domain)


@given(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), st.text()))
def test_config_survives_its_file(config):
    text = d.render_environment(config)
    assert d.parse_environment(text) == config


def test_environment_written_by_a_shell_user():
    assert d.parse_environment("export A='it is'\nB=plain\n# no\nC=\"x y\"\n") == {"A": "it is", "B": "plain", "C": "x y"}


def test_pair_needs_an_equals_sign_and_a_name_a_shell_knows():
    assert d.parse_pair("A=b=c\n d") == ("A", "b=c\n d")
    for word in ("A", "1A=b", "A-B=c", "=x", "A=\0", "A=" + "x" * 200_000):
        with pytest.raises(d.UsageError):
            d.parse_pair(word)


def test_public_key_and_fingerprint_agree_with_ssh_keygen(tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key", "-C", "a b"], check=True)
    text = (tmp_path / "key.pub").read_text()
    public, fingerprint = d.parse_public_key(text)
    assert text.startswith(public + " ")
    assert fingerprint in subprocess.run(["ssh-keygen", "-lf", tmp_path / "key.pub"], capture_output=True, text=True).stdout
    for bad in (text + text, 'command="sh" ' + text, text[:40], "", text.replace("ssh-ed25519", "ssh-rsa", 1)):
        with pytest.raises(d.UsageError):
            d.parse_public_key(bad)


def test_procfile():
    assert d.parse_procfile("# a\nweb: ./run --port $PORT\n\nworker:  sleep 1 \n") == {"web": "./run --port $PORT", "worker": "sleep 1"}
    for bad in ("web", "web:", "we b: x", "web: a\nweb: b"):
        with pytest.raises(d.DokkuError, match="Procfile line"):
            d.parse_procfile(bad)


def test_checks_file():
    checks = d.parse_checks_file("WAIT=2\nATTEMPTS=4\n# c\n/ok  fine thing\nhttp://x.y/deep\n")
    assert [(c.path, c.content, c.wait, c.attempts) for c in checks] == [("/ok", "fine thing", 2, 4), ("/deep", "", 2, 4)]


def test_healthchecks_of_app_json():
    rows = {"healthchecks": {"web": [{"type": "startup", "path": "/h", "attempts": 7, "wait": 1}, {"type": "liveness", "path": "/l"}]}}
    assert [(c.kind, c.path, c.attempts, c.wait) for c in d.parse_healthchecks(rows)] == [("startup", "/h", 7, 1.0), ("liveness", "/l", d.UNSET, d.UNSET)]
    for bad in ({"healthchecks": []}, {"healthchecks": {"web": [1]}}, {"healthchecks": {"web": [{"path": 1}]}},
                {"healthchecks": {"web": [{"path": "no slash"}]}}):
        with pytest.raises(d.DokkuError, match="app.json"):
            d.parse_healthchecks(bad)


def test_app_json_must_be_an_object():
    for bad in ("[]", "{", "1", "[" * 100_000):
        with pytest.raises(d.DokkuError, match="app.json"):
            d.parse_json_object(bad, "app.json")
