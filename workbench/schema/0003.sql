-- A project's database, version 3: what waits for each rater.
--
-- A prompt waits for a rater while one of its responses is named by none of the rater's current judgements of it. A
-- judgement names what it places, shows or flags; one that names nothing is about all of the prompt.
-- Skipped responses are seen, not judged: their prompts still wait, behind those with a response that was never seen.
-- Kept by triggers like everything derived: the time of a question does not grow with what has been done.

CREATE VIEW named AS  -- the responses that each ranking names, current or not; one may be named twice
  SELECT k.seq AS ranking_seq, n.atom AS response_id
  FROM rankings AS k, json_tree(json_array(json(k.tiers), json(k.shown_order), json(k.flags))) AS n
  WHERE n.atom <> '' AND (typeof(n.key) = 'integer' OR n.key = 'response_id');

CREATE TABLE rater_responses (             -- only what current judgements name
  prompt_seq INTEGER NOT NULL,
  response_seq INTEGER NOT NULL,
  rater_seq INTEGER NOT NULL,
  judged INTEGER NOT NULL,                 -- how many that were ranked or cannot be
  skipped INTEGER NOT NULL,                -- how many that were skipped
  PRIMARY KEY (prompt_seq, response_seq, rater_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE rater_prompts (               -- only where the rater has judged or skipped something
  prompt_seq INTEGER NOT NULL,
  rater_seq INTEGER NOT NULL,
  responses INTEGER NOT NULL,              -- as in prompt_state
  archived INTEGER NOT NULL,
  judged INTEGER NOT NULL DEFAULT 0,       -- responses
  seen INTEGER NOT NULL DEFAULT 0,         -- responses, judged or skipped
  all_judged INTEGER NOT NULL DEFAULT 0,   -- judgements that name nothing
  all_skipped INTEGER NOT NULL DEFAULT 0,
  rankable INTEGER NOT NULL GENERATED ALWAYS AS (archived = 0 AND responses >= 2),
  done INTEGER NOT NULL GENERATED ALWAYS AS (all_judged > 0 OR judged >= responses),
  shown INTEGER NOT NULL GENERATED ALWAYS AS (all_judged > 0 OR all_skipped > 0 OR seen >= responses),
  PRIMARY KEY (prompt_seq, rater_seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX rater_prompts_waiting ON rater_prompts (rater_seq, shown, prompt_seq) WHERE rankable AND NOT done;

CREATE TABLE rater_tallies (
  rater_seq INTEGER PRIMARY KEY,
  done INTEGER NOT NULL                    -- rankable prompts in which nothing waits for the rater
) STRICT;
ALTER TABLE tallies ADD COLUMN prompts_rankable INTEGER NOT NULL DEFAULT 0;
ALTER TABLE prompt_state ADD COLUMN raters INTEGER NOT NULL DEFAULT 0;  -- its rows in rater_prompts
DROP INDEX prompt_state_waiting;          -- it knew only what nobody has judged
CREATE INDEX prompt_state_untouched ON prompt_state (seq, id) WHERE archived = 0 AND responses >= 2 AND raters = 0;

-- What the project holds already.
INSERT INTO rater_responses
  SELECT p.seq, r.seq, a.seq, sum(n.outcome <> 'skipped'), sum(n.outcome = 'skipped')
  FROM (SELECT DISTINCT k.seq, k.prompt_id, k.rater_id, k.outcome, n.response_id FROM rankings AS k
      JOIN named AS n ON n.ranking_seq = k.seq WHERE k.superseded_by IS NULL) AS n
    JOIN responses AS r ON r.id = n.response_id AND r.prompt_id = n.prompt_id
    JOIN prompts AS p ON p.id = n.prompt_id JOIN raters AS a ON a.id = n.rater_id
  GROUP BY p.seq, r.seq, a.seq;
INSERT INTO rater_prompts (prompt_seq, rater_seq, responses, archived, all_judged, all_skipped)
  SELECT s.seq, a.seq, s.responses, s.archived, sum(k.outcome <> 'skipped' AND k.names_nothing),
    sum(k.outcome = 'skipped' AND k.names_nothing)
  FROM (SELECT prompt_id, rater_id, outcome, NOT EXISTS (SELECT 1 FROM named WHERE ranking_seq = rankings.seq)
      AS names_nothing FROM rankings WHERE superseded_by IS NULL) AS k
    JOIN prompt_state AS s ON s.id = k.prompt_id JOIN raters AS a ON a.id = k.rater_id
  GROUP BY s.seq, a.seq;
UPDATE rater_prompts SET judged = c.judged, seen = c.seen
  FROM (SELECT prompt_seq, rater_seq, sum(judged > 0) AS judged, count(*) AS seen FROM rater_responses
    GROUP BY prompt_seq, rater_seq) AS c
  WHERE c.prompt_seq = rater_prompts.prompt_seq AND c.rater_seq = rater_prompts.rater_seq;
INSERT INTO rater_tallies SELECT rater_seq, sum(rankable AND done) FROM rater_prompts GROUP BY rater_seq;
UPDATE prompt_state SET raters = c.raters
  FROM (SELECT prompt_seq, count(*) AS raters FROM rater_prompts GROUP BY prompt_seq) AS c WHERE c.prompt_seq = seq;
UPDATE tallies SET prompts_rankable = (SELECT count(*) FROM prompt_state WHERE archived = 0 AND responses >= 2);

-- A judgement begins or ends to stand: INSERT INTO standing tells it, with a sign of 1 or -1.
CREATE VIEW standing AS SELECT 0 AS ranking_seq, 0 AS sign WHERE 0;
CREATE TRIGGER standing_begins INSTEAD OF INSERT ON standing WHEN new.sign = 1 BEGIN
  INSERT INTO rater_prompts (prompt_seq, rater_seq, responses, archived)
    SELECT s.seq, a.seq, s.responses, s.archived FROM rankings AS k JOIN prompt_state AS s ON s.id = k.prompt_id
      JOIN raters AS a ON a.id = k.rater_id WHERE k.seq = new.ranking_seq
    ON CONFLICT DO NOTHING;
  INSERT INTO rater_responses
    SELECT DISTINCT p.seq, r.seq, a.seq, k.outcome <> 'skipped', k.outcome = 'skipped'
    FROM rankings AS k JOIN prompts AS p ON p.id = k.prompt_id JOIN raters AS a ON a.id = k.rater_id
      JOIN responses AS r ON r.id IN (SELECT response_id FROM named WHERE ranking_seq = new.ranking_seq)
    WHERE k.seq = new.ranking_seq AND r.prompt_id = k.prompt_id
    ON CONFLICT DO UPDATE SET judged = judged + excluded.judged, skipped = skipped + excluded.skipped;
END;
CREATE TRIGGER standing_ends INSTEAD OF INSERT ON standing WHEN new.sign = -1 BEGIN
  UPDATE rater_responses SET judged = judged - (k.outcome <> 'skipped'), skipped = skipped - (k.outcome = 'skipped')
    FROM rankings AS k JOIN prompts AS p ON p.id = k.prompt_id JOIN raters AS a ON a.id = k.rater_id
    WHERE k.seq = new.ranking_seq AND rater_responses.prompt_seq = p.seq AND rater_responses.rater_seq = a.seq
      AND rater_responses.response_seq IN (SELECT r.seq FROM responses AS r WHERE r.id IN
        (SELECT response_id FROM named WHERE ranking_seq = new.ranking_seq));
END;
CREATE TRIGGER standing_on_nothing INSTEAD OF INSERT ON standing
WHEN NOT EXISTS (SELECT 1 FROM named WHERE ranking_seq = new.ranking_seq) BEGIN
  INSERT INTO rater_prompts (prompt_seq, rater_seq, responses, archived, all_judged, all_skipped)
    SELECT s.seq, a.seq, s.responses, s.archived, (k.outcome <> 'skipped') * new.sign, (k.outcome = 'skipped') * new.sign
    FROM rankings AS k JOIN prompt_state AS s ON s.id = k.prompt_id JOIN raters AS a ON a.id = k.rater_id
    WHERE k.seq = new.ranking_seq
    ON CONFLICT DO UPDATE SET all_judged = all_judged + excluded.all_judged,
      all_skipped = all_skipped + excluded.all_skipped;
END;

CREATE TRIGGER judgement_inserted AFTER INSERT ON rankings WHEN new.superseded_by IS NULL BEGIN
  INSERT INTO standing VALUES (new.seq, 1);
END;
CREATE TRIGGER judgement_deleted BEFORE DELETE ON rankings WHEN old.superseded_by IS NULL BEGIN
  INSERT INTO standing VALUES (old.seq, -1);
END;
CREATE TRIGGER judgement_moved AFTER UPDATE OF superseded_by ON rankings
WHEN (old.superseded_by IS NULL) <> (new.superseded_by IS NULL) BEGIN
  INSERT INTO standing VALUES (new.seq, CASE WHEN new.superseded_by IS NULL THEN 1 ELSE -1 END);
END;
CREATE TRIGGER judged_response_deleted AFTER DELETE ON responses BEGIN
  DELETE FROM rater_responses
    WHERE prompt_seq = (SELECT seq FROM prompts WHERE id = old.prompt_id) AND response_seq = old.seq;
END;

CREATE TRIGGER rater_response_inserted AFTER INSERT ON rater_responses BEGIN
  UPDATE rater_prompts SET judged = judged + (new.judged > 0), seen = seen + 1
    WHERE prompt_seq = new.prompt_seq AND rater_seq = new.rater_seq;
END;
CREATE TRIGGER rater_response_changed AFTER UPDATE ON rater_responses BEGIN
  UPDATE rater_prompts SET judged = judged + (new.judged > 0) - (old.judged > 0)
    WHERE prompt_seq = new.prompt_seq AND rater_seq = new.rater_seq AND (new.judged > 0) <> (old.judged > 0);
  DELETE FROM rater_responses WHERE prompt_seq = new.prompt_seq AND response_seq = new.response_seq
    AND rater_seq = new.rater_seq AND judged = 0 AND skipped = 0;
END;
CREATE TRIGGER rater_response_deleted AFTER DELETE ON rater_responses BEGIN
  UPDATE rater_prompts SET judged = judged - (old.judged > 0), seen = seen - 1
    WHERE prompt_seq = old.prompt_seq AND rater_seq = old.rater_seq;
END;

CREATE TRIGGER rater_prompt_inserted AFTER INSERT ON rater_prompts BEGIN
  INSERT INTO rater_tallies VALUES (new.rater_seq, new.rankable AND new.done)
    ON CONFLICT DO UPDATE SET done = done + excluded.done;
  UPDATE prompt_state SET raters = raters + 1 WHERE seq = new.prompt_seq;
END;
CREATE TRIGGER rater_prompt_changed AFTER UPDATE ON rater_prompts
WHEN (old.rankable AND old.done) <> (new.rankable AND new.done) BEGIN
  UPDATE rater_tallies SET done = done + (new.rankable AND new.done) - (old.rankable AND old.done)
    WHERE rater_seq = new.rater_seq;
END;
CREATE TRIGGER rater_prompt_emptied AFTER UPDATE ON rater_prompts
WHEN new.seen = 0 AND new.all_judged = 0 AND new.all_skipped = 0 BEGIN
  DELETE FROM rater_prompts WHERE prompt_seq = new.prompt_seq AND rater_seq = new.rater_seq;
END;
CREATE TRIGGER rater_prompt_deleted AFTER DELETE ON rater_prompts BEGIN
  UPDATE rater_tallies SET done = done - 1 WHERE rater_seq = old.rater_seq AND old.rankable AND old.done;
  UPDATE prompt_state SET raters = raters - 1 WHERE seq = old.prompt_seq;
END;

CREATE TRIGGER state_rankable_changed AFTER UPDATE OF responses, archived ON prompt_state BEGIN
  UPDATE rater_prompts SET responses = new.responses, archived = new.archived WHERE prompt_seq = new.seq;
  UPDATE tallies SET prompts_rankable = prompts_rankable + (new.archived = 0 AND new.responses >= 2)
      - (old.archived = 0 AND old.responses >= 2)
    WHERE (new.archived = 0 AND new.responses >= 2) <> (old.archived = 0 AND old.responses >= 2);
END;
CREATE TRIGGER state_rankable_deleted AFTER DELETE ON prompt_state BEGIN
  DELETE FROM rater_responses WHERE prompt_seq = old.seq;
  DELETE FROM rater_prompts WHERE prompt_seq = old.seq;
  UPDATE tallies SET prompts_rankable = prompts_rankable - (old.archived = 0 AND old.responses >= 2);
END;
