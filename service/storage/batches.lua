-- Batches: the part of the script (behind queue.lua) for files of lines that become jobs, one after the other.
--
--   batch ID PRINCIPAL WEIGHT FILE ENDPOINT TOTAL WINDOW_MS METADATA FINGERPRINT OPEN_MAX QUEUE_MAX
--     TRACEPARENT
--                                                   -> { 1, fields of the batch }, { 0 }: its file or lines of it are gone,
--                                                      { 2 }: another has this id, { 3 }: its owner has too
--                                                      many, { 4 }: all have
--   batch-cancel ID RESULT_MS                       -> fields of the batch, empty for an unknown one
--   file-drop ID                                    -> 1; lines that a batch needs stay as long as its results
local LINE_LOST = 'E{"code":"line_lost","detail":"the store does not have this line any more","retryable":true}'

-- End a batch; what is kept of it goes after result_ms.
local function close_batch(id, status, result_ms)
  local batch = key('batch', id)
  local kept = redis.call('HMGET', batch, 'member', 'file', 'principal')
  redis.call('ZREM', key('queued', 'batch'), kept[1])
  redis.call('ZREM', key('waiting'), id)
  for _, name in ipairs({ key('open'), key('open:of', kept[3]), key('open:with', kept[2]) }) do
    redis.call('ZREM', name, id)
  end
  redis.call('HSET', batch, 'status', status, 'finished', whole(now), 'kept', whole(now + result_ms))
  redis.call('PEXPIRE', batch, result_ms)
  redis.call('PEXPIRE', key('results', id), result_ms)
  if redis.call('EXISTS', key('open:with', kept[2])) == 0 then
    redis.call('PEXPIRE', key('file', kept[2]), result_ms)
    redis.call('PEXPIRE', key('lines', kept[2]), result_ms)
  end
end

local function is_open(batch)
  return batch and redis.call('HGET', key('batch', batch), 'status') == 'in_progress'
end

local function forget_line(id)
  unqueue(id)
  redis.call('ZREM', key('leases'), id)
  redis.call('DEL', key('job', id))
end

-- Write what came of a line, once; with the last one its batch is over.
local function note_result(id, result, result_ms)
  local batch, number = string.match(id, '^(.*)/(%d+)$')
  if redis.call('HSETNX', key('results', batch), number, result) == 1 then
    redis.call('HINCRBY', key('batch', batch), string.sub(result, 1, 1) == 'S' and 'completed' or 'failed', 1)
  end
  local count = redis.call('HMGET', key('batch', batch), 'completed', 'failed', 'total')
  if count[1] + count[2] >= tonumber(count[3]) then
    close_batch(batch, 'completed', result_ms)
  end
end

local function finish_line(id, status, result_ms)
  local kept = redis.call('HMGET', key('job', id), 'answer', 'error')
  forget_line(id)
  note_result(id, status == 'complete' and 'S' .. kept[1] or 'E' .. (kept[2] or '{}'), result_ms)
end

-- Take a job out of everything whose record somebody removed.
local function forget(id, result_ms)
  unqueue(id)
  redis.call('ZREM', key('leases'), id)
  redis.call('ZREM', key('deadlines'), id)
  if is_line(id) and is_open(string.match(id, '^(.*)/')) then
    note_result(id, LINE_LOST, result_ms)
  end
end

-- Take the next line of a batch as a job, and queue the rest of it for its owner's next turn; nil where there is none.
local function take_line(batch, tag, member, result_ms)
  local kept = redis.call('HMGET', key('batch', batch), 'status', 'next', 'total', 'principal', 'weight', 'file',
    'endpoint', 'traceparent')
  if kept[1] ~= 'in_progress' then
    return nil
  end
  local number = redis.call('HINCRBY', key('batch', batch), 'next', 1)
  if number < tonumber(kept[3]) then
    redis.call('ZADD', key('queued', 'batch'), whole(take_turn('batch', kept[4], kept[5])), member)
    redis.call('ZADD', key('waiting'), whole(now), batch)
  end
  local job = batch .. '/' .. number
  local line = redis.call('HGET', key('lines', kept[6]), number)
  if not line then
    note_result(job, LINE_LOST, result_ms)
    return nil
  end
  redis.call('HSET', key('job', job), 'principal', kept[4], 'route', kept[7], 'body', line, 'priority', 'batch',
    'created', whole(now), 'attempts', '0', 'tag', whole(tag), 'weight', kept[5], 'fingerprint', '', 'batch', batch,
    'member', string.format('%016.0f', redis.call('INCR', key('count'))) .. job)
  note_trace(key('job', job), kept[8])
  return job
end

if command == 'batch' then
  local principal, weight, file, total = ARGV[3], ARGV[4], ARGV[5], ARGV[7]
  local of, ends = key('open:of', principal), whole(now + ARGV[8])
  local known = redis.call('HGET', key('batch', id), 'fingerprint')
  if known then -- the answer to the first time did not arrive, or it is asked for again
    return known == ARGV[10] and { 1, redis.call('HGETALL', key('batch', id)) } or { 2 }
  end
  if redis.call('EXISTS', key('file', file)) == 0 or redis.call('HLEN', key('lines', file)) < tonumber(total) then
    return { 0 }
  end
  redis.call('ZREMRANGEBYSCORE', of, '-inf', whole(now))
  if redis.call('ZCARD', of) >= tonumber(ARGV[11]) then
    return { 3 }
  end
  if redis.call('ZCARD', key('open')) >= tonumber(ARGV[12]) then
    return { 4 }
  end
  local tag = take_turn('batch', principal, weight)
  local member = string.format('%016.0f', redis.call('INCR', key('count'))) .. id
  redis.call('HSET', key('batch', id), 'status', 'in_progress', 'principal', principal, 'weight', weight, 'file', file,
    'endpoint', ARGV[6], 'total', total, 'next', '0', 'completed', '0', 'failed', '0', 'created', whole(now),
    'window', ARGV[8], 'metadata', ARGV[9], 'member', member, 'fingerprint', ARGV[10])
  note_trace(key('batch', id), ARGV[13])
  redis.call('HSET', key('file', file), 'batch', id)
  redis.call('PERSIST', key('file', file))
  redis.call('PERSIST', key('lines', file))
  redis.call('ZADD', key('queued', 'batch'), whole(tag), member)
  redis.call('ZADD', key('waiting'), whole(now), id)
  redis.call('ZADD', key('batches', principal), whole(now), id)
  for _, name in ipairs({ key('open'), of, key('open:with', file) }) do
    redis.call('ZADD', name, ends, id)
  end
  return { 1, redis.call('HGETALL', key('batch', id)) }
end

if command == 'file-drop' then
  if redis.call('HEXISTS', key('file', id), 'batch') == 0 then
    redis.call('UNLINK', key('lines', id))
  end
  redis.call('UNLINK', key('file', id))
  return 1
end

if command == 'batch-cancel' then
  if is_open(id) then
    close_batch(id, 'cancelled', tonumber(ARGV[3]))
  end
  return redis.call('HGETALL', key('batch', id))
end
