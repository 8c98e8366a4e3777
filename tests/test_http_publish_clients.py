"""Publishers in other languages, by the programs that the documentation shows."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import jwt
import pytest

from .apps.publisher import SECRET
from .programs import need
from .serving import REPOSITORY, uvicorn

FOLDER = REPOSITORY / "docs/snippets/http_publish"
# Where Debian's php-symfony-mercure and php-symfony-http-client are.
COMPONENTS = Path("/usr/share/php/Symfony/Component")
PHP = COMPONENTS / "Mercure"
pytestmark = pytest.mark.real_time


@pytest.mark.parametrize(
    ("program", "options", "title"),
    [
        ("bash", ["-euo", "pipefail", str(FOLDER / "publish.sh")], "from curl"),
        (sys.executable, ["-W", "error", str(FOLDER / "publish.py")], "from Python"),
        ("node", [str(FOLDER / "publish.mjs")], "from Node"),
        ("php", ["-d", "error_reporting=E_ALL & ~E_DEPRECATED", str(FOLDER / "publish.php")], "from PHP"),
    ],
    ids=["curl", "python", "node", "symfony-mercure"],
)
async def test_the_program_of_the_page_publishes(
    program: str, options: list[str], title: str, tmp_path: Path
) -> None:
    needed = {"bash": ["curl", "openssl"], "php": ["php" if PHP.is_dir() else "php-symfony-mercure"]}
    for each in needed.get(program, [program]):
        need(each)
    key = SECRET * 2
    environment = {"PUBLISH_SECRET": SECRET, "MERCURE_KEY": key}
    (tmp_path / "vendor").mkdir()
    loaders = [f"require '{COMPONENTS}/{name}/autoload.php';" for name in ("Mercure", "HttpClient")]
    (tmp_path / "vendor/autoload.php").write_text("\n".join(["<?php", *loaders]))
    async with uvicorn("app:app", tmp_path / "log", "--app-dir", str(FOLDER), environment=environment) as s:
        stream = await s.open("/events/")
        await stream.next_event("livepush.open")
        done = await asyncio.to_thread(
            subprocess.run,
            [program, *options],
            cwd=tmp_path,
            env={
                **os.environ,
                "PUBLISH_URL": f"{s.url}/publish/",
                "PUBLISH_SECRET": SECRET,
                "MERCURE_URL": f"{s.url}/.well-known/mercure/",
                "MERCURE_JWT": jwt.encode({"mercure": {"publish": ["news"]}}, key, "HS256"),
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr + s.log
        event = await stream.next_event()
        assert (event.event, json.loads(event.data)) == ("headline", {"title": title})
        assert event.last_event_id in done.stdout
