"""Apps without a Dockerfile: one real app of each language, pushed, asked, changed by a line and pushed again."""

import json
import os
import re
from pathlib import Path

import pytest
from conftest import APPS, STATE, docker, sh

# --- one app per language ---

# the app's folder, what it answers, what the log says, a line of it that is changed: file, old words, new words
APPS_OF = {
    "python": ("flask", "blog of somebody", ["Python (requirements.txt)", "version 3.11 of .python-version", "gunicorn app:app"], ("app.py", "{parts['user']}", "{parts['host']}"), "blog of db"),
    "node": ("express", "Hello from Express, compiler here: false", ["Node (package-lock.json)", "version 22 of package.json", "web: exec npm start"],
             ("src/server.ts", "Hello from", "Changed in"), "Changed in Express, compiler here: false"),
    "site": ("vite", "<main></main>", ["Node (package-lock.json", "web: exec serve-static   (a site that is built, package.json)"], ("index.html", "A site", "Changed"), "<title>Changed</title>"),
    "php": ("php", "Hello from PHP, memory 77M, path /", ["PHP (composer.json", "web: exec heroku-php-apache2 public/"], ("src/Greeting.php", "Hello from", "Changed in"), "Changed in PHP"),
    "ruby": ("ruby", "Hello from Ruby", ["Ruby (Gemfile"], ("server.rb", "Hello from", "Changed in"), "Changed in Ruby"),
    "go": ("go", "Hello from Go", ["Go (go.mod)", "version 1.19 of go.mod", "web: exec bin/web"], ("main.go", "Hello from", "Changed in"), "Changed in Go"),
    "java": ("java", "Hello from Java", ["Java (pom.xml)", "version 17 of pom.xml", "-jar app.jar"], ("src/main/java/Hello.java", "Hello from", "Changed in"), "Changed in Java"),
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
    folder = STATE / "data" / "storage" / app.name
    folder.mkdir(parents=True)
    os.chown(folder, 10001, 10001)
    app.ok("apps:create")
    sh("dokku", "docker-options:add", app.name, "deploy", f"--volume={folder}:/data")
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
        sh("rm", "-r", folder)
