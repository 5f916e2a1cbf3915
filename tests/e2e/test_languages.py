"""Apps without a Dockerfile: one real app of each language, pushed, asked, changed by a line and pushed again."""

import http.server
import json
import re
import select
import socket
import threading
from pathlib import Path

import pytest
from conftest import APPS, docker, sh
from pip._internal.models.index import PyPI

# --- one app per language ---

# the app's folder, what it answers, what the log says, a line of it that is changed: file, old words, new words
APPS_OF = {
    "python": ("flask", "blog of somebody", ["Python (requirements.txt)", "version 3.11 of .python-version", "gunicorn app:app"], ("app.py", "{parts['user']}", "{parts['host']}"), "blog of db"),
    "node": ("express", "Hello from Express, compiler here: false", ["Node (package-lock.json)", "version 22 of package.json", "web: exec npm start"],
             ("src/server.ts", "Hello from", "Changed in"), "Changed in Express, compiler here: false"),
    "site": ("vite", "<main></main>", ["Node (package-lock.json", "web: exec serve-static   (a site that is built, package.json)"], ("index.html", "A site", "Changed"), "<title>Changed</title>"),
    "php": ("php", "Hello from PHP, memory 77M, path /", ["PHP (composer.json", "web: exec heroku-php-apache2 public/"], ("src/Greeting.php", "Hello from", "Changed in"), "Changed in PHP"),
    "ruby": ("ruby", "Hello from Ruby, UTF-8", ["Ruby (Gemfile"], ("server.rb", "Hello from", "Changed in"), "Changed in Ruby"),
    "go": ("go", "Hello from Go", ["Go (go.mod)", "version 1.19 of go.mod", "web: exec bin/web"], ("main.go", "Hello from", "Changed in"), "Changed in Go"),
    "java": ("java", "Hello from Java, UTF-8", ["Java (pom.xml)", "version 17 of pom.xml", "-jar app.jar"], ("src/main/java/Hello.java", "Hello from", "Changed in"), "Changed in Java"),
    "static": ("static", "<h1>Hello, static</h1>", ["static files (index.html)"], ("index.html", "Hello", "Changed"), "<h1>Changed, static</h1>"),
}


def change(app, file, old, new):
    path = app.work / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("language", APPS_OF)
def test_an_app_of_each_language_is_built_and_answers_and_a_changed_line_reuses_its_layers(new_app, language):
    folder, answer, said, changed, new_answer = APPS_OF[language]
    app = new_app(APPS / folder)
    output = app.deploy()
    assert app.get()[0] == 200 and answer in app.get()[1]
    for words in said:
        assert words in output, output
    assert f"dokku builder:set {app.name} selected ruby|python|php|" in output
    assert re.search(r"remote:        \(\d+\.\d s\)", output), "how long each step took"
    change(app, *changed)
    again = app.deploy()
    assert new_answer in app.get()[1]
    assert not re.search(r"npm ci --include|pip install .*-r|composer install|bundle install|go mod download", ran(again)), again
    assert docker("exec", f"{app.name}.web.1", "id", "-u") == "10001", "not root"
    assert docker("image", "inspect", "-f", "{{json .Config.Entrypoint}}", f"dokku/{app.name}:latest") in ("null", "[]")


def ran(output):
    """Give the steps of a build that were not taken from the cache."""
    steps = dict(re.findall(r"#(\d+) (\[.*\] .*)", output))
    cached = re.findall(r"#(\d+) CACHED", output)
    return "\n".join(words for number, words in steps.items() if number not in cached)


def test_django_migrates_in_release_and_collects_its_static_files(new_app, admin):
    app = new_app(APPS / "django")
    app.ok("apps:create")
    admin.ok("storage:create", app.name)
    admin.ok("storage:mount", app.name, app.name, "--container-dir", "/data")
    app.ok("config:set", "--no-restart", "DATABASE=/data/db")
    try:
        output = app.deploy()
        assert "Applying entries.0001_initial... OK" in output and "web: exec gunicorn blog.wsgi:application" in output
        assert "1 static file copied" in output
        assert app.get() == (200, "entries: made by a migration, style: True")
        change(app, "blog/urls.py", 'GREETING = "entries"', 'GREETING = "changed"')
        assert "No migrations to apply" in app.deploy()
        assert app.get() == (200, "changed: made by a migration, style: True")
    finally:
        admin.ok("storage:unmount", app.name, app.name)
        admin.ok("storage:destroy", app.name, "--destroy-host-dir", "--force")


def test_a_build_has_the_config_and_runs_anew_after_a_change_of_it(new_app):
    """What the app's code bakes is the app's; we ourselves put no value into a layer."""
    app = new_app(APPS / "vite")
    change(app, "main.js", '"Hello from Vite"', "import.meta.env.VITE_WORD")
    app.ok("apps:create")
    app.ok("config:set", "--no-restart", "VITE_WORD=baked-first")
    app.deploy()
    for word in ("baked-first", "baked-then"):
        if word == "baked-then":
            app.ok("config:set", "--no-restart", f"VITE_WORD={word}")
            again = ran(app.ok("rebuild"))
            assert "npm run build" in again and "npm ci" not in again
        script, = re.findall(r'src="(/assets/[^"]+[.]js)"', app.get()[1])
        assert word in app.get(script)[1]
        assert "baked-" not in docker("history", "--no-trunc", f"dokku/{app.name}:latest")
    assert "npm run build" not in ran(app.ok("rebuild"))


def test_collectstatic_runs_with_the_config(new_app):
    app = new_app(APPS / "django")
    change(app, "blog/settings.py", 'os.environ.get("SECRET_KEY", "only for the build")', 'os.environ["SECRET_KEY"]')
    app.ok("apps:create")
    app.ok("config:set", "--no-restart", "SECRET_KEY=known-to-the-app", "DATABASE=/tmp/db")
    assert "1 static file copied" in app.deploy()
    assert "known-to-the-app" not in docker("history", "--no-trunc", f"dokku/{app.name}:latest")


def test_the_build_of_a_node_app_has_what_its_installing_has(new_app):
    package = {"name": "x", "scripts": {"build": "test -s /run/secrets/ca && test $NODE_ENV = production"}}
    server = "require('http').createServer((_, answer) => answer.end('built')).listen(process.env.PORT)\n"
    app = only(new_app(APPS / "static"), **{"package.json": json.dumps(package), "server.js": server})
    app.deploy()
    assert app.get() == (200, "built")


class Proxy(http.server.BaseHTTPRequestHandler):
    """Carries bytes to the host that a CONNECT names, and notes its name."""

    def do_CONNECT(self):
        host, _, port = self.path.rpartition(":")
        self.server.asked.append(host)
        with socket.create_connection((host, int(port)), 30) as there:
            self.send_response(200)
            self.end_headers()
            other = {self.connection: there, there: self.connection}
            while ready := select.select(list(other), [], [], 60)[0]:
                for side in ready:
                    if not (data := side.recv(65536)):
                        return
                    other[side].sendall(data)

    def log_message(self, *_):
        pass


def test_a_build_goes_through_the_proxy_of_the_host_and_the_image_knows_nothing_of_it(new_app):
    gateway = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    server = http.server.ThreadingHTTPServer((gateway, 0), Proxy)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://{gateway}:{server.server_port}"
    app = new_app(APPS / "flask")
    app.deploy()
    try:
        done = sh("env", f"https_proxy={address}", f"HTTPS_PROXY={address}", "dokku", "rebuild:force", app.name)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        server.shutdown()
    assert server.asked, "nothing came by the proxy"
    assert app.get()[0] == 200 and len(app.releases()) == 2
    image = f"dokku/{app.name}:latest"
    for text in (docker("image", "inspect", image), docker("history", "--no-trunc", image), docker("exec", f"{app.name}.web.1", "env")):
        assert gateway not in text and "_proxy" not in text.lower(), text


# --- what decides, and what is refused ---

WSGI = "def application(environ, start):\n    import words\n    start('200 OK', [])\n    return [words.WORD]\n"
NODE = "require('http').createServer((_, answer) => answer.end(require('made').word)).listen(process.env.PORT)\n"
LOCAL = {
    "go": {"go.mod": "module example.com/hello\n\ngo 1.19\n\nrequire example.com/words v0.0.0\n\nreplace example.com/words => ./words\n",
           "words/go.mod": "module example.com/words\n\ngo 1.19\n", "words/words.go": "package words\n\nconst Word = \"from the tree\"\n",
           "main.go": 'package main\n\nimport (\n"net/http"\n"os"\n\n"example.com/words"\n)\n\nfunc main() {\nhttp.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { '
                      'w.Write([]byte(words.Word)) })\nhttp.ListenAndServe(":"+os.Getenv("PORT"), nil)\n}\n'},
    "python": {"requirements.txt": "-r deps/base.txt\n./words\n", "deps/base.txt": "gunicorn\n", "words/pyproject.toml": '[project]\nname = "words"\nversion = "1"\n',
               "words/words.py": "WORD = b'from the tree'\n", "app.py": WSGI, "Procfile": "web: gunicorn app:application --bind 0.0.0.0:$PORT\n",
               "Aptfile": "# for the pictures\n:repo:deb http://x focal main\nfile # which says what a file is\n"},
    "node": {"package.json": json.dumps({"name": "x", "scripts": {"build": "prisma-like && exit 1", "heroku-postbuild": "mkdir -p node_modules/made; echo \"exports.word = 'from the tree'\" "
                                         "> node_modules/made/index.js # patch-package"}}), "server.js": NODE},
}


@pytest.mark.parametrize("language", ["go", "python", "node"])
def test_dependencies_that_stand_in_the_tree_itself(new_app, language):
    app = only(new_app(APPS / "static"), **LOCAL[language])
    app.deploy()
    assert app.get() == (200, "from the tree")
    assert language != "python" or docker("exec", f"{app.name}.web.1", "file", "--version").startswith("file-")


def only(app, **files):
    """Leave nothing in the work tree but these files; give the app."""
    sh("git", "rm", "-rq", "--ignore-unmatch", ".", cwd=app.work)
    for path in [path for path in app.work.iterdir() if path.name != ".git"]:
        sh("rm", "-rf", path)
    for name, text in files.items():
        path = app.work / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return app


PERL = "web: GREETING='by a Procfile' exec perl server.pl\n"
SERVER = (APPS / "hello" / "server.pl").read_text()


LOCKED = {  # the tool: the files that its app has, under which names, and the step that must not run again
    "uv": ({"pyproject.toml": "uv.toml", "uv.lock": "uv.lock", "app.py": "app.py"}, "uv sync", "Hello python"),
    "poetry": ({"pyproject.toml": "poetry.toml", "poetry.lock": "poetry.lock", "app.py": "app.py"}, "poetry install", "Hello python"),
    "pipenv": ({"Pipfile": "Pipfile", "Pipfile.lock": "Pipfile.lock", "app.py": "app.py"}, "pipenv install --deploy", "Hello python"),
    "pipenv without a lock": ({"Pipfile": "Pipfile", "app.py": "app.py"}, "pipenv install --skip-lock", "Hello python"),
    "yarn": ({"package.json": "package.json", "yarn.lock": "yarn.lock", "server.js": "server.js"}, "yarn install --frozen-lockfile", "Hello 172800000 false"),
    "pnpm": ({"package.json": "package.json", "pnpm-lock.yaml": "pnpm-lock.yaml", "server.js": "server.js"}, "pnpm install --frozen-lockfile", "Hello 172800000 false"),
}


def locked(tool):
    """Give the files of the app that a tool has."""
    index, storage = PyPI.simple_url.rstrip("/"), f"https://{PyPI.file_storage_domain}"
    return {name: (APPS / "locked" / file).read_text().replace("{INDEX}", index).replace("{FILES}", storage) for name, file in LOCKED[tool][0].items()}


@pytest.mark.parametrize("tool", LOCKED)
def test_a_lock_file_is_installed_by_its_tool_once(new_app, tool):
    files, install, answer = LOCKED[tool]
    app = only(new_app(APPS / "static"), **locked(tool))
    assert install in ran(app.deploy())
    assert app.get() == (200, answer)
    change(app, list(files)[-1], '"Hello"', '"Changed"')
    assert install not in ran(app.deploy())
    assert app.get() == (200, answer.replace("Hello", "Changed"))


def test_uv_takes_the_python_of_the_image_whatever_the_tree_is_pinned_to(new_app):
    texts = locked("uv")
    scripts = '\n[project.scripts]\nx = "app:main"\n'  # so that the whole tree is there when it is installed
    app = only(new_app(APPS / "static"), **{**texts, "pyproject.toml": texts["pyproject.toml"] + scripts, ".python-version": "3.11.99\n"})
    app.deploy()
    assert app.get() == (200, "Hello python")


def test_a_procfile_alone_builds_and_a_dockerfile_wins_unless_the_builder_is_selected(new_app):
    app = only(new_app(APPS / "static"), Procfile=PERL, **{"server.pl": SERVER})
    assert "its Procfile alone (Procfile)" in app.deploy()
    assert app.get() == (200, "by a Procfile")
    app.deploy(Dockerfile="FROM debian:bookworm\nWORKDIR /w\nCOPY server.pl .\nCMD exec false\n")
    assert app.get() == (200, "by a Procfile"), "the Procfile's command runs in the Dockerfile's image"
    app.write(**{"index.html": "<p>a page</p>"})
    app.ok("builder:set", "selected", "static")
    assert "static files (index.html)" in app.deploy(Procfile=None)
    assert app.get() == (200, "<p>a page</p>")
    app.ok("builder:set", "selected", "python")
    assert "There is no Dockerfile in the tree, and nothing that shows how else to build it" in app.rejected(more="x")
    assert "is not possible here" in app.refused("builder:set", "selected", "cobol", code=2)
    app.ok("builder:set", "selected")
    assert "its Dockerfile" in app.rejected(Dockerfile="FROM debian:bookworm\nRUN false\n")


def test_a_folder_of_a_monorepo_is_built(new_app):
    app = only(new_app(APPS / "static"), **{"Dockerfile": "FROM debian:bookworm\nRUN false\n", "site__index.html": "in a folder"})
    app.ok("apps:create")
    app.ok("builder:set", "build-dir", "site")
    app.deploy()
    assert app.get() == (200, "in a folder")
    assert app.get("/Dockerfile")[0] == 404 and app.get("/.git/HEAD")[0] == 404


def test_static_files_have_clean_names_a_page_for_what_is_missing_and_keep_what_is_the_platforms(new_app):
    app = new_app(APPS / "static")
    app.deploy(app_json="{}", dot_env="secret")
    assert app.get("/about") == (200, "<p>about</p>") and app.get("/nowhere") == (404, "<p>not there</p>")
    assert app.get("/app.json")[0] == app.get("/.env")[0] == 404


LARAVEL = "location / {\n    try_files $uri $uri/ /index.php?$query_string;\n}\n"  # as Heroku's own pages show them
SYMFONY = """location / {
    try_files $uri @rewriteapp;
}
location @rewriteapp {
    rewrite ^(.*)$ /index.php/$1 last;
}
location ~ ^/index\\.php(/|$) {
    try_files @heroku-fcgi @heroku-fcgi;
    internal;
}
"""


def test_php_has_rewriting_or_nginx_as_the_procfile_says(new_app):
    app = new_app(APPS / "php")
    app.deploy()
    assert app.get("/some/page?x=1")[1].endswith("path /some/page"), ".htaccess"
    assert "require" not in app.get("/../composer.json")[1] + app.get("/composer.json")[1]
    app.deploy(Procfile="web: vendor/bin/heroku-php-nginx public/\n")
    assert app.get("/some/page?x=1") == (200, "Hello from PHP, memory 77M, path /some/page")
    assert "php-fpm" in docker("top", f"{app.name}.web.1")
    app.ok("config:set", "WEB_CONCURRENCY=1")
    assert app.get("/some/page")[0] == 200, "php-fpm starts with one process too"
    for rules in (LARAVEL, SYMFONY):
        app.deploy(Procfile="web: vendor/bin/heroku-php-nginx -C rules.conf public/\n", **{"rules.conf": rules})
        assert app.get("/some/page?x=1") == (200, "Hello from PHP, memory 77M, path /some/page")


FAILURES = {
    "no web process": ({"requirements.txt": "flask\n"}, "There is no web process: no Procfile names one"),
    "lock file": ({"package.json": '{"dependencies": {"ms": "2.1.3"}, "scripts": {"start": "node x.js"}}', "package-lock.json": '{"lockfileVersion": 3, "packages": {"": {}}}'},
                  "likely cause: the lock file does not match"),
    "no such dependency": ({"requirements.txt": "flask==0.0.999\n", "app.py": "x"}, "likely cause: a dependency is not to be had under that name and version"),
    "no such script": ({"package.json": '{"scripts": {"build": "exit 3"}}', "index.js": "x"}, "The build failed. Its last lines:"),
    "memory": ({"package.json": '{"scripts": {"build": "node --max-old-space-size=20 -e \\"const a=[];for(;;)a.push({})\\"", "start": "node x"}}'}, "likely cause: the memory ran out"),
    "not among the dependencies": ({"package.json": "{}", "server.js": "require('nonsense_of_ours')"}, "likely cause: something is used that is not among the dependencies"),
    "command": ({"Procfile": "web: no-such-server --port $PORT\n"}, "likely cause: a program of the command is not in the image"),
    "bad JSON": ({"package.json": "{", "server.js": "x"}, "package.json is not JSON"),
    "image": ({"Dockerfile": "FROM debian:nonsense\n"}, "likely cause: "),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_likely_cause_of_a_failure_is_said(new_app, failure):
    files, words = FAILURES[failure]
    output = only(new_app(APPS / "static"), **files).rejected()
    assert words in output, output


def test_an_app_of_workers_only_needs_no_web_process(new_app):
    app = only(new_app(APPS / "static"), Procfile="worker: exec sleep 1000\n", **{"requirements.txt": ""})
    app.ok("apps:create")
    app.ok("ps:scale", "web=0", "worker=1")
    app.deploy()
    assert app.containers() == [f"{app.name}.worker.1"]


# --- trees that mean harm ---


def test_hostile_names_links_and_sizes_are_built_or_refused_and_nothing_of_the_host_gets_in(new_app):
    app = new_app(APPS / "static")
    names = ["a\nRUN touch pwned", 'quote"\'$(touch x)`', "-rf", "é\x01", "--build-arg=X", "x" * 255, "Dockerfile\n"]
    for name in names:
        (app.work / name).write_text("x")
    (app.work / "folder\n").mkdir()
    (app.work / "folder\n" / "wsgi.py").write_text("get_wsgi_application")
    for name, target in {"shadow": "/etc/shadow", "up": "../../../../../etc/passwd", "all": "/", "self": "self", "Aptfile": "/etc/hostname"}.items():
        (app.work / name).symlink_to(target)
    app.deploy()
    assert app.get()[0] == 200 and app.get("/shadow")[0] in (403, 404)
    image = f"dokku/{app.name}:latest"
    assert docker("run", "--rm", image, "sh", "-c", "ls / | grep -c pwned || test ! -s /app/Aptfile -o -L /app/Aptfile && echo fine").endswith("fine")
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert "pwned" not in history and "touch x" not in history


@pytest.mark.parametrize("mark", ["requirements.txt", "package.json", "Gemfile", "go.mod", "pom.xml", "composer.json", "Procfile", "Dockerfile", ".static"])
def test_a_mark_that_is_a_link_to_the_host_or_to_itself_gives_nothing_of_the_host(new_app, mark):
    app = only(new_app(APPS / "static"))
    for target in ("/etc/passwd", mark):
        (app.work / mark).unlink(missing_ok=True)
        (app.work / mark).symlink_to(target)
        code, output = app.push()
        assert "Traceback" not in output and "bug in dokku_py" not in output and "root:x:0" not in output, output
        assert (code == 0) == ((mark, target) == (".static", "/etc/passwd")), output  # that one says how to build by being there


def test_values_of_version_files_and_of_procfiles_never_reach_a_dockerfile(new_app):
    app = only(new_app(APPS / "static"), **{"requirements.txt": "", ".python-version": "3.11\nRUN touch /pwned\n", "Procfile": PERL, "server.pl": SERVER,
                                            "Aptfile": "hello;touch\nRUN\n--reinstall\n", "runtime.txt": f"python-{'9' * 9000}"})
    app.deploy()
    assert app.get() == (200, "by a Procfile")
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", f"dokku/{app.name}:latest")
    assert "pwned" not in history and "IO::Socket" not in history and "touch" not in history


def test_a_file_of_a_gigabyte_and_fifty_thousand_files(new_app):
    for files in (50_000, 0):
        app = new_app(APPS / "static")
        (app.work / "many").mkdir()
        for number in range(files):
            (app.work / "many" / f"{number}.txt").touch()
        if not files:
            with (app.work / "sparse").open("wb") as file:
                file.truncate(2**30)
        code, output = app.push()
        assert "Traceback" not in output and "bug in dokku_py" not in output, output
        assert code == 0 and app.get()[0] == 200, output


@pytest.mark.parametrize("size, words", [(2**20 + 1, "larger than 1 MiB"), (2**20 - 100, " !     ")])
def test_a_procfile_of_a_mebibyte_is_refused(new_app, size, words):
    output = new_app(APPS / "static").rejected(Procfile=f"web: {'x' * size}\n")
    assert words in output and "bug in dokku_py" not in output, output[-500:]


# --- images, and what builds use of the host ---


def test_builds_use_the_hosts_settings_and_leave_none_in_the_image(new_app):
    settings, old = Path("/etc/pip.conf"), None
    if settings.exists():
        old = settings.read_text()
    settings.write_text((old or "[global]\n") + "# only-on-this-host\n")
    try:
        app = only(new_app(APPS / "static"), Procfile=PERL, **{"server.pl": SERVER, "requirements.txt": "--find-links .\n", "setup.cfg": ""})
        app.deploy()
    finally:
        settings.write_text(old) if old is not None else settings.unlink()
    image = f"dokku/{app.name}:latest"
    assert docker("run", "--rm", "-u", "0", "--entrypoint", "", image, "sh", "-c", "grep -rlsI only-on-this-host /app /opt /etc /run /root /usr/local || echo none") == "none"
    assert "run/secrets" not in docker("image", "inspect", image)
    assert "/run/secrets" not in docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)


def test_images_are_listed_built_and_their_source_is_set(admin, new_app):
    assert re.search(r"^dokku-images/nginx:[0-9.]+ +\d+ MB$", admin.ok("images:list"), re.M)
    assert "dokku-images/nginx:" in admin.ok("images:build", "nginx")
    assert "is not possible here" in admin.refused("images:build", "cobol", code=2)
    assert "is not possible here" in admin.refused("images:set", "source", "elsewhere", code=2)
    app = new_app(APPS / "static")
    try:
        admin.ok("images:set", "source", "debian")
        app.deploy()
        admin.ok("images:set", "--global", "source", "hub")
        assert admin.ok("images:report", "--global", "--images-global-source") == "hub\n"
        if sh("docker", "image", "inspect", "nginx:stable").returncode:
            code, output = app.push(**{"new.html": "x"})
            assert (code == 0 and "stands in" not in output) or "nginx:stable is not on this server and can't be pulled" in output, output
    finally:
        admin.ok("images:set", "source", "auto")


def test_rebuild_takes_cached_layers_and_rebuild_force_does_not(new_app):
    app = new_app(APPS / "ruby")
    app.deploy()
    assert "bundle install" not in ran(app.ok("rebuild"))
    assert "bundle install" in ran(app.ok("rebuild:force"))
    app.ok("repo:purge-cache")
    assert "bundle install" in ran(app.ok("rebuild"))
    assert "bundle install" not in ran(app.ok("rebuild"))
    assert app.get() == (200, "Hello from Ruby, UTF-8")
