-- An idempotency key: who has it, until when, and what was answered. KEYS[1] is a hash: body, token, answer.
--
--   begin BODY TOKEN LEASE_MS [ANSWER]   -> { 0 } it is theirs now; { 1 } somebody has it; { 2 } another body;
--                                           { 3, answer }. The answer that is given counts for nothing.
--   renew BODY TOKEN LEASE_MS [ANSWER]   -> 1, or 0 where it is somebody else's
--   keep BODY TOKEN KEPT_MS ANSWER       -> 1, or 0 where it is somebody else's
--   forget BODY TOKEN                    -> 1, or 0 where it is not theirs
local key = KEYS[1]
local command, body, token, for_ms, answer = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

if command == 'begin' then
  local kept = redis.call('HMGET', key, 'body', 'answer')
  if not kept[1] or (kept[1] == body and kept[2] and kept[2] == answer) then
    redis.call('DEL', key)
    redis.call('HSET', key, 'body', body, 'token', token)
    redis.call('PEXPIRE', key, for_ms)
    return { 0 }
  end
  if kept[1] ~= body then
    return { 2 }
  end
  if kept[2] then
    return { 3, kept[2] }
  end
  return { 1 }
end

local holder = redis.call('HGET', key, 'token')
if command == 'forget' then
  return holder == token and redis.call('DEL', key) or 0
end
-- Where the store lost it, or it was away for longer than the lease, what its holder says is the newest there is.
if holder and holder ~= token then
  return 0
end
if not holder then
  redis.call('HSET', key, 'body', body, 'token', token)
end
if answer and redis.call('HGET', key, 'answer') ~= answer then
  redis.call('HSET', key, 'answer', answer)
end
-- A renewal that comes late must not shorten what is kept.
if command == 'keep' or redis.call('PTTL', key) < tonumber(for_ms) then
  redis.call('PEXPIRE', key, for_ms)
end
return 1
