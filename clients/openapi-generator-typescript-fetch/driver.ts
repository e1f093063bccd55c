// Uses the client that openapi-generator makes for TypeScript: `node driver.js URL PASSWORD`.
import { AuthApi, Configuration, ErrorAnswerFromJSON, ResponseError } from "./keyturn";

async function main(basePath: string, password: string): Promise<void> {
  const anonymous = new AuthApi(new Configuration({ basePath }));
  const first = await anonymous.login({ login: { email: "admin@localhost", password } });
  const body = { refresh: { refreshToken: first.refreshToken } };
  const second = await anonymous.refresh(body);
  const again = await anonymous.refresh(body);
  console.log(second.refreshToken === again.refreshToken ? "same refresh token" : "another");

  const signedIn = new AuthApi(new Configuration({ basePath, accessToken: second.accessToken }));
  console.log((await signedIn.me()).user.email);

  const out = await anonymous.logoutRaw({ logout: { refreshToken: second.refreshToken } });
  console.log(out.raw.status);
  try {
    await signedIn.me();
  } catch (refused) {
    if (!(refused instanceof ResponseError)) throw refused;
    const answer = ErrorAnswerFromJSON(await refused.response.json());
    console.log(refused.response.status, answer.error, answer.reason);
  }
}

const [basePath = "", password = ""] = process.argv.slice(2);
void main(basePath, password);
