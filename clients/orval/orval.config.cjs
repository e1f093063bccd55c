// The base URL is part of the generated code, so it is given here.
module.exports = {
  keyturn: {
    input: "openapi.json",
    output: { target: "keyturn.ts", client: "fetch", baseUrl: process.env.KEYTURN_URL },
  },
};
