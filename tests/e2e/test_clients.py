"""What programs that speak to a dokku server do, done to this one."""

import json
import re
import subprocess
import uuid
from pathlib import Path

from conftest import HELLO_TEXT, ask, quoted, sh


def test_words_with_blanks_and_quotes_arrive_whole(bare):
    value = "it's \"so\" $HOME `id` \\ & ; | * \u00e9"
    bare.ok("config:set", "--no-restart", *quoted(f"ODD={value}"))
    assert bare.ok("config:get", "ODD") == value + "\n"
    bare.ok("config:set", "--no-restart", "'TWO=a", "b'")
    assert bare.ok("config:get", "TWO") == "a b\n"


def test_the_app_may_stand_before_or_behind_the_command(bare):
    assert bare.person.ok("--app", bare.name, "config:set", "--no-restart", "A=1") is not None
    assert bare.person.ok("--app", bare.name, "config:get", "A") == bare.person.ok("config:get", "--app", bare.name, "A") == "1\n"
    assert bare.person.ok("--quiet", "--app", bare.name, "config:keys") == "A\n"


def test_a_terminal_and_none_get_the_same_text(bare):
    bare.ok("config:set", "--no-restart", "A=1")
    plain = bare.ok("config:show")
    assert bare.person.ok("config:show", bare.name, options=("-tt",)).replace("\r\n", "\n") == plain


def test_a_pipeline_makes_a_preview_app_pushes_a_commit_and_throws_it_away(switch, new_app):
    """As CI actions do: clone the app of the main branch for a pull request, push a commit by its hash, destroy it unasked."""
    switch.deploy()
    preview = new_app()
    for _ in range(2):
        switch.person.ok("apps:clone", "--skip-deploy", "--ignore-existing", switch.name, preview.name)
    switch.write(Procfile="web: GREETING=preview exec perl /server.pl\n")
    commit = switch.git("rev-parse", "HEAD")
    done = sh("git", "push", "--force", f"ssh://dokku@127.0.0.1:22/{preview.name}", f"{commit}:refs/heads/main", cwd=switch.work, env=switch.person.environment())
    assert done.returncode == 0, done.stderr
    assert preview.get() == (200, "preview") and switch.get() == (200, HELLO_TEXT)
    assert preview.ok("git:report", "--git-sha").strip() == commit
    switch.person.ok("--force", "apps:destroy", preview.name)
    assert switch.person.ssh("apps:exists", preview.name).returncode == 20 and ask(preview.host)[0] == 404


def test_a_provisioner_asks_before_it_changes(admin):
    """As Ansible roles and Terraform providers do: by exit codes, by `report --format json` and by single flags."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    done = admin.ssh("apps:exists", name)
    assert done.returncode == 20 and f"App {name} does not exist" in done.stderr
    admin.ok("apps:create", name)
    try:
        assert "Name is already taken" in admin.refused("apps:create", name)
        assert admin.ok("--quiet", "apps:list").split().count(name) == 1 and name in json.loads(admin.ok("apps:list", "--format", "json"))
        admin.ok("config:set", "--encoded", "--no-restart", name, "A=aGkgdGhlcmU=")
        assert json.loads(admin.ok("config:export", "--format", "json", name)) == {"A": "hi there"}
        admin.ok("domains:set", name, f"a.{name}.net", f"b.{name}.net")
        assert admin.ok("domains:report", name, "--domains-app-vhosts").split() == [f"a.{name}.net", f"b.{name}.net"]
        admin.ok("checks:set", name, "wait-to-retire", "12")
        facts = json.loads(admin.ok("checks:report", name, "--format", "json"))
        assert (facts["wait-to-retire"], facts["computed-wait-to-retire"], facts["global-wait-to-retire"]) == ("12", "12", "60")
        admin.ok("checks:set", "--global", "wait-to-retire", "33")
        admin.ok("checks:set", name, "wait-to-retire")
        facts = json.loads(admin.ok("checks:report", name, "--format", "json"))
        assert (facts["wait-to-retire"], facts["computed-wait-to-retire"], facts["global-wait-to-retire"]) == ("", "33", "33")
        assert all(isinstance(value, str) for value in facts.values())
    finally:
        admin.ok("checks:set", "--global", "wait-to-retire")
        admin.ok("--force", "apps:destroy", name)


def test_text_reports_have_the_shape_that_parsers_expect(live):
    lines = live.ok("ps:report").splitlines()
    assert lines[0] == f"=====> {live.name} ps information"
    rows = [re.fullmatch(r" {7}(\S[^:]*): +(.*)|( {7}\S[^:]*:)", line) for line in lines[1:]]
    assert all(rows), lines
    found = {row[1]: row[2] for row in rows if row[1]}
    assert found["Deployed"] == found["Running"] == found["Ps can scale"] == found["Restore"] == "true"
    assert re.fullmatch(r"running \(CID: [0-9a-f]{11}\)", found["Status web 1"])
    assert live.person.ok("ps:report").count("ps information") >= 1


def test_errors_go_to_standard_error_and_both_streams_keep_their_order(live):
    done = live.person.ssh("config:get", live.name, "NOT_THERE")
    assert done.stdout == "" and done.stderr.startswith(" !     ") and done.returncode == 1
    both = subprocess.run(["ssh", *live.person.options, "dokku@127.0.0.1", "apps:exists", "t-none"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert both.stdout.splitlines()[0] == " !     App t-none does not exist" and both.returncode == 20


def test_help_in_every_form(admin):
    nouns = {name.partition(":")[0] for name in re.findall(r"^    (\S+:\S+)", admin.ok("help", "--all"), re.MULTILINE)}
    assert {"apps", "config", "domains", "ps", "checks", "docker-options", "resource", "tag"} <= nouns
    brief = admin.ok("help")
    assert re.search("^    config +Print .* Also: show get", brief, re.MULTILINE) and re.search("^    ports +.*add set", brief, re.MULTILINE)
    assert len(brief.splitlines()) < 150
    for noun in sorted(nouns):
        listed = sh("dokku", f"{noun}:help").stdout
        assert f"    {noun}:" in listed and listed == sh("dokku", "help", noun).stdout, noun
    assert "wait-to-retire" in admin.ok("checks:set", "--help") and admin.ok("apps") == admin.ok("apps:help")
    assert "dokku apps:clone [--skip-deploy]" in admin.ok("help", "apps:clone")


def test_what_is_not_there_is_said_as_such(admin):
    assert "backup:export is not part of this product" in admin.refused("backup:export", "x")
    said = admin.refused("plugin:install", "https://example.com/x.git")
    assert "is not part of this product" in said and "there are no plugins" in said
    assert "did you mean apps:create?" in admin.refused("apps:crate", "x", code=2)


def test_the_manual_and_the_completions_are_installed():
    page = Path("/usr/share/man/man1/dokku.1").read_text()
    assert page.startswith('.\\"') and ".B dokku apps:clone" in page
    script = ("source /usr/share/bash-completion/completions/dokku; COMP_LINE='dokku ps:sc' COMP_POINT=11 COMP_CWORD=3; COMP_WORDS=(dokku ps : sc); _dokku; "
              "echo ${COMPREPLY[@]}")
    assert sh("bash", "-c", script).stdout == "scale\n"
    assert sh("bash", "-n", "/usr/share/bash-completion/completions/dokku").returncode == 0


def test_properties_name_the_valid_ones(bare):
    assert "valid ones: auto-rollback" in bare.refused("ps:set", "colour", "red", code=2)
    assert "Invalid flag passed, valid flags: --" in bare.refused("ps:report", "--colour")
    assert "is not a whole number" in bare.refused("checks:set", "wait-to-retire", "soon", code=2)
    assert bare.ok("checks:report", "--checks-wait-to-retire") == "\n"
    for noun in ("app-json", "builder", "builder-dockerfile", "builds", "cron", "letsencrypt", "logs", "network", "registry", "scheduler", "scheduler-docker-local"):
        assert f"{noun} information" in bare.ok(f"{noun}:report"), noun
    assert "ps information" in bare.ok("report") and "resource information" in bare.ok("report")


def test_keys_in_both_dialects(admin, new_person):
    first, second = new_person(), new_person()
    assert admin.ok("access:add", stdin=first.public).strip() == first.fingerprint
    listed = json.loads(admin.ok("ssh-keys:list", "--format", "json"))
    name = next(row["name"] for row in listed if row["fingerprint"] == first.fingerprint)
    assert f'NAME="{name}"' in admin.ok("ssh-keys:list", name) and first.ok("version")
    admin.ok("ssh-keys:add", "second-" + name, stdin=second.public)
    admin.ok("ssh-keys:remove", "--fingerprint", second.fingerprint)
    assert second.ssh("version").returncode == 255
    admin.ok("access:remove", first.fingerprint)
    assert first.ssh("version").returncode == 255 and "No key is named" in admin.refused("access:info", first.fingerprint)
