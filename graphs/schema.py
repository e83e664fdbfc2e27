"""The tables of a trace file, its indexes, and what older files lack of them."""

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS questions (
  id TEXT PRIMARY KEY, run TEXT, round INTEGER, system TEXT, task TEXT, split TEXT,
  text TEXT NOT NULL, created REAL NOT NULL, revises TEXT);
CREATE TABLE IF NOT EXISTS calls (
  id INTEGER PRIMARY KEY, question TEXT NOT NULL REFERENCES questions(id),
  path TEXT NOT NULL, role TEXT NOT NULL, step INTEGER NOT NULL, attempt INTEGER NOT NULL,
  vote INTEGER NOT NULL, kind TEXT NOT NULL, model TEXT, model_digest TEXT,
  request_digest TEXT, messages TEXT, completion TEXT, logprobs TEXT, finish_reason TEXT,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
  sampling TEXT, cached INTEGER NOT NULL, retries TEXT, error TEXT, created REAL NOT NULL,
  tool_calls TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS call_key
  ON calls (question, path, role, step, attempt, vote) WHERE error IS NULL;
CREATE TABLE IF NOT EXISTS judgements (
  id INTEGER PRIMARY KEY, question TEXT NOT NULL REFERENCES questions(id),
  path TEXT NOT NULL, kind TEXT NOT NULL, ok INTEGER, detail TEXT NOT NULL, author TEXT NOT NULL,
  key TEXT UNIQUE, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS links (
  question TEXT NOT NULL, path TEXT NOT NULL, attempt INTEGER NOT NULL, number INTEGER NOT NULL,
  wave INTEGER NOT NULL, asked TEXT, votes TEXT NOT NULL, answer TEXT, calls INTEGER NOT NULL,
  tokens INTEGER NOT NULL, created REAL NOT NULL,
  PRIMARY KEY (question, path, attempt, number, wave)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS judged ON judgements (question, path, kind);
"""
LATER_COLUMNS = {"calls": "tool_calls", "questions": "revises"}
"""Columns that a file of an earlier Reflux lacks, whose writer never misses them."""
DISPUTED = (
    "kind IN ('leaf', 'outcome') AND (detail ->> 'status' = 'rejected'"
    " OR json_array_length(detail, '$.tally') > 1 OR detail ->> 'disagreement' > 0)"
)
"""SQL: of a judgement, that copies, experts or a check did not agree with its answer."""
HOW_IT_ENDED = "kind IN ('outcome', 'leaf') ORDER BY kind = 'outcome' DESC, id DESC LIMIT 1"
"""SQL: of the judgements of one node, the one that says how it ended."""
ROOT_ENDED = f"(SELECT id FROM judgements WHERE question = q.id AND path = '' AND {HOW_IT_ENDED})"  # noqa: S608
"""SQL: its id, for the root `q` of `questions`."""
NODE_ENDED = f"SELECT detail FROM judgements WHERE question=? AND path=? AND {HOW_IT_ENDED}"  # noqa: S608
STOPPED = (
    "EXISTS (SELECT 1 FROM judgements s"
    " WHERE s.question = q.id AND s.path = '' AND s.kind = 'stopped')"
)
"""SQL: of the root `q`, that it was stopped at some time; see `graphs.stops`."""
BY_PERSONS = "kind IN ('verdict', 'override')"
INDEXES = f"""
CREATE INDEX IF NOT EXISTS revised ON questions (revises) WHERE revises IS NOT NULL;
CREATE INDEX IF NOT EXISTS deferred ON judgements (id) WHERE kind = 'deferred';
CREATE INDEX IF NOT EXISTS disputed ON judgements (id) WHERE {DISPUTED};
CREATE INDEX IF NOT EXISTS reviewed ON judgements (question, path) WHERE {BY_PERSONS};
"""
