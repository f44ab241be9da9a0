-- A journal as the program wrote it before it used Alembic: sqlite3's dump.
BEGIN TRANSACTION;
CREATE TABLE entries (
	seq INTEGER NOT NULL, 
	migration VARCHAR NOT NULL, 
	at FLOAT NOT NULL, 
	kind VARCHAR NOT NULL, 
	act VARCHAR NOT NULL, 
	data JSON NOT NULL, 
	PRIMARY KEY (seq)
);
INSERT INTO "entries" VALUES(1,'m1',1.79607088769054460525e+09,'phase','preflight','{}');
INSERT INTO "entries" VALUES(2,'m1',1.79607088769567775727e+09,'intent','launch-destination','{"argv":["qemu-system-x86_64","-name","guest=web1"]}');
CREATE TABLE meta (
	schema INTEGER NOT NULL, 
	PRIMARY KEY (schema)
);
INSERT INTO "meta" VALUES(1);
CREATE TABLE migrations (
	id VARCHAR NOT NULL, 
	vm VARCHAR NOT NULL, 
	source VARCHAR NOT NULL, 
	destination VARCHAR NOT NULL, 
	mode VARCHAR NOT NULL, 
	phase VARCHAR NOT NULL, 
	epoch INTEGER NOT NULL, 
	rev INTEGER NOT NULL, 
	outcome VARCHAR, 
	owner VARCHAR, 
	may_have_run BOOLEAN NOT NULL, 
	cancel_requested BOOLEAN NOT NULL, 
	controller JSON NOT NULL, 
	request JSON NOT NULL, 
	result JSON, 
	started_at FLOAT NOT NULL, 
	updated_at FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "migrations" VALUES('m1','web1','a','b','live','preflight',0,1,NULL,NULL,0,0,'{"host":"ctl","pid":4711,"start_time":1,"boot_id":"00000000-0000-0000-0000-000000000000"}','{"downtime_limit_ms":300}',NULL,1.79607088768863439563e+09,1.796070887690280199e+09);
CREATE TABLE operations (
	id VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	vm VARCHAR NOT NULL, 
	host VARCHAR NOT NULL, 
	step VARCHAR NOT NULL, 
	epoch INTEGER NOT NULL, 
	data JSON NOT NULL, 
	outcome VARCHAR, 
	controller JSON NOT NULL, 
	started_at FLOAT NOT NULL, 
	updated_at FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "operations" VALUES('o1','save','web2','a','begun',0,'{"path":"/srv/web2.state"}',NULL,'{"host":"ctl","pid":4711,"start_time":1,"boot_id":"00000000-0000-0000-0000-000000000000"}',1.79607088770175766945e+09,1.79607088770175766945e+09);
CREATE TABLE probes (
	"key" VARCHAR NOT NULL, 
	value JSON NOT NULL, 
	at FLOAT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "probes" VALUES('binary/a','{"version":"7.2.22"}',1.79607088769951701162e+09);
CREATE INDEX ix_entries_migration ON entries (migration);
CREATE INDEX ix_migrations_vm ON migrations (vm);
CREATE INDEX ix_operations_vm ON operations (vm);
COMMIT;
