"""Workers on Kubernetes: a manifest of a scheduler and its workers. The tests check its form against a schema of
Kubernetes; nobody has tried it on a cluster yet, and it says so."""

import re
import shlex
from dataclasses import dataclass

from sparserobust.errors import UserError, quoted

SCHEMA = "1.37"  # the version of Kubernetes
NAME, PORT = "sparserobust", 8786
ADDRESS = f"tls://{NAME}-scheduler:{PORT}"  # by the name of the service
SHARED, CERTIFICATES = "/shared", "/certificates"  # where the volume and the secret are in each container

_HEAD = f"""\
# A scheduler and its workers for Sparse & Robust. Checked by schema only (Kubernetes {SCHEMA}), not tried on a cluster.
# Whoever can talk to the scheduler can run code in these containers: the secret holds the certificate that lets in.
#
#   sparserobust cluster certificates
#   kubectl create secret generic {NAME} --from-file={{certificates}}
#   kubectl apply -f THIS_FILE
#   kubectl exec deploy/{NAME}-scheduler -- sparserobust compute --scale paper
#   kubectl delete -f THIS_FILE
#
# A pod that dies is started anew, and its run goes on from the last epoch. If the scheduler dies, call compute again.
"""


@dataclass(frozen=True)
class Manifest:
    """What is asked of Kubernetes: `gpus` pods of one GPU with `workers_per_gpu` workers each, from an image in which
    `sparserobust` is installed, with data and store on a claimed volume that all nodes may write. `UserError` for what
    Kubernetes would not take."""

    image: str
    volume: str
    gpus: int
    workers_per_gpu: int = 1

    def __post_init__(self):
        for option, value in {"--gpus": self.gpus, "--workers-per-gpu": self.workers_per_gpu}.items():
            if value < 1:
                raise UserError(f"{option} should be 1 or more, not {value}")
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", self.volume):
            raise UserError(f"--volume should be the name of a claim (kubectl get pvc lists them), "
                            f"not {quoted(self.volume)}")
        if not re.fullmatch(r"[\w./:@-]+", self.image):
            raise UserError(f"--image should be a container image, such as name:tag, not {quoted(self.image)}")

    def text(self, certificates: str) -> str:
        """YAML, with a head that says how to use it; `certificates` is the folder of the certificate and its key."""
        import yaml

        head = _HEAD.format(certificates=shlex.quote(certificates))
        return f"{head}---\n{yaml.safe_dump_all(self.objects(), sort_keys=False)}"

    def objects(self) -> list[dict]:
        """The scheduler, its name in the cluster's network, and the workers."""
        return [
            self._deployment("scheduler", f"/tmp/scheduler.json --port {PORT}"),
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"{NAME}-scheduler"},
             "spec": {"selector": _labels("scheduler"), "ports": [{"port": PORT}]}},
            self._deployment("workers", f"{ADDRESS} --count {self.workers_per_gpu}", replicas=self.gpus,
                             resources={"limits": {"nvidia.com/gpu": 1}})]

    def _deployment(self, part: str, arguments: str, replicas: int = 1, **container) -> dict:
        """Pods that run `sparserobust cluster <part> <arguments>` and are started anew when that ends."""
        environment = {"DASK_SCHEDULER_ADDRESS": ADDRESS, "SPARSEROBUST_DATA": SHARED,
                       "SPARSEROBUST_CERTIFICATES": CERTIFICATES}
        pod = {
            "automountServiceAccountToken": False, "enableServiceLinks": False,  # what runs here needs neither
            "containers": [{
                "name": part, "image": self.image, "command": ["sparserobust", "cluster", part, *arguments.split()],
                "env": [{"name": name, "value": value} for name, value in environment.items()],
                "volumeMounts": [{"name": "shared", "mountPath": SHARED},
                                 {"name": "certificates", "mountPath": CERTIFICATES, "readOnly": True}]} | container],
            "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": self.volume}},
                        {"name": "certificates", "secret": {"secretName": NAME, "defaultMode": 0o400}}]}
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": f"{NAME}-{part}"},
                "spec": {"replicas": replicas, "strategy": {"type": "Recreate"},
                         "selector": {"matchLabels": _labels(part)},
                         "template": {"metadata": {"labels": _labels(part)}, "spec": pod}}}


def _labels(part: str) -> dict[str, str]:
    return {"app": NAME, "part": part}
