"""`octavo tour`, whole, as `make demo` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import ModuleType

import pytest

from octavo import tour
from octavo.errors import Conflict, Unavailable
from octavo.report import Chapter


def take(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
    return subprocess.run(
        [sys.executable, "-m", "octavo.cli", "tour", *words],
        cwd=folder, capture_output=True, text=True, timeout=170, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("tour")
    done = take(folder, "--json")
    if "package index" in done.stderr + done.stdout:
        pytest.skip("no package index to fetch the model from")
    return folder, done


def test_every_system_does_its_main_job(taken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = taken
    told = json.loads(done.stdout)
    assert [chapter["failures"] for chapter in told["chapters"]] == [[] for _ in told["chapters"]]
    assert done.returncode == 0, done.stderr
    figures = {figure["label"]: figure["value"] for figure in told["chapters"][0]["figures"]}
    assert figures["Requests answered"] == "600 of 600"
    page = (folder / "tour.html").read_text()
    assert page.count("<svg") >= 3
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert not (folder / "tour-workspace/run/server.json").exists()


def test_the_server_has_gone_with_the_tour(taken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    log = (taken[0] / "tour-workspace/server.log").read_text()
    url = next(word for line in log.splitlines() for word in line.split() if word.startswith("http://127.0.0.1"))
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url.rstrip("/") + "/livez", timeout=5)


@pytest.mark.browser
def test_its_page_fits(taken: tuple[Path, subprocess.CompletedProcess[str]], browser: object) -> None:
    for width in (1300, 400):
        page = browser.new_page(viewport={"width": width, "height": 900})  # type: ignore[attr-defined]
        page.goto((taken[0] / "tour.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        page.close()


def test_a_folder_of_someone_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "octavo.toml").write_text("[web]\nport = 9\n")
    with pytest.raises(Conflict, match="earlier tour"):
        tour.check_workspace(tmp_path)
    done = take(tmp_path, "--workspace", str(tmp_path), "--no-keep")
    assert done.returncode != 0
    assert done.stderr.startswith("error: ")
    assert (tmp_path / "octavo.toml").read_text() == "[web]\nport = 9\n"


def test_a_system_that_fails_leaves_the_others_their_chapters() -> None:
    def refuse(client: object, say: object) -> Chapter:
        raise Unavailable("the model did not answer", "minilm")

    def break_(client: object, say: object) -> Chapter:
        raise KeyError("bytes")

    for visit, said in ((refuse, "did not answer"), (break_, "KeyError")):
        module = ModuleType("octavo.example.tour")
        module.visit = visit  # type: ignore[attr-defined]
        chapter = tour._visit(module, None, print)
        assert said in chapter.failures[0]
        assert said in tour.render([chapter], 1.0)
