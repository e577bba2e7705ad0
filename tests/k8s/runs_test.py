"""Training runs and replicas as the cluster shows them, and what users hear when it takes something away or refuses it."""

import json
from pathlib import Path
from typing import Any

import pytest

import leptonai as la
from tests.chaos.flow import job, upload
from tests.cluster import Cluster
from tests.platform import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUNS = "app.kubernetes.io/managed-by=lepton,lepton.dev/role=run"
REPLICAS = "app.kubernetes.io/managed-by=lepton,lepton.dev/role=replica"


def runs_of(tenant: Cluster, job_id: str) -> list[dict[str, Any]]:
    return [
        pod for pod in tenant.get("pods", "--selector", f"{RUNS},lepton.dev/job={job_id}") if "deletionTimestamp" not in pod["metadata"]
    ]


def deployments_of(tenant: Cluster, workspace: str) -> list[dict[str, Any]]:
    return tenant.get("deployments", "--selector", f"{REPLICAS},lepton.dev/workspace={workspace}")


def replicas_of(tenant: Cluster, workspace: str) -> list[dict[str, Any]]:
    """Pods that somebody runs or starts: each is of the ReplicaSet of one Deployment."""
    found = tenant.get("pods", "--selector", f"{REPLICAS},lepton.dev/workspace={workspace},lepton.dev/launch")
    owners = {owner["kind"] for pod in found for owner in pod["metadata"]["ownerReferences"]}
    assert owners <= {"ReplicaSet"}
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def endpoint(tenant: Cluster, name: str = "line") -> dict[str, Any]:
    with tenant.http() as http:
        return dict(http.get(f"/v1/endpoints/{name}").json())


def submitted(tenant: Cluster, number: int = 0, **changes: Any) -> str:
    with tenant.http() as http:
        answer = http.post("/v1/training-jobs", json={**job(number), **changes})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


def shown(tenant: Cluster, job_id: str) -> dict[str, Any]:
    with tenant.http() as http:
        return dict(http.get(f"/v1/training-jobs/{job_id}").json())


def ended(tenant: Cluster, job_id: str, timeout: float = 180) -> dict[str, Any]:
    assert eventually(lambda: shown(tenant, job_id)["state"] in ("succeeded", "failed", "cancelled"), timeout, 0.5), shown(tenant, job_id)
    return shown(tenant, job_id)


def test_a_run_is_a_job_of_one_pod_on_the_node_of_its_allocation(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("jobs")
    upload(tenant, "line")
    id = submitted(tenant, training={"epochs": 2000, "batch_size": 2})
    assert eventually(lambda: runs_of(tenant, id), timeout=60), shown(tenant, id)
    (pod,) = runs_of(tenant, id)
    (made,) = tenant.get("jobs", "--selector", f"{RUNS},lepton.dev/job={id}")
    assert (made["spec"]["completionMode"], made["spec"]["suspend"], made["spec"]["backoffLimit"]) == ("Indexed", False, 0)
    assert made["spec"]["ttlSecondsAfterFinished"] > 0
    assert made["spec"]["activeDeadlineSeconds"] > 0
    spec = pod["spec"]
    with tenant.http() as http:
        (allocation,) = [a for a in http.get("/v1/compute/allocations").json()["allocations"] if a["state"] == "granted"]
    assert spec["nodeName"] == allocation["node"]
    (program,) = spec["containers"]
    assert program["resources"]["limits"]["cpu"] == "1"
    assert spec["automountServiceAccountToken"] is False
    assert not [volume for volume in spec["volumes"] if "projected" in volume]
    assert [each["name"] for each in program["env"]] == ["JOB_COMPLETION_INDEX"], "what it is told is in its Secret"
    # What the run says is heard while it runs.
    assert eventually(lambda: shown(tenant, id).get("progress"), timeout=90), shown(tenant, id)
    with tenant.http() as http:
        http.post(f"/v1/training-jobs/{id}/cancel", json={}).raise_for_status()
    assert ended(tenant, id)["state"] == "cancelled"
    assert eventually(lambda: not tenant.get("pods", "--selector", f"lepton.dev/job={id}"), timeout=60)
    with tenant.http() as http:
        assert http.get(f"/v1/training-jobs/{id}/metrics").json()["metrics"], "kept when the pod is gone"


def test_a_pod_killed_in_the_middle_goes_on_from_its_checkpoint(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("resumed")
    upload(tenant, "line")
    id = submitted(tenant, training={"epochs": 5000, "batch_size": 2, "seed": 1})

    def epoch() -> int:
        return int((shown(tenant, id).get("progress") or {}).get("epoch") or 0)

    assert eventually(lambda: epoch() > 50, timeout=120), shown(tenant, id)
    (pod,) = runs_of(tenant, id)
    before = epoch()
    tenant.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period", "0", "--force")
    assert eventually(lambda: [p for p in runs_of(tenant, id) if p["metadata"]["uid"] != pod["metadata"]["uid"]], timeout=60)
    assert eventually(lambda: epoch() >= before, timeout=90), shown(tenant, id)
    with tenant.http() as http:
        points = http.get(f"/v1/training-jobs/{id}/metrics", params={"name": "loss", "page_size": 10000}).json()["metrics"]
        http.post(f"/v1/training-jobs/{id}/cancel", json={}).raise_for_status()
    # The second attempt began after a checkpoint of the first: no epoch is told twice, and of those that a long run tells none is missing.
    epochs = [point["epoch"] for point in points]
    assert epochs == list(range(epochs[0], epochs[-1] + 1, epochs[0]))
    assert epochs[-1] > before
    assert ended(tenant, id)["attempts"] == 2


def test_a_run_of_two_workers_is_one_job_of_two_pods(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("gang")
    upload(tenant, "line")
    spec = {"training": {"epochs": 30_000, "batch_size": 20, "seed": 1, "workers": 2}, "resources": {"cpu_millis": 500}}
    id = submitted(tenant, **spec)
    assert eventually(lambda: len(runs_of(tenant, id)) == 2, timeout=60), shown(tenant, id)

    def conditions() -> list[tuple[str, str, str]]:
        (found,) = tenant.get("jobs", "--selector", f"{RUNS},lepton.dev/job={id}")
        return [(c["type"], c["status"], c["reason"]) for c in found["status"].get("conditions", ())]

    # It began suspended: the Job controller says when it let it go.
    assert eventually(lambda: conditions() == [("Suspended", "False", "JobResumed")], timeout=30), conditions()
    (made,) = tenant.get("jobs", "--selector", f"{RUNS},lepton.dev/job={id}")
    wanted = made["spec"]
    assert [wanted[key] for key in ("completionMode", "completions", "parallelism", "backoffLimit")] == ["Indexed", 2, 2, 0]
    assert wanted["suspend"] is False
    name = made["metadata"]["name"]
    (service,) = tenant.get("services", "--selector", f"lepton.dev/launch={name}")
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    (policy,) = tenant.get("networkpolicies", "--selector", f"lepton.dev/launch={name}")
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": {"lepton.dev/launch": name}}}]}]
    assert sorted(pod["spec"]["hostname"] for pod in runs_of(tenant, id)) == [f"{name}-0", f"{name}-1"]
    with tenant.http() as http:
        (allocation,) = [a for a in http.get("/v1/compute/allocations").json()["allocations"] if a["state"] == "granted"]
    assert (allocation["workers"], allocation["resources"]["cpu_millis"]) == (2, 500)

    def epoch() -> int:
        return int((shown(tenant, id).get("progress") or {}).get("epoch") or 0)

    assert eventually(lambda: epoch() > 20, timeout=180), shown(tenant, id)
    (peer,) = [pod for pod in runs_of(tenant, id) if pod["spec"]["hostname"] == f"{name}-1"]
    before = epoch()
    tenant.kubectl("delete", "pod", peer["metadata"]["name"], "--grace-period", "0", "--force")
    # All are begun anew, and go on.
    assert eventually(lambda: shown(tenant, id)["attempts"] == 2 and epoch() > before, timeout=180), shown(tenant, id)
    with tenant.http() as http:
        http.post(f"/v1/training-jobs/{id}/cancel", json={}).raise_for_status()
    assert ended(tenant, id)["state"] == "cancelled"
    kinds = "jobs,pods,services,secrets,networkpolicies"
    assert eventually(lambda: not tenant.get(kinds, "--selector", f"lepton.dev/launch={name}"), timeout=90)


def test_two_workers_in_pods_make_a_model_version(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("gang-done")
    upload(tenant, "line")
    spec = {"training": {"epochs": 5, "batch_size": 20, "seed": 1, "workers": 2}, "resources": {"cpu_millis": 500}}
    found = ended(tenant, submitted(tenant, **spec))
    assert (found["state"], found["attempts"]) == ("succeeded", 1), found
    with tenant.http() as http:
        answer = http.post("/v1/training-jobs", json={**job(1), "training": {"workers": 64, "batch_size": 64}})
    assert answer.status_code in (400, 422), answer.text
    assert "64 workers cannot be had at once" in answer.text


def test_memory_that_does_not_suffice_is_told_in_words(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("memory")
    upload(tenant, "line")
    found = ended(tenant, submitted(tenant, resources={"memory_bytes": 64 << 20}))
    assert (found["state"], found["error"]["code"]) == ("failed", "out_of_memory"), found
    assert "resources.memory_bytes" in found["error"]["detail"]


def test_an_endpoint_from_none_to_three_and_back(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("scaled")
    upload(tenant, "line")
    assert ended(tenant, submitted(tenant, training={"epochs": 3}))["state"] == "succeeded"
    row = {"instances": [{"x": 0.5}]}
    with tenant.http() as http:
        http.post("/v1/endpoints", json={"name": "line", "model": "model-0@1", "replicas": 0}).raise_for_status()
        for replicas in (1, 3, 0):
            http.patch("/v1/endpoints/line", json={"replicas": replicas}).raise_for_status()

            def as_wanted(wanted: int = replicas) -> bool:
                counts = [made["spec"]["replicas"] for made in deployments_of(tenant, "scaled")]
                return counts == [wanted] and len(replicas_of(tenant, "scaled")) == wanted == endpoint(tenant)["ready_replicas"]

            assert eventually(as_wanted, timeout=120, interval=0.5), (replicas, endpoint(tenant), deployments_of(tenant, "scaled"))
            if replicas:
                assert http.post("/v1/endpoints/line/predict", json=row).status_code == 200
        http.delete("/v1/endpoints/line").raise_for_status()
    assert eventually(lambda: not deployments_of(tenant, "scaled"), timeout=60)


def test_a_replica_that_is_taken_away_is_followed_by_a_pod_of_the_same_deployment(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("replaced")
    upload(tenant, "line")
    assert ended(tenant, submitted(tenant, training={"epochs": 3}))["state"] == "succeeded"
    with tenant.http() as http:
        http.post("/v1/endpoints", json={"name": "line", "model": "model-0@1", "replicas": 2}).raise_for_status()
    assert eventually(lambda: endpoint(tenant)["ready_replicas"] == 2, timeout=120), endpoint(tenant)
    taken, left = sorted(replicas_of(tenant, "replaced"), key=lambda pod: str(pod["metadata"]["name"]))
    tenant.kubectl("delete", "pod", taken["metadata"]["name"], "--grace-period", "0", "--force")

    def replaced() -> bool:
        uids = {pod["metadata"]["uid"] for pod in replicas_of(tenant, "replaced")}
        return taken["metadata"]["uid"] not in uids and len(uids) == 2 == endpoint(tenant)["ready_replicas"]

    assert eventually(replaced, timeout=120, interval=0.5), endpoint(tenant)
    assert left["metadata"]["uid"] in {pod["metadata"]["uid"] for pod in replicas_of(tenant, "replaced")}
    [made] = deployments_of(tenant, "replaced")
    assert made["spec"]["replicas"] == 2
    with tenant.http() as http:
        http.delete("/v1/endpoints/line").raise_for_status()


def test_a_replica_without_enough_memory_says_so(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("narrow")
    upload(tenant, "line")
    assert ended(tenant, submitted(tenant, training={"epochs": 3}))["state"] == "succeeded"
    with tenant.http() as http:
        wanted = {"name": "line", "model": "model-0@1", "resources": {"memory_bytes": 16 << 20}}
        http.post("/v1/endpoints", json=wanted).raise_for_status()
        assert eventually(lambda: endpoint(tenant).get("error"), timeout=120), endpoint(tenant)
        assert endpoint(tenant)["error"]["code"] == "out_of_memory", endpoint(tenant)
        http.delete("/v1/endpoints/line").raise_for_status()
    assert eventually(lambda: not deployments_of(tenant, "narrow"), timeout=60)


def test_tenants_are_apart(cluster_platform: Cluster) -> None:
    """Each run has a Secret of its own, which no other names, and none of the platform's."""
    tenants = [cluster_platform.workspace(f"apart-{number}") for number in range(2)]
    pods = []
    for tenant in tenants:
        upload(tenant, "line")
        id = submitted(tenant, training={"epochs": 2000, "batch_size": 2})
        assert eventually(lambda t=tenant, i=id: runs_of(t, i), timeout=90), shown(tenant, id)
        pods += runs_of(tenant, id)
        with tenant.http() as http:
            http.post(f"/v1/training-jobs/{id}/cancel", json={}).raise_for_status()
        ended(tenant, id)
    secrets = [{volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume} for pod in pods]
    assert not secrets[0] & secrets[1]
    assert all(name.startswith("job-") or "-" in name for names in secrets for name in names)
    assert not [name for names in secrets for name in names if name.startswith("lepton-")]
    assert pods[0]["metadata"]["labels"]["lepton.dev/workspace"] != pods[1]["metadata"]["labels"]["lepton.dev/workspace"]
    assert "service" not in json.dumps(pods[0]["spec"].get("serviceAccountName", "")).lower()


def test_an_image_that_cannot_be_had_is_told_in_words(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("imageless")
    upload(tenant, "line")
    assert ended(tenant, submitted(tenant, training={"epochs": 3}))["state"] == "succeeded"
    image = json.dumps({"data": {"LEPTON_PLATFORM_LAUNCHER__IMAGE": "lepton/none:0"}})
    tenant.kubectl("patch", "configmap", "lepton-runner", "--type", "merge", "--patch", image)
    try:
        tenant.kubectl("rollout", "restart", "statefulset/runner")
        tenant.rolled_out("runner")
        id = submitted(tenant)
        with tenant.http() as http:
            http.post("/v1/endpoints", json={"name": "line", "model": "model-0@1"}).raise_for_status()
        assert eventually(lambda: "lepton/none:0" in json.dumps(shown(tenant, id)), timeout=150, interval=1), shown(tenant, id)
        assert eventually(lambda: "lepton/none:0" in json.dumps(endpoint(tenant)), timeout=150, interval=1), endpoint(tenant)
        with tenant.http() as http:
            http.delete("/v1/endpoints/line")
            http.post(f"/v1/training-jobs/{id}/cancel", json={})
        ended(tenant, id)
    finally:
        cluster_platform.up()
        tenant.kubectl("rollout", "restart", "statefulset/runner")
        tenant.rolled_out("runner")


def test_every_row_of_a_dataset_is_predicted_in_a_pod_of_its_own(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("rows")
    upload(tenant, "line")
    ended(tenant, submitted(tenant, training={"epochs": 3}))
    with tenant.http() as http:
        asked = {"model": "model-0@1", "dataset": "line@1", "output": "answers"}
        answer = http.post("/v1/batch-predictions", json=asked)
        assert answer.status_code in (201, 202), answer.text
        id = answer.json()["id"]
        assert eventually(lambda: tenant.get("pods", "--selector", f"lepton.dev/role=batch,lepton.dev/job={id}"), timeout=60)

        def batch() -> dict[str, Any]:
            return dict(http.get(f"/v1/batch-predictions/{id}").json())

        assert eventually(lambda: batch()["state"] in ("succeeded", "failed"), timeout=120), batch()
        assert (batch()["state"], batch()["rows_done"], batch()["attempts"]) == ("succeeded", 200, 1), batch()
        assert http.get("/v1/datasets/answers/versions/1").json()["rows"] == 200


CODE = b"""
import os

class Model:
    def predict(self, records):
        return [len(open(record).read()) if record else os.getuid() for record in records]
"""


def test_code_that_a_member_wrote_answers_from_a_sandbox_in_its_pod(cluster_platform: Cluster, tmp_path: Path) -> None:
    tenant = cluster_platform.workspace("code")
    (tmp_path / "model.py").write_bytes(CODE)
    with la.Client(tenant.key, tenant.url) as client:
        client.models.push("code", tmp_path)
        client.endpoints.create("code", "code@1")
        client.endpoints.wait_ready("code", 120)
        assert client.endpoints.predict("code", [""]) == [10001]
        for secret in ("/proc/1/environ", "/etc/hostname"):
            with pytest.raises(la.APIError, match="Permission"):
                client.endpoints.predict("code", [secret])
        client.endpoints.delete("code")
