BEGIN TRANSACTION;
CREATE TABLE approvals (
	approval_id INTEGER NOT NULL, 
	run_id VARCHAR NOT NULL, 
	decision VARCHAR NOT NULL, 
	statement_body BLOB NOT NULL, 
	signature BLOB NOT NULL, 
	decided_at VARCHAR NOT NULL, 
	decided_by VARCHAR NOT NULL, 
	is_automatic BOOLEAN NOT NULL, 
	accepted_unlisted_json VARCHAR NOT NULL, 
	reason VARCHAR, 
	sent_at VARCHAR, 
	PRIMARY KEY (approval_id), 
	FOREIGN KEY(run_id) REFERENCES run_ledger (run_id)
);
INSERT INTO "approvals" VALUES(1,'run-aaaaaaaaaaaaaaaaaaaaaaaaaa','approved',X'7B7D',X'00','2026-01-31T12:00:00.000000Z','jane',0,'[]',NULL,NULL);
CREATE TABLE audit_checkpoints (
	size INTEGER NOT NULL, 
	body BLOB NOT NULL, 
	signature BLOB NOT NULL, 
	PRIMARY KEY (size)
);
CREATE TABLE audit_events (
	seq INTEGER NOT NULL, 
	body BLOB NOT NULL, 
	leaf_sha256 VARCHAR NOT NULL, 
	PRIMARY KEY (seq)
);
CREATE TABLE audit_tip (
	one INTEGER NOT NULL, 
	tip BLOB NOT NULL, 
	PRIMARY KEY (one), 
	CHECK (one = 1)
);
CREATE TABLE datasets (
	dataset_id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	path VARCHAR NOT NULL, 
	format VARCHAR NOT NULL, 
	purposes_json VARCHAR NOT NULL, 
	description VARCHAR, 
	sha256 VARCHAR NOT NULL, 
	n_records INTEGER NOT NULL, 
	n_patients INTEGER NOT NULL, 
	registered_at VARCHAR NOT NULL, 
	registered_by VARCHAR NOT NULL, 
	withdrawn_at VARCHAR, 
	PRIMARY KEY (dataset_id)
);
INSERT INTO "datasets" VALUES(1,'medical-qa','/data/medical-qa.jsonl','jsonl','["research"]',NULL,'abababababababababababababababababababababababababababababababab',120,60,'2026-01-31T12:00:00.000000Z','user:jane',NULL);
CREATE TABLE joined_rounds (
	run_id VARCHAR NOT NULL, 
	round_index INTEGER NOT NULL, 
	round_attempt INTEGER NOT NULL, 
	manifest_digest VARCHAR NOT NULL, 
	public_state_sha256 VARCHAR NOT NULL, 
	payload_sha256 VARCHAR, 
	state VARCHAR NOT NULL, 
	m9_sent BOOLEAN NOT NULL, 
	u3_digest VARCHAR, 
	m9_exchange BLOB, 
	h_survivors VARCHAR, 
	joined_at VARCHAR NOT NULL, 
	updated_at VARCHAR NOT NULL, 
	PRIMARY KEY (run_id, round_index, round_attempt)
);
CREATE TABLE masked_cohorts (
	evaluation_sha256 VARCHAR NOT NULL, 
	context BLOB NOT NULL, 
	sites_json VARCHAR NOT NULL, 
	threshold INTEGER NOT NULL, 
	at VARCHAR NOT NULL, 
	PRIMARY KEY (evaluation_sha256, context)
);
CREATE TABLE one_shot_flags (
	kind VARCHAR NOT NULL, 
	context BLOB NOT NULL, 
	payload_sha256 VARCHAR, 
	at VARCHAR NOT NULL, 
	PRIMARY KEY (kind, context)
);
CREATE TABLE public_states (
	run_id VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	sha256 VARCHAR NOT NULL, 
	path VARCHAR NOT NULL, 
	result_sha256 VARCHAR, 
	created_at VARCHAR NOT NULL, 
	PRIMARY KEY (run_id, version)
);
CREATE TABLE revealed_evaluations (
	evaluation_sha256 VARCHAR NOT NULL, 
	context BLOB NOT NULL, 
	sites_json VARCHAR NOT NULL, 
	at VARCHAR NOT NULL, 
	PRIMARY KEY (evaluation_sha256)
);
CREATE TABLE run_ledger (
	run_id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	reason VARCHAR, 
	run_spec_sha256 VARCHAR NOT NULL, 
	run_spec_json BLOB NOT NULL, 
	layout_json BLOB NOT NULL, 
	initial_state_sha256 VARCHAR NOT NULL, 
	first_seen_at VARCHAR NOT NULL, 
	approved_at VARCHAR, 
	approved_by VARCHAR, 
	dataset VARCHAR, 
	purpose VARCHAR, 
	PRIMARY KEY (run_id)
);
INSERT INTO "run_ledger" VALUES('run-aaaaaaaaaaaaaaaaaaaaaaaaaa','medical-qa-round-1','approved',NULL,'cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd',X'7B7D',X'7B7D','efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef','2026-01-31T12:00:00.000000Z','2026-01-31T12:00:00.000000Z','jane','medical-qa','research');
CREATE TABLE site_switches (
	name VARCHAR NOT NULL, 
	is_on BOOLEAN NOT NULL, 
	set_at VARCHAR NOT NULL, 
	set_by VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
CREATE UNIQUE INDEX datasets_one_in_use ON datasets (name) WHERE withdrawn_at IS NULL;
COMMIT;
PRAGMA user_version = 2;
