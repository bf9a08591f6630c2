"""Pods of a rendered chart as containers of an engine: what a kubelet does, as far as one machine and no cluster goes.

Volumes are folders: emptyDir, ConfigMap and Secret (links to links, as the kubelet makes them), and one folder a claim.
User, group, capabilities, read-only root, memory, command, environment and mounts are those of the pod. A Service is an
alias in the engine's network, so its port has to be the pod's. Of the policies one holds: trainers have no network.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.charts import Document, of_kind, pods, selects

_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


class ContainerFailedError(Exception):
    """A container that was to end well did not; what it said is in the sentence."""


def exit_code_in(container: str, *words: str) -> int:
    """How a command in a running container ends."""
    return subprocess.run(
        ["docker", "exec", container, *words], check=False, capture_output=True, timeout=60
    ).returncode


def docker(*words: str, check: bool = True, stdin: str | None = None) -> str:
    """What the engine's command says."""
    done = subprocess.run(["docker", *words], check=False, capture_output=True, text=True, input=stdin)
    if check and done.returncode != 0:
        raise ContainerFailedError(f"docker {' '.join(words[:3])}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def size_of(quantity: str) -> int:
    """Bytes of a quantity such as 512Mi."""
    return int(quantity[:-2]) * _UNITS[quantity[-2:]]


@dataclass(slots=True, kw_only=True)
class Node:
    """One machine that runs pods.

    Attributes:
        name: stands in the names of everything that is made.
        folder: where volumes are; the engine sees the same file system.
        network: of the engine, shared by all pods but trainers.
        secrets: what a person made beforehand: name to files.
    """

    name: str
    folder: Path
    network: str
    secrets: Mapping[str, Mapping[str, bytes]]
    made: list[str] = field(default_factory=list)

    def claim(self, name: str, *, group: int = 10001) -> Path:
        """The folder of a claim, with the group that the first pod's fsGroup gives it."""
        folder = self.folder / "claims" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            os.chown(folder, 0, group)
            folder.chmod(0o2775)
        return folder

    def start(self, documents: tuple[Document, ...], name: str) -> str:
        """Start the pod of an object, its first containers included; returns the name of its container."""
        pod = dict(pods(documents))[name]
        own = name.partition("/")[2]
        volumes = self._volumes(documents, pod, own)
        for container in pod["spec"].get("initContainers", []):
            self._run(documents, pod, container, volumes, f"{own}-{container['name']}", is_lasting=False)
        (container,) = pod["spec"]["containers"]
        is_lasting = not name.startswith(("Job/", "Pod/"))
        return self._run(documents, pod, container, volumes, own, is_lasting=is_lasting)

    def end(self) -> None:
        """Remove every container that was started here."""
        for name in reversed(self.made):
            docker("rm", "--force", "--volumes", name, check=False)

    def probe(self, documents: tuple[Document, ...], name: str, kind: str) -> int:
        """The exit code of a pod's exec probe."""
        (container,) = dict(pods(documents))[name]["spec"]["containers"]
        probe = container[kind]
        return exit_code_in(f"{self.name}-{name.partition('/')[2]}", *probe["exec"]["command"])

    def _run(
        self,
        documents: tuple[Document, ...],
        pod: Document,
        container: Any,
        volumes: Mapping[str, Path],
        name: str,
        *,
        is_lasting: bool,
    ) -> str:
        full = f"{self.name}-{name}"
        words = ["run", "--name", full, "--no-healthcheck", *self._isolation(documents, pod, container)]
        for variable in container.get("env", []):
            words += ["--env", f"{variable['name']}={variable['value']}"]
        for mount in container["volumeMounts"]:
            source = volumes[mount["name"]] / mount.get("subPath", "")
            words += ["--volume", f"{source.resolve()}:{mount['mountPath']}{':ro' if mount.get('readOnly') else ''}"]
        rest = list(container.get("args", []))
        if command := container.get("command"):
            words += ["--entrypoint", command[0]]
            rest = [*command[1:], *rest]
        self.made.append(full)
        docker(*words, *(["--detach"] if is_lasting else []), container["image"], *rest)
        return full

    def _isolation(self, documents: tuple[Document, ...], pod: Document, container: Any) -> list[str]:
        spec, labels = pod["spec"], pod["metadata"]["labels"]
        of_pod, own = spec["securityContext"], container["securityContext"]
        words = ["--user", f"{of_pod['runAsUser']}:{of_pod['runAsGroup']}", "--group-add", str(of_pod["fsGroup"])]
        words += [word for dropped in own["capabilities"]["drop"] for word in ("--cap-drop", dropped)]
        words += ["--read-only"] if own["readOnlyRootFilesystem"] else []
        words += [] if own["allowPrivilegeEscalation"] else ["--security-opt", "no-new-privileges"]
        words += ["--memory", str(size_of(container["resources"]["limits"]["memory"]))]
        if labels["app.kubernetes.io/component"] in {"trainer", "trainer-job"}:
            return [*words, "--network", "none"]
        words += ["--network", self.network]
        for service in of_kind(documents, "Service"):
            if selects({"matchLabels": service["spec"]["selector"]}, labels):
                words += ["--network-alias", service["metadata"]["name"]]
        return words

    def _volumes(self, documents: tuple[Document, ...], pod: Document, name: str) -> dict[str, Path]:
        group = pod["spec"]["securityContext"]["fsGroup"]
        return {one["name"]: self._volume(documents, one, name, group) for one in pod["spec"]["volumes"]}

    def _volume(self, documents: tuple[Document, ...], volume: Any, pod: str, group: int) -> Path:
        if claim := volume.get("persistentVolumeClaim"):
            return self.claim(claim["claimName"], group=group)
        folder = self.folder / "pods" / pod / volume["name"]
        folder.mkdir(parents=True)
        os.chown(folder, 0, group)
        # What the kubelet gives an emptyDir with an fsGroup.
        folder.chmod(0o2777)
        if secret := volume.get("secret"):
            files = self.secrets.get(secret["secretName"])
            if files is None:
                assert secret.get("optional"), f"there is no Secret {secret['secretName']}"
                files = {}
            self._project(folder, files, secret, group, mode=secret.get("defaultMode", 0o644))
        elif (config := volume.get("configMap")) is not None:
            (found,) = (one for one in of_kind(documents, "ConfigMap") if one["metadata"]["name"] == config["name"])
            texts = {key: text.encode() for key, text in found["data"].items()}
            self._project(folder, texts, config, group, mode=0o644)
        return folder

    @staticmethod
    def _project(folder: Path, files: Mapping[str, bytes], source: Any, group: int, *, mode: int) -> None:
        """Files behind two links, the second of which the kubelet swaps. They are root's, and the pod's group reads."""
        items = source.get("items") or [{"key": key, "path": key} for key in files]
        version = folder / "..version"
        version.mkdir()
        (folder / "..data").symlink_to(version.name)
        for item in items:
            file = version / item["path"]
            file.write_bytes(files[item["key"]])
            os.chown(file, 0, group)
            file.chmod(mode | 0o040)
            (folder / item["path"]).symlink_to(Path("..data") / item["path"])
