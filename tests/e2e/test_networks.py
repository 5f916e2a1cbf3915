"""Networks: apps that share one meet, apps that share none do not, and nginx reaches every app all the same."""

import json
import uuid

import pytest
from conftest import HELLO_TEXT, docker, sh, wait_until

ASK = "use IO::Socket::INET; $s = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => 8080, Timeout => 3) or exit 9; print $s qq(GET / HTTP/1.0\\r\\n\\r\\n); print <$s>"


@pytest.fixture
def network(admin):
    """Make networks; those that are left are gone afterwards."""
    made = []

    def make(create=True):
        made.append(f"t{uuid.uuid4().hex[:8]}")
        if create:
            admin.ok("network:create", made[-1])
        return made[-1]

    yield make
    for name in made:
        done = sh("dokku", "network:destroy", name)
        assert done.returncode == 0 or "does not exist" in done.stderr, done.stderr


def networks_of(app, dyno="web.1"):
    return {name: facts for name, facts in app.inspect(dyno)["NetworkSettings"]["Networks"].items() if name != "dokku"}


def reaches(app, address):
    """Say whether a process of an app gets an answer from another one's port."""
    done = sh("docker", "exec", f"{app.name}.web.1", "perl", "-e", ASK, address)
    assert done.returncode in (0, 9), done.stderr
    return HELLO_TEXT in done.stdout


def deployed(app, key="", *names):
    app.ok("apps:create")
    if key:
        app.ok("network:set", key, *names)
    app.deploy()
    return app


def test_apps_meet_in_a_network_that_they_share_and_nowhere_else(network, new_app):
    common, apart = network(), network()
    one, two = (deployed(new_app(), "attach-post-create", common) for _ in range(2))
    other, alone = deployed(new_app(), "attach-post-create", apart), deployed(new_app())
    assert reaches(one, f"{two.name}.web") and reaches(two, f"{one.name}.web")
    for app in (other, alone):
        assert not reaches(app, f"{one.name}.web")
        assert not any(reaches(app, facts["IPAddress"]) for facts in one.inspect()["NetworkSettings"]["Networks"].values())
        assert not reaches(one, app.inspect()["NetworkSettings"]["Networks"]["dokku"]["IPAddress"])
    assert all(app.get() == (200, HELLO_TEXT) for app in (one, two, other, alone))
    assert one.person.ssh("run", one.name, "perl", "-e", f"'{ASK}'", f"{two.name}.web").stdout.strip().endswith(HELLO_TEXT)


def test_when_a_process_joins(network, switch):
    early, late, first = network(), network(), network()
    switch.ok("apps:create")
    for key, name in (("initial-network", first), ("attach-post-create", early), ("attach-post-deploy", late)):
        switch.ok("network:set", key, name)
    switch.ok("network:set", "tld", "internal.example")
    probe = "grep -c : /proc/net/dev > /tmp/count; exec perl /server.pl"
    switch.deploy(Procfile=f"web: {probe}\nrelease: grep -c : /proc/net/dev\n")
    assert set(networks_of(switch)) == {early, late, first}
    assert all(f"{switch.name}.web.internal.example" in facts["Aliases"] for facts in networks_of(switch).values())
    assert switch.get("/file/tmp/count") == (200, "4")  # lo, the product's own and two: the third once it served
    assert switch.ok("run", "grep", "-c", ":", "/proc/net/dev").strip() == "5"
    switch.ok("ps:scale", "web=2")
    assert set(networks_of(switch, "web.2")) == {early, late, first}


def test_several_networks_and_a_restart_keep_the_address_that_nginx_knows(network, switch):
    names = network(), network()
    deployed(switch, "attach-post-create", *names)
    address = switch.inspect()["NetworkSettings"]["Networks"]["dokku"]["IPAddress"]
    assert switch.get("/die")[0] in (200, 502)
    wait_until(lambda: switch.get()[0] == 200)
    assert switch.inspect()["NetworkSettings"]["Networks"]["dokku"]["IPAddress"] == address and set(networks_of(switch)) == set(names)


def test_a_running_app_is_put_into_networks_and_taken_out(network, switch):
    one, two = network(), network()
    deployed(switch, "attach-post-deploy", one)
    identity = switch.inspect()["Id"]
    switch.ok("network:set", "attach-post-deploy", two)
    assert "networks on record" in switch.person.ssh("doctor", switch.name).stdout
    switch.ok("network:rebuild")
    assert set(networks_of(switch)) == {two} and switch.inspect()["Id"] == identity
    switch.ok("network:set", "attach-post-deploy")
    switch.person.ok("network:rebuildall")
    assert networks_of(switch) == {} and switch.inspect()["Id"] == identity and switch.get() == (200, HELLO_TEXT)
    assert switch.person.ssh("doctor", switch.name).returncode == 0


def test_a_network_is_made_found_listed_and_destroyed(network, admin, bare):
    name = network(create=False)
    for words in (("network:exists", name), ("network:info", name), ("network:destroy", name), ("network:set", bare.name, "initial-network", name)):
        assert "Network does not exist" in admin.refused(*words)
    admin.ok("network:create", name)
    assert "exists already" in admin.refused("network:create", name)
    assert admin.ok("network:exists", name) == "Network exists\n" and "Name:" in admin.ok("network:info", name)
    assert json.loads(admin.ok("network:info", name, "--format", "json"))["Name"] == name
    assert admin.ok("network:list").startswith("=====> Networks\n") and {"bridge", "dokku", name} <= set(admin.ok("--quiet", "network:list").split())
    managed = [row["Name"] for row in json.loads(admin.ok("network:list", "--dokku-managed", "--format", "json"))]
    assert name in managed and "dokku" not in managed and "bridge" not in managed
    bare.ok("network:set", "initial-network", name)
    assert bare.ok("network:report", "--network-initial-network") == f"{name}\n"
    assert f"is the network of {bare.name}" in admin.refused("network:destroy", name)
    bare.ok("network:set", "initial-network")
    assert "was not made by network:create" in admin.refused("network:destroy", "bridge")
    admin.ok("network:destroy", name)
    assert name not in docker("network", "ls", "--format", "{{.Name}}").split()


def test_a_network_that_docker_lost_is_made_again(network, switch):
    name = network()
    deployed(switch, "attach-post-create", name)
    switch.ok("ps:stop")
    docker("network", "disconnect", "-f", name, f"{switch.name}.web.1")
    docker("network", "rm", name)
    switch.ok("ps:start")
    assert set(networks_of(switch)) == {name} and switch.get() == (200, HELLO_TEXT)


def test_a_network_that_cannot_be_joined_rejects_the_push(switch, admin):
    name = f"t{uuid.uuid4().hex[:8]}"
    docker("network", "create", "--subnet", "10.240.7.0/24", name)
    try:
        deployed(switch)
        switch.ok("network:set", "attach-post-create", name)
    finally:
        docker("network", "rm", name)
    said = switch.rejected(dot_x="2")
    assert "Network does not exist" in said and name in said, said
    assert "Network does not exist" in switch.refused("run", "true")
    assert switch.containers("-a") == [f"{switch.name}.web.1"], "no one-off is left that could not begin"
    switch.assert_untouched()


def test_more_networks_than_docker_has_pools(admin):
    """Docker's own address pools end at about thirty."""
    prefix = f"t{uuid.uuid4().hex[:6]}-"
    names = [f"{prefix}{number}" for number in range(45)]
    try:
        for name in names:
            done = sh("dokku", "network:create", name)
            assert done.returncode == 0, done.stderr
        assert {name for name in admin.ok("--quiet", "network:list").split() if name.startswith(prefix)} == set(names)
        pools = json.loads("[" + ",".join(docker("network", "inspect", "--format", "{{json .IPAM.Config}}", *names).splitlines()) + "]")
        assert len({pool[0]["Subnet"] for pool in pools}) == len(names)
    finally:
        for name in names:
            sh("dokku", "network:destroy", name)
    assert not any(name.startswith(prefix) for name in docker("network", "ls", "--format", "{{.Name}}").split())


@pytest.mark.parametrize("name", ["-x", "a b", "a/b", "''", "x" * 64, "a\nb", "é"])
def test_names_of_networks_refused(admin, name):
    admin.refused("network:create", f"'{name}'" if name != "''" else name, code=2)


def test_a_deploy_key_may_join_nothing(deployer, live, network):
    name = network()
    for words in (("network:set", live.name, "initial-network", name), ("network:create", "other"), ("network:destroy", name), ("network:rebuild", live.name), ("network:rebuildall",)):
        deployer.refused(*words, code=77)
