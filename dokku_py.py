#!/usr/bin/env python3
"""dokku_py: your own Heroku in one file you can read.

    git push -- ssh key -- forced command -- git receive-pack -- pre-receive hook -- deploy()
    deploy:  checkout -> build image -> release task -> start processes -> health -> vhost -> record -> retire the old

Files under ROOT say what should be; Docker and nginx are made to agree. `switch_to` starts what a release lacks,
checks it, points nginx at it, records it and retires what is no longer wanted; `converge` mends whatever differs from
the record. Deploy, restart, rollback, scale and boot are all "write the fact, then one of the two", so a crash at any
instruction leaves a state from which the next run ends well.

Sections, top to bottom; a function calls only its own section and those above, and each effect has one owner:

     1 Settings       paths, limits, defaults                     (the environment)
     2 Voice          printing, the error types                   (standard output and error)
     3 Nouns          dataclasses and parsers                     (nothing: pure)
     4 Processes      other programs                              (subprocess)
     5 State          facts in files, locks                       (writing files, flock)
     6 Properties     the table of settings a user may change
     7 Events         the audit trail
     8 Git            repositories, a commit's tree               (git)
     9 Docker         images, containers, networks                (the Docker Engine)
    10 Certificates   keys and certificates in use                (openssl)
    11 Nginx          rendering, testing, switching               (nginx, jinja2)
    12 Schedulers     start, list, stop the processes of a release
    13 Builders       a tree becomes an image
    14 Health         is a process fit to serve?
    15 Releases       deploy, bring up, retire, probation, converge
    16 Services       databases and their like, a row for each kind
    17 Access         keys, roles, who may do what                (authorized_keys)
    18 Declaring      the table of commands, and how its words are read
    19 Commands       the commands themselves, by family
    20 Front door     argv, ssh, git hook, exit codes
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import fcntl
import fnmatch
import functools
import gc
import importlib
import ipaddress
import itertools
import json
import os
import pwd
import re
import select
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    import subprocess

# ---------------------------------------------------------------------------------------------------------------------
# 1 Settings: everything read from the environment, and every limit

VERSION = "0.1.0"
DIALECT_VERSION = "0.38.22"  # the level of dokku whose clients we serve; printed by `version`

ROOT = Path(os.environ.get("DOKKU_ROOT", "/var/lib/dokku"))
LIBRARY = Path(__file__).resolve().parent
TEMPLATES = LIBRARY / "templates"
HOOKS = LIBRARY / "hooks"
NGINX_LOGS = Path("/var/log/nginx")
NGINX_TEST_CONF = Path("/etc/nginx/dokku-test.conf")
NGINX_PID = Path("/run/nginx.pid")
DOCKER_DATA = Path("/var/lib/docker")

MIN_FREE_MB = int(os.environ.get("DOKKU_MIN_FREE_MB", "512"))
BUILD_SLOTS = max(1, int(os.environ.get("DOKKU_BUILD_SLOTS", str((os.cpu_count() or 1) // 2))))
NETWORK = os.environ.get("DOKKU_NETWORK", "dokku")
SUBNET = os.environ.get("DOKKU_SUBNET", "")  # empty: the first of SUBNETS that nothing else on the host uses
SUBNETS = tuple(f"10.{number}.0.0/16" for number in range(213, 240))

BUILD_MEMORY_SHARE = 0.75  # of the host's memory, for all builds together
TICK_SECONDS = 300  # tick runs each minute; after this many seconds without it something is wrong
CGROUPS = Path("/sys/fs/cgroup")  # version 1 of them has a folder for memory
BUILD_FENCE = CGROUPS / ("memory/docker/buildkit/memory.limit_in_bytes" if (CGROUPS / "memory").is_dir() else "docker/buildkit/memory.max")
UNSET = -1  # a check's number that its author left open
ASK_AGAIN_SECONDS = 3600  # a registry that gave no image is asked for it again after this
NOT_FOR_BUILDS = ("CPATH", "GIT_DIR", "HOME", "JAVA_TOOL_OPTIONS", "LD_PRELOAD", "LIBRARY_PATH", "PATH", "TMPDIR")  # config vars that would keep a build from its own tools
IMAGES_KEPT = 5  # distinct images an app keeps to roll back to
FAILURE_LINES = 50  # log lines shown when a process fails
CRON_RUNS_KEPT = 10  # ended containers of a cron job, for their logs
PUSH_SECONDS = 1800.0  # an image must have reached its registry within this
START_SECONDS = 60.0  # a web process without checks of its own listens within this
STAY_UP_SECONDS = 2.0  # a process without a port must stay up this long
PROBATION_SECONDS = 60.0  # a new release is watched this long, and rolled back when it crash-loops
PROBATION_RESTARTS = 3  # this many restarts in probation are a crash loop
RELOAD_SECONDS = 30.0  # nginx must have taken a new configuration within this
VERIFY_SECONDS = 31 * 86400  # scheduled backups of a service of which none was verified for so long are named by doctor
EXPIRY_WARNING = 14 * 86400  # seconds before the end of a certificate at which doctor and pushes say so
LOG_OPTIONS = {"max-file": "3"}
VALUE_LIMIT = 128 * 1024 - 1  # bytes in one environment string: Linux' MAX_ARG_STRLEN, execve(2)
DEFAULT_PORT = 5000
CONVERGE_AT_ONCE = 2 * (os.cpu_count() or 1)  # apps brought up at the same time when the machine starts

SUBMODULE_PROTOCOLS = "https:http:ssh:git"
FLUSHED = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.fsync", "GIT_CONFIG_VALUE_0": "committed,reference"}  # git flushes little by itself
PAGES_LIMIT = 2**24  # bytes of an app's own pages
FETCH_SECONDS = 900.0  # fetching from another server takes no longer
AUTHORITIES = {"default": "https://acme-v02.api.letsencrypt.org/directory", "staging": "https://acme-staging-v02.api.letsencrypt.org/directory"}


def import_ahead(name: str) -> None:
    """Begin to import a module in a thread, while we wait for something else."""
    import threading
    threading.Thread(target=importlib.import_module, args=(name,), daemon=True).start()


def docker_command() -> str:
    """Name the docker client: the distribution's own, even when another stands earlier on PATH."""
    return next((path for path in ("/usr/bin/docker", "/usr/local/bin/docker") if os.access(path, os.X_OK)), "docker")


# ---------------------------------------------------------------------------------------------------------------------
# 2 Voice: what a user reads, and the errors

TRANSCRIPT: contextvars.ContextVar[Any] = contextvars.ContextVar("transcript", default=None)
STEP_BEGAN: contextvars.ContextVar[float] = contextvars.ContextVar("step_began", default=0.0)


class DokkuError(Exception):
    """Something the user can act on: one line that says what and why, and a hint that says the way out."""

    code = 1

    def __init__(self, message: str, hint: str = "", code: int = 0) -> None:
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code or self.code


class UsageError(DokkuError):
    """The words of a command are wrong."""

    code = 2


class NoSuchApp(DokkuError):
    """No app has that name; clients of dokku look for the code and the sentence."""

    code = 20

    def __init__(self, app: str) -> None:
        super().__init__(f"App {app} does not exist", f"dokku apps:create {app}   makes it, dokku apps:list   lists all")


class AccessDenied(DokkuError):
    """The caller may not do that; says the same whether or not the app exists."""

    code = 77

    def __init__(self) -> None:
        super().__init__("Your key may not do this", "ask an administrator of this server")


class Cancelled(DokkuError):
    """The person who asked went away, or pressed Ctrl-C."""

    code = 130


class ToolFailed(DokkuError):
    """Another program failed; carries its words and its exit code."""

    def __init__(self, argv: Sequence[str], code: int, output: str) -> None:
        last = [line if len(line) <= 300 else f"{line[:300]}..." for line in output.strip().splitlines() if line.strip()][-5:]
        super().__init__(f"{Path(argv[0]).name} {argv[1] if len(argv) > 1 else ''} failed ({code}): {' / '.join(last)}")
        self.code, self.output = (code if 0 < code < 126 else 1), output


def need(found: Any, message: str = "", hint: str = "", error: Callable[..., DokkuError] = DokkuError) -> Any:
    """Give what was looked for when it was found. Raises such an error when it is nothing; one that has words of its own needs none."""
    if found:
        return found
    raise error(message, hint) if message else error()


@contextlib.contextmanager
def put_back(work: Callable[..., Any], *args: Any, **words: Any) -> Iterator[None]:
    """Do what puts things back when what stands within fails or is broken off; the error goes on."""
    try:
        yield
    except BaseException:
        work(*args, **words)
        raise


def quietly(work: Callable[..., Any], *args: Any) -> None:
    """Do work as well as it goes: an error of ours in it says nothing new."""
    with contextlib.suppress(DokkuError):
        work(*args)


def say(text: str = "", to: Any = None) -> None:
    """Print one line of data or of a step to standard output, or another file, at once, and keep it in the open build log."""
    try:
        print(text, file=to, flush=True)
    except OSError:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            raise  # else it must not be broken off (a switch, what is put back): it is done for nobody's eyes
    if log := TRANSCRIPT.get():
        log.write(text + "\n")
        log.flush()


def end_step() -> None:
    """Say how long the step took that ends here, of a deploy or whatever else keeps a log."""
    if began := STEP_BEGAN.get():
        detail(f"({time.monotonic() - began:.1f} s)")
    STEP_BEGAN.set(time.monotonic() if TRANSCRIPT.get() else 0.0)


def step(text: str) -> None:
    """Announce a step."""
    end_step()
    say(f"-----> {text}")


def milestone(text: str) -> None:
    """Announce a milestone, or the heading of a report; left out with --quiet."""
    end_step()
    if not os.environ.get("DOKKU_QUIET_OUTPUT"):
        say(f"=====> {text}")


def detail(text: str) -> None:
    """Print a line that belongs to the last step."""
    say(f"       {text}")


def warn(text: str) -> None:
    """Print a line that needs attention to standard error, and keep it in the open build log."""
    say(f" !     {text}", sys.stderr)


def complain(error: DokkuError) -> int:
    """Print an error and its way out; give its exit code."""
    for line in error.message.splitlines() or [""]:
        warn(line)
    if error.hint:
        warn(error.hint)
    return error.code


def trace(argv: Sequence[str]) -> None:
    """Show a program about to be run, with --trace; secrets never stand in an argv."""
    if os.environ.get("DOKKU_TRACE"):
        print(f"+ {shlex.join(argv)}", file=sys.stderr, flush=True)


def say_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    say(json.dumps(value, ensure_ascii=False))


def say_lines(lines: Iterable[str]) -> None:
    """Print a list, one item a line."""
    for line in lines:
        say(line)


def show_amount(size: int) -> None:
    """Show how many bytes have come, in place, where a person sees it: on a terminal, and not with --quiet."""
    if sys.stderr.isatty() and not os.environ.get("DOKKU_QUIET_OUTPUT"):
        print(f"\r{size >> 20} MB", end="", file=sys.stderr, flush=True)


def say_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as they need."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


# ---------------------------------------------------------------------------------------------------------------------
# 3 Nouns: what is talked about, and one parser per word. Nothing here has an effect

APP_NAME = re.compile(r"(?!(?:tls|ssl)$)(?!.*\.git$)(?=.{1,63}$)[a-z0-9]+(?:(?:[._]|-+)[a-z0-9]+)*")  # not tls nor ssl, not *.git
PROCESS_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
CONFIG_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DOMAIN = r"(?ai)(?=.{1,253}\.*$)(?:\*\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9-]{0,61}[a-z0-9])?\.*"
KEY_TYPES = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
             "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")
# What crontab(5) takes, so that the schedule of one app keeps cron from no other: for each field its numbers or names.
SCHEDULE_FIELDS = ("[0-5]?[0-9]", "(?:[01]?[0-9]|2[0-3])", "(?:0?[1-9]|[12][0-9]|3[01])",
                   "(?:0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))", "(?:0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))")
SCHEDULE_PARTS = [rf"(?:(?:\*|{row}-{row})/0*[1-9][0-9]{{0,2}}|\*|{row}(?:-{row})?)" for row in SCHEDULE_FIELDS]
SCHEDULE = re.compile("@(?:yearly|annually|monthly|weekly|daily|midnight|hourly)|" + " +".join(f"{part}(?:,{part})*" for part in SCHEDULE_PARTS))
PHASES = ("build", "deploy", "run")
HEADER = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # the name of a header of HTTP: a token of RFC 9110, 5.6.2
RESOURCES = ("cpu", "memory", "memory-swap", "network", "network-ingress", "network-egress", "nvidia-gpu")
WITHOUT_EFFECT = RESOURCES[3:]  # this scheduler can't do that; kept for those who read the report
ZERO = "0" * 40


class Check(NamedTuple):
    """How a process shows that it is fit: a path that answers, a port that listens, or staying up. Times are in seconds."""

    process: str = "web"
    path: str = ""
    content: str = ""
    command: tuple[str, ...] = ()
    uptime: float = 0.0
    attempts: float = 0  # 0: as many as fit in START_SECONDS; UNSET: as the properties say
    timeout: float = 5.0
    wait: float = 0.0  # the pause between attempts; 0: polls fast, backing off
    delay: float = 0.0  # the pause before the first
    port: int = 0
    kind: str = "startup"  # this and readiness decide about a release before it serves, liveness about a process that serves
    scheme: str = "http"
    headers: tuple[tuple[str, str], ...] = ()
    listening: bool = False

    def settled(self, defaults: Mapping[str, str]) -> Check:
        """Fill in what the check leaves open: what the properties say, else three patient attempts where something is asked."""
        asks = bool(self.path or self.command)
        builtin = {"attempts": 3 if asks else 0, "timeout": 5, "wait": 5 if asks else 0}
        return self._replace(**{key: float(defaults[key] or value) for key, value in builtin.items() if getattr(self, key) == UNSET})


class Job(NamedTuple):
    """A cron job of an app: when, what, and what happens while an earlier run still goes (allow, forbid, replace)."""

    schedule: str
    command: str
    concurrency: str = "allow"
    maintenance: bool = False  # cron leaves it alone

    @property
    def id(self) -> str:
        """Name the job by what it is, so that it keeps its name over deploys."""
        return digest_of(f"{self.schedule}\0{self.command}")[:10]


class Release(NamedTuple):
    """One version of an app that ran or may run: an image, a config and how to start them."""

    app: str
    number: int
    restart: int = 0  # how often this same release was restarted
    image: str = ""
    commit: str = ""
    by: str = ""
    at: str = ""
    reason: str = ""
    procfile: Mapping[str, str] = {}  # never changed in place
    formation: Mapping[str, int] = {}
    checks: tuple[Check, ...] = ()
    port: int = DEFAULT_PORT
    template: str = ""  # the vhost template of its tree, rendered where that is allowed
    scripts: Mapping[str, str] = {}
    jobs: tuple[Job, ...] = ()
    kept: Mapping[str, str] = {}  # the older incarnation that a process type stayed in when another was restarted alone

    @property
    def name(self) -> str:
        """Name the release as users do: v12."""
        return f"v{self.number}"

    @property
    def incarnation(self) -> str:
        """Name this set of containers: v12, or v12.1 after a restart."""
        return f"v{self.number}.{self.restart}" if self.restart else self.name

    def incarnation_of(self, dyno: str) -> str:
        """Name the set of containers that a process, such as web.1, is one of."""
        return self.kept.get(dyno.rpartition(".")[0], self.incarnation)

    def has(self, container: Container) -> bool:
        """Say whether a container is one of its own, wanted or not."""
        return container.incarnation == self.incarnation_of(container.dyno)


class Container(NamedTuple):
    """A container of ours, as Docker lists it."""

    id: str
    name: str
    app: str
    dyno: str  # web.1
    incarnation: str
    running: bool
    address: str = ""
    state: str = ""
    published: str = ""  # the ports we had Docker publish
    holds_ports: bool = False  # whether it publishes any port now, by us or by an option of Docker
    networks: tuple[str, ...] = ()
    created: int = 0  # seconds since the epoch

    @property
    def process_type(self) -> str:
        """Say which process type it runs: web of web.1."""
        return self.dyno.rpartition(".")[0]


class PortMap(NamedTuple):
    """A port of the host that leads to a port of an app's web processes."""

    scheme: str
    host: int
    container: int

    def __str__(self) -> str:
        """Write it as users do: http:80:5000."""
        return f"{self.scheme}:{self.host}:{self.container}"


class Vhost(NamedTuple):
    """What the vhost template of an app may know; every value is a parsed word. `upstreams` goes by the port of the container."""

    app: str
    domains: tuple[str, ...]
    listeners: tuple[PortMap, ...]
    upstreams: Mapping[int, tuple[str, ...]]
    access_log: str
    error_log: str
    settings: Mapping[str, str]
    includes: str = ""
    certificate: str = ""
    seal: str = ""  # changes when the certificate does
    webroot: str = ""  # where an authority finds the answers to its challenges
    redirects: tuple[tuple[str, str], ...] = ()  # (domain, `return` of nginx)
    users: str = ""  # the file of those who must give a password
    guests: tuple[str, ...] = ()  # addresses that need none
    maintenance: str = ""  # the folder of the page that answers instead of the app
    errors: str = ""  # the folder of the page that stands in for an app that does not answer


class Caller(NamedTuple):
    """Who asks: the name of a key, its role and the apps it is for (empty: all). `local` is root on the box."""

    name: str
    role: str = "admin"
    apps: tuple[str, ...] = ()
    local: bool = False
    address: str = ""


class Mount(NamedTuple):
    """A folder that containers see as `target`: `source` is one of an entry's in data/storage, or for both a path elsewhere on the host."""

    entry: str
    source: str
    target: str = "-"
    phases: str = "deploy,run"
    mode: str = "rw"


class Service(NamedTuple):
    """A database or its like: what its container is made of. `data` names the folder its server works in, `kept` the one from before an upgrade and its image."""

    engine: str
    name: str
    image: str
    data: str
    created: str = ""
    options: str = ""
    environment: str = ""
    memory: int = 0  # MiB; 0 is no limit
    shm: int = 0  # MiB of /dev/shm; 0 is Docker's default
    exposed: tuple[str, ...] = ()  # ADDRESS:PORT of the host
    initial_network: str = ""
    post_create_network: str = ""
    post_start_network: str = ""
    stopped: bool = False
    kept: str = ""

    @property
    def container(self) -> str:
        """Name its container, and its network."""
        return f"dokku.{self.engine}.{self.name}"

    @property
    def networks(self) -> str:
        """List the networks that it is in beside its own."""
        return " ".join((self.initial_network, self.post_create_network, self.post_start_network))

    @property
    def folder(self) -> Path:
        """Locate its record and its data."""
        return ROOT / "services" / self.engine / self.name


class Key(NamedTuple):
    """A public key that opens this server."""

    name: str
    public: str  # type and base64 text, without a comment
    fingerprint: str
    role: str = "admin"
    apps: tuple[str, ...] = ()  # names or patterns such as blog-*; empty: all
    added: str = ""
    until: str = ""  # it opens nothing after this day
    sources: str = ""  # nor from elsewhere


def matching(pattern: str | re.Pattern[str], complaint: str, hint: str = "", give: Callable[[str], Any] = str,
             among: range | None = None) -> Callable[[str], Any]:
    """Give a parser that accepts the words that a pattern describes; `give` makes of them what is kept, within the range `among`."""
    def parse_word(text: str) -> Any:
        """Accept such a word."""
        need(re.fullmatch(pattern, text) and (not among or give(text) in among), f"{shown(text)} {complaint}", hint, UsageError)
        return give(text)
    return parse_word


def one_of(*words: str) -> Callable[[str], str]:
    """Give a parser that accepts these words only."""
    return matching("|".join(map(re.escape, words)), "is not possible here", f"one of: {', '.join(words)}")


def separated(parse: Callable[[str], str]) -> Callable[[str], list[str]]:
    """Give a parser that accepts such words, separated by commas."""
    return lambda text: [parse(word) for word in text.split(",")]


# Parsers of words that need no more than a pattern, and are asked for by name here; the others stand in templates/words.tsv.
OWNERS = {"app": "10001", "heroku": "1000", "herokuish": "32767", "packeto": "2000", "paketo": "2000", "root": "0"}
parse_app, parse_app_or_global = (
    matching(pattern, "can't be the name of an app", "use lower-case letters, digits and single . _ - between them, at most 63")
    for pattern in (APP_NAME, f"--global|{APP_NAME.pattern}"))
parse_process_type = matching(PROCESS_TYPE, "can't be a process type", "use letters, digits, _ and -, a letter first, at most 32")
parse_process_types = separated(parse_process_type)
parse_phases = separated(matching("|".join(PHASES), "is not a phase", f"one or more of: {','.join(PHASES)}"))
parse_config_key = matching(CONFIG_KEY, "can't be the name of a config var", "use letters, digits and _, no digit first")
parse_domain = matching(DOMAIN, "is not a domain", "give a name such as blog.example.com or *.example.com", lambda text: text.lower().rstrip("."))
parse_switch = matching("(?ai)on|true|yes|off|false|no", "is neither true nor false",
                        give=lambda text: "true" if text.lower() in ("on", "true", "yes") else "false")
parse_count = matching("[0-9]{1,9}", "is not a whole number", give=int)
parse_port = matching("[0-9]{1,5}", "is not a port", "give a number of 1 to 65535", int, among=range(1, 65536))
parse_parallel = matching("-1|[0-9]{1,9}", "is not a whole number",  # -1: one per processor
                          give=lambda text: max(1, int(text)) if text != "-1" else os.cpu_count() or 1)
parse_release_name = matching("v?[0-9]{1,9}", "is not a release", "releases are named v1, v2, ...; dokku releases APP   lists them", lambda text: int(text.removeprefix("v")))
parse_folder, parse_new_folder = (  # the second is a path of the host that becomes storage
    matching(r"(?!.*/\.{0,2}(?:/|$))/[A-Za-z0-9._/@+-]{1,255}", "is not a folder", "write its whole path, for example  /app/uploads", give)
    for give in (str, lambda text: Mount("", text)))
parse_owner = matching(rf"[0-9]{{1,9}}|false|{'|'.join(OWNERS)}", "is not an owner", f"the number of a user, false for none, or one of: {', '.join(OWNERS)}")
parse_schedule = matching(SCHEDULE, "is not a schedule", "write for example  '0 3 * * *'  or  @daily")


def parse_pair(text: str) -> tuple[str, str]:
    """Accept KEY=VALUE."""
    key, equals, value = text.partition("=")
    need(equals, f"{shown(text)} is not KEY=VALUE", "write for example  LEVEL=debug", UsageError)
    return parse_config_key(key), parse_config_value(key, value)


def is_text(value: str) -> bool:
    """Say whether a text can be handed to a process, or named to the kernel: no NUL byte, no half of a character."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def parse_config_value(key: str, value: str) -> str:
    """Accept the value of a config var: any text Linux can hand to a process."""
    if not is_text(value) or len(key) + 1 + len(os.fsencode(value)) > VALUE_LIMIT:
        raise UsageError(f"The value of {key} does not fit into an environment", "no NUL byte, less than 128 KiB; use a volume for files")
    return value


def parse_scale(text: str) -> tuple[str, int]:
    """Accept TYPE=COUNT."""
    process_type, _, count = text.partition("=")
    if not count.isascii() or not count.isdigit() or len(count) > 9 or int(count) > 100:
        raise UsageError(f"{shown(text)} is not TYPE=COUNT", "write for example  web=2, at most 100 of a type")
    return parse_process_type(process_type), int(count)


def parse_line(text: str) -> str:
    """Accept one line of printable text."""
    need(text.isprintable() and len(text) <= 1000, f"{shown(text)} is not a single line of text", error=UsageError)
    return text


def parse_proxy_port(text: str) -> int:
    """Accept a port of the host that anybody may choose."""
    if (port := parse_port(text)) < 1024 and port not in (80, 443):
        raise UsageError(f"{port} is reserved for administrators", "give 80, 443 or a port from 1024 on; an administrator maps others with ports:set")
    return port


def parse_port_map(text: str) -> PortMap:
    """Accept SCHEME:HOST-PORT:CONTAINER-PORT."""
    scheme, *ports = text.split(":")
    if scheme not in ("http", "https", "grpc", "grpcs") or len(ports) != 2:
        raise UsageError(f"{shown(text)} is not SCHEME:HOST-PORT:CONTAINER-PORT", "write for example  http:80:5000")
    found = PortMap(scheme, *map(parse_port, ports))
    if {"http": 443, "https": 80, "grpcs": 80}.get(scheme) == found.host or (scheme == "grpc" and found.host in (80, 443)):
        raise UsageError(f"{found}: port 80 is for http, 443 for https and grpcs")
    return found


def refuse_directives(text: str, logs: Iterable[str]) -> str:
    """Give back what a pushed template was rendered to, unless it reads or writes files of the host (other than `logs`) or runs code in nginx."""
    # A directive stands after ; { } or at the head of a line, bare or in quotes, and nginx knows no other way to spell it.
    allowed = "|".join(map(re.escape, ["off", *logs]))
    if found := re.search(rf"""(?:^|[;{{}}])\s*["']?(include|load_module|root|alias|\w*lua\w*|perl\w*|js_\w+|\w+_(?:path|store|file)|\w*certificate\w*|\w*ssl_(?:conf_command|crl|dhparam|session_ticket_key)|xslt_\w+"""
                          rf"""|(?:access|error)_log(?!\s+(?:{allowed})\s*;))\b|((?i:unix:))""", text, re.MULTILINE):
        raise DokkuError(f"The vhost template of the tree may not use {found[1] or found[2]}", "an administrator can put it into nginx.conf.d of the app's folder")
    return text


def parse_ip(text: str) -> str:
    """Accept an IP address."""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise UsageError(f"{shown(text)} is not an IP address") from None


def parse_sources(text: str) -> str:
    """Accept what sshd takes in from=, addresses, patterns and networks with commas between, or `anywhere`: for one that sshd can't read it shuts the key out."""
    for word in text.split(",", 20) if text != "anywhere" else ():
        found, word = None, word.removeprefix("!")
        with contextlib.suppress(ValueError):
            found = re.fullmatch(r"[0-9a-fA-F:.*?]*[*?][0-9a-fA-F:.*?]*", word) or (re.fullmatch(r"[0-9a-fA-F:.]+(/\d+)?", word) and ipaddress.ip_network(word))
        need(found, f"{shown(word)} is not an address or a network", "write for example  192.0.2.7,10.0.0.0/8  or  anywhere", UsageError)
    return text


def parse_addresses(text: str) -> str:
    """Accept IP addresses and networks, with blanks between."""
    with contextlib.suppress(ValueError):
        if [ipaddress.ip_network(word, strict=False) for word in text.split()] and not re.search(r"%|/\d*[.:]", text):  # a mask is a number to nginx
            return " ".join(text.lower().split())
    raise UsageError(f"{shown(text)} is not an address or a network", "write for example  192.0.2.7 or 10.0.0.0/8")


def parse_upstream(text: str) -> str:
    """Accept address:port."""
    address, _, port = text.rpartition(":")
    address = parse_ip(address)
    return f"[{address}]:{parse_port(port)}" if ":" in address else f"{address}:{parse_port(port)}"


def bytes_of(amount: str) -> int:
    """Give an amount of memory in bytes; without a unit it is in MiB, as dokku has it."""
    number, unit = re.fullmatch(r"([0-9.]+)([bkmg]?)b?", amount).groups()  # type: ignore[union-attr]
    return int(float(number) * {"b": 1, "k": 2**10, "m": 2**20, "": 2**20, "g": 2**30}[unit])


def parse_public_key(text: str) -> tuple[str, str]:
    """Accept one OpenSSH public key; give `type base64` and its SHA256 fingerprint as ssh-keygen prints it."""
    # Options in front, a second key and anything that is not a key are refused: what is accepted here becomes a line that
    # sshd trusts. The key blob is checked against its own type name (RFC 4253, section 6.6).
    import base64
    import hashlib
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = lines[0].split() if len(lines) == 1 else []
    if len(words) < 2 or words[0] not in KEY_TYPES:
        raise UsageError("That is not one OpenSSH public key", "paste the one line of a file such as ~/.ssh/id_ed25519.pub")
    blob, kind = b"", words[0].encode()
    with contextlib.suppress(ValueError):
        blob = base64.b64decode(words[1], validate=True)
    if blob[:4 + len(kind)] != len(kind).to_bytes(4, "big") + kind or len(blob) < len(kind) + 36:
        raise UsageError("That public key is damaged", "copy the whole line of the .pub file")
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"{words[0]} {base64.b64encode(blob).decode()}", f"SHA256:{digest}"


def parse_procfile(text: str) -> dict[str, str]:
    """Read a Procfile: `type: command` a line; blank lines and # comments are skipped."""
    processes: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        process_type, _, command = (word.strip() for word in line.partition(":"))
        if not PROCESS_TYPE.fullmatch(process_type) or not command:
            raise DokkuError(f"Procfile line {number} is not `type: command`: {shown(line)}", "for example  web: ./server --port $PORT")
        need(process_type not in processes, f"Procfile line {number} names {process_type} a second time")
        processes[process_type] = command
    return processes


def parse_json_object(text: str, what: str) -> dict[str, Any]:
    """Read a JSON object; `what` names the file in the error."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DokkuError(f"{what} is not JSON: {error}", f"check it with: python3 -m json.tool {what}") from None
    need(isinstance(value, dict), f"{what} must hold one JSON object", 'for example  {"scripts": {}}')
    need(is_text(json.dumps(value, ensure_ascii=False)), f"{what} holds half of a surrogate pair", "\\ud800 to \\udfff stand in pairs only")
    return value


def member(value: Any, key: str, kind: type | tuple[type, ...], what: str, default: Any) -> Any:
    """Read one member of a JSON object that a user wrote, its default from anything else; a value of another kind is refused by name."""
    found = value.get(key, default) if isinstance(value, dict) else default
    if found is not default and (not isinstance(found, kind) or isinstance(found, bool)):
        raise DokkuError(f"{what}: {key} has the wrong kind of value: {shown(json.dumps(found))}")
    return found


def parse_healthchecks(app_json: Mapping[str, Any]) -> tuple[Check, ...]:
    """Read the checks of app.json: `healthchecks: {type: [{...}]}`."""
    found = {parse_process_type(kind): rows for kind, rows in member(app_json, "healthchecks", dict, "app.json", {}).items()}
    return tuple(parse_healthcheck(kind, row) for kind, rows in found.items() for row in (rows if isinstance(rows, list) else [rows]))


def parse_healthcheck(process_type: str, row: Any) -> Check:
    """Read one check of app.json; the members are those dokku documents."""
    need(isinstance(row, dict), f"app.json: healthchecks of {process_type} must be a list of objects")
    what = "app.json healthchecks"

    def number(key: str, default: float, most: float = 10**6) -> float:
        """Read a number that can be waited for, or counted."""
        found = member(row, key, (int, float), what, default)
        need(found == default or 0 <= found <= most, f"app.json: {key} of a healthcheck must be 0 to {most:g}, not {found}")
        return found
    path, kind, scheme = (member(row, key, str, what, default) for key, default in (("path", ""), ("type", "startup"), ("scheme", "http")))
    if kind not in ("startup", "readiness", "liveness") or scheme.lower() not in ("http", "https"):
        raise DokkuError(f"app.json: a healthcheck can't be of the type {shown(kind)} with the scheme {shown(scheme)}",
                         "types: startup, readiness, liveness; schemes: http, https")
    need(not path or re.fullmatch(r"/[!-~]*", path), f"app.json: the path {shown(path)} of a healthcheck must begin with / and hold no blanks")
    headers = tuple((one.get("name"), one.get("value")) for one in member(row, "httpHeaders", list, what, []) if isinstance(one, dict))
    if bad := next((pair for pair in headers if not all(isinstance(word, str) and re.fullmatch("[ -~]*", word) for word in pair) or not re.fullmatch(HEADER, pair[0])), None):
        raise DokkuError(f"app.json: {shown(str(bad))} is not the name and value of a header")
    command = tuple(str(word) for word in member(row, "command", list, what, []))
    need(all(map(is_text, command)), f"app.json: {shown(str(command))} is not the command of a healthcheck")
    return Check(process=process_type, path=path, kind=kind, scheme=scheme.lower(), headers=headers, command=command,
                 content=member(row, "content", str, what, ""), uptime=float(number("uptime", 0)), attempts=int(number("attempts", UNSET)),
                 timeout=float(number("timeout", UNSET)) or UNSET, wait=float(number("wait", UNSET)),
                 delay=float(number("initialDelay", 0)), port=int(number("port", 0, 65535)), listening=row.get("listening") is True)


def parse_app_json(app_json: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, str], tuple[Job, ...]]:
    """Read how many of each process type app.json asks for, its commands around a deploy, and its cron jobs."""
    rows = member(app_json, "formation", dict, "app.json", {})
    counts = {kind: member(row, "quantity", int, f"app.json formation {kind}", 1) for kind, row in rows.items()}
    formation = dict(parse_scale(f"{kind}={count}") for kind, count in counts.items())
    scripts = member(app_json, "scripts", dict, "app.json", {})
    own = member(scripts, "dokku", dict, "app.json scripts", {})
    found = {key: member(own, key, str, "app.json scripts.dokku", "") for key in ("predeploy", "postdeploy")}  # these run each time
    found["first"] = member(scripts, "postdeploy", str, "app.json scripts", "")  # Heroku's, after the first deploy alone
    jobs = []  # a schedule is what crontab(5) takes, five fields or a word such as @daily
    for row in member(app_json, "cron", list, "app.json", []):
        schedule, command, policy = (member(row, key, str, "app.json cron", default).strip()
                                     for key, default in (("schedule", ""), ("command", ""), ("concurrency_policy", "allow")))
        if not SCHEDULE.fullmatch(schedule) or not command or "\n" in command:
            raise DokkuError(f"app.json: {shown(schedule)} {shown(command)} is not a cron job", 'for example  {"schedule": "0 3 * * *", "command": "./clean"}')
        paused = isinstance(row, dict) and row.get("maintenance") is True
        jobs.append(Job(schedule, command, one_of("allow", "forbid", "replace")(policy.lower()), paused))
    return formation, {key: command for key, command in found.items() if command}, tuple(jobs)


def parse_checks_file(text: str) -> tuple[Check, ...]:
    """Read a CHECKS file: WAIT, TIMEOUT and ATTEMPTS settings, then `[scheme:][//host]/path expected content` a line."""
    settings = {"WAIT": float(UNSET), "TIMEOUT": 30.0, "ATTEMPTS": float(UNSET)}
    checks = []
    for line in text.splitlines():
        if setting := re.fullmatch(r"\s*(WAIT|TIMEOUT|ATTEMPTS)\s*=\s*([0-9]{1,6}(?:\.[0-9]+)?)\s*", line):
            settings[setting[1]] = float(setting[2])
        elif line.strip() and not line.lstrip().startswith("#"):
            address, _, content = line.strip().partition(" ")
            if not (parts := re.fullmatch(r"(?:(https?):)?(?://([A-Za-z0-9.:-]*))?(/[!-~]*)?", address)):
                raise DokkuError(f"CHECKS: {shown(line)} is neither a setting nor `/path content`")
            checks.append(Check(path=parts[3] or "/", scheme=parts[1] or "http", content=content.strip(), headers=(("Host", parts[2]),) if parts[2] else ()))
    return tuple(check._replace(attempts=settings["ATTEMPTS"] or 1, timeout=settings["TIMEOUT"] or UNSET, wait=settings["WAIT"]) for check in checks)


def unquote_value(text: str) -> str:
    """Read a config value as `render_environment` or a shell would have written it."""
    if text.startswith('"'):
        with contextlib.suppress(ValueError):
            value, end = json.JSONDecoder().raw_decode(text)
            if not text[end:].partition(" #")[0].strip():  # nothing follows, or a remark
                return str(value)
    with contextlib.suppress(ValueError):
        return "".join(shlex.split(text, comments=True)) if text[:1] in "'\"" else text
    return text


def parse_environment(text: str) -> dict[str, str]:
    """Read `KEY=quoted` lines, with or without `export` in front."""
    # only a newline ends a line: a value may hold the other characters that Unicode counts as line ends
    pairs = (line.strip().removeprefix("export ").partition("=") for line in text.split("\n") if "=" in line)
    return {key.strip(): unquote_value(value) for key, _, value in pairs if CONFIG_KEY.fullmatch(key.strip())}


def render_environment(config: Mapping[str, str]) -> str:
    """Write a config as `KEY=quoted` lines: a value stays on one line and can be repaired with an editor."""
    return "".join(f"{key}={json.dumps(value, ensure_ascii=False)}\n" for key, value in sorted(config.items()))


CONFIG_STYLES: dict[str, Callable[[Mapping[str, str]], str]] = {
    "keys": "\n".join,
    "exports": lambda config: "\n".join(f"export {key}={shlex.quote(value)}" for key, value in config.items()),
    "envfile": lambda config: "\n".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in config.items()),
    "docker-args": lambda config: " ".join(f"--env={key}={shlex.quote(value)}" for key, value in config.items()),
    "docker-args-keys": lambda config: " ".join(f"--env={key}" for key in config),
    "shell": lambda config: " ".join(f"{key}={shlex.quote(value)}" for key, value in config.items()),
    "json": lambda config: json.dumps(config, ensure_ascii=False),
    "json-list": lambda config: json.dumps([{"name": key, "value": value} for key, value in config.items()], ensure_ascii=False),
}
parse_config_style = matching("|".join([*CONFIG_STYLES, "pretty"]), "is not a format", f"one of: {', '.join([*CONFIG_STYLES, 'pretty'])}")


def parse_config_file(text: str, style: str) -> dict[str, str]:
    """Read config vars from a file of KEY=VALUE lines, or from a JSON object of texts. Raises UsageError at the first bad one."""
    if style == "json":
        found = parse_json_object(text, "the config").items()
    else:
        lines = [line.strip() for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
        if bad := next((line for line in lines if "=" not in line), None):
            raise UsageError(f"{shown(bad)} is not KEY=VALUE", "write one a line; nothing was changed")
        for key, _, value in (line.partition("=") for line in lines):
            try:
                shlex.split(value, comments=True) if value[:1] in ("'", '"') else None
            except ValueError:
                raise UsageError(f"The value of {shown(key)} does not end on its line", "send it with --format json; nothing was changed") from None
        found = ((key.strip(), unquote_value(value)) for key, _, value in (line.removeprefix("export ").partition("=") for line in lines))
    return {parse_config_key(key): parse_config_value(key, value if isinstance(value, str) else json.dumps(value)) for key, value in found}


def decode_value(key: str, text: str) -> str:
    """Decode a value that came as base64."""
    import base64
    try:
        return base64.b64decode(text, validate=True).decode(errors="surrogateescape")
    except ValueError:
        raise UsageError(f"The value of {key} is not base64", "leave --encoded out, or encode it with: base64 -w0") from None


def shown(text: str) -> str:
    """Show a user's own word in a message: printable, short, quoted."""
    return repr(text if len(text) <= 60 else text[:60] + "...")


def digest_of(text: str) -> str:
    """Give the SHA-256 of a text."""
    import hashlib
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def now() -> str:
    """Give the time as it stands in records: ISO 8601, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def uptime() -> float:
    """Give the seconds since the machine started: deadlines go by this clock, which nobody sets, and which begins anew when the machine does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# ---------------------------------------------------------------------------------------------------------------------
# 4 Processes: the only place that starts other programs; argv lists only, no shell

def run(argv: Sequence[str], *, stdin: str | bytes | IO[bytes] | None = None, stdout: IO[bytes] | None = None, check: bool = True,
        env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, at most `timeout` seconds, and give what it printed. Raises ToolFailed when it fails and `check` is set."""
    trace(argv)
    import subprocess
    text = stdin.encode(errors="surrogateescape") if isinstance(stdin, str) else stdin
    given: dict[str, Any] = {"input": text} if isinstance(text, bytes) else {"stdin": text or subprocess.DEVNULL}
    try:
        done = subprocess.run(list(argv), **given, stdout=stdout or subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=cwd, check=False, timeout=timeout)
    except FileNotFoundError:
        raise DokkuError(f"{argv[0]} is not installed", "run install.sh again") from None
    except subprocess.TimeoutExpired as late:  # it was killed, and counts as failed with what timeout(1) gives
        done = subprocess.CompletedProcess(late.cmd, 124, late.stdout or b"", f"it took longer than {timeout:g} s".encode())
    if check and done.returncode:
        raise ToolFailed(argv, done.returncode, (done.stderr or done.stdout or b"").decode(errors="replace"))
    return done


def begin(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program without waiting for it. Raises DokkuError when there is none of that name."""
    import subprocess
    trace(argv)
    try:
        return subprocess.Popen(list(argv), **options)
    except FileNotFoundError:
        raise DokkuError(f"{argv[0]} is not installed", "run install.sh again") from None


def output_of(argv: Sequence[str], **options: Any) -> str:
    """Run a program and give what it wrote to standard output, as text without the last newline."""
    return run(argv, **options).stdout.decode(errors="surrogateescape").rstrip("\n")


def stream(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
    """Run a program, say its lines as they come, and give the last hundred. Raises ToolFailed."""
    import subprocess
    last: list[str] = []
    process = begin(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
    try:
        with put_back(process.terminate):  # our own end (an error, TERM, a reader that went away) ends the program too
            for raw in process.stdout or ():
                line = raw.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
                last = [*last[-99:], line]
                detail(line)
    finally:
        code = process.wait()
    if code:
        raise ToolFailed(argv, code, "\n".join(last))
    return "\n".join(last)


def pipe(first: Sequence[str], second: Sequence[str]) -> str:
    """Run `first | second` and give what the second printed. Raises ToolFailed for either."""
    import subprocess
    import tempfile
    with tempfile.TemporaryFile() as errors, begin(first, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as source:
        done = run(second, stdin=source.stdout, check=False)
        source.stdout.close()
        if source.wait():
            errors.seek(0)
            raise ToolFailed(first, source.returncode, errors.read().decode(errors="replace"))
    if done.returncode:
        raise ToolFailed(second, done.returncode, done.stderr.decode(errors="replace"))
    return done.stdout.decode()


def feed(argv: Sequence[str], *, source: Path | None = None, target: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    """Run a program that reads from one file and writes to another, readable for us alone. Raises ToolFailed with what it complained of."""
    with open(source or os.devnull, "rb") as given, open(target or os.devnull, "wb", opener=functools.partial(os.open, mode=0o600)) as taken:
        run(argv, stdin=given, stdout=taken, env=env)


def watch(process: subprocess.Popen[bytes], end: Callable[[subprocess.Popen[bytes]], None], amount: bool = False) -> int:
    """Wait for a program and give its exit code; `end` it when the client goes away, or when we are ended ourselves. The `amount` in a file that we write is shown."""
    with put_back(end, process):
        while process.poll() is None:
            if reader_left(0.05):
                leave()
            if amount and os.path.isfile("/dev/stdout"):
                show_amount(os.lseek(1, 0, os.SEEK_CUR))
    return process.wait()


def attend(argv: Sequence[str], amount: bool = False) -> int:
    """Run a program on our own terminal, pipes or file, the `amount` in which is shown; end it when the client goes away. Gives its exit code."""
    return watch(begin(argv), lambda process: process.terminate(), amount)


def leave(*_: Any) -> NoReturn:
    """Turn the loss of the client into our error, so that everything begun is put back."""
    raise Cancelled("Cancelled; nothing was changed")


def on_leaving(handler: Any) -> None:
    """Set what TERM does, and HUP, which sshd sends when a terminal's client leaves; without a terminal only an error on standard output tells."""
    for number in (signal.SIGTERM, signal.SIGHUP, *([signal.SIGINT] if handler is signal.SIG_IGN else [])):
        if handler is not leave or signal.getsignal(number) is not signal.SIG_IGN:  # what nohup said stays in force
            signal.signal(number, handler)


def reader_left(seconds: float) -> bool:
    """Wait until nobody reads our standard output any more, at most so long; say whether it is so."""
    poller = select.poll()
    poller.register(1, 0)  # POLLERR and POLLHUP are always reported
    return bool(poller.poll(seconds * 1000))


def end_group(process: subprocess.Popen[bytes]) -> None:
    """TERM a process group, and KILL it after twenty seconds."""
    deadline = time.monotonic() + 20.0
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:  # git ends at once, its hook puts things back first
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)


def detach(work: Callable[[], None]) -> None:
    """Do work in a grandchild that holds none of our descriptors and outlives us."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    if child := os.fork():
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.closerange(0, 4096)  # our locks live in descriptors, so this comes before anything else
        os.open(os.devnull, os.O_RDWR), os.dup(0), os.dup(0)
        on_leaving(signal.SIG_DFL)
        os.nice(5)
        TRANSCRIPT.set(None)
        for name in [name for name in os.environ if name == "DOKKU_LOCK_FD" or name.startswith("GIT_")]:
            del os.environ[name]  # the hook's lock and quarantine are not ours
        work()
    finally:
        os._exit(0)


def in_parallel(names: Sequence[str], work: Callable[[str], None], count: int) -> list[str]:
    """Do work for each name in a process of its own, so many at a time; give the names whose work failed."""
    running: dict[int, str] = {}
    failed, waiting = [], list(names)
    while waiting or running:
        while waiting and len(running) < count:
            name = waiting.pop(0)
            running[fork_work(work, name)] = name
        child, status = os.wait()
        if (name := running.pop(child, "")) and status:
            failed.append(name)
    return failed


def fork_work(work: Callable[[str], None], name: str) -> int:
    """Begin work in a child; its exit code says whether it failed, its own lines say why."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        work(name)
        code = 0
    except DokkuError as error:
        complain(error)
    except Exception as error:
        warn(f"{name}: {error}")
    finally:
        sys.stdout.flush()
        os._exit(code)


def as_root(argv: Sequence[str]) -> list[str]:
    """Prefix a command that the sudoers file allows word for word; root needs no prefix."""
    return list(argv) if os.geteuid() == 0 else ["sudo", "-n", *argv]


def become_owner(path: Path) -> None:
    """Give up root for the owner of the state tree: nothing root-owned is ever left there."""
    owner = path.stat().st_uid if path.exists() else 0
    if os.geteuid() != 0 or owner == 0:
        return
    account = pwd.getpwuid(owner)
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(owner)
    os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)
    os.chdir("/")


# ---------------------------------------------------------------------------------------------------------------------
# 5 State: facts in files. The only place that writes files or takes locks

def place_in(folder: str, name: str = "") -> Path:
    """Locate what a folder of the state tree holds for an app, or under another name; the folder itself without one."""
    return ROOT / folder / name


app_folder = functools.partial(place_in, "apps")  # the record of an app; the folder is the record that it exists
acme_folder = functools.partial(place_in, "acme/apps")  # what lego knows: account, keys, certificates; there if the app is certified
users_file = functools.partial(place_in, "nginx/auth")  # who may come by a password, as htpasswd has it; read by nginx and us alone
pages_of = functools.partial(place_in, "nginx/pages")  # an app's own pages: maintenance.html, 502.html and what they show
storage_folder = functools.partial(place_in, "data/storage")  # a folder, an entry's record beside it; other paths stay what they are


def file_of(name: str, app: str) -> Path:
    """Locate a file in the record of an app, or its like for the server, `--global`."""
    return (ROOT if app == "--global" else app_folder(app)) / name


config_file = functools.partial(file_of, "ENV")  # the config vars
certificate_file = functools.partial(file_of, "CERTIFICATE")  # the certificate with its key, where there is one
repository_of = functools.partial(file_of, "repo.git")  # the bare repository of an app


def release_folder(app: str, number: int) -> Path:
    """Locate the record of a release."""
    return app_folder(app) / "releases" / f"v{number}"


def read_text(path: Path, default: str = "") -> str:
    """Read a file that may not be there, or in /proc be gone while it is read."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return path.read_text(errors="surrogateescape")
    return default


def read_lines(path: Path) -> list[str]:
    """Read a list: one item a line."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_table(name: str) -> list[list[str]]:
    """Read a table among our templates: a row a line, its cells apart by tabs; # begins a remark."""
    return [line.split("\t") for line in read_text(TEMPLATES / name).split("\n") if line and not line.startswith("#")]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that we wrote; nothing where there is none."""
    return parse_json_object(read_text(path) or "{}", str(path))


def write_text(path: Path, text: str, *, secret: bool = False) -> None:
    """Replace a file in one step: write beside it, flush to disk, rename. Secrets are 0600 from their first byte."""
    # the name beside holds our process id: `dead_writes` knows by it what a killed process left
    beside = make_folder(path.parent) / f".{path.name}.{os.getpid()}"
    with put_back(beside.unlink, missing_ok=True):
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w", errors="surrogateescape") as file:
            os.fchmod(handle, 0o600 if secret else 0o644)
            file.write(text)
            file.flush()
            os.fsync(handle)
        os.replace(beside, path)
    sync_folder(path.parent)


def dead_writes(folder: Path) -> Iterator[Path]:
    """Find what killed processes left half written or half removed in a folder and two levels below it."""
    for path in (path for pattern in (".*.*", "*/.*.*", "*/*/.*.*") for path in folder.glob(pattern)):
        writer = path.name.rpartition(".")[2]
        if writer.isdigit() and not read_text(Path("/proc") / writer / "cmdline"):  # a zombie has none either
            yield path


def reader_of(name: str, read: Callable[[str], Any] = lambda line: line.partition(" ")[::2],
              give: Callable[[Iterable[Any]], Any] = list) -> Callable[[str], Any]:
    """Give the function that reads a list of an app from its file; `read` makes of a line what it says, else a word and the rest."""
    return lambda app: give(map(read, read_lines(app_folder(app) / name)))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replace a list; an empty one has no file."""
    kept = list(lines)
    write_text(path, "".join(f"{line}\n" for line in kept)) if kept else remove(path)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Add a line to a log, in one write."""
    with path.open("a", errors="surrogateescape") as file:
        file.write(line + "\n")


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename in it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(*paths: Path) -> None:
    """Remove files and folders that may not be there, never following links; a file is gone after a power cut too."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            import shutil
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                sync_folder(path.parent)


def make_folder(path: Path, mode: int = 0o755) -> Path:
    """Make sure that a folder exists, and still does after a power cut."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=mode, exist_ok=True)
        sync_folder(path.parent)
    return path


def copy_file(source: Any, target: Path) -> None:
    """Copy what a file, or standard input, gives to a new file that only we read; how much has come is shown on a terminal. Refuses when a disk runs full."""
    with open(target, "wb", opener=functools.partial(os.open, mode=0o600)) as file:
        for count, chunk in enumerate(iter(functools.partial(source.read, 2**20), b""), 1):
            file.write(chunk)
            require_disk() if count % 64 == 0 else None
            show_amount(count << 20)


def rename_file(path: Path, target: Path) -> None:
    """Move a file or a folder to another name, in one step."""
    make_folder(target.parent)
    os.replace(path, target)


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Give a new folder that is gone afterwards."""
    import tempfile
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=make_folder(parent)))
    try:
        yield folder
    finally:
        remove(folder)


def apps() -> list[str]:
    """List the apps, sorted."""
    folder = ROOT / "apps"
    return sorted(entry.name for entry in os.scandir(folder) if APP_NAME.fullmatch(entry.name)) if folder.is_dir() else []


def app_exists(app: str) -> bool:
    """Say whether an app exists."""
    return app_folder(app).is_dir()


def require_app(app: str) -> str:
    """Give the name back when the app exists. Raises NoSuchApp."""
    if not app_exists(app):
        raise NoSuchApp(app)
    return app


def open_lock(path: Path) -> int:
    """Open a lock file, without taking the lock. Raises NoSuchApp when the app was destroyed meanwhile."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        raise NoSuchApp(path.parent.name) from None


def same_file(descriptor: int, path: Path) -> bool:
    """Say whether an open lock file is still the one at that path: the app may have been destroyed meanwhile."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


@contextlib.contextmanager
def hold_lock(path: Path, name: str, purpose: str, gone: DokkuError, handed: str = "") -> Iterator[None]:
    """Hold a lock; says whom it waits for. Raises `gone` when its file is by the time the lock is ours."""
    descriptor = int(handed) if handed else open_lock(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the holder's words stand in the file
            detail(f"{name} is busy: {os.pread(descriptor, 300, 0).decode(errors='replace').strip() or 'another command'}; waiting")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{purpose} by {os.environ.get('DOKKU_CALLER', 'root')} since {now()} (process {os.getpid()})\n".encode(), 0)
        if not same_file(descriptor, path):
            raise gone
        yield
    finally:
        if not handed:
            os.close(descriptor)


def locked(app: str, purpose: str) -> contextlib.AbstractContextManager[None]:
    """Hold the app's lock; in a git hook its descriptor comes from the door, which keeps it until git has moved its refs."""
    return hold_lock(app_folder(require_app(app)) / "lock", app, purpose, NoSuchApp(app), os.environ.get("DOKKU_LOCK_FD", ""))


@contextlib.contextmanager
def server_lock(name: str) -> Iterator[None]:
    """Hold one of the server's own short locks: addresses, nginx, keys."""
    with os.fdopen(open_lock(make_folder(ROOT / "locks") / name)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Hold a lock if it is free; says whether it is."""
    free = False
    with os.fdopen(open_lock(path)) as lock:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        yield free


def is_locked(path: Path) -> bool:
    """Say whether somebody holds a lock, alone or together with others."""
    with lock_if_free(path) as free:
        return not free


def dead_pushes(app: str) -> list[Path]:
    """Find git's quarantine and locks in the repository of an app: killed pushes left them, when no push lives, arriving or waiting."""
    return [path for pattern in ("objects/tmp_objdir-*", "shallow_*", "*.lock", "refs/**/*.lock") for path in repository_of(app).glob(pattern)]


def remove_dead_pushes(app: str) -> None:
    """Remove what killed pushes left in the repository of an app; not while any push lives."""
    with lock_if_free(app_folder(app) / "pushes") as free:
        remove(*(dead_pushes(app) if free else ()))


def begin_push(app: str) -> int:
    """Note that a push lives, by a lock shared with others, until the descriptor that this gives is closed here and in every child."""
    remove_dead_pushes(app)
    descriptor = open_lock(app_folder(app) / "pushes")
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextlib.contextmanager
def build_slot() -> Iterator[None]:
    """Hold one of the server's build slots; waits, and says so, while all are taken."""
    for attempt in itertools.count():
        for number in range(BUILD_SLOTS):
            with lock_if_free(make_folder(ROOT / "locks") / f"build.{number}") as free:
                if free:
                    yield
                    return
        if not attempt:
            detail(f"{BUILD_SLOTS} build(s) of other apps are running, which is what this server allows; waiting")
        time.sleep(0.1)


def read_config(app: str) -> dict[str, str]:
    """Read the config vars of an app; of the server for `--global`."""
    return parse_environment(read_text(config_file(app)))


def write_config(app: str, config: Mapping[str, str]) -> None:
    """Replace the config vars of an app or of the server."""
    write_text(config_file(app), render_environment(config), secret=True)


def merged_config(app: str) -> dict[str, str]:
    """Give what an app runs with: the server's config vars, and over them its own."""
    return {**read_config("--global"), **read_config(app)}


def read_current(app: str) -> Release | None:
    """Read the release that should run; nothing before the first deploy."""
    if not (words := read_text(app_folder(app) / "CURRENT").split()):
        return None
    number, _, restart = words[0].removeprefix("v").partition(".")
    release = read_release(app, int(number))
    return release._replace(restart=int(restart or 0), kept=dict(word.split("=") for word in words[1:])) if release else None


def read_release(app: str, number: int) -> Release | None:
    """Read the record of a release."""
    if not (record := read_json(release_folder(app, number) / "release.json")):
        return None
    checks = tuple(Check(**{**check, "command": tuple(check["command"]), "headers": tuple(map(tuple, check.get("headers", ())))})
                   for check in record.pop("checks"))
    return Release(**{**record, "app": app, "checks": checks, "jobs": tuple(Job(*row) for row in record.get("jobs", ()))})


def write_release(release: Release, config: Mapping[str, str], own: Mapping[str, str] | None = None) -> None:
    """Write the record of a release: what it is and the config it runs with; `own` becomes the app's own config once it is live."""
    folder = make_folder(release_folder(release.app, release.number))
    if own is not None:
        write_text(brought_config(release), render_environment(own), secret=True)
    write_text(folder / "ENV", render_environment(config), secret=True)
    write_lines(folder / "LINKS", read_lines(app_folder(release.app) / "LINKS"))
    write_json(folder / "release.json", {**release._asdict(), "checks": [check._asdict() for check in release.checks], "restart": 0, "kept": {},
                                          "jobs": [job if job.maintenance else job[:3] for job in release.jobs]})  # as versions before read them


def brought_config(release: Release) -> Path:
    """Locate the config vars that become the app's own once the release that brings them is live."""
    return release_folder(release.app, release.number) / "CONFIG"


def keep_config(release: Release) -> None:
    """Make the config that a release brought the app's own, now that the release is live."""
    if brought_config(release).exists():
        rename_file(brought_config(release), config_file(release.app))


def release_config(release: Release) -> dict[str, str]:
    """Read the config a release runs with."""
    return parse_environment(read_text(release_folder(release.app, release.number) / "ENV"))


def port_of(release: Release) -> int:
    """Give the port a release's web processes listen on: the config var PORT, else what the image says."""
    port = release_config(release).get("PORT", str(release.port))
    with contextlib.suppress(UsageError):
        return parse_port(port)
    raise DokkuError(f"The config var PORT is {shown(port)}, which is not a port", "set it to a number of 1 to 65535, or unset it")


def write_current(release: Release) -> None:
    """Record a release as the one that should run: the commit point of every change, one rename."""
    write_text(app_folder(release.app) / "CURRENT", " ".join([release.incarnation, *(f"{kind}={older}" for kind, older in release.kept.items())]) + "\n")


def release_numbers(app: str) -> list[int]:
    """List the numbers of the releases on record, oldest first."""
    return sorted(int(path.name[1:]) for path in (app_folder(app) / "releases").glob("v*") if path.name[1:].isdigit())


def next_number(app: str) -> int:
    """Give the number of the next release; a number is never given twice."""
    return max([*release_numbers(app), int(read_text(app_folder(app) / "LAST", "0"))]) + 1


def mark_release(app: str, number: int, status: str) -> None:
    """Note what became of a release that is not live: failed, cancelled, rolled back."""
    write_text(release_folder(app, number) / "STATUS", status + "\n")


def require_current(app: str) -> Release:
    """Read the release that should run. Raises DokkuError before the first deploy."""
    return need(read_current(app), f"{app} was never deployed", f"git push dokku@SERVER:{app} main   deploys it")


def release_status(app: str, number: int, current: Release | None) -> str:
    """Say what became of a release. Numbers only rise, so one above the live one has not been live."""
    live = current.number if current else 0
    if number == live:
        return "live"
    return read_text(release_folder(app, number) / "STATUS").strip() or ("replaced" if number < live else "unfinished")


# The lists that an app has on record.
links_of = reader_of("LINKS")  # the services that it is linked to: (engine, name)
mounts_of = reader_of("MOUNTS", lambda line: Mount(*line.split()))  # the folders that its containers see; the server itself has none
own_maps = reader_of("PORTS", parse_port_map)  # the port maps that ports:set gave it
read_check_modes = reader_of("CHECKS_OFF", give=dict)  # process type, `_all_` for every one -> how its checks are off
read_docker_options = reader_of("DOCKER_OPTIONS")  # what docker-options:add added, in order: (phase or phase.process, option)
read_scale = reader_of("SCALE", parse_scale, dict)  # what ps:scale set: process type -> count
redirects_of = reader_of("REDIRECTS", give=dict)  # which domains lead elsewhere: domain -> `target status`
# what resource:limit and resource:reserve set: (limit or reserve, process type, resource) -> amount
read_resources = reader_of("RESOURCES", str.split, lambda rows: {tuple(row[:3]): row[3] for row in rows if len(row) == 4})
read_tags = reader_of("TAGS", str.split, lambda rows: {tag: int(number) for tag, number in rows})  # what tag:add named: name -> release


def scale_of(app: str, release: Release) -> dict[str, int]:
    """Say how many of each process type should run: ps:scale first, then app.json or DOKKU_SCALE, then one web and none else."""
    wanted = {"web": 1, **release.formation, **read_scale(app)}
    return {kind: wanted.get(kind, 0) for kind in {"web": "", **release.procfile} if kind != "release"}


def wanted_dynos(release: Release) -> list[str]:
    """List the processes that should run: web.1, web.2, worker.1; none of a type that was stopped by itself."""
    stopped = read_lines(app_folder(release.app) / "STOPPED_TYPES")
    return [f"{kind}.{index}" for kind, count in sorted(scale_of(release.app, release).items()) if kind not in stopped for index in range(1, count + 1)]


def check_mode(app: str, process_type: str) -> str:
    """Say whether the checks of a process type are enabled, skipped or disabled."""
    modes = read_check_modes(app)
    return modes.get(process_type) or modes.get("_all_") or "enabled"


def copy_app(old: str, new: str, leave_out: Sequence[str] = (), stopped: bool = False) -> None:
    """Copy the record of an app under another name, in one step; what belongs to the running processes stays behind. Raises DokkuError when it is taken."""
    import shutil
    left = shutil.ignore_patterns("lock", "minder", "asking", "RETIRING", "PROBATION", "FAILED", "PORT", "LOCKED", "tree.*", ".*", *leave_out)
    own = str(app_folder(old))  # below it such a name is a branch
    beside = ROOT / "apps" / f".{new}.{os.getpid()}"
    incoming = shutil.ignore_patterns("tmp_*")  # of a push that arrives meanwhile
    ignored = lambda folder, names: left(folder, names) if folder in (own, f"{own}/properties") else incoming(folder, names) if folder == f"{own}/repo.git/objects" else ()
    try:
        shutil.copytree(app_folder(old), beside, ignore=ignored, symlinks=True)
    except shutil.Error as error:
        remove(beside)
        raise DokkuError(f"{app_folder(old)} can't be copied: {error.args[0][0][2]}", "let the user dokku read all of it") from None
    write_text(beside / "STOPPED", now() + "\n") if stopped and (beside / "CURRENT").exists() else None
    with server_lock("create"):  # nobody makes one of that name meanwhile
        if app_exists(new):
            remove(beside)
            raise DokkuError("Name is already taken", f"dokku apps:report {new}   shows what is there")
        for folder, copied in (("auth", shutil.copyfile), ("pages", functools.partial(shutil.copytree, symlinks=True))):
            path = ROOT / "nginx" / folder / old
            remove(path.with_name(new))  # a killed copy may have left some
            copied(path, path.with_name(new)) if path.exists() else None
        run(["sync", "--file-system", str(beside)])  # else a power cut could leave a rename with empty files, and without the first one
        rename_file(beside, app_folder(new))


def docker_options_of(app: str, phase: str, process: str = "") -> list[str]:
    """Give the words that `docker-options:add` added for a phase (build, deploy, run), and for one process type in it."""
    return [word for name, option in read_docker_options(app) if name in (phase, f"{phase}.{process}") for word in shlex.split(option)]


def read_mounts(path: Path) -> list[Mount]:
    """Read mounts, one a line: MOUNTS of an app, or NAME.entry, which says what folders an entry has and where they are seen when nobody says otherwise."""
    return [Mount(*line.split()) for line in read_lines(path)]


def services(engine_name: str = "") -> list[Service]:
    """List the services of an engine, or all."""
    paths = sorted((ROOT / "services").glob(f"{engine_name or '*'}/*/service.json"))
    return [found for path in paths if (found := read_service(path.parent.parent.name, path.parent.name))]


def read_service(engine_name: str, name: str) -> Service | None:
    """Read the record of a service."""
    record = read_json(ROOT / "services" / engine_name / name / "service.json")
    return Service(**{key: value for key, value in record.items() if key in Service._fields} | {"exposed": tuple(record["exposed"])}) if record else None


def write_service(service: Service) -> None:
    """Write the record of a service: the commit point of every change to it."""
    write_json(service.folder / "service.json", service._asdict())


@contextlib.contextmanager
def service_lock(engine_name: str, name: str, purpose: str) -> Iterator[Service | None]:
    """Hold a service's lock, and give its record as it is then."""
    path = make_folder(ROOT / "services" / engine_name / name, 0o700) / "lock"
    with hold_lock(path, name, f"{engine_name}:{purpose}", DokkuError(f"{name} was removed meanwhile")):
        yield read_service(engine_name, name)


def backup_home(service: Service) -> Path:
    """Locate the settings of a service's backups, and the repository unless another is named."""
    return ROOT / "data" / "backups" / service.engine / service.name


def backup_settings(service: Service) -> dict[str, str]:
    """Read how a service is backed up: schedule, where, keep."""
    return {"schedule": "", "where": "", "keep": "7", **read_json(backup_home(service) / "settings.json")}


def linked_apps(service: Service) -> list[str]:
    """List the apps that are linked to a service."""
    return [app for app in apps() if (service.engine, service.name) in links_of(app)]


def is_stopped(app: str) -> bool:
    """Say whether `ps:stop` stopped the app."""
    return (app_folder(app) / "STOPPED").exists()


def named_domains(app: str) -> list[str]:
    """List the domains that name an app, served or not: its own, else its name under each global domain."""
    return read_lines(app_folder(app) / "DOMAINS") or [f"{app}.{domain}" for domain in read_lines(ROOT / "VHOST")]


def domains_of(app: str) -> list[str]:
    """List the domains under which an app is served; none when it is served by its port."""
    return [] if (app_folder(app) / "NO_VHOST").exists() else named_domains(app)


def allotted() -> list[tuple[str, str, str, str]]:
    """List the addresses given out: (address, app, incarnation, dyno). The file's name is the record."""
    return [tuple(path.name.split("=")) for path in (ROOT / "addresses").glob("*=*=*=*")]


def allot_address(subnet: str, release: Release, dyno: str) -> str:
    """Give a web process an address of the lower half of the subnet; the same again when it already has one."""
    mine = (release.app, release.incarnation_of(dyno), dyno)
    with server_lock("addresses"):
        owners = {address: tuple(owner) for address, *owner in allotted()}
        if found := next((address for address, owner in owners.items() if owner == mine), ""):
            return found
        lower = next(ipaddress.ip_network(subnet).subnets())
        free = next((str(address) for number, address in enumerate(lower.hosts()) if number > 8 and str(address) not in owners), None)
        need(free, f"No address is left in {lower}", "install.sh --uninstall keeps the data; DOKKU_SUBNET=10.0.0.0/15 install.sh   then takes a larger network")
        write_text(ROOT / "addresses" / "=".join([free, *mine]), "")
        return free


def free_addresses(app: str, keep: Callable[[str, str], bool]) -> None:
    """Take back the app's addresses except those whose (incarnation, dyno) `keep` wants."""
    remove(*(ROOT / "addresses" / "=".join(row) for row in allotted() if row[1] == app and not keep(*row[2:])))


def require_disk() -> None:
    """Refuse to begin where a disk would run full. Raises DokkuError."""
    import shutil
    for path in (ROOT, DOCKER_DATA):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if (free := shutil.disk_usage(path).free // 2**20) < MIN_FREE_MB:
                raise DokkuError(f"Only {free} MB are free in {path}; a build needs {MIN_FREE_MB}",
                                 "remove what is not needed (dokku apps:destroy, docker image rm), then push again")


# ---------------------------------------------------------------------------------------------------------------------
# 6 Properties: every setting a user may change, one row each

class Property(NamedTuple):
    """A setting: its default, the parser that accepts a value, the capability that sets it, what it does."""

    default: str
    parse: Callable[[str], Any]
    access: str
    summary: str


def parser_named(kind: str) -> Callable[[str], Any]:
    """Give the parser of a kind of word: a row of words.tsv, else `count` is parse_count; `{a/b}` takes these words only, `str` any."""
    if kind.startswith("{"):
        return one_of(*kind[1:-1].split("/"))
    if row := PATTERNS.get(kind):
        return matching(*row[:3], give=str.lower if row[3:] else str)
    # a kind that is not there is an error, so that no slip in a table opens a door
    return str if kind == "str" else globals()[f"parse_{kind.replace('-', '_')}"]


PATTERNS = {name: row for name, *row in read_table("words.tsv")}  # the kinds of words that need no more than a pattern
DOCKER_OPTIONS = {option: "".join(instead) for option, *instead in read_table("docker-options.tsv")}  # what to use instead; "": it is for everybody
PROPERTIES = {(noun, key): Property(default, parser_named(words), *rest) for noun, key, default, words, *rest in read_table("properties.tsv")}
NETWORK_KEYS = ("initial-network", "attach-post-create", "attach-post-deploy")  # the last is for a process that serves


def parse_docker_option(text: str) -> str:
    """Accept one option of docker run or docker build, with its value."""
    words: list[str] = []
    with contextlib.suppress(ValueError):
        words = shlex.split(text)
    if not words or not re.fullmatch(r"-[a-z]|--[a-z][a-z-]*", words[0].partition("=")[0]) or text.splitlines() != [text] or "\0" in text:
        raise UsageError(f"{shown(text)} is not an option of docker", "write for example  --memory=512m  or  --build-arg LEVEL=2")
    if instead := DOCKER_OPTIONS.get(words[0].partition("=")[0]):
        raise UsageError(f"{words[0].partition('=')[0]} is managed by this server", f"use instead: dokku {instead}")
    return shlex.join(words)


def is_harmless(words: Sequence[str]) -> bool:
    """Say whether words are one whole option that stays inside the container or the build: more would be another, without a value it takes the next."""
    name, equals, _ = words[0].partition("=")
    alone = equals or name in ("--init", "--no-cache", "--no-healthcheck", "--pull", "--read-only")
    return DOCKER_OPTIONS.get(name) == "" and len(words) == (1 if alone else 2)


def property_file(app: str, noun: str, key: str) -> Path:
    """Locate the value of a property; of the server for `--global`."""
    return file_of(f"properties/{noun}.{key}", app)


def property_of(app: str, noun: str, key: str) -> str:
    """Give the value that takes effect: the app's, else the server's, else the default."""
    own = read_text(property_file(app, noun, key)).strip()
    return own or read_text(property_file("--global", noun, key)).strip() or PROPERTIES[noun, key].default


def networks_of(app: str, keys: Sequence[str] = NETWORK_KEYS) -> list[str]:
    """List the networks that an app's containers are in beside the product's own: those of its settings, and one of each service it is linked to."""
    linked = [f"dokku.{engine_name}.{name}" for engine_name, name in links_of(app)]
    return [name for name in dict.fromkeys([*" ".join(property_of(app, "network", key) for key in keys).split(), *linked]) if name != NETWORK]


def users_of_network(name: str) -> list[str]:
    """List the apps and services that are in a network, but for the service whose own it is."""
    return [*(app for app in apps() if name in networks_of(app)), *(service.name for service in services() if name in service.networks.split())]


def parse_property(noun: str, key: str, value: str) -> list[Any]:
    """Accept the value of a property, or none; give the line that is kept of it. Raises UsageError for an unknown name or a bad value."""
    if not (row := PROPERTIES.get((noun, key))):
        valid = ", ".join(name for owner, name in sorted(PROPERTIES) if owner == noun)
        raise UsageError(f"{noun} has no property {shown(key)}", f"valid ones: {valid}")
    return [row.parse(value)] if value else []


def write_property(app: str, noun: str, key: str, value: str) -> None:
    """Set a property, or clear it with an empty value. Raises UsageError for an unknown name or a bad value."""
    write_lines(property_file(app, noun, key), parse_property(noun, key, value))


# ---------------------------------------------------------------------------------------------------------------------
# 7 Events: who did what, with what result; never values, only names

def record_event(caller: Caller, command: str, *, app: str = "", result: int = 0, seconds: float = 0.0, note: str = "") -> None:
    """Add a line of JSON to events.log."""
    if (ROOT / "EVENTS_OFF").exists() and command != "events:off":
        return
    event = {"at": now(), "who": caller.name, "from": caller.address, "command": command, "app": app, "result": result,
             "ms": round(seconds * 1000), "note": note}
    append_line(ROOT / "events.log", json.dumps({key: value for key, value in event.items() if value != ""}, ensure_ascii=False))


# ---------------------------------------------------------------------------------------------------------------------
# 8 Git: one bare repository per app, and a commit's tree in a folder

def git_environment(*, quarantine: bool = False) -> dict[str, str]:
    """Give git the environment it would have outside a hook."""
    # git sets GIT_DIR and others for a hook, which mislead every git started from there. Reading a commit that is
    # still in quarantine needs the object directories: those three are kept on demand (githooks(5), git-receive-pack(1)).
    wanted = ("GIT_QUARANTINE_PATH", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES") if quarantine else ()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in wanted}
    return {**kept, "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", **FLUSHED}


def ensure_repository(app: str) -> Path:
    """Make the repository of an app when it is not there yet; of several first pushes at once, one does."""
    repository = repository_of(app)
    with server_lock("repositories"):
        if not (repository / "HEAD").exists():
            run(["git", "init", "--quiet", "--bare", str(repository)], env=git_environment())
    return repository


def git(app: str, *words: str, quarantine: bool = False, check: bool = True) -> str:
    """Run git in an app's repository and give what it printed."""
    return output_of(["git", f"--git-dir={repository_of(app)}", *words], env=git_environment(quarantine=quarantine), check=check)


def ref_of(app: str, ref: str) -> str:
    """Give the commit a ref stands on; forty zeros where there is none."""
    return git(app, "rev-parse", "--quiet", "--verify", "--end-of-options", ref, check=False) or ZERO


@contextlib.contextmanager
def checkout(app: str, commit: str) -> Iterator[Path]:
    """Give a commit's tree in a folder that is gone afterwards; submodules are fetched at the recorded commits."""
    with scratch_folder(app_folder(app), "tree.") as folder:
        tree = make_folder(folder / "tree")
        environment = {**git_environment(quarantine=True), "GIT_INDEX_FILE": str(folder / "index")}
        command = ["git", f"--git-dir={repository_of(app)}", f"--work-tree={tree}"]
        run([*command, "checkout", "--force", "--quiet", commit, "--", "."], env=environment, cwd=tree)
        fetch_submodules(app, tree, output_of([*command, "ls-tree", "-r", "-z", "--full-tree", commit], env=environment))
        if property_of(app, "git", "keep-git-dir") == "true":  # packed, since nothing can be cloned out of quarantine
            run(["git", "init", "--quiet", "--initial-branch=main", str(tree)], env=git_environment())
            run([*command[:2], "pack-objects", "--quiet", "--revs", f"{tree}/.git/objects/pack/pack"], stdin=f"{commit}\n", env=environment)
            run(["git", "-C", str(tree), "reset", "--quiet", commit], env=git_environment())
        yield tree


def fetch_submodules(app: str, tree: Path, listing: str) -> None:
    """Fetch the submodules that a tree names, and theirs, by the protocols we allow only. `listing` is what `git ls-tree -r -z` printed."""
    wanted = {path: meta.split()[2] for meta, _, path in (entry.partition("\t") for entry in listing.split("\0")) if meta.startswith("160000")}
    if not wanted:
        return
    settings = output_of(["git", "config", "--null", "--file", str(tree / ".gitmodules"), "--get-regexp", r"^submodule\..*\.(path|url)$"],
                         env=git_environment(), check=False)
    pairs = dict(entry.partition("\n")[::2] for entry in settings.split("\0") if entry)
    urls = {path: pairs.get(key.removesuffix(".path") + ".url", "") for key, path in pairs.items() if key.endswith(".path")}
    environment = {**git_environment(), "GIT_ALLOW_PROTOCOL": SUBMODULE_PROTOCOLS}
    for path, commit in wanted.items():
        url, folder = urls.get(path, ""), tree / path
        if not url or url.startswith(("-", ".", "/")):
            raise DokkuError(f"The submodule {shown(path)} has no address that can be fetched: {shown(url)}", "give .gitmodules a full https or ssh address")
        # a tree that git did not make may hold a link of the same name
        need(folder.resolve().is_relative_to(tree.resolve()), f"The submodule {shown(path)} lies outside of its repository")
        detail(f"Fetching submodule {path}")
        fetch(app, url, ["git", "clone", "--quiet", "--no-checkout", "--", url, str(folder)])
        run(["git", "-C", str(folder), "checkout", "--quiet", commit], env=environment)
        inner = output_of(["git", "-C", str(folder), "ls-tree", "-r", "-z", "--full-tree", commit], env=environment)
        remove(folder / ".git")
        fetch_submodules(app, folder, inner)


def ssh_key_file(app: str) -> Path:
    """Locate the private ssh key of an app, which may have one, or of the server for `--global`."""
    return ROOT / ".ssh" / "id_ed25519" if app == "--global" else app_folder(app) / "ssh_key"


def pinned(app: str, url: str) -> str:
    """Give HOST:PORT:ADDRESS,ADDRESS by which an http or git address must be reached, or nothing for a trusted one. Raises DokkuError."""
    # What answers inside this network, or gives a cloud's metadata, trusts whoever comes from here: it takes an administrator's word,
    # in private-hosts or among the hosts that ssh knows.
    import socket
    scheme, host, port = (re.match(r"(https?|git)://(?:[^/?#\\@]*@)?(\[[^]/]*\]|[^/?#\\:]*)(?::(\d+))?(?=[/?#]|$)", url) or re.match("()()()", url)).groups()
    if not scheme and (re.match("https?:|git:", url, re.IGNORECASE) or re.match(r"[\w.+-]+::", url)):
        raise DokkuError(f"{shown(url)} is no address that can be fetched", "give a full https or ssh address")
    if not scheme or host in property_of(app, "git", "private-hosts").split():
        return ""
    try:
        found = list(dict.fromkeys(row[4][0] for row in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)))
    except (OSError, UnicodeError) as error:
        raise DokkuError(f"{url} can't be fetched: {host} has no address: {error}") from None
    for address in map(ipaddress.ip_address, (text.partition("%")[0] for text in found)):
        if not (getattr(address, "ipv4_mapped", None) or address).is_global:
            hosts, own = " ".join([*property_of(app, "git", "private-hosts").split(), host]), property_file(app, "git", "private-hosts").exists()
            raise DokkuError(f"{host} is {address}, which belongs to this server or its network", f"dokku git:set {app if own else '--global'} private-hosts {hosts}   by an administrator lets apps fetch from it")
    addresses = ",".join(f"[{text}]" if ":" in text else text for text in found)
    return f"{host}:{port or {'http': 80, 'https': 443, 'git': 9418}[scheme]}:{addresses}"


def download(app: str, url: str, path: Path, bound: Sequence[str]) -> None:
    """Fetch a file; each address that it leads to is looked at anew, and none leads from https to http."""
    for _ in range(6):
        pin, allowed = pinned(app, url), url.partition(":")[0]
        url = fetch(app, url, [*bound, "curl", "-qfsSg", "--netrc-optional", "--proto", "=https,http", *(["--resolve", pin] if pin else []), "--output", str(path),
                               "--write-out", "%{redirect_url}", "--", url])
        if not url:
            return
        need(allowed != "https" or url.startswith("https:"), f"It leads from https to {url}")
    raise DokkuError("It leads from one address to the next without an end")


def fetch(app: str, url: str, argv: Sequence[str]) -> str:
    """Run what fetches from another server, with our netrc and the app's own ssh key, or else the server's; give what it prints. Nobody is asked anything."""
    own = ["-o", "IdentitiesOnly=yes", "-i", str(ssh_key_file(app))] if ssh_key_file(app).exists() else []
    environment = {**git_environment(), "HOME": str(ROOT), "GIT_ALLOW_PROTOCOL": SUBMODULE_PROTOCOLS,
                   "GIT_SSH_COMMAND": shlex.join(["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30", *own])}
    if pin := pinned(app, url):
        environment |= {"GIT_CONFIG_COUNT": "3", "GIT_CONFIG_KEY_1": "http.curloptResolve", "GIT_CONFIG_VALUE_1": pin,
                        "GIT_CONFIG_KEY_2": "http.followRedirects", "GIT_CONFIG_VALUE_2": "false"}  # behind that of FLUSHED
    try:
        return output_of(argv, env=environment, timeout=FETCH_SECONDS)
    except ToolFailed as error:
        why = " / ".join(line for line in error.output.splitlines() if line)[:300] or "it is too large"
        raise DokkuError(f"{url} can't be fetched: {why}", "what is private needs git:auth, or git:allow-host and a key (git:public-key)") from None


def commit_archive(app: str, path: Path, message: str, author: Sequence[str], strip: bool) -> str:
    """Make a commit of what an archive holds, on top of the deploy branch; `strip` leaves out the one folder that holds all of it."""
    limits = [property_of(app, "git", f"archive-max-{what}") for what in ("files", "size")]
    pipe([str(TEMPLATES / "archive" / "read-archive"), str(path), message, *author, ref_of(app, "HEAD"), "strip" if strip else "", *limits],
         ["git", f"--git-dir={repository_of(app)}", "-c", "core.fsync=committed,reference", "fast-import", "--quiet", "--force", "--date-format=now"])
    return ref_of(app, "INCOMING_HEAD")


# ---------------------------------------------------------------------------------------------------------------------
# 9 Docker: images, containers, the network. `docker` is imported on first use (80 ms)

OURS = {"com.dokku.managed-by": "dokku_py"}
EMPTY_IMAGE = "dokku-images/empty:latest"


@functools.cache
def engine() -> Any:
    """Give the connection to the Docker Engine. Raises DokkuError when it does not answer."""
    docker = importlib.import_module("docker")
    try:
        return docker.APIClient(version="auto", timeout=120)  # asks for its version
    except docker.errors.DockerException as error:
        raise DokkuError(f"Docker does not answer: {error}", "start it: sudo service docker start") from None


@contextlib.contextmanager
def engine_errors(purpose: str) -> Iterator[None]:
    """Turn an error of the engine into one line that says what was being done."""
    try:
        yield
    except importlib.import_module("docker").errors.APIError as error:
        raise DokkuError(f"{purpose}: {error.explanation or error}") from None


def whatever_comes(error: str = "APIError") -> contextlib.AbstractContextManager[None]:
    """Give a context in which an error of the engine, or only `NotFound`, is as good as success."""
    return contextlib.suppress(getattr(importlib.import_module("docker").errors, error))


def free_subnet(prefix: int = 16) -> str:
    """Find a subnet of that size that neither a route of this host nor a network of Docker uses."""
    words = output_of(["ip", "-4", "route"], check=False).split()
    words += [pool.get("Subnet", "") for network in engine().networks() for pool in network["IPAM"]["Config"] or []]
    used = [ipaddress.ip_network(word, strict=False) for word in words if re.fullmatch(r"(?:\d+\.){3}\d+(?:/\d+)?", word)]
    subnets = (subnet for text in SUBNETS for subnet in ipaddress.ip_network(text).subnets(new_prefix=prefix))
    return next((str(subnet) for subnet in subnets if not any(map(subnet.overlaps, used))), SUBNETS[0])


def shared_networks() -> list[str]:
    """List the networks on record: those that network:create made, and those of services."""
    return sorted([*(path.name for path in (ROOT / "networks").glob("*")), *(service.container for service in services())])


def require_network(name: str) -> dict[str, Any]:
    """Give what Docker knows of a network; our own, or one on record, is made when it is missing. Raises DokkuError, in the words that clients look for."""
    types = importlib.import_module("docker").types
    with server_lock("network"), engine_errors(f"The network {name} can't be made"):
        row = next((row for row in engine().networks() if row["Name"] == name), None)
        if not row and name in (NETWORK, *shared_networks()):
            if name == NETWORK:  # of its subnet the lower half is ours to allot, the upper half Docker's
                subnet = ipaddress.ip_network(SUBNET or free_subnet())
                pool = types.IPAMPool(subnet=str(subnet), iprange=str(list(subnet.subnets())[1]), gateway=str(subnet[1]))
                options = {"com.docker.network.bridge.enable_icc": "false"}  # containers on it can't reach each other; nginx on the host reaches them all
            else:  # on a subnet of our own choice, too: Docker's own pools end at about 30 networks
                pool, options = types.IPAMPool(subnet=free_subnet(22)), {}
            engine().create_network(name, driver="bridge", labels=OURS, ipam=types.IPAMConfig(pool_configs=[pool]), options=options)
            row = engine().inspect_network(name)
    return need(row, "Network does not exist", f"{shown(name)} is not among those that dokku network:list prints")


def drop_network(name: str) -> None:
    """Remove a network, if it is there, and whoever is in it from it. A container that is just ending can't be disconnected and holds the network: it is waited for."""
    for pause in (*[0.1] * 100, 0):
        try:
            for network in [row["Id"] for row in engine().networks() if row["Name"] == name]:
                for member, row in engine().inspect_network(network)["Containers"].items():
                    with contextlib.suppress(OSError):
                        attached = row["Name"] if member.startswith("ep-") else member  # ep-... is what a killed engine left; else the name may be an earlier one
                        engine().disconnect_container_from_network(attached, network, force=True)
                engine().remove_network(network)
            return
        except OSError:
            if not pause:
                raise
            time.sleep(pause)


def ensure_network() -> str:
    """Make the product's network when it is missing; give its subnet."""
    return require_network(NETWORK)["IPAM"]["Config"][0]["Subnet"]


def join_networks(identity: str, app: str, dyno: str, names: Iterable[str]) -> None:
    """Connect a container to networks, in which others find it as APP.TYPE with the app's tld behind."""
    alias = ".".join(filter(None, (app, dyno.rpartition(".")[0], property_of(app, "network", "tld"))))
    for name in names:
        require_network(name)  # a container that is not started yet may be connected to one that is not there
        with engine_errors(f"{dyno} of {app} can't join the network {name}"):
            engine().connect_container_to_network(identity, name, aliases=[alias])


@contextlib.contextmanager
def logins_of(app: str) -> Iterator[dict[str, str]]:
    """Give the environment in which docker knows the logins of an app, and below them the server's; gone afterwards."""
    server, own = (read_json(path / "config.json") for path in (ROOT / ".docker", app_folder(app) / "docker"))
    with scratch_folder(app_folder(app), "tree.") as folder:
        write_text(folder / "config.json", json.dumps({**server, "auths": {**server.get("auths", {}), **own.get("auths", {})}}), secret=True)
        yield {**build_environment(), "DOCKER_CONFIG": str(folder)}


def containers_of(app: str = "", kind: str = "deploy") -> list[Container]:
    """List our containers of one app, or of all, running or not."""
    labels = [f"com.dokku.container-type={kind}", "com.dokku.managed-by=dokku_py", *([f"com.dokku.app-name={app}"] if app else [])]
    return [Container(id=row["Id"], name=(row["Names"] or ["/"])[0].lstrip("/"), state=row["State"], running=row["State"] == "running",
                      app=row["Labels"].get("com.dokku.app-name", ""), networks=tuple(networks), created=row["Created"],
                      **{label: row["Labels"].get(f"com.dokku.{label}", "") for label in ("dyno", "incarnation", "published")},
                      address=((networks.get(NETWORK) or {}).get("IPAMConfig") or {}).get("IPv4Address", ""),
                      holds_ports=any("PublicPort" in port for port in row["Ports"]))
            for row in engine().containers(all=True, filters={"label": labels}) for networks in [row["NetworkSettings"]["Networks"]]]


def process_environment(release: Release, config: Mapping[str, str], dyno: str) -> dict[str, str]:
    """Give a process its environment: the release's config over what every process gets."""
    revision = {property_of(release.app, "git", "rev-env-var"): release.commit} if release.commit else {}
    return {"PORT": str(release.port), "DYNO": dyno, "DOKKU_APP_NAME": release.app, "DOKKU_RELEASE": release.name, **revision, **config}


def shell_command(app: str, command: str) -> list[str]:
    """Give the words that run a line in a container of the app."""
    return [property_of(app, "scheduler", "shell"), "-c", command]


def resource_limits(app: str, process_type: str) -> dict[str, Any]:
    """Give what `resource:limit` and `resource:reserve` mean to Docker: for a process type its own amounts, else the app's."""
    rows = read_resources(app)
    chosen = {(kind, name): amount for wanted in ("_default_", process_type) for (kind, process, name), amount in rows.items() if process == wanted}
    sizes = {"mem_limit": ("limit", "memory"), "memswap_limit": ("limit", "memory-swap"), "mem_reservation": ("reserve", "memory")}
    cpu = {"nano_cpus": int(float(chosen["limit", "cpu"]) * 10**9)} if ("limit", "cpu") in chosen else {}
    return {**{key: bytes_of(chosen[row]) for key, row in sizes.items() if row in chosen}, **cpu}


def create_container(release: Release, dyno: str, *, config: Mapping[str, str] | None, address: str = "", command: list[str] | None = None,
                     kind: str = "deploy", name: str = "", labels: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None,
                     published: Sequence[str] = (), **host: Any) -> str:
    """Create a container of a release without starting it; give its id. Config goes over the socket, never in argv; None is no environment."""
    client, phase, process_type = engine(), "run" if kind in ("run", "cron") else "deploy", dyno.rpartition(".")[0]
    words = [*docker_options_of(release.app, phase, process_type), *(f"--publish={port}" for port in published)]
    chosen, reach = translate_options(tuple(words)) if words else ({}, {})
    size = property_of(release.app, "logs", "max-size")
    log = {"type": "json-file", "config": {**LOG_OPTIONS, "max-size": size} if size != "unlimited" else {}}
    host_config = client.create_host_config(init=property_of(release.app, "scheduler-docker-local", "init-process") == "true",
                                            log_config=log, **resource_limits(release.app, process_type), **host) | reach
    bound = [{"Type": "bind", "Source": str(storage_folder(row.source)), "Target": row.target, "ReadOnly": row.mode == "ro"}
             for row in mounts_of(release.app) if phase in row.phases]  # one that is missing is an error: Docker makes none
    host_config["Mounts"] = [*bound, *(reach.get("Mounts") or ())]
    endpoint = client.create_endpoint_config(ipv4_address=address)
    environment = dict(word.partition("=")[::2] for word in chosen.get("Env") or ()) | (process_environment(release, config, dyno) if config is not None else {})
    wanted = client.create_container_config(release.image, command, environment=environment, host_config=host_config, **(options or {}),
                                            networking_config=client.create_networking_config({NETWORK: endpoint}))
    alias = property_of(release.app, "logs", "app-label-alias")
    own = {**({alias: release.app} if alias else {}), **OURS, "com.dokku.expires": "", "com.dokku.published": "", "com.dokku.app-name": release.app, "com.dokku.process-type": process_type,
           "com.dokku.dyno": dyno, "com.dokku.container-type": kind, "com.dokku.release": release.name,
           "com.dokku.incarnation": release.incarnation_of(dyno)}  # these identify a container; neither its image's labels nor an option's do
    fixed = {"Labels": {**(chosen.get("Labels") or {}), **own, **(labels or {})}, "Env": wanted["Env"]}
    with engine_errors(f"{dyno} of {release.app} can't be created"):
        identity = client.create_container_from_config({**wanted, **chosen, **fixed}, name or f"{release.app}.{dyno}.{release.incarnation_of(dyno)}")["Id"]
    with put_back(remove_container, identity):
        join_networks(identity, release.app, dyno, networks_of(release.app, NETWORK_KEYS[:2] if kind == "deploy" else NETWORK_KEYS))
    return identity


def start_container(identity: str) -> None:
    """Start a container."""
    with engine_errors("A container can't be started"):
        engine().start(identity)


def lines_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """Give the lines of what comes in pieces, each as soon as it has ended; the last may lack its end."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace").rstrip("\r") for line in whole)
    if rest:
        yield rest.decode(errors="replace").rstrip("\r")


def commit_container(identity: str, image: str) -> str:
    """Make an image of a container as it stands, that starts as its own image did; give its id."""
    config = inspect_image(image)["Config"]
    start = [f"{word.upper()} {json.dumps(config.get(word) or [])}" for word in ("Entrypoint", "Cmd")]
    labels = [f"LABEL {key}=" for key in inspect_container(identity)["Config"]["Labels"] if key.startswith("com.dokku.") and key not in {*OURS, "com.dokku.app-name"}]
    return engine().commit(identity, changes=[*start, *labels])["Id"]


def stop_container(identity: str, grace: int) -> None:
    """End a container: SIGTERM, and SIGKILL after the grace (seconds). One that is gone is fine."""
    with whatever_comes("NotFound"):
        engine().stop(identity, timeout=grace)


def restart_container(identity: str, grace: int) -> None:
    """End a container as `stop_container` does, and start it again."""
    with engine_errors("A container can't be restarted"):
        engine().restart(identity, timeout=grace)


def remove_container(identity: str) -> None:
    """Remove a container, running or not. One that is gone is fine."""
    with whatever_comes():
        engine().remove_container(identity, force=True, v=True)


def rename_container(container: Container, name: str) -> None:
    """Give a container another name when it has not got it yet; one that is just restarting keeps its old one (labels identify it)."""
    if container.name != name:
        with whatever_comes():
            engine().rename(container.id, name)


def inspect(kind: str, reference: str) -> dict[str, Any]:
    """Give what Docker knows of a container or an image; nothing when it is not there."""
    with whatever_comes("NotFound"):
        return getattr(engine(), f"inspect_{kind}")(reference)
    return {}


inspect_container = functools.partial(inspect, "container")
inspect_image = functools.partial(inspect, "image")


def logs_of(identity: str, lines: int) -> list[str]:
    """Give the last lines of a container's output."""
    with whatever_comes():
        return engine().logs(identity, tail=lines).decode(errors="replace").splitlines()
    return []


def log_stream(identity: str, lines: int, follow: bool = False) -> Iterator[tuple[str, str]]:
    """Give a container's output line by line, each with its time (RFC 3339, UTC); from a connection of its own."""
    chunks = engine.__wrapped__().logs(identity, tail=lines, timestamps=True, stream=True, follow=follow)
    return (line.partition(" ")[::2] for line in lines_of(chunks) if line)  # each begins with its time


def tag_image(release: Release, tag: str) -> None:
    """Name the image of a release: v12, and `latest` once it is live. Names keep it from every clean-up; one that is gone gets none."""
    with whatever_comes("NotFound"):
        engine().tag(release.image, f"dokku/{release.app}", tag)


def tag_as(identity: str, reference: str) -> None:
    """Give an image one more name."""
    name, tag = re.fullmatch(r"(.+?)(?::([^:/]+))?", reference).groups("latest")  # a registry's port is no tag
    with engine_errors(f"{reference} can't be the name of an image"):
        engine().tag(identity, name, tag)


def pull_image(reference: str) -> bool:
    """Pull an image; say whether a registry gave it."""
    with whatever_comes():
        engine().pull(reference)
    return bool(inspect_image(reference))


def tags_of(app: str) -> list[str]:
    """List the names under which the app's images are kept: v12, latest, and those of tag:add."""
    found = engine().images(name=f"dokku/{app}")
    return sorted(name.rpartition(":")[2] for row in found for name in row["RepoTags"] or () if name.startswith(f"dokku/{app}:"))


def untag_image(reference: str) -> None:
    """Take a name from an image; the last name takes the image along, unless a container uses it."""
    with whatever_comes():
        engine().remove_image(reference)


def drop_images(app: str, number: int) -> None:
    """Take the name from a release's image, and remove those of the app that have no name: their builds ended before they got one."""
    untag_image(f"dokku/{app}:v{number}")
    for image in engine().images(filters={"dangling": True, "label": [f"com.dokku.app-name={app}"]}):
        untag_image(image["Id"])


def build_environment() -> dict[str, str]:
    """Choose the builder: BuildKit where this client can, the classic one otherwise."""
    major = re.search(r"version (\d+)", output_of([docker_command(), "--version"], check=False))
    modern = bool(major) and int(major[1]) >= 23  # those need the buildx plugin, and fail with DOCKER_BUILDKIT=1 without it
    base = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DOCKER_", "SSH_"))}
    return {**base, **({} if modern else {"DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"})}


def short_lived() -> list[str]:
    """Give the options of `docker run` by which a container of ours is removed after a day when nobody else does."""
    return [f"--label={key}={value}" for key, value in {**OURS, "com.dokku.expires": int(uptime()) + 86400}.items()]


@functools.cache
def translate_options(options: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Have Docker itself read options of `docker run`; give what they change in Config and HostConfig. Raises DokkuError."""
    # A container is created with and without them, never started, and the two are compared: so every option means what
    # it means to Docker, and a wrong one is refused in Docker's own words.
    if not inspect_image(EMPTY_IMAGE):
        run([docker_command(), "import", "-", EMPTY_IMAGE], stdin=b"\0" * 1024)  # two blocks of zeros: an empty tar
    made = []
    for words in ((), options):
        try:
            identity = output_of([docker_command(), "create", "--hostname", "h", *short_lived(), *words, EMPTY_IMAGE, "true"])
        except ToolFailed as error:
            raise UsageError(f"Docker refuses {' '.join(words)}: {error.output.strip().splitlines()[0]}", "see docker run --help") from None
        try:
            made.append(inspect_container(identity))
        finally:
            remove_container(identity)
    plain, wanted = made
    need(wanted["Config"]["Image"] == EMPTY_IMAGE, f"{' '.join(options)} is more than options", "write a value with blanks in quotes", UsageError)
    config, host = ({key: value for key, value in wanted[part].items() if value != plain[part].get(key)} for part in ("Config", "HostConfig"))
    return config, host


# ---------------------------------------------------------------------------------------------------------------------
# 10 Certificates: one file for an app or the server: the names it is for, the key, the certificate and its chain

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\s.+?-----END CERTIFICATE-----", re.DOTALL)
PRIVATE_KEY = re.compile(r"-----BEGIN (?:EC |RSA )?PRIVATE KEY-----\s(?!\s*Proc-Type).+?-----END (?:EC |RSA )?PRIVATE KEY-----", re.DOTALL)


def names_of_certificate(app: str) -> list[str]:
    """List the names that a certificate is for, as they stand in its file; none where there is none."""
    return read_text(certificate_file(app)).partition("\n")[0].split()[1:]


def covers(names: Sequence[str], domain: str) -> bool:
    """Say whether a certificate for these names is one for a domain (RFC 6125, 6.4.3: * stands for one label)."""
    return domain in names or f"*.{domain.partition('.')[2]}" in names


def certificate_of(app: str) -> Path | None:
    """Locate the certificate that an app is served with: its own, else the server's when that is for each of its domains."""
    domains = domains_of(app)
    if not domains or names_of_certificate(app):
        return certificate_file(app) if domains else None
    server = names_of_certificate("--global")
    return certificate_file("--global") if server and all(covers(server, domain) for domain in domains) else None


def ends_within(file: Path, seconds: int | str) -> bool:
    """Say whether a certificate ends within so many seconds."""
    return bool(run(["openssl", "x509", "-noout", "-checkend", str(seconds)], stdin=read_text(file), check=False).returncode)


def openssl(*words: str, stdin: str) -> str:
    """Run openssl on what it reads from standard input. Raises ToolFailed."""
    return output_of(["openssl", *words], stdin=stdin)


def checked_certificate(text: str) -> str:
    """Make a certificate's file of PEM blocks: key, certificate, chain in order; warns of what browsers may distrust. Raises DokkuError."""
    blocks, key = CERTIFICATE.findall(text), PRIVATE_KEY.search(text)
    if not blocks or not key:
        raise UsageError(f"There is no {'private key without a passphrase' if blocks else 'certificate'} in it", "send both in PEM, in a tar or one after the other")
    public = openssl("pkey", "-pubout", stdin=key[0])
    chain = need([block for block in blocks if openssl("x509", "-noout", "-pubkey", stdin=block) == public][:1],
                 "The key does not belong to the certificate", "send the key that the certificate was asked for with")
    if run(["openssl", "x509", "-noout", "-checkend", "0"], stdin=chain[0], check=False).returncode:
        raise DokkuError(f"The certificate has ended: {openssl('x509', '-noout', '-enddate', stdin=chain[0])}", "ask its authority for another")
    subjects = {openssl("x509", "-noout", "-subject_hash", stdin=block): block for block in blocks if block != chain[0]}
    while (issuer := subjects.pop(openssl("x509", "-noout", "-issuer_hash", stdin=chain[-1]), "")):
        chain.append(issuer)
    with scratch_folder(Path("/tmp"), "dokku-chain.") as folder:  # noqa: S108 - a new folder of mkdtemp
        write_text(folder / "chain", "\n".join(chain))
        if doubt := run(["openssl", "verify", "-untrusted", str(folder / "chain"), str(folder / "chain")], check=False).stderr.decode():
            warn(f"Browsers may not trust it: {' '.join(re.findall('lookup: (.*)', doubt)) or doubt.splitlines()[-1]}; is an intermediate certificate missing?")
    said = openssl("x509", "-noout", "-subject", "-ext", "subjectAltName", "-nameopt", "multiline", stdin=chain[0])
    names = re.findall(r"DNS:([A-Za-z0-9.*_-]+)", said) or re.findall(r"commonName += ([A-Za-z0-9.*_-]+)$", said, re.MULTILINE)
    named = " ".join(need(names, "The certificate names no domain", "ask its authority for one with subjectAltName")).lower()
    return "\n".join([f"names: {named}", key[0], *chain, ""])


def self_signed(names: Sequence[str]) -> tuple[str, str]:
    """Make a key with a certificate that it signs itself, for a year; give the file's text and a request for an authority (RFC 2986)."""
    subject = ["-subj", f"/CN={names[0][:64]}", "-addext", f"subjectAltName={','.join(f'DNS:{name}' for name in names)}"]
    both = output_of(["openssl", "req", "-x509", "-days", "365", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "-", *subject])
    key, made = PRIVATE_KEY.search(both)[0], CERTIFICATE.search(both)[0]
    return "\n".join([f"names: {' '.join(names)}", key, made, ""]), openssl("req", "-new", "-key", "/dev/stdin", *subject, stdin=key)


# ---------------------------------------------------------------------------------------------------------------------
# 11 Nginx: render, test, switch, and see the new configuration served

SERVER_CONF = "server/_server.conf"  # no app's name begins with _
Worker = tuple[int, str]  # process id and start time: an id alone may be given to another process


def render(name: str, **words: Any) -> str:
    """Render a template; an undefined name is an error, never an empty string."""
    jinja2 = importlib.import_module("jinja2")
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True).get_template(name).render(**words) + "\n"


def render_pushed(text: str, vhost: Vhost) -> str:
    """Render the vhost template that a tree brought, in a sandbox; what reaches beyond the app is refused. Raises DokkuError."""
    jinja2, sandbox = importlib.import_module("jinja2"), importlib.import_module("jinja2.sandbox")
    try:
        environment = sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True)
        rendered = environment.from_string(text).render(**vhost._asdict())
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DokkuError(f"The vhost template of the tree can't be rendered: {error}", f"it may use: {', '.join(Vhost._fields)}") from None
    return refuse_directives(rendered, [vhost.access_log, vhost.error_log]) + "\n"


def is_proxied(app: str) -> bool:
    """Say whether nginx stands in front of an app; otherwise Docker publishes its ports."""
    return not (app_folder(app) / "NO_PROXY").exists()


def is_by_name(app: str) -> bool:
    """Say whether an app is told from others by its domains, so that they can share a port of the host."""
    return is_proxied(app) and bool(domains_of(app))


def detected_maps(app: str, container: int) -> list[PortMap]:
    """Give the port maps of an app that has none of its own; the server's proxy-port is for apps that can share it."""
    port = property_of(app, "proxy", "proxy-port") if is_by_name(app) else read_text(property_file(app, "proxy", "proxy-port")).strip()
    secure = [PortMap("https", int(property_of(app, "proxy", "proxy-ssl-port") or 443), container)] if is_proxied(app) and certificate_of(app) else []
    return [PortMap("http", int(port or 80), container), *secure]


def port_maps(app: str, container: int = DEFAULT_PORT) -> list[PortMap]:
    """List the port maps in effect: https needs a certificate. Port 80 is shared by name: an app without one has a port of its own in its place."""
    rows = [row for row in own_maps(app) or detected_maps(app, container) if row.scheme in ("http", "grpc") or certificate_of(app)]
    return [row._replace(host=app_port(app)) if row.host == 80 and not is_by_name(app) else row for row in rows]


def app_port(app: str) -> int:
    """Give the port of an app that has no domain, always the same one."""
    own = app_folder(app) / "PORT"
    if not read_text(own):
        with server_lock("ports"):
            files = [path for other in apps() for path in (app_folder(other) / "PORT", property_file(other, "proxy", "proxy-port"))]
            taken = {*map(read_text, files), *(f"{row.host}\n" for other in apps() for row in own_maps(other)), *(f"{port}\n" for port in listening_ports())}
            if not read_text(own):  # nobody else chose one meanwhile
                write_text(own, next(f"{port}\n" for port in range(5001, 10000) if f"{port}\n" not in taken))
    return int(read_text(own))


def listening_ports() -> dict[int, int]:
    """List the TCP ports of this host on which something listens, each with its user id (proc(5), /proc/net/tcp)."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in read_lines(Path("/proc/net") / name)[1:]]
    return {int(row[1].rpartition(":")[2], 16): int(row[7]) for row in rows if row[3] == "0A"}


def host_ports(app: str) -> set[int]:
    """List the ports of the host under which an app is served."""
    return {row.host for row in port_maps(app)}


def spoken_on(port: int, app: str) -> set[str]:
    """Give the schemes by which an app is served on a port: nginx speaks one on each, whatever the name."""
    return {row.scheme.replace("grpcs", "https") for row in port_maps(app) if row.host == port}


def require_ports(app: str, had: set[int]) -> None:
    """Refuse ports of the host that another program has, or an app with which they can't be shared by name; the app is served on `had` already."""
    for port in sorted(host_ports(app)):
        others = [other for other in apps() if other != app and port in host_ports(other)]
        holder = next((other for other in others if not (is_by_name(app) and is_by_name(other)) or spoken_on(port, other) != spoken_on(port, app)), "")
        if not others and port not in had | {80, 443} and (user := listening_ports().get(port)) is not None:
            holder = f"a program of the user {next((row.pw_name for row in pwd.getpwall() if row.pw_uid == user), user)}"
        need(not holder, f"{port} is used by {holder}", f"choose another port: dokku ports:set {app} http:PORT:PORT")


def published_ports(release: Release) -> list[str]:
    """List what Docker publishes for an app without nginx, as its option -p has it: on loopback, unless told otherwise."""
    if is_proxied(release.app):
        return []
    address = "0.0.0.0" if property_of(release.app, "network", "bind-all-interfaces") == "true" else "127.0.0.1"  # noqa: S104 - asked for by bind-all-interfaces, which is for administrators
    return [f"{address}:{row.host}:{row.container}" for row in port_maps(release.app, port_of(release))]


def log_of(app: str, kind: str) -> str:
    """Locate the access or error log of an app; `off` when there is none."""
    return property_of(app, "nginx", f"{kind}-log-path") or str(NGINX_LOGS / f"{app}-{kind}.log")


def vhost_of(release: Release | None, app: str) -> Vhost:
    """Compute what an app's vhost says: from state alone, so that it can always be rendered again."""
    found = sorted((dyno, address) for address, owner, incarnation, dyno in allotted()
                   if release and owner == app and incarnation == release.incarnation_of(dyno) and dyno.startswith("web.") and dyno in wanted_dynos(release))
    listeners = port_maps(app, port_of(release) if release else DEFAULT_PORT)
    other = property_of(app, "network", "static-web-listener")
    upstreams = {row.container: (other,) if other else tuple(f"{address}:{row.container}" for _, address in found) for row in listeners}
    certificate = certificate_of(app) if any(row.scheme in ("https", "grpcs") for row in listeners) else None
    pages, guests = pages_of(app), tuple(read_lines(app_folder(app) / "ALLOWED_IPS"))
    targets = ((source, *target.split()) for source, target in redirects_of(app).items())  # a host alone: by the way it came
    custom = "" if property_of(app, "nginx", "disable-custom-config") == "true" else f"{app_folder(app)}/nginx.conf.d/*.conf"
    return Vhost(app=app, domains=tuple(domains_of(app)), listeners=tuple(listeners), upstreams=upstreams, access_log=log_of(app, "access"),
                 error_log=log_of(app, "error"), settings={key: property_of(app, "nginx", key) for noun, key in PROPERTIES if noun == "nginx"}, includes=custom,
                 certificate=str(certificate or ""), seal=digest_of(read_text(certificate)) if certificate else "",
                 webroot=str(ROOT / "acme" / "webroot") if acme_folder(app).is_dir() else "", guests=guests,
                 redirects=tuple((source, f"{status} {host if '://' in host else f'$scheme://{host}'}$request_uri")
                                 for source, host, status in targets) if domains_of(app) else (),
                 users=str(users_file(app)) if (app_folder(app) / "HTTP_AUTH").exists() else "", errors=str(pages) if (pages / "502.html").exists() else "",
                 maintenance=str(pages if (pages / "maintenance.html").exists() else TEMPLATES / "pages") if (app_folder(app) / "MAINTENANCE").exists() else "")


def vhost_text(app: str, coming: Release | None = None) -> str:
    """Render the vhost of an app as it stands in state, or for a release to come, by the template that brought; nothing when nginx does not serve it."""
    if not is_proxied(app):
        return ""
    release = coming or (None if is_stopped(app) else read_current(app))
    vhost = vhost_of(release, app)
    if release and release.template and property_of(app, "nginx", "allow-template") == "true":
        return render_pushed(release.template, vhost)
    return render("vhost.conf.j2", **vhost._asdict())


def stat_of(pid: int | str) -> list[str]:
    """List what the kernel says of a process behind its name, its parent and start time among it (proc(5), /proc/PID/stat); nothing when it is gone."""
    with contextlib.suppress(PermissionError):
        return read_text(Path("/proc") / str(pid) / "stat").rpartition(")")[2].split()
    return []


def worker_processes() -> list[Worker]:
    """List nginx's workers, those that a reload has told to leave among them."""
    master = read_text(NGINX_PID).strip()
    facts = {int(folder.name): stat_of(folder.name) for folder in Path("/proc").glob("[0-9]*")}
    return [(pid, words[19]) for pid, words in facts.items() if words[1:2] == [master]]


def worker_lives(worker: Worker) -> bool:
    """Say whether a worker process still exists, serving its last requests or not."""
    return stat_of(worker[0])[19:20] == [worker[1]]


def worker_accepts(worker: Worker) -> bool:
    """Say whether a worker still accepts connections."""
    return worker_lives(worker) and "shutting down" not in read_text(Path(f"/proc/{worker[0]}/cmdline"), "shutting down")


def reload_nginx() -> list[Worker]:
    """Reload nginx, or start it, and return once the new configuration is the one served; give the old workers."""
    old = worker_processes()  # with those that an earlier reload told to leave: they may be serving a request that began before it
    if not any(map(worker_accepts, old)):
        run(as_root(["/usr/sbin/service", "nginx", "start"]))
        return []
    run(as_root(["/usr/sbin/nginx", "-s", "reload"]))
    deadline = time.monotonic() + RELOAD_SECONDS
    while any(map(worker_accepts, old)):  # the reload is asynchronous: they accept until the master has told them to shut down
        need(time.monotonic() <= deadline, "nginx has not taken the new configuration", f"see {NGINX_LOGS / 'error.log'}")
        time.sleep(0.01)
    return old


def test_candidate(name: str, text: str) -> None:
    """Lay a vhost beside those served and ask nginx. Raises DokkuError, with nginx's words, when it refuses. Only under nginx's lock."""
    candidate = ROOT / "nginx" / "candidate" / Path(name).name
    remove(*candidate.parent.glob("*"))  # a bad one that is left of another app would have nginx refuse this one
    write_text(candidate, text)
    if name != SERVER_CONF:
        write_text(candidate.with_name(Path(SERVER_CONF).name), read_text(ROOT / "nginx" / SERVER_CONF))
    try:
        run(as_root(["/usr/sbin/nginx", "-t", "-q", "-c", str(NGINX_TEST_CONF)]))
    except ToolFailed as error:
        remove(candidate)
        raise DokkuError(f"nginx refuses the configuration of {name}: {error.output.strip()}", "the old one goes on serving") from None


def install_vhost(name: str, text: str, anew: bool = False) -> list[Worker]:
    """Make nginx serve a vhost, or none when the text is empty: test the candidate, rename it into place, reload; give the old workers."""
    folder = ROOT / "nginx"
    target, candidate, unseen = folder / name, folder / "candidate" / Path(name).name, folder / "UNSEEN"
    with server_lock("nginx"):
        remove(*candidate.parent.glob("*"))  # what a killed test left
        old = read_text(target)
        if old == text and not anew and not unseen.exists():  # anew: what it includes may have changed
            return []
        if text:
            test_candidate(name, text)  # what nginx refuses never replaces the old file
        append_line(unseen, name)  # until nginx has the file: killed in between, the next one reloads
        try:
            if moves_address(old, text):
                remove(target)
                serve_vhosts()
                write_text(candidate, text)  # a quarantine takes candidates away
            rename_file(candidate, target) if text else remove(target)
            workers = serve_vhosts()
        except DokkuError:
            write_text(target, old) if old else remove(target)
            raise
        remove(unseen)
        return workers


def moves_address(old: str, new: str) -> bool:
    """Say whether a port goes over to another address: nginx can't open that while it holds the old one (bind(2), EADDRINUSE)."""
    before, after = (set(re.findall(r"^ *listen (\S*?)(\d+)[ ;]", text, re.MULTILINE)) for text in (old, new))
    return bool({port for _, port in before - after} & {port for _, port in after - before} - {"80", "443"})


def serve_vhosts() -> list[Worker]:
    """Reload or start nginx; a vhost that it has come to refuse, by a file that somebody put beside it, goes into quarantine."""
    try:
        return reload_nginx()
    except ToolFailed:
        quarantine_vhosts()
        return reload_nginx()


def quarantine_vhosts(app: str = "*", clean: bool = True) -> int:
    """Name and count the vhosts that nginx refuses, each tested alone; `clean` moves them out of its way. Only under nginx's lock."""
    refused = 0
    for path in sorted((ROOT / "nginx").glob(f"{app}.conf")):
        try:
            test_candidate(path.name, read_text(path))
        except DokkuError as error:
            refused += 1
            complain(error)
            rename_file(path, ROOT / "nginx" / "quarantined" / path.name) if clean else None  # one app never keeps others from serving
    remove(*(ROOT / "nginx" / "candidate").glob("*"))
    return refused


# ---------------------------------------------------------------------------------------------------------------------
# 12 Schedulers: the processes of a release

def start_process(release: Release, dyno: str, subnet: str, ended: Container | None) -> Container:
    """Start a process: its container when that has ended, else a new one; web has an address that it keeps over restarts and reboots."""
    if ended:
        start_container(ended.id)
        return ended._replace(running=True)
    process_type = dyno.rpartition(".")[0]
    command = release.procfile.get(process_type)
    if process_type == "web" and not command:
        command = property_of(release.app, "ps", "start-cmd") or property_of(release.app, "ps", "dockerfile-start-cmd")
    address = allot_address(subnet, release, dyno) if process_type == "web" else ""
    policy, _, retries = property_of(release.app, "ps", "restart-policy").partition(":")
    published = published_ports(release) if dyno == "web.1" else []
    identity = create_container(release, dyno, address=address, restart_policy={"Name": policy, "MaximumRetryCount": int(retries or 0)},
                                command=shell_command(release.app, command) if command else None,  # the image's own
                                config=release_config(release), labels={"com.dokku.published": " ".join(published)}, published=published)
    start_container(identity)
    return Container(id=identity, name=f"{release.app}.{dyno}.{release.incarnation_of(dyno)}", app=release.app, dyno=dyno,
                     incarnation=release.incarnation_of(dyno), running=True, address=address)


def start_missing(release: Release) -> list[Container]:
    """Start what should run and does not: containers that ended are started again, missing ones created."""
    subnet = ensure_network()
    have = {container.dyno: container for container in containers_of(release.app) if release.has(container)}
    missing = [dyno for dyno in wanted_dynos(release) if dyno not in have or not have[dyno].running]
    say_lines(f"       Starting {dyno} of {release.name}" for dyno in missing)
    count = int(property_of(release.app, "scheduler-docker-local", "parallel-schedule-count") or 8)
    start = lambda dyno: start_process(release, dyno, subnet, have.get(dyno))
    if len(missing) < 2 or count < 2:
        return [start(dyno) for dyno in missing]
    from concurrent.futures import ThreadPoolExecutor  # it waits on Docker
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, missing))


# ---------------------------------------------------------------------------------------------------------------------
# 13 Builders: a tree becomes an image

class Language(NamedTuple):
    """A language, as templates/build/languages.tsv says it."""

    title: str
    version: str
    marks: list[list[str]]
    versions: list[list[str]]
    serving: list[list[str]]


@functools.cache
def languages() -> dict[str, Language]:
    """Read the languages, in the order in which they are looked for."""
    rows = read_table("build/languages.tsv")
    return {name: Language(*words, *([row[2:] for row in rows if row[:2] == [name, part]] for part in Language._fields[2:]))
            for name, kind, *words in rows if kind == "language"}


IMAGES = {name: words for name, *words in read_table("build/images.tsv")}


def likely_cause(output: str) -> str:
    """Say what most likely made a build or a process fail; nothing when it looks like none of the common failures."""
    return next((f"likely cause: {cause}" for pattern, cause in read_table("build/causes.tsv") if re.search(pattern, output)), "")


def own_base_images() -> tuple[str, str]:
    """Name the base images that this host can make from its own package sources: its release, and -slim."""
    facts = parse_environment(read_text(Path("/etc/os-release")))
    name = f"{facts['ID']}:{facts['VERSION_CODENAME']}"
    return name, f"{name}-slim"


def make_base_image(anew: bool = False) -> None:
    """Make sure that the base image of this host's release is there: found, else pulled, else built; `anew` builds it. One at a time."""
    full, slim = own_base_images()
    with server_lock("images"):
        if anew or not all(inspect_image(name) or (property_of("--global", "images", "source") != "debian" and pull_image(name)) for name in (full, slim)):
            step(f"Building {full} from this host's package sources")
            label = "LABEL " + " ".join(f"{key}={value}" for key, value in OURS.items())
            identity = pipe(as_root([str(TEMPLATES / "images/debian/rootfs")]), [docker_command(), "import", "--change", label, "-", full]).strip()
            tag_as(identity, slim)


def own_image(name: str) -> str:
    """Give the newest image that was made of this host's packages for a row of IMAGES, or `debian`; its tag is its version. Nothing when there is none."""
    found = sorted(engine().images(name=f"dokku-images/{name}"), key=lambda row: row["Created"])
    return own_base_images()[1] if name == "debian" else found[-1]["RepoTags"][0] if found else ""


def make_image(name: str, anew: bool = False) -> str:
    """Make an image of this host's packages for a row of IMAGES; one that is there is taken, unless `anew`. Give its name."""
    make_base_image(anew and name == "debian")
    with server_lock(f"image.{name}"):
        if name != "debian" and (anew or not own_image(name)):
            step(f"Building {name} from this host's package sources")
            options = [*lent_settings(), *(f"--label={key}={value}" for key, value in OURS.items()), *(["--no-cache"] if anew else []), f"--tag={name}-new"]
            try:
                stream([docker_command(), "build", *options, f"--build-arg=BASE={own_base_images()[1]}", str(TEMPLATES / "images" / name)], env=build_environment())
            except ToolFailed as error:
                why = (re.findall("E: .*", error.output) or ["see above"])[0]
                raise DokkuError(f"{name} can't be made of this host's packages: {why}", "a newer release of the distribution may have it; else a registry must be reached") from None
            said = output_of([docker_command(), "run", "--rm", "--network=none", "--entrypoint=", f"{name}-new", "sh", "-c", f"{IMAGES[name][1]} 2>&1"])
            tag_as(f"{name}-new", f"dokku-images/{name}:{re.findall(r'[0-9.]*[0-9]', said)[0]}")
            untag_image(f"{name}-new")
    return own_image(name)


def image_for(name: str, version: str) -> str:
    """Give the image that a template stands on: found here, else pulled, else made of this host's packages, which is said. Raises DokkuError."""
    if name == "debian":
        return make_image(name)
    wanted, source = IMAGES[name][0].format(version), property_of("--global", "images", "source")
    own = own_image(name) if source == "auto" and not inspect_image(wanted) else ""
    fits, asked = f"{own.rpartition(':')[2]}.".startswith(f"{version}."), ROOT / "images" / f"asked-{wanted.replace('/', '_')}"
    if not fits and not (asked.exists() and time.time() - asked.stat().st_mtime < ASK_AGAIN_SECONDS):
        own = ""  # a registry is asked once an hour, not by each push
    if source != "debian" and not own:
        if inspect_image(wanted) or pull_image(wanted):
            return wanted
        write_text(asked, "")
    if source == "hub":
        raise DokkuError(f"{wanted} is not on this server and can't be pulled", "is there such a version? dokku images:set source auto   lets this host's packages stand in")
    own = own or make_image(name)
    if not f"{own.rpartition(':')[2]}.".startswith(f"{version}."):
        detail(f"{own}, of this host's packages, stands in for {wanted}")
    return own


def lent_settings(secrets: bool = True) -> list[str]:
    """Give the options that lend a build this host's proxy, and its trust and registries as secrets: none of it stays in the image."""
    places = read_table("build/secrets.tsv") if secrets else []
    files = {name: path for name, place in places if os.access(path := os.path.expanduser(place), os.R_OK)}
    return [*(f"--build-arg={name}" for name in build_environment() if name.lower() in ("http_proxy", "https_proxy", "no_proxy", "all_proxy")),
            *(f"--secret=id={name},src={path}" for name, path in files.items())]


def peek(tree: Path, name: str) -> str:
    """Read a text file of a pushed tree, its first MiB when it is larger; nothing where there is none or a link leads out of the tree."""
    path = tree / name
    return path.open(encoding="utf-8-sig", errors="replace").read(2**20) if path.is_file() and path.resolve().is_relative_to(tree.resolve()) else ""


def look_up(tree: Path, name: str, pattern: str) -> str:
    """Find what a file of a tree says: `.a.b` is a member of its JSON, anything else what a pattern captures; nothing where it says nothing."""
    text = peek(tree, name)
    if not pattern.startswith("."):
        return found[found.lastindex or 0] if (found := re.search(pattern, text, re.M)) else ""
    value: Any = functools.reduce(lambda part, key: part.get(key) if isinstance(part, dict) else None, pattern[1:].split("."), parse_json_object(text or "{}", name))
    return value if isinstance(value, str) else json.dumps(value) if value else ""


def version_of(language: Language, tree: Path) -> tuple[str, str]:
    """Give the version that a tree asks for and the file that says so; where it sets a bound only, the usual one when that is higher."""
    for name, pattern, *exact in language.versions:
        if exact and (found := re.match(r"['\"]?(?:ruby-|=? *v?)(\d{1,4}(?:\.\d{1,4}){1,2})(?:\.x)?(?=['\") ]|$)", look_up(tree, name, pattern).strip())):
            return found[1], name
        usual = [int(part) for part in language.version.split(".")]
        bounds = [(sign if number.count(".") < len(usual) else sign.replace("<", "<="), [int(part) for part in number.split(".")[:len(usual)]])
                  for sign, number in re.findall(r"([<>]?=?)[=^~ ]*v?(\d{1,4}(?:\.\d{1,4})*)", re.sub(r"~>(?=\s*\d+\.\d+\.\d)", "", look_up(tree, name, pattern)))]
        for sign, (*major, last) in bounds[:1] + [row for row in bounds[1:] if row[0].startswith("<")]:
            below = [*major, last - 1] if last or not major else [*major[:-1], major[-1] - 1]  # <8.0 is 7
            wanted = below if sign == "<" else [*major, last]
            if not sign.startswith((">", "<")) or (wanted > usual[:len(wanted)] if sign[0] == ">" else wanted < usual[:len(wanted)]):
                return ".".join(map(str, wanted)), name
        if bounds:
            return language.version, name
    return language.version, ""


def files_like(tree: Path, pattern: str) -> list[str]:
    """List the files of a tree that have such a name, the first hundred whose names are plain words."""
    return sorted(name for path in tree.glob(pattern) if path.is_file() and re.fullmatch(r"[\w./-]+", name := str(path.relative_to(tree)), re.ASCII))[:100]


def language_of(release: Release, tree: Path) -> tuple[str, str]:
    """Choose how a tree is built: the name of a language and the file that shows it; no name for a Dockerfile. Raises DokkuError."""
    chosen, dockerfile = (property_of(release.app, *key) for key in (("builder", "selected"), ("builder-dockerfile", "dockerfile-path")))
    if chosen in ("", "dockerfile") and peek(tree, dockerfile):
        return "", dockerfile
    marks = [(name, mark) for name, row in languages().items() if chosen in ("", name) for (mark,) in row.marks]
    found = next((row for row in marks if (tree / row[1]).is_file()), None)
    return need(found, f"There is no {dockerfile} in the tree{', and nothing that shows how else to build it' if marks else ''}",
                f"add one of: {' '.join(mark for _, mark in [('', dockerfile), *marks])}  (or dokku builder-dockerfile:set {release.app} dockerfile-path ...)")


def plan_build(release: Release, tree: Path, name: str, mark: str) -> tuple[Release, str]:
    """Write the Dockerfile of a tree that has none; give the release, whose web process is found too, and the text. Says what was chosen, and how to change it."""
    app, language = release.app, languages()[name]
    version, where = version_of(language, tree)
    web, taken_for = next(((command.format(module=file.removesuffix(".py").replace("/", "."), said=said), f"{title}, {file}")
                           for title, pattern, says, needs, command in language.serving
                           for file in (files_like(tree, pattern) if not needs or look_up(tree, mark, rf"(?i)\b{needs}\b") else ())
                           if (said := look_up(tree, file, says)) or not says), ("", ""))
    step(f"Building {app} {release.name}: {language.title} ({mark}); another way: a Dockerfile, or dokku builder:set {app} selected {'|'.join(languages())}")
    if language.versions:
        detail(f"version {version}{f' of {where}' if where else ''}; another: {' '.join(dict.fromkeys(file for file, *_ in language.versions))}")
    own = release.procfile.get("web") or property_of(app, "ps", "start-cmd")
    if not own and not web and scale_of(app, release)["web"]:
        raise DokkuError(f"There is no web process: no Procfile names one, and nothing that starts one was found for {language.title}",
                         f"add a Procfile with a line such as  web: ./server --port $PORT  (or, for workers only: dokku ps:scale {app} web=0)")
    if not own and web:
        detail(f"web: {web}   ({taken_for}); a Procfile changes it")
        release = release._replace(procfile={**release.procfile, "web": web})
    files = f"dokku-images/files:{LIBRARY.name}"  # the programs which templates copy; each version of this product has its own
    if not inspect_image(files):
        folder = TEMPLATES / "build/files"
        output_of([docker_command(), "build", f"--tag={files}", f"--file={folder}.Dockerfile", "--", str(folder)], env=build_environment())
    # A template asks; it never gets a text of the tree, so none can get into a Dockerfile.
    return release, render(f"build/{name}.Dockerfile.j2", mark=mark, image=functools.cache(lambda row: image_for(row, version)),
                           files=files, says=lambda file, pattern: any(look_up(tree, found, pattern) for found in files_like(tree, file)),
                           static=web == "exec serve-static" and not own, collects="DISABLE_COLLECTSTATIC" not in merged_config(app),
                           apt=[word for line in peek(tree, "Aptfile").splitlines() if not line.lstrip().startswith(("#", ":"))
                                for word in line.partition(" #")[0].split() if re.fullmatch(r"[a-z0-9][a-z0-9+.-]*(=[A-Za-z0-9+.~:_-]+)?", word)],
                           changed="-".join(str(path.stat().st_mtime_ns) for path in map(config_file, ("--global", app)) if path.exists()),
                           cache=f"{app}-{read_text(app_folder(app) / 'CREATED').strip()}-{read_text(app_folder(app) / 'CACHE').strip()}")


def build_image(release: Release, tree: Path, anew: bool = False) -> Release:
    """Build a tree by its Dockerfile or a language's template, uncached when `anew`: the release with image and port. Raises DokkuError."""
    purged, (language, mark) = app_folder(release.app) / "PURGED", language_of(release, tree)
    asked = read_text(purged)
    secret = ["--secret", f"id=ssh_key,src={ssh_key_file(release.app)}"] if ssh_key_file(release.app).exists() else []
    options = [f"--label=com.dokku.app-name={release.app}", *docker_options_of(release.app, "build"), *secret,
               *(["--no-cache"] if anew or asked else []), *lent_settings(bool(language))]
    with scratch_folder(app_folder(release.app), "tree.") as beside, build_slot():
        require_disk()
        if language:
            release, text = plan_build(release, tree, language, mark)
            write_text(beside / "Dockerfile", text)
            config = {key: value for key, value in merged_config(release.app).items() if key not in NOT_FOR_BUILDS}  # read after its time: never older
            write_text(beside / "config", CONFIG_STYLES["exports"](config) + "\n", secret=True)
            options.append(f"--secret=id=config,src={beside / 'config'}")
        else:
            step(f"Building {release.app} {release.name} from its Dockerfile")
            named = re.findall(r"^\s*FROM\s+(?:--\S+\s+)*(\S+)", read_tree_file(tree, mark), re.MULTILINE | re.IGNORECASE)
            if set(named) & set(own_base_images()):  # build arguments are not expanded
                make_base_image()
        options.append(f"--file={beside / 'Dockerfile' if language else tree / mark}")
        try:
            with logins_of(release.app) as environment:
                stream([docker_command(), "build", f"--iidfile={beside / 'id'}", *options, "--", str(tree)], env=environment)
        except ToolFailed as error:  # its last lines say most
            number, why = (re.findall(r"^#(\d+) ERROR: (.*)", error.output, re.M) or [(r"\d+", "")])[-1]  # of the step that failed
            lines = re.findall(rf"^#{number} [\d.]+ (.*\S)", error.output, re.M) or error.output.splitlines()
            said = "\n".join(["The build failed. Its last lines:", *(line[:300] for line in [*lines[-12:], *filter(None, [why])])])
            raise DokkuError(said, likely_cause(error.output)) from None
        image = read_text(beside / "id").strip()
    remove(purged) if read_text(purged) == asked else None  # else it was asked for again meanwhile
    exposed = {} if language else inspect_image(image)["Config"].get("ExposedPorts") or {}
    first = min((int(port.partition("/")[0]) for port in exposed if not port.endswith("/udp")), default=DEFAULT_PORT)
    return release._replace(image=image, port=first)


def read_tree_file(tree: Path, name: str) -> str:
    """Read a small text file of a pushed tree; links are not followed out of the tree."""
    if (text := peek(tree, name)) and (tree / name).stat().st_size > 2**20:
        raise DokkuError(f"{name} is larger than 1 MiB", "that file holds settings only")
    return text


def read_tree(release: Release, whole: Path) -> tuple[Release, Path]:
    """Read what a tree says: Procfile, app.json, CHECKS, its vhost template; refuses bad ones. Gives the folder of it that is built too."""
    named = property_of(release.app, "builder", "build-dir")
    if not (whole / named).is_dir() or not (tree := (whole / named).resolve()).is_relative_to(whole.resolve()):
        raise DokkuError(f"There is no folder {named} in the tree", f"dokku builder:set {release.app} build-dir   sets it back")
    for name in [name for name in ("nginx.conf.sigil", ".buildpacks", "project.toml") if (tree / name).is_file()]:
        warn(f"{name} is dokku's, and not used here: see docs/server.md")
    app_json = parse_json_object(read_tree_file(tree, property_of(release.app, "app-json", "appjson-path")) or "{}", "app.json")
    formation, scripts, jobs = parse_app_json(app_json)
    lines = [] if formation else map(str.strip, read_tree_file(tree, "DOKKU_SCALE").splitlines())  # `type=count` a line
    formation = formation or dict(parse_scale(line) for line in lines if line and not line.startswith("#"))
    return release._replace(procfile=parse_procfile(read_tree_file(tree, property_of(release.app, "ps", "procfile-path"))),
                            template=read_tree_file(tree, property_of(release.app, "nginx", "nginx-conf-sigil-path")),
                            formation=formation, scripts=scripts, jobs=jobs,
                            checks=parse_healthchecks(app_json) or parse_checks_file(read_tree_file(tree, "CHECKS"))), tree


def in_folder(folder: Path, words: Sequence[str], *options: str) -> list[str]:
    """Give the words that run a command as root, in a short container without a network that sees one folder, as /data."""
    make_base_image()
    mount = [f"--mount=type=bind,src={folder},dst=/data", "--workdir=/data", own_base_images()[0]]
    return [docker_command(), "run", "--rm", "--init", "--network=none", *short_lived(), *options, *mount, *words]


# ---------------------------------------------------------------------------------------------------------------------
# 14 Health: is a process fit to serve? Says what was asked and what came back

def ask_path(address: str, port: int, check: Check) -> str:
    """Ask a path once; give what is wrong, or nothing."""
    import http.client
    import ssl
    connection = http.client.HTTPConnection(address, port, timeout=check.timeout) if check.scheme == "http" else http.client.HTTPSConnection(
        address, port, timeout=check.timeout, context=ssl._create_unverified_context())  # noqa: S323 - it is our own container
    try:
        with contextlib.closing(connection):
            connection.request("GET", check.path, headers={"User-Agent": "dokku_py", **dict(check.headers)})
            answer = connection.getresponse()
            body, deadline = b"", time.monotonic() + check.timeout  # a stream of events never ends
            while check.content and len(body) < 2**20 and time.monotonic() < deadline and (more := answer.read1(2**16)):
                body += more
    except (OSError, http.client.HTTPException) as error:
        return f"GET {check.path} on port {port}: {error or type(error).__name__}"
    if answer.status >= 400:
        return f"GET {check.path} on port {port}: answered {answer.status}"
    return "" if check.content in body.decode(errors="replace") else f"GET {check.path} on port {port}: the answer lacks {shown(check.content)}"


def ask_once(container: Container, port: int, check: Check) -> tuple[str, bool]:
    """Ask once what a check asks for; give what is wrong, or nothing, and whether there was somebody to ask yet."""
    import socket
    if check.command:
        done = run([docker_command(), "exec", container.id, *check.command], check=False, timeout=check.timeout)
        printed = (done.stdout + done.stderr).decode(errors="replace").strip()
        return f"`{shlex.join(check.command)}` ended with exit code {done.returncode}: {printed[-500:]}" if done.returncode else "", True
    if check.process != container.process_type or (check.process != "web" and not check.path and not check.listening):
        return "", True
    networks = {} if container.address else inspect_container(container.id).get("NetworkSettings", {}).get("Networks", {})
    address = container.address or (networks.get(NETWORK) or {}).get("IPAddress", "")
    port = check.port or port
    try:
        socket.create_connection((address, port), check.timeout).close()
    except OSError as error:
        return f"nothing listens on port {port} ({error.strerror or error})", False
    return ask_path(address, port, check) if check.path else "", True


def process_trouble(container: Container, restarts: int = 0) -> str:
    """Say how a process has ended, or nothing while it runs, and Docker has started it no more often than that again."""
    if not (facts := inspect_container(container.id)):
        return "its container is gone"
    state = facts["State"]
    if state["Running"] and not state["Restarting"] and facts["RestartCount"] <= restarts:
        return ""
    # The last event of its end has the exit code, also when Docker has started it again since.
    filters = {"container": container.id, "event": "die"}
    ended = list(engine().events(since=int(time.time()) - 3600, until=f"{time.time():.6f}", filters=filters, decode=True))
    code = next((event["Actor"]["Attributes"].get("exitCode") for event in reversed(ended)), "") or state["ExitCode"]
    return f"it ended with exit code {code}{', out of memory' if state['OOMKilled'] else ''}"


def wait_until_healthy(release: Release, container: Container, restarts: int = 0) -> None:
    """Wait until a process passes its own checks, else listens (web) or stays up (rest): polls fast, gives up early. Raises DokkuError."""
    port, unfit = port_of(release), f"{container.dyno} of {release.name} is not healthy"
    settings = {key: property_of(release.app, "checks", key) for key in ("attempts", "timeout", "wait", "default-wait")}
    checks = [check.settled(settings) for check in release.checks if check.process == container.process_type and check.kind != "liveness"]
    if check_mode(release.app, container.process_type) != "enabled":
        checks = [Check(process="", uptime=float(settings["default-wait"]))]
    for check in checks or [Check() if container.process_type == "web" else Check(process=container.process_type, uptime=STAY_UP_SECONDS)]:
        time.sleep(check.delay)
        began, asked, pause = time.monotonic(), 0, 0.005
        patience = max(START_SECONDS, check.attempts * (check.wait + check.timeout))
        while True:
            time.sleep(check.uptime)
            if trouble := process_trouble(container, restarts):  # that Docker has started it so many `restarts` again is none
                raise DokkuError(f"{unfit}: {trouble}", likely_cause("\n".join(logs_of(container.id, FAILURE_LINES))))
            wrong, answered = ask_once(container, port, check)
            if not wrong:
                break
            asked += answered  # a port that does not listen yet costs no attempt, and is polled fast
            if (spent := time.monotonic() - began) > patience or (check.attempts and asked >= check.attempts):
                raise DokkuError(f"{unfit} after {asked or 'many'} attempts in {spent:.0f} s: {wrong}",
                                 "the app must listen on 0.0.0.0 and the port in $PORT; checks stand in app.json or CHECKS")
            time.sleep(check.wait if answered else pause)
            pause = min(pause * 1.5, 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# 15 Releases: deploy, bring up, retire, converge

def deploy(app: str, commit: str, by: str, reason: str = "push", anew: bool = False) -> None:
    """Make a pushed commit the running release, or leave everything as it was."""
    # Until switch_to points nginx at it nothing the world can see has changed; its record is the commit point; what follows is tidying.
    if (note := app_folder(app) / "LOCKED").exists():  # who keeps deploys out, since when
        raise DokkuError(f"{app} is locked by {read_text(note).strip()}: no deploys", f"dokku apps:unlock {app}   lets them in again")
    tell_of_rollback(app)
    with next_release(Release(app, 0, commit=commit), by, reason) as release:
        write_release(release, {})
        with checkout(app, commit) as tree:
            release, folder = read_tree(release, tree)  # refuses bad files before the build
            release = run_predeploy(build_image(release, folder, anew))
        write_release(release, merged_config(app))
        tag_image(release, release.name)
        run_task(release, "release", release.procfile)
        first = not read_current(app)
        switch_to(release)
        try:
            run_task(release, "first", release.scripts if first else {})
            run_task(release, "postdeploy", release.scripts)
        except DokkuError as error:  # told, and changes nothing
            complain(DokkuError(f"{error.message}; the release is live all the same"))
    milestone("Application deployed:")
    say_lines(f"       {url}" for url in urls_of(app))
    if (file := certificate_of(app)) and ends_within(file, EXPIRY_WARNING):
        warn(f"The certificate of {app} ends within 14 days; dokku certs:doctor {app}   says who should renew it")


def tell_of_rollback(app: str) -> None:
    """Say at the head of a push that an earlier release was rolled back by itself, until a push has gone well since."""
    for number in reversed(release_numbers(app)):
        status, record = read_text(release_folder(app, number) / "STATUS").strip(), read_release(app, number)
        if status.startswith("rolled back"):
            return warn(f"v{number} was {status}; dokku logs:failed {app}   shows its last words")
        if record and record.reason.startswith(("push", "git:")) and not status:
            return None


@contextlib.contextmanager
def next_release(like: Release, by: str, reason: str) -> Iterator[Release]:
    """Begin the next release, which is like another one so far; keep what is said within as its log, and mark it failed when it fails."""
    release = like._replace(number=next_number(like.app), at=now(), by=by, reason=reason, restart=0, kept={})
    write_text(app_folder(like.app) / "LAST", str(release.number))  # the number is used up, whatever becomes of it
    with (make_folder(release_folder(like.app, release.number)) / "build.log").open("a", errors="replace") as log:
        token = TRANSCRIPT.set(log)
        try:
            yield release
        except BaseException as error:
            if (current := read_current(release.app)) and current.number == release.number:
                raise  # past the switch it is live, whatever comes
            with contextlib.suppress(OSError):  # a full disk must not keep the rest from being put back
                mark_release(release.app, release.number, "cancelled" if isinstance(error, (Cancelled, BrokenPipeError)) else "failed")
            drop_images(release.app, release.number)
            raise
        finally:
            TRANSCRIPT.reset(token)


def run_task(release: Release, name: str, commands: Mapping[str, str]) -> None:
    """Run one of an app's own commands, when there is one, in a container of the new image. Raises DokkuError when it fails."""
    if name not in commands:
        return
    step(f"Running the {name} command")
    ensure_network()
    identity = create_container(release, f"{name}.1", config=release_config(release), command=shell_command(release.app, commands[name]), kind="release")
    try:
        start_container(identity)
        say_lines("       " + line.decode(errors="replace").rstrip("\r\n") for line in engine().logs(identity, stream=True, follow=True))
        code = engine().wait(identity)["StatusCode"]
    finally:
        remove_container(identity)
    need(code == 0, f"The {name} command ended with exit code {code}")


def run_predeploy(release: Release) -> Release:
    """Run app.json's predeploy in the new image and keep what it leaves behind; give the release with that image."""
    if not (command := release.scripts.get("predeploy")):
        return release
    step("Running the predeploy command")
    ensure_network()
    idle = ["/bin/sh", "-c", "while :; do sleep 3600; done"]
    own_entry = inspect_image(release.image)["Config"].get("Entrypoint")  # an image that has none must not get ours by the commit
    identity = create_container(release, "predeploy.1", config=None, kind="release", **({"options": {"entrypoint": idle}} if own_entry else {"command": idle}))
    try:
        start_container(identity)
        # the command gets the config, the container never had it: so no secret is in the image that is made of it
        environment = process_environment(release, merged_config(release.app), "predeploy.1")
        begun = engine().exec_create(identity, shell_command(release.app, command), environment=environment)["Id"]
        say_lines(f"       {line}" for line in lines_of(engine().exec_start(begun, stream=True)))
        if code := engine().exec_inspect(begun)["ExitCode"]:
            raise DokkuError(f"The predeploy command ended with exit code {code}")
        return release._replace(image=commit_container(identity, release.image))
    finally:
        remove_container(identity)


def switch_to(release: Release) -> None:
    """Start a release, check it, point nginx at it, record it, retire the old; or throw its processes away."""
    wanted, known = wanted_dynos(release), retiring(release.app)
    if anew := {row.process_type for row in containers_of(release.app) if row.id in known and release.has(row) and row.dyno in wanted}:
        kept = {kind: release.incarnation_of(f"{kind}.1") for kind in scale_of(release.app, release) if kind not in anew}
        release = release._replace(restart=release.restart + 1, kept=kept)  # scaled down a moment ago, and up again
    ended: list[Container] = []
    with put_back(turn_back, release, ended):
        for container in [row for row in containers_of(release.app) if row.running and not release.has(row)
                          and (row.holds_ports or check_mode(release.app, row.process_type) == "disabled")]:
            detail(f"Stopping the old {container.dyno} first: two can't run at once, so there is a gap until the new one is healthy")
            ended.append(container)
            stop_container(container.id, int(property_of(release.app, "ps", "stop-timeout-seconds")))
        step("Starting processes and checking them")
        import_ahead("jinja2")
        for container in start_missing(release):
            wait_until_healthy(release, container)
        step("Switching to the new processes")
        on_leaving(signal.SIG_IGN)  # from here it is quicker to end well than to turn back
        workers = install_vhost(f"{release.app}.conf", vhost_text(release.app, release))
    previous, watched = read_current(release.app), read_json(app_folder(release.app) / "PROBATION")  # a minder forgets it once another release is current
    write_current(release)
    keep_config(release)
    remove(app_folder(release.app) / "STOPPED")
    try:
        if previous and previous.number != release.number and property_of(release.app, "ps", "auto-rollback") == "true":
            # what is still watched itself is nothing to end at
            then = [watched["previous"], *watched.get("then", ())] if watched.get("release") == previous.number and watched["until"] > uptime() else []
            write_probation(release, [previous.number, *then])
        retire(release, workers)
        render_crontab()
        keep_images(release.app)
        agree_networks(release.app)
        if not previous or previous.number != release.number:
            push_release(release)
    except Exception as error:  # it is live: what is left to tidy must not say that it failed
        complain(error if isinstance(error, DokkuError) else DokkuError(f"The release is live, but: {error}"))


def network_changes(app: str) -> list[tuple[Container, str, bool]]:
    """List how the networks of an app's live processes differ from those on record: process, network, whether it must join."""
    current, wanted = read_current(app), networks_of(app)
    return [(row, name, name in wanted) for row in containers_of(app) if current and current.has(row)
            for name in dict.fromkeys([*wanted, *shared_networks()]) if (name in wanted) != (name in row.networks)]


def agree_networks(app: str) -> None:
    """Have the live processes of an app join and leave networks as it is on record."""
    for row, name, joins in network_changes(app):
        with engine_errors(f"{row.dyno} of {app} can't leave the network {name}"), whatever_comes("NotFound"):  # it may be gone meanwhile
            join_networks(row.id, app, row.dyno, [name]) if joins else engine().disconnect_container_from_network(row.id, name, force=True)


def push_release(release: Release) -> None:
    """Push the image of a release when the app wants that, under names that it has only meanwhile; a failure is told and undoes nothing."""
    setting = functools.partial(property_of, release.app, "registry")
    repo = re.sub(r"\{\{ ?\.AppName ?\}\}", release.app, setting("image-repo") or setting("image-repo-template") or f"dokku/{release.app}")
    tags = dict.fromkeys([release.name, *filter(None, setting("push-extra-tags").split(","))])
    for name in [f"{setting('server')}/{repo}:{tag}" for tag in tags] if setting("push-on-release") == "true" else ():
        step(f"Pushing {name}")
        known = inspect_image(name)
        try:
            need(known.get("Id", release.image) == release.image, f"{name} is the name of another image on this server")
            tag_as(release.image, name)
            with logins_of(release.app) as environment:
                run([docker_command(), "push", "--quiet", name], env=environment, timeout=PUSH_SECONDS)
        except DokkuError as error:
            complain(DokkuError(f"{error.message}; the release is live all the same", error.hint))
        finally:
            untag_image(name) if not known else None


def jobs_of(app: str) -> dict[str, Job]:
    """Give the cron jobs of the release that runs, by their ids."""
    return {job.id: job for job in current.jobs} if (current := read_current(app)) else {}


def render_crontab() -> None:
    """Have cron run the jobs of every app: it is told our own command and an id only."""
    with server_lock("cron"):
        jobs = [{"app": app, "schedule": job.schedule, "id": job.id, **{key: property_of(app, "cron", key) for key in ("mailto", "mailfrom")}}
                for app in apps() if not is_stopped(app) and property_of(app, "cron", "maintenance") == "false"
                for job in jobs_of(app).values() if SCHEDULE.fullmatch(job.schedule) and not job.maintenance and job.id not in read_lines(app_folder(app) / "CRON_SUSPENDED")]
        minute = int(digest_of(os.uname().nodename)[:8], 16) % 1440  # each server at another time of the day
        renews = any((ROOT / "acme" / "apps").glob("*")) and not (ROOT / "acme" / "NO_CRON").exists()
        backups = [(service, schedule) for service in services() if SCHEDULE.fullmatch(schedule := backup_settings(service)["schedule"])]
        text = render("host/crontab.j2", jobs=jobs, backups=backups, renewal=f"{minute % 60} {minute // 60} * * *" if renews else "")
        if text.strip() != output_of(["crontab", "-l"], check=False).strip():
            run(["crontab", "-"], stdin=text)


def urls_of(app: str, first: str = "") -> list[str]:
    """List the addresses under which an app answers, or the first of them alone."""
    import socket
    everywhere = is_proxied(app) or property_of(app, "network", "bind-all-interfaces") == "true"
    names = domains_of(app) if is_by_name(app) else [socket.getfqdn() if everywhere else "127.0.0.1"]
    found = [f"{row.scheme}://{name}:{row.host}".removesuffix(":80" if row.scheme == "http" else ":443") for name in names
             for row in sorted(port_maps(app), key=lambda row: row.scheme != "https")]
    return found[:1] if first else found


def keep_last_words(container: Container) -> list[str]:
    """Keep what a process printed last for logs:failed; give the lines."""
    lines = logs_of(container.id, 1000)
    with contextlib.suppress(OSError):
        write_text(app_folder(container.app) / "FAILED" / container.dyno, "\n".join(lines) + "\n", secret=True)
    return lines


def turn_back(release: Release, ended: Sequence[Container]) -> None:
    """Have everything as it was before a release that did not go live; what ended for it runs again."""
    on_leaving(signal.SIG_IGN)  # this is not broken off
    throw_away(release)
    for container in [row for row in ended if row.id not in retiring(release.app)]:
        with contextlib.suppress(Exception):  # gone meanwhile; what went wrong first is what is told
            stop_container(container.id, int(property_of(release.app, "ps", "stop-timeout-seconds")))  # a stop that was broken off goes on in the engine
            start_container(container.id)


def throw_away(release: Release) -> None:
    """Remove the processes of a release that did not go live; keep their last words for logs:failed."""
    if (current := read_current(release.app)) and current.incarnation == release.incarnation:
        return
    words: list[str] = []
    for container in [row for row in containers_of(release.app) if row.incarnation == release.incarnation]:
        words += [f"{container.dyno}: {line}" for line in keep_last_words(container)[-FAILURE_LINES:]]
        remove_container(container.id)
    free_addresses(release.app, lambda incarnation, dyno: incarnation != release.incarnation)
    with contextlib.suppress(OSError):  # who asked may have left
        say_lines(f"       {line}" for line in words)


def retire(release: Release, workers: Sequence[Worker]) -> None:
    """Let the old processes, which lose their names, end once nginx's old workers have: a detached process does it after we are gone."""
    *_, old = sort_containers(release.app, release)
    for container in old:
        rename_container(container, f"{release.app}.{container.dyno}.{container.incarnation}")
    name_current(release)
    if old:  # on record with a deadline, so that `tick` can finish the work
        deadline = uptime() + int(property_of(release.app, "checks", "wait-to-retire"))
        record = {"deadline": deadline, "containers": [row.id for row in old], "workers": list(workers)}
        with server_lock("retiring"):
            write_lines(app_folder(release.app) / "RETIRING", [*read_lines(app_folder(release.app) / "RETIRING"), json.dumps(record)])
    if needs_minding(release.app):
        detach(functools.partial(mind, release.app))


def name_current(release: Release) -> None:
    """Give the running release its short names: its image dokku/APP:latest, its processes APP.web.1."""
    tag_image(release, "latest")
    for container in [row for row in containers_of(release.app) if release.has(row) and row.dyno in wanted_dynos(release)]:
        rename_container(container, f"{release.app}.{container.dyno}")


def retiring(app: str) -> set[str]:
    """List the containers that are retiring already, by their ids."""
    return {identity for line in read_lines(app_folder(app) / "RETIRING") for identity in json.loads(line)["containers"]}


def needs_minding(app: str) -> bool:
    """Say whether something of an app is retiring or being watched."""
    return bool(read_lines(app_folder(app) / "RETIRING")) or (app_folder(app) / "PROBATION").exists()


def mind(app: str) -> None:
    """See an app's switches to their end, detached: retire the old processes, and watch the new ones through their probation."""
    engine.cache_clear()  # the connection of the process we were forked from is closed here
    tidy, ending = False, {}
    while app_exists(app) and (needs_minding(app) or not tidy):
        with lock_if_free(app_folder(app) / "minder") as free:
            if not free:  # one is enough, however often the app is deployed: the work is left to it
                return
            while app_exists(app) and (needs_minding(app) or ending or not tidy):
                tidy = mind_once(app, ending, tidy)
                time.sleep(1.0 if tidy or ending else 0.1)
        # and look once more: whoever came before this has left


def mind_once(app: str, ending: dict[int, str], tidy: bool) -> bool:
    """Begin to end what is due to retire, judge a probation, take back the addresses that no container holds; says whether all is done."""
    for line in read_lines(app_folder(app) / "RETIRING"):
        record = json.loads(line)
        if line not in ending.values() and (uptime() > record["deadline"] or not any(map(worker_lives, record["workers"]))):
            # each set when its workers are gone or it is due; in a child: a process that ignores SIGTERM keeps no other waiting
            ending[fork_work(functools.partial(end_retired, app), line)] = line
    for child in [child for child in ending if os.waitpid(child, os.WNOHANG)[0]]:
        del ending[child]
    quietly(judge_probation, app)  # it is on record in events whatever comes of it
    retired = not read_lines(app_folder(app) / "RETIRING")
    if tidy or not retired or not app_exists(app):
        return tidy and retired
    with lock_if_free(app_folder(app) / "lock") as free:  # not while a deploy runs
        held = {(row.incarnation, row.dyno) for row in containers_of(app)} if free else set()
        free_addresses(app, lambda incarnation, dyno: not free or (incarnation, dyno) in held)
        return free


def mind_all() -> None:
    """See to it that every app with something retiring or being watched has a minder."""
    for app in filter(needs_minding, apps()):
        detach(functools.partial(mind, app))


def end_retired(app: str, line: str) -> None:
    """End the processes of one retirement, all at the same time, and take it off the record."""
    engine.cache_clear()  # here, so that each child makes a connection of its own
    grace, identities = int(property_of(app, "ps", "stop-timeout-seconds")), json.loads(line)["containers"]
    if in_parallel(identities, lambda identity: (stop_container(identity, grace), remove_container(identity)), len(identities)):
        return
    with server_lock("retiring"):
        write_lines(app_folder(app) / "RETIRING", [kept for kept in read_lines(app_folder(app) / "RETIRING") if kept != line])
    if current := read_current(app):
        name_current(current)


def restart_unfit(app: str) -> None:
    """Have the liveness checks of an app asked in a process of their own: they may be patient, and nobody else waits for them."""
    if (current := read_current(app)) and not is_stopped(app) and any(check.kind == "liveness" for check in current.checks):
        detach(functools.partial(ask_liveness, current))


def ask_liveness(current: Release) -> None:
    """Restart the processes of a release that fail their liveness checks, unless those of an earlier minute are still being asked."""
    engine.cache_clear()  # the connection of the process we were forked from is closed here
    with lock_if_free(app_folder(current.app) / "asking") as free:
        for container in [row for row in containers_of(current.app) if current.has(row) and row.running] if free else []:
            if due := checks_due(current, container, facts := inspect_container(container.id)):
                try:  # that it crashed once and came up again is no trouble by itself
                    wait_until_healthy(current._replace(checks=due), container, facts["RestartCount"])
                except DokkuError as error:
                    restart_sick(container, error.message)


def checks_due(release: Release, container: Container, facts: Mapping[str, Any]) -> tuple[Check, ...]:
    """Give the liveness checks that a process is old enough for; none of one that is gone."""
    import datetime
    if not facts:
        return ()
    age = time.time() - datetime.datetime.fromisoformat(facts["State"]["StartedAt"][:19] + "+00:00").timestamp()  # below 0 after the clock was set back
    return tuple(check._replace(kind="startup", delay=0, uptime=0) for check in release.checks
                 if check.kind == "liveness" and check.process == container.process_type and not 0 <= age <= check.delay + check.uptime)


def restart_sick(container: Container, why: str) -> None:
    """Restart a process that failed a liveness check, unless a command works on the app, or has stopped or replaced it since."""
    with lock_if_free(app_folder(container.app) / "lock") as free:
        if free and not is_stopped(container.app) and container.id not in retiring(container.app):
            restart_container(container.id, int(property_of(container.app, "ps", "stop-timeout-seconds")))
            record_event(Caller("dokku_py"), "restart", app=container.app, note=why)


def write_probation(release: Release, ways_back: Sequence[int]) -> None:
    """Watch a release from now on; when it crash-loops, the first of these numbers takes its place, watched in turn while there is a next."""
    until = uptime() + PROBATION_SECONDS
    write_json(app_folder(release.app) / "PROBATION", {"release": release.number, "previous": ways_back[0], "then": ways_back[1:], "until": until})


def judge_probation(app: str) -> None:
    """Roll back a release that crash-loops in its probation, once; forget a probation that is over or of another release."""
    file = app_folder(app) / "PROBATION"
    record, current = read_json(file), read_current(app)
    if not record:
        return
    if not current or current.number != record["release"] or is_stopped(app) or not 0 < record["until"] - uptime() <= PROBATION_SECONDS:
        return remove(file)
    own = (row for row in containers_of(app) if current.has(row))
    if not (container := next((row for row in own if inspect_container(row.id).get("RestartCount", 0) >= PROBATION_RESTARTS), None)):
        return
    with locked(app, "automatic rollback"):
        now_current, began, result, why = read_current(app), time.monotonic(), 1, f"{container.dyno} kept crashing"
        if not now_current or now_current.number != current.number or not file.exists() or is_stopped(app):
            return
        keep_last_words(container)
        try:
            rollback(app, record["previous"], "dokku_py")
            mark_release(app, current.number, f"rolled back: {why}")
            result = 0
        finally:  # each is tried once, and on record in events whatever comes of it
            remove(file)
            if record.get("then"):  # where the first can't come up, what stays is watched for the next
                write_probation(require_current(app), record["then"])
            record_event(Caller("dokku_py"), "rollback", app=app, result=result, seconds=time.monotonic() - began, note=f"{current.name}: {why}")


def keep_images(app: str) -> None:
    """Take the names from all but the last few distinct images, and drop the oldest records."""
    if property_of(app, "builder", "skip-cleanup") == "true":
        return
    numbers = release_numbers(app)
    current, watched = read_current(app), read_json(app_folder(app) / "PROBATION")
    built = [record for number in reversed(numbers) if (record := read_release(app, number)) and record.image]
    served = [record.image for record in built if release_status(app, record.number, current) not in ("failed", "cancelled", "killed", "unfinished")]
    kept = list(dict.fromkeys(served))[:IMAGES_KEPT]
    for record in [record for record in built if record.image not in kept]:
        untag_image(f"dokku/{app}:{record.name}")
    for number in numbers[:-max(1, int(property_of(app, "builds", "retention")))]:  # later ones than the live one may have failed
        if number not in (current and current.number, watched.get("previous"), *watched.get("then", ()), *read_tags(app).values()):
            untag_image(f"dokku/{app}:v{number}")  # without its record nobody would find the name again
            remove(release_folder(app, number))


def sort_containers(app: str, current: Release | None) -> tuple[set[tuple[str, str]], list[Container], list[Container]]:
    """Give the (incarnation, dyno) pairs that should run, the containers, and those of them that are neither wanted nor retiring."""
    known, rows = retiring(app), containers_of(app)  # in this order: what ends in between is not taken for left over
    wanted = {(current.incarnation_of(dyno), dyno) for dyno in wanted_dynos(current)} if current else set()
    return wanted, rows, [row for row in rows if row.id not in known and (row.incarnation, row.dyno) not in wanted]


def remove_strays(app: str) -> None:
    """Remove what a crash left: processes neither wanted nor retiring, their addresses, unfinished releases, files. Only under the lock."""
    if current := read_current(app):
        keep_config(current)
    wanted, rows, strays = sort_containers(app, current)
    if strays:
        wait_for_workers(app, render_vhost(app))  # nginx may have been switched to the strays before the crash
    for container in [*strays, *containers_of(app, "release")]:
        remove_container(container.id)
    held = wanted | {(row.incarnation, row.dyno) for row in rows if row not in strays}
    free_addresses(app, lambda incarnation, dyno: (incarnation, dyno) in held)
    for number in [number for number in release_numbers(app) if release_status(app, number, current) == "unfinished"]:
        mark_release(app, number, "killed")
        drop_images(app, number)
    remove(*app_folder(app).glob("tree.*"), *dead_writes(app_folder(app)))
    remove_dead_pushes(app)


class Disagreement(NamedTuple):
    """Something in which Docker, nginx or the files of an app differ from what is on record, and what mends it."""

    app: str
    what: str
    mend: Callable[[], Any]


def disagreements(app: str) -> Iterator[Disagreement]:
    """Find what differs from the record of an app, in the order of mending: `converge` mends one by one, `doctor` only reads."""
    found, current = functools.partial(Disagreement, app), read_current(app)
    if read_lines(app_folder(app) / "RETIRING") and not is_locked(app_folder(app) / "minder"):
        yield found("old processes wait for a minder that died", functools.partial(detach, functools.partial(mind, app)))
    if strays := stray_things(app):
        yield found(f"left over from something that was killed: {', '.join(strays)}", functools.partial(remove_strays, app))
    if current and not inspect_image(current.image):
        yield found(f"the image of {current.name} is gone; ps:rebuild, a push or a rollback brings one", lambda: None)
    elif current and is_stopped(app):
        if any(row.running for row in containers_of(app)):
            yield found("processes run although it was stopped", functools.partial(stop_processes, app))
    elif current:
        running = {row.dyno for row in containers_of(app) if current.has(row) and row.running}
        if missing := [dyno for dyno in wanted_dynos(current) if dyno not in running]:
            yield found(f"not running: {', '.join(missing)}", functools.partial(start_missing, current))
        if network_changes(app):
            yield found("its processes are not in the networks on record", functools.partial(agree_networks, app))
        own = [row for row in containers_of(app) if current.has(row) and row.dyno in wanted_dynos(current)]
        if inspect_image(f"dokku/{app}:latest").get("Id") != current.image or any(row.name != f"{app}.{row.dyno}" for row in own):
            yield found("the image or processes lack their short names", functools.partial(name_current, current))
    if (file := certificate_of(app)) and ends_within(file, EXPIRY_WARNING):
        yield found("its certificate ends within 14 days: renew it by certs:update or letsencrypt:enable", lambda: None)
    if (quarantine := ROOT / "nginx" / "quarantined" / f"{app}.conf").exists():
        yield found("its nginx configuration was refused and is in quarantine", functools.partial(remove, quarantine))
    nginx, name = ROOT / "nginx", f"{app}.conf"  # a change that was killed before nginx had it left its candidate, or is among the unseen
    if read_text(nginx / name) != vhost_text(app) or (nginx / "candidate" / name).exists() or name in read_lines(nginx / "UNSEEN"):
        yield found("nginx does not serve what is on record", functools.partial(serve, app))
    if misplaced_process(app):
        yield found("Docker does not publish the ports on record", functools.partial(serve, app))


def stray_things(app: str) -> list[str]:
    """Name what a killed command left of an app: processes, addresses, releases, files."""
    current = read_current(app)
    wanted, rows, strays = sort_containers(app, current)
    held = wanted | {(row.incarnation, row.dyno) for row in rows}
    addresses = [f"address {address}" for address, owner, *process in allotted() if owner == app and tuple(process) not in held]
    unfinished = [f"release v{number}" for number in release_numbers(app) if release_status(app, number, current) == "unfinished"]
    brought = [brought_config(current)] if current and brought_config(current).exists() else []
    pushed = [] if is_locked(app_folder(app) / "pushes") else dead_pushes(app)
    files = [*app_folder(app).glob("tree.*"), *dead_writes(app_folder(app)), *pushed, *brought]
    return [*(row.name for row in [*strays, *containers_of(app, "release")]), *(path.name for path in files), *addresses, *unfinished]


def converge(app: str) -> None:
    """Make Docker and nginx agree with what is on record for an app, by the least that does it."""
    with locked(app, "converge"):
        for difference in disagreements(app):
            difference.mend()


def revive(app: str) -> None:
    """Converge an app whose processes Docker gave up; not while a command works on it, and not where the policy is to give up."""
    current, policy = read_current(app), property_of(app, "ps", "restart-policy")
    if not current or is_stopped(app) or policy not in ("always", "unless-stopped") or property_of(app, "ps", "restore") == "false":
        return
    # when dockerd was killed, the next one stops what still runs, takes that for stopped by hand, and leaves it so (20.10)
    alive = {row.dyno for row in containers_of(app) if current.has(row) and row.state in ("running", "restarting")}
    if (missing := [dyno for dyno in wanted_dynos(current) if dyno not in alive]) and not is_locked(app_folder(app) / "lock"):
        converge(app)
        record_event(Caller("dokku_py"), "restart", app=app, note=f"Docker had given up {', '.join(missing)}")


def render_vhost(app: str, anew: bool = False, off: bool = False) -> list[Worker]:
    """Have nginx serve an app as it stands in state, or know nothing of it; give the old workers. Only under the app's lock: state is moving otherwise."""
    return install_vhost(f"{app}.conf", "" if off else vhost_text(app), anew)


def misplaced_process(app: str) -> Container | None:
    """Find the first web process of an app when Docker does not publish for it what is on record."""
    live = read_current(app)
    wanted = " ".join(published_ports(live)) if live else ""
    return next((row for row in containers_of(app) if live and row.dyno == "web.1" and live.has(row) and row.published != wanted), None)


def serve(app: str) -> None:
    """Have an app served as it stands in state, by nginx or by Docker; each lets go of ports before the other takes them. Only under the lock."""
    if not is_proxied(app):
        render_vhost(app)
    remove_strays(app)
    if first := misplaced_process(app):
        remove_container(first.id) if is_stopped(app) else restart(app, as_is=True)
    render_vhost(app)


@contextlib.contextmanager
def served_with(app: str, path: Path) -> Iterator[None]:
    """Have an app served by the fact changed within, or put its file back; ports that others have are refused. Only under the lock."""
    old, had, proxied = read_text(path) if path.exists() else None, host_ports(app), is_proxied(app)
    secret = old is not None and not path.stat().st_mode & 0o77
    with put_back(lambda: (remove(path) if old is None else write_text(path, old, secret=secret), quietly(render_vhost, app))):
        yield
        require_ports(app, had)
        render_vhost(app) if proxied and is_proxied(app) else serve(app)
        if gone := had - host_ports(app):
            warn(f"{app} is no longer served on {', '.join(map(str, sorted(gone)))}")


def run_again(old: Release, config: Mapping[str, str], own: Mapping[str, str], by: str, reason: str) -> None:
    """Make a new release of an old one's image with such a config, whose `own` part becomes the app's; nothing is built."""
    with next_release(old, by, reason) as release:
        write_release(release, config, own)
        tag_image(release, release.name)
        switch_to(release)


def rollback(app: str, number: int, by: str) -> None:
    """Make a new release with an old one's image and config."""
    need(old := read_release(app, number), f"{app} has no release v{number}", f"dokku releases {app}   lists them")
    if not old.image or not inspect_image(old.image):
        raise DokkuError(f"{app} has no image of v{number} any more", f"dokku releases {app}   lists what can be rolled back to")
    config, server, ran = release_config(old), read_config("--global"), release_config(require_current(app))
    later = {key: value for key, value in read_config(app).items() if ran.get(key) != value}  # set by --no-restart: on record nowhere else
    gone = {key for key in ran if key not in read_config(app) and server.get(key) != ran[key]}  # unset so
    own = {key: value for key, value in config.items() if server.get(key) != value and key not in gone} | later
    with linked_again(old, own):
        run_again(old, config, own, by, f"rollback to v{number}")


@contextlib.contextmanager
def linked_again(old: Release, config: Mapping[str, str]) -> Iterator[None]:
    """Bring back, with an old release's config, the links that it was made with, while the services have the passwords that stand in it."""
    app, had = old.app, [tuple(line.split()) for line in read_lines(release_folder(old.app, old.number) / "LINKS")]
    file, links = app_folder(app) / "LINKS", links_of(app)
    held = {(row.engine, row.name): rf"(?://|:{re.escape(read_text(row.folder / 'PASSWORD').strip())}@){re.escape(row.container.replace('.', '-'))}:" for row in services()}
    if lost := [row for row in had if row in held and row not in links and any(re.search(held[row], value) for value in config.values())]:
        write_lines(file, map(" ".join, [*links, *lost]))
    with put_back(lambda: write_lines(file, map(" ".join, links)) if lost and read_config(app) != config else None):
        yield


def apply_config(app: str, config: Mapping[str, str], by: str, reason: str) -> None:
    """Run an app with another config: the release is started and checked with it before the config is kept."""
    if not (current := read_current(app)) or is_stopped(app):
        return write_config(app, config)
    return run_again(current, {**read_config("--global"), **config}, config, by, reason)


def stop_app(app: str) -> None:
    """Note that an app is stopped, have nginx answer for it, and end its processes."""
    write_text(app_folder(app) / "STOPPED", now() + "\n")
    render_crontab()
    wait_for_workers(app, render_vhost(app))
    stop_processes(app)


def wait_for_workers(app: str, workers: Sequence[Worker]) -> None:
    """Let nginx's old workers answer what they have begun, for as long as `wait-to-retire` says."""
    deadline = time.monotonic() + int(property_of(app, "checks", "wait-to-retire"))
    while any(map(worker_lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)


def stop_processes(app: str) -> None:
    """End every process of an app, and keep the containers."""
    for container in containers_of(app):
        stop_container(container.id, int(property_of(app, "ps", "stop-timeout-seconds")))


def start_app(app: str) -> None:
    """Start a stopped app: its processes are checked before nginx forwards to them."""
    current = require_current(app)
    for kind in sorted(set(read_lines(app_folder(app) / "STOPPED_TYPES")) & set(scale_of(app, current))):
        warn(f"{kind} stays stopped; dokku ps:start {app} {kind}   starts it")
    if is_stopped(app) and merged_config(app) != release_config(current):
        return restart(app)  # it was changed meanwhile
    with put_back(lambda: stop_processes(app) if is_stopped(app) else None):
        for container in start_missing(current):
            wait_until_healthy(current, container)
    remove(app_folder(app) / "STOPPED")
    name_current(current)
    agree_networks(app)
    render_vhost(app)
    render_crontab()


def restart(app: str, process: str = "", as_is: bool = False) -> None:
    """Replace an app's processes, or those of one type, by new ones without dropping a request; all together get the config of now, unless `as_is`."""
    current, process = require_current(app), "" if is_stopped(app) else process  # nothing of what is stopped is started alone
    if not process and not as_is and merged_config(app) != release_config(current):  # changed while it was stopped, by --no-restart, or the server's
        return run_again(current, merged_config(app), read_config(app), os.environ.get("DOKKU_CALLER", "root"), "restart with the config of now")
    kept = {kind: current.incarnation_of(f"{kind}.1") for kind in scale_of(app, current) if process and kind != process}
    switch_to(current._replace(restart=current.restart + 1, kept=kept))


# ---------------------------------------------------------------------------------------------------------------------
# 16 Services: databases and their like. A row for each kind; what is asked of its server stands in templates/services

class Engine(NamedTuple):
    """A kind of server, as templates/services/NAME/engine.json says it; the scripts beside that file are what it can be asked."""

    # words in braces are those of `service_words`
    name: str
    image: str  # a row of IMAGES or a name on Docker Hub
    version: str
    port: int
    url: str
    variable: str = "DATABASE_URL"
    user: str = "{engine}"
    data: str = ""
    environment: Mapping[str, str] = {}  # what the image is given
    files: Mapping[str, str] = {}  # what it reads in the container: path -> content
    command: Sequence[str] = ()
    begins: Sequence[str] = ()  # a dump begins with one of these
    seed: str = ""  # the file of an empty data folder that a dump becomes, for an engine without a script that loads
    unproven: str = ""  # why nobody has seen it run

    def has(self, script: str) -> bool:
        """Say whether it can be asked that; for a dump to load, a seed will do."""
        return not script or (script == "load" and bool(self.seed)) or (TEMPLATES / "services" / self.name / script).exists()


ENGINE_NAMES = {"postgresql": "postgres", "mongodb": "mongo"}  # the other dialect's


@functools.cache
def engine_named(noun: str) -> Engine | None:
    """Give the engine that a noun names, in either dialect."""
    name = ENGINE_NAMES.get(noun, noun)
    row = read_json(TEMPLATES / "services" / name / "engine.json") if name.isalpha() else {}
    return Engine(name, **row) if row else None


def engine_of(service: Service) -> Engine:
    """Give the engine of a service."""
    return engine_named(service.engine)


COLORS = ("AQUA", "BLACK", "BLUE", "FUCHSIA", "GRAY", "GREEN", "LIME", "MAROON", "NAVY", "OLIVE", "PURPLE", "RED", "SILVER", "TEAL", "WHITE", "YELLOW")
READY_SECONDS = 180.0  # a server answers within this after its start
SERVICE_GRACE = 60  # seconds from SIGTERM to SIGKILL: a server writes down what it holds


def require_service(noun: str, name: str) -> Service:
    """Give a service. Raises DokkuError, which names the nearest."""
    engine_name = ENGINE_NAMES.get(noun, noun)
    if found := read_service(engine_name, name):
        return found
    import difflib
    close = difflib.get_close_matches(name, [row.name for row in services(engine_name)], 1)
    raise DokkuError(f"{engine_name} service {name} does not exist", f"did you mean {close[0]}?" if close else f"dokku {engine_name}:create {name}   makes it")


def service_words(service: Service) -> dict[str, str]:
    """Give the words of a service that its engine's row speaks of, its secrets among them."""
    database = re.sub(r"[^a-z0-9_]", "_", service.name.lower())
    secrets = {key: read_text(service.folder / file).strip() for key, file in (("password", "PASSWORD"), ("root", "ROOTPASSWORD"))}
    user = engine_of(service).user.format(engine=service.engine, database=database)
    return {"user": user, "database": database, "host": service.container.replace(".", "-"), "port": str(engine_of(service).port), **secrets}


def url_of(service: Service, scheme: str = "") -> str:
    """Give the address under which linked apps reach a service, password included."""
    url = engine_of(service).url.format(**service_words(service))
    return f"{scheme}{url[url.index('://'):]}" if scheme else url


def is_url_of(service: Service, value: str) -> bool:
    """Say whether a config var's value is the address of a service, whatever its scheme and query."""
    return value.partition("?")[0].partition("://")[2] == url_of(service).partition("?")[0].partition("://")[2]


def service_mounts(service: Service) -> list[dict[str, Any]]:
    """Write the files that a service's server is given, and say what its container sees of the host: those, and its data."""
    seen, words = [], service_words(service)
    for number, (target, text) in enumerate(engine_of(service).files.items()):  # in a folder that only this product reads; in the container its server may
        path, content = service.folder / "mounted" / str(number), text.format(**words)
        write_text(path, content) if read_text(path) != content else None
        seen.append((path, target, True))
    if data := engine_of(service).data:
        seen.append((service.folder / service.data, data, False))
    return [{"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": only} for source, target, only in seen]


def create_service_container(service: Service, name: str, *, scratch: bool = False) -> str:
    """Create a service's container, without starting it, and give its id. A scratch one is in no network, and `tick` removes it when nobody else does."""
    row, client, words = engine_of(service), engine(), service_words(service)
    environment = {key: value.format(**words) for key, value in row.environment.items()}
    environment |= dict(pair.partition("=")[::2] for pair in service.environment.split(";") if pair)
    exposed = [text.rpartition(":") for text in service.exposed]
    own: dict[str, Any] = {"network_mode": service.container, "restart_policy": {"Name": "unless-stopped"},
                           "port_bindings": {f"{row.port}/tcp": [{"HostIp": address, "HostPort": port} for address, _, port in exposed]}}
    alone = {"network_mode": "none", "restart_policy": {"Name": "no"}, "extra_hosts": {words["host"]: "127.0.0.1"}}
    host = client.create_host_config(log_config={"type": "json-file", "config": {**LOG_OPTIONS, "max-size": "10m"}}, **(alone if scratch else own),
                                     shm_size=f"{service.shm}m" if service.shm else None, mem_limit=f"{service.memory}m" if service.memory else None)
    host["Mounts"] = service_mounts(service)
    networking = None if scratch else client.create_networking_config({service.container: client.create_endpoint_config(aliases=[words["host"]])})
    labels = {**OURS, "com.dokku.container-type": "scratch" if scratch else "service", "com.dokku.service": service.container, "com.dokku.spec": spec_of(service)}
    labels |= {"com.dokku.expires": str(int(uptime()) + 86400)} if scratch else {}
    with engine_errors(f"The container of {service.name} can't be made"):
        for network in service.networks.split() if not scratch else ():
            require_network(network)  # before the old container is gone
        remove_container(name)
        identity = client.create_container(service.image, [*row.command, *shlex.split(service.options)] or None, name=name, hostname=words["host"],
                                           environment=environment, labels=labels, host_config=host, networking_config=networking, ports=[row.port], stop_timeout=SERVICE_GRACE)["Id"]
        for network in service.networks.split() if not scratch else ():
            client.connect_container_to_network(identity, network, aliases=[words["host"]])
    return identity


def spec_of(service: Service) -> str:
    """Give what must be the same of a service's record and of its container."""
    return json.dumps(service._replace(stopped=False, kept=""))


def script_words(service: Service, identity: str, script: str, *options: str) -> list[str]:
    """Give the words that run one of an engine's scripts in a container of it; secrets are read inside, none is among the words."""
    given = [f"--env={key.upper()}={word}" for key, word in service_words(service).items() if key in ("user", "database")]
    secrets = "PASSWORD=$(cat /run/secrets/password 2>/dev/null) ROOTPASSWORD=$(cat /run/secrets/root 2>/dev/null); export PASSWORD ROOTPASSWORD\n"
    return [docker_command(), "exec", "--user=root", *given, *options, identity, "sh", "-c", secrets + read_text(TEMPLATES / "services" / service.engine / script)]


def server_answers(service: Service, identity: str) -> bool:
    """Ask a service's server whether it is ready."""
    return not run(script_words(service, identity, "ready"), check=False, timeout=30).returncode


def wait_for_server(service: Service, identity: str) -> None:
    """Wait until a service's server answers. Raises DokkuError with its last words when it ends or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    while not server_answers(service, identity):
        state = inspect_container(identity).get("State", {})
        if not state.get("Running") or state.get("Restarting") or time.monotonic() > deadline:
            say_lines(f"       {line}" for line in logs_of(identity, FAILURE_LINES))
            raise DokkuError(f"The server of {service.name} does not come up", f"dokku {service.engine}:logs {service.name}   shows its log")
        time.sleep(0.1)


def service_container(service: Service) -> Container | None:
    """Find the container of a service."""
    return next((row for row in containers_of("", "service") if row.name == service.container), None)


def service_disagreements(service: Service, strays: bool = True) -> Iterator[Disagreement]:
    """Find what differs between a service's record and its container, and then what is left over of it, each with what mends it."""
    found, row = functools.partial(Disagreement, f"{service.engine} {service.name}"), service_container(service)
    facts = inspect_container(row.id) if row else {}  # nothing of one that is just replaced
    if facts and facts["Config"]["Labels"].get("com.dokku.spec") != spec_of(service):
        yield found("its container is not the one on record", functools.partial(renew_service, service))
    elif service.stopped and row and row.running:
        yield found("it runs although it was stopped", functools.partial(stop_container, row.id, SERVICE_GRACE))
    elif not service.stopped and not (row and row.running and service.container in row.networks):
        yield found("it does not run", functools.partial(renew_service, service))
    scratch, folders = strays_of(service) if strays else ([], [])
    if scratch or folders:
        names = ", ".join([*(row.name for row in scratch), *folders])
        yield found(f"left over from something that was killed: {names}", functools.partial(drop_strays, service))


def strays_of(service: Service) -> tuple[list[Container], list[str]]:
    """List what a killed command left of a service: scratch servers, and folders that its record, as it is now, does not name. Only under its lock."""
    known = read_service(service.engine, service.name) or service
    scratch = [row for row in containers_of("", "scratch") if row.name.rpartition(".data")[0] == service.container]
    folders = [path.name for pattern in ("data.*", "tmp.*", "backup") for path in service.folder.glob(pattern)]
    return scratch, [name for name in folders if name not in (known.data, known.kept.partition(" ")[0])]


def drop_strays(service: Service) -> None:
    """Remove what is left over of a service; data belongs to users of the container, so it goes as root in one."""
    scratch, folders = strays_of(service)
    for row in scratch:
        remove_container(row.id)
    if folders:
        run(in_folder(service.folder, ["rm", "-rf", "--", *folders]))


def renew_service(service: Service) -> None:
    """Have a service run as it is on record, in a new container. Raises DokkuError rather than begin with no data."""
    if engine_of(service).data and not (service.folder / service.data).is_dir():
        raise DokkuError(f"The data of {service.name} is missing: {service.folder / service.data}", f"dokku {service.engine}:restore {service.name}   loads a backup")
    require_network(service.container)
    if old := service_container(service):
        stop_container(old.id, SERVICE_GRACE)
    identity = create_service_container(service, service.container)
    if not service.stopped:
        start_container(identity)


def agree_service(service: Service, tidy: bool = True) -> None:
    """Make Docker agree with what is on record for a service, and wait until its server answers; only then what is left over goes. Only under the service's lock."""
    for difference in service_disagreements(service, strays=False):
        difference.mend()
    if not service.stopped and (row := service_container(service)):
        wait_for_server(service, row.id)
    drop_strays(service) if tidy else None


def change_service(service: Service, **changes: Any) -> Service:
    """Keep a service as changed once its server answers so; else it is put back. Only under the service's lock."""
    new = service._replace(**changes)
    write_service(new)
    with put_back(lambda: (write_service(service), quietly(agree_service, service))):
        agree_service(new, tidy=False)
    quietly(drop_strays, new)  # it is on the new data from here on: what can't go now goes by `tick`
    return new


def running_server(service: Service) -> str:
    """Give the container of a service that runs. Raises DokkuError."""
    if (row := service_container(service)) and row.running:
        return row.id
    raise DokkuError(f"{service.name} does not run", f"dokku {service.engine}:start {service.name}   starts it")


def dump_service(service: Service, target: Path) -> None:
    """Write a dump of a running service to a file."""
    feed(script_words(service, running_server(service), "dump", "--interactive"), target=target)


@contextlib.contextmanager
def filled(service: Service, dump: Path) -> Iterator[tuple[Service, str]]:
    """Load a dump into a new data folder with a scratch server of its own; give that service as it would be, and the server's container."""
    # The service itself is not touched. The folder goes when it has not become the service's own; the server ends in any case.
    row, fresh = engine_of(service), service._replace(data=f"data.{time.time_ns() // 1000}")
    with dump.open("rb") as file:
        if not file.read(64).decode("latin-1").startswith(tuple(row.begins)):
            raise DokkuError(f"That is no dump of {service.engine}", f"it must be what dokku {service.engine}:export gives; nothing was changed")
        make_folder(fresh.folder / fresh.data)
        if row.seed:
            file.seek(0)
            copy_file(file, fresh.folder / fresh.data / row.seed)
    identity = create_service_container(fresh, f"{service.container}.{fresh.data}", scratch=True)
    try:
        start_container(identity)
        try:
            wait_for_server(fresh, identity)
            if not row.seed:
                feed(script_words(fresh, identity, "load", "--interactive"), source=dump)
                run(script_words(fresh, identity, "ready"))  # a dump may bring other users
        except DokkuError as error:
            raise DokkuError(f"The dump can't be loaded: {error.message}", f"{service.name} is as it was") from None
        yield fresh, identity
    finally:
        drop_strays(service)


def count_rows(service: Service, identity: str) -> dict[str, str]:
    """Count the rows of every table; nothing for an engine that has no tables."""
    lines = output_of(script_words(service, identity, "count")).splitlines() if engine_of(service).has("count") else []
    return {table: count for table, _, count in (line.rpartition(" ") for line in lines)}


def compare_rows(service: Service, identity: str, wanted: Mapping[str, str] | None) -> None:
    """Compare the rows of a server's tables with those expected; None is any, but some. Raises DokkuError that names the tables that differ."""
    found = count_rows(service, identity)
    if wanted is None and not found and engine_of(service).has("count"):
        raise DokkuError("That dump holds no table of this database: it is of others, or of none", f"{service.name} is as it was")
    if wrong := [f"{table}: {found.get(table, 'no')} instead of {count}" for table, count in (wanted or {}).items() if found.get(table) != count]:
        raise DokkuError(f"What was loaded differs in its rows: {'; '.join(wrong)}", f"{service.name} is as it was")
    detail(f"Loaded and compared: {len(found)} tables" if found else "Loaded")


def replace_data(service: Service, dump: Path, rows: Mapping[str, str] | None, **changes: Any) -> Service:
    """Have a service work on what a dump holds, once that was loaded beside it and has the rows expected. Only under its lock."""
    if engine_of(service).has("others"):
        row = service_container(service)
        asked = run(script_words(service, row.id, "others"), check=False) if row and row.running else None
        if asked and not asked.returncode and (others := asked.stdout.decode(errors="replace").split()):
            raise DokkuError(f"{service.name} also holds {', '.join(others)}, which would not come along", f"move them to services of their own first; {service.name} is as it was")
        if not asked or asked.returncode:  # nobody knows what else is there
            if service.kept:
                raise DokkuError(f"{service.name} still keeps {service.kept} from before", f"dokku {service.engine}:upgrade {service.name} --confirm   lets go of it")
            changes = {"kept": f"{service.data} {service.image}", **changes}
            warn(f"The server of {service.name} could not be asked what else it holds, so the data of before is kept: dokku {service.engine}:upgrade {service.name} --confirm   lets go of it")
    with filled(service._replace(**changes), dump) as (fresh, identity):
        compare_rows(fresh, identity, rows)
        stop_container(identity, SERVICE_GRACE)  # its data goes to another server
        return change_service(service, **changes, data=fresh.data)


@contextlib.contextmanager
def cut_off(service: Service) -> Iterator[None]:
    """Keep the apps away from a running service, so that nothing is written; what is wrong afterwards is mended by `agree_service`."""
    with put_back(lambda: agree_service(read_service(service.engine, service.name) or service)):
        for network in dict.fromkeys([service.container, *service.networks.split()]):
            with engine_errors(f"{service.name} can't be cut off from its apps"):
                engine().disconnect_container_from_network(service.container, network, force=True)
        yield


def upgrade_service(service: Service, **changes: Any) -> Service:
    """Have a service run another image. With tables: dump, load into a new server, compare, switch, and the old data is kept; else the new server takes the data over."""
    if not engine_of(service).has("count"):
        return change_service(service, **changes)
    agree_service(service)
    with scratch_folder(service.folder, "tmp.") as folder, cut_off(service):
        dump_service(service, folder / "dump")
        return replace_data(service, folder / "dump", count_rows(service, running_server(service)), **changes, kept=f"{service.data} {service.image}")


@contextlib.contextmanager
def holding(service: Service, purpose: str) -> Iterator[Service]:
    """Hold a service's lock, for a command that changes it, and give its record as it is then. Raises DokkuError when it is gone."""
    with service_lock(service.engine, service.name, purpose) as found:
        yield found or require_service(service.engine, service.name)


def mend_service(engine_name: str, name: str) -> None:
    """Make Docker agree with what is on record for a service, without waiting for its server; one that a command works on is left alone.

    What is left over goes once the server answers, as in `agree_service`: until then it may be the way back.
    """
    with lock_if_free(ROOT / "services" / engine_name / name / "lock") as free:
        if not free or not (known := read_service(engine_name, name)):
            return
        wrong = [*service_disagreements(known, strays=False)]
        for difference in wrong:
            difference.mend()
        if not wrong and any(strays_of(known)) and (known.stopped or server_answers(known, running_server(known))):
            drop_strays(known)


def drop_dead_services() -> None:
    """Remove what is left of services without a record that no command works on, never finished or half removed: containers, network, data; their lock last."""
    for lock in (ROOT / "services").glob("*/*/lock"):
        with lock_if_free(lock) as free:
            if free and lock.exists() and not (lock.parent / "service.json").exists():
                drop_dead(lock.parent)


def drop_dead(folder: Path) -> None:
    """Remove what is left of one service without a record; a failure is told, and tried again by `tick`."""
    name = f"dokku.{folder.parent.name}.{folder.name}"
    try:
        for row in [row for kind in ("service", "scratch") for row in containers_of("", kind) if name in (row.name, row.name.rpartition(".data")[0])]:
            remove_container(row.id)
        drop_network(name)
        run(in_folder(folder, ["find", ".", "-mindepth", "1", "-not", "-path", "./lock", "-delete"]))
        remove(folder)
    except (DokkuError, OSError) as error:
        warn(f"Something of the service {folder.name} is left: {error}")


# Backups: a restic repository for each service, with its settings beside it; both outlive the service.


def require_passphrase(service: Service, where: str) -> None:
    """Refuse a place for backups beside this server while no passphrase is set."""
    need(not where or (backup_home(service) / "passphrase").exists(), "No passphrase is set, and nothing leaves this server unencrypted",
         f"dokku {service.engine}:backup-set-encryption {service.name}   reads one from standard input")


def restic(service: Service, *words: str, check: bool = True, target: Path | None = None) -> Any:
    """Run restic on a service's repository; passphrase and keys come from 0600 files. What it prints may go to a file."""
    home, where = make_folder(backup_home(service), 0o700), backup_settings(service)["where"]
    keys = parse_environment(read_text(home / "bucket"))
    secret = home / ("passphrase" if where else "key")  # what stays on this server is encrypted by a key of its own
    require_passphrase(service, where)
    if not secret.exists():
        write_text(secret, os.urandom(16).hex() + "\n", secret=True)
    repository = where if ":" in where or where.startswith("/") else f"s3:{keys.get('ENDPOINT', 's3.amazonaws.com')}/{where}" if where else str(home / "repository")
    environment = {**build_environment(), **keys, "RESTIC_REPOSITORY": repository, "RESTIC_PASSWORD_FILE": str(secret)}
    argv = ["restic", "--quiet", "--no-cache", *words]
    return feed(argv, target=target, env=environment) if target else run(argv, env=environment, check=check)


def snapshots_of(service: Service) -> list[dict[str, Any]]:
    """List the backups of a service, oldest first; none where there is no repository yet. Raises DokkuError when that can't be read."""
    if not any((backup_home(service) / name).exists() for name in ("key", "passphrase")):
        return []
    done = restic(service, "snapshots", "--json", f"--tag={service.container}", check=False)
    if done.returncode and b"Is there a repository" not in done.stderr:
        raise DokkuError(f"The backups can't be listed: {done.stderr.decode(errors='replace').strip()[:300]}")
    return json.loads(done.stdout or b"[]")


def back_up(service: Service) -> str:
    """Dump a service into a new backup, drop those that are too old, and give its name."""
    agree_service(service)
    server, folder = running_server(service), make_folder(service.folder / "backup", 0o700)
    try:
        before = count_rows(service, server)  # and after: a table that nobody wrote to meanwhile must have as many when the backup is verified
        dump_service(service, folder / "dump")
        after = count_rows(service, server)
        write_json(folder / "rows.json", {table: count for table, count in before.items() if after.get(table) == count})
        if restic(service, "cat", "config", check=False).returncode:
            restic(service, "init")
        tags = f"--tag={service.container},{service.created}"  # those of an earlier service of that name are not counted
        restic(service, "unlock")  # of one that was killed
        restic(service, "backup", tags, str(folder))
        restic(service, "forget", "--group-by=tags", tags, f"--keep-last={backup_settings(service)['keep']}", "--prune")
    finally:
        remove(folder)
    return snapshots_of(service)[-1]["short_id"]


@contextlib.contextmanager
def fetched(service: Service, name: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """Give the dump of a backup, and the rows that it must have. Raises DokkuError when restic finds it damaged or not there."""
    with scratch_folder(service.folder, "tmp.") as folder:
        try:
            for part in ("dump", "rows.json"):
                restic(service, "dump", f"--tag={service.container}", name, str(service.folder / "backup" / part), target=folder / part)
        except ToolFailed as error:
            raise DokkuError(f"The backup can't be read: {error.message}", f"dokku {service.engine}:backup-list {service.name}   lists all") from None
        yield folder / "dump", read_json(folder / "rows.json")


# ---------------------------------------------------------------------------------------------------------------------
# 17 Access: keys, roles, and who may do what

ROLES = {role: frozenset(capabilities) for role, *capabilities in read_table("roles.tsv")}
QUIET_ACCESS = ("view", "anyone", "local", "hook")  # what needs no more than this changes nothing, and is not in the events


def read_keys() -> list[Key]:
    """List the keys on record."""
    records = [read_json(path) for path in sorted((ROOT / "keys").glob("*")) if re.fullmatch(PATTERNS["key-name"][0], path.name) and path.is_file()]
    return [Key(**{**record, "apps": tuple(record["apps"])}) for record in records if record]  # none of a key that was removed just now


def write_key(key: Key, known: Key | None = None) -> None:
    """Keep a key and let sshd know. Raises DokkuError when another name has it already, or when it is no longer what the caller knew."""
    with server_lock("keys"):
        if known and known not in read_keys():
            raise DokkuError(f"{known.name} was changed meanwhile", "do it again")
        for other in read_keys():
            if other.fingerprint == key.fingerprint and other.name != key.name:
                raise DokkuError(f"That key is already known as {other.name}", f"dokku ssh-keys:remove {other.name}   removes it")
            if other.name == key.name and other.fingerprint != key.fingerprint:
                raise DokkuError(f"{key.name} already names another key", "choose another name, or remove that key first")
        write_json(ROOT / "keys" / key.name, key._asdict())
        render_authorized_keys()


def drop_key(name: str) -> None:
    """Forget a key and let sshd know."""
    with server_lock("keys"):
        remove(ROOT / "keys" / name)
        render_authorized_keys()


def render_authorized_keys() -> None:
    """Write authorized_keys from the keys on record; lines that are not ours are kept (sshd(8), AUTHORIZED_KEYS)."""
    path = ROOT / ".ssh" / "authorized_keys"
    make_folder(path.parent, 0o700)
    lines = [line for line in read_lines(path) if 'command="/usr/bin/dokku --as ' not in line]
    for key in read_keys():
        until = f',expiry-time="{key.until.replace("-", "")}2359"' if key.until else ""
        sources = f',from="{key.sources}"' if key.sources else ""
        lines.append(f'command="/usr/bin/dokku --as {key.name}",restrict,pty{until}{sources} {key.public}')
    write_text(path, "".join(f"{line}\n" for line in lines), secret=True)


def is_over(key: Key) -> bool:
    """Say whether the last day of a key is past, by this server's clock, as sshd has it."""
    return bool(key.until) and key.until < time.strftime("%Y-%m-%d")


def find_key(word: str) -> Key:
    """Find a key by name or whole fingerprint. Raises DokkuError."""
    found = next((key for key in read_keys() if word in (key.name, key.fingerprint)), None)
    return need(found, f"No key is named {shown(word)}", "dokku ssh-keys:list   lists the keys")


def may(caller: Caller, capability: str, app: str = "") -> bool:
    """Say whether a caller may do something to an app, or to the server."""
    if caller.local or capability == "anyone":
        return capability != "hook"
    return capability in ROLES.get(caller.role, ()) and (not caller.apps or bool(app) and reaches(caller.apps, app))


def reaches(patterns: Sequence[str], app: str) -> bool:
    """Say whether an app is among those that names and patterns such as blog-* mean; what stands for apps stands for no service (ENGINE:NAME)."""
    return any(fnmatch.fnmatchcase(app, pattern) and (":" in app) == (":" in pattern) for pattern in patterns)


# ---------------------------------------------------------------------------------------------------------------------
# 18 Declaring: what a command is, read from its row of templates/commands.tsv

class Arg(NamedTuple):
    """One argument of a command."""

    name: str
    parse: Callable[[str], Any]
    flags: tuple[str, ...]  # they make it an option
    many: str  # takes the rest
    switch: bool
    default: str | None
    raw: bool  # takes the rest unparsed
    unknown: bool  # collects the options that nothing else takes
    unless: str | None  # the option beside which it is not given


ARGUMENT = re.compile(r"(-[\w|-]+)?(\w+)?(?::(\{[^}]*\}|[\w-]+))?([?*+]|\.\.\.|~)?(?:=([^>^]*))?(?:>(\w+))?(?:\^(\S+))?")
GLOBAL_WORDS = {"--quiet": "DOKKU_QUIET_OUTPUT", "--trace": "DOKKU_TRACE", "--force": "DOKKU_FORCE", "--global": "", "--app": ""}


def argument(text: str) -> Arg:
    """Read one argument as templates/commands.tsv writes it."""
    flags, word, parser, many, default, name, unless = ARGUMENT.fullmatch(text).groups()  # type: ignore[union-attr]
    spellings = tuple(flags.split("|")) if flags else ()
    own = word if word in PATTERNS or f"parse_{word}" in globals() else "str"  # without a parser: the kind of its own name, if there is one
    return Arg(name or word or spellings[0].lstrip("-").replace("-", "_"), parser_named(parser or own),
               spellings, many if many in ("?", "*", "+") else "", bool(flags) and parser is None and default is None, default, many == "...", many == "~", unless)


class Command(NamedTuple):
    """A row of templates/commands.tsv. Of `readings`, the arguments as each dialect words them, the first counts where both fit."""

    name: str
    access: str
    readings: tuple[str, ...]
    call: str
    text: str = ""

    @property
    def args(self) -> list[Arg]:
        """Give its arguments in the first reading."""
        return [argument(word) for word in self.readings[0].split()]

    @property
    def body(self) -> Callable[..., Any]:
        """Give the function that does it."""
        return globals()[self.call.removeprefix("print ").split()[0]]

    @property
    def fixed(self) -> dict[str, str]:
        """Give the words that the table fixes."""
        return dict(word.split("=", 1) for word in self.call.split() if "=" in word)

    @property
    def doc(self) -> list[str]:
        """Give what it promises: a sentence, then a blank line and the rest."""
        return " ".join((self.text or self.body.__doc__ or "").split()).replace(". ", ".\n\n", 1).split("\n")


def nouns_named(word: str) -> list[str]:
    """List the nouns that a word of the table stands for: itself, unless it is in capitals. Of engines, with a script behind it, those that have it."""
    kind, _, script = word.rstrip("]").partition("[")
    if kind == "SERVICE":
        return [noun for noun in [*sorted(os.listdir(TEMPLATES / "services")), *ENGINE_NAMES] if engine_named(noun).has(script)]
    if not word.isupper():
        return [word]
    with_properties = {noun for noun, _ in PROPERTIES}
    return {"PROPERTY": sorted(with_properties), "REPORT": sorted({*with_properties, *FACTS})}[word]


@functools.cache
def commands() -> dict[str, Command]:
    """Read the table of commands; each spelling has its row."""
    found: dict[str, Command] = {}
    for word, access, *rest in read_table("commands.tsv"):
        noun, colon, verb = word.partition(":")
        for spelling in [f"{name}{colon}{verb}" for name in nouns_named(noun)]:
            if access == "|":
                found[spelling] = found[spelling]._replace(readings=(*found[spelling].readings, rest[0]))
            elif access.startswith("= "):
                row = found[access[2:].replace(noun, spelling.partition(":")[0], 1)]
                found[spelling] = row._replace(readings=(rest[0],)) if rest else row
            else:
                found[spelling] = Command(spelling, access, (rest[0],), *rest[1:])
    return found


# How usage writes words that have parts.
SHAPES = {parse_pair: "KEY=VALUE", parse_scale: "TYPE=COUNT", parse_port_map: "SCHEME:HOST-PORT:CONTAINER-PORT", parse_app_or_global: "app|--global"}


def parser_of(name: str, args: Iterable[Arg]) -> Any:
    """Build the argparse parser of one command."""
    import argparse
    parser = argparse.ArgumentParser(prog=f"dokku {name}", allow_abbrev=False, add_help=False)

    def refuse(message: str) -> NoReturn:
        """Raise our error, where argparse would leave the program."""
        raise UsageError(f"{name}: {message}", " ".join(parser.format_usage().split()))
    parser.error = refuse  # type: ignore[method-assign]
    for arg in args:
        if arg.switch:
            parser.add_argument(*arg.flags, dest=arg.name, action="store_true")
        elif arg.flags:
            parser.add_argument(*arg.flags, dest=arg.name, default=arg.default, action="append" if arg.many else "store")
        elif not arg.unknown:
            parser.add_argument(arg.name, metavar=SHAPES.get(arg.parse), nargs=argparse.REMAINDER if arg.raw else arg.many or None, default=arg.default)
    return parser


def parse_arguments(name: str, args: Sequence[Arg], words: Sequence[str]) -> dict[str, Any]:
    """Read a command's words with one argparse parser built for it alone. Raises UsageError."""
    parser = parser_of(name, args)
    raw = any(arg.raw for arg in args)  # argparse can't mix those with options that come later
    known, unknown = (parser.parse_known_args if raw else parser.parse_known_intermixed_args)(list(words))
    collector = next((arg.name for arg in args if arg.unknown), None)
    if unknown and not collector:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    found = {**vars(known), **({collector: unknown} if collector else {})}
    for arg in args:
        if found[arg.name] == [] and arg.many not in ("*", "+") and not (arg.raw or arg.unknown):
            parser.error(f"{arg.name} is missing: -- is no word")  # what argparse makes of it
        if not arg.switch and (value := found[arg.name]) is not None:
            read = [arg.parse(word) for word in value] if isinstance(value, list) else arg.parse(value)
            found[arg.name] = [*itertools.chain(*read)] if isinstance(value, list) and arg.parse in (parse_phases, parse_process_types) else read
    return found


def usage_of(row: Command) -> str:
    """Give the help of one command: its usage, and what its docstring promises; of NOUN:set, the properties as well."""
    also = [spelling for spelling, other in commands().items() if other.name == row.name != spelling]
    noun, _, verb = row.name.partition(":")
    valid = [f"    {key:28} {one.summary}" + (f" ({one.default})" if one.default else "") for (owner, key), one in PROPERTIES.items() if owner == noun and verb == "set"]
    return "\n\n".join(filter(None, [short_usage(row), "\n".join(row.doc), "\n".join(valid), f"also: {', '.join(also)}" if also else ""]))


def short_usage(row: Command) -> str:
    """Give the usage of a command on one line."""
    return " ".join(parser_of(row.name, row.args).format_usage().split()).removeprefix("usage: ")


def commands_of(noun: str) -> list[str]:
    """List the commands of a noun, in every spelling."""
    within = [name for name in commands() if name.startswith(f"{noun}:")]
    return [*([noun] if noun in commands() else []), *within] if within else []


def take_global_words(args: Sequence[Arg], words: Sequence[str]) -> tuple[list[str], str | None]:
    """Take out the words that every command knows and this one does not declare; give the others, and what --app names."""
    declared = {flag for arg in args for flag in arg.flags} | {"--global"}
    raw, kept, app, rest = any(arg.raw for arg in args), [], None, iter(words)
    valued = {flag for arg in args if not arg.switch for flag in arg.flags}
    for word in rest:
        if raw and word in valued:
            kept += [word, *itertools.islice(rest, 1)]
        elif word == "--" or (raw and not word.startswith("-")):  # behind it stands the user's own command: nothing is taken from that
            return [*kept, word, *rest], app
        elif word == "--app":
            if (app := next(rest, None)) is None:
                raise UsageError("--app must be followed by the name of an app")
        elif word in GLOBAL_WORDS and word not in declared:
            os.environ[GLOBAL_WORDS[word]] = "1"
        else:
            kept.append(word)
    return kept, app


def find_command(word: str) -> Command | None:
    """Find a command by any of its spellings; nothing for a noun and for NOUN:help. Raises DokkuError for others."""
    if (row := commands().get(word)) or commands_of(word.removesuffix(":help")):
        return row
    noun, _, verb = word.partition(":")
    if instead := next((hint for refused, hint in read_table("refused.tsv") if refused == noun or (refused == verb and "-" in verb)), ""):
        raise DokkuError(f"{word} is not part of this product", instead)
    import difflib
    harmless = [name for name in commands() if not re.search(":(destroy|delete|remove|clear|purge)", name) or name.endswith(f":{verb}")]
    close = difflib.get_close_matches(word, [name for name in harmless if name.startswith(f"{noun}:")], 1) or difflib.get_close_matches(word, harmless, 1, 0.8)
    raise UsageError(f"{shown(word)} is not a dokku command", f"did you mean {close[0]}?" if close else "dokku help   lists all")


def read_words(row: Command, words: list[str], caller: Caller) -> dict[str, Any]:
    """Read a command's words. Of the readings that fit, that one counts in which an app's name stands for an app of the caller's. Raises UsageError."""
    found, wrong = [], None
    for reading in row.readings:
        args = [arg for arg in map(argument, reading.split()) if arg.unless not in words]
        place = next((arg for arg in args if arg.name == "app"), None)
        try:
            rest, named = take_global_words(args, words)
            own = rest.index("--") if "--" in rest else len(rest)
            if "--global" in rest[:own] and place and place.parse is parse_app_or_global:
                rest, named = [*(word for word in rest[:own] if word != "--global"), *rest[own:]], "--global"
            if named and place:  # --global, or the name behind --app, stands in the app's place
                found.append(parse_arguments(row.name, [arg for arg in args if arg is not place], rest) | {"app": place.parse(named)})
            else:
                found.append(parse_arguments(row.name, args, [named, *rest] if named else rest))
        except UsageError as error:
            wrong = wrong or error
    if not found:
        raise wrong or UsageError("")
    fits = [one for one in found if one.get("app") and app_exists(one["app"]) and (not caller.apps or reaches(caller.apps, one["app"]))]
    if len({one["app"] for one in fits}) > 1:
        raise UsageError(f"{fits[0]['app']} and {fits[1]['app']} are both names of apps: which one is meant?",
                         "   or   ".join(f"dokku --app {one['app']} {row.name} {one['service']}" for one in fits))
    return (fits or found)[0]


def is_allowed(row: Command, caller: Caller, chosen: Mapping[str, Any]) -> bool:
    """Say whether a caller may do a command with such words. What is set for all apps is for administrators; + is for who names no app, and sees the own ones."""
    capability, kind = row.access.removesuffix("+"), engine_named(row.name.partition(":")[0])  # a service is ENGINE:NAME among a key's apps
    named = [f"{kind.name}:{chosen[key]}" if kind and key != "app" else chosen[key] for key in ("app", "service", "new") if chosen.get(key)]
    if "--global" in named:
        return may(caller, "view" if capability == "view" else "admin")
    if not named:
        return may(caller, capability) or (row.access.endswith("+") and capability in ROLES.get(caller.role, ()))
    return all(may(caller, capability, name) for name in named)  # of a service with an app beside it: both


def require_allowed(row: Command, caller: Caller, chosen: Mapping[str, Any], hook: bool) -> Mapping[str, Any]:
    """Refuse what a caller may not do, and then what does not exist; the first is noted in the events, and says nothing of the second."""
    if not (hook if row.access == "hook" else is_allowed(row, caller, chosen)):
        become_owner(ROOT)
        record_event(caller, row.name, app=chosen.get("app") or chosen.get("new") or "", result=AccessDenied.code, note=chosen.get("service") or "")
        raise AccessDenied
    if chosen.get("app") not in (None, "--global"):
        require_app(chosen["app"])  # and a service's record takes the place of its name
    return {**chosen, "service": require_service(row.name.partition(":")[0], chosen["service"])} if chosen.get("service") else chosen


# ---------------------------------------------------------------------------------------------------------------------
# 19 Commands

def say_report(noun: str, app: str, flag: str, style: str) -> None:
    """Print what FACTS say of the app, and its properties: as text, one bare value for a flag, or JSON whose keys lack the noun."""
    of_server = noun in ("certs", "checks", "domains", "resource", "storage")  # whose facts are those of the server, too
    facts = FACTS.get(noun) if app != "--global" or of_server else None
    own, prefix = facts(app) if facts else {}, {"apps": "app", "certs": "ssl"}.get(noun, noun)
    rows = dict(own)
    for key in (key for owner, key in PROPERTIES if owner == noun):  # the app's own value, the one in effect, the server's
        if app != "--global":
            rows[f"{noun}-{key}"] = read_text(property_file(app, noun, key)).strip()
            rows[f"{noun}-computed-{key}"] = property_of(app, noun, key)
        rows[f"{noun}-global-{key}"] = property_of("--global", noun, key)
    need(not flag or flag.removeprefix("--") in rows, f"Invalid flag passed, valid flags: {', '.join(f'--{name}' for name in sorted(rows))}")
    if flag:
        return say(rows[flag.removeprefix("--")])
    if style == "json":
        return say_json({re.sub(f"^(?:{prefix}|{noun})-", "", name): value for name, value in [*rows.items(), *own.items()]})
    milestone(f"{app.removeprefix('--')} {prefix} information")
    return say_lines(f"       {name.replace('-', ' ').capitalize() + ':':30} {value}".rstrip() for name, value in rows.items())


def report(noun: str, app: str | None, caller: Caller, flags: Sequence[str] = (), style: str = "text") -> None:
    """Print the report of one app, of the server with --global, or of every app the caller may see; `report` itself those of all nouns."""
    need(len(flags) < 2, f"{noun}:report takes one flag, not {' '.join(flags)}", error=UsageError)
    if not (found := [app] if app else visible_apps(caller)):
        warn("You haven't deployed any applications yet")
    for name in found:
        for one in nouns_named("REPORT") if noun == "report" else [noun]:
            say_report(one, name, "".join(flags), style)


def secret_word(text: str) -> str:
    """Read a secret: from standard input for -, and for one of root's; what others wrote came through ssh and stands in no list of processes."""
    if text in ("-", ""):
        given = parse_line(sys.stdin.readline().rstrip("\n"))
        return need(given, "Nothing came on standard input", "for example  echo SECRET | ssh dokku@SERVER ...", UsageError)
    if not os.environ.get("SSH_ORIGINAL_COMMAND"):
        raise UsageError("A secret on a command line is seen by every user of this server", "write - for it, and give it on standard input")
    return text


def visible_apps(caller: Caller) -> list[str]:
    """List the apps that a caller may see."""
    return [app for app in apps() if may(caller, "view", app)]


def guard_networks(names: Iterable[str], caller: Caller) -> None:
    """Let only administrators name a network that we did not make, and nobody else one that only apps of others are in."""
    for name in names:
        users = ["", *(other for other in apps() if name in networks_of(other))]
        need(any(may(caller, "configure", user) for user in users) and (name in shared_networks() or may(caller, "admin")), error=AccessDenied)
        require_network(name)


def set_property(noun: str, app: str, key: str, value: list[Any], caller: Caller) -> None:
    """Set a property, or clear it without a value, when the caller may."""
    value = value if value != [""] else []
    secret = noun == "letsencrypt" and key.startswith("dns-provider-")  # what lego must know of the provider, by lego's own name for it
    if ((noun, key) in PROPERTIES or secret) and not may(caller, "admin" if secret else PROPERTIES[noun, key].access, "" if app == "--global" else app):
        raise AccessDenied
    if secret:
        given = {parse_config_key(key.removeprefix("dns-provider-")): secret_word("".join(value)) if value else ""}
        with server_lock("config") if app == "--global" else locked(app, "letsencrypt:set"):
            known = {**dns_secrets(app), **given}
            return write_text(property_file(app, noun, "dns"), render_environment({name: word for name, word in known.items() if word}), secret=True)
    if (noun, key) == ("nginx", "proxy-protocol") and app != "--global":
        raise UsageError("Apps share their ports: either all of them are behind PROXY protocol or none", "dokku nginx:set --global proxy-protocol true")
    guard_networks(" ".join(value).split() if noun == "network" and key in NETWORK_KEYS else (), caller)
    change_property(noun, app, key, " ".join(map(str, value)))
    render_crontab() if noun == "cron" else None
    step(f"{'Setting' if value else 'Unsetting'} {key}{' to ' if value else ''}{' '.join(map(str, value))}")


def serve_unknown_names() -> None:
    """Have nginx answer to names that no app has."""
    major = re.search(r"nginx/(\d+)\.(\d+)", run(["/usr/sbin/nginx", "-v"]).stderr.decode())
    modern = bool(major) and (int(major[1]), int(major[2])) >= (1, 19)
    proxied = " proxy_protocol" if property_of("--global", "nginx", "proxy-protocol") == "true" else ""
    install_vhost(SERVER_CONF, render("server.conf.j2", reject_handshake=modern, proxied=proxied))


def change_property(noun: str, app: str, key: str, value: str) -> None:
    """Set or clear a property; one by which apps are served takes effect at once, for all or none, and is put back when that fails."""
    parse_property(noun, key, value)  # refused before anything is touched, and before its name becomes a path
    path, served = property_file(app, noun, key), noun == "nginx" or key in ("bind-all-interfaces", "static-web-listener", "proxy-port", "proxy-ssl-port")
    if app != "--global":
        with locked(app, f"{noun}:set"), served_with(app, path) if served else contextlib.nullcontext():
            return write_property(app, noun, key, value)

    def serve(name: str) -> None:
        """Have one app served by what the server's property says now."""
        with locked(name, f"{noun}:set"), served_with(name, property_file(name, noun, key)):
            pass
    if value and key in ("proxy-port", "proxy-ssl-port") and int(value) not in {80, 443}.union(*map(host_ports, apps())):
        need(int(value) not in listening_ports(), f"{value} is used by another program", "choose another port")  # later each app would take it for another app's
    old, serve_others = read_text(path).strip(), serve_unknown_names if key == "proxy-protocol" else lambda: None
    write_property(app, noun, key, value)
    with put_back(lambda: (write_property(app, noun, key, old), quietly(each_app, None, True, serve), quietly(serve_others))):
        serve_others()
        return each_app(None, True, serve) if served else None


# --- apps ---

def apps_facts(app: str) -> dict[str, str]:
    """Say where an app is and what it was last deployed from."""
    current = read_current(app)
    reasons = (record.reason.split()[0] for number in reversed(release_numbers(app)) if release_status(app, number, current) in ("live", "replaced")
               and (record := read_release(app, number)) and record.reason)
    source = next((word for word in reasons if word == "push" or word.startswith("git:")), "")
    return {"app-created-at": read_text(app_folder(app) / "CREATED").strip(), "app-deploy-source": {"push": "git-push"}.get(source, source.replace(":", "-")),
            "app-deploy-source-metadata": current.commit if current else "", "app-dir": str(app_folder(app)),
            "app-locked": str((app_folder(app) / "LOCKED").exists()).lower()}


def apps_create(new: str) -> None:
    """Make an app, before its first push."""
    need(not app_exists(new), "Name is already taken", f"dokku apps:report {new}   shows what is there")
    create_app(new)
    step(f"Creating {new}... done")


def create_app(app: str) -> None:
    """Make the record of an app, its repository, and a vhost that answers 502 until something runs; unless somebody just did."""
    with server_lock("create"):
        if not app_exists(app):
            refuse_claimed(app, named_domains(app))
            remove(users_file(app), pages_of(app), acme_folder(app))  # a killed copy, or a renewal meanwhile, may have left some
            make_folder(app_folder(app))
            write_text(app_folder(app) / "CREATED", f"{int(time.time())}\n")
            ensure_repository(app)
            render_vhost(app)


def apps_list(style: str, caller: Caller) -> list[str]:
    """List the apps."""
    found = visible_apps(caller)
    if style != "json":
        milestone("My Apps") if found else warn("You haven't deployed any applications yet")
    return found


def apps_destroy(app: str, force: bool) -> None:
    """Remove an app and say what is kept of it; first asks for its name on standard input, unless --force."""
    kept, linked = mounts_of(app), links_of(app)
    if not force:
        warn(f"This removes {app}, its releases, config and repository. Type its name to go on:")
        need(sys.stdin.readline().strip() == app, "That is not the name; nothing was removed")
    destroy_app(app)
    step(f"Destroyed {app}; its logs stay in {NGINX_LOGS}")
    say_lines(f"       The data in {folder} is kept" for folder in dict.fromkeys(storage_folder(row.source) for row in kept))
    say_lines(f"       The {engine_name} service {name} is kept; dokku {engine_name}:destroy {name}   removes it" for engine_name, name in linked)


def destroy_app(app: str) -> None:
    """Remove an app and everything that is its own."""
    with locked(app, "apps:destroy"):
        remove_app(app)
    for key in [key for key in read_keys() if key.role == "deploy" and app in key.apps]:
        quietly(key_revoke, app, key.name)  # it would open the next app of that name
    render_crontab()


def remove_app(app: str) -> None:
    """Remove what is an app's own: first what serves, last the record that it exists. Only under its lock."""
    render_vhost(app, off=True)
    for container in [row for kind in ("deploy", "run", "release", "cron") for row in containers_of(app, kind)]:
        remove_container(container.id)
    for tag in tags_of(app):
        untag_image(f"dokku/{app}:{tag}")
    free_addresses(app, lambda incarnation, dyno: False)
    remove(acme_folder(app), users_file(app), pages_of(app))
    doomed = ROOT / "apps" / f".{app}.{os.getpid()}"
    rename_file(app_folder(app), doomed)
    remove(doomed)
    if doomed.exists():  # files that root put there
        run(in_folder(doomed.parent, ["rm", "-rf", "--", doomed.name]))


def duplicate_app(old: str, new: str, skip_deploy: bool, leave_out: Sequence[str] = ()) -> None:
    """Make a second app of one, or leave no trace: repository, config, settings, releases, images; it runs unless told not to. Only under the first's lock."""
    copy_app(old, new, leave_out, skip_deploy)
    with put_back(lambda: destroy_app(new) if app_exists(new) else None), locked(new, "apps:clone"):
        refuse_claimed(new, [] if read_lines(app_folder(new) / "DOMAINS") else named_domains(new))  # again: it is a record now
        if leave_out:  # a clone: what the first one has alone can't be shared
            require_ports(new, set())
        for tag in tags_of(old):
            tag_as(f"dokku/{old}:{tag}", f"dokku/{new}:{tag}")
        render_vhost(new)
        if (current := read_current(new)) and not is_stopped(new):
            switch_to(current)


def apps_clone(skip_deploy: bool, ignore: bool, app: str, new: str) -> None:
    """Make a second app of one, without what two can't share and without secrets that were given by hand."""
    if app_exists(new) and ignore:
        return detail(f"{new} exists already")
    with locked(app, "apps:clone"):
        refuse_claimed(new, named_domains(new))
        shares = is_by_name(app) and named_domains(new)
        duplicate_app(app, new, skip_deploy, ["DOMAINS", "REDIRECTS", *([] if shares else ["PORTS", "proxy.proxy-port"]), "ssh_key", "docker", "CERTIFICATE", "letsencrypt.dns"])
    step(f"Cloned {app} to {new}")
    say_lines(f"       Both see the data in {storage_folder(row.source)}" for row in mounts_of(new))
    say_lines(f"       Both use the {engine_name} service {name}" for engine_name, name in links_of(new))
    for file, command in (("ssh_key", "ssh:install"), ("docker", "registry:login")):
        detail(f"What {command} gave {app} stays there; dokku {command} {new}   gives the clone its own") if (app_folder(app) / file).exists() else None


def apps_rename(skip_deploy: bool, app: str, new: str) -> None:
    """Give an app another name: the new one serves before the old one goes, its own domains and deploy keys come along."""
    with locked(app, "apps:rename"):  # to the end: what waits for it finds no app any more
        if not is_proxied(app) and own_maps(app) and not skip_deploy and read_current(app) and not is_stopped(app):
            raise DokkuError(f"{app} holds its ports while it runs", f"dokku ps:stop {app}   first, and ps:start {new} afterwards")
        if not read_lines(app_folder(app) / "DOMAINS"):  # else those come along
            refuse_claimed(new, named_domains(new))
        duplicate_app(app, new, skip_deploy)
        for key in [key for key in read_keys() if app in key.apps]:
            write_key(key._replace(apps=tuple(new if other == app else other for other in key.apps)))
        if acme_folder(app).is_dir():
            rename_file(acme_folder(app), acme_folder(new))
        if (note := app_folder(app) / "LOCKED").exists():
            write_text(app_folder(new) / "LOCKED", read_text(note))
        wait_for_workers(app, render_vhost(app, off=True))
        quietly(stop_processes, app)
        remove_app(app)
    render_crontab()
    step(f"Renamed {app} to {new}")


def lock_deploys(app: str, caller: Caller, off: str = "") -> None:
    """Keep deploys of an app out, or let them in again."""
    note = app_folder(app) / "LOCKED"
    remove(note) if off else write_text(note, f"{caller.name} since {now()}\n")
    step(f"Deploy lock {'removed' if off else 'created'}")


def apps_locked(app: str) -> None:
    """Say by the exit code whether deploys of an app are kept out."""
    need((app_folder(app) / "LOCKED").exists(), "Deploy lock does not exist")
    say("Deploy lock exists")


# --- git ---

def parse_repository(text: str) -> str:
    """Accept the address of something at another server; what is refused may hold a password and is not said again."""
    if not re.fullmatch(r"(?:(?:https?|ssh|git)://(?:\w[\w.-]*@)?|\w[\w.-]*@)[A-Za-z0-9][\w.-]*[:/][!-?A-~]+", text, re.ASCII):
        raise UsageError("That is no https, http, ssh or git address without a password in it", "dokku git:auth HOST USER -   keeps a password")
    return text


def take_source(app: str, purpose: str, caller: Caller, bring: Callable[[Path], tuple[str, str]], build: str = "always", image: str = "") -> None:
    """Deploy a commit that is brought, and only then make it the tip of the deploy branch, whose name it may bring as well where none is set."""
    with locked(app, purpose):
        remove_strays(app)
        begin_push(app)  # to the end of this process: no push that arrives takes our files for those of a dead one
        with scratch_folder(app_folder(app), "tree.") as folder:
            old, (commit, branch) = ref_of(app, "HEAD"), bring(folder)
        if commit == ZERO:
            raise DokkuError("That is no commit: a tag can also point to a file or a folder", "name a branch, a commit, or a tag of one; nothing was changed")
        step(f"{commit[:10]} is there already: nothing changed" if commit == old else f"Taking {commit[:10]}")
        if build == "always" or (build == "changes" and (commit != old or not read_current(app))):
            deploy(app, commit, caller.name, purpose)
        wanted = property_of(app, "git", "deploy-branch")
        write_property(app, "git", "deploy-branch", branch) if not wanted else None
        git(app, "update-ref", f"refs/heads/{wanted or branch or 'main'}", commit)
        git(app, "symbolic-ref", "HEAD", f"refs/heads/{wanted or branch or 'main'}")
        write_property(app, "git", "source-image", image)


def git_sync(build: bool, changes: bool, skip_branch: bool, app: str, repository: str, ref: str | None, caller: Caller) -> None:
    """Fetch a branch, a tag or a commit from another server as the deploy branch, and deploy it if asked to."""
    def bring(_: Path) -> tuple[str, str]:
        """Fetch it."""
        name = ref or property_of(app, "git", "deploy-branch") or "HEAD"
        checked = ["git", f"--git-dir={repository_of(app)}", "-c", "fetch.fsckObjects=true"]
        fetch(app, repository, [*checked, "fetch", "--quiet", "--no-tags", "--", repository, name])
        is_branch = f"\tbranch '{name}' of " in read_text(repository_of(app) / "FETCH_HEAD")
        return ref_of(app, "FETCH_HEAD^{commit}"), name if is_branch and not skip_branch else ""
    take_source(app, "git:sync", caller, bring, "always" if build else "changes" if changes else "never")


def clone(new: str, repository: str, ref: str | None, caller: Caller) -> None:
    """Make an app from a repository at another server, and deploy it."""
    apps_create(new)
    git_sync(True, False, False, new, repository, ref, caller)


def git_from_archive(kind: str | None, app: str, source: str, name: str, email: str, caller: Caller) -> None:
    """Deploy what an archive at an address, or with - on standard input, holds, without the one folder that may be around everything."""
    def bring(folder: Path) -> tuple[str, str]:
        """Fetch it, and make a commit of it."""
        path, limit = folder / "archive", property_of(app, "git", "archive-max-size")
        bound = ["prlimit", f"--fsize={bytes_of(limit + 'b')}"]
        if source != "-" and not (caller.local and Path(source).is_file()):
            download(app, matching("https?://.+", "is no http or https address")(parse_repository(source)), path, bound)
        elif attend([*bound, "dd", f"of={path}", "bs=64k", "status=none", *([] if source == "-" else [f"if={source}"])]):
            raise DokkuError(f"The archive is larger than {limit}", f"dokku git:set {app} archive-max-size   allows more")
        return commit_archive(app, path, f"From {source}", (name, email), strip=True), ""
    take_source(app, "git:from-archive", caller, bring)


def git_from_image(build_dir: str | None, app: str, image: str, name: str, email: str, caller: Caller, load: str = "") -> None:
    """Deploy an image: the commit is a Dockerfile that starts from it, and the files of --build-dir, which only root may name."""
    def bring(folder: Path) -> tuple[str, str]:
        """Make a commit of them."""
        write_text(folder / "own" / property_of(app, "builder-dockerfile", "dockerfile-path").lstrip("/"), f"FROM {image}\n")
        beside = [f"--directory={build_dir}", "."] if build_dir else []
        run(["tar", "--create", "--hard-dereference", f"--file={folder / 'archive'}", *beside, f"--directory={folder / 'own'}", "."])
        return commit_archive(app, folder / "archive", f"From {image}", (name, email), strip=False), ""
    need(caller.local or not build_dir, "--build-dir is a folder of the server, and for root there", error=UsageError)
    if load and (attend([docker_command(), "load"]) or not inspect_image(image)):
        raise DokkuError(f"No image {image} came", f"docker save {image} | ssh dokku@SERVER git:load-image {app} {image}")
    take_source(app, "git:from-image", caller, bring, image=image)


def git_auth(host: str, user: str | None, password: str | None, ask: str = "") -> None:
    """Keep the name and password for what is fetched from a host, or say whether they are kept. What is refused is not said again."""
    given = sys.stdin.readline().strip() if password == "-" else password or ""  # noqa: S105 - it means standard input
    if user and not all(re.fullmatch(r"[!$-~][!-~]*", word) for word in (user, given)):
        raise UsageError('A name comes with a password, both without blanks, and without " or # in front', "write - to send it on standard input")
    entry = f"machine {host} login {user} password {given}" if user else f"machine {host}"
    with server_lock("keys"):
        lines = read_lines(ROOT / ".netrc")
        if not ask:
            kept = [line for line in lines if not line.startswith(f"machine {host} ")]
            write_text(ROOT / ".netrc", "\n".join([*([entry] if user else []), *kept, ""]), secret=True)
        elif not any(f"{line} ".startswith(f"{entry} ") for line in lines):
            raise DokkuError(f"That is not kept for {host}", f"dokku git:auth {host} USER -   keeps it")


def git_allow_host(address: str) -> None:
    """Trust the ssh keys that a host, or HOST:PORT, shows now."""
    host, _, port = address.partition(":")
    found = output_of(["ssh-keyscan", "-T", "20", "-p", str(parse_port(port or "22")), "--", parse_domain(host)], check=False).splitlines()
    keys = need([line for line in found if not line.startswith("#")], f"{address} does not answer by ssh")
    with server_lock("keys"):
        write_lines(ROOT / ".ssh" / "known_hosts", dict.fromkeys([*read_lines(ROOT / ".ssh" / "known_hosts"), *keys]))


def ssh_public(app: str | None = None, about: str | None = None, make: str = "") -> None:
    """Print the public half of an app's ssh key, or with ssh:info its fingerprint; git:public-key is the server's."""
    key = ssh_key_file(app or "--global")
    if make and not key.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "dokku", "-f", str(key)])
    need(key.exists(), "There is no ssh key", "dokku ssh:install APP   or git:generate-deploy-key   makes one")
    say(output_of(["ssh-keygen", *([about] if about else ["-y", "-P", ""]), "-f", str(key)]))


def ssh_install(app: str) -> None:
    """Keep a private ssh key from standard input, for what the app fetches; its builds get it as the secret ssh_key."""
    given = sys.stdin.read(2**16).replace("\r", "").strip() + "\n"
    with locked(app, "ssh:install"), scratch_folder(app_folder(app), "tree.") as folder:
        write_text(folder / "key", given, secret=True)
        if run(["ssh-keygen", "-p", "-P", "", "-N", "", "-f", str(folder / "key")], check=False).returncode:  # brings old ones into today's form
            raise UsageError("That is no private key without a passphrase", f"dokku ssh:install {app} < ~/.ssh/id_ed25519")
        rename_file(folder / "key", ssh_key_file(app))


# --- config ---

def config_get(quoted: bool, app: str, key: str) -> None:
    """Print the value of one config var."""
    config = read_config(app)
    need(key in config, f"{app} has no config var {key}", f"dokku config:keys {app}   lists them")
    say(shlex.quote(config[key]) if quoted else config[key])


def config_export(merged: bool, style: str, app: str, heading: str = "") -> None:
    """Print the config vars in a form that a shell, Docker or a program reads; --format names it."""
    milestone(f"{app} env vars") if heading else None
    config = dict(sorted((merged_config if merged else read_config)(app).items()))
    if style == "pretty":
        return say_table([[f"{key}:", value] for key, value in config.items()])
    text = CONFIG_STYLES[style](config)
    return say(text) if text else None


def config_bundle(merged: bool, app: str) -> None:
    """Write a tar file of the config vars, a file each, to standard output."""
    import io
    import tarfile
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as bundle:
        for key, value in sorted((merged_config if merged else read_config)(app).items()):
            raw = value.encode(errors="surrogateescape")
            member = tarfile.TarInfo(key)
            member.size, member.mode = len(raw), 0o600
            bundle.addfile(member, io.BytesIO(raw))


def config_set(encoded: bool, no_restart: bool, app: str, pairs: list[tuple[str, str]], caller: Caller) -> None:
    """Set config vars and bring the app up with them; when it does not come up, the old ones stay."""
    pairs = [(key, parse_config_value(key, decode_value(key, value))) for key, value in pairs] if encoded else pairs
    change_config(app, lambda config: {**config, **dict(pairs)}, no_restart, caller, "config:set " + " ".join(key for key, _ in pairs))


def config_unset(no_restart: bool, app: str, caller: Caller, purpose: str, keys: Sequence[str] = ()) -> None:
    """Remove config vars, or all, and bring the app up without them."""
    change_config(app, lambda config: {key: value for key, value in config.items() if keys and key not in keys}, no_restart, caller, " ".join([purpose, *keys]))


def config_import(replace: bool, no_restart: bool, style: str, app: str, file: str, caller: Caller) -> None:
    """Set config vars from a file of KEY=VALUE lines or a JSON object; - is standard input; --replace drops all others."""
    given = parse_config_file(read_given(file, caller), style)
    change_config(app, lambda config: {**({} if replace else config), **given}, no_restart, caller, "config:import " + " ".join(sorted(given)))


def read_given(file: str | None, caller: Caller) -> str:
    """Read what a command was given: standard input, or a file of the server when root asks."""
    if file in (None, "-"):
        return sys.stdin.read()
    need(caller.local, "A file of the server can't be named from outside", "send it on standard input, and write - for the file", UsageError)
    need(Path(str(file)).is_file(), f"There is no file {shown(str(file))}")
    return read_text(Path(str(file)))


def change_config(app: str, change: Callable[[dict[str, str]], dict[str, str]], no_restart: bool, caller: Caller, reason: str) -> None:
    """Change a config and keep it, after the app came up with it unless told not to restart. It is read under the lock: nobody's change is lost."""
    if app == "--global":
        with server_lock("config"):
            return write_config(app, change(read_config(app)))
    with locked(app, reason):
        remove_strays(app)
        config = change(read_config(app))
        step(f"{reason} on {app}")
        return write_config(app, config) if no_restart or config == read_config(app) else apply_config(app, config, caller.name, reason)


# --- domains ---

def domains_facts(app: str) -> dict[str, str]:
    """Say under which domains an app is served."""
    server = read_lines(ROOT / "VHOST")
    own = {} if app == "--global" else {"domains-app-enabled": str(not (app_folder(app) / "NO_VHOST").exists()).lower(),
                                        "domains-app-vhosts": " ".join(domains_of(app))}
    return {**own, "domains-global-enabled": str(bool(server)).lower(), "domains-global-vhosts": " ".join(server)}


def changed(old: Sequence[Any], verb: str, words: Sequence[Any]) -> list[Any]:
    """Give a list to which words were added, or that was set to them, or from which they were removed, or which was cleared."""
    return {"add": [*old, *words], "set": [*words], "remove": [word for word in old if word not in words], "clear": []}[verb]


def change_domains(app: str, verb: str, domains: Sequence[str] = ()) -> None:
    """Change an app's domains, or the global ones, and have nginx serve who lives by them; a domain of another app is refused by name."""
    if app == "--global":
        with server_lock("domains"):
            old = read_lines(ROOT / "VHOST")
            wanted = dict.fromkeys(changed(old, verb, domains))
            owners = {domain: name for name in apps() for domain in [*named_domains(name), *redirects_of(name)]}
            for name in [name for name in apps() if not read_lines(app_folder(name) / "DOMAINS")]:
                if clash := next((domain for domain in wanted if domain not in old and owners.get(f"{name}.{domain}", name) != name), ""):
                    raise DokkuError(f"{name}.{clash} belongs to {owners[f'{name}.{clash}']}", f"dokku domains:set {name} NAME   gives {name} another")
            with put_back(write_lines, ROOT / "VHOST", old):
                write_lines(ROOT / "VHOST", wanted)
                for name in [name for name in apps() if not is_by_name(name) and (own_maps(name) or property_of(name, "proxy", "proxy-port"))]:  # what was shared by name is not any more
                    require_ports(name, host_ports(name))
        return each_app(None, True, render_vhost, purpose="domains")
    with locked(app, "domains"), server_lock("domains"):
        for domain in set(domains) - set(named_domains(app)) if verb == "remove" else ():
            warn(f"{app} has no domain {domain}")
        domains = changed(named_domains(app), verb, domains)
        refuse_claimed(app, [*(domains or [f"{app}.{domain}" for domain in read_lines(ROOT / "VHOST")]), *redirects_of(app)])
        if verb == "remove" and not domains and is_by_name(app) and read_lines(ROOT / "VHOST") and not read_lines(app_folder(app) / "DOMAINS"):
            raise DokkuError(f"{app} has no domains other than its name under each global one", f"dokku domains:set {app} NAME   gives it another, domains:disable {app} none")
        with served_with(app, app_folder(app) / "DOMAINS"):
            write_lines(app_folder(app) / "DOMAINS", dict.fromkeys(domains))
        step(f"{app} answers as {' '.join(domains_of(app)) or 'nothing but its port'}")


def refuse_claimed(app: str, domains: Sequence[str]) -> None:
    """Refuse domains that another app has, served or sent elsewhere, or that are among them twice."""
    if twice := [domain for domain in redirects_of(app) if domains.count(domain) > 1]:
        raise DokkuError(f"{twice[0]} is redirected", f"dokku redirect:unset {app} {twice[0]}   ends that")
    new = set(domains) - set(named_domains(app))
    for other in [other for other in apps() if other != app]:
        names = named_domains(other)
        if both := set(domains) & {*names, *redirects_of(other)}:
            raise DokkuError(f"{min(both)} belongs to {other}", f"dokku domains:remove {other} {min(both)}   (or redirect:unset) frees it")
        for domain in sorted(domain for domain in new if not domain.startswith("*.") and covers(names, domain)):
            detail(f"{other} answers for *.{domain.partition('.')[2]}; for {domain} it is {app} from now on")


def change_redirects(app: str, verb: str, source: str = "", target: str = "", code: str = "", domains: Sequence[str] = ()) -> None:
    """Have nginx send a domain's requests to another, or nowhere any more, or those for these domains and no others to the app's first."""
    with locked(app, "redirect"), server_lock("domains"), served_with(app, app_folder(app) / "REDIRECTS"):
        old, own = redirects_of(app), domains_of(app)
        need(verb != "unset" or source in old, f"{app} has no redirect for {source}", f"dokku redirect {app}   lists its redirects")
        rows = {"set": {**old, source: f"{target} {code}"}, "unset": {domain: old[domain] for domain in old if domain != source},
                "only": dict.fromkeys(domains, f"{''.join(own[:1])} 301")}[verb]
        if verb == "set" and re.split("[:/]", target.rpartition("://")[2])[0] in {**old, source: ""}:
            raise DokkuError(f"{target} is itself redirected", f"dokku redirect {app}   lists what is")
        need(own or not rows, f"{app} has no domain", f"dokku domains:add {app} NAME   gives it one")
        if both := set(rows) & set(named_domains(app)):
            raise DokkuError(f"{min(both)} is a domain of {app}", f"dokku domains:remove {app} {min(both)}   first: then it can be redirected")
        write_lines(app_folder(app) / "REDIRECTS", [" ".join(row) for row in rows.items()])
        refuse_claimed(app, [*named_domains(app), *redirects_of(app)])


def redirect_list(app: str) -> list[str]:
    """List the domains that are sent elsewhere, where to and with which status."""
    return [" ".join(row) for row in redirects_of(app).items()]


def change_users(app: str, user: str, password: str | None = None, remove: str = "") -> None:
    """Let somebody in by a password, from standard input unless it is given and kept as SHA-512 crypt (crypt(5)), or in no more."""
    row = [] if remove else [f"{user}:{openssl('passwd', '-6', '-stdin', stdin=secret_word(password or ''))}"]
    with locked(app, "http-auth"):
        old = read_lines(users_file(app))
        kept = [line for line in old if line.partition(":")[0] != user]
        need(not remove or kept != old, f"{app} knows no {user}", f"dokku http-auth:report {app} --http-auth-users   lists whom it knows")
        write_lines(users_file(app), [*kept, *row])


def change_guests(app: str, address: str, verb: str) -> None:
    """Change from which addresses one comes to an app without a password."""
    path = app_folder(app) / "ALLOWED_IPS"
    with locked(app, "http-auth"), served_with(app, path):
        write_lines(path, dict.fromkeys(changed(read_lines(path), verb, address.split())))


def custom_page(app: str, off: str = "") -> None:
    """Take an app's own pages, a tar on standard input, or drop them: the server's own page answers again."""
    given = b"" if off else sys.stdin.buffer.read(PAGES_LIMIT)
    with locked(app, "maintenance"), scratch_folder(app_folder(app), "tree.") as folder:
        if not off:
            unpack = ["tar", "--extract", "--no-same-owner", "--no-same-permissions", f"--directory={make_folder(folder / 'new')}"]
            failed = run(["prlimit", f"--fsize={PAGES_LIMIT}", *unpack], stdin=given, check=False).returncode
            run(["chmod", "-R", "u=rwX,go=rX", str(folder / "new")])
            run(["find", str(folder / "new"), "!", "-type", "f", "!", "-type", "d", "-delete"])  # a link would show what we may read
            if failed or not any((folder / "new" / name).is_file() for name in ("maintenance.html", "502.html")):
                raise UsageError(f"That is no tar of at most {PAGES_LIMIT // 2**20} MiB with a maintenance.html or a 502.html", f"tar c maintenance.html | ssh dokku@SERVER maintenance:custom-page {app}")
        remove(pages_of(app))
        rename_file(folder / "new", pages_of(app)) if not off else None
        render_vhost(app)


def custom_page_export(app: str) -> int:
    """Write an app's own pages to standard output, as a tar."""
    need(pages_of(app).is_dir(), f"{app} has no pages of its own", f"dokku maintenance:custom-page {app} < pages.tar   gives it some")
    return attend(["tar", "--create", f"--directory={pages_of(app)}", "."])


def serve_by(app: str, file: str, off: str = "", user: str | None = None, password: str | None = None) -> None:
    """Note how an app is served: by its names (or NO_VHOST), by nginx (or NO_PROXY), by a page (MAINTENANCE), by password (HTTP_AUTH); and serve it so."""
    def refuse() -> None:
        """Refuse what goes past nginx."""
        if file in ("MAINTENANCE", "HTTP_AUTH") and off and not is_proxied(app):
            raise DokkuError(f"{app} is served without nginx, which would have to do that", f"dokku proxy:enable {app}   puts nginx in front of it")
        if file == "NO_PROXY" and off and (app_folder(app) / "HTTP_AUTH").exists():
            raise DokkuError(f"{app} asks for a password, which only nginx does", f"dokku http-auth:disable {app}   first, if everybody may come")
    path = app_folder(app) / file
    refuse()
    change_users(app, user, password) if user else None
    with locked(app, "proxy"):
        refuse()  # somebody may have changed the other one meanwhile
        with served_with(app, path):
            write_text(path, "") if off else remove(path)
    if file == "NO_PROXY" and off:
        warn(f"{app} answers on {' '.join(urls_of(app))}; each release ends its old web.1 before the new one starts, which leaves a gap")


# --- ports, proxy, nginx ---

def parse_port_word(text: str) -> PortMap:
    """Accept a port map, or a port of the host that stands for the map it has."""
    return parse_port_map(text) if ":" in text else PortMap("", parse_port(text), 0)


def change_ports(app: str, verb: str, caller: Caller, maps: Sequence[PortMap] = ()) -> None:
    """Change an app's port maps, one for each port of the host, and serve it by them."""
    with locked(app, "ports"):
        own = own_maps(app)
        maps = [next((row for row in own if row.host == word.host), word) if not word.scheme else word for word in maps]
        if verb == "remove" and (unknown := [word for word in maps if word not in own]):
            raise DokkuError(f"{app} has no port map {shown(str(unknown[0]).removeprefix(':').removesuffix(':0'))}", f"dokku ports:list {app}   lists them")
        maps = changed(own, verb, maps)
        for row in set(maps) - set(own):
            if row.scheme in ("https", "grpcs") and not certificate_of(app):
                raise DokkuError(f"{row} can't be served: {app} has no certificate", f"dokku certs:add {app} < certificate-and-key.tar")
            need(row.host >= 1024 or row.host in (80, 443) or may(caller, "admin"), error=AccessDenied)
        with served_with(app, app_folder(app) / "PORTS"):
            write_lines(app_folder(app) / "PORTS", map(str, {row.host: row for row in maps}.values()))


def ports_list(app: str) -> None:
    """List an app's port maps: scheme, port of the host, port of the container."""
    rows = need(own_maps(app), "No port mappings configured for app", f"dokku ports:report {app} --ports-map-detected   prints what it is served by")
    heading = [] if os.environ.get("DOKKU_QUIET_OUTPUT") else [["  ", "scheme", "host port", "container port"]]
    step(f"Port mappings for {app}") if heading else None
    say_table([*heading, *(["  ", row.scheme, str(row.host), str(row.container)] for row in rows)])


def work_on(work: str, purpose: str, app: str | None = None, everything: bool | str | None = None, parallel: int = 1, **words: str) -> None:
    """Do some work for one app, or for all, with its lock held unless the row has `purpose=`; what else the table fixes goes to the work."""
    # without an --all it is done for all when none is named
    each_app(app, not app if everything is None else bool(everything), functools.partial(globals()[work], **words), parallel, purpose)


def served_vhost(app: str) -> str:
    """Give the configuration by which nginx serves an app."""
    return read_text(ROOT / "nginx" / f"{app}.conf").rstrip("\n")


def nginx_diff(app: str) -> list[str]:
    """Print what rendering an app's nginx configuration again would change."""
    import difflib
    return [*difflib.unified_diff(read_text(ROOT / "nginx" / f"{app}.conf").splitlines(), vhost_text(app).splitlines(), "served", "on record", lineterm="")]


def nginx_validate_config(clean: bool, app: str | None) -> int:
    """Ask nginx whether it takes the configuration of an app, or each of all; --clean puts those it refuses into quarantine."""
    with server_lock("nginx"):
        refused = quarantine_vhosts(require_app(app) if app else "*", clean)
        reload_nginx() if clean and refused else None
    return 1 if refused and not clean else 0


def nginx_operate(stop: str = "") -> None:
    """Have nginx read its configuration again, or start it; or stop it."""
    with server_lock("nginx"):
        said = output_of(as_root(["/usr/sbin/service", "nginx", "stop"]), check=False) if stop else serve_vhosts()
        need(not stop or not worker_processes(), f"nginx runs on: {said}", "stop it as root: service nginx stop")


def show_log(tail: bool, kind: str = "", app: str = "", lines: int = 100) -> int:
    """Print what nginx logged of an app last, or the events; -t goes on until you leave."""
    path = log_of(app, kind) if app else str(ROOT / "events.log")
    need(not app or os.path.isfile(path), f"nginx keeps no {kind} log of {app}", f"dokku nginx:set {app} {kind}-log-path   keeps one again")
    return attend(["tail", "-n", str(lines), *(["-F"] if tail else []), path])


# --- certificates ---

def certs_facts(app: str) -> dict[str, str]:
    """Say which certificate an app, or the server, has."""
    text = read_text(certificate_file(app))
    said = openssl("x509", "-noout", "-startdate", "-enddate", "-issuer", "-subject", stdin=text) if text else ""
    told = dict(line.partition("=")[::2] for line in said.splitlines())
    return {"ssl-dir": str(certificate_file(app).parent), "ssl-enabled": str(bool(text)).lower(), "ssl-hostnames": " ".join(names_of_certificate(app)),
            **{f"ssl-{name}": told.get(key, "") for name, key in (("expires-at", "notAfter"), ("issuer", "issuer"), ("starts-at", "notBefore"), ("subject", "subject"))},
            "ssl-verified": "" if not text else "self signed" if told["issuer"] == told["subject"] else "by its issuer"}


def keep_certificate(app: str, text: str = "") -> None:
    """Serve an app, or those of the server whose domains it is for, with a certificate from now on; without one for an empty text."""
    path, own, nothing = certificate_file(app), app != "--global", contextlib.nullcontext()
    if text and not own:  # once it is in place, one that nginx refuses would take every app with it into quarantine
        with scratch_folder(Path("/tmp"), "dokku-pem.") as folder, server_lock("nginx"):  # noqa: S108 - a new folder of mkdtemp
            write_text(folder / "pem", text, secret=True)
            test_candidate("_certificate.conf", f"server {{ listen 443 ssl; ssl_certificate {folder}/pem; ssl_certificate_key {folder}/pem; }}\n")
            remove(ROOT / "nginx" / "candidate" / "_certificate.conf")
    with locked(app, "certs") if own else nothing, served_with(app, path) if own else nothing:
        write_text(path, text, secret=True) if text else remove(path)
    each_app(None, True, render_vhost, purpose="certs") if not own else None
    for domain in domains_of(app) if own and text else ():
        if not covers(names_of_certificate(app), domain):
            warn(f"The certificate is not for {domain}, which {app} answers to: browsers will refuse it there")


def own_certificate(app: str, text: str = "") -> None:
    """Serve an app with a certificate of its owner's from now on, or without one; an authority that certified it renews nothing any more."""
    keep_certificate(app, text)
    if acme_folder(app).is_dir():  # not before: what nginx refuses changes nothing
        remove(acme_folder(app))
        under_lock("certs", render_vhost, app)
    render_crontab()


def certs_add(app: str, crt: str | None, key: str | None, caller: Caller, update: str = "") -> None:
    """Serve an app by https: two files of root's, or on standard input a tar of them, or certificate and key one after the other."""
    import io
    import tarfile
    need(not update or certificate_file(app).exists(), f"{app} has no certificate", f"dokku certs:add {app}   gives it one")
    if crt:
        text = read_given(crt, caller) + "\n" + read_given(key, caller)
    else:
        raw = sys.stdin.buffer.read(2**20)
        with contextlib.suppress(Exception), tarfile.open(fileobj=io.BytesIO(raw)) as bundle:  # each way to pack it has errors of its own
            raw = b"\n".join(file.read(2**18) for member in bundle if member.isfile() and (file := bundle.extractfile(member)))
        text = raw.decode(errors="replace")
    own_certificate(app, checked_certificate(text))
    step("Certificate installed")


def certs_generate(app: str, domain: str | None) -> None:
    """Make a key and a certificate that it signs itself, for a domain or all of the app's, and print a request for an authority."""
    names = [domain] if domain else domains_of(app)
    text, request = self_signed(need(names, f"{app} has no domain", f"dokku domains:add {app} NAME   gives it one"))
    own_certificate(app, text)
    say(request)


def certs_show(app: str, part: str | None) -> None:
    """Print the certificate of an app with its chain, or its key."""
    text = need(read_text(certificate_file(app)), f"{app} has no certificate", f"dokku certs:add {app}   gives it one")
    say_lines([PRIVATE_KEY.search(text)[0]] if part == "key" else CERTIFICATE.findall(text))


def ssl_certificate(app: str) -> None:
    """Take a certificate, or a key, from standard input; the other half is that which the app has. Both may come at once."""
    given, old = sys.stdin.read(2**20), read_text(certificate_file(app))
    own_certificate(app, checked_certificate(given if PRIVATE_KEY.search(given) and CERTIFICATE.search(given) else f"{given}\n{old}"))


# --- letsencrypt: certificates of an authority that speaks ACME (RFC 8555), by lego ---

def lego(app: str, domains: Sequence[str], *words: str) -> None:
    """Have lego work for an app; it answers challenges by files that nginx serves. Raises DokkuError with what the authority said."""
    if not (email := property_of(app, "letsencrypt", "email").replace("/", "")):  # lego makes a folder of that name
        raise DokkuError("No mail address is set", f"dokku letsencrypt:set {app} email you@example.com   (or --global) sets the one that the authority may write to")
    server = property_of(app, "letsencrypt", "server")
    provider, secrets = property_of(app, "letsencrypt", "dns-provider"), {**dns_secrets("--global"), **dns_secrets(app)}
    way = ["--dns", provider, *(["--dns.disable-cp"] if property_of(app, "letsencrypt", "dns-propagation") == "skip" else [])] if provider else [
        "--http", "--http.webroot", str(ROOT / "acme" / "webroot")]
    argv = ["lego", "--accept-tos", "--email", email, "--server", AUTHORITIES.get(server, server), "--path", str(acme_folder(app)), *way,
            *(word for domain in domains for word in ("--domains", domain)), *words]
    try:
        stream(argv, env={**os.environ, **secrets})
    except ToolFailed as error:
        last = (error.output.strip().splitlines() or ["lego ended without a word"])[-1]
        raise DokkuError(f"No certificate was issued: {last}", f"what serves {app} stays as it was") from None


def dns_secrets(app: str) -> dict[str, str]:
    """Read what lego must know of a DNS provider, as `letsencrypt:set APP dns-provider-NAME` gave it."""
    return parse_environment(read_text(property_file(app, "letsencrypt", "dns")))


def require_reachable(domain: str) -> None:
    """Refuse a domain under which this server is not reached from itself: an authority would not find it either, and counts failures."""
    path = make_folder(ROOT / "acme" / "webroot" / ".well-known" / "acme-challenge") / f"dokku-{os.getpid()}"
    write_text(path, token := os.urandom(16).hex())
    try:
        if (done := run(["curl", "-sS", "--max-time", "10", f"http://{domain}/.well-known/acme-challenge/{path.name}"], check=False)).stdout.decode(errors="replace") != token:
            raise DokkuError(f"http://{domain} does not reach this server: {done.stderr.decode(errors='replace').strip() or 'another one answers'}", "fix its DNS record or the route to port 80; --force skips this test if only the server itself can't reach its public address")
    finally:
        remove(path)


def letsencrypt_enable(force: bool, everything: bool, app: str | None) -> None:
    """Get or renew the certificate of an app or, where one's trouble keeps no other from its renewal, of each that has one."""
    def one(name: str) -> None:
        """Ask for one app; of two who ask at once the second waits, and finds that none is needed."""
        with server_lock(f"acme.{name}"):
            certify(name, force) if app or acme_folder(name).is_dir() else None
    each_app(app, not app, one)


def certify(app: str, force: bool) -> None:
    """Get or renew the certificate of an app."""
    domains, by_dns = [*domains_of(app), *redirects_of(app)], property_of(app, "letsencrypt", "dns-provider")
    if not domains or (any("*" in domain for domain in domains) and not by_dns):
        raise DokkuError(f"{app} has no domain" if not domains else "A wildcard is certified by DNS only: name the provider, as lego does, and what it must know",
                         f"dokku domains:set {app} NAME   gives it others" if not domains else f"dokku letsencrypt:set {app} dns-provider NAME, then dns-provider-VARIABLE VALUE")
    fresh = not acme_folder(app).is_dir()
    make_folder(acme_folder(app), 0o700)
    with put_back(lambda: (remove(acme_folder(app)), under_lock("letsencrypt", render_vhost, app)) if fresh else None):
        under_lock("letsencrypt", render_vhost, app)
        made = acme_folder(app) / "certificates" / f"{domains[0].replace('*', '_')}.crt"
        renews = made.exists() and set(names_of_certificate(app)) == set(domains)
        if renews and not force and not ends_within(made, property_of(app, "letsencrypt", "graceperiod")):
            return detail(f"{app} has a certificate that needs no renewal")
        for domain in domains if not renews and not force and not by_dns else ():
            require_reachable(domain)
        lego(app, domains, "run")
        keep_certificate(app, checked_certificate(read_text(made) + read_text(made.with_suffix(".key"))))
    render_crontab()
    return milestone(f"{app} answers by https: {', '.join(domains)}")


def require_certified(app: str) -> str:
    """Refuse an app that no authority certifies; for others give what letsencrypt:active prints."""
    need(acme_folder(app).is_dir(), f"{app} has no certificate of an authority", f"dokku letsencrypt:enable {app}   gets one")
    return "true"


def letsencrypt_disable(app: str, revoke: str = "") -> None:
    """Serve an app without the authority's certificate again, revoked if asked for, and renew it no more."""
    require_certified(app)
    lego(app, domains_of(app)[:1], "revoke") if revoke else None
    own_certificate(app)


def certs_doctor(app: str | None, caller: Caller) -> list[dict[str, str]]:
    """Say of each domain, of one app or all: its addresses, whether it leads here, what its certificate is worth, and who renews it."""
    return [examine_domain(name, domain) for name in ([app] if app else visible_apps(caller)) for domain in [*domains_of(name), *redirects_of(name)]]


def examine_domain(app: str, domain: str) -> dict[str, str]:
    """Look at one domain of an app."""
    import socket
    file, leads, found = certificate_of(app), "yes", []
    with contextlib.suppress(OSError):
        found = sorted({row[4][0] for row in socket.getaddrinfo(domain.replace("*", "any"), None)})
    try:
        require_reachable(domain.replace("*", "any"))
    except DokkuError as error:
        leads = f"no: {error.message.partition(' this server: ')[2]}"
    names = names_of_certificate("--global" if file == certificate_file("--global") else app)
    worth = "none" if not file else "for other names" if not covers(names, domain) else openssl("x509", "-noout", "-enddate", stdin=read_text(file)).replace("notAfter=", "ends ")
    return {"app": app, "domain": domain, "addresses": " ".join(found) or "none", "leads here": leads, "certificate": worth,
            "renewed": "by cron, once a day" if acme_folder(app).is_dir() and not (ROOT / "acme" / "NO_CRON").exists() else "by nobody"}


def letsencrypt_cleanup(app: str) -> None:
    """Remove what lego keeps of certificates that are no more."""
    require_certified(app)
    remove(acme_folder(app) / "archives")


def letsencrypt_list() -> list[str]:
    """List the apps that an authority certifies, and when their certificates end."""
    return [f"{app} {certs_facts(app)['ssl-expires-at']}" for app in apps() if acme_folder(app).is_dir()]


def letsencrypt_cron_job(add: bool, off: bool) -> None:
    """Have cron renew certificates once a day, or not; it does from the first on."""
    need(add != off, "Say --add or --remove", error=UsageError)
    remove(ROOT / "acme" / "NO_CRON") if add else write_text(ROOT / "acme" / "NO_CRON", "")
    render_crontab()


# --- processes, releases, logs ---

def ps_facts(app: str) -> dict[str, str]:
    """Say which processes of an app run."""
    current, found = read_current(app), sorted(containers_of(app), key=lambda row: row.dyno)
    live = [row for row in found if current and current.has(row)]
    running = "false" if not any(row.running for row in live) else "true" if all(row.running for row in live) else "mixed"
    return {"deployed": str(bool(current)).lower(), "processes": str(len(live)), "ps-can-scale": "true", "running": running,
            "restore": property_of(app, "ps", "restore"), **{f"status-{row.dyno.replace('.', '-')}": f"{row.state} (CID: {row.id[:11]})" for row in live}}


def ps_scale(skip_deploy: bool, style: str, app: str, counts: list[tuple[str, int]]) -> None:
    """Print how many of each process type run, or set it; --skip-deploy only writes it down."""
    current = read_current(app)
    if not counts:
        wanted, stopped = scale_of(app, current) if current else read_scale(app), read_lines(app_folder(app) / "STOPPED_TYPES")
        rows = [[f"{kind}:", str(count), "(stopped)" if kind in stopped else ""] for kind, count in sorted(wanted.items())]
        return say_json(wanted) if style == "json" else say_table(rows or [[""]])
    for kind in [kind for kind, count in counts if count and current and kind not in scale_of(app, current)]:
        warn(f"{app} has no process type {kind} yet; a Procfile may name it")
    return change_processes(app, "ps:scale", app_folder(app) / "SCALE", lambda lines: [
        f"{kind}={count}" for kind, count in sorted({**dict(map(parse_scale, lines)), **dict(counts)}.items())], skip_deploy)


def change_processes(app: str, purpose: str, path: Path, change: Callable[[list[str]], list[str]], skip_deploy: bool = False) -> None:
    """Change what decides which processes run, and have them run; what could not be started is not kept."""
    with locked(app, purpose):
        remove_strays(app)
        old, current = read_lines(path), read_current(app)
        write_lines(path, change(old))
        with put_back(lambda: (write_lines(path, old), quietly(remove_strays, app))):  # throw_away spares what bears the live incarnation
            return switch_to(current) if current and not is_stopped(app) and not skip_deploy else None


def each_app(app: str | None, everything: bool, work: Callable[[str], Any], parallel: int = 1, purpose: str = "") -> None:
    """Do work for one app, or for all with --all, under its lock for a purpose; one app's failure does not keep it from the others."""
    need(bool(app) != everything, "Name one app, or give --all", error=UsageError)
    work = functools.partial(under_lock, purpose, work) if purpose else work
    if app:
        return work(require_app(app))

    def apart(name: str) -> None:
        """Do it for one app, with a connection of its own to the engine; one that was destroyed meanwhile needs nothing."""
        engine.cache_clear()
        try:
            work(name)
        except NoSuchApp:
            if app_exists(name):
                raise
    if failed := in_parallel(apps(), apart, parallel):
        raise DokkuError(f"Failed for: {', '.join(failed)}")


def each_apart(works: Iterable[Callable[[], Any]]) -> None:
    """Do all of these; the trouble of one is told, and keeps it from none of the others."""
    for work in works:
        try:
            work()
        except Cancelled:
            raise
        except Exception as error:
            warn(f"Something could not be mended: {error}")


def under_lock(purpose: str, work: Callable[[str], Any], app: str) -> None:
    """Do work for an app with its lock held, from a clean state."""
    with locked(app, purpose):
        remove_strays(app)
        work(app)


def ps_restart(everything: bool, parallel: int, app: str | None, process: str | None) -> None:
    """Replace an app's processes, or its web ones, by new ones; of another type, restart the containers themselves, one after the other."""
    if process in (None, "web"):
        return each_app(app, everything, functools.partial(restart, process=process or ""), parallel, "ps:restart")
    need(not everything, "A process type can be restarted for one app only", "leave --all out", UsageError)
    with locked(str(app), "ps:restart"):  # an app stands before its process type
        need(not is_stopped(str(app)), f"{app} is stopped; a single process type can't be started", f"dokku ps:start {app}   starts it")
        for container in [row for row in require_processes(str(app), process) if row.id not in retiring(str(app))]:
            restart_container(container.id, int(property_of(container.app, "ps", "stop-timeout-seconds")))


def require_processes(app: str, process: str | None) -> list[Container]:
    """List the app's containers of a process type, of one process, or all. Raises DokkuError when there is none."""
    found = need(select_processes(app, process), f"{app} has no process {process or ''}".rstrip(), f"dokku ps:report {app}   shows what runs")
    return sorted(found, key=lambda row: row.dyno)


def stop_or_start(everything: bool, parallel: int, app: str | None, process: str | None, purpose: str, stop: str = "") -> None:
    """Stop an app or, over deploys too, one of its process types, or start it again; what runs is left alone."""
    if not process:
        return each_app(app, everything, stop_app if stop else start_app, parallel, purpose)
    app = str(app)  # it stands before the process type
    if process not in (known := scale_of(app, read_current(app) or Release(app, 0))):
        raise DokkuError(f"{app} has no process type {process}", f"it has: {', '.join(sorted(known))}")
    need(stop or not is_stopped(app), f"{app} is stopped; a single process type can't be started", f"dokku ps:start {app}   starts it")
    return change_processes(app, purpose, app_folder(app) / "STOPPED_TYPES",
                            lambda kinds: [*(kind for kind in kinds if kind != process), *([process] if stop else [])])


def rebuild(caller: Caller, app: str | None = None, everything: bool | str = False, parallel: int = 1, ref: str | None = None, anew: str = "") -> None:
    """Build and deploy a commit of the repository again, of one app or all."""
    def rebuild_one(name: str) -> None:
        """Deploy what the ref names; without one, the deploy branch."""
        branch = property_of(name, "git", "deploy-branch")
        commit = ref_of(name, f"{ref or (branch and f'refs/heads/{branch}') or 'HEAD'}^{{commit}}")
        need(commit != ZERO, f"{name} has no commit {ref or branch}".rstrip() + " yet", f"git push dokku@SERVER:{name} main   sends one")
        deploy(name, commit, caller.name, "rebuild", bool(anew))
    each_app(app, bool(everything), rebuild_one, parallel, "ps:rebuild")


def status(app: str | None, caller: Caller) -> list[dict[str, str]]:
    """Say of an app, or of all, whether it runs."""
    rows = [(name, ps_facts(name)) for name in ([app] if app else visible_apps(caller))]
    said = {"true": "running", "mixed": "partly running", "false": "not running"}
    return [{"app": name, "status": said[facts["running"]] if facts["deployed"] == "true" else "not deployed"} for name, facts in rows]


def top(app: str, words: list[str], caller: Caller) -> None:
    """Print the processes inside an app's containers, as ps on the host sees them; further words go to ps."""
    need(not words or may(caller, "secrets", app), error=AccessDenied)  # ps can print the environment of a process
    for container in [row for row in require_processes(app, None) if row.running]:
        milestone(container.dyno)
        say(output_of([docker_command(), "top", container.id, *words]))


def ps_restore(app: str | None) -> None:
    """Make Docker and nginx agree with what is on record, for one app or all."""
    each_app(app, not app, converge, CONVERGE_AT_ONCE)


def ps_inspect(app: str) -> None:
    """Print what Docker knows of an app's containers, as JSON, with the values of config vars left out."""
    found = [facts for row in containers_of(app) if (facts := inspect_container(row.id))]
    for facts in found:
        facts["Config"]["Env"] = [f"{word.partition('=')[0]}=***" for word in facts["Config"]["Env"]]
    say(json.dumps(found, indent=2))


def releases(kind: str | None, status: str | None, app: str) -> list[dict[str, str]]:
    """List the releases of an app, newest first: every push, rebuild, change of config and rollback, whatever became of it."""
    current = read_current(app)
    rows = [(number, read_release(app, number) or Release(app, number), release_status(app, number, current)) for number in reversed(release_numbers(app))]
    return [{"release": row.name, "at": row.at, "by": row.by, "commit": row.commit[:7], "reason": row.reason, "status": became} for _, row, became in rows
            if (not kind or row.reason.startswith(kind)) and (not status or became.startswith(status))]


def releases_info(app: str, number: int) -> dict[str, str]:
    """Print what is on record of one release; config by its names only."""
    release = need(read_release(app, number), f"{app} has no release v{number}", f"dokku releases {app}   lists them")
    return {"release": release.name, "status": release_status(app, number, read_current(app)), "by": release.by, "at": release.at, "reason": release.reason,
            "commit": release.commit, "image": release.image, "config": " ".join(sorted(release_config(release))),
            **{f"process {kind}": words for kind, words in sorted(release.procfile.items())}}


def rollback_command(app: str, word: str | None, caller: Caller) -> None:
    """Go back to an earlier release, or to a tag of tag:add: its image and its config, without a build."""
    number = (read_tags(app).get(word) or parse_release_name(word)) if word else None
    with locked(app, "rollback"):
        remove_strays(app)
        current = read_current(app)
        earlier = [other for other in release_numbers(app) if current and other < current.number and release_status(app, other, current) == "replaced"]
        need(earlier or number is not None, f"{app} has no earlier release", f"dokku releases {app}   lists them")
        target = earlier[-1] if number is None else number
        rollback(app, target, caller.name)
        milestone(f"Rolled back to v{target}, as {require_current(app).name}")


# --- builds ---

def builds_output(app: str, word: str | None) -> int:
    """Print the log of a release, by default the last; `current` follows the one that is being made until it ends."""
    numbers = need(release_numbers(app), f"{app} was never deployed", f"git push dokku@SERVER:{app} main   deploys it")
    number = numbers[-1] if word in (None, "current") else parse_release_name(word)
    log = release_folder(app, number) / "build.log"
    need(log.exists(), f"{app} has no log of v{number}", f"dokku releases {app}   lists what there is")
    pid = lock_holder(app) if word == "current" else 0
    return attend(["tail", "--lines=+1", "--follow", f"--pid={pid}", str(log)]) if pid else say(read_text(log).rstrip("\n")) or 0


def lock_holder(app: str) -> int:
    """Give the id of the process that is changing an app right now; 0 when none is."""
    path = app_folder(app) / "lock"
    if is_locked(path) and (found := re.search(r"\(process (\d+)\)", read_text(path))):
        process = Path("/proc") / found[1]
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the words outlive the lock, and another may have the number
            try:
                holds = any(os.path.realpath(link) == str(path.resolve()) for link in (process / "fd").iterdir())
            except PermissionError:  # one of ours that gave up root shows its files to root alone (proc(5), PR_SET_DUMPABLE)
                holds = process.stat().st_uid == os.geteuid() and "dokku" in read_text(process / "cmdline")
            return int(found[1]) if holds else 0
    return 0


def builds_cancel(app: str) -> None:
    """Break off the deploy of an app that is going on; what runs goes on running. Past the switch it is too late."""
    if not (pid := lock_holder(app)) or re.match("apps:|automatic|converge", read_text(app_folder(app) / "lock")):
        raise DokkuError(f"Nothing is being changed in {app}, or nothing that can be cancelled")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    step(f"Asked to stop: {read_text(app_folder(app) / 'lock').strip()}")


def clean_up(app: str) -> None:
    """Remove the old images of an app, its one-offs that ended, and what killed commands left."""
    for container in [row for row in one_offs(app) if row.state in ("exited", "dead")]:  # one that is just made does not run yet
        remove_container(container.id)
    keep_images(app)  # only now: an image that a container uses keeps its name
    drop_images(app, 0)


def repo_gc(app: str) -> None:
    """Have git pack an app's repository anew."""
    with locked(app, "repo:gc"):
        git(app, "gc", "--quiet")


def repo_purge_cache(app: str) -> None:
    """Have the next build of an app use nothing that was cached."""
    for note in ("PURGED", "CACHE"):  # the first until a build went well; the second names the caches of packages from now on
        write_text(app_folder(app) / note, f"{time.time_ns()}\n")


# --- cron ---

def require_job(app: str, identity: str) -> Job:
    """Find a cron job of the release that runs."""
    return need(jobs_of(require_app(app)).get(identity), f"{app} has no cron job {shown(identity)}", f"dokku cron:list {app}   lists them")


def cron_list(style: str, app: str) -> None:
    """List the cron jobs of an app."""
    suspended = read_lines(app_folder(app) / "CRON_SUSPENDED")
    rows = [{"id": job.id, "schedule": job.schedule, "command": job.command, "concurrency": job.concurrency, "suspended": str(job.maintenance or job.id in suspended).lower(),
             "last-run": read_text(app_folder(app) / "cron" / job.id).strip()} for job in jobs_of(app).values()]
    if style == "json":
        return say_json(rows)
    return say_table([["ID", "Schedule", "Command", "Concurrency", "Suspended", "Last run"], *(list(row.values()) for row in rows)])


def cron_run(detach: bool, seconds: int, app: str, id: str) -> int:
    """Run a cron job of an app now; cron itself calls this. The last containers stay until their time is up, for run:logs."""
    job = require_job(app, id)
    runs = sorted((row for row in containers_of(app, "cron") if row.dyno == f"cron.{id}"), key=lambda row: row.created)
    for container in [row for row in runs if row.state == "exited"][:-CRON_RUNS_KEPT]:
        remove_container(container.id)
    going = [row for row in runs if row.running]
    if going and job.concurrency == "forbid":
        raise DokkuError(f"{going[0].name} still runs, and the job's concurrency policy is forbid",
                         f"dokku run:stop --container {going[0].name}   ends it", os.EX_TEMPFAIL)
    for container in going if job.concurrency == "replace" else []:
        stop_container(container.id, int(property_of(app, "ps", "stop-timeout-seconds")))
    write_text(make_folder(app_folder(require_app(app)) / "cron") / id, f"{now()}\n")
    name = create_one_off(app, {}, shell_command(app, job.command), seconds, kind="cron", dyno=f"cron.{id}")
    return (start_container(name) or say(name) or 0) if detach else attend([docker_command(), "start", "--attach", name])


def change_suspended(app: str, id: str, verb: str) -> None:
    """Keep a cron job from running, or let it run again."""
    job = require_job(app, id)
    need(verb == "add" or not job.maintenance, f"app.json pauses {id}", 'take "maintenance": true out of it, and push')
    with locked(app, "cron"):
        write_lines(app_folder(app) / "CRON_SUSPENDED", dict.fromkeys(changed(read_lines(app_folder(app) / "CRON_SUSPENDED"), verb, [id])))
    render_crontab()


# --- checks ---

def checks_facts(app: str) -> dict[str, str]:
    """Say for which process types checks are off."""
    modes = read_check_modes(app)
    return {f"checks-{mode}-list": ",".join(kind for kind, other in modes.items() if other == mode) or "none" for mode in ("disabled", "skipped")}


def change_check_modes(app: str, types: list[str], mode: str) -> None:
    """Keep whether the checks of some process types, or of all, are on, skipped or off."""
    with locked(app, "checks"):
        modes = {**(read_check_modes(app) if types else {}), **dict.fromkeys(types or ["_all_"], mode)}
        rest = modes.get("_all_", "enabled")
        write_lines(app_folder(app) / "CHECKS_OFF", [f"{kind} {other}" for kind, other in modes.items() if other != (rest if kind != "_all_" else "enabled")])
    step(f"Checks {mode} for {', '.join(types) or 'every process type'} of {app}, from the next deploy on")


def preboot_status(app: str) -> str:
    """Say whether the old web processes serve until the new ones do."""
    return "disabled" if check_mode(app, "web") == "disabled" else "enabled"


def checks_run(app: str, types: list[str]) -> None:
    """Ask the checks of the processes that run."""
    current = read_current(app)
    for container in [row for kind in types or [None] for row in require_processes(app, kind) if current and current.has(row)]:
        wait_until_healthy(current, container, inspect_container(container.id).get("RestartCount", 0))  # that it crashed once is no trouble
        step(f"{container.dyno} is healthy")


# --- resources ---

def change_resources(kind: str, app: str, process: str | None, clear: str = "", **amounts: str | None) -> None:
    """Set the amounts of cpu and memory of a process type, or of all, from the next deploy or restart on; without amounts, print them."""
    given = {name.replace("_", "-"): amount for name, amount in amounts.items() if amount}
    if not given and not clear:
        return say_report("resource", app, "", "text")
    for name in set(given) & set(WITHOUT_EFFECT):
        warn(f"{name} is kept, and has no effect with this scheduler")
    new = {(kind, process or "_default_", name): amount for name, amount in given.items()}
    with locked(app, "resource"):
        kept = {key: amount for key, amount in read_resources(app).items() if not clear or key[0] != kind or process not in (None, key[1])}
        write_lines(app_folder(app) / "RESOURCES", [" ".join([*key, amount]) for key, amount in sorted({**kept, **new}.items())])
    return step(f"Kept; dokku ps:restart {app}   makes it take effect now")


def resource_facts(app: str) -> dict[str, str]:
    """Say what every process type may use."""
    rows = read_resources(app)
    kinds = sorted({process for _, process, _ in rows} | {"_default_"})
    return {f"resource-{process}.{kind}.{name}": rows.get((kind, process, name), "") for process in kinds for kind in ("limit", "reserve") for name in RESOURCES}


# --- storage: folders that outlive releases and apps, and that several apps may share ---

def parse_mount(text: str) -> Mount:
    """Accept NAME, /container, or /host:/container with :ro behind; a folder of data/storage stands for its entry."""
    host, colon, rest = text.removeprefix(f"{storage_folder()}/").partition(":")
    if "/" in host and text.startswith("/"):  # deeper than an entry: a path as any other
        host = text.partition(":")[0]
    target, _, mode = rest.partition(":")
    if not colon and host.startswith("/"):
        return Mount("", "", parse_folder(host))
    source = parser_named("folder" if host.startswith("/") else "entry")(host)
    return Mount(source, source, parse_folder(target) if colon else "-", mode=one_of("ro", "rw")(mode or "rw"))


def users_of(name: str) -> list[str]:
    """List the apps that mount an entry."""
    return [app for app in apps() if name in (row.entry for row in mounts_of(app))]


def read_entry(name: str, caller: Caller, capability: str = "configure") -> list[Mount]:
    """Give the folders of an entry to a caller who may use it; paths elsewhere on the host are for administrators. Raises AccessDenied, then DokkuError."""
    rows = [Mount(name, name)] if "/" in name else read_mounts(storage_folder(f"{name}.entry"))
    need(any(may(caller, capability, app) for app in ["", *users_of(name)]), error=AccessDenied)
    need(may(caller, "admin") or not any("/" in row.source for row in rows), error=AccessDenied)
    return need(rows, f"There is no storage {name}", "dokku storage:list-entries   lists what there is")


def storage_create(owner: str, name: str, folders: list[Mount] | None, caller: Caller) -> None:
    """Make storage that apps can mount: a folder of data/storage or, for administrators, a path of the host. One that is there is kept."""
    rows = [Mount(name, row.source or f"{name}.{number}".removesuffix(".0"), row.target) for number, row in enumerate(folders or [Mount("", "")])]
    need(may(caller, "admin") or not any("/" in row.source for row in rows), error=AccessDenied)
    known = read_entry(name, caller) if storage_folder(f"{name}.entry").exists() else rows
    need(not folders or known == rows, f"{name} is there already, with other folders", f"dokku storage:info {name}   shows it")
    for folder in [storage_folder(row.source) for row in known]:
        step(f"Ensuring {folder} exists")
        if folder.parent == storage_folder():
            make_folder(folder)
            run(in_folder(folder, ["chown", "-R", "{0}:{0}".format(OWNERS.get(owner, owner)), "."])) if owner != "false" else None  # only root may
    write_lines(storage_folder(f"{name}.entry"), map(" ".join, known))
    detail("Directory ready for mounting")


def storage_destroy(force: bool, wipe: bool, name: str, caller: Caller) -> None:
    """Forget storage that no app mounts; its data stays for the next of that name, but for --destroy-host-dir --force. A path of the host is always kept."""
    rows, users = read_entry(name, caller), users_of(name)
    own = [row.source for row in rows if wipe and "/" not in row.source]
    if users or (own and not force):
        raise DokkuError(f"{name} is mounted by {', '.join(users)}" if users else f"That removes the data of {name}: add --force when you mean it")
    run(in_folder(storage_folder(), ["rm", "-rf", "--", *own])) if own else None
    remove(storage_folder(f"{name}.entry"))
    say_lines(f"       The data in {storage_folder(row.source)} is {'gone' if row.source in own else 'kept'}" for row in rows)


def describe_entry(name: str) -> dict[str, str]:
    """Say what is on record of an entry, and which apps mount it."""
    sources, targets = zip(*((str(storage_folder(row.source)), row.target) for row in read_mounts(storage_folder(f"{name}.entry"))))
    return {"name": name, "path": " ".join(sources), "container-dir": " ".join(targets), "apps": " ".join(users_of(name))}


def storage_info(name: str, caller: Caller, users: str = "") -> dict[str, str] | list[str]:
    """Print where storage is, which apps mount it, and where when nobody says otherwise."""
    found = describe_entry(read_entry(name, caller, "view")[0].entry)
    return found["apps"].split() if users else found


def storage_list_entries(scheduler: str | None, style: str) -> None:
    """List the storage of this server."""
    names = sorted(path.stem for path in storage_folder().glob("*.entry"))
    say_json([describe_entry(name) for name in names]) if style == "json" else say_lines(names)


def storage_exec(name: str, words: list[str], caller: Caller) -> int:
    """Run a command, or a shell, as root in a short container that sees an entry's first folder as /data."""
    own = (words[1:] if words[:1] == ["--"] else words) or ["bash"]
    return attend(in_folder(storage_folder(read_entry(name, caller)[0].source), own, "--interactive", *(["--tty"] if sys.stdin.isatty() else [])))


def storage_facts(app: str) -> dict[str, str]:
    """Say which folders an app's containers see, by phase, as docker's -v has it."""
    binds = [(f"-v {storage_folder(row.source)}:{row.target}{':ro' if row.mode == 'ro' else ''}", row.phases) for row in mounts_of(app)]
    return {f"storage-{phase}-mounts": " ".join(bind for bind, phases in binds if phase in phases) for phase in PHASES}


def storage_list(style: str, app: str) -> None:
    """List the folders that an app's containers see."""
    if style == "json":
        return say_json([{"host_path": str(storage_folder(row.source)), "container_path": row.target, "volume_options": row.mode} for row in mounts_of(app)])
    milestone(f"{app} volume bind-mounts:")
    return say_lines(f"       {word}" for word in dict.fromkeys(" ".join(storage_facts(app).values()).split()) if word != "-v")


def change_mounts(app: str, change: Callable[[list[Mount]], list[Mount]]) -> None:
    """Keep the mounts of an app as changed; one that would hide another is refused, and what Docker can't read, in Docker's words."""
    with locked(require_app(app), "storage"):
        old, new = mounts_of(app), change(mounts_of(app))
        seen = [(row.target, phase) for row in new for phase in row.phases.split(",")]
        if new == old or len(seen) > len(set(seen)):
            raise DokkuError(f"Mount path {'does not exist' if new == old else 'already exists'}.", f"dokku storage:list {app}   shows what is mounted")
        for row in new[len(old):]:
            translate_options((f"--mount=type=bind,src={storage_folder(row.source)},dst={row.target}",))
        write_lines(app_folder(app) / "MOUNTS", map(" ".join, new))
    step(f"Kept; dokku ps:restart {app}   makes it take effect now")


def storage_mount(target: str | None, readonly: bool, phases: str, app: str, what: Mount, caller: Caller) -> None:
    """Have an app's containers see storage from the next deploy or restart on: NAME --container-dir PATH or, for administrators, /host:/container."""
    need(what.entry, "Name what is mounted", f"for example  dokku storage:mount {app} NAME:/app/uploads", UsageError)
    rows, place = read_entry(what.entry, caller), (target or what.target).removeprefix("-")
    wanted = [row._replace(target=place or row.target, phases=phases, mode="ro" if readonly else what.mode) for row in rows]
    if "-" in (row.target for row in wanted) or (place and len(rows) > 1):
        raise UsageError("Say where containers see it, one path for one folder", "write for example  --container-dir /app/uploads")
    change_mounts(app, lambda old: [*old, *wanted])


def storage_unmount(target: str | None, app: str, what: Mount) -> None:
    """Hide storage from an app, from the next deploy or restart on; its data is kept."""
    change_mounts(app, lambda old: [row for row in old if row.entry != (what.entry or row.entry) or (target or what.target) not in ("-", row.target)])


def storage_set(name: str, key: str, value: str | None, caller: Caller) -> None:
    """Change storage: chown gives its files to a user, container-dir is where containers see it when nobody says otherwise."""
    rows = read_entry(name, caller)
    if key == "chown":
        return storage_create(parse_owner(value or "false"), name, None, caller)
    return write_lines(storage_folder(f"{name}.entry"), map(" ".join, [rows[0]._replace(target=parse_folder(value) if value else "-"), *rows[1:]]))


def storage_migrate(dry: bool, app: str | None, caller: Caller) -> None:
    """Turn what docker-options mount (-v, --volume) into mounts of storage, of one app or all; --dry-run only says what."""
    for name, phase, option in [(name, *row) for name in ([require_app(app)] if app else apps()) for row in read_docker_options(name)]:
        if not (found := re.fullmatch(r"(?:-v|--volume)[ =](/[^ :]+:/[^ ]+)", option)) or phase not in PHASES[1:]:
            continue
        detail(f"{name} {phase}: {option}")
        what = parse_mount(re.sub(":[zZ]$", "", found[1]))
        if not dry:
            storage_create("false", what.entry, None, caller) if "/" not in what.entry else None
            storage_mount(None, False, phase, name, what, caller)
            change_docker_options(name, "remove", None, caller, [phase], shlex.split(option))


# --- services ---

SERVICE_NETWORKS = ("initial-network", "post-create-network", "post-start-network")


def chosen_image(kind: Engine, given: Mapping[str, Any], service: Service | None = None) -> dict[str, Any]:
    """Give the changes that the flags of create, clone and upgrade ask for; the image is fetched or built when it is missing. Raises DokkuError."""
    if kind.seed and "appendonly" in (given.get("options") or "").lower():
        raise UsageError("With appendonly, the server would not read what import, clone and restore put in place", "the data is saved once a minute as it is")
    kept = {key: value for key, value in given.items() if value is not None and key in Service._fields and key != "image"}
    if service and not given.get("image") and not given.get("version"):
        return kept
    version = given.get("version") or kind.version
    wanted = f"{given['image']}:{version}" if given.get("image") else image_for(kind.image, version) if kind.image in IMAGES else f"{kind.image}:{version}"
    if not inspect_image(wanted) and not pull_image(wanted):
        raise DokkuError(f"The image {wanted} is not on this server and can't be pulled", "name another with --image and --image-version")
    return {**kept, "image": wanted}


def found_service(kind: Engine, name: str, given: Mapping[str, Any], caller: Caller, make: Callable[[Service], Any]) -> None:
    """Make a service that runs and answers, or leave no trace of it; `make` brings it up."""
    guard_networks(" ".join(given[key.replace("-", "_")] or "" for key in SERVICE_NETWORKS).split(), caller)
    changes = chosen_image(kind, given)
    with service_lock(kind.name, name, "create") as known:
        need(not known, f"{kind.name} service {name} already exists", f"dokku {kind.name}:info {name}   shows it")
        new = Service(kind.name, name, **{"image": "", "data": f"data.{time.time_ns() // 1000}", "created": now(), **changes})
        with put_back(lambda: (remove(new.folder / "service.json"), drop_dead(new.folder))):
            for file, key in (("PASSWORD", "password"), ("ROOTPASSWORD", "root")):
                write_text(new.folder / file, (parser_named("service-password")(secret_word(given[key])) if given.get(key) else os.urandom(16).hex()) + "\n", secret=True)
            make(new)


def bring_up(service: Service) -> None:
    """Write the record of a new service, and wait until its server answers."""
    make_folder(service.folder / service.data)
    write_service(service)
    agree_service(service)


def service_create(noun: str, new: str, caller: Caller, **given: Any) -> None:
    """Make a service, with a server, a network and a password of its own, and wait until it answers."""
    kind = engine_named(noun)
    warn(f"{kind.name}: {kind.unproven}") if kind.unproven else None
    step(f"Creating the {kind.name} service {new}")
    found_service(kind, new, given, caller, bring_up)
    milestone(f"{kind.name} service {new} answers")
    detail(f"dokku {kind.name}:link {new} APP   gives it to an app")


def service_destroy(force: bool, service: Service) -> None:
    """Remove a service and its data; asks for its name on standard input, unless --force. Its backups are kept."""
    with holding(service, "destroy"):
        if users := linked_apps(service):
            raise DokkuError(f"{service.name} is linked to {', '.join(users)}", f"dokku {service.engine}:unlink {service.name} {users[0]}   unlinks it first")
        if users := users_of_network(service.container):
            raise DokkuError(f"The network of {service.name} is that of {', '.join(users)}, too", "take it from their network:set, or ENGINE:set, first")
        if not force:
            warn(f"This removes the {service.engine} service {service.name} and all its data. Type its name to go on:")
            need(sys.stdin.readline().strip() == service.name, "That is not the name; nothing was removed")
        remove(service.folder / "service.json")
        drop_dead(service.folder)
    set_backups(service, schedule="") if backup_settings(service)["schedule"] else None
    step(f"Destroyed {service.name}" + (f"; its backups are kept in {backup_home(service)}" if backup_home(service).exists() else ""))


def service_list(noun: str, app: str | None, style: str | None = None) -> list[str]:
    """List the services of an engine, or those that an app is linked to."""
    kind = engine_named(noun).name
    milestone(f"{kind} services") if style == "text" else None
    return [row.name for row in services(kind) if not app or (kind, row.name) in links_of(app)]


def service_linked(service: Service, app: str) -> None:
    """Say by the exit code whether an app is linked to a service."""
    need(app in linked_apps(service), f"Service {service.name} is not linked to {app}", f"dokku {service.engine}:links {service.name}   lists who is")


def service_info(flags: list[str], style: str, service: Service) -> None:
    """Print what is known of a service, its address with the password too; --NAME prints one bare value."""
    row, home, settings = service_container(service), backup_home(service), backup_settings(service)
    network = ((inspect_container(row.id) if row else {}).get("NetworkSettings") or {"Networks": {}})["Networks"].get(service.container) or {}
    rows = {"config-dir": str(service.folder / "mounted"), "data-dir": str(service.folder / service.data), "dsn": url_of(service),
            "exposed-ports": " ".join(service.exposed) or "-", "id": row.id if row else "", "internal-ip": network.get("IPAddress", ""),
            "links": " ".join(linked_apps(service)) or "-", "service-root": str(service.folder), "status": row.state if row else "missing",
            **{key: getattr(service, key.replace("-", "_")) for key in SERVICE_NETWORKS}, "version": service.image, "kept": service.kept,
            "backup-schedule": settings["schedule"], "backup-where": settings["where"] or str(home), "backup-verified": read_text(home / "verified", "never").strip()}
    if wrong := [flag for flag in flags if flag.removeprefix("--") not in rows]:
        raise DokkuError(f"Invalid flag passed: {wrong[0]}, valid flags: {', '.join(f'--{name}' for name in sorted(rows))}")
    if flags or style == "json":
        return say(rows[flags[0].removeprefix("--")]) if flags else say_json(rows)
    milestone(f"{service.name} {service.engine} service information")
    return say_lines(f"       {name.replace('-', ' ').capitalize() + ':':24} {value}".rstrip() for name, value in rows.items())


def change_links(app: str, links: Iterable[tuple[str, str]], config: Mapping[str, str], no_restart: bool, caller: Caller, reason: str) -> None:
    """Give an app other links and the config vars that go with them; when it does not come up so, it keeps the old ones. Only under the app's lock."""
    path, old = app_folder(app) / "LINKS", links_of(app)
    write_lines(path, map(" ".join, dict.fromkeys([*old, *links])))  # a network is left when no release that runs needs it
    # when the app has that config all the same, it is live, and what failed came later
    with put_back(lambda: write_lines(path, map(" ".join, old)) if read_config(app) != config else None):
        write_config(app, config) if no_restart else apply_config(app, config, caller.name, reason)
    write_lines(path, map(" ".join, links))
    agree_networks(app)


def service_link(no_restart: bool, service: Service, app: str, caller: Caller, alias: str | None, query: str | None) -> None:
    """Give an app the address of a service as a config var, and its network; it is restarted without dropping a request."""
    kind, engine_name = engine_of(service), service.engine.upper()
    with holding(service, "link") as service, locked(app, f"{service.engine}:link {service.name}"):  # held to the end: it can't be destroyed meanwhile
        agree_service(service)
        remove_strays(app)
        config, links = read_config(app), dict.fromkeys([*links_of(app), (service.engine, service.name)])
        held = [key for key, value in config.items() if is_url_of(service, value)]
        if held and (service.engine, service.name) in links_of(app):
            raise DokkuError(f"Already linked as {', '.join(held)}")
        names = [f"{alias}_URL"] if alias else [*held, kind.variable, *(f"DOKKU_{engine_name}_{color}_URL" for color in COLORS)]
        name = need(next((name for name in names if name not in config or name in held), ""), f"{names[0]} is taken", "choose another name with --alias")
        scheme = config.get(f"{engine_name}_DATABASE_SCHEME")
        url = url_of(service, parser_named("scheme")(scheme) if scheme else "")
        step(f"Setting {name} on {app}")
        change_links(app, links, {**config, name: url + (f"{'&' if '?' in url else '?'}{query}" if query else "")}, no_restart, caller,
                     f"{service.engine}:link {service.name}")


def service_unlink(no_restart: bool, service: Service, app: str, caller: Caller) -> None:
    """Take from an app what its link to a service gave it: the config vars that hold its address, and the network."""
    with locked(app, f"{service.engine}:unlink {service.name}"):
        remove_strays(app)
        config = {key: value for key, value in read_config(app).items() if not is_url_of(service, value)}
        if config == read_config(app):  # else an unlink that was killed half-way is completed
            service_linked(service, app)
        step(f"Unsetting {' '.join(sorted(set(read_config(app)) - set(config)))} on {app}")
        change_links(app, [row for row in links_of(app) if row != (service.engine, service.name)], config, no_restart, caller, f"{service.engine}:unlink {service.name}")


def service_promote(service: Service, app: str, caller: Caller, purpose: str) -> None:
    """Make a linked service the one that DATABASE_URL or its like names; what stood there keeps a name of its own."""
    service_linked(service, app)
    main = engine_of(service).variable

    def promoted(config: dict[str, str]) -> dict[str, str]:
        """Put the address first."""
        old, spare = config.get(main, ""), next(name for color in COLORS if (name := f"DOKKU_{service.engine.upper()}_{color}_URL") not in config)
        need(not is_url_of(service, old), f"{service.name} is already the one that {main} names")
        known = next((value for value in config.values() if is_url_of(service, value)), url_of(service))
        kept = {spare: old} if old and old not in [value for key, value in config.items() if key != main] else {}
        return {**config, **kept, main: known}
    change_config(app, promoted, False, caller, f"{purpose} {service.name}")


def service_run(service: Service, script: str = "", words: Sequence[str] = ()) -> int:
    """Run one of an engine's scripts in a service's container, or a command, a shell by default, on our own terminal or pipes."""
    if script == "dump" and sys.stdout.isatty():
        raise UsageError("A dump is binary, and a terminal would change it", f"dokku {service.engine}:export {service.name} > FILE, and over ssh without -t")
    server, options = running_server(service), ["--interactive", *(["--tty"] if sys.stdin.isatty() and script != "dump" else [])]
    argv = script_words(service, server, script, *options) if script else [docker_command(), "exec", *options, server, *(words or ["bash"])]
    return attend(argv, amount=script == "dump")


def service_logs(tail: bool, service: Service, lines: int) -> int:
    """Print the last lines of a service's log; -t follows it."""
    row = need(service_container(service), f"{service.name} has no container, and no log", f"dokku {service.engine}:start {service.name}   makes one")
    return attend([docker_command(), "logs", "--tail", str(lines), *(["--follow"] if tail else []), row.id])


def service_operate(noun: str, service: Service | None, verb: str) -> None:
    """Start, stop or restart a service, or every one of the engine."""
    for found in [service] if service else services(engine_named(noun).name):
        with holding(found, verb) as held:
            if verb != "start" and (row := service_container(held)):
                stop_container(row.id, SERVICE_GRACE)
            change_service(held, stopped=verb == "stop")
        step(f"{verb}: {found.name} is done")


def service_expose(service: Service, ports: Sequence[str] = (), off: str = "") -> None:
    """Have a port of the host lead to a service: on 127.0.0.1, unless an address is named; its server is restarted. No firewall is opened."""
    if not ports and not off:
        import socket
        with socket.create_server(("127.0.0.1", 0)) as probe:  # a port that nothing listens on
            ports = [str(probe.getsockname()[1])]
    wanted = tuple(port if ":" in port else f"127.0.0.1:{port}" for port in ports)
    with holding(service, "expose") as held:
        own = {port.rpartition(":")[2] for port in held.exposed}  # it lets go of them first
        if taken := [port for port in wanted if (number := port.rpartition(":")[2]) not in own and int(number) in listening_ports()]:
            raise DokkuError(f"Something listens on {taken[0]} already", f"dokku {service.engine}:expose {service.name}   finds a free port")
        change_service(held, exposed=wanted)
    step(f"{service.name} answers on {' '.join(wanted) or 'no port of the host'}")


def service_set(service: Service, key: str, value: str | None) -> None:
    """Set, or clear, the networks that a service is in beside its own; its server is restarted."""
    for name in (value or "").split():
        require_network(name)
    with holding(service, "set") as held:
        change_service(held, **{key.replace("-", "_"): value or ""})


def service_import(service: Service) -> None:
    """Replace what a service holds by a dump from standard input: it is loaded into a server beside it first, so that a bad one changes nothing."""
    with holding(service, "import") as held, scratch_folder(held.folder, "tmp.") as folder:
        copy_file(sys.stdin.buffer, folder / "dump")
        replace_data(held, folder / "dump", None)


def service_clone(service: Service, new: str, caller: Caller, **given: Any) -> None:
    """Make a second service with what the first holds; flags as for create."""
    need(not read_service(service.engine, new), f"{service.engine} service {new} already exists", f"dokku {service.engine}:info {new}   shows it")
    with holding(service, "clone") as held:
        if not given["image"] and not given["version"]:  # no other image is fetched or made for it
            given["image"], _, given["version"] = held.image.rpartition(":")
        agree_service(held)
        with scratch_folder(held.folder, "tmp.") as folder:
            dump_service(held, folder / "dump")

            def load(clone: Service) -> None:
                """Bring the new service up on a folder that was loaded beside it."""
                with filled(clone, folder / "dump") as (fresh, identity):
                    stop_container(identity, SERVICE_GRACE)
                    bring_up(fresh)
            found_service(engine_of(held), new, given, caller, load)
    step(f"Cloned {service.name} to {new}")


def service_upgrade(service: Service, confirm: bool, anew: bool, **given: Any) -> None:
    """Have a service run another version: dumped, loaded into a new server, compared row by row count, and only then switched to."""
    with holding(service, "upgrade") as held:
        if confirm:
            write_service(held._replace(kept=""))
            return drop_strays(held)
        if held.kept:
            raise DokkuError(f"{held.name} still keeps {held.kept} from the upgrade before", f"dokku {held.engine}:upgrade {held.name} --confirm   lets go of it")
        kind = engine_of(held)
        new = upgrade_service(held, **(chosen_image(kind, given, held) or chosen_image(kind, given)))
    for app in [row for row in linked_apps(new) if read_current(row) and not is_stopped(row)] if anew else ():
        under_lock("upgrade", restart, app)
    return step(f"{new.name} runs {new.image}" + (f"; the data from before is kept: {new.kept}" if new.kept else ""))


def set_backups(service: Service, **changes: Any) -> None:
    """Keep how a service is backed up: schedule, where, keep. The place `local` is the repository on this server."""
    changes |= {"where": ""} if changes.get("where") == "local" else {}
    require_passphrase(service, changes.get("where") or "")
    write_json(backup_home(service) / "settings.json", {**backup_settings(service), **{key: str(value) for key, value in changes.items() if value is not None}})
    render_crontab()


def service_backup(service: Service, where: str | None) -> None:
    """Back a service up, encrypted, by restic: into a repository on this server, or where WHERE says: a bucket, a folder, or what restic takes, as sftp:HOST:/PATH."""
    with holding(service, "backup") as held:
        old = backup_settings(held)
        set_backups(held, where=where)
        with put_back(lambda: set_backups(held, where=old["where"]) if where else None):  # a place that never worked is not where the next one goes
            step(f"Backed up as {back_up(held)}")


def backup_schedule_cat(service: Service) -> str:
    """Print the schedule of a service's backups."""
    return f"{backup_settings(service)['schedule']} /usr/bin/dokku {service.engine}:backup {service.name}"


def backup_list(service: Service) -> list[str]:
    """List the backups of a service, oldest first."""
    return [f"{row['short_id']} {row['time'][:19]}" for row in snapshots_of(service)]


def backup_verify(service: Service, backup: str) -> None:
    """Load a backup, the newest by default, into a server beside the service, and compare its rows; the service is not touched."""
    with holding(service, "backup-verify") as held, fetched(held, backup) as (dump, wanted), filled(held, dump) as (fresh, identity):
        compare_rows(fresh, identity, wanted)
        name = snapshots_of(held)[-1]["short_id"] if backup == "latest" else backup
        write_text(backup_home(held) / "verified", f"{name} at {now()}\n")
    step(f"The backup is good: it loads, and the rows of {len(wanted)} tables were compared")


def service_restore(service: Service, backup: str) -> None:
    """Replace what a service holds by a backup, the newest by default; it is loaded and compared beside it first."""
    with holding(service, "restore") as held, fetched(held, backup) as (dump, rows):
        replace_data(held, dump, rows)


def keep_bucket(service: Service, key: str, secret: str, region: str | None, signature: str | None, endpoint: str | None) -> None:
    """Keep the keys of an S3 bucket for a service's backups; a secret of - comes from standard input."""
    keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret_word(secret), "AWS_DEFAULT_REGION": region or "us-east-1", **({"ENDPOINT": endpoint} if endpoint else {})}
    write_text(backup_home(service) / "bucket", render_environment(keys), secret=True)


def keep_passphrase(service: Service, passphrase: str) -> None:
    """Set the passphrase of a service's backups elsewhere, from standard input. Keep a copy: without it no backup opens."""
    if (backup_home(service) / "passphrase").exists():
        raise DokkuError("There is a passphrase, and the backups made with it open with no other", f"dokku {service.engine}:backup-unset-encryption {service.name}   forgets it")
    write_text(backup_home(service) / "passphrase", secret_word(passphrase) + "\n", secret=True)


def mend_services() -> None:
    """Mend every service, and remove what is left of those that are no more; no trouble of one keeps it from the others, or from the apps."""
    each_apart([*(functools.partial(mend_service, path.parent.parent.name, path.parent.name) for path in (ROOT / "services").glob("*/*/service.json")), drop_dead_services])


# --- networks: apps meet in those that they share, and nowhere else ---

def network_create(name: str) -> None:
    """Make a network that network:set puts apps in."""
    need(name not in [row["Name"] for row in engine().networks()], f"Network {name} exists already")
    write_text(ROOT / "networks" / name, "")
    require_network(name)


def network_destroy(name: str) -> None:
    """Remove a network that network:create made and no app is in."""
    require_network(name)
    users = users_of_network(name)
    if users or not (ROOT / "networks" / name).exists():
        raise DokkuError(f"{name} is the network of {', '.join(users)}" if users else f"{name} was not made by network:create: docker network rm {name}   removes it")
    with engine_errors(f"The network {name} can't be removed"):
        engine().remove_network(name)
    remove(ROOT / "networks" / name)


def network_exists(name: str) -> str:
    """Say, by the exit code too, that a network is there."""
    return require_network(name) and "Network exists"


def network_list(style: str, managed: bool) -> None:
    """List Docker's networks, or those of network:create only."""
    rows = {row["Name"]: row for row in engine().networks() if not managed or row["Name"] in shared_networks()}
    milestone("Networks") if style != "json" else None
    say_json([*rows.values()]) if style == "json" else say_lines(sorted(rows))


# --- registries: where base images come from and releases are pushed to ---

def change_login(app: str | None, server: str, caller: Caller, username: str = "", password: str | None = None, piped: bool = False, off: str = "") -> None:
    """Have docker keep a login of an app, or of the server, which is for administrators, in a file that only this server reads; or forget it."""
    need(app not in (None, "--global") or may(caller, "admin"), error=AccessDenied)
    folder = make_folder(ROOT / ".docker" if app in (None, "--global") else app_folder(require_app(app)) / "docker", 0o700)
    secret = sys.stdin.readline().rstrip("\n") if piped else secret_word(password) if password else None
    words = ["logout"] if off else ["login", f"--username={username}", "--password-stdin"]
    with locked(app, "registry") if app not in (None, "--global") else contextlib.nullcontext():
        said = output_of([docker_command(), *words, server], stdin=secret, env={**build_environment(), "DOCKER_CONFIG": str(folder)})
    detail(said) if off else step(f"Logged in to {server} as {username}")


# --- tags ---

def tag_add(app: str, tag: str) -> None:
    """Keep the running release under a name, whatever is deployed later; rollback APP TAG goes back to it."""
    with locked(app, "tag:add"):
        current = require_current(app)
        tag_as(current.image, f"dokku/{app}:{tag}")
        write_lines(app_folder(app) / "TAGS", [f"{name} {number}" for name, number in sorted({**read_tags(app), tag: current.number}.items())])


def tag_rm(app: str, tag: str) -> None:
    """Take a name from an image of the app."""
    need(tag in {*read_tags(app), *tags_of(app)}, f"{app} has no tag {tag}", f"dokku tag:list {app}   lists them")  # killed, tag:add leaves one in Docker alone
    with locked(app, "tag:rm"):
        write_lines(app_folder(app) / "TAGS", [f"{name} {number}" for name, number in read_tags(app).items() if name != tag])
        untag_image(f"dokku/{app}:{tag}")


# --- logs ---

def logs(tail: bool, quiet: bool, lines: int, process: str | None, app: str) -> None:
    """Print the last lines of an app's processes in the order they came; -t goes on, over deploys, until you leave."""
    if tail:
        return follow_logs(app, process, lines, quiet)
    found = require_processes(app, process)
    rows: list[tuple[str, str, str]] = []
    for row in found:
        try:
            rows += [(at, row.dyno, text) for at, text in log_stream(row.id, lines)]
        except importlib.import_module("docker").errors.APIError as error:
            if error.status_code not in (404, 409):  # a deploy may be removing it, or have
                raise
    for row in sorted(rows)[-lines:] if lines else []:
        say_log(quiet, *row)


def select_processes(app: str, process: str | None) -> list[Container]:
    """List the app's containers of a process type, of one process, or all."""
    return [row for row in containers_of(app) if not process or process in (row.process_type, row.dyno)]


def say_log(quiet: bool, at: str, dyno: str, text: str) -> None:
    """Print one line of a process, coloured by process on a terminal."""
    prefix = f"{at[:19]}Z app[{dyno}]:"
    if sys.stdout.isatty():
        prefix = f"\x1b[{(36, 33, 32, 35, 31, 34)[sum(dyno.encode()) % 6]}m{prefix}\x1b[0m"
    say(text if quiet else f"{prefix} {text}")


def follow_logs(app: str, process: str | None, lines: int, quiet: bool) -> None:
    """Print lines as they come, those of processes that start later too, until the reader leaves or the app is gone."""
    import threading
    known: dict[str, threading.Thread] = {}
    said: dict[str, str] = {}  # when each container said its last line that was printed: one that is started again is followed again

    def follow(container: Container, tail: int) -> None:
        """Print the lines of one container until it ends."""
        before = said.setdefault(container.id, "" if tail else now())  # of one stream the lines need not stand in the order of their times
        with contextlib.suppress(OSError, DokkuError), whatever_comes():
            for at, text in log_stream(container.id, tail, follow=True):
                if at > before:
                    say_log(quiet, at, container.dyno, text)
                    said[container.id] = max(at, said.get(container.id, ""))

    while app_exists(app):
        for container in select_processes(app, process):
            if container.running and not (container.id in known and known[container.id].is_alive()):
                known[container.id] = threading.Thread(target=follow, args=(container, lines), daemon=True)
                known[container.id].start()
        lines = VALUE_LIMIT  # all that a process said which starts from now on
        if reader_left(0.5):
            return


# --- docker options ---

def change_docker_options(app: str, verb: str, processes: list[str] | None, caller: Caller, phases: list[str] | None = None,
                          words: list[str] | None = None) -> None:
    """Add an option of docker build or docker run to phases of an app, of some process types or all, or take one away; without words, every one."""
    option = "" if words is None else parse_docker_option(words[0] if len(words) == 1 else shlex.join(words))
    if verb == "add" and re.fullmatch(r"(?:-e|--env|--build-arg)(?:[ =][^=]*)?", option):  # docker would take what whoever deploys has in his environment
        raise UsageError(f"{shown(option)} gives no value", "write for example  -e LEVEL=debug")
    with locked(app, "docker-options"):
        old = read_docker_options(app)
        names = [f"{phase}.{process}" if process else phase for phase in phases or PHASES for process in processes or [""]]
        rows = [(name, option) for name in names]
        if not option:
            rows = [row for row in old if (row[0] if processes else row[0].partition(".")[0]) in names]
        elif verb == "remove" and not set(rows) & set(old):
            raise DokkuError(f"{app} has no option {shown(option)} there", f"dokku docker-options:report {app}   shows what it has")
        new = set(rows) - set(old) if verb == "add" else set()
        if not all(is_harmless(shlex.split(words)) for _, words in new or {*rows} & {*old}) and not may(caller, "admin"):
            raise AccessDenied  # it reaches the host
        if not all(name.startswith("build") for name, _ in new):
            translate_options(tuple(shlex.split(option)))  # what Docker can't read is refused in its words
        write_lines(app_folder(app) / "DOCKER_OPTIONS", map(" ".join, dict.fromkeys(changed(old, verb, rows))))


def docker_options_list(app: str, process: str | None, phase: list[str]) -> list[str]:
    """List the options of one phase."""
    wanted = [f"{name}.{process}" if process else name for name in phase]
    return [option for name, option in read_docker_options(app) if name in wanted]


def docker_options_facts(app: str) -> dict[str, str]:
    """Say which options of Docker an app has, by phase."""
    rows = read_docker_options(app)
    names = dict.fromkeys([*PHASES, *(name for name, _ in rows)])
    return {f"docker-options-{name.replace('.', '-')}": " ".join(option for other, option in rows if other == name) for name in names}


# What NOUN:report says of an app beside the properties of the noun.
FACTS: dict[str, Callable[[str], dict[str, str]]] = {
    "apps": apps_facts, "certs": certs_facts, "checks": checks_facts, "docker-options": docker_options_facts, "domains": domains_facts, "ps": ps_facts,
    "resource": resource_facts, "storage": storage_facts,
    "cron": lambda app: {"cron-task-count": str(len(jobs_of(app)))},
    "git": lambda app: {"git-status": git(app, "log", "-1", "--format=%h %s", check=False), "git-sha": current.commit if (current := read_current(app)) else "",
                        "git-last-updated-at": current.at if current else ""},  # the commit that it runs
    "http-auth": lambda app: {"http-auth-enabled": str((app_folder(app) / "HTTP_AUTH").exists()).lower(),
                              "http-auth-allowed-ips": " ".join(read_lines(app_folder(app) / "ALLOWED_IPS")),
                              "http-auth-users": " ".join(line.partition(":")[0] for line in read_lines(users_file(app)))},
    "maintenance": lambda app: {"maintenance-enabled": str((app_folder(app) / "MAINTENANCE").exists()).lower(),
                                "maintenance-custom-page": str(pages_of(app).is_dir()).lower()},
    "ports": lambda app: {"ports-map": " ".join(map(str, own_maps(app))), "ports-map-detected": " ".join(
        map(str, detected_maps(app, port_of(current) if (current := read_current(app)) else DEFAULT_PORT)))},  # what it has without any of its own
    "proxy": lambda app: {"proxy-enabled": str(is_proxied(app)).lower()},
}


# --- one-offs ---

def run_one_off(pairs: list[tuple[str, str]], force_tty: bool, seconds: int, app: str, words: list[str], no_tty: bool = False, detach: str = "") -> int:
    """Run a command in a new container of the app's release, on your terminal; the container is gone afterwards."""
    tty = force_tty or (sys.stdin.isatty() and not no_tty and not detach)
    name = create_one_off(app, dict(pairs or ()), words, seconds, tty=tty, stdin_open=not detach)
    if detach:
        return start_container(name) or say(name) or 0
    try:
        return attend([docker_command(), "start", "--attach", "--interactive", name])
    finally:
        remove_container(name)


def create_one_off(app: str, extra: Mapping[str, str], words: list[str], seconds: int, kind: str = "run", dyno: str = "", **terminal: bool) -> str:
    """Create the container of a one-off and give its name; `tick` removes it after that many seconds, ended or not."""
    current = require_current(require_app(app))
    need(words, "Name the command to run", f"for example  dokku run {app} ls -la", UsageError)
    entry = current.procfile.get(words[0], words[0] if " " in words[0] and len(words) == 1 else "")
    single = " ".join([entry, *map(shlex.quote, words[1:])]) if entry else ""
    ensure_network()
    number = time.time_ns() // 1000 % 10**9
    name = f"{app}.{kind}.{number}"
    create_container(current, dyno or f"run.{number}", config={**release_config(current), **extra}, kind=kind, name=name,
                     command=shell_command(app, single) if single else words, labels={"com.dokku.expires": str(int(uptime()) + seconds)},
                     options=terminal)
    return name


def one_offs(app: str = "") -> list[Container]:
    """List the one-offs of an app, or of all: those of run, run:detached and cron, running or ended."""
    return sorted((row for kind in ("run", "cron") for row in containers_of(app, kind)), key=lambda row: (row.created, row.name))


def find_one_offs(app: str | None, name: str | None, caller: Caller) -> list[Container]:
    """Find the one-offs of an app, or the one that is named. Raises DokkuError."""
    need(bool(app) != bool(name), "Name an app, or give --container", error=UsageError)
    found = [row for row in one_offs(app or "") if (not name or name in (row.name, row.id[:12], row.id)) and may(caller, "operate", row.app)]
    return need(found, f"There is no one-off {shown(name)}" if name else f"{app} has no one-off", "dokku run:list   lists them")


def run_list(app: str | None, caller: Caller) -> list[dict[str, str]]:
    """List the one-offs of an app, or of all, running or ended."""
    return [{"name": row.name, "app": row.app, "state": row.state, "process": row.dyno} for row in one_offs(app or "") if may(caller, "operate", row.app)]


def run_logs(container: str | None, tail: bool, quiet: bool, lines: int, app: str | None, caller: Caller) -> int | None:
    """Print what the one-offs of an app, or one of them, wrote; -t follows the last until it ends."""
    found = find_one_offs(app, container, caller)
    if tail:
        return attend([docker_command(), "logs", "--follow", "--tail", str(lines), found[-1].id])
    return say_lines(line if quiet else f"{row.name}: {line}" for row in found for line in logs_of(row.id, lines))


def run_stop(container: str | None, app: str | None, caller: Caller) -> None:
    """End the one-offs of an app, or one of them."""
    for row in find_one_offs(app, container, caller):
        stop_container(row.id, int(property_of(row.app, "ps", "stop-timeout-seconds")))
        step(f"Stopped {row.name}")


def remove_expired() -> None:
    """Remove the one-offs whose time is up, ended or not; by uptime, which no clock disturbs, so what ended before this boot has none left."""
    booted = time.time() - uptime()
    for row in engine().containers(all=True, filters={"label": [*(f"{key}={value}" for key, value in OURS.items()), "com.dokku.expires"]}):
        if (end := row["Labels"]["com.dokku.expires"]).isdecimal() and (int(end) < uptime() or row["State"] == "exited" and row["Created"] < booted):
            remove_container(row["Id"])


def enter(app: str, words: list[str], purpose: str, container: str | None = None, process: str | None = None) -> int:
    """Open a shell, or run a command, in a running container of an app; the first web process by default."""
    if words and words[0].partition("=")[0] == "--container-id":  # behind the app
        words = [*words[0].split("=", 1), *words[1:]]
        container, words = "".join(words[1:2]), words[2:]
    if container and process and not select_processes(app, process):  # it begins the command
        words, process = [process, *words], None
    need(words or purpose != "exec", "Name the command to run", f"for example  dokku exec {app} ls -la", UsageError)
    chosen = [row for row in select_processes(app, process) if row.running and (not container or row.id.startswith(container) or row.name == container)]
    need(chosen, f"{app} has no running process {shown(container or process or 'web')}", f"dokku ps:report {app}   shows what runs")
    best = min(chosen, key=lambda row: (row.process_type != "web", row.dyno))
    shell = ["/bin/sh", "-c", "command -v bash >/dev/null && exec bash || exec sh"]
    return attend([docker_command(), "exec", "--interactive", *(["--tty"] if sys.stdin.isatty() else []), best.id, *(words or shell)])


def say_last_words(app: str) -> None:
    """Print what the processes of an app said last that did not come up."""
    for path in sorted((app_folder(app) / "FAILED").glob("*")):
        say_lines(f"app[{path.name}]: {line}" for line in read_text(path).splitlines())


# --- keys ---

def key_facts_given(role: str | None, apps: str | None, until: str | None, sources: str | None) -> dict[str, Any]:
    """Give what the options of a key change; `all`, `never` and `anywhere` take a limit away."""
    given = {"role": role, "apps": apps and tuple(apps.split(",") if apps != "all" else ()), "until": until and until.removeprefix("never"),
             "sources": sources and sources.removeprefix("anywhere")}
    return {name: value for name, value in given.items() if value is not None}


def ssh_keys_add(name: str | None, file: str | None, caller: Caller, role: str | None, apps: str | None, until: str | None, sources: str | None) -> None:
    """Let a public key in, as administrator unless --role says less; from standard input, or from a file when root asks."""
    public, fingerprint = parse_public_key(read_given(file, caller))
    new = Key(name=name or key_name_of(fingerprint), public=public, fingerprint=fingerprint, added=now(), **key_facts_given(role, apps, until, sources))
    known = next((key for key in read_keys() if (key.name, key.fingerprint) == (new.name, fingerprint)), None)
    if known and (known.role, known.apps, known.until, known.sources) != (new.role, new.apps, new.until, new.sources):
        raise DokkuError(f"{known.name} is let in already, as {known.role} for {' '.join(known.apps) or 'all apps'}", f"dokku access:set {known.name}   changes that")
    write_key(new, known)
    say(fingerprint)


def access_set(name: str, role: str | None, apps: str | None, until: str | None, sources: str | None) -> None:
    """Change what a key may do, for which apps, until when and from where; all, never and anywhere take a limit away."""
    key = find_key(name)
    write_key(key._replace(**key_facts_given(role, apps, until, sources)), key)


def access_check(name: str, words: list[str]) -> None:
    """Say, by the exit code too, whether a key may do a command, and why not."""
    key, row = find_key(name), find_command(words[0]) if words else None
    need(row, "Name a command with its words", f"for example  dokku access:check {name} ps:restart blog", UsageError)
    caller = Caller(key.name, key.role, key.apps)
    need(not is_over(key), f"{key.name} may not: the key was for the time until {key.until}", f"dokku access:set {key.name} --until DAY   lets it in again")
    if not is_allowed(row, caller, read_words(row, words[1:], caller)):
        lacks = row.access.removesuffix("+") not in ROLES[key.role]
        raise DokkuError(f"{key.name} may not: {row.name} needs {row.access.removesuffix('+')}" + (f", which the role {key.role} lacks" if lacks else f"; the key is for {' '.join(key.apps) or 'apps'}"))
    say(f"{key.name} may, by the role {key.role} for {' '.join(key.apps) or 'all apps'}")


def key_name_of(fingerprint: str, prefix: str = "key") -> str:
    """Make a name for a key that came without one."""
    return f"{prefix}-{re.sub('[^A-Za-z0-9]', '', fingerprint.partition(':')[2])[:12]}"


def ssh_keys_list(style: str, name: str | None) -> None:
    """List the keys, with their roles and apps; or one of them."""
    found = [find_key(name)] if name else read_keys()
    if style == "json":
        return say_json([{"fingerprint": key.fingerprint, "name": key.name, "role": key.role, "apps": list(key.apps)} for key in found])
    return say_lines(f'{key.fingerprint} NAME="{key.name}" ROLE="{key.role}" APPS="{",".join(key.apps)}"' for key in found)


def access_info(name: str) -> dict[str, str]:
    """Print what is on record of one key, found by its name or whole fingerprint."""
    key = find_key(name)
    return {"name": key.name, "fingerprint": key.fingerprint, "role": key.role, "apps": " ".join(key.apps) or "all", "added": key.added,
            "until": key.until or "never", "from": key.sources or "anywhere"}


def ssh_keys_remove(fingerprint: str | None, name: str | None) -> None:
    """Shut a key out, by its name or whole fingerprint."""
    word = need(fingerprint or name, "Name the key, or give --fingerprint", "dokku ssh-keys:list   lists the keys", UsageError)
    drop_key(find_key(word).name)


def key_allow(app: str, name: str | None, role: str) -> None:
    """Let a public key from standard input push one app and do nothing else (deploy), or do all that concerns it (developer)."""
    public, fingerprint = parse_public_key(sys.stdin.read())
    known = next((key for key in read_keys() if key.fingerprint == fingerprint), None)
    if known and (not known.apps or (known.role != role and not (known.role == "deploy" and set(known.apps) <= {app}))):
        raise DokkuError(f"That key is {known.name}, with the role {known.role} for {' '.join(known.apps) or 'all apps'}", f"dokku access:set {known.name} --role {role}   changes that, for all of its apps")
    key = (known or Key(name or key_name_of(fingerprint, role), public, fingerprint, added=now()))._replace(role=role)
    write_key(key._replace(apps=tuple(sorted({*key.apps, app}))), known)
    say(fingerprint)


def key_list(app: str, role: str) -> list[str]:
    """List the keys of a role that are for an app."""
    return [f"{key.fingerprint} {key.name}" for key in read_keys() if key.role == role and reaches(key.apps, app)]


def key_revoke(app: str, name: str) -> None:
    """Take one app from a key; a key without an app left is shut out."""
    key = find_key(name)
    need(app in key.apps, f"{key.name} is not a deploy key of {app}, nor a developer's", f"dokku acl:list {app}   lists who may what")
    left = tuple(other for other in key.apps if other != app)
    write_key(key._replace(apps=left), key) if left else drop_key(key.name)


def keys_of(user: str) -> list[Key]:
    """Find the keys of a person: NAME, and NAME@PLACE. Raises DokkuError."""
    found = [key for key in read_keys() if key.name.partition("@")[0] == user or key.name == user]
    return need(found, f"No key is named {shown(user)}", "dokku ssh-keys:list   lists the keys")


def acl_add(app: str, user: str) -> None:
    """Let a person's keys do for one more app what they may do for others."""
    keys = keys_of(user)
    if free := next((key for key in keys if not key.apps), None):
        raise DokkuError(f"{free.name} may come to every app, as {free.role}", f"dokku access:set {free.name} --role developer --apps {app}   limits it")
    for key in keys:
        write_key(key._replace(apps=tuple(sorted({*key.apps, app}))), key)


def acl_remove(app: str, user: str) -> None:
    """Take one app from a person's keys; a key without an app left is shut out. A key that comes to it by a pattern, or to every app, is named."""
    keys = keys_of(user)
    for key in keys:
        key_revoke(app, key.name) if app in key.apps else None
    if still := [key.name for key in keys if not key.apps or reaches([other for other in key.apps if other != app], app)]:
        raise DokkuError(f"{', '.join(still)} may still come to {app}, by a pattern or as to every app", f"dokku access:set {still[0]} --apps ...   says which apps it is for")


def acl_list(app: str) -> list[str]:
    """List who may come to an app, and as what."""
    return [f"{key.name} {key.role}" for key in read_keys() if not key.apps or reaches(key.apps, app)]


def acl_allowed(user: str) -> list[str]:
    """List the apps that a person may come to."""
    return [app for app in apps() if any(not key.apps or reaches(key.apps, app) for key in keys_of(user))]


# --- events ---

def events_list() -> list[str]:
    """List the commands that are noted in the events: those that change something, and every refusal."""
    return sorted({row.name for row in commands().values() if row.access.removesuffix("+") not in QUIET_ACCESS})


def mark(file: str, app: str = "", service: Service | None = None, off: str = "") -> None:
    """Note something of an app, of a service's backups or of the server by a file that is there; `off` takes such a note, or what opens them, back."""
    path = (backup_home(service) if service else app_folder(app) if app else ROOT) / file
    remove(path) if off else write_text(path, now() + "\n")


# --- the server ---

def version(json: bool) -> None:
    """Print the version that clients look for; with --json our own as well."""
    say_json({"dokku_py": VERSION, "dokku": DIALECT_VERSION}) if json else say(f"dokku version {DIALECT_VERSION}")


def list_nouns() -> None:
    """Print each noun with its verbs, and what a command that is a noun by itself does."""
    import textwrap
    known = [name for name, row in sorted(commands().items()) if row.access not in ("hook", "local")]
    say(f"dokku_py {VERSION}: ssh dokku@SERVER NOUN:VERB ...   help NOUN, help NOUN:VERB and help --all say more\n")
    for noun in sorted({name.partition(":")[0] for name in known}):
        verbs = [name.partition(":")[2] for name in commands_of(noun) if ":" in name and name in known]
        words = [*([commands()[noun].doc[0], *(["Also:"] if verbs else [])] if noun in known else []), *verbs]
        say(textwrap.fill(" ".join(words), 118, initial_indent=f"    {noun:22} ", subsequent_indent=" " * 27, break_on_hyphens=False))


def help_command(word: str | None, every: bool) -> None:
    """List the nouns with their verbs, what the commands of one noun do, or of all with --all; or explain one command."""
    row = commands().get(word or "")
    if not word and not every:
        return list_nouns()
    if row and row.access != "hook" and not commands_of(word or ""):
        return say(usage_of(row))
    rows = [(name, row) for name in sorted(commands_of(word) if word else commands()) if (row := commands()[name]).access != "hook"]
    need(rows, f"There is no command {shown(word or '')}", "dokku help   lists all")
    kind = engine_named(word or "")
    say(f"dokku_py {VERSION}" + (f"   {kind.name}: {kind.unproven}" if kind and kind.unproven else ""))
    return say_lines(f"    {name:24} {row.doc[0]}" for name, row in rows)


def document(kind: str) -> None:
    """Print the manual page, or the completion of a shell, rendered from the declarations; install.sh installs them."""
    known = {name: row for name, row in sorted(commands().items()) if row.access not in ("hook", "local")}
    options = {name: [flag for arg in row.args for flag in arg.flags if flag.startswith("--")] for name, row in known.items()}
    say(render(f"host/{'man' if kind == 'man' else f'completion.{kind}'}.j2", version=VERSION, commands=known, options=options, usage=short_usage))


parse_image_name = one_of("debian", *IMAGES)  # those that this host can make


def images_build(force: bool, name: str) -> None:
    """Make an image from the host's own package sources, `debian` or one that stands in for a language's; --force also one that is there."""
    detail(f"{make_image(name, force)} is there; --force makes it anew")


def images_list() -> None:
    """List the images this product made: base images and the releases of apps, with their sizes."""
    found = {row["Id"]: row for filters in ({"label": [f"{key}={value}" for key, value in OURS.items()]}, {"reference": "dokku/*"})
             for row in engine().images(filters=filters)}
    say_table(sorted((tag, f"{row['Size'] // 2**20} MB") for row in found.values() for tag in row["RepoTags"] or ()))


def setup() -> None:
    """Prepare the state tree, the network and nginx; install.sh runs it, and it may be run again."""
    prepare_as_root()
    for name in ("apps", "keys", "locks", "addresses", "nginx/candidate", "nginx/server", "properties"):
        make_folder(ROOT / name)
    make_folder(storage_folder(), 0o700)
    render_authorized_keys()
    ensure_network()
    serve_unknown_names()
    reload_nginx()  # its own configuration may be new


def prepare_as_root() -> None:
    """Do the part that only root may, once, and give root up: what `nginx -t` reads for a candidate, and the fence of all builds."""
    if os.geteuid() != 0:
        return
    ours = f"include /etc/nginx/conf.d/[!d]*.conf; include /etc/nginx/conf.d/d[!o]*.conf; include {ROOT}/nginx/candidate/*.conf;"
    write_text(NGINX_TEST_CONF, read_text(Path("/etc/nginx/nginx.conf")).replace("include /etc/nginx/conf.d/*.conf;", ours))
    # No build may starve the apps: on the engine's own cgroup for builds, as BuildKit of engine 20.10 ignores a limit of a build (tried).
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError):
        BUILD_FENCE.parent.mkdir(parents=True, exist_ok=True)  # a kernel's file system, where flushing a folder fails
        BUILD_FENCE.write_text(str(int(memory * BUILD_MEMORY_SHARE)))
    become_owner(ROOT)


def orphans() -> list[Container]:
    """List the containers of apps that are no more: something was killed while the app was destroyed."""
    kinds = ("deploy", "run", "release", "cron") if (ROOT / "apps").is_dir() else ()  # a state tree that is away says nothing of any
    return [row for kind in kinds for row in containers_of("", kind) if not app_exists(row.app)]


def server_disagreements() -> Iterator[Disagreement]:
    """Find what is wrong with the server itself, with the command that mends what we do not mend ourselves."""
    found = functools.partial(Disagreement, "server", mend=lambda: None)
    places = ((NGINX_TEST_CONF, "dokku setup"), (Path("/etc/nginx/conf.d/dokku.conf"), "install.sh"))
    yield from (found(what=f"{path} is missing: run {reason} again as root") for path, reason in places if not path.exists())
    if not worker_processes():
        yield Disagreement("server", "nginx does not run", reload_nginx)
    for service in services():
        verified = backup_home(service) / "verified"
        if backup_settings(service)["schedule"] and not (verified.exists() and time.time() - verified.stat().st_mtime < VERIFY_SECONDS):
            last = f"last was {read_text(verified, 'none').strip()}"
            yield found(what=f"no backup of {service.name} was verified this month ({last}): dokku {service.engine}:backup-verify {service.name}")
        yield from (row._replace(mend=functools.partial(mend_service, service.engine, service.name)) for row in service_disagreements(service) if service.folder.exists() and not is_locked(service.folder / "lock"))
    if lost := orphans():
        names = ", ".join(row.name for row in lost)
        yield Disagreement("server", f"containers of apps that are no more: {names}", lambda: [remove_container(row.id) for row in lost])
    if not 0 <= uptime() - float(read_text(ROOT / "TICKED", "-1e9")) <= TICK_SECONDS:
        yield found(what="tick has not run for minutes, so nothing is retired late or rolled back: start cron (service cron start)")
    limit = read_text(BUILD_FENCE).strip()
    if not limit.isdigit() or int(limit) > 2**60:
        yield found(what="builds have no memory fence (it comes with the first build; dokku boot as root sets it)")
    try:
        require_disk()
    except DokkuError as error:
        yield found(what=error.message)


def doctor(fix: bool, style: str, app: str | None, caller: Caller) -> int:
    """List what differs from the record, for the server and its apps; --fix mends it. The exit code is 1 while something is left."""
    rows = list(server_disagreements()) if not app and may(caller, "admin") else []
    if fix:
        need(app or may(caller, "operate"), error=AccessDenied)
        each_apart([*(row.mend for row in rows), lambda: each_app(app, not app, converge, CONVERGE_AT_ONCE)])
        return doctor(False, style, app, caller)
    for name in [require_app(app)] if app else visible_apps(caller):
        with lock_if_free(app_folder(name) / "lock") as free:
            rows += disagreements(name) if free else []
        if not free:
            warn(f"{name} is being changed right now and was not looked at: {read_text(app_folder(name) / 'lock').strip()}")
    if style == "json":
        say_json([{"app": row.app, "what": row.what} for row in rows])
    else:
        say_lines(f"{row.app}: {row.what}" for row in rows)
        if not app and may(caller, "admin"):
            say_lines(f"{row.engine} {row.name}: last verified backup {last}" for row in services() if (last := read_text(backup_home(row) / "verified").strip()))
        say(f"dokku doctor {app or ''} --fix   mends what can be mended".replace("  --", " --") if rows else "All is as it should be.")
    return 1 if rows else 0


def tick() -> None:
    """Do what is due, once a minute, from cron: finish what was killed, judge probations, end one-offs whose time is up, start what died."""
    become_owner(ROOT)
    write_text(ROOT / "TICKED", f"{int(uptime())}\n")
    each_apart([lambda: remove(*dead_writes(ROOT)), remove_expired, render_crontab,
                lambda: each_apart(functools.partial(remove_container, row.id) for row in orphans()), mind_all])
    with lock_if_free(make_folder(ROOT / "locks") / "tick") as free:
        if free:  # else the one before may still be asking
            each_apart([*(functools.partial(each_app, None, True, work, CONVERGE_AT_ONCE) for work in (revive, restart_unfit)), mend_services])


def boot() -> None:
    """Make everything serve again after the machine started."""
    prepare_as_root()
    with server_lock("nginx"):
        quarantine_vhosts()
    setup()
    mend_services()
    each_app(None, True, lambda app: converge(app) if property_of(app, "ps", "restore") == "true" else under_lock("boot", render_vhost, app), CONVERGE_AT_ONCE)


# --- internal: git ---

def git_receive_pack(new: str, caller: Caller) -> int:
    """Receive a push; the app is made by its first one."""
    app = new
    if not app_exists(app):
        need(may(caller, "create", app), error=AccessDenied)
        if property_of("--global", "apps", "disable-autocreation") == "true":
            raise NoSuchApp(app)
        create_app(app)
    repository, alive, lock = str(ensure_repository(app)), begin_push(app), open_lock(app_folder(app) / "lock")
    environment = {**git_environment(), "DOKKU_LOCK_FD": str(lock), "DOKKU_CALLER": caller.name, "DOKKU_APP": app}
    settings = (f"core.hooksPath={HOOKS}", "receive.fsckObjects=true", "gc.autoDetach=false")  # a gc that outlives the push would hold its lock
    # A pre-receive hook gets no signal when the pusher's ssh dies, and blocks once nobody reads its output; so we stay as parent of
    # git's process group and watch our standard output for the error that a closed reader leaves there. The locks are handed down
    # so that they live until git has moved its refs.
    code = watch(begin(["git", *(word for setting in settings for word in ("-c", setting)), "receive-pack", repository],
                       env=environment, start_new_session=True, pass_fds=[lock, alive]), end_group)
    if code and not same_file(lock, app_folder(app) / "lock"):
        raise NoSuchApp(app)  # destroyed meanwhile: git's own words for that are many, and none names it
    return code


def git_upload_pack(app: str) -> int:
    """Send an app's repository."""
    return attend(["git", "upload-pack", str(repository_of(app))])


def git_hook() -> None:
    """Deploy what was pushed, before git accepts it; our own pre-receive hook calls this, with the refs on standard input."""
    app, by = os.environ.get("DOKKU_APP", ""), os.environ.get("DOKKU_CALLER", "")
    on_leaving(leave)
    import_ahead("docker")
    try:
        with locked(app, "push"):
            remove_strays(app)
            updates = [line.split() for line in sys.stdin.read().splitlines()]
            if moved := [ref for old, _, ref in updates if ref_of(app, ref) != old]:  # before any of them is deployed
                raise DokkuError(f"{moved[0]} moved while this push waited", "git pull, then push again")
            for _, new, ref in updates:
                receive_ref(app, new, ref, by)
    except Cancelled:  # git, ended by the same signal, leaves its quarantine behind
        remove(Path(os.environ.get("GIT_QUARANTINE_PATH", "/nonexistent")))
        raise


def receive_ref(app: str, new: str, ref: str, by: str) -> None:
    """Deploy the deploy branch; store any other ref, and say so."""
    branch = ref.removeprefix("refs/heads/")
    wanted = property_of(app, "git", "deploy-branch")
    deploys = branch == wanted if wanted else branch in ("main", "master")
    if ref.startswith("refs/tags/") or (new == ZERO and not deploys):
        return
    if not deploys:
        return warn(f"{branch} is not the deploy branch ({wanted or 'main or master'}): stored, not deployed")
    need(new != ZERO, f"{branch} is the deploy branch and can't be deleted", f"dokku apps:destroy {app}   removes the app")
    # git looks at these after the hook: what it would refuse then must not be live by then
    need(git(app, "cat-file", "-t", new, quarantine=True) == "commit", f"{branch} can't stand on a tag",
         f"push the commit that it names: git push dokku@SERVER:{app} 'TAG^{{}}:{ref}'")
    ends = {line for path in repository_of(app).glob("shallow_*") for line in read_lines(path)}  # of the history that a push brings, while git works on it
    coming = run(["git", f"--git-dir={repository_of(app)}", "rev-list", new, "--not", "--all"], env=git_environment(quarantine=True), check=False)
    need(not coming.returncode and ends.isdisjoint(coming.stdout.decode().split()), "That comes from a shallow clone, whose history git does not take",
         "git fetch --unshallow   (GitHub Actions: fetch-depth: 0), then push again")
    deploy(app, new, by)
    write_property(app, "git", "deploy-branch", branch) if not wanted else None
    git(app, "symbolic-ref", "HEAD", f"refs/heads/{branch}")
    write_property(app, "git", "source-image", "")


# ---------------------------------------------------------------------------------------------------------------------
# 20 Front door: who asks for what, and with which exit code it ends

def asked_by_ssh(name: str) -> tuple[list[str], Caller]:
    """Split what an ssh client asked for into words, quotes honoured, nothing expanded; and find the caller by a key's name."""
    try:
        words = shlex.split(os.environ.get("SSH_ORIGINAL_COMMAND", ""))
    except ValueError as error:
        raise UsageError(f"That command can't be read: {error}", "check its quotes") from None
    if words[:1] and words[0].startswith("git-"):
        words[1:] = [word.strip("/").removesuffix(".git") for word in words[1:]]
    if not (key := next((key for key in read_keys() if key.name == name), None)) or is_over(key):
        raise AccessDenied  # a connection that was made in time may still be open
    return words, Caller(name, key.role, key.apps, address=os.environ.get("SSH_CONNECTION", "").partition(" ")[0])


def do_command(row: Command, chosen: Mapping[str, Any], caller: Caller) -> int:
    """Call the function of a command with what it asks for, and print what it gives where the table says so; give the exit code."""
    given = {"noun": row.name.partition(":")[0], "purpose": row.name, **chosen, **row.fixed, "caller": caller}
    code, body = row.body.__code__, row.body
    asked = code.co_varnames[:code.co_argcount]
    rest = {*chosen, *row.fixed} - {"style", "app"} if code.co_flags & 8 else set()  # it takes whatever else there is (inspect.CO_VARKEYWORDS)
    outcome = body(**{name: value for name, value in given.items() if name in asked or name in rest})
    if not row.call.startswith("print "):
        return outcome if isinstance(outcome, int) else 0
    if chosen.get("style") == "json":
        say_json(outcome)
    elif isinstance(outcome, str):
        say(outcome)
    elif isinstance(outcome, dict):
        say_table([[f"{key}:", str(value)] for key, value in outcome.items()])
    else:
        say_table([list(one.values()) for one in outcome]) if outcome and isinstance(outcome[0], dict) else say_lines(outcome)
    return 0


def run_command(words: list[str], caller: Caller, *, hook: bool = False) -> int:
    """Find the command, check access, check the words, do it; note it in events."""
    lead = 0
    while words[lead:] and words[lead] in GLOBAL_WORDS:  # those that stand before a command come behind it
        lead += 2 if words[lead] == "--app" else 1
    words = [*words[lead:lead + 1], *words[:lead], *words[lead + 1:]] or ["help"]
    row = find_command({"--help": "help", "-h": "help", "--version": "version"}.get(words[0], words[0]))
    args = row.args if row else []
    needs_words = any(not arg.flags and arg.many not in ("?", "*") and not arg.raw and not arg.unknown for arg in args)
    if not row or (len(words) == 1 and needs_words and commands_of(words[0])):
        return help_command(words[0].removesuffix(":help"), False) or 0
    asked = words[1:2] if any(arg.raw for arg in args) else words[1:]  # later ones are for the user's own command
    if "--help" in asked or ("-h" in asked and row.access != "hook"):
        return say(usage_of(row)) or 0
    absent = {arg.name: None for arg in commands()[row.name].args}  # this spelling may know fewer
    began, code = time.monotonic(), 70
    chosen = require_allowed(row, caller, absent | read_words(row, words[1:], caller), hook)
    if row.access != "local":
        become_owner(ROOT)
    if (ROOT / "TRACE").exists():
        os.environ["DOKKU_TRACE"] = "1"
    os.environ.setdefault("DOKKU_CALLER", caller.name)
    try:
        code = do_command(row, chosen, caller)
    except DokkuError as error:
        code = error.code
        raise
    finally:
        if row.access.removesuffix("+") not in QUIET_ACCESS:
            record_event(caller, row.name, app=chosen.get("app") or chosen.get("new") or "", result=code, seconds=time.monotonic() - began,
                         note=getattr(chosen.get("service"), "name", ""))
    return code


def main(words: list[str]) -> int:
    """Run one command and give its exit code; the one place where errors are caught."""
    try:
        if words[:1] == ["--as"] and len(words) > 1:
            become_owner(ROOT)
            return run_command(*asked_by_ssh(words[1]))
        hook = words == ["git-hook"] and bool(os.environ.get("DOKKU_LOCK_FD"))
        return run_command(words, Caller(pwd.getpwuid(os.getuid()).pw_name, local=True), hook=hook)
    except DokkuError as error:
        return complain(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("docker", "requests", "urllib3"):
            return complain(DokkuError(f"Docker went away or refused: {error}", "see whether it runs: sudo service docker status; then try again"))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE):
            return complain(DokkuError(f"{error.strerror}: {error.filename or ROOT}", "make room (df -h), then do it again; nothing was lost"))
        import tempfile
        import traceback
        with tempfile.NamedTemporaryFile("w", prefix="dokku-crash-", suffix=".log", delete=False) as log:
            log.write(f"dokku_py {VERSION}, Python {sys.version}\n{traceback.format_exc()}")
        return complain(DokkuError(f"This is a bug in dokku_py: {type(error).__name__}", f"please report it with {log.name}", 70))


def front_door(argv: Sequence[str]) -> NoReturn:
    """Run one command and leave at once: taking the interpreter down takes longer than most commands."""
    on_leaving(leave)
    os.umask(0o022)  # nginx reads what we write, and images hold it; secrets are for us alone whatever this says
    gc.set_threshold(100_000)  # imports make many objects and no garbage
    code = main(argv)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    front_door(sys.argv[1:])
