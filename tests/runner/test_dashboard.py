"""optuna-dashboard on a search's storage, in a real browser: the study, a trial and its files are there to be seen."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import tiny
from tiny import WORDS

from ldp_search.run import main
from ldp_search.runner.search import best
from ldp_search.runner.training import finish

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1400,1600"]


def picture(folder) -> None:
    """In place of the page's pictures."""
    (folder / "schedule.png").write_bytes(b"\x89PNG of bits")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A search of two trials, one of them with what stands for its picture."""
    folder = tmp_path_factory.mktemp("dashboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldp_search.runner.report.study.write_study_report", lambda study, output: None)
        patch.setattr(finish, "write_report_page", lambda output: output.name == "0000" and picture(output))
        words = [*WORDS, "space=quick", "epochs=1", "trials=2", f"storage={folder / 'study.journal'}"]
        assert main(words) == 0
    return folder


@pytest.fixture(scope="module")
def dashboard(study):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()", str(study / "study.journal")]
    words += ["--artifact-dir", str(study / "study" / "artifacts"), "--port", str(port), "--host", "127.0.0.1"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=tiny.environment())
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            break
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    yield address
    server.kill()
    server.wait()


def test_its_interface_gives_the_files(study, dashboard):
    """What the pages load: the study with its note, and every file, as it was written."""
    with urllib.request.urlopen(f"{dashboard}/api/studies/0") as answer:
        told = json.load(answer)
    assert told["name"] == "digits-net-quick" and "**Best: trial" in told["note"]["body"] and len(told["trials"]) == 2
    files = {meta["filename"]: meta for meta in told["trials"][0]["artifacts"]}
    assert files["schedule.png"]["mimetype"] == "image/png"
    for name in ("schedule.png", "metrics.jsonl", "config.yaml"):
        with urllib.request.urlopen(f"{dashboard}/artifacts/0/0/{files[name]['artifact_id']}") as answer:
            assert answer.read() == (study / "study" / "trials" / "0000" / name).read_bytes()
    assert best.load_study(study / "study.journal").trials[0].state.name == "COMPLETE"


@pytest.mark.slow(reason="a browser; what its pages load is always shown above")
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")
def test_its_pages_in_a_browser(dashboard, tmp_path):
    for page, shown in (
        ("studies/0", ["digits-net-quick", "Best Trial", "policy.freeze"]),
        ("studies/0/trials?numbers=0", ["Trial 0", "training_cost", "schedule.png"]),
        ("studies/0/note", ["To train it again", "--artifact-dir"]),
    ):
        common = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000"]
        words = [*common, "--dump-dom", f"{dashboard}/dashboard/{page}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=100)
        for text in shown:
            assert text in done.stdout, f"{page} lacks {text!r}: {done.stdout[-2000:]}"
