-- The question of HAProxy to Keyturn: may this request pass, and whose is it? Part of haproxy.cfg, beside this file.

local IDENTITY = {"X-Auth-Subject", "X-Auth-Role", "X-Auth-Scope", "X-Auth-Session"}

-- The client's request gives the question its token and its cookies. Nothing else of it can make Keyturn refuse.
local PASSED_ON = {"authorization", "cookie"}

local function first(answer, name)
    local values = answer.headers and answer.headers[name]
    return values and values[0]
end

core.register_action("keyturn", {"http-req"}, function(txn, question)
    local sent = txn.http:req_get_headers()
    local fields = {}
    for _, name in ipairs(PASSED_ON) do
        fields[name] = sent[name]
    end
    local address = txn.f:src()
    fields["x-forwarded-for"] = address and {address}

    -- HEAD: no answer's body has to be read. Haproxy.cfg bounds the wait at five seconds.
    local answer = core.httpclient():head{
        url = "http://keyturn" .. question, dst = "abns@keyturn", headers = fields, timeout = 10000
    }

    -- Each value of a status but 200 is a refusal in haproxy.cfg. So is the missing one, if this function breaks off.
    txn:set_var("txn.status", answer.status or 503)
    txn:set_var("txn.challenge", first(answer, "www-authenticate") or "Bearer")
    if answer.status == 200 then
        for _, name in ipairs(IDENTITY) do
            txn.http:req_set_header(name, first(answer, name:lower()) or "")
        end
    end

    -- A refresh on the way sets both cookies, and a final refusal clears both: the access cookie first.
    local cookies = answer.headers and answer.headers["set-cookie"]
    if cookies and cookies[1] then
        txn:set_var("txn.access_cookie", cookies[0])
        txn:set_var("txn.refresh_cookie", cookies[1])
    end
end, 1)
