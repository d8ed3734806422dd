-- wrk script: one request steps many open sessions, each once.
-- Arguments behind --: path of the model, number of sessions, prefix of their ids, values of one step, sessions
-- in a request.

dofile(debug.getinfo(1, "S").source:sub(2):gsub("bulk.lua$", "steps.lua"))  -- for `done`

function init(args)
   local model, count, prefix, values = args[1], tonumber(args[2]), args[3], args[4]
   local size = tonumber(args[5])
   turn, requests = 0, {}
   for first = 0, count - 1, size do
      local steps = {}
      for i = first, first + size - 1 do
         steps[#steps + 1] = '{"session_id":"' .. prefix .. i .. '","inputs":[[' .. values .. "]]}"
      end
      local body = '{"requests":[' .. table.concat(steps, ",") .. "]}"
      requests[#requests + 1] = wrk.format("POST", model .. "/steps", { ["content-type"] = "application/json" }, body)
   end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end
