"""The generators, and those that are left out."""

from clients.trial import Trial

_TSC = "tsc --strict --target es2022 --module node16 --types node --outDir js driver.ts"
_TSC_OF_A_PAGE = "tsc --strict --target es2022 --module esnext --moduleResolution bundler --outDir js page.ts"
_MYPY = "mypy --strict --follow-imports=silent driver.py"  # silent: the generated code has its author's own rules
_GENERATE = "openapi-generator-cli generate -i openapi.json"
_NO_TESTS = "--global-property apiTests=false,modelTests=false"

TRIALS = (
    Trial(
        "openapi-python-client",
        "openapi-python-client",
        makes=("openapi-python-client generate --path openapi.json --meta none --output-path keyturn_client",),
        checks=(_MYPY,),
        runs="python driver.py",
    ),
    Trial(
        "openapi-fetch",
        "openapi-fetch",
        makes=("openapi-typescript openapi.json -o schema.d.ts",),
        checks=(_TSC, _TSC_OF_A_PAGE),
        runs="node js/driver.js",
        needs=("node",),
    ),
    Trial(
        "hey-api",
        "@hey-api/openapi-ts",
        makes=("openapi-ts -i openapi.json -o keyturn -c @hey-api/client-fetch",),
        checks=(_TSC,),
        runs="node js/driver.js",
        needs=("node",),
    ),
    Trial(
        "orval",
        "orval",
        makes=("orval --config orval.config.cjs",),
        checks=(_TSC,),
        runs="node js/driver.js",
        needs=("node",),
    ),
    Trial(
        "openapi-generator-python",
        "openapi-generator-cli",
        makes=(f"{_GENERATE} -g python -o . --package-name keyturn_client",),
        checks=(_MYPY,),
        runs="python driver.py",
        needs=("java",),
    ),
    Trial(
        "openapi-generator-typescript-fetch",
        "openapi-generator-cli",
        makes=(f"{_GENERATE} -g typescript-fetch -o keyturn",),
        checks=(_TSC,),
        runs="node js/driver.js",
        needs=("java", "node"),
    ),
    Trial(
        "openapi-generator-go",
        "openapi-generator-cli",
        makes=(
            (
                f"{_GENERATE} -g go -o . --package-name keyturn {_NO_TESTS}"
                " --git-host example.com --git-user-id keyturn --git-repo-id client"
            ),
        ),
        checks=("go vet ./...",),
        runs="go run ./driver",
        needs=("java", "go"),
    ),
    Trial(
        "openapi-generator-java",
        "openapi-generator-cli",
        makes=(f"{_GENERATE} -g java --library native -o . {_NO_TESTS} --additional-properties=openApiNullable=false",),
        checks=(
            "mvn -q -B compile org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies",
            "javac -Xlint -Werror -cp target/classes:target/dependency/* -d target/driver Driver.java",
        ),
        runs="java -cp target/driver:target/classes:target/dependency/* Driver",
        needs=("java", "javac", "mvn"),
    ),
)
LEFT_OUT = {
    "kiota": "its npm package fetches the program from GitHub at the installation, and its PyPI has none",
    "fern": "it generates only in a container",
}
