-- A database as revision 0005 has left it: its schema, and rows with the values that are easily lost.
-- tests/test_golden.py upgrades it and reads the rows back; a released revision's file is never changed.

CREATE TABLE fiberstore_alembic_version (
    version_num VARCHAR NOT NULL,
    CONSTRAINT fiberstore_alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO fiberstore_alembic_version VALUES ('0005');

CREATE TABLE raw_logs (
    log_id UUID NOT NULL,
    "timestamp" TIMESTAMP WITH TIME ZONE NOT NULL,
    source_id VARCHAR NOT NULL,
    raw_text VARCHAR NOT NULL,
    ingestion_time TIMESTAMP WITH TIME ZONE DEFAULT now(),
    config_version UBIGINT NOT NULL,
    PRIMARY KEY (log_id)
);
CREATE TABLE fibers (
    fiber_id UUID NOT NULL,
    fiber_type VARCHAR NOT NULL,
    config_version UBIGINT NOT NULL,
    attributes JSON,
    first_activity TIMESTAMP WITH TIME ZONE NOT NULL,
    last_activity TIMESTAMP WITH TIME ZONE NOT NULL,
    closed BOOLEAN DEFAULT false NOT NULL,
    PRIMARY KEY (fiber_id)
);
CREATE TABLE fiber_memberships (
    log_id UUID NOT NULL,
    fiber_id UUID NOT NULL,
    config_version UBIGINT NOT NULL,
    PRIMARY KEY (log_id, fiber_id)
);
CREATE TABLE fiber_config_versions (
    config_version UBIGINT NOT NULL,
    content_hash VARCHAR,
    content VARCHAR,
    parent UBIGINT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    active BOOLEAN,
    PRIMARY KEY (config_version),
    UNIQUE (active),
    CHECK (active)
);
CREATE TABLE fiber_checkpoints (
    name VARCHAR NOT NULL,
    value VARCHAR NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE fiber_merges (
    fiber_id UUID NOT NULL,
    survivor_id UUID NOT NULL,
    PRIMARY KEY (fiber_id)
);
CREATE TABLE fiber_pins (
    fiber_id UUID NOT NULL,
    PRIMARY KEY (fiber_id)
);
CREATE TABLE log_pins (
    log_id UUID NOT NULL,
    PRIMARY KEY (log_id)
);
CREATE TABLE fiber_ends (
    fiber_id UUID,
    timestamp TIMESTAMPTZ NOT NULL,
    before_log_id UUID,
    PRIMARY KEY (fiber_id)
);
CREATE TABLE fiber_keys (
    fiber_id UUID NOT NULL,
    name VARCHAR NOT NULL,
    value VARCHAR NOT NULL,
    hash BIGINT NOT NULL,
    first_timestamp TIMESTAMP WITH TIME ZONE NOT NULL,
    first_log_id UUID,
    starts BOOLEAN NOT NULL
);
CREATE INDEX idx_raw_logs_timestamp ON raw_logs ("timestamp");
CREATE INDEX idx_raw_logs_source ON raw_logs (source_id);
CREATE INDEX idx_fibers_type ON fibers (fiber_type);
CREATE INDEX idx_memberships_fiber ON fiber_memberships (fiber_id);
CREATE INDEX idx_fiber_keys_hash ON fiber_keys (hash);

INSERT INTO raw_logs VALUES
    ('00000000-0000-0000-0000-000000000000', '0001-01-01 00:00:00+00', 'api', '', '2024-05-01 12:00:00.000001+00', 0),
    ('018f3406-9e00-7001-9bc3-41a4b42618a5', '2024-05-01 12:00:00.123456+00', 'api', 'GET /cart 200 🧵 "it''s" \ tab	end',
        '2024-05-01 12:00:01+00', 18446744073709551615),
    ('018f3406-9e00-7001-9bc3-41a4b42618a6', '2024-05-01 12:00:00.123456+00', 'Größe', 'the same moment, the next id',
        '2024-05-01 12:00:01+00', 1),
    ('ffffffff-ffff-ffff-ffff-ffffffffffff', '9999-12-31 23:59:59.999999+00', 'worker', 'the last', '2024-05-01 12:00:02+00', 1);

INSERT INTO fibers VALUES
    ('018f3406-9e00-7001-9bc3-000000000001', 'request', 18446744073709551615, '{"n": 17, "user": "Zoë", "deep": [[null, 1.5, true]]}',
        '2024-05-01 12:00:00.123456+00', '2024-05-01 12:00:00.123456+00', false),
    ('018f3406-9e00-7001-9bc3-000000000002', 'request', 1, NULL, '2024-05-01 12:00:00.123456+00', '2024-05-01 13:00:00+00', true),
    ('018f3406-9e00-7001-9bc3-000000000003', 'login', 1, '100000000000000000000000', '2024-05-01 12:00:00+00', '2024-05-01 12:00:00+00', true);

INSERT INTO fiber_memberships VALUES
    ('018f3406-9e00-7001-9bc3-41a4b42618a5', '018f3406-9e00-7001-9bc3-000000000001', 1),
    ('018f3406-9e00-7001-9bc3-41a4b42618a6', '018f3406-9e00-7001-9bc3-000000000001', 1),
    ('018f3406-9e00-7001-9bc3-41a4b42618a6', '018f3406-9e00-7001-9bc3-000000000002', 1),
    ('018f3406-9e00-7001-9bc3-ffffffffffff', '018f3406-9e00-7001-9bc3-000000000009', 7);

INSERT INTO fiber_config_versions VALUES
    (1, NULL, NULL, NULL, '2024-05-01 12:00:00+00', NULL),
    (18446744073709551615, 'ffffffffffffffff', 'größer = true', 1, '2024-05-01 12:00:01+00', true);
INSERT INTO fiber_checkpoints VALUES ('api', '{"offset": 17}', '2024-05-01 12:00:01.123456+00');
INSERT INTO fiber_merges VALUES ('018f3406-9e00-7001-9bc3-000000000004', '018f3406-9e00-7001-9bc3-000000000003');
INSERT INTO fiber_pins VALUES ('018f3406-9e00-7001-9bc3-000000000001');
INSERT INTO log_pins VALUES ('018f3406-9e00-7001-9bc3-41a4b42618a5');
INSERT INTO fiber_keys VALUES
    ('018f3406-9e00-7001-9bc3-000000000001', 'user', 'Zoë', 358189048861216782, '2024-05-01 12:00:00.123456+00',
        '018f3406-9e00-7001-9bc3-41a4b42618a5', true);
INSERT INTO fiber_ends VALUES
    ('018f3406-9e00-7001-9bc3-000000000002', '2024-05-01 13:00:00+00', '018f3406-9e00-7001-9bc3-41a4b42618a6'),
    ('018f3406-9e00-7001-9bc3-000000000003', '2024-05-01 12:00:01+00', NULL);
