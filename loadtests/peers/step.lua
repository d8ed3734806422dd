-- wrk script: steps open sessions in turn.
-- Arguments behind --: path and body of a request, with {id} where the session's goes; number of sessions;
-- prefix of their ids.

function init(args)
   sessions, turn, requests = tonumber(args[3]), 0, {}
   for i = 0, sessions - 1 do
      local id = args[4] .. i
      local headers = { ["content-type"] = "application/json" }
      local path, body = args[1]:gsub("{id}", id), args[2]:gsub("{id}", id)
      requests[i] = wrk.format("POST", path, headers, body)
   end
end

function request()
   turn = (turn + 1) % sessions
   return requests[turn]
end
