-- A project's database, version 2: thumbs are counted, as pairs are.
--
-- The rule is that of workbench/thumbs.py, said again in SQL so that triggers can keep the count through undo.

CREATE VIEW thumbs AS  -- what each ranking says of single responses, current or not
  SELECT k.seq AS ranking_seq, f.value ->> 'response_id' AS response_id, f.value ->> 'flag' = 'good' AS wanted
  FROM rankings AS k, json_each(k.flags) AS f
  WHERE k.outcome <> 'skipped' AND f.value ->> 'response_id' <> '' AND f.value ->> 'flag' IN ('good', 'bad')
    AND NOT EXISTS (SELECT 1 FROM json_each(k.flags) AS later WHERE later.key > f.key
      AND later.value ->> 'response_id' = f.value ->> 'response_id' AND later.value ->> 'flag' IN ('good', 'bad'))
  UNION ALL  -- all bad: what was shown and has no thumb of its own
  SELECT k.seq, s.atom, 0
  FROM rankings AS k, json_tree(CASE k.shown_order WHEN '[]' THEN k.tiers ELSE k.shown_order END) AS s
  WHERE k.outcome <> 'skipped' AND k.flags <> '[]' AND s.atom IS NOT NULL
    AND EXISTS (SELECT 1 FROM json_each(k.flags) AS f
      WHERE f.value ->> 'response_id' = '' AND f.value ->> 'flag' = 'all bad')
    AND NOT EXISTS (SELECT 1 FROM json_each(k.flags) AS f
      WHERE f.value ->> 'response_id' = s.atom AND f.value ->> 'flag' IN ('good', 'bad'));

CREATE VIEW usable_thumbs AS  -- a text counts once for each thumb of its ranking, an empty one never
  SELECT t.ranking_seq, t.wanted, trim(r.text, char(9, 10, 11, 12, 13, 28, 29, 30, 31, 32, 133, 160, 5760, 8192, 8193,
      8194, 8195, 8196, 8197, 8198, 8199, 8200, 8201, 8202, 8232, 8233, 8239, 8287, 12288)) AS text
  FROM thumbs AS t CROSS JOIN responses AS r ON r.id = t.response_id;

CREATE TABLE ranking_thumbs (
  ranking_seq INTEGER PRIMARY KEY,         -- only rankings with flags
  prompt_id TEXT NOT NULL,
  current INTEGER NOT NULL,
  up INTEGER NOT NULL,
  down INTEGER NOT NULL
) STRICT;
ALTER TABLE prompt_state ADD COLUMN thumbs_up INTEGER NOT NULL DEFAULT 0;  -- of current rankings
ALTER TABLE prompt_state ADD COLUMN thumbs_down INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tallies ADD COLUMN thumbs_up INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tallies ADD COLUMN thumbs_down INTEGER NOT NULL DEFAULT 0;

CREATE TRIGGER flags_inserted AFTER INSERT ON rankings WHEN new.flags <> '[]' BEGIN
  INSERT INTO ranking_thumbs
    SELECT new.seq, new.prompt_id, new.superseded_by IS NULL, count(DISTINCT text) FILTER (WHERE wanted),
      count(DISTINCT text) FILTER (WHERE NOT wanted)
    FROM usable_thumbs WHERE ranking_seq = new.seq AND text <> '';
END;
CREATE TRIGGER flags_deleted AFTER DELETE ON rankings WHEN old.flags <> '[]' BEGIN
  DELETE FROM ranking_thumbs WHERE ranking_seq = old.seq;
END;
CREATE TRIGGER flags_moved AFTER UPDATE OF superseded_by ON rankings WHEN new.flags <> '[]' BEGIN
  UPDATE ranking_thumbs SET current = new.superseded_by IS NULL WHERE ranking_seq = new.seq;
END;

CREATE TRIGGER thumbs_inserted AFTER INSERT ON ranking_thumbs WHEN new.current BEGIN
  UPDATE prompt_state SET thumbs_up = thumbs_up + new.up, thumbs_down = thumbs_down + new.down WHERE id = new.prompt_id;
END;
CREATE TRIGGER thumbs_deleted AFTER DELETE ON ranking_thumbs WHEN old.current BEGIN
  UPDATE prompt_state SET thumbs_up = thumbs_up - old.up, thumbs_down = thumbs_down - old.down WHERE id = old.prompt_id;
END;
CREATE TRIGGER thumbs_moved AFTER UPDATE ON ranking_thumbs WHEN old.current <> new.current BEGIN
  UPDATE prompt_state SET thumbs_up = thumbs_up + (new.current - old.current) * new.up,
    thumbs_down = thumbs_down + (new.current - old.current) * new.down WHERE id = new.prompt_id;
END;

CREATE TRIGGER state_thumbs_changed AFTER UPDATE OF thumbs_up, thumbs_down, archived ON prompt_state BEGIN
  UPDATE tallies SET
    thumbs_up = thumbs_up + (new.archived = 0) * new.thumbs_up - (old.archived = 0) * old.thumbs_up,
    thumbs_down = thumbs_down + (new.archived = 0) * new.thumbs_down - (old.archived = 0) * old.thumbs_down;
END;
CREATE TRIGGER state_thumbs_deleted AFTER DELETE ON prompt_state BEGIN
  UPDATE tallies SET
    thumbs_up = thumbs_up - (old.archived = 0) * old.thumbs_up,
    thumbs_down = thumbs_down - (old.archived = 0) * old.thumbs_down;
END;

-- What the project holds already.
INSERT INTO ranking_thumbs
  SELECT k.seq, k.prompt_id, k.superseded_by IS NULL, count(DISTINCT t.text) FILTER (WHERE t.wanted),
    count(DISTINCT t.text) FILTER (WHERE NOT t.wanted)
  FROM usable_thumbs AS t JOIN rankings AS k ON k.seq = t.ranking_seq WHERE t.text <> '' GROUP BY k.seq;
