"""What `deploy/` says: by the schemas of Compose and Kubernetes, and the same as `nst-serve` does."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml

from nst_server.access import Access
from nst_server.endpoints import Endpoints
from nst_server.installation.docker import IMAGE, PORTS
from nst_server.tls import Certificate
from nst_server.triton_command import ALLOCATOR_VARIABLES, Launch

from . import queries

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BIN = Path(sys.executable).parent
VERSIONS = ("1.30", "1.33", "1.37")
"""Of Kubernetes, whose schemas the objects must satisfy."""

SCHEMAS = json.loads((Path(__file__).parent / "schemas.json").read_text())
"""Written by hand: of KServe's and KEDA's objects only the fields that are used here, and nothing else is allowed."""


def objects(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


BASE = {
    manifest["kind"]: manifest
    for name in yaml.safe_load((KUBERNETES / "base/kustomization.yaml").read_text())["resources"]
    for manifest in objects(KUBERNETES / "base" / name)
}
CONTAINER = BASE["ServingRuntime"]["spec"]["containers"][0]


def check(manifest: dict[str, Any]) -> None:
    """By its schema, unknown fields refused; what is a pod's in another's object, as a pod of its own."""
    if manifest["kind"] not in SCHEMAS:
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)
        return
    jsonschema.Draft202012Validator({**SCHEMAS[manifest["kind"]], "$defs": SCHEMAS["$defs"]}).validate(manifest)
    spec = manifest["spec"]
    if manifest["kind"] == "ServingRuntime":
        check_pod(spec)
    if manifest["kind"] == "InferenceService":
        predictor = spec["predictor"]
        ours = ("model", "minReplicas", "maxReplicas", "annotations", "labels")
        pod = {name: value for name, value in predictor.items() if name not in ours}
        resources = predictor["model"].get("resources", {})
        check_pod({**pod, "containers": [{"name": "kserve-container", "image": "x", "resources": resources}]})
    if manifest["kind"] == "ScaledObject":
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        scaler = {
            "scaleTargetRef": {**spec["scaleTargetRef"]},
            "minReplicas": spec["minReplicaCount"],
            "maxReplicas": spec["maxReplicaCount"],
            "behavior": behavior,
        }
        check({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {}, "spec": scaler})


def check_pod(spec: dict[str, Any]) -> None:
    pod = {name: value for name, value in spec.items() if name not in ("protocolVersions", "supportedModelFormats")}
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod})


@pytest.mark.parametrize("kind", BASE)
def test_objects_of_kubernetes(kind: str) -> None:
    check(BASE[kind])


def mistakes() -> Iterator[Any]:
    yield "Service", ("spec", "port"), 1
    yield "NetworkPolicy", ("spec", "ingress"), "all"
    yield "ServingRuntime", ("spec", "containers", 0, "readyProbe"), {}
    yield "ServingRuntime", ("spec", "containers", 0, "ports", 0, "containerPort"), "8000"
    yield "InferenceService", ("spec", "predictor", "model", "storageURI"), "s3://nst/x"
    yield "InferenceService", ("spec", "predictor", "terminationGracePeriodSeconds"), "long"
    yield "ScaledObject", ("spec", "triggers", 0, "metadata", "threshold"), 2
    yield "ScaledObject", ("spec", "advanced", "horizontalPodAutoscalerConfig", "behavior", "scaleOut"), {}


@pytest.mark.parametrize(("kind", "path", "value"), list(mistakes()))
def test_the_schemas_find_mistakes(kind: str, path: tuple[Any, ...], value: Any) -> None:
    wrong = json.loads(json.dumps(BASE[kind]))
    *inner, last = path
    place = wrong
    for step in inner:
        place = place[step]
    place[last] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(wrong)


@pytest.fixture(scope="module")
def kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl, whose kustomize puts the folders together, is not on this machine")
    return found


@pytest.mark.parametrize(
    ("overlay", "storage", "gpus"),
    [
        ("base", "s3://nst/model_repository", None),
        ("gpu", "s3://nst/model_repository_gpu", "1"),
        ("volume", "pvc://nst-models/model_repository", None),
        ("openshift", "s3://nst/model_repository", None),
    ],
)
def test_kustomize(kubectl: str, overlay: str, storage: str, gpus: str | None) -> None:
    built = subprocess.run([kubectl, "kustomize", KUBERNETES / overlay], capture_output=True, text=True, check=True)
    found = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(built.stdout)}
    assert set(found) - {"PersistentVolumeClaim"} == set(BASE)
    for manifest in found.values():
        check(manifest)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "nst"
    model = found["InferenceService"]["spec"]["predictor"]["model"]
    assert model["storageUri"] == storage
    assert model.get("resources", {}).get("limits", {}).get("nvidia.com/gpu") == gpus
    assert ("secrets" in found["ServiceAccount"]) is storage.startswith("s3:")
    (container,) = found["ServingRuntime"]["spec"]["containers"]
    assert ("runAsUser" in container["securityContext"]) is (overlay != "openshift")


def test_secrets(kubectl: str, tmp_path: Path) -> None:
    """From files, under the names that the other objects refer to."""
    folder = tmp_path / "secrets"
    shutil.copytree(KUBERNETES / "secrets", folder)
    for name in ("token", "key", "tls.crt", "tls.key"):
        (folder / name).write_text("secret")
    (folder / "s3.env").write_text("AWS_ACCESS_KEY_ID=one\nAWS_SECRET_ACCESS_KEY=two\n")
    built = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True)
    found = {manifest["metadata"]["name"]: manifest for manifest in yaml.safe_load_all(built.stdout)}
    for manifest in found.values():
        check(manifest)
    assert set(found["nst-access"]["data"]) >= {
        variable["valueFrom"]["secretKeyRef"]["key"] for variable in CONTAINER["env"] if "valueFrom" in variable
    }
    (volume,) = BASE["ServingRuntime"]["spec"]["volumes"]
    assert found[volume["secret"]["secretName"]]["type"] == "kubernetes.io/tls"
    (account,) = BASE["ServiceAccount"]["secrets"]
    assert set(found[account["name"]]["data"]) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def test_no_secret_is_kept_by_git(tmp_path: Path) -> None:
    """By the files that git reads, in a repository of the test's own: the checkout may be an archive."""
    paths = [f"deploy/kubernetes/secrets/{name}" for name in ("token", "key", "tls.crt", "tls.key", "s3.env")]
    for rules in (Path(".gitignore"), Path("deploy/kubernetes/secrets/.gitignore")):
        if (ROOT / rules).exists():
            (tmp_path / rules).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / rules, tmp_path / rules)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    command = ["git", "check-ignore", *paths, "deploy/.env"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.split() == [*paths, "deploy/.env"]


def test_names_fit_together() -> None:
    """What selects pods selects those of the service; KServe calls a predictor's Deployment by the service's name."""
    service = BASE["InferenceService"]
    labels = service["spec"]["predictor"]["labels"]
    assert BASE["Service"]["spec"]["selector"] == labels
    assert BASE["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert BASE["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    (spread,) = service["spec"]["predictor"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
    assert BASE["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == f"{service['metadata']['name']}-predictor"
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == BASE["ServingRuntime"]["metadata"]["name"]
    assert model["modelFormat"] in BASE["ServingRuntime"]["spec"]["supportedModelFormats"]
    assert service["spec"]["predictor"]["serviceAccountName"] == BASE["ServiceAccount"]["metadata"]["name"]
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == PORTS
    assert {port["targetPort"] for port in BASE["Service"]["spec"]["ports"]} < set(ports.values())
    assert CONTAINER["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": ports["http"]}
    assert CONTAINER["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": ports["http"]}


def test_a_server_ends_after_its_callers_have_left_it() -> None:
    """Connections end by age while it waits, and the wait and the rest fit into the time that it gets."""
    ages = dict(argument.split("=") for argument in CONTAINER["args"] if "connection-age" in argument)
    dns = 30  # seconds that the DNS of a cluster may keep an answer
    (_, wait) = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    age, grace = (int(ages[f"--grpc-max-connection-age{end}"]) / 1000 for end in ("", "-grace"))
    assert int(wait) > age + dns
    assert BASE["InferenceService"]["spec"]["predictor"]["terminationGracePeriodSeconds"] > int(wait) + grace


def launch_options() -> set[str]:
    """What `nst-serve --docker` would say to Triton, with the secrets and files as Kubernetes names them."""
    access = Access("$(NST_KEY)", "$(NST_TOKEN)")
    launch = Launch(Path("/mnt/models"), Endpoints("0.0.0.0"), None, access, Certificate(Path("c"), Path("k")))
    return set(launch.options("/mnt/models", {}, ("/tls/tls.crt", "/tls/tls.key"), access))


def test_kubernetes_starts_triton_as_nst_serve_does() -> None:
    arguments = set(CONTAINER["args"])
    assert launch_options() <= arguments
    assert {argument.split("=")[0] for argument in arguments - launch_options()} == {
        "--grpc-max-connection-age",
        "--grpc-max-connection-age-grace",
    }
    environment = {variable["name"]: variable.get("value") for variable in CONTAINER["env"]}
    assert ALLOCATOR_VARIABLES.items() <= environment.items()


def test_the_image_has_the_same_memory() -> None:
    (line,) = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("ENV MALLOC")]
    assert dict(word.split("=") for word in line.split()[1:]) == ALLOCATOR_VARIABLES


def test_the_image_is_one_and_the_same() -> None:
    assert CONTAINER["image"] == IMAGE
    images = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert IMAGE in images
    for image in images:
        assert re.search(r":\d+\.\d+", image) or image in ("source", "export"), image


def test_compose() -> None:
    """By the schema of the Compose specification, and versions are pinned; every service has a limit of memory."""
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(services) == {"triton", "triton-gpu", "web", "prometheus", "grafana"}
    for name, service in services.items():
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if "build" in service:
            assert (DEPLOY / "Dockerfile").read_text().count(f" AS {service['build']['target']}\n") == 1
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (DEPLOY / volume.split(":")[0]).exists(), volume
    assert services["triton"]["profiles"] == ["cpu"] and services["triton-gpu"]["profiles"] == ["gpu"]


def test_what_compose_refers_to() -> None:
    """Prometheus looks for the servers by the name that they share, on Triton's port; Grafana for Prometheus."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    (scrape,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    (names,) = scrape["dns_sd_configs"]
    for name in ("triton", "triton-gpu"):
        assert services[name]["networks"]["default"]["aliases"] == names["names"]
    assert names["port"] == PORTS["metrics"]
    assert services["web"]["command"][-1] == f"grpc://{names['names'][0]}:{PORTS['grpc']}"
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
    panels = queries.dashboard()["panels"]
    assert {target["datasource"]["uid"] for panel in panels for target in panel["targets"]} == {source["uid"]}


def test_the_page_has_the_options_that_its_container_gives() -> None:
    shown = subprocess.run([BIN / "nst", "web", "--help"], capture_output=True, text=True, env={"COLUMNS": "200"})
    for option in ("--address", "--port", "--url"):
        assert option in shown.stdout, shown.stdout


def test_the_containers_file() -> None:
    command = [BIN / "hadolint", "--failure-threshold", "info", DEPLOY / "Dockerfile"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_what_the_containers_file_copies_is_sent_to_docker() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line and "${" not in line:
            for source in line.split()[1:-1]:
                assert f"!{source}" in ignore and (ROOT / source).exists(), source


@pytest.mark.parametrize("title", ["Failed requests", "Requests"])
def test_requests_that_our_backends_refuse_are_not_shown_as_successes(title: str) -> None:
    """Triton counts them as such; with NVIDIA's backends, which have no series of ours, its own counts are right."""
    (panel,) = [panel for panel in queries.dashboard()["panels"] if panel["title"] == title]
    read = {name for target in panel["targets"] for name, _ in queries.series(queries.filled(target["expr"]))}
    assert {"nv_inference_request_success", "nv_inference_request_failure", "nst_requests_total"} <= read
    first = panel["targets"][0]["expr"]
    assert " or vector(0))" in first or " or sum by (model)" in first, "without our series there is a figure, too"


def test_panels_stand_side_by_side() -> None:
    """None over another, none beyond Grafana's 24 columns; each has an identity of its own."""
    panels = queries.dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


@pytest.mark.parametrize("query", queries.queries())
def test_queries_are_promql(query: str) -> None:
    promql_parser.parse(query)
