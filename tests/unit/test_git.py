"""Sections 6 to 8, against real git."""

import contextlib
import io
import os
import re
import socket
import subprocess
import tarfile
import time

import pytest

import dokku_py as d


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(d, "ROOT", tmp_path / "root")
    for name, value in {"NAME": "t", "EMAIL": "t@example.com"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    return tmp_path / "root"


@pytest.fixture
def pushed(tmp_path, root):
    """A repository of the app blog that holds one pushed commit; gives (work tree, commit)."""
    work = tmp_path / "work"
    subprocess.run(["git", "init", "-q", "-b", "main", work], check=True)
    (work / "sub").mkdir()
    (work / "sub/run.sh").write_text("#!/bin/sh\n")
    (work / "sub/run.sh").chmod(0o755)
    (work / "link").symlink_to("sub/run.sh")
    (work / "hidden").write_text("x")
    (work / ".gitattributes").write_text("hidden export-ignore\n")
    return work, commit_and_push(work)


def commit_and_push(work):
    subprocess.run(["git", "-C", work, "add", "-A"], check=True)
    subprocess.run(["git", "-C", work, "commit", "-qm", "x"], check=True)
    d.make_folder(d.app_folder("blog"))
    subprocess.run(["git", "-C", work, "push", "-q", d.ensure_repository("blog"), "main"], check=True)
    return d.ref_of("blog", "refs/heads/main")


def test_a_tree_comes_out_as_it_was_committed_and_leaves_nothing(pushed, root):
    with d.checkout("blog", pushed[1]) as tree:
        assert os.readlink(tree / "link") == "sub/run.sh"
        assert os.access(tree / "sub/run.sh", os.X_OK)
        assert (tree / "hidden").exists() and not (tree / ".git").exists()
    assert sorted(os.listdir(root / "apps/blog")) == ["repo.git"]


def test_a_hook_environment_does_not_mislead_git(pushed, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_WORK_TREE", "/nonexistent")
    assert d.ref_of("blog", "refs/heads/main") == pushed[1]
    assert d.ref_of("blog", "refs/heads/none") == d.ZERO


def test_a_commit_in_quarantine_can_be_read(pushed, tmp_path):
    """A real pre-receive hook checks out the commit that is not yet in the repository."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "pre-receive").write_text(f"""#!/bin/sh
read old new ref
PYTHONPATH={os.path.dirname(d.__file__)} DOKKU_ROOT={d.ROOT} /usr/bin/env python3 -c "
import sys, dokku_py as d
with d.checkout('blog', sys.argv[1]) as tree: print('SEEN', (tree / 'new').read_text())
" "$new"
""")
    (hooks / "pre-receive").chmod(0o755)
    subprocess.run(["git", "-C", d.repository_of("blog"), "config", "core.hooksPath", hooks], check=True)
    work = pushed[0]
    (work / "new").write_text("fresh")
    subprocess.run(["git", "-C", work, "add", "-A"], check=True)
    subprocess.run(["git", "-C", work, "commit", "-qm", "y"], check=True)
    done = subprocess.run(["git", "-C", work, "push", d.repository_of("blog"), "main"], capture_output=True, text=True)
    assert "SEEN fresh" in done.stderr, done.stderr


@pytest.mark.parametrize("url", ["/etc", "../other", "ext::sh -c id", "file:///etc", "--upload-pack=id", ""])
def test_a_submodule_with_a_hostile_address_is_refused(pushed, url):
    work, commit = pushed
    (work / ".gitmodules").write_text(f'[submodule "m"]\n\tpath = m\n\turl = {url}\n')
    subprocess.run(["git", "-C", work, "update-index", "--add", "--cacheinfo", f"160000,{commit},m"], check=True)
    head = commit_and_push_index(work)
    with pytest.raises(d.DokkuError), d.checkout("blog", head):
        pass


@pytest.mark.parametrize("url", ["http://127.0.0.1:{}/x", "http::http://127.0.0.1:{}/x", "http://127.0.0.1:{}?@8.8.8.8/x", "http://127.0.0.1:{}#@8.8.8.8/x"])
def test_a_submodule_asks_nothing_inside_this_network(pushed, url):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        listed = url.format(server.getsockname()[1])
        (pushed[0] / ".gitmodules").write_text(f'[submodule "m"]\n\tpath = m\n\turl = "{listed}"\n')
        with pytest.raises(d.DokkuError, match="belongs to this server|no address that can be fetched"):
            d.fetch_submodules("blog", pushed[0], f"160000 commit {pushed[1]}\tm\0")
        with pytest.raises(BlockingIOError):
            server.accept()


def commit_and_push_index(work):
    subprocess.run(["git", "-C", work, "add", ".gitmodules"], check=True)
    subprocess.run(["git", "-C", work, "commit", "-qm", "module"], check=True)
    subprocess.run(["git", "-C", work, "push", "-q", d.repository_of("blog"), "main"], check=True)
    return d.ref_of("blog", "refs/heads/main")


def test_properties_app_over_server_over_default():
    assert d.property_of("blog", "nginx", "client-max-body-size") == "1m"
    d.write_property("--global", "nginx", "client-max-body-size", "5M")
    d.write_property("blog", "nginx", "client-max-body-size", "20m")
    assert d.property_of("blog", "nginx", "client-max-body-size") == "20m"
    d.write_property("blog", "nginx", "client-max-body-size", "")
    assert d.property_of("blog", "nginx", "client-max-body-size") == "5m"
    with pytest.raises(d.UsageError):
        d.write_property("blog", "nginx", "client-max-body-size", "1m; include /etc/passwd")
    with pytest.raises(d.UsageError, match="no property"):
        d.write_property("blog", "nginx", "nonsense", "1")


def test_events_are_lines_of_json(root):
    d.make_folder(root)
    d.record_event(d.Caller("alice", address="192.0.2.1"), "ps:scale", app="blog", seconds=0.5)
    assert d.parse_json_object((root / "events.log").read_text(), "events")["ms"] == 500


def test_a_submodule_stays_inside_its_tree(tmp_path, monkeypatch):
    """A tree that git did not make, such as an image's folder, may hold a link where the submodule comes."""
    tree, fetched = tmp_path / "tree", []
    tree.mkdir()
    (tmp_path / "outside").mkdir()
    (tree / "link").symlink_to("../outside")
    (tree / "inside").mkdir()
    (tree / "near").symlink_to("inside")
    (tree / ".gitmodules").write_text("".join(f'[submodule "{path}"]\n\tpath = {path}\n\turl = https://example.com/x\n' for path in ("link", "link/deep",
        "near", "plain")))
    monkeypatch.setattr(d, "fetch", lambda app, url, argv: fetched.append(argv[-1]))
    run = d.run
    monkeypatch.setattr(d, "run", lambda argv, **options: run(argv if "config" in argv else ["true"], **options))
    for path in ("link", "link/deep"):
        with pytest.raises(d.DokkuError, match="lies outside of its repository"):
            d.fetch_submodules("blog", tree, f"160000 commit {'c' * 40}\t{path}\0")
    assert fetched == []
    for path in ("near", "plain"):
        d.fetch_submodules("blog", tree, f"160000 commit {'c' * 40}\t{path}\0")
    assert fetched == [str(tree / "near"), str(tree / "plain")]


@pytest.mark.parametrize("host", ["a" * 64 + ".example.com", "a..example.com", "\udcff.example.com"])
def test_a_host_that_is_no_name_has_no_address(host):
    with pytest.raises(d.DokkuError, match="has no address"):
        d.pinned("blog", f"https://{host}/x")


@pytest.mark.parametrize("source", ["x@169.254.169.254/latest", "ssh://git@example.com/x", "git://example.com/x.tar", "git@example.com:x.tar"])
def test_an_archive_comes_by_http_or_https(tmp_path, monkeypatch, source):
    taken = []
    monkeypatch.setattr(d, "take_source", lambda app, purpose, caller, bring: bring(tmp_path))
    monkeypatch.setattr(d, "download", lambda app, url, path, bound: taken.append(url))
    monkeypatch.setattr(d, "commit_archive", lambda *words, **options: "c" * 40)
    with pytest.raises(d.UsageError, match="is no http or https address"):
        d.git_from_archive(None, "blog", source, "me", "me@example.com", d.Caller("me"))
    d.git_from_archive(None, "blog", "https://example.com/x.tar", "me", "me@example.com", d.Caller("me"))
    assert taken == ["https://example.com/x.tar"]


@pytest.mark.parametrize("own, everybodys, brought, kept, ref", [("", "", "main", "main", "main"), ("", "", "", "", "main"), ("", "prod", "main", "", "prod"),
                                                                 ("live", "prod", "main", "live", "live")])
def test_the_deploy_branch_of_the_server_becomes_no_apps_own(monkeypatch, own, everybodys, brought, kept, ref):
    refs = []
    d.make_folder(d.app_folder("blog"))
    for app, branch in (("blog", own), ("--global", everybodys)):
        d.write_property(app, "git", "deploy-branch", branch)
    for name in ("remove_strays", "begin_push", "deploy"):
        monkeypatch.setattr(d, name, lambda *words: None)
    monkeypatch.setattr(d, "ref_of", lambda app, name: d.ZERO)
    monkeypatch.setattr(d, "git", lambda app, *words: refs.append(words[1:3] if words[0] == "update-ref" else words[1:]))
    d.take_source("blog", "git:sync", d.Caller("me"), lambda folder: ("c" * 40, brought))
    assert d.read_text(d.property_file("blog", "git", "deploy-branch")).strip() == kept
    assert refs == [(f"refs/heads/{ref}", "c" * 40), ("HEAD", f"refs/heads/{ref}")]


def test_sending_a_repository_ends_when_the_client_leaves(monkeypatch):
    done = []
    monkeypatch.setattr(d, "attend", lambda argv: done.append(argv) or 128)
    assert d.git_upload_pack("blog") == 128 and done == [["git", "upload-pack", str(d.repository_of("blog"))]]


VERSIONS = [("node", "<18", "17"), ("node", ">=14 <20", "19"), ("node", "<=16", "16"), ("node", "^14", "14"), ("node", ">=24", "24"), ("node", ">=14", "22"),
            ("node", "18.x", "18"),
            ("node", "v18.1.0", "18.1.0"), ("node", "20.11.x", "20.11"), ("node", "^20.11.1", "20"), ("node", "~20.3", "20"), ("node", "<24", "22"), ("node", "<20 >=14", "19"), ("node", ">=18 <=24", "22"),
            ("node", ">= 24.1 < 26", "24"), ("node", "=16", "16"),
            ("node", ">=14.0.0 <15 || >=16", "14"), ("node", "*", "22"), ("node", "", "22"),
            ("python", ">=3.8,<3.12", "3.11"), ("python", "<4", "3.12"), ("python", ">=3.8,<4.0", "3.12"), ("python", ">=3.13", "3.13"),
            ("python", ">=3.8", "3.12"), ("python", "==3.9.*", "3.9"), ("python", "~=3.10", "3.10"),
            ("python", "<3.10", "3.9"), ("python", "<=3.9,>=3.8", "3.9"), ("python", ">=3.8,!=3.9.1,<3.11", "3.10"), ("python", ">=3.8,!=3.9.1", "3.12"),
            ("python", ">=3.13,<3.15", "3.13"), ("python", "^3", "3"),
            ("ruby", "~> 3.2", "3.3"), ("ruby", "3.2.1", "3.2.1"), ("ruby", "3.2.1', engine: 'ruby", "3.2.1"), ("ruby", "~> 3.2.0", "3.2"),
            ("ruby", ">= 3.1', '< 3.3", "3.2"), ("ruby", ">= 3.1', '< 4", "3.3"), ("php", "^8.1", "8.1"), ("php", "<8.3", "8.2"), ("php", "<8.0", "7"),
            ("php", ">=7.4 <8.0", "7"), ("ruby", "< 3.0", "2"), ("python", "<3.0", "2")]


@pytest.mark.parametrize("language, wanted, version", VERSIONS)
def test_a_version_within_its_bounds(tmp_path, language, wanted, version):
    name, text = {"node": ("package.json", '{"engines": {"node": "%s"}}'), "python": ("pyproject.toml", 'requires-python = "%s"\n'),
                  "ruby": ("Gemfile", "ruby '%s'\n"),
                  "php": ("composer.json", '{"require": {"php": "%s"}}')}[language]
    (tmp_path / name).write_text(text % wanted)
    assert d.version_of(d.languages()[language], tmp_path) == (version, name if any(letter.isdigit() for letter in wanted) else "")


def test_the_dockerfile_of_an_image_stays_inside_its_commit(tmp_path, monkeypatch):
    outside, packed = tmp_path / "outside/Dockerfile", []
    d.write_property("blog", "builder-dockerfile", "dockerfile-path", str(outside))
    monkeypatch.setattr(d, "take_source", lambda app, purpose, caller, bring, image: bring(d.make_folder(tmp_path / "tree")))
    monkeypatch.setattr(d, "commit_archive", lambda app, path, *words, **options: packed.extend(tarfile.open(path).getnames()) or "c" * 40)
    d.git_from_image(None, "blog", "nginx:1", "me", "me@example.com", d.Caller("me"))
    assert f".{outside}" in packed and not outside.exists()


def test_a_name_of_no_commit_is_never_deployed(root, monkeypatch):
    done = []
    d.make_folder(d.app_folder("blog"))
    for name in ("remove_strays", "begin_push", "deploy", "git"):
        monkeypatch.setattr(d, name, lambda *words, name=name: done.append(name))
    monkeypatch.setattr(d, "ref_of", lambda app, name: d.ZERO)
    with pytest.raises(d.DokkuError, match="is no commit"):
        d.take_source("blog", "git:sync", d.Caller("me"), lambda folder: (d.ZERO, "main"), build="never")
    assert done == ["remove_strays", "begin_push"]


def test_what_git_knows_of_an_app_that_was_never_deployed(root, capsys):
    d.make_folder(d.app_folder("blog"))
    d.ensure_repository("blog")
    assert d.FACTS["git"]("blog") == {"git-status": "", "git-sha": "", "git-last-updated-at": ""}
    d.say_report("git", "blog", "--git-sha", "text")
    assert capsys.readouterr().out == "\n"


def dockerfile_of(tree, monkeypatch, files):
    """Write the files of a tree, and the Dockerfile that it is built by."""
    for name, text in {"Procfile": "web: x\n", **files}.items():
        d.write_text(tree / name, text)
    monkeypatch.setattr(d, "image_for", lambda name, version: f"{name}:{version}")
    monkeypatch.setattr(d, "inspect_image", lambda name: {"Id": "x"})
    d.make_folder(d.app_folder("blog"))
    plain = d.Release("blog", 1, procfile=d.parse_procfile(d.peek(tree, "Procfile")))
    return d.plan_build(plain, tree, *d.language_of(plain, tree))[1]


def test_a_list_of_packages_has_remarks_versions_and_sources(tmp_path, monkeypatch):
    lines = "# needed by pg\nlibpq5\n:repo:deb http://apt.example.com/ focal main\nlibfoo=1:2.3-4~x # as on the old host\nx;id $(id) --reinstall a=b;id\ngit curl\n"
    text = dockerfile_of(tmp_path / "tree", monkeypatch, {"requirements.txt": "flask\n", "Aptfile": lines})
    assert {line.split("--no-install-recommends ")[1].split(" &&")[0].strip() for line in text.splitlines() if "--no-install-recommends lib" in line} == {
        "libpq5 libfoo=1:2.3-4~x git curl"} and "apt.example.com" not in text and "focal" not in text


@pytest.mark.parametrize("name", ["Procfile", "app.json"])
def test_a_mark_of_bytes_at_the_begin_is_none_of_a_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf{} \xff")
    assert d.peek(tmp_path, name) == "{} \ufffd"


@pytest.mark.parametrize("again", [False, True])
def test_a_cache_that_is_purged_during_a_build_is_purged_for_the_next_one(tmp_path, monkeypatch, again):
    tree, built = d.make_folder(tmp_path / "tree"), []

    def stream(argv, env):
        """Build, while somebody purges the cache again."""
        built.append("--no-cache" in argv)
        d.repo_purge_cache("blog") if again and len(built) == 1 else None
        d.write_text(d.Path(next(word for word in argv if word.startswith("--iidfile=")).partition("=")[2]), "sha256:1")
    d.write_text(tree / "Dockerfile", "FROM scratch\n")
    d.make_folder(d.app_folder("blog"))
    d.repo_purge_cache("blog")
    for name, given in (("stream", stream), ("own_base_images", list), ("lent_settings", lambda secrets: []), ("logins_of", lambda app: contextlib.nullcontext({})),
                        ("inspect_image", lambda image: {"Config": {}})):
        monkeypatch.setattr(d, name, given)
    for _ in range(3):
        d.build_image(d.Release("blog", 1), tree)
    assert built == [True, again, False]


NODE, PNPM = '{"scripts": {"start": "x"%s}%s}', "lockfileVersion: '9.0'\n"
WHOLE = [({"go.mod": "module a\nrequire b v0.0.0\nreplace b => ./b\n"}, "go (?:mod download|build)"), ({"go.mod": "module a\n", "go.work": "use ./b\n"}, "go (?:mod download|build)"),
         ({"go.mod": "module a\n", "vendor/modules.txt": "# b v1\n"}, "go (?:mod download|build)"),
         ({"uv.lock": "x", "pyproject.toml": '[tool.uv.sources]\nb = {path = "libs/b"}\n'}, "uv sync"),
         ({"poetry.lock": "x", "pyproject.toml": '[tool.poetry.dependencies]\nb = {path = "b"}\n'}, "poetry install"), ({"Pipfile": 'b = {path = "b"}\n'}, "pipenv install"),
         *(({"requirements.txt": f"{line}\n"}, "pip install -r") for line in ("-r deps/base.txt", "-cdeps/c.txt", "--find-links ./wheels", "b @ file:b", "vendor/b-1-py3-none-any.whl")),
         ({"Gemfile": "gem 'b', :path => 'b'\n"}, "bundle install"), ({"package.json": NODE % ("", ', "pnpm": {"patchedDependencies": {}}'), "pnpm-lock.yaml": PNPM}, "pnpm install"),
         ({"package.json": NODE % (', "build": "prisma generate && tsc"', ""), "package-lock.json": "{}"}, "npm ci"),
         ({"package.json": NODE % ("", ""), "pnpm-lock.yaml": PNPM, ".pnpmfile.cjs": "x"}, "pnpm install"),
         ({"package.json": NODE % ("", ""), "pnpm-lock.yaml": PNPM, "pnpm-workspace.yaml": "overrides:\n"}, "pnpm install")]
LISTS = [({"go.mod": "module a\nrequire b v1\n"}, "go (?:mod download|build)"), ({"uv.lock": "x", "pyproject.toml": "[project]\n"}, "uv sync"),
         *(({"requirements.txt": f"{line}\n"}, "pip install -r") for line in ("flask # see a/b", "-f https://example.com/whl/", "b @ https://example.com/b.whl", "-r requirements-base.txt")),
         ({"Gemfile": "gem 'b'\n"}, "bundle install"), ({"package.json": NODE % (', "build": "tsc"', ""), "package-lock.json": "{}"}, "npm ci")]


@pytest.mark.parametrize("files, install, whole", [(*row, True) for row in WHOLE] + [(*row, False) for row in LISTS])
def test_what_a_list_refers_to_in_the_tree_is_there_when_it_is_installed(tmp_path, monkeypatch, files, install, whole):
    """Else the lists alone come first: a change of the tree installs nothing anew."""
    text = dockerfile_of(tmp_path / "tree", monkeypatch, files)
    before, _ = re.split(install, text, maxsplit=1)
    assert ("COPY . .\n" in before) is whole


@pytest.mark.parametrize("files, words", [
    ({"package.json": NODE % (', "build": "tsc", "heroku-postbuild": "y"', ""), "package-lock.json": "{}"}, 'NODE_ENV="${NODE_ENV:-production}" npm run heroku-postbuild\n'),
    ({"package.json": NODE % (', "build": "tsc"', ""), "package-lock.json": "{}"}, 'NODE_ENV="${NODE_ENV:-production}" npm run build\n'),
    ({"package.json": NODE % ("", ', "packageManager": "pnpm@10.1.0"'), "pnpm-lock.yaml": PNPM}, "pnpm@10\n"),
    ({"package.json": NODE % ("", ', "packageManager": "pnpm@11.0.0"'), "pnpm-lock.yaml": PNPM}, "pnpm@10\n"),
    ({"package.json": NODE % ("", ""), "pnpm-lock.yaml": PNPM, "pnpm-workspace.yaml": "onlyBuiltDependencies:\n"}, "pnpm@10\n"),
    ({"package.json": NODE % ("", ""), "pnpm-lock.yaml": PNPM, "pnpm-workspace.yaml": "packages:\n"}, "pnpm@9\n"),
    ({"Gemfile": "gem 'b'\n", "Procfile": "web: x"}, "COPY --chown=10001:10001 . .\nCOPY --from=dependencies --chown=10001:10001 /app/Gemfile.loc[k] ./\n"),
    ({"Gemfile": "gem 'b'\n", "Procfile": "web: x"}, " BUNDLE_GLOBAL_GEM_CACHE=true\nWORKDIR"), ({"Gemfile": "gem 'b'\n", "Procfile": "web: x"}, "ENV HOME=/app LANG=C.UTF-8\n"),
    *(({"Gemfile": f"gem 'rails'\ngem '{name}'\n", "Gemfile.lock": "x"}, "rails assets:precompile") for name in ("sass-rails", "sassc-rails", "importmap-rails", "propshaft")),
    *(({"Procfile": "web: x", **files}, "--no-install-recommends git &&") for files in (
        {"requirements.txt": "b @ git+https://example.com/b\n"}, {"requirements.txt": "-r requirements/a.txt\n", "requirements/a.txt": "git+https://example.com/b\n"},
        {"pyproject.toml": 'dependencies = ["b @ git+https://example.com/b"]\n'}, {"uv.lock": 'source = { git = "https://example.com/b" }\n'},
        {"poetry.lock": 'type = "git"\n'}, {"Pipfile": 'b = {git = "https://example.com/b"}\n'})),
    ({"composer.json": "{}", "Procfile": "web: heroku-php-nginx"}, "docker-php-ext-install -j2 bcmath exif gd intl "), ({"gradlew": "x", "Procfile": "web: x"}, "--no-daemon build -x check &&"),
    ({"package.json": NODE % (', "build": "next build"', ', "dependencies": {"next": "15"}'), "package-lock.json": "{}"}, "/next,target=/app/.next/cache "),
    ({"uv.lock": "x", "Procfile": "web: x"}, " UV_PYTHON=/opt/venv/bin/python "),
    ({"go.mod": "module a\n"}, "/etc/ssl/certs/ca-certificates.crt"), ({"bin/x": "x"}, "--no-install-recommends ca-certificates")])
def test_what_a_dockerfile_of_a_language_says(tmp_path, monkeypatch, files, words):
    d.write_property("blog", "builder", "selected", "" if len(files) > 1 or "go.mod" in files else "procfile")
    assert words in dockerfile_of(tmp_path / "tree", monkeypatch, files)


@pytest.mark.parametrize("files", [{"uv.lock": "x"}, {"requirements.txt": "flask\n"}, {"Gemfile": "gem 'b'\n", "Gemfile.lock": "x"}])
def test_what_only_some_need_is_not_installed_for_all(tmp_path, monkeypatch, files):
    text = dockerfile_of(tmp_path / "tree", monkeypatch, files)
    assert "recommends git &&" not in text and "Gemfile.loc[k] ./\nUSER" not in text and "/next" not in text


BUILT = [{"package.json": NODE % (', "build": "x"', ""), "package-lock.json": "{}"}, {"package.json": NODE % (', "postinstall": "x"', ""), "package-lock.json": "{}"},
         {"gradlew": "x"}, {"pom.xml": "x"}, {"go.mod": "module a\n"}, {"requirements.txt": "", "manage.py": "django", "a/settings.py": "STATIC_ROOT = 1"},
         {"Gemfile": "gem 'rails'\ngem 'propshaft'\n", "Gemfile.lock": "x"}]


@pytest.mark.parametrize("files", BUILT)
def test_a_step_that_runs_code_of_the_app_has_its_config_and_runs_anew_after_a_change_of_it(tmp_path, monkeypatch, files):
    config = d.config_file("blog")
    texts = []
    for word in ("first", "second"):
        d.write_config("blog", {"WORD": word})
        os.utime(config, ns=(0, len(texts)))
        texts.append(dockerfile_of(tmp_path / "tree", monkeypatch, files))
    before, after = re.split("CONFIG_CHANGED=0\n", texts[0], maxsplit=1)
    assert "RUN --mount" in after.split("\nFROM ", 1)[0] and "--mount=type=secret,id=config,uid=10001 . /run/secrets/config && " in after
    assert texts[1].startswith(before) and texts[1] == texts[0].replace("CONFIG_CHANGED=0", "CONFIG_CHANGED=1") and "first" not in texts[0]


def test_a_step_that_installs_from_lists_has_the_config_and_does_not_run_anew(tmp_path, monkeypatch):
    text = dockerfile_of(tmp_path / "tree", monkeypatch, {"requirements.txt": "flask\n"})
    assert re.search("id=config,uid=10001 . /run/secrets/config && pip install", text) and "CONFIG_CHANGED" not in text


def test_the_config_of_a_build_is_quoted_and_holds_nothing_that_would_lead_it_to_other_tools(tmp_path, monkeypatch):
    """It is a file of ours alone, gone after the build; no value stands on a command line."""
    seen, config = {}, {"WORD": "it's $(touch x) `y`\n\"\\", "EMPTY": "", "PATH": "/nowhere", "LD_PRELOAD": "x.so"}

    def stream(argv, env):
        path = d.Path(next(word for word in argv if word.startswith("--secret=id=config,")).partition("src=")[2])
        shell = ["env", "-i", "sh", "-c", '. "$0" && printf "%s" "$WORD" && printf "/%s/%s" "${EMPTY-none}" "${LD_PRELOAD-none}"', path]
        seen.update(path=path, mode=path.stat().st_mode & 0o777, argv=" ".join(argv), word=subprocess.run(shell, capture_output=True, text=True, check=True).stdout)
        d.write_text(d.Path(next(word for word in argv if word.startswith("--iidfile=")).partition("=")[2]), "sha256:1")
    d.write_text(tmp_path / "tree/index.html", "x")
    d.make_folder(d.app_folder("blog"))
    d.write_config("blog", config)
    for name, given in (("stream", stream), ("lent_settings", lambda secrets: []), ("logins_of", lambda app: contextlib.nullcontext({})),
                        ("inspect_image", lambda image: {"Config": {}}), ("image_for", lambda name, version: name)):
        monkeypatch.setattr(d, name, given)
    d.build_image(d.Release("blog", 1), tmp_path / "tree")
    assert seen["word"] == config["WORD"] + "//none" and seen["mode"] == 0o600 and "touch" not in seen["argv"] and not seen["path"].exists()


@pytest.mark.parametrize("name, line", [("build.gradle", "languageVersion = JavaLanguageVersion.of(17)"), ("build.gradle.kts", "languageVersion.set(JavaLanguageVersion.of(17))"),
                                        ("build.gradle.kts", "jvmToolchain(17)"), ("build.gradle", "languageVersion = JavaLanguageVersion.of( '17' )")])
def test_the_version_that_gradle_names(tmp_path, name, line):
    (tmp_path / name).write_text(f"java {{ toolchain {{ {line} }} }}\n")
    assert d.version_of(d.languages()["java"], tmp_path) == ("17", name)


@pytest.mark.parametrize("jars", [{"build/libs/x.jar": 10, "build/libs/x-all.jar": 99}, {"api/target/api-1.jar": 10, "web/target/web 1.jar": 99}])
def test_of_several_jars_the_largest_is_started(tmp_path, monkeypatch, jars):
    step = dockerfile_of(tmp_path / "tree", monkeypatch, {"gradlew": "x"}).partition("build -x check && \\\n")[2].partition("\nFROM ")[0]
    for name, size in jars.items():
        d.write_text(tmp_path / "app" / name, "x" * size)
    subprocess.run(["sh", "-c", step], cwd=tmp_path / "app", check=True)
    assert jars[str((tmp_path / "app/app.jar").readlink())] == 99


def test_a_registry_that_gave_no_image_is_asked_again_after_an_hour(monkeypatch):
    """Until then an image of this host's packages stands in, unless it is of the version that is wanted: then it always does."""
    asked, here, own = [], set(), []

    def pull(name):
        asked.append(name)
        here.update([name] if reached else [])
        return reached

    def make(name):
        own.append(f"dokku-images/{name}:3.11.2")
        return own[0]
    for name, given in (("pull_image", pull), ("inspect_image", lambda name: {"Id": "x"} if name in here else {}), ("own_image", lambda name: "".join(own[:1])), ("make_image", make)):
        monkeypatch.setattr(d, name, given)
    reached = False
    assert [d.image_for("python", "3.13") for _ in range(3)] == ["dokku-images/python:3.11.2"] * 3
    assert asked == ["python:3.13-slim"] and len(own) == 1
    reached = True
    assert d.image_for("python", "3.13") == d.image_for("python", "3.11") == own[0] and d.image_for("python", "3.12") == "python:3.12-slim"
    now = time.time()
    monkeypatch.setattr(d.time, "time", lambda: now + 3601)
    assert d.image_for("python", "3.11") == own[0] and d.image_for("python", "3.13") == "python:3.13-slim"
    assert asked == ["python:3.13-slim", "python:3.12-slim", "python:3.13-slim"]


@pytest.mark.parametrize("line, told", [("getaddrinfo EAI_AGAIN registry.yarnpkg.com", False), ("error TS2304: Cannot find name", False),
                                        ("error Your lockfile needs to be updated, but yarn was run with `--frozen-lockfile`.", True),
                                        ('Cannot install with "frozen-lockfile" because pnpm-lock.yaml is not up to date with package.json', True)])
def test_a_command_that_is_shown_is_no_cause(line, told):
    said = f"#13 [2/2] RUN yarn install --frozen-lockfile\n#13 30.1 {line}\n#13 ERROR: process yarn install --frozen-lockfile did not complete\n"
    assert ("the lock file does not match" in d.likely_cause(said)) is told


@pytest.fixture
def deployed(monkeypatch):
    """What was deployed of the app blog."""
    done = []
    monkeypatch.setattr(d, "deploy", lambda app, commit, *words: done.append(commit))
    monkeypatch.setattr(d, "remove_strays", lambda app: None)
    return done


def test_what_git_refuses_after_the_hook_is_not_deployed(pushed, deployed, tmp_path):
    work, first = pushed
    in_work, repository = ["git", "-C", work], d.repository_of("blog")
    subprocess.run([*in_work, "tag", "-a", "v1", "-m", "x"], check=True)
    subprocess.run([*in_work, "push", "-q", repository, "v1"], check=True)
    with pytest.raises(d.DokkuError, match="main can't stand on a tag"):
        d.receive_ref("blog", d.ref_of("blog", "refs/tags/v1"), "refs/heads/main", "me")
    for _ in range(2):
        subprocess.run([*in_work, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{work}", tmp_path / "shallow"], check=True)
    for path in (tmp_path / "shallow/.git/objects/pack").glob("*.pack"):
        with path.open("rb") as pack:
            subprocess.run(["git", f"--git-dir={repository}", "unpack-objects", "-q"], stdin=pack, check=True)
    tip = subprocess.run([*in_work, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    with pytest.raises(d.DokkuError, match="shallow clone"):
        d.receive_ref("blog", tip, "refs/heads/main", "me")
    assert deployed == []
    subprocess.run([*in_work, "push", "-q", repository, "HEAD:refs/heads/kept"], check=True)
    d.receive_ref("blog", tip, "refs/heads/main", "me")
    assert deployed == [tip]


def test_one_ref_that_moved_keeps_all_of_a_push_from_being_deployed(pushed, deployed, monkeypatch):
    tip = pushed[1]
    monkeypatch.setenv("DOKKU_APP", "blog")
    for old, fine in ((d.ZERO, True), ("1" * 40, False)):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{tip} {tip} refs/heads/main\n{old} {tip} refs/heads/topic\n"))
        with contextlib.nullcontext() if fine else pytest.raises(d.DokkuError, match="refs/heads/topic moved while"):
            d.git_hook()
    assert deployed == [tip]


def test_a_rebuild_builds_the_deploy_branch(pushed, deployed):
    work, main = pushed
    subprocess.run(["git", "-C", work, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    subprocess.run(["git", "-C", work, "push", "-q", d.repository_of("blog"), "main:staging"], check=True)
    d.git("blog", "symbolic-ref", "HEAD", "refs/heads/main")
    for branch in ("", "main", "staging"):
        d.write_property("blog", "git", "deploy-branch", branch)
        d.rebuild(d.Caller("me"), "blog")
    assert deployed == [main, main, d.ref_of("blog", "refs/heads/staging")] and main != deployed[2]


def test_the_hint_keeps_the_hosts_that_are_trusted_already(monkeypatch):
    for app, words in (("--global", "--global private-hosts git.lan files.lan "), ("blog", "git:set blog private-hosts own.lan files.lan ")):
        d.write_property(app, "git", "private-hosts", "git.lan" if app == "--global" else "own.lan")
        monkeypatch.setattr(socket, "getaddrinfo", lambda *names, **facts: [(0, 0, 0, "", ("10.0.0.1", 0))])
        with pytest.raises(d.DokkuError) as error:
            d.pinned("blog", "https://files.lan/x")
        assert words in error.value.hint


def test_the_lines_of_the_step_that_failed_are_said_again(root, tmp_path, monkeypatch):
    output = "#5 0.1 total 16\n#5 0.1 drwxr-xr-x 2 root\n#6 0.2 nope\n#5 DONE 0.3s\n#6 ERROR: executor failed running [/bin/sh -c false]: exit code: 1\n"

    def stream(argv, **words):
        """Fail as docker build does."""
        raise d.ToolFailed(argv, 1, output)
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    d.make_folder(d.app_folder("blog"))
    monkeypatch.setattr(d, "stream", stream)
    with pytest.raises(d.DokkuError) as error:
        d.build_image(d.Release("blog", 1), tmp_path)
    assert error.value.message.splitlines() == ["The build failed. Its last lines:", "nope", "executor failed running [/bin/sh -c false]: exit code: 1"]


def test_what_is_dokku_s_alone_is_told(root, tmp_path, capsys):
    d.make_folder(d.app_folder("blog"))
    (tmp_path / "nginx.conf.sigil").write_text("x")
    d.read_tree(d.Release("blog", 1), tmp_path)
    assert "nginx.conf.sigil is dokku's, and not used here" in capsys.readouterr().err
