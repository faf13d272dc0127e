-- Batches: the part of the script (behind queue.lua) for files of lines that become jobs, one after the other.
--
--   batch ID PRINCIPAL WEIGHT FILE ENDPOINT TOTAL WINDOW_MS METADATA      -> fields of the batch
--   batch-cancel ID RESULT_MS                       -> fields of the batch, empty for an unknown one
-- End a batch; what is kept of it goes after result_ms.
local function close_batch(id, status, result_ms)
  local batch = key('batch', id)
  local kept = redis.call('HMGET', batch, 'member', 'file')
  redis.call('ZREM', key('queued', 'batch'), kept[1])
  redis.call('ZREM', key('waiting'), id)
  redis.call('HSET', batch, 'status', status, 'finished', whole(now), 'kept', whole(now + result_ms))
  for _, name in ipairs({ batch, key('results', id), key('file', kept[2]), key('lines', kept[2]) }) do
    redis.call('PEXPIRE', name, result_ms)
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
local function finish_line(id, batch, status, result_ms)
  local kept = redis.call('HMGET', key('job', id), 'answer', 'error')
  forget_line(id)
  local is_complete = status == 'complete'
  local result = is_complete and 'S' .. kept[1] or 'E' .. (kept[2] or '{}')
  if redis.call('HSETNX', key('results', batch), string.match(id, '/(%d+)$'), result) == 1 then
    redis.call('HINCRBY', key('batch', batch), is_complete and 'completed' or 'failed', 1)
  end
  local count = redis.call('HMGET', key('batch', batch), 'completed', 'failed', 'total')
  if count[1] + count[2] >= tonumber(count[3]) then
    close_batch(batch, 'completed', result_ms)
  end
end

-- Take the next line of a batch as a job, and queue the rest of it for its owner's next turn; nil where there is none to be taken.
local function take_line(batch, tag, member, result_ms)
  local kept = redis.call('HMGET', key('batch', batch), 'status', 'next', 'total', 'principal', 'weight', 'file',
    'endpoint', 'created', 'window')
  if kept[1] ~= 'in_progress' then
    return nil
  end
  if kept[8] + kept[9] <= now then
    close_batch(batch, 'expired', result_ms)
    return nil
  end
  local number = redis.call('HINCRBY', key('batch', batch), 'next', 1)
  if number < tonumber(kept[3]) then
    redis.call('ZADD', key('queued', 'batch'), whole(take_turn('batch', kept[4], kept[5])), member)
    redis.call('ZADD', key('waiting'), whole(now), batch)
  end
  local job = batch .. '/' .. number
  local line = redis.call('HGET', key('lines', kept[6]), number)
  redis.call('HSET', key('job', job), 'principal', kept[4], 'route', kept[7], 'body', line, 'priority', 'batch',
    'created', whole(now), 'attempts', '0', 'tag', whole(tag), 'weight', kept[5], 'fingerprint', '', 'batch', batch,
    'member', string.format('%016.0f', redis.call('INCR', key('count'))) .. job)
  return job
end

if command == 'batch' then
  local principal, weight, file, total = ARGV[3], ARGV[4], ARGV[5], ARGV[7]
  local tag = take_turn('batch', principal, weight)
  local member = string.format('%016.0f', redis.call('INCR', key('count'))) .. id
  redis.call('HSET', key('batch', id), 'status', 'in_progress', 'principal', principal, 'weight', weight, 'file', file,
    'endpoint', ARGV[6], 'total', total, 'next', '0', 'completed', '0', 'failed', '0', 'created', whole(now),
    'window', ARGV[8], 'metadata', ARGV[9], 'member', member)
  redis.call('HSET', key('file', file), 'batch', id)
  redis.call('PERSIST', key('file', file))
  redis.call('PERSIST', key('lines', file))
  redis.call('ZADD', key('queued', 'batch'), whole(tag), member)
  redis.call('ZADD', key('waiting'), whole(now), id)
  redis.call('ZADD', key('batches', principal), whole(now), id)
  return redis.call('HGETALL', key('batch', id))
end

if command == 'batch-cancel' then
  if is_open(id) then
    close_batch(id, 'cancelled', tonumber(ARGV[3]))
  end
  return redis.call('HGETALL', key('batch', id))
end
