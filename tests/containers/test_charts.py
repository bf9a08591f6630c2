"""Both charts, as they are rendered, on the real images: from an empty database to an enrolled site and its trainer.

Every pod runs with the user, the mounts, the read-only root and the bounds that the chart gives it. What only a cluster
has is not here: scheduling, NetworkPolicies that are enforced, and a kubelet's own probes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support.charts import Document, rendered
from tests.support.pods import Node, docker, exit_code_in
from tests.support.tools import need_root

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]

TAG = os.environ.get("WARDROUND_VERSION", "0.1.0")
ROLES = ("api", "gateway", "driver")
COORDINATOR = "wr-wardround-coordinator"
SITE = "wr-wardround-site-agent"
LIVE = ("wardround-coordinator", "doctor", "--live", "--config", "/srv/wardround/coordinator.yaml")
STATUS = ("wardround-site", "--state-dir", "/srv/wardround", "status")
WAIT_S = 240.0


def wait_until(what: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, f"in vain waited for: {what}"
        time.sleep(1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A node with a coordinator, and what its chart says."""

    node: Node
    coordinator: tuple[Document, ...]


@pytest.fixture(scope="module")
def cluster(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    need_root()
    repository, _, tag = images["WARDROUND_POSTGRES_IMAGE"].rpartition(":")
    coordinator = rendered(
        "coordinator",
        "test",
        f"image.tag={TAG}",
        f"postgresql.image.repository={repository}",
        f"postgresql.image.tag={tag}",
        "postgresql.existingSecret=database",
        "api.service.port=8443",
        f"addresses.gateway={COORDINATOR}-gateway:8444",
        f"addresses.enrolment={COORDINATOR}-gateway:8445",
    )
    name = f"wardround-charts-{os.getpid()}"
    node = Node(
        name=name,
        folder=tmp_path_factory.mktemp("node"),
        network=name,
        secrets={"database": {"password": b"a-test's-own"}, "wardround-enrolment": {}},
    )
    # Above the folders of pytest, which only its user may pass.
    for parent in (node.folder, *node.folder.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    patch = pytest.MonkeyPatch()
    for key in ("DOCKER_HOST", "PATH"):
        if key in images:
            patch.setenv(key, images[key])
    docker("network", "create", node.network)
    try:
        node.start(coordinator, f"StatefulSet/{COORDINATOR}-postgresql")
        probe = (coordinator, f"StatefulSet/{COORDINATOR}-postgresql", "readinessProbe")
        wait_until("the database is ready", lambda: node.probe(*probe) == 0)
        node.start(coordinator, f"Job/{COORDINATOR}-init-1")
        for role in ROLES:
            node.start(coordinator, f"Deployment/{COORDINATOR}-{role}")
        for role in ROLES:
            container = f"{name}-{COORDINATOR}-{role}"
            wait_until(f"{role} lives", lambda container=container: exit_code_in(container, *LIVE) == 0)
        yield Cluster(node=node, coordinator=coordinator)
    finally:
        node.end()
        docker("network", "rm", node.network, check=False)
        patch.undo()


@pytest.mark.parametrize(
    ("role", "probe"), [("gateway", "livenessProbe"), ("driver", "livenessProbe"), ("driver", "readinessProbe")]
)
def test_probes_find_each_role_well(cluster: Cluster, role: str, probe: str) -> None:
    assert cluster.node.probe(cluster.coordinator, f"Deployment/{COORDINATOR}-{role}", probe) == 0


def test_init_that_finds_a_coordinator_changes_nothing(cluster: Cluster) -> None:
    root = cluster.node.claim(f"{COORDINATOR}-keys") / "coordinator" / "root.pem"
    before = root.read_bytes()
    docker("rm", f"{cluster.node.name}-{COORDINATOR}-init-1")
    shutil.rmtree(cluster.node.folder / "pods" / f"{COORDINATOR}-init-1")
    cluster.node.start(cluster.coordinator, f"Job/{COORDINATOR}-init-1")
    assert root.read_bytes() == before


def test_schema_of_a_hook_is_brought_up_on_a_database_that_has_it(cluster: Cluster) -> None:
    container = cluster.node.start(cluster.coordinator, f"Job/{COORDINATOR}-migrate")
    assert "has this version's schema" in docker("logs", container)


def test_helm_test_of_the_coordinator_passes(cluster: Cluster) -> None:
    said = docker("logs", cluster.node.start(cluster.coordinator, f"Pod/{COORDINATOR}-test-listeners"))
    assert said.count("ok   ") == 5


def invitation(cluster: Cluster, site: str) -> str:
    """The code of an invitation, as a person with the first admin's token asks for it from inside the network."""
    keys = cluster.node.claim(f"{COORDINATOR}-keys") / "coordinator"
    program = """
import json, ssl, sys, urllib.request
context = ssl.create_default_context(cafile="/keys/root.pem")
head = {"Authorization": "Bearer " + sys.stdin.read().strip(), "Content-Type": "application/json"}
body = json.dumps({"name": sys.argv[2]}).encode()
request = urllib.request.Request(sys.argv[1], data=body, headers=head, method="POST")
print(urllib.request.urlopen(request, context=context).read().decode())
"""
    words = ["run", "--rm", "--interactive", "--network", cluster.node.network, "--entrypoint", "python"]
    words += ["--volume", f"{keys / 'root.pem'}:/keys/root.pem:ro", f"wardround/coordinator:{TAG}", "-c", program]
    url = f"https://{COORDINATOR}-api:8443/api/v1/sites"
    answer = docker(*words, url, site, stdin=(keys / "admin.token").read_text())
    return str(json.loads(answer)["code"])


def test_site_enrols_its_trainer_works_and_has_no_network(cluster: Cluster) -> None:
    node = cluster.node
    code = invitation(cluster, "st-mary")
    documents = rendered(
        "site-agent",
        "minimal",
        f"image.tag={TAG}",
        f"trainer.image.tag={TAG}-cpu",
        f"enrolment.coordinator={COORDINATOR}-gateway:8445",
    )
    site = Node(
        name=f"{node.name}-site",
        folder=node.folder / "site",
        network=node.network,
        secrets={"wardround-enrolment": {"code": code.encode()}},
    )
    for claim in ("hospital-data", "base-models"):
        (site.claim(claim) / "readable").write_text("yes")
    try:
        agent = site.start(documents, f"StatefulSet/{SITE}-agent")
        wait_until("the agent lives", lambda: site.probe(documents, f"StatefulSet/{SITE}-agent", "livenessProbe") == 0)
        keys = site.claim(f"{SITE}-state") / "keys"
        assert keys.stat().st_mode & 0o077 == 0
        said = json.loads(docker("exec", agent, "wardround-site", "--state-dir", "/srv/wardround", "status", "--json"))
        assert said["site_id"] == "st-mary"
        wait_until("it is connected", lambda: " connected; " in docker("exec", agent, *STATUS))

        trainer = site.start(documents, f"Deployment/{SITE}-trainer")
        wait_until(
            "the trainer lives", lambda: site.probe(documents, f"Deployment/{SITE}-trainer", "livenessProbe") == 0
        )
        for folder in ("/data", "/models"):
            assert docker("exec", trainer, "cat", f"{folder}/readable") == "yes"
            assert "Read-only file system" in docker("exec", trainer, "touch", f"{folder}/x", check=False)
        assert "Read-only file system" in docker("exec", trainer, "touch", "/opt/x", check=False)
        # The agent has no data, and no model.
        assert "No such file" in docker("exec", agent, "ls", "/data", "/models", check=False)

        assert "is open" in docker("logs", site.start(documents, f"Pod/{SITE}-test-way-out"))
        closed = docker("logs", site.start(documents, f"Pod/{SITE}-test-trainer-has-no-network"))
        assert closed.count("is closed") == 2

        # A restart finds an enrolled site, and needs no code.
        docker("rm", "--force", agent)
        shutil.rmtree(site.folder / "pods" / f"{SITE}-agent")
        docker("rm", f"{agent}-enrol")
        site.secrets = {}
        site.start(documents, f"StatefulSet/{SITE}-agent")
        wait_until(
            "the agent lives again", lambda: site.probe(documents, f"StatefulSet/{SITE}-agent", "livenessProbe") == 0
        )
    except BaseException:
        # What the pods said, for whoever reads the failure.
        print(*(docker("logs", "--tail", "40", name, check=False) for name in site.made), sep="\n")
        raise
    finally:
        site.end()
