-- A project's database, version 1.
--
-- Label tables (prompts, demonstrations, responses, rankings) are recorded by SQLite sessions for undo: their
-- primary key is `seq`, which also gives the order in which things were made whatever the clock said. Everything
-- derived from them (search, tags, prompt_state, tallies) is kept by triggers alone, so that undo keeps it too.

CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE raters (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('person', 'model')),
  principles TEXT NOT NULL,
  created_at TEXT NOT NULL,
  sha256 TEXT NOT NULL
) STRICT;

CREATE TABLE prompts (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  messages TEXT NOT NULL,             -- JSON: [{"role": ..., "content": ...}]
  text TEXT NOT NULL,                 -- all turns, for search
  tags TEXT NOT NULL,                 -- JSON: ["..."]
  source TEXT NOT NULL,
  split TEXT NOT NULL CHECK (split IN ('train', 'held-out')),
  archived INTEGER NOT NULL DEFAULT 0 CHECK (archived IN (0, 1)),
  content_hash TEXT NOT NULL,         -- of the normalised turns: finds duplicates
  batch_id TEXT NOT NULL DEFAULT '',
  created_at TEXT NOT NULL,
  sha256 TEXT NOT NULL                -- of every column above but seq: finds a changed byte
) STRICT;
CREATE INDEX prompts_by_content ON prompts (content_hash);

CREATE TABLE demonstrations (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  prompt_id TEXT NOT NULL REFERENCES prompts (id),
  text TEXT NOT NULL,
  author TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('draft', 'final')),
  revision INTEGER NOT NULL,
  batch_id TEXT NOT NULL DEFAULT '',
  created_at TEXT NOT NULL,
  sha256 TEXT NOT NULL
) STRICT;
CREATE INDEX demonstrations_by_prompt ON demonstrations (prompt_id, revision);

CREATE TABLE responses (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  prompt_id TEXT NOT NULL REFERENCES prompts (id),
  text TEXT NOT NULL,
  model_id TEXT NOT NULL,
  sampling TEXT NOT NULL,             -- JSON, or '' when unknown
  finish_reason TEXT NOT NULL,
  token_count INTEGER NOT NULL,
  source TEXT NOT NULL,
  batch_id TEXT NOT NULL DEFAULT '',
  created_at TEXT NOT NULL,
  sha256 TEXT NOT NULL
) STRICT;
CREATE INDEX responses_by_prompt ON responses (prompt_id);

CREATE TABLE rankings (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  prompt_id TEXT NOT NULL REFERENCES prompts (id),
  rater_id TEXT NOT NULL REFERENCES raters (id),
  tiers TEXT NOT NULL,                -- JSON: [[response id, ...], ...], best first
  outcome TEXT NOT NULL CHECK (outcome IN ('ranked', 'skipped', 'cannot-rank')),
  flags TEXT NOT NULL,                -- JSON: [{"response_id": ..., "flag": ...}]
  note TEXT NOT NULL,
  seconds REAL NOT NULL,
  shown_order TEXT NOT NULL,          -- JSON: [response id, ...]
  blind INTEGER NOT NULL,
  touched INTEGER NOT NULL,
  supersedes TEXT REFERENCES rankings (id),
  pairs INTEGER NOT NULL,             -- usable training pairs: texts differ, none empty
  batch_id TEXT NOT NULL DEFAULT '',
  created_at TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  superseded_by TEXT REFERENCES rankings (id)  -- NULL: current. The one column that changes; not in sha256
) STRICT;
CREATE INDEX rankings_by_prompt ON rankings (prompt_id, rater_id);
CREATE INDEX rankings_by_superseder ON rankings (superseded_by) WHERE superseded_by IS NOT NULL;
CREATE INDEX rankings_by_predecessor ON rankings (supersedes) WHERE supersedes IS NOT NULL;
CREATE INDEX rankings_open ON rankings (rater_id, prompt_id, outcome) WHERE superseded_by IS NULL;
CREATE INDEX rankings_skipped ON rankings (rater_id, prompt_id) WHERE superseded_by IS NULL AND outcome = 'skipped';

CREATE TABLE models (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  role TEXT NOT NULL,
  path TEXT NOT NULL,
  base_id TEXT NOT NULL,
  parent_id TEXT NOT NULL,
  run_id TEXT NOT NULL,
  step INTEGER NOT NULL,
  source TEXT NOT NULL,
  sha256 TEXT NOT NULL,               -- of the model's files, not of this row
  note TEXT NOT NULL,
  created_at TEXT NOT NULL
) STRICT;

CREATE TABLE runs (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  method TEXT NOT NULL,
  name TEXT NOT NULL,
  state TEXT NOT NULL,
  start_model_id TEXT NOT NULL,
  reward_model_id TEXT NOT NULL,
  detail TEXT NOT NULL,
  created_at TEXT NOT NULL,
  ended_at TEXT NOT NULL
) STRICT;

-- Acts -------------------------------------------------------------------------------------------------------

CREATE TABLE journal (
  seq INTEGER PRIMARY KEY,
  at TEXT NOT NULL,
  act TEXT NOT NULL,                  -- the store's method: save_ranking, add_batch, undo, ...
  author TEXT NOT NULL,               -- rater id or author, where there is one
  kinds TEXT NOT NULL,                -- JSON: ["rankings", ...]
  ids TEXT NOT NULL,                  -- JSON: the first of the record ids
  count INTEGER NOT NULL,             -- how many records
  label TEXT NOT NULL,
  batch_id TEXT NOT NULL
) STRICT;
CREATE TRIGGER journal_is_never_changed BEFORE UPDATE ON journal
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER journal_is_never_deleted BEFORE DELETE ON journal
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;

CREATE TABLE undo (
  seq INTEGER PRIMARY KEY,
  undone INTEGER NOT NULL DEFAULT 0,
  label TEXT NOT NULL,
  kinds TEXT NOT NULL,
  ids TEXT NOT NULL,                  -- JSON; [] when there are many
  count INTEGER NOT NULL,
  batch_id TEXT NOT NULL,
  burst TEXT NOT NULL,                -- acts of one burst (typing) are one step; '' for a step of its own
  at TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  changeset BLOB NOT NULL             -- zlib-compressed SQLite changeset
) STRICT;
CREATE INDEX undo_by_state ON undo (undone, seq);

-- Derived: search and tags -----------------------------------------------------------------------------------

CREATE VIRTUAL TABLE prompt_search USING fts5 (
  text, content='prompts', content_rowid='seq', columnsize=0, tokenize="unicode61 remove_diacritics 2"
);
CREATE TABLE prompt_tags (
  tag TEXT NOT NULL,
  prompt_seq INTEGER NOT NULL,
  PRIMARY KEY (tag, prompt_seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX prompt_tags_by_prompt ON prompt_tags (prompt_seq);

-- Derived: what each prompt has, and the sum over live prompts ------------------------------------------------

CREATE TABLE prompt_state (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  split TEXT NOT NULL,
  archived INTEGER NOT NULL,
  demonstration TEXT NOT NULL DEFAULT '',  -- status of the newest revision
  responses INTEGER NOT NULL DEFAULT 0,
  judged INTEGER NOT NULL DEFAULT 0,       -- current rankings that were ranked or cannot be
  ranked INTEGER NOT NULL DEFAULT 0,       -- current rankings that were ranked
  pairs INTEGER NOT NULL DEFAULT 0         -- of those
) STRICT;
CREATE INDEX prompt_state_rankable ON prompt_state (seq, id) WHERE archived = 0 AND responses >= 2;
CREATE INDEX prompt_state_waiting ON prompt_state (seq, id) WHERE archived = 0 AND responses >= 2 AND judged = 0;

CREATE TABLE tallies (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  prompts INTEGER NOT NULL DEFAULT 0,
  prompts_held_out INTEGER NOT NULL DEFAULT 0,
  demonstrations_final INTEGER NOT NULL DEFAULT 0,
  demonstrations_draft INTEGER NOT NULL DEFAULT 0,
  responses INTEGER NOT NULL DEFAULT 0,
  prompts_with_responses INTEGER NOT NULL DEFAULT 0,
  rankings INTEGER NOT NULL DEFAULT 0,
  prompts_ranked INTEGER NOT NULL DEFAULT 0,
  pairs INTEGER NOT NULL DEFAULT 0,
  pairs_held_out INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO tallies (one) VALUES (1);

CREATE TRIGGER prompts_inserted AFTER INSERT ON prompts BEGIN
  INSERT INTO prompt_search (rowid, text) VALUES (new.seq, new.text);
  INSERT OR IGNORE INTO prompt_tags SELECT value, new.seq FROM json_each(new.tags);
  INSERT INTO prompt_state (seq, id, split, archived) VALUES (new.seq, new.id, new.split, new.archived);
END;
CREATE TRIGGER prompts_deleted AFTER DELETE ON prompts BEGIN
  INSERT INTO prompt_search (prompt_search, rowid, text) VALUES ('delete', old.seq, old.text);
  DELETE FROM prompt_tags WHERE prompt_seq = old.seq;
  DELETE FROM prompt_state WHERE seq = old.seq;
END;
CREATE TRIGGER prompts_retold AFTER UPDATE OF text ON prompts BEGIN
  INSERT INTO prompt_search (prompt_search, rowid, text) VALUES ('delete', old.seq, old.text);
  INSERT INTO prompt_search (rowid, text) VALUES (new.seq, new.text);
END;
CREATE TRIGGER prompts_retagged AFTER UPDATE OF tags ON prompts BEGIN
  DELETE FROM prompt_tags WHERE prompt_seq = old.seq;
  INSERT OR IGNORE INTO prompt_tags SELECT value, new.seq FROM json_each(new.tags);
END;
CREATE TRIGGER prompts_moved AFTER UPDATE OF split, archived ON prompts BEGIN
  UPDATE prompt_state SET split = new.split, archived = new.archived WHERE seq = new.seq;
END;

CREATE TRIGGER demonstrations_inserted AFTER INSERT ON demonstrations BEGIN
  UPDATE prompt_state SET demonstration = ifnull((SELECT status FROM demonstrations
    WHERE prompt_id = new.prompt_id ORDER BY revision DESC LIMIT 1), '') WHERE id = new.prompt_id;
END;
CREATE TRIGGER demonstrations_deleted AFTER DELETE ON demonstrations BEGIN
  UPDATE prompt_state SET demonstration = ifnull((SELECT status FROM demonstrations
    WHERE prompt_id = old.prompt_id ORDER BY revision DESC LIMIT 1), '') WHERE id = old.prompt_id;
END;

CREATE TRIGGER responses_inserted AFTER INSERT ON responses BEGIN
  UPDATE prompt_state SET responses = responses + 1 WHERE id = new.prompt_id;
END;
CREATE TRIGGER responses_deleted AFTER DELETE ON responses BEGIN
  UPDATE prompt_state SET responses = responses - 1 WHERE id = old.prompt_id;
END;

CREATE TRIGGER rankings_inserted AFTER INSERT ON rankings WHEN new.superseded_by IS NULL BEGIN
  UPDATE prompt_state SET judged = judged + (new.outcome <> 'skipped'), ranked = ranked + (new.outcome = 'ranked'),
    pairs = pairs + new.pairs WHERE id = new.prompt_id;
END;
CREATE TRIGGER rankings_deleted AFTER DELETE ON rankings WHEN old.superseded_by IS NULL BEGIN
  UPDATE prompt_state SET judged = judged - (old.outcome <> 'skipped'), ranked = ranked - (old.outcome = 'ranked'),
    pairs = pairs - old.pairs WHERE id = old.prompt_id;
END;
CREATE TRIGGER rankings_superseded AFTER UPDATE OF superseded_by ON rankings
WHEN old.superseded_by IS NULL AND new.superseded_by IS NOT NULL BEGIN
  UPDATE prompt_state SET judged = judged - (new.outcome <> 'skipped'), ranked = ranked - (new.outcome = 'ranked'),
    pairs = pairs - new.pairs WHERE id = new.prompt_id;
END;
CREATE TRIGGER rankings_reinstated AFTER UPDATE OF superseded_by ON rankings
WHEN old.superseded_by IS NOT NULL AND new.superseded_by IS NULL BEGIN
  UPDATE prompt_state SET judged = judged + (new.outcome <> 'skipped'), ranked = ranked + (new.outcome = 'ranked'),
    pairs = pairs + new.pairs WHERE id = new.prompt_id;
END;

-- What one prompt adds to the tallies is written out three times: a view would be read at every label.
CREATE TRIGGER state_inserted AFTER INSERT ON prompt_state BEGIN  -- nothing hangs on a new prompt
  UPDATE tallies SET
    prompts = prompts + (new.archived = 0),
    prompts_held_out = prompts_held_out + (new.archived = 0 AND new.split = 'held-out');
END;
CREATE TRIGGER state_changed AFTER UPDATE ON prompt_state BEGIN
  UPDATE tallies SET
    prompts = prompts + (new.archived = 0)
      - (old.archived = 0),
    prompts_held_out = prompts_held_out + (new.archived = 0 AND new.split = 'held-out')
      - (old.archived = 0 AND old.split = 'held-out'),
    demonstrations_final = demonstrations_final + (new.archived = 0 AND new.demonstration = 'final')
      - (old.archived = 0 AND old.demonstration = 'final'),
    demonstrations_draft = demonstrations_draft + (new.archived = 0 AND new.demonstration = 'draft')
      - (old.archived = 0 AND old.demonstration = 'draft'),
    responses = responses + (new.archived = 0) * new.responses
      - (old.archived = 0) * old.responses,
    prompts_with_responses = prompts_with_responses + (new.archived = 0 AND new.responses >= 2 AND new.judged = 0)
      - (old.archived = 0 AND old.responses >= 2 AND old.judged = 0),
    rankings = rankings + (new.archived = 0) * new.ranked
      - (old.archived = 0) * old.ranked,
    prompts_ranked = prompts_ranked + (new.archived = 0 AND new.ranked > 0)
      - (old.archived = 0 AND old.ranked > 0),
    pairs = pairs + (new.archived = 0) * new.pairs
      - (old.archived = 0) * old.pairs,
    pairs_held_out = pairs_held_out + (new.archived = 0 AND new.split = 'held-out') * new.pairs
      - (old.archived = 0 AND old.split = 'held-out') * old.pairs;
END;
CREATE TRIGGER state_deleted AFTER DELETE ON prompt_state BEGIN
  UPDATE tallies SET
    prompts = prompts - (old.archived = 0),
    prompts_held_out = prompts_held_out - (old.archived = 0 AND old.split = 'held-out'),
    demonstrations_final = demonstrations_final - (old.archived = 0 AND old.demonstration = 'final'),
    demonstrations_draft = demonstrations_draft - (old.archived = 0 AND old.demonstration = 'draft'),
    responses = responses - (old.archived = 0) * old.responses,
    prompts_with_responses = prompts_with_responses - (old.archived = 0 AND old.responses >= 2 AND old.judged = 0),
    rankings = rankings - (old.archived = 0) * old.ranked,
    prompts_ranked = prompts_ranked - (old.archived = 0 AND old.ranked > 0),
    pairs = pairs - (old.archived = 0) * old.pairs,
    pairs_held_out = pairs_held_out - (old.archived = 0 AND old.split = 'held-out') * old.pairs;
END;
