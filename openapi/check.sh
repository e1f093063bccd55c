#!/bin/sh
# Tries the contract: two linters without a finding, five generators, and what they make against a running service.
# Needs the environment of `python3 dev.py`, Node with npm, and a JDK; fetches the tools (300 MB) from PyPI and npm into a
# folder that is kept: TOOLS, else one of the system's temporary ones.
#
#   sh openapi/check.sh
set -eu
cd "$(dirname "$0")/.."
here=$PWD contract=$PWD/openapi/openapi.json python=$PWD/.venv/bin/python
tools=${TOOLS:-${TMPDIR:-/tmp}/keyturn-contract}
mkdir -p "$tools" && cd "$tools"

[ -d venv ] || python3 -m venv venv
venv/bin/pip install -q openapi-generator-cli datamodel-code-generator pydantic
[ -f package.json ] || npm init -y >/dev/null
npm pkg set type=module >/dev/null
npm install --silent --no-audit --no-fund typescript@5.9 openapi-typescript@7 openapi-fetch @hey-api/openapi-ts \
    @types/node@20 tsx

echo "== linters"
TOOLS=$tools sh "$here/openapi/lint.sh"

echo "== generators"
rm -rf made service && mkdir -p made/java/classes service
npx openapi-typescript "$contract" -o made/schema.ts
npx openapi-ts -i "$contract" -o made/hey -c @hey-api/client-fetch
venv/bin/datamodel-codegen --input "$contract" --input-file-type openapi --output made/models.py \
    --output-model-type pydantic_v2.BaseModel --formatters builtin
generator=$(find venv -name 'openapi-generator*.jar' | head -n 1)
venv/bin/openapi-generator-cli generate -i "$contract" -g java --library native -o made/java \
    --additional-properties=openApiNullable=false >made/java.log
# The generator's own jar holds what its clients need, but for this one.
mkdir -p made/java/src/main/java/javax/annotation
echo 'package javax.annotation; public @interface Generated { String[] value(); String date() default ""; String comments() default ""; }' \
    >made/java/src/main/java/javax/annotation/Generated.java
javac -nowarn -cp "$generator" -d made/java/classes $(find made/java/src/main -name '*.java')

cat >made/try.ts <<'END'
import createClient from "openapi-fetch";
import type { paths } from "./schema";
import { client } from "./hey/client.gen";
import { login, logout, me } from "./hey/sdk.gen";

const [baseUrl = "", password = ""] = process.argv.slice(2);
const account = { email: "admin@localhost", password };
const one = createClient<paths>({ baseUrl });
const first = await one.POST("/auth/login", { body: account });
const next = await one.POST("/auth/refresh", { body: { refresh_token: first.data!.refresh_token } });
const headers = { Authorization: `Bearer ${next.data!.access_token}` };
const claims = await one.GET("/auth/verify", { headers });
const [aud, exp]: [string, number] = [claims.data!.aud, claims.data!.exp];
const out = await one.POST("/auth/logout", { headers });
client.setConfig({ baseUrl });
const tokens = await login({ body: account, throwOnError: true });
const mine = await me({ auth: () => tokens.data.access_token, throwOnError: true });
const over = await logout({ body: { refresh_token: tokens.data.refresh_token } });
console.log(aud, exp, out.response.status, mine.data.user.email, over.response!.status);
END
cat >made/Try.java <<'END'
import org.openapitools.client.*;
import org.openapitools.client.api.AuthApi;
import org.openapitools.client.model.*;

class Try {
    public static void main(String[] given) throws ApiException {
        ApiClient client = new ApiClient();
        client.updateBaseUri(given[0]);
        AuthApi auth = new AuthApi(client);
        TokenAnswer first = auth.login(new Login().email("admin@localhost").password(given[1]));
        TokenAnswer next = auth.refresh(null, new Refresh().refreshToken(first.getRefreshToken()));
        client.setRequestInterceptor(request -> request.header("Authorization", "Bearer " + next.getAccessToken()));
        auth = new AuthApi(client);
        System.out.println(auth.verify(null, null, null, null).getAud() + " " + auth.me().getUser().getEmail());
        auth.logout(null);
    }
}
END
cat >made/try.py <<'END'
import models

login = models.Login(email="admin@localhost", password="p")
assert login.model_dump(exclude_none=True) == {"email": "admin@localhost", "password": "p"}
assert models.Refresh(refresh_token="ktr_x").model_dump_json(exclude_none=True) == '{"refresh_token":"ktr_x"}'
END
npx tsc --strict --skipLibCheck --noEmit --target ES2022 --module esnext --moduleResolution bundler --types node made/try.ts
javac -cp "made/java/classes:$generator" -d made/java/classes made/Try.java

echo "== clients"
venv/bin/python made/try.py
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
(cd service && PYTHONPATH="$here" exec "$python" -m app serve --port "$port" >log 2>&1) &
service=$!
trap 'kill $service' EXIT
for _ in $(seq 60); do grep -q 'startup complete' service/log && break || sleep 1; done
password=$(sed -n 's/^    admin@localhost   //p' service/log)
npx tsx made/try.ts "http://127.0.0.1:$port" "$password"
java -cp "made/java/classes:$generator" Try "http://127.0.0.1:$port" "$password"
echo "all well"
