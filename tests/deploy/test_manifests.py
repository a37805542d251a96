"""The Kubernetes manifests and the container file agree with each other and with the server."""

import re
import shlex
from pathlib import Path
from typing import Any

import annotated_types
import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML has no type information

from jaxrec.serving.items import ItemTable
from jaxrec.serving.rules import Filters, load_rules
from jaxrec.serving.schemas import RecommendRequest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
LABEL = "app.kubernetes.io/name"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()

type Manifest = dict[str, Any]


def manifests() -> dict[tuple[str, str], Manifest]:
    """All manifests by kind and name."""
    files = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    found = [part for file in files for part in yaml.safe_load_all(file.read_text())]
    named = {(part["kind"], part["metadata"]["name"]): part for part in found}
    assert len(named) == len(found)
    return named


ALL = manifests()
WORKLOADS = [("Deployment", "jaxrec"), ("StatefulSet", "jaxrec-redis")]


def pod(key: tuple[str, str]) -> Manifest:
    return ALL[key]["spec"]["template"]["spec"]


def container(key: tuple[str, str]) -> Manifest:
    (found,) = pod(key)["containers"]
    return found


def flags_of(command: list[str]) -> dict[str, str]:
    flags = [word for word in command if word.startswith("--")]
    return dict(flag.removeprefix("--").split("=", 1) for flag in flags)


def image_command() -> list[str]:
    (command,) = re.findall(r"^CMD (.*)$", CONTAINERFILE, re.MULTILINE)
    return yaml.safe_load(command)


SERVER = container(("Deployment", "jaxrec"))


def test_everything_that_is_needed_is_there() -> None:
    kinds = {kind for kind, _ in ALL}
    assert kinds == {
        *("Deployment", "StatefulSet", "Service", "ConfigMap", "PersistentVolumeClaim"),
        *("HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"),
    }


@pytest.mark.parametrize("key", WORKLOADS, ids=str)
def test_selectors_find_the_pods_that_they_are_about(key: tuple[str, str]) -> None:
    name, spec = key[1], ALL[key]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert labels == {LABEL: name}
    assert spec["selector"]["matchLabels"] == labels
    service = ALL["Service", name]["spec"]
    assert service["selector"] == labels
    (port,), (open_port,) = service["ports"], container(key)["ports"]
    assert port["targetPort"] == open_port["name"]


def test_disruptions_growth_and_the_network_are_about_the_same_pods() -> None:
    labels = {LABEL: "jaxrec"}
    budget = ALL["PodDisruptionBudget", "jaxrec"]["spec"]
    assert budget["selector"]["matchLabels"] == labels
    scaled = ALL["HorizontalPodAutoscaler", "jaxrec"]["spec"]
    assert scaled["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "jaxrec",
    }
    assert scaled["minReplicas"] > budget["maxUnavailable"] >= 1
    assert "replicas" not in ALL["Deployment", "jaxrec"]["spec"]
    policy = ALL["NetworkPolicy", "jaxrec-redis"]["spec"]
    assert policy["podSelector"]["matchLabels"] == {LABEL: "jaxrec-redis"}
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": labels}}]
    assert rule["ports"][0]["port"] == container(WORKLOADS[1])["ports"][0]["name"]


@pytest.mark.parametrize("key", WORKLOADS, ids=str)
def test_probes_ask_a_port_and_a_path_that_are_there(key: tuple[str, str]) -> None:
    box = container(key)
    ports = {port["name"] for port in box["ports"]}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = box[kind]
        asked = probe.get("httpGet") or probe.get("tcpSocket")
        if asked:
            assert asked["port"] in ports
        if "httpGet" in probe:
            path = "/healthz" if kind == "livenessProbe" else "/readyz"
            assert probe["httpGet"]["path"] == path


@pytest.mark.parametrize("key", WORKLOADS, ids=str)
def test_pods_have_few_rights_and_limits(key: tuple[str, str]) -> None:
    spec, box = pod(key), container(key)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert box["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for kind in ("requests", "limits"):
        assert {"cpu", "memory"} <= box["resources"][kind].keys()


@pytest.mark.parametrize("key", WORKLOADS, ids=str)
def test_what_is_mounted_is_declared_and_what_is_declared_is_mounted(key: tuple[str, str]) -> None:
    spec = pod(key)
    declared = {volume["name"] for volume in spec.get("volumes", ())}
    claims = ALL[key]["spec"].get("volumeClaimTemplates", ())
    declared |= {claim["metadata"]["name"] for claim in claims}
    assert {mount["name"] for mount in container(key)["volumeMounts"]} == declared
    for volume in spec.get("volumes", ()):
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in ALL
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert ("PersistentVolumeClaim", claim) in ALL


def test_no_key_is_in_a_file() -> None:
    text = "".join(file.read_text() for file in DEPLOY.rglob("*.yaml"))
    assert "kind: Secret" not in text
    assert "secretName: jaxrec-keys" in text


def test_the_server_gets_files_that_are_mounted_and_the_store_that_is_there() -> None:
    flags = flags_of(SERVER["command"])
    mounts = {mount["mountPath"]: mount for mount in SERVER["volumeMounts"]}
    assert flags["artifact"] == "/artifact/current"
    for name in ("artifact", "rules", "keys"):
        (mount,) = [m for path, m in mounts.items() if flags[name].startswith(path)]
        assert mount["readOnly"] is True
    for name in ("compile_cache", "audit_log"):
        (mount,) = [m for path, m in mounts.items() if flags[name].startswith(path)]
        assert not mount.get("readOnly")
    assert Path(flags["rules"]).name in ALL["ConfigMap", "jaxrec-rules"]["data"]
    (redis_port,) = ALL["Service", "jaxrec-redis"]["spec"]["ports"]
    assert flags["state"] == f"redis://jaxrec-redis:{redis_port['port']}/0"
    port = SERVER["ports"][0]["containerPort"]
    annotations = ALL["Deployment", "jaxrec"]["spec"]["template"]["metadata"]["annotations"]
    assert flags["port"] == str(port) == annotations["prometheus.io/port"]


def test_the_rules_that_are_there_at_first_are_rules(tmp_path: Path) -> None:
    text = ALL["ConfigMap", "jaxrec-rules"]["data"]["rules.toml"]
    (tmp_path / "rules.toml").write_text(text)
    ids = ["", "a", "b"]
    rules = load_rules(tmp_path / "rules.toml", ItemTable.from_columns(ids, {}))
    key, _ = rules.mask(Filters(), {}, 0.0)
    assert key is None  # everything is allowed


def test_redis_acknowledges_what_is_on_the_disk() -> None:
    command = shlex.join(container(WORKLOADS[1])["command"])
    assert "--appendonly yes --appendfsync always" in command
    assert "--maxmemory-policy noeviction" in command


def test_there_is_time_to_answer_what_is_under_way_before_the_pod_is_killed() -> None:
    wait = float(SERVER["lifecycle"]["preStop"]["exec"]["command"][1])
    limits = RecommendRequest.model_fields["timeout_ms"].metadata
    (most,) = [limit.le for limit in limits if isinstance(limit, annotated_types.Le)]
    assert isinstance(most, int)
    grace = pod(WORKLOADS[0])["terminationGracePeriodSeconds"]
    assert grace >= wait + most / 1000 + 10
    # Two failed probes take a replica out of the service before it stops listening.
    probe = SERVER["readinessProbe"]
    assert wait >= probe["periodSeconds"] * probe["failureThreshold"]


def test_flags_are_those_of_the_script() -> None:
    defined = set(
        re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', (ROOT / "scripts" / "serve.py").read_text())
    )
    assert flags_of(SERVER["command"]).keys() <= defined
    assert flags_of(image_command()).keys() <= defined


def test_the_image_runs_as_nobody_and_is_asked_for_its_health() -> None:
    assert image_command()[:2] == SERVER["command"][:2] == ["python", "scripts/serve.py"]
    user = pod(WORKLOADS[0])["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in CONTAINERFILE
    assert f"127.0.0.1:{flags_of(image_command())['port']}/healthz" in CONTAINERFILE
    assert "'.[export,serve]'" in CONTAINERFILE


def test_what_the_image_copies_is_not_ignored_and_is_there() -> None:
    ignored = (ROOT / ".containerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", CONTAINERFILE, re.MULTILINE)
    for source in " ".join(copies).split():
        assert (ROOT / source).exists()
        assert Path(source).parts[0] in kept
