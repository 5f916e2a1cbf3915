"""Section 3: every word a user can write is accepted or refused with a UsageError or DokkuError, never a traceback."""

import contextlib
import os
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


@pytest.mark.parametrize("text, good", [("", True), ("é\udc80\x01\n", True), ("a\0b", False), ("\ud800", False), ("a\udfff", False), ("\udcff", True)])
def test_what_a_process_can_be_given(text, good):
    """A byte that is no UTF-8 is read as \\udc80 to \\udcff and written back; any other half of a character can't be written."""
    assert d.is_text(text) is good
    if good:
        assert d.parse_config_value("A", text) == text
    else:
        with pytest.raises(d.UsageError, match="does not fit into an environment"):
            d.parse_config_value("A", text)


def test_half_a_character_in_json_is_refused_wherever_it_stands():
    for bad in (r'{"a": "\ud800"}', r'{"\udfff": 1}', r'{"a": [{"b": "x\ud83dy"}]}'):
        with pytest.raises(d.DokkuError, match="app.json holds half of a surrogate pair"):
            d.parse_json_object(bad, "app.json")
    assert d.parse_json_object(r'{"a": "\ud83d\ude00"}', "app.json") == {"a": "\U0001f600"}
    with pytest.raises(d.DokkuError):
        d.parse_config_file(r'{"A": "\ud800"}', "json")
    with pytest.raises(d.DokkuError):
        d.parse_config_file('{"A": "a\\u0000b"}', "json")


def healthcheck(text):
    return d.parse_healthchecks(d.parse_json_object('{"healthchecks": {"web": [%s]}}' % text, "app.json"))[0]


@pytest.mark.parametrize("key", ["attempts", "timeout", "wait", "uptime", "initialDelay", "port"])
@pytest.mark.parametrize("number", ["NaN", "1e999", "-1e999", "-2", "1000001", "1" * 400])
def test_a_healthcheck_waits_for_no_number_that_is_none(key, number):
    with pytest.raises(d.DokkuError, match=f"app.json: {key} of a healthcheck must be 0 to "):
        healthcheck('{"%s": %s}' % (key, number))


def test_numbers_of_a_healthcheck():
    with pytest.raises(d.DokkuError, match="port of a healthcheck must be 0 to 65535, not 99999"):
        healthcheck('{"port": 99999}')
    found = healthcheck('{"port": 65535, "attempts": 3, "timeout": 0.5, "wait": 0, "uptime": 1e6, "initialDelay": 2}')
    assert (found.port, found.attempts, found.timeout, found.wait, found.uptime, found.delay) == (65535, 3, 0.5, 0.0, 1e6, 2.0)
    assert healthcheck('{"timeout": 0}').timeout == d.UNSET, "a socket with no time at all would not wait for anything"


@pytest.mark.parametrize("header", ['{"name": "X-A", "value": "é"}', '{"name": "X A", "value": "b"}', '{"name": "", "value": "b"}',
                                    '{"name": "X:", "value": "b"}', '{"name": "é", "value": "b"}',
                                    '{"name": "X", "value": "a\\r\\nY: b"}', '{"name": "X\\n", "value": "b"}', '{"name": "X", "value": 1}', '{"name": "X"}',
                                    '{"value": "b"}'])
def test_headers_of_a_healthcheck_that_http_can_not_send(header):
    with pytest.raises(d.DokkuError, match="is not the name and value of a header"):
        healthcheck('{"httpHeaders": [%s]}' % header)


def test_headers_and_the_command_of_a_healthcheck():
    assert healthcheck('{"httpHeaders": [{"name": "X-A_b.1", "value": "a b: c~"}, {"name": "H", "value": ""}]}').headers == (("X-A_b.1", "a b: c~"), ("H", ""))
    assert healthcheck('{"command": ["curl", 1]}').command == ("curl", "1")
    with pytest.raises(d.DokkuError, match="is not the command of a healthcheck"):
        healthcheck('{"command": ["a\\u0000b"]}')


@pytest.mark.parametrize("text, upstream", [("10.0.0.1:5000", "10.0.0.1:5000"), ("[::1]:5000", "[::1]:5000"), ("::1:5000", "[::1]:5000"),
                                            ("[2001:db8:0::7]:80", "[2001:db8::7]:80")])
def test_an_upstream_is_written_as_nginx_reads_it(text, upstream):
    assert d.parse_upstream(text) == upstream and d.parse_upstream(upstream) == upstream


@pytest.mark.parametrize("text", ["", ":", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "[::1]", "::1:x", "host:80"])
def test_upstreams_refused(text):
    with pytest.raises(d.UsageError):
        d.parse_upstream(text)


def test_processors_are_a_number_and_no_amount_of_memory():
    for text in ("1", "0.5", "16", "2.125"):
        assert d.parser_named("cpu")(text) == text
    for text in ("512m", "1g", "1b", "", ".5", "1.", "1e3", "-1", "12345", "0.1234", "1 "):
        with pytest.raises(d.UsageError, match="is not a number of processors"):
            d.parser_named("cpu")(text)
    for command in ("resource:limit", "resource:reserve"):
        with pytest.raises(d.UsageError):
            d.read_words(d.commands()[command], ["--cpu", "512m", "blog"], d.Caller("root", local=True))
        assert d.read_words(d.commands()[command], ["--cpu", "0.5", "--memory", "512M", "blog"], d.Caller("root", local=True))["memory"] == "512m"


@pytest.mark.parametrize("schedule, good", [(row, True) for row in ("@daily", "*/5 * * * *", "0-30/10,45 0 1-15 JAN,3 mon-fri", "00 08 * * 7", "0 0 * * 00-07", "1  2 3 4 5")]
                         + [(row, False) for row in ("61 * * * *", "*/0 * * * *", "5/10 * * * *", "1,,2 * * * *", "- - - - -", "* 24 * * *", "* * 0 * *",
                                                     "* * * 13 *", "* * * * 8", "* * * fri *", "5 * * *", "@reboot", "@often")])
def test_a_schedule_is_one_that_cron_takes(schedule, good):
    """One line that cron refuses would keep it from the jobs of all others."""
    assert bool(d.SCHEDULE.fullmatch(schedule)) is good
    if schedule != "@reboot" and os.path.exists("/usr/bin/crontab"):
        done = subprocess.run(["/usr/bin/crontab", "-n", "-"], input=f"{schedule} true\n", text=True, capture_output=True)
        assert (done.returncode == 0) is good or "-n" in done.stderr.partition("\n")[0], done.stderr  # not every cron can only look


@pytest.mark.parametrize("option", ["-e X", "--env X", "--env=X", "-e=X", "-e", "--env 'A B'", "--build-arg X", "--build-arg=X"])
def test_a_variable_of_docker_has_its_value_with_it(option):
    with pytest.raises(d.UsageError, match="gives no value"):
        d.change_docker_options("blog", "add", None, d.Caller("root", local=True), ["build"], [option])


@pytest.mark.parametrize("option", ["-e X=", "-e X=1", "--env X=a=b", "--env=X=1", "--env-file /srv/x", "--entrypoint x"])
def test_options_of_docker_that_only_look_like_it(option):
    assert d.parse_docker_option(option) == option


def test_a_remark_behind_a_quoted_value_is_none_of_it():
    text = "A=\"x\" # remark\nB='y # z' # it's\nC=\"p#q\"\nD=plain # kept\nE=\"a\\nb\" # remark\n"
    assert d.parse_config_file(text, "env") == {"A": "x", "B": "y # z", "C": "p#q", "D": "plain # kept", "E": "a\nb"}


def test_addresses_are_those_that_there_are():
    parse = d.parser_named("addresses")
    assert parse("192.0.2.7  2001:DB8::/32 10.0.0.1/8") == "192.0.2.7 2001:db8::/32 10.0.0.1/8"
    for bad in ("::::", "999.1.1.1", "10.0.0.0/33", "192.0.2.7 x", "fe80::1%eth0", "10.0.0.0/255.0.0.0", "", " "):
        with pytest.raises(d.UsageError, match="is not an address or a network"):
            parse(bad)


@pytest.mark.parametrize("noun, key, good, bad", [("letsencrypt", "email", "me+x@example.com", "../../me@example.com"), ("proxy", "proxy-ssl-port", "8443", "22")])
def test_properties_that_reach_no_further(noun, key, good, bad):
    parse = d.PROPERTIES[noun, key].parse
    assert str(parse(good)) == good
    with pytest.raises(d.UsageError):
        parse(bad)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_key_with_a_passphrase_is_none_that_nginx_can_read(end, monkeypatch):
    monkeypatch.setattr(d, "openssl", lambda *words, **options: pytest.fail("it would ask for the passphrase"))
    lines = ["-----BEGIN RSA PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-256-CBC,0", "", "AAAA", "-----END RSA PRIVATE KEY-----"]
    assert d.PRIVATE_KEY.search(end.join([lines[0], *lines[4:]]))
    with pytest.raises(d.UsageError, match="no private key without a passphrase"):
        d.checked_certificate(end.join([*lines, "-----BEGIN CERTIFICATE-----", "AAAA", "-----END CERTIFICATE-----"]))


@pytest.mark.parametrize("value", ["'open", '"open', '"one\\"', "'it' 's"])
def test_a_value_that_goes_on_behind_its_line_is_refused(value):
    """It would be cut off without a word."""
    with pytest.raises(d.UsageError, match="The value of 'B' does not end on its line"):
        d.parse_config_file(f"A=x\nB={value}\nC=y\n", "env")


def test_an_apostrophe_within_a_value_opens_nothing():
    assert d.parse_config_file("A=it's\nB=5\" wide\nC=\"it's\"\n", "env") == {"A": "it's", "B": '5" wide', "C": "it's"}


@pytest.mark.parametrize("words, wanted", [("checks:disable blog web,worker clock", ["web", "worker", "clock"]), ("checks:run blog web", ["web"]), ("checks:skip blog", []),
                                           ("docker-options:clear blog build run", ["build", "run"]), ("docker-options:clear blog build,deploy run", ["build", "deploy", "run"]),
                                           ("docker-options:clear blog", [])])
def test_types_and_phases_stand_apart_or_with_commas(words, wanted):
    command, *rest = words.split()
    assert d.read_words(d.commands()[command], rest, d.Caller("root", local=True))["phases" if "clear" in command else "types"] == wanted


@pytest.mark.parametrize("command, word", [("checks:disable", "web,"), ("checks:run", "web,,worker"), ("docker-options:clear", "build,nonsense"), ("docker-options:clear", "build,")])
def test_what_is_no_type_or_phase_among_commas(command, word):
    with pytest.raises(d.UsageError):
        d.read_words(d.commands()[command], ["blog", word], d.Caller("root", local=True))


def test_an_option_without_its_value_that_is_on_record_can_be_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr(d, "ROOT", tmp_path)
    d.write_lines(d.app_folder("blog") / "DOCKER_OPTIONS", ["deploy -e B", "deploy -e C=1"])
    d.change_docker_options("blog", "remove", None, d.Caller("root", local=True), ["deploy"], ["-e", "B"])
    assert d.read_docker_options("blog") == [("deploy", "-e C=1")]


@pytest.mark.parametrize("noun, facts, found", [("ps", {"restore": "of the facts", "running": "true"}, {"restore": "of the facts", "running": "true", "computed-restore": "true"}),
                                                ("apps", {"app-dir": "/x"}, {"dir": "/x", "disable-autocreation": "", "global-disable-autocreation": "false"})])
def test_a_report_in_json_has_keys_without_the_noun_and_its_facts_win(tmp_path, monkeypatch, capsys, noun, facts, found):
    monkeypatch.setattr(d, "ROOT", tmp_path)
    monkeypatch.setitem(d.FACTS, noun, lambda app: facts)
    d.say_report(noun, "blog", "", "json")
    said = d.json.loads(capsys.readouterr().out)
    assert {key: said.get(key) for key in found} == found


def test_what_an_administrator_gave_is_taken_away_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(d, "ROOT", tmp_path)
    d.make_folder(d.app_folder("blog"))
    monkeypatch.setattr(d, "translate_options", lambda words: ({}, {}))
    admin, person = d.Caller("root", local=True), d.Caller("me", "developer", ("blog",))
    for words in (["--runtime=runsc"], ["--env", "A=1"]):
        d.change_docker_options("blog", "add", None, admin, ["deploy"], words)
    for words in ([["--runtime=runsc"]], []):
        with pytest.raises(d.AccessDenied):
            d.change_docker_options("blog", "remove", None, person, ["deploy"], *words)
    d.change_docker_options("blog", "remove", None, person, ["deploy"], ["--env", "A=1"])
    assert d.read_docker_options("blog") == [("deploy", "--runtime=runsc")]


@pytest.mark.parametrize("text, fine", [("192.0.2.7", True), ("10.0.0.0/8,!10.1.*", True), ("::1", True), ("fd00::/8", True), ("anywhere", True), ("192.0.2.7/24", False),
                                        ("10.0.0.0/33", False), ("::1/129", False), ("10.0.0.0/255.0.0.0", False), ("", False), ("a,b", False), ('*"', False), ("10.0.0.1 ,10.0.0.2", False),
                                        ("10.0.0.1,", False), ("!", False), ("fe80::1%eth0", False)])
def test_where_a_key_comes_from_is_said_as_sshd_reads_it(text, fine):
    with contextlib.nullcontext() if fine else pytest.raises(d.UsageError):
        assert d.parser_named("sources")(text) == text


def test_usage_says_what_to_type():
    assert d.short_usage(d.commands()["config:set"]).endswith("app|--global KEY=VALUE [KEY=VALUE ...]")
    assert "TYPE=COUNT" in d.short_usage(d.commands()["ps:scale"]) and "SCHEME:HOST-PORT:CONTAINER-PORT" in d.short_usage(d.commands()["ports:add"])


@pytest.mark.parametrize("words", [["-e", 'J={"a":1}'], ["-e", "M=hello world"], ["-e M='hello world'"], ["--label", 'x="y"']])
def test_an_option_keeps_its_words(tmp_path, monkeypatch, words):
    monkeypatch.setattr(d, "ROOT", tmp_path)
    d.make_folder(d.app_folder("blog"))
    monkeypatch.setattr(d, "translate_options", lambda words: ({}, {}))
    d.change_docker_options("blog", "add", None, d.Caller("root", local=True), ["deploy"], words)
    [(phase, option)] = d.read_docker_options("blog")
    assert d.shlex.split(option) == (words if len(words) > 1 else d.shlex.split(words[0]))


def test_a_log_has_a_size_that_docker_takes():
    assert [d.parser_named("log-size")(text) for text in ("20m", "1G", "unlimited")] == ["20m", "1g", "unlimited"]
    for text in ("0", "20", "0m", "m"):
        with pytest.raises(d.UsageError):
            d.parser_named("log-size")(text)
