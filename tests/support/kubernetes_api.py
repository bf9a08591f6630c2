"""A stand-in for a cluster: the part of the Kubernetes API that speaks of Jobs, over HTTP, whose pods are containers.

It is no cluster. It keeps Jobs as ``batch/v1`` describes them and checks each against the published schema; it enforces
a Role, by verb and namespace; it evaluates the failure policy and the deadline as the Job controller does; and it runs
a pod as one container of the engine here, with what the pod's security context, limits and mounts say. Two things
stand for others: ``--network none`` for a NetworkPolicy that denies all, and folders for volume claims. What it does
not know it refuses.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import docker
import kubernetes_validate
from docker.errors import APIError, NotFound

Document = dict[str, Any]
_NOW = "2026-01-01T00:00:00Z"
TOKEN = "the agent's token"
_JOBS = re.compile(r"/apis/batch/v1/namespaces/([a-z0-9-]+)/jobs(?:/([a-z0-9-]+))?")


class RefusedError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(kw_only=True)
class Cluster:
    """Jobs of one namespace, and the Role of one agent in it.

    Attributes:
        claims: folders by the name of a claim.
        images: what the nodes have: engine ids by the name and digest that a pod says.
        n_gpus: free on the nodes.
    """

    namespace: str
    claims: Mapping[str, Path]
    images: Mapping[str, str]
    verbs: frozenset[str] = frozenset({"create", "get", "list", "watch", "delete"})
    n_gpus: int = 0
    is_up: bool = True
    jobs: dict[str, Document] = field(default_factory=dict)
    made: list[Document] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def create(self, document: Document) -> Document:
        kubernetes_validate.validate(document, "1.37", strict=True)
        name = document["metadata"]["name"]
        with self.lock:
            if name in self.jobs:
                raise RefusedError(409, "AlreadyExists")
            job = {**document, "status": {"active": 1, "ready": 0, "startTime": _NOW}}
            self.jobs[name] = job
            self.made.append(document)
            self.running.add(name)
        threading.Thread(target=self._run_pod, args=(name,), daemon=True).start()
        return job

    def get(self, name: str) -> Document:
        with self.lock:
            if name not in self.jobs:
                raise RefusedError(404, "NotFound")
            return self.jobs[name]

    def list(self, selector: str) -> Document:
        with self.lock:
            key, _, value = selector.partition("=")
            items = [job for job in self.jobs.values() if not selector or job["metadata"]["labels"].get(key) == value]
        return {"apiVersion": "batch/v1", "kind": "JobList", "metadata": {}, "items": items}

    def delete(self, name: str) -> Document:
        """In the foreground: the Job is there until its pod is gone."""
        job = self.get(name)
        job["metadata"]["deletionTimestamp"] = _NOW
        threading.Thread(target=self._delete, args=(name,), daemon=True).start()
        return job

    def _delete(self, name: str) -> None:
        with contextlib.closing(docker.from_env()) as engine:
            # The kubelet tries until the pod is gone; another thread may be at it.
            while name in self.running or _exists(engine, f"pod-{name}"):
                with contextlib.suppress(NotFound, APIError):
                    engine.containers.get(f"pod-{name}").remove(force=True)
                time.sleep(0.05)
        with self.lock:
            self.jobs.pop(name, None)

    def _run_pod(self, name: str) -> None:
        try:
            self._run(name)
        finally:
            self.running.discard(name)

    def _run(self, name: str) -> None:
        """The scheduler, the kubelet and the Job controller of one Job."""
        job = self.jobs[name]
        spec = job["spec"]["template"]["spec"]
        container = spec["containers"][0]
        deadline = time.monotonic() + job["spec"]["activeDeadlineSeconds"]
        n_asked = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        image = self.images.get(container["image"])
        if n_asked > self.n_gpus or image is None:
            # Pending: no node has it, or no node finds the image.
            return
        with contextlib.closing(docker.from_env()) as engine:
            try:
                pod = engine.containers.create(image, name=f"pod-{name}", **self._as_container(spec, container))
                if "deletionTimestamp" in job["metadata"]:
                    pod.remove(force=True)
                    return
                pod.start()
                job["status"] = {"active": 1, "ready": 1}
                while True:
                    pod.reload()
                    state = pod.attrs["State"]
                    if state["Status"] in {"exited", "dead"}:
                        job["status"] = self._status_after(job, name, int(state["ExitCode"]))
                        break
                    if time.monotonic() > deadline:
                        pod.kill()
                        job["status"] = _failed("DeadlineExceeded", "Job was active longer than specified deadline")
                        break
                    time.sleep(0.05)
                pod.remove(force=True)
            except (NotFound, APIError):
                # Deleted meanwhile.
                return

    def _as_container(self, spec: Document, container: Document) -> Document:
        security = {**spec["securityContext"], **container["securityContext"]}
        claims = {volume["name"]: volume for volume in spec["volumes"]}
        binds, tmpfs = {}, {}
        for mount in container["volumeMounts"]:
            volume = claims[mount["name"]]
            if "emptyDir" in volume:
                tmpfs[mount["mountPath"]] = f"size={volume['emptyDir']['sizeLimit']}"
                continue
            claim = volume["persistentVolumeClaim"]
            folder = self.claims[claim["claimName"]] / mount.get("subPath", "")
            mode = "ro" if mount.get("readOnly") or claim.get("readOnly") else "rw"
            binds[str(folder)] = {"bind": mount["mountPath"], "mode": mode}
        assert spec["automountServiceAccountToken"] is False, "a token would be mounted"
        arguments: Document = {
            "command": container["args"],
            "user": f"{security['runAsUser']}:{security['runAsGroup']}",
            "group_add": [spec["securityContext"]["fsGroup"]],
            "read_only": security["readOnlyRootFilesystem"],
            "cap_drop": security["capabilities"]["drop"],
            "security_opt": [] if security["allowPrivilegeEscalation"] else ["no-new-privileges"],
            "mem_limit": int(container["resources"]["limits"]["memory"]),
            "memswap_limit": int(container["resources"]["limits"]["memory"]),
            "volumes": binds,
            "tmpfs": tmpfs,
            "environment": {one["name"]: one["value"] for one in container["env"]},
            # Stands for the NetworkPolicy that denies whatever carries the label of the pod.
            "network_mode": "none" if _is_denied(spec, self.made[-1]) else "bridge",
            "healthcheck": {"test": ["NONE"]},
        }
        if "command" in container:
            arguments["entrypoint"] = container["command"]
        return arguments

    @staticmethod
    def _status_after(job: Document, name: str, exit_code: int) -> Document:
        if exit_code == 0:
            return {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}
        for index, rule in enumerate(job["spec"]["podFailurePolicy"]["rules"]):
            codes = rule.get("onExitCodes")
            if codes is None or rule["action"] != "FailJob":
                continue
            is_listed = exit_code in codes["values"]
            if is_listed == (codes["operator"] == "In"):
                said = f"Container {codes['containerName']} for pod ns/{name}-x failed with exit code {exit_code}"
                return _failed("PodFailurePolicy", f"{said} matching FailJob rule at index {index}")
        return _failed("BackoffLimitExceeded", "Job has reached the specified backoff limit")


def _exists(engine: docker.DockerClient, name: str) -> bool:
    try:
        engine.containers.get(name)
    except NotFound:
        return False
    return True


def _failed(reason: str, message: str) -> Document:
    return {"failed": 1, "conditions": [{"type": "Failed", "status": "True", "reason": reason, "message": message}]}


def _is_denied(spec: Document, job: Document) -> bool:
    _ = spec
    return job["spec"]["template"]["metadata"]["labels"].get("app.kubernetes.io/component") == "trainer-job"


@contextlib.contextmanager
def cluster_api(cluster: Cluster, folder: Path) -> Iterator[Path]:
    """Serve a cluster's API; the kubeconfig by which an agent reaches it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                status, document = self.decide(json.loads(body or b"null"))
            except RefusedError as error:
                status = error.status
                document = {"kind": "Status", "status": "Failure", "reason": str(error), "code": status}
            except Exception as error:  # noqa: BLE001 - what a server would answer with
                status, document = 422, {"kind": "Status", "status": "Failure", "reason": str(error)[:500], "code": 422}
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def decide(self, body: Document | None) -> tuple[int, Document]:
            place = urlsplit(self.path)
            cluster.asked.append(f"{self.command} {place.path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise RefusedError(401, "Unauthorized")
            if not cluster.is_up:
                raise RefusedError(503, "ServiceUnavailable")
            found = _JOBS.fullmatch(unquote(place.path))
            verb = {"POST": "create", "DELETE": "delete", "GET": "get" if found and found[2] else "list"}[self.command]
            if found is None or found[1] != cluster.namespace or verb not in cluster.verbs:
                raise RefusedError(403, "Forbidden")
            match verb:
                case "create":
                    assert body is not None
                    return 201, cluster.create(body)
                case "get":
                    return 200, cluster.get(found[2])
                case "list":
                    return 200, cluster.list(parse_qs(place.query).get("labelSelector", [""])[0])
                case _:
                    return 200, cluster.delete(found[2])

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the base class calls them so

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "agent"}}],
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
                "users": [{"name": "agent", "user": {"token": TOKEN}}],
            }
        )
    )
    try:
        yield kubeconfig
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        with contextlib.closing(docker.from_env()) as engine:
            for name in list(cluster.jobs):
                with contextlib.suppress(NotFound):
                    engine.containers.get(f"pod-{name}").remove(force=True)
