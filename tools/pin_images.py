"""Names each base image by the digest that its tag has today, in `Dockerfile` and `compose.yaml`.

`python3 -m tools.pin_images` asks the registry by way of `docker buildx imagetools inspect`, so it needs Docker and a
network, but no image is loaded. A second call renews the digests.
The tag stays, because it tells people which release the image is.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("Dockerfile", "compose.yaml")
IMAGE = re.compile(r"(?m)^(?P<before>ARG \w+_IMAGE=| +image: )(?P<tagged>[\w./-]+:[\w.-]+)(?:@sha256:[0-9a-f]{64})?$")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of(tagged: str) -> str:
    """The digest that a tag has in its registry, for all platforms together.

    Raises:
        SystemExit: Docker or its plug-in buildx is missing, or the registry does not answer.
    """
    docker = shutil.which("docker")
    if docker is None:
        sys.exit("docker is not installed. It is needed, because it asks the registry for the digest.")
    words = ("buildx", "imagetools", "inspect", tagged, "--format", "{{json .Manifest}}")
    done = subprocess.run([docker, *words], check=False, capture_output=True, text=True)
    try:
        digest = json.loads(done.stdout)["digest"]
    except (ValueError, TypeError, KeyError):
        digest = ""
    if done.returncode or not DIGEST.fullmatch(digest):
        said = (done.stderr or done.stdout).strip()
        sys.exit(f"docker {' '.join(words[:4])} named no digest, so nothing is changed. Docker said: {said}")
    return str(digest)


def main() -> None:
    """Writes the digests into the files, all of them or none."""
    texts = {ROOT / name: (ROOT / name).read_text(encoding="utf-8") for name in FILES}
    tags = sorted({found["tagged"] for text in texts.values() for found in IMAGE.finditer(text)})
    digests = {tagged: digest_of(tagged) for tagged in tags}
    for file, text in texts.items():
        pinned = IMAGE.sub(lambda found: f"{found['before']}{found['tagged']}@{digests[found['tagged']]}", text)
        file.write_text(pinned, encoding="utf-8")
    for tagged, digest in digests.items():
        print(f"{tagged}@{digest}")


if __name__ == "__main__":
    main()
