-- An idempotency key: who has it, until when, and what was answered. KEYS[1] is a hash: body, token, answer.
--
--   begin BODY TOKEN LEASE_MS       -> { 0 } it is theirs now; { 1 } somebody has it; { 2 } another body; { 3, answer }
--   renew TOKEN LEASE_MS, keep TOKEN ANSWER KEPT_MS, forget TOKEN      -> 1, or 0 where it is not theirs any more
local key = KEYS[1]
local command = ARGV[1]

if command == 'begin' then
  local kept = redis.call('HMGET', key, 'body', 'answer')
  if not kept[1] then
    redis.call('HSET', key, 'body', ARGV[2], 'token', ARGV[3])
    redis.call('PEXPIRE', key, ARGV[4])
    return { 0 }
  end
  if kept[1] ~= ARGV[2] then
    return { 2 }
  end
  if kept[2] then
    return { 3, kept[2] }
  end
  return { 1 }
end

if redis.call('HGET', key, 'token') ~= ARGV[2] then
  return 0
end
if command == 'renew' then
  redis.call('PEXPIRE', key, ARGV[3])
elseif command == 'keep' then
  redis.call('HSET', key, 'answer', ARGV[3])
  redis.call('PEXPIRE', key, ARGV[4])
else
  redis.call('DEL', key)
end
return 1
