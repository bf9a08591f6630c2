"""The two files that ``enrol`` leaves in an empty folder: a commented configuration, a policy that permits nothing."""

from __future__ import annotations

import json

SITE_YAML = """\
# Wardround site: {site_id}
#
# Every key can be overridden by the environment as WARDROUND_SECTION__KEY, for example WARDROUND_RUNNER__THREADS=4.
# A key that is not known is refused by name. Secrets do not belong here: keys lie in keys/, readable by one user.

coordinator:
  # Where the agent dials out to. Nothing ever dials in.
  address: {gateway_address}
  # The hospital's proxy, for example http://proxy:3128; TLS goes through it by CONNECT and stays closed. null: what
  # https_proxy and no_proxy say; none: no proxy, whatever they say.
  proxy: {proxy}
  # A file of mode 0600 with one line, user:password, where the proxy asks for Basic credentials.
  proxy_credentials_file: {proxy_credentials_file}
  # The gateway over HTTP/1.1, used by itself where a middlebox breaks HTTP/2. null: as enrolment said; none: never.
  fallback_address: null
  # Where this site enrolled, HOST:PORT. Used again only where the certificate has ended, after weeks offline. null: as
  # enrolment said.
  enrolment_address: null

# The rules that no coordinator can weaken. Relative paths are relative to this folder.
policy: policy.yaml

# The signing keys of the other sites, compared out of band (by telephone, on paper), never taken from the coordinator.
# 'wardround-site peers add NAME SHA256' writes here. Automatic approval needs every site of a run to be listed.
peers: {{}}

runner:
  # Who runs training jobs; docs/operating/runners.md says which for whom, and what each isolates.
  #   process:    a program that this agent starts, as this user. Isolates nothing: for trials.
  #   spool:      a trainer in a container of its own, without network and keys, that serves the jobs folder.
  #   docker:     a container a job, on a rootless engine or behind a socket proxy.
  #   kubernetes: a Job a round, by a Role that knows only Jobs.
  kind: process
  # The folder that agent and trainer share; null: 'jobs' in this folder.
  jobs_dir: null
  # spool: a job is given up where no trainer has been seen for so long, in seconds.
  absent_after_s: 120
  # docker and kubernetes: the trainer's image by digest, NAME@sha256:... (docker: or its id); a tag is refused.
  image: null
  # docker: the address of a rootless engine, or of a proxy before one. kubernetes: a kubeconfig; null: as a pod.
  engine: null
  # docker: whether an engine of root may be asked directly. Whoever may ask it owns its machine.
  allow_root_socket: false
  # docker: the jobs folder as the engine's machine calls it; null: as this one. kubernetes: its volume claim.
  jobs_source: null
  # docker and kubernetes: data and base models for the trainer, read-only. kubernetes: source is a claim.
  #   - {{source: /srv/data, target: /data}}
  mounts: []
  # docker and kubernetes: the trainer's user and group, its memory, and how many GPUs it is given (docker: or all).
  user: "10001:10001"
  memory_gb: 16
  gpus: 0
  # How many CPU threads training may use; null: the trainer's choice.
  threads: null
  # auto, cpu or cuda
  device: auto
  # How many processes do a job together, with the base model's weights shared among them: a number, or auto for one a
  # GPU. Worth it where one GPU does not hold the base model. Tasks on images and timelines use the first alone. A
  # trainer that runs elsewhere (kind: spool) is told by its own option, --processes.
  processes: 1
  # A trainer that dies goes on from its last checkpoint: the most training, in seconds, that this may cost. The first
  # checkpoint of a round comes after twice as long; it lies in the job folder and is deleted with the update.
  checkpoint_every_s: 30
  # A trainer that has said nothing for so long is killed and started again. It speaks with every pass over a batch, so
  # raise this only where loading the base model takes longer.
  idle_timeout_s: 1800

# Where base models lie on this machine, by the name that runs use. What counts is the digest in the policy.
#   smollm2-135m-instruct: {{path: /srv/models/smollm2-135m-instruct}}
base_models: {{}}

log:
  level: info
  format: text                    # text | json

# Numbers for the hospital's own Prometheus: plain HTTP, nobody is asked who they are, nothing computed from patient
# data among them (docs/operating/observability.md). Off until a port is named, such as 9465.
metrics:
  host: 127.0.0.1
  port: null

# Traces for the hospital's own OpenTelemetry collector; needs the extra 'tracing'. Off until an address is named, such
# as http://127.0.0.1:4318/v1/traces. Where it is on, the coordinator is told trace numbers, and no more.
tracing:
  endpoint: null
  ca_file: null
"""

POLICY_YAML = """\
# What this hospital permits. What is not permitted here is denied, whatever the coordinator asks.
# 'wardround-site policy check policy.yaml' checks this file; 'wardround-site policy explain RUN' applies it to a run.

# What may be learned, for example: [instruction-tuning]
tasks: []

# Base models by digest ('python -m site_agent.training digest-model FOLDER' prints it), for example: ["sha256:..."]
base_models: []

# Which adapters, and how large, for example: {kinds: [lora], max_rank: 32}
adapters: {kinds: [], max_rank: 0}

# What may become of a sum, and how this site may train for it. fedmed weighs sites by how far each moved;
# thresholded-counts publishes which codes are frequent. fedprox pulls to the shared adapter; scaffold keeps something
# of each round at this site for the next. 'wardround-site runs show RUN' says in words what a run would do.
algorithms: [fedavg-lora]
local_rules: [plain]

# Registered datasets and what for, for example:
#   medical-qa: {purposes: [research], min_records: 100, min_patients: 50}
# A run states a purpose by beginning with it: "research: answer questions about rare diseases". 'any' admits every one.
# 'consent: [broad-consent-2024]' and 'legal_basis: [gdpr-9-2-j]' demand one of these tags in the registration.
datasets: {}

# How many sites must stand behind every sum (never below 3), and how many of them might tell the coordinator all.
secure_aggregation: {min_cohort: 3, assumed_colluders: 0}

# Runs without differential privacy: allowed or denied. (The mechanisms themselves are not in this version.)
privacy: {without_dp: denied}
# About runs that count (vocabularies). The smallest count of patients that may enter their sums, 5 where nothing is
# said: privacy: {smallest_cell: 10}. And whether whoever has a sum, the other sites among them, may see codes of fewer
# patients than the run publishes, denied where nothing is said: privacy: {rare_codes_in_sums: allowed}

# The most bytes of masked payload that may leave in one round, for example: 200000000
egress: {max_bytes_per_round: 0}

# When training may start, in this machine's local time; leave it out for any time.
# hours: {train: "20:00-06:00"}

# manual: a person says yes to every run. automatic: runs inside all of the above, among listed peers, need no person.
approval: manual

# For how many days an approval holds, a person's or the policy's own; nothing renews it by itself.
approval_lifetime_days: 90
"""


def site_yaml(
    *, site_id: str, gateway_address: str, proxy: str | None = None, proxy_credentials_file: str | None = None
) -> str:
    """The first ``site.yaml`` of a site."""
    return SITE_YAML.format(
        site_id=site_id,
        gateway_address=_scalar(gateway_address),
        proxy=_scalar(proxy),
        proxy_credentials_file=_scalar(proxy_credentials_file),
    )


def _scalar(value: str | None) -> str:
    # A JSON string is a YAML scalar, whatever is in it.
    return json.dumps(value)
