BEGIN TRANSACTION;
CREATE TABLE calls (
  id INTEGER PRIMARY KEY, question TEXT NOT NULL REFERENCES questions(id),
  path TEXT NOT NULL, role TEXT NOT NULL, step INTEGER NOT NULL, attempt INTEGER NOT NULL,
  vote INTEGER NOT NULL, kind TEXT NOT NULL, model TEXT, model_digest TEXT,
  request_digest TEXT, messages TEXT, completion TEXT, logprobs TEXT, finish_reason TEXT,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
  sampling TEXT, cached INTEGER NOT NULL, retries TEXT, error TEXT, created REAL NOT NULL,
  tool_calls TEXT);
INSERT INTO "calls" VALUES(1,'5e1f0a','','overseer',0,0,0,'script','script:add-low-short',NULL,NULL,NULL,'{"kind": "ask", "subquestions": [{"text": "4+5=", "needs": []}]}',NULL,'stop',0,0,0.0,NULL,0,NULL,NULL,1760000000.0,NULL);
INSERT INTO "calls" VALUES(2,'5e1f0a','/0.0.0','answer',0,0,1,'model','base','scripted:base','ccc180df37afe1e69261891965675fd7','[{"role": "system", "content": ""}, {"role": "user", "content": "4+5="}]','90','[["9", -0.125, [["9", -0.125], ["8", -2.5]]], ["0", -0.5, []]]','stop',9,2,0.25,'{"temperature": 0.7, "max_tokens": 24, "top_logprobs": 1, "seed": 1, "stop": ["\n"]}',0,'["503 InternalServerError: busy"]',NULL,1760000000.0,NULL);
CREATE TABLE judgements (
  id INTEGER PRIMARY KEY, question TEXT NOT NULL REFERENCES questions(id),
  path TEXT NOT NULL, kind TEXT NOT NULL, ok INTEGER, detail TEXT NOT NULL, author TEXT NOT NULL,
  key TEXT UNIQUE, created REAL NOT NULL);
INSERT INTO "judgements" VALUES(1,'5e1f0a','/0.0.0','check',1,'{"answer": "90", "rule": ""}','reflux','5e1f0a/0.0.0:check:0',1760000000.0);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "meta" VALUES('schema_version','2');
CREATE TABLE questions (
  id TEXT PRIMARY KEY, run TEXT, round INTEGER, system TEXT, task TEXT, split TEXT,
  text TEXT NOT NULL, created REAL NOT NULL, revises TEXT);
INSERT INTO "questions" VALUES('5e1f0a','demo',1,'amplified','addition','train','42+51=',1760000000.0,NULL);
CREATE UNIQUE INDEX call_key
  ON calls (question, path, role, step, attempt, vote) WHERE error IS NULL;
CREATE INDEX judged ON judgements (question, path, kind);
COMMIT;
