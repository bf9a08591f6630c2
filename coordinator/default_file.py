"""The ``coordinator.yaml`` that ``init`` writes: every key, its default, and what it is for."""

DEFAULT_FILE = """\
# Wardround coordinator. Every key can be overridden by the environment as WARDROUND_SECTION__KEY,
# for example WARDROUND_GATEWAY__PORT=443. Relative paths are relative to this file. Unknown keys are refused.

consortium: {consortium}          # the organisation named in the root certificate

database:
  # sqlite:///file, or postgresql+pg8000://user@host/name (PostgreSQL 13 or later), which several processes may share
  url: {database_url}
  password_file: {password_file}             # a file that holds the database's password, mode 0600
  root_file: {root_file}                 # the certificate behind the server's: TLS is required then, and checked
  pool_size: 16                   # PostgreSQL: the most connections of this process, one more listens

blobs:                            # masked uploads, sums, releases; content-addressed
  kind: folder                    # folder | s3
  directory: blobs                # kind folder; several processes may share it
  s3:                             # kind s3: a bucket of S3-compatible storage, which must exist
    bucket: null
    prefix: ""                    # before every key, such as wardround/
    endpoint_url: null            # of a server that is not Amazon's, such as https://s3.hospital.example
    region: us-east-1
    ca_file: null                 # the certificates behind the server's, where the system does not know them
    credentials_file: null        # in the form of ~/.aws/credentials, mode 0600; the environment's chain when null
    profile: null                 # of that file
  max_bytes: 4294967296           # the largest blob that is accepted

keys:
  directory: keys                 # root, signing, release and enrolment keys; files with mode 0600

rest:                             # for people and their programs: HTTPS, bearer tokens
  host: 127.0.0.1
  port: {rest_port}
  names: [localhost, 127.0.0.1]   # host names and addresses in the certificate
  max_body_bytes: 1048576

gateway:                          # for enrolled sites: gRPC, mutual TLS
  host: 127.0.0.1
  port: {gateway_port}
  advertise: null                 # host:port as sites reach it; the listening address when null
  names: [localhost, 127.0.0.1]
  http1_port: {http1_port}                # the same calls over HTTP/1.1, same mutual TLS: for sites whose network
                                  # breaks HTTP/2; null turns it off
  http1_advertise: null           # host:port as sites reach that one
  max_uploads: 16                 # in flight at once in one process; the next site waits its turn

enrolment:                        # for sites with an enrolment code: gRPC, its certificate is pinned in the code
  host: 127.0.0.1
  port: {enrolment_port}
  advertise: null
  http1_port: {enrolment_http1_port}                # the same call over HTTP/1.1, same certificate; null turns it off
  code_lifetime_s: 604800

identity:                         # sites' agents renew their certificates by themselves, at half of their life
  site_certificate_s: 259200      # 72 hours
  check_in_s: 3600                # how often an agent says that it is there; two copies of one contradict each other

driver:
  poll_s: 0.5                     # how often it looks for work when nobody wakes it
  lease_s: 15

retention:                        # how long masked uploads are kept is in each RunSpec: audit_window_s
  poll_s: 60                      # how often it looks for rounds whose audit window has closed
  orphan_grace_s: 86400           # before a blob that nothing names, or half an upload, is deleted; at least 3600

audit:
  checkpoint_every: 64            # events between two signed checkpoints

tokens:                           # for people and their programs; each has an end
  default_lifetime_s: 7776000     # 90 days, when whoever makes one does not say
  max_lifetime_s: 31622400        # 366 days

governance:
  four_eyes: true                 # a run is started by another person than the one who created it
  dual_signature: true            # a release is signed by two: a study lead and a privacy officer
  signature_max_age_s: 300        # how long ago the identity provider may have authenticated who signs

rate_limits:                      # of REST, in each process; beyond them: 429 with Retry-After
  requests_per_minute: 3000       # of one token
  requests_burst: 600
  failures_per_minute: 60         # of one address (of 64 bits of IPv6), without a token that works
  failures_burst: 60
  max_tracked: 10000              # tokens and addresses that are remembered

oidc:                             # an identity provider whose bearer tokens are accepted besides our own; off when null
  issuer: null                    # exactly as its tokens say it, such as https://login.hospital.example/realms/study
  audience: null                  # what its tokens for this coordinator have in aud
  roles_claim: roles              # dots lead into objects: realm_access.roles
  role_map: {{}}                    # its word: admin | study-lead | privacy-officer | auditor
  ca_file: null                   # the certificates behind the issuer's, where the system does not know them
  keys_host: null                 # host[:port] of its keys, where that is not the issuer's own
  clock_skew_s: 60

metrics:                          # for Prometheus: plain HTTP, no token; whoever reaches it may read it
  host: 127.0.0.1                 # 0.0.0.0 only where a firewall or a NetworkPolicy says who reaches it
  port: {metrics_port}                      # GET /metrics; null turns it off

tracing:                          # OpenTelemetry; needs the extra `tracing`. Nothing leaves where endpoint is null
  endpoint: null                  # the whole address of an OTLP collector: http://127.0.0.1:4318/v1/traces
  ca_file: null                   # the certificates behind its own, where the system does not know them

log:
  level: info                     # debug | info | warning | error
  format: json                    # json | console
"""
