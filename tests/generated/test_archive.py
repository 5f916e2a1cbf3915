"""templates/archive/read-archive: honest archives come out as they were made, hostile ones are refused in one line. Read by real git."""

import gzip
import io
import os
import random
import stat
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

READER = Path(__file__).parent.parent.parent / "templates" / "archive" / "read-archive"
LIMITS = ("100", "1m")
ZERO = "0" * 40


def read(path, *limits, memory=None, strip=""):
    """Read an archive; give the exit code, what is for git and what is for people. `memory` is a smaller bound than its own."""
    bounds = ["prlimit", f"--as={memory}"] if memory else []
    done = subprocess.run([*bounds, READER, path, "a message", "somebody", "me@example.com", ZERO, strip, *(limits or LIMITS)], capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "archive"


@pytest.fixture
def taken(tmp_path, archive):
    """Have git import what the archive holds; give mode and content by name."""
    def take(*limits, **options):
        code, stream, error = read(archive, *limits, **options)
        assert code == 0, error
        repository = tmp_path / "repo.git"
        subprocess.run(["git", "init", "-q", "--bare", repository], check=True)
        git = ["git", f"--git-dir={repository}"]
        subprocess.run([*git, "fast-import", "--quiet", "--force", "--date-format=now"], input=stream, check=True)
        rows = subprocess.run([*git, "ls-tree", "-r", "-z", "INCOMING_HEAD"], capture_output=True, check=True).stdout.split(b"\0")[:-1]
        found = {}
        for meta, _, name in (row.partition(b"\t") for row in rows):
            mode, _, blob = meta.split()
            found[os.fsdecode(name)] = (mode.decode(), subprocess.run([*git, "cat-file", "blob", blob], capture_output=True, check=True).stdout)
        assert subprocess.run([*git, "fsck", "--strict", "--no-dangling"], capture_output=True).stderr.decode().count("error") == 0
        return found
    return take


@pytest.fixture
def refused(archive):
    """Expect the archive to be refused with these words, in one line and without a traceback."""
    def refuse(words, *limits):
        code, _, error = read(archive, *limits)
        assert code != 0 and words in error and len(error.splitlines()) == 1 and "Traceback" not in error, (code, error)
    return refuse


def member(name, content=b"x", **facts):
    row = tarfile.TarInfo(name)
    row.size = len(content)
    for key, value in facts.items():
        setattr(row, key, value)
    return row, content


def write_tar(path, *members, mode="w", **options):
    with tarfile.open(path, mode, **options) as tar:
        for row, content in members:
            tar.addfile(row, io.BytesIO(content))


def write_zip(path, *members, **options):
    with zipfile.ZipFile(path, "w", **options) as packed:
        for name, content, mode in members:
            row = zipfile.ZipInfo(name)
            row.external_attr = mode << 16
            row.compress_type = packed.compression
            packed.writestr(row, content)


HONEST = {"run.sh": ("100755", b"#!/bin/sh\n"), "lib/deep/note": ("100644", b"hello\n"), "link": ("120000", b"lib/deep/note"),
          "name with blanks and \"quotes\"": ("100644", b"q"), "naïve-日本": ("100644", b"u"), "empty": ("100644", b"")}


def honest_tree(folder):
    """Make the honest tree on disk, with a setuid file's bit for nothing."""
    for name, (mode, content) in HONEST.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if mode == "120000":
            path.symlink_to(content.decode())
        else:
            path.write_bytes(content)
            path.chmod(0o4755 if mode == "100755" else 0o644)
    return folder


@pytest.mark.parametrize("option", ["--format=gnu", "--format=pax", "--format=ustar", "--format=v7", "--gzip", "--sparse"])
def test_what_tar_writes_comes_out_as_it_was(option, tmp_path, archive, taken):
    honest_tree(tmp_path / "tree")
    done = subprocess.run(["tar", "-cf", archive, option, "-C", tmp_path / "tree", "."], capture_output=True)
    if done.returncode:
        pytest.fail(f"tar {option}: {done.stderr}")
    assert taken() == HONEST


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_packed_tars(mode, archive, taken):
    write_tar(archive, member("a/b", bytes(10**5)), mode=mode)
    assert taken() == {"a/b": ("100644", bytes(10**5))}


def test_what_git_archive_writes_comes_out_as_it_was(tmp_path, archive, taken):
    tree = honest_tree(tmp_path / "tree")
    git = ["git", "-C", tree, "-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    for kind in ("tar", "tar.gz", "zip"):
        subprocess.run([*git, "archive", "--format", kind, "-o", archive, "HEAD"], check=True)
        assert taken() == HONEST, kind


def test_zips_of_other_programs(archive, taken):
    """Windows writes no modes, Python permissions without a kind, and folders are members of their own or are not."""
    write_zip(archive, ("bare", b"1", 0), ("folder/", b"", 0), ("folder/in", b"2", 0o755), ("kind", b"3", stat.S_IFREG | 0o644), compression=zipfile.ZIP_DEFLATED)
    assert taken() == {"bare": ("100644", b"1"), "folder/in": ("100755", b"2"), "kind": ("100644", b"3")}


def test_a_zip_within_a_tar_is_a_tar(tmp_path, archive, taken):
    inner = io.BytesIO()
    write_zip(inner, ("evil", b"e", 0))
    write_tar(archive, member("inner.zip", inner.getvalue()))
    assert list(taken()) == ["inner.zip"]


def test_one_folder_around_everything_is_left_out_when_asked(archive, taken):
    write_tar(archive, member("top", b"", type=tarfile.DIRTYPE), member("top/a"), member("./top/sub/b"), member("top/top"))
    assert sorted(taken()) == ["top/a", "top/sub/b", "top/top"]
    assert sorted(taken(strip="strip")) == ["a", "sub/b", "top"]
    write_tar(archive, member("one/a"), member("two/a"))
    assert sorted(taken(strip="strip")) == ["one/a", "two/a"]
    write_tar(archive, member("one/a"), member("b"))
    assert sorted(taken(strip="strip")) == ["b", "one/a"]
    write_tar(archive, member("b"))
    assert sorted(taken(strip="strip")) == ["b"]


def test_git_folders_are_left_out(archive, taken):
    write_tar(archive, member("a"), member(".git/config", b"[core]\n\tfsmonitor = touch /tmp/owned\n"), member("sub/.git/HEAD"), member("sub/b"))
    assert sorted(taken()) == ["a", "sub/b"]


def test_a_name_of_other_bytes_than_utf_8(archive, taken):
    write_tar(archive, member("caf\udce9"), member("line\nbreak"), member("tab\tand \\ \""), format=tarfile.GNU_FORMAT, errors="surrogateescape")
    assert sorted(taken()) == ["caf\udce9", "line\nbreak", "tab\tand \\ \""]


def test_a_file_through_a_link_is_never_written_anywhere(tmp_path, archive, taken):
    """The link and the file of one name can't both be: the later one is, within the tree."""
    outside = tmp_path / "outside"
    outside.mkdir()
    write_tar(archive, member("door", b"", type=tarfile.SYMTYPE, linkname=str(outside)), member("door/owned", b"in the tree"))
    assert taken() == {"door/owned": ("100644", b"in the tree")} and not list(outside.iterdir())


def test_of_two_members_of_one_name_the_later_one_counts(archive, taken):
    write_tar(archive, member("a", b"first"), member("./a", b"second"))
    assert taken() == {"a": ("100644", b"second")}


@pytest.mark.parametrize("name", ["/etc/cron.d/owned", "../owned", "a/../../owned", "a/..", "..", "./../owned"])
def test_names_that_lead_out(name, archive, refused):
    write_tar(archive, member("good"), member(name))
    refused("is no name within the tree")
    write_zip(archive, ("good", b"x", 0), (name, b"x", 0))
    refused("is no name within the tree")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"])
def test_hard_links_devices_and_unknown_kinds(kind, archive, refused):
    write_tar(archive, member("good"), member("bad", b"", type=kind, linkname="/etc/shadow"))
    refused("'bad' is neither a file, a folder nor a symbolic link")


def test_devices_in_a_zip(archive, refused):
    write_zip(archive, ("bad", b"", stat.S_IFCHR | 0o666))
    refused("'bad' is neither")


def test_too_many_files_and_too_many_bytes(archive, refused, taken):
    write_tar(archive, *(member(str(number)) for number in range(100)))
    assert len(taken()) == 100
    write_tar(archive, *(member(str(number), b"", type=tarfile.DIRTYPE) for number in range(101)))
    refused("it holds more than 100 files")
    write_tar(archive, member("a", bytes(2**20)))
    assert list(taken()) == ["a"]
    write_tar(archive, member("a", bytes(2**19)), member("b", bytes(2**19 + 1)))
    refused("or 1048576 bytes")


def test_bombs(archive, refused):
    """A few kilobytes that unpack to gigabytes: refused by what they announce, before they are unpacked."""
    header = tarfile.TarInfo("bomb")
    header.size = 2**33
    with gzip.open(archive, "wb") as packed:
        packed.write(header.tobuf() + bytes(2**20))
    refused("or 1048576 bytes")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("bomb", bytes(2**26))
    refused("or 1048576 bytes")
    many = io.BytesIO()
    write_zip(many, *((f"f{number}", b"", 0) for number in range(70_000)))
    archive.write_bytes(many.getvalue())
    refused("it holds more than 100 files")


def test_a_zip_that_says_less_than_it_holds(archive, refused):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a", bytes(2**26))
    packed = bytearray(archive.read_bytes())
    place = packed.index(b"PK\1\2") + 24
    packed[place:place + 4] = (1000).to_bytes(4, "little")
    archive.write_bytes(packed)
    code, stream, error = read(archive)
    assert code != 0 and len(stream) < 2**20 and "Traceback" not in error


def test_a_sparse_file_of_a_terabyte(tmp_path, archive, refused):
    with (tmp_path / "hole").open("wb") as hole:
        hole.truncate(2**40)
    for option in ("--format=gnu", "--format=pax"):
        subprocess.run(["tar", "-cSf", archive, option, "-C", tmp_path, "hole"], check=True)
        refused("or 1048576 bytes")


def test_headers_that_claim_enormous_lengths(archive):
    """A pax header, a long name: what is read at once. In the memory and time that the reader has, it ends."""
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        header = tarfile.TarInfo("x")
        header.type, header.size = kind, 2**29
        with gzip.open(archive, "wb", compresslevel=1) as packed:
            packed.write(header.tobuf(tarfile.GNU_FORMAT))
            for _ in range(32):
                packed.write(b"9" * 2**24)
        code, _, error = read(archive, memory=2**28)
        assert code != 0 and "Traceback" not in error and len(error) < 500, error


def test_negative_lengths(archive):
    """tarfile goes back for ever where a length is below zero (CVE-2025-8194); this ends."""
    row = tarfile.TarInfo("bad")
    block = bytearray(row.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 11 + b"\x00"  # base-256: -256
    block[148:156] = b"        "
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    archive.write_bytes(bytes(block) + bytes(10240))
    code, _, error = read(archive)
    assert code != 0 and "Traceback" not in error
    write_tar(archive, member("bad", pax_headers={"size": "-512"}), member("good"), format=tarfile.PAX_FORMAT)
    code, _, error = read(archive)
    assert code != 0 and "Traceback" not in error


def test_what_is_cut_off_is_not_taken_in_part(tmp_path, archive, refused):
    """Also where the cut is between two members: tarfile alone takes that for the end."""
    write_tar(archive, *(member(str(number), bytes(512)) for number in range(10)))
    whole = archive.read_bytes()
    for length in (512, 1024, 5120, 5632, 700, 10240):
        archive.write_bytes(whole[:length])
        code, _, error = read(archive)
        assert code != 0 and error.strip() and "Traceback" not in error, length
    for packed in (gzip.compress(whole)[:-20], gzip.compress(whole)[:-8] + b"wrongsum"):
        archive.write_bytes(packed)
        code, _, error = read(archive)
        assert code != 0 and error.strip() and "Traceback" not in error
    broken = bytearray(whole)
    broken[1024 + 100] ^= 0xFF  # a header in the middle
    archive.write_bytes(broken)
    refused("it is cut off or damaged")


def test_what_is_no_archive(archive, refused):
    for content in (b"", b"hello\n", b"PK\3\4", b"\x1f\x8b", b"#mtree\n./a type=file content=/etc/passwd\n", os.urandom(5000)):
        archive.write_bytes(content)
        code, _, error = read(archive)
        assert code != 0 and "Traceback" not in error and "root:" not in error, content


def test_an_encrypted_zip(archive):
    write_zip(archive, ("a", b"x", 0))
    packed = bytearray(archive.read_bytes())
    packed[6] |= 1
    packed[packed.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(packed)
    code, _, error = read(archive)
    assert code != 0 and "Traceback" not in error


@pytest.mark.parametrize("kind", ["gnu", "pax", "tar.gz", "zip"])
def test_damaged_archives_never_end_in_a_traceback(kind, archive, tmp_path):
    """Bytes changed at random: taken or refused, with nothing outside of the tree and never more bytes than allowed."""
    chance = random.Random(20)  # noqa: S311 - the same each time
    members = [member("a" * 120, b"y" * 700), member("b/c"), member("l", b"", type=tarfile.SYMTYPE, linkname="a"), member("e", b"z" * 40)]
    if kind == "zip":
        write_zip(archive, ("a", b"y" * 700, 0o644), ("b/c", b"x", 0o755), compression=zipfile.ZIP_DEFLATED)
    else:
        write_tar(archive, *members, mode="w:gz" if kind == "tar.gz" else "w", format=tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT)
    whole = archive.read_bytes().rstrip(b"\0") + bytes(1024) if kind in ("gnu", "pax") else archive.read_bytes()
    for _ in range(15):
        changed = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 5))):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        if kind in ("gnu", "pax") and chance.random() < 0.5:  # a right checksum, so that more than that is tried
            changed[148:156] = b"        "
            changed[148:156] = f"{sum(changed[:512]):06o}\0 ".encode()
        archive.write_bytes(changed)
        code, stream, error = read(archive)
        assert code in (0, 1) and "Traceback" not in error and len(error.splitlines()) <= 1, (code, error)
        assert len(stream) < 2**21 and b'"\\056\\056\\057' not in stream
