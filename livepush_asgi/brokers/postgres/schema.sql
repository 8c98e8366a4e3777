-- The logs of livepush_asgi in PostgreSQL 13 or later: three tables, and functions that append, read and clean.
-- schema.py puts the names of the broker's `prefix` in the place of public.livepush_.
--
-- Appends to a channel take the lock of its row in livepush_channel and keep it until their transaction ends.
-- So offsets are given in the order of the commits, and a reader never sees an event without the one before it.
-- A sequence would not do: its numbers become visible in another order, and the numbers of transactions that
-- roll back are missing.
--
-- Reads take no lock and write nothing, so a reader never waits for a transaction that is open. That is why a
-- channel without a row has an epoch already: a digest of its key and of a seed, which is the epoch of the row
-- 'livepush.epochs'. The first append makes the row with that epoch. When a row is forgotten, a later log of the
-- channel must not begin with the same epoch. So seeds change, and a row is deleted when neither the newest seed
-- nor the one before it ('livepush.epochs.old') is its own. A position with the epoch of one of these two and
-- offset 0 is before the log's first event, which a page says with an ancestor.
--
-- A server may come back without its last commits: from a backup, from a snapshot of its disk, as a standby, or
-- after a crash without fsync. So the first append after a start of the server (`place`) goes on under a new
-- epoch, with the next offset, and notes where the old one ended. Up to there a position of the old epoch names
-- the same event; beyond it, a lost one, and its client is told of a gap. A start that lost nothing costs no
-- client anything. When the database is another history of commits (`run`: another cluster, timeline or table),
-- it cannot tell what is missing: the end of the old epoch is doubtful (`!`), and each client is told.

SELECT pg_advisory_xact_lock(70725);

CREATE TABLE IF NOT EXISTS public.livepush_channel (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key text NOT NULL UNIQUE,               -- a digest of the channel's name, which may have any length
    channel text NOT NULL,                  -- the beginning of the name, for administrators
    epoch text NOT NULL,
    last bigint NOT NULL DEFAULT 0,         -- the offset of the newest event
    first bigint NOT NULL DEFAULT 1,        -- events before this offset are deleted
    bytes bigint NOT NULL DEFAULT 0,        -- of all payloads so far
    used timestamptz NOT NULL DEFAULT now(),  -- when the newest event was appended
    seen timestamptz NOT NULL DEFAULT now(),  -- when a process last said that it listens
    seed text, place text, run text,
    ancestors text NOT NULL DEFAULT ''
) WITH (fillfactor = 70);

CREATE TABLE IF NOT EXISTS public.livepush_event (
    log bigint,
    number bigint,
    at timestamptz NOT NULL,
    before bigint NOT NULL,                 -- bytes of all payloads before this one
    payload bytea NOT NULL,
    PRIMARY KEY (log, number)
);

CREATE TABLE IF NOT EXISTS public.livepush_key (
    log bigint,
    key text,
    number bigint NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (log, key)
);
CREATE INDEX IF NOT EXISTS livepush_key_at ON public.livepush_key (at);

-- Where the table is and since when the server runs. While that is the same, the run is the same.
CREATE OR REPLACE FUNCTION public.livepush_place() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT 'public.livepush_channel'::regclass::oid || ' ' || extract(epoch FROM pg_postmaster_start_time())
$$;

CREATE OR REPLACE FUNCTION public.livepush_run() RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT concat_ws(' ', 'public.livepush_channel'::regclass::oid, system_identifier,
        left(pg_walfile_name(pg_current_wal_lsn()), 8)) FROM pg_control_system());
EXCEPTION WHEN OTHERS THEN
    -- A server that does not tell its timeline: each of its starts is another run.
    RETURN public.livepush_place();
END $$;

CREATE OR REPLACE FUNCTION public.livepush_epoch(_seed text, _key text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT left(translate(encode(sha256(convert_to(_seed || _key, 'UTF8')), 'base64'), '+/', '-_'), 12)
$$;

-- Makes the row of the newest seed. After a start of the server there is another seed; the one before stays an
-- origin, unless commits may be missing. Waits for no lock.
CREATE OR REPLACE FUNCTION public.livepush_begin() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    _place text := public.livepush_place();
    _seeds public.livepush_channel;
    _run text;
BEGIN
    SELECT * INTO _seeds FROM public.livepush_channel WHERE key = 'livepush.epochs';
    IF NOT FOUND THEN
        INSERT INTO public.livepush_channel (key, channel, epoch, place, run)
            VALUES ('livepush.epochs', 'livepush.epochs', gen_random_uuid(), _place, public.livepush_run())
            ON CONFLICT (key) DO NOTHING;
    ELSIF _seeds.place <> _place THEN
        SELECT * INTO _seeds FROM public.livepush_channel
            WHERE key = 'livepush.epochs' AND place <> _place FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            _run := public.livepush_run();
            PERFORM public.livepush_reseed(CASE WHEN _run = _seeds.run THEN _seeds.epoch
                ELSE gen_random_uuid()::text END);
            UPDATE public.livepush_channel SET place = _place, run = _run WHERE key = 'livepush.epochs';
        END IF;
    END IF;
END $$;

-- Draws another seed, and keeps this one as the seed before it.
CREATE OR REPLACE FUNCTION public.livepush_reseed(_old text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO public.livepush_channel (key, channel, epoch)
        VALUES ('livepush.epochs.old', 'livepush.epochs.old', _old)
        ON CONFLICT (key) DO UPDATE SET epoch = excluded.epoch;
    UPDATE public.livepush_channel SET epoch = gen_random_uuid(), used = now() WHERE key = 'livepush.epochs';
$$;

-- Returns the epoch and the ancestors of a log that goes on after a start of the server. Where the end of the old
-- epoch is doubtful, reads and appends have to come to the same epoch, since a read writes nothing.
CREATE OR REPLACE FUNCTION public.livepush_renewed(
    _key text, _epoch text, _last bigint, _ancestors text, _run text, OUT epoch text, OUT ancestors text
) LANGUAGE plpgsql STABLE AS $$
DECLARE
    _current text := public.livepush_run();
    _is_doubtful boolean := _run <> _current;
BEGIN
    ancestors := _ancestors;
    IF _last > 0 THEN
        ancestors := array_to_string((string_to_array(concat_ws(',',
            concat(_epoch, '.', _last, CASE WHEN _is_doubtful THEN '!' END),
            nullif(_ancestors, '')), ','))[1:8], ',');
    END IF;
    epoch := public.livepush_epoch(CASE WHEN _is_doubtful
        THEN concat(public.livepush_place(), _current, _epoch) ELSE gen_random_uuid()::text END, _key);
END $$;

-- Appends events to one channel. Returns an outcome for each: `+position`, `=position` if its key is known, or
-- `!position` if the log does not end at the expected one.
CREATE OR REPLACE FUNCTION public.livepush_append(
    _key text, _channel text, _payloads bytea[], _keys text[], _expected text[],
    _events bigint, _size bigint, _age float8
) RETURNS text[] LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    _log public.livepush_channel;
    _outcomes text[] := '{}';
    _number bigint; _before bigint; _first bigint; _now timestamptz;
BEGIN
    -- Listeners hear of the event at the commit, so a crash must not undo that.
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'local', true);
    END IF;
    LOOP
        SELECT * INTO _log FROM public.livepush_channel WHERE key = _key FOR NO KEY UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO public.livepush_channel (key, channel, epoch, seed, place, run)
            SELECT _key, _channel,
                -- A seed from before a start of the server may have been used for events that are lost.
                public.livepush_epoch(CASE WHEN seeds.place = public.livepush_place() THEN seeds.epoch
                    ELSE gen_random_uuid()::text END, _key),
                coalesce(seeds.epoch, ''), public.livepush_place(), public.livepush_run()
            FROM (SELECT) AS one LEFT JOIN public.livepush_channel AS seeds ON seeds.key = 'livepush.epochs'
            ON CONFLICT (key) DO NOTHING;
    END LOOP;
    IF _log.place <> public.livepush_place() THEN
        SELECT epoch, ancestors INTO _log.epoch, _log.ancestors
            FROM public.livepush_renewed(_log.key, _log.epoch, _log.last, _log.ancestors, _log.run);
        _log.place := public.livepush_place();
        _log.run := public.livepush_run();
    END IF;
    _now := clock_timestamp();
    _before := _log.last;
    FOR i IN 1 .. cardinality(_payloads) LOOP
        IF _keys[i] IS NOT NULL THEN
            SELECT number INTO _number FROM public.livepush_key WHERE log = _log.id AND key = _keys[i];
            IF FOUND THEN
                _outcomes := _outcomes || concat('=', _log.epoch, '.', _number);
                CONTINUE;
            END IF;
        END IF;
        IF NOT (CASE
            WHEN _expected[i] IS NULL THEN true
            WHEN _expected[i] LIKE '%.0' THEN _log.last = 0
            WHEN split_part(_expected[i], '.', 2) <> _log.last::text THEN false
            ELSE _expected[i] = _log.epoch || '.' || _log.last
                OR _expected[i] = ANY (string_to_array(replace(_log.ancestors, '!', ''), ','))
        END) THEN
            _outcomes := _outcomes || concat('!', _log.epoch, '.', _log.last);
            CONTINUE;
        END IF;
        _log.last := _log.last + 1;
        INSERT INTO public.livepush_event (log, number, at, before, payload)
            VALUES (_log.id, _log.last, _now, _log.bytes, _payloads[i]);
        _log.bytes := _log.bytes + octet_length(_payloads[i]);
        IF _keys[i] IS NOT NULL THEN
            INSERT INTO public.livepush_key (log, key, number, at) VALUES (_log.id, _keys[i], _log.last, _now);
        END IF;
        _outcomes := _outcomes || concat('+', _log.epoch, '.', _log.last);
    END LOOP;
    IF _log.last = _before THEN
        RETURN _outcomes;
    END IF;
    -- Readers heed the bounds exactly, so every 16th event is often enough to delete.
    IF _log.last / 16 > _before / 16 THEN
        SELECT number INTO _first FROM public.livepush_event
            WHERE log = _log.id AND number >= greatest(_log.first, _log.last - _events + 1)
                AND (number = _log.last OR _log.bytes - before <= _size)
                AND (_age IS NULL OR at > _now - make_interval(secs => _age))
            ORDER BY number LIMIT 1;
        _log.first := coalesce(_first, _log.last + 1);
        DELETE FROM public.livepush_event WHERE log = _log.id AND number < _log.first;
    END IF;
    UPDATE public.livepush_channel SET epoch = _log.epoch, last = _log.last, first = _log.first,
        bytes = _log.bytes, used = _now, place = _log.place, run = _log.run, ancestors = _log.ancestors
        WHERE id = _log.id;
    PERFORM pg_notify('livepush', _key);
    RETURN _outcomes;
END $$;

-- Returns one row with the bounds of a log, and one row for each event after an offset. Being stable, it sees
-- all of it at the moment at which the query began. Without a seed the epoch is null: call livepush_begin.
CREATE OR REPLACE FUNCTION public.livepush_read(
    _key text, _after bigint, _limit bigint, _max_bytes bigint, _events bigint, _size bigint, _age float8
) RETURNS TABLE (epoch text, first bigint, last bigint, ancestors text, origins text, number bigint,
    payload bytea)
LANGUAGE plpgsql STABLE ROWS 10 AS $$
#variable_conflict use_column
DECLARE
    _log public.livepush_channel;
    _first bigint; _from bigint; _base bigint; _origins text; _newest text;
BEGIN
    SELECT string_agg(public.livepush_epoch(epoch, _key) || '.0', ',' ORDER BY key),
        min(public.livepush_epoch(epoch, _key)) FILTER (WHERE key = 'livepush.epochs') INTO _origins, _newest
        FROM public.livepush_channel WHERE key IN ('livepush.epochs', 'livepush.epochs.old');
    SELECT * INTO _log FROM public.livepush_channel WHERE key = _key;
    IF NOT FOUND THEN
        RETURN QUERY SELECT _newest, 1::bigint, 0::bigint, '', _origins, NULL::bigint, NULL::bytea;
        RETURN;
    END IF;
    IF _log.place <> public.livepush_place() AND _log.run <> public.livepush_run() THEN
        -- So that clients are told before there is another event.
        SELECT epoch, ancestors INTO _log.epoch, _log.ancestors
            FROM public.livepush_renewed(_log.key, _log.epoch, _log.last, _log.ancestors, _log.run);
    END IF;
    SELECT number INTO _first FROM public.livepush_event
        WHERE log = _log.id AND number >= greatest(_log.first, _log.last - _events + 1)
            AND (number = _log.last OR _log.bytes - before <= _size)
            AND (_age IS NULL OR at > clock_timestamp() - make_interval(secs => _age))
        ORDER BY number LIMIT 1;
    _first := coalesce(_first, _log.last + 1);
    RETURN QUERY SELECT _log.epoch, _first, _log.last, _log.ancestors, _origins, NULL::bigint, NULL::bytea;
    IF _limit > 0 AND _after < _log.last THEN
        _from := greatest(_after + 1, _first);
        SELECT before INTO _base FROM public.livepush_event WHERE log = _log.id AND number = _from;
        RETURN QUERY SELECT NULL, NULL::bigint, NULL::bigint, NULL, NULL, number, payload
            FROM public.livepush_event
            WHERE log = _log.id AND number >= _from AND number < _from + _limit
                AND (number = _from OR before + octet_length(payload) - _base <= _max_bytes)
            ORDER BY number;
    END IF;
END $$;

-- Notes that a process listens to these channels, so that their logs are not forgotten.
CREATE OR REPLACE FUNCTION public.livepush_see(_listened text[], _age float8) RETURNS void
LANGUAGE sql AS $$
    UPDATE public.livepush_channel SET seen = now() WHERE id IN (
        SELECT id FROM public.livepush_channel WHERE key = ANY (_listened)
            AND seen < now() - make_interval(secs => greatest(2 * _age, 600) / 4)
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
$$;

-- Deletes events of quiet channels and idempotency keys that are too old, forgets logs, and changes the seed.
-- Returns whether there may be more to delete. It waits for no lock.
CREATE OR REPLACE FUNCTION public.livepush_clean(_age float8, _remember float8) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    _now timestamptz := clock_timestamp();
    _keep interval := make_interval(secs => greatest(2 * _age, 600));
    _quiet bigint; _keys bigint; _forgotten bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(70726, 'public.livepush_channel'::regclass::oid::bigint::bit(32)::int) THEN
        RETURN false;
    END IF;
    PERFORM public.livepush_begin();
    DELETE FROM public.livepush_key WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM public.livepush_key WHERE at < _now - make_interval(secs => _remember) LIMIT 5000));
    GET DIAGNOSTICS _keys = ROW_COUNT;
    IF _age IS NULL THEN
        RETURN _keys = 5000;
    END IF;
    WITH quiet AS (
        SELECT id FROM public.livepush_channel
            WHERE first <= last AND used < _now - make_interval(secs => _age)
            LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM public.livepush_event USING quiet WHERE log = quiet.id
    )
    UPDATE public.livepush_channel AS channel SET first = channel.last + 1
        FROM quiet WHERE channel.id = quiet.id;
    GET DIAGNOSTICS _quiet = ROW_COUNT;
    PERFORM public.livepush_reseed(epoch) FROM public.livepush_channel
        WHERE key = 'livepush.epochs' AND used < _now - _keep;
    DELETE FROM public.livepush_channel WHERE id IN (
        SELECT id FROM public.livepush_channel
            WHERE first > last AND greatest(used, seen) < _now - _keep AND seed <> ALL (ARRAY(
                SELECT epoch FROM public.livepush_channel
                    WHERE key IN ('livepush.epochs', 'livepush.epochs.old')))
            LIMIT 1000 FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS _forgotten = ROW_COUNT;
    RETURN _quiet = 100 OR _keys = 5000 OR _forgotten = 1000;
END $$;

SELECT public.livepush_begin();
COMMENT ON FUNCTION public.livepush_append(text, text, bytea[], text[], text[], bigint, bigint, float8)
    IS 'livepush_asgi schema 1';
